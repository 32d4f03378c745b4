// Three figures of the course that answer at once: no library, no network. A figure fills an
// element `<div class="play" data-figure="...">`; its numbers are those of the notebook that it
// names, and a test holds them together.
"use strict";
{
  const SPACE = "http://www.w3.org/2000/svg";
  const BLUE = "#3b8fc4", VERMILION = "#d9662b", GREEN = "#1f9e78", ORANGE = "#c98a00";

  const svg = (parent, name, attributes, text) => {
    const element = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };

  const html = (parent, name, properties) =>
    parent.appendChild(Object.assign(document.createElement(name), properties));

  // A slider with its name and value; `redraw` runs whenever it moves
  const slider = (form, name, [min, max, step, value], show, redraw) => {
    const label = html(form, "label", { textContent: `${name} ` });
    const input = html(label, "input", { type: "range", min, max, step, value });
    const output = html(label, "output", {});
    const update = () => { output.textContent = show(+input.value); };
    input.addEventListener("input", () => { update(); redraw(); });
    update();
    return () => +input.value;
  };

  const canvas = (box, width, height, title) => {
    const drawing = svg(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg(drawing, "title", {}, title);
    return svg(drawing, "g", {});
  };

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const softmax = (scores, T) => {
    const most = Math.max(...scores);
    const e = scores.map((score) => Math.exp((score - most) / T));
    return e.map((value) => value / sum(e));
  };
  const radians = (degrees) => (degrees * Math.PI) / 180;

  // A1: the share of the push that each negative gets
  const loss = (box) => {
    const names = ["very near", "near", "unrelated", "opposite"];
    const colours = [VERMILION, ORANGE, GREEN, BLUE];
    const form = html(box, "form", {});
    const draw = () => {
      const [T, angle] = [10 ** temperature(), turn()];
      const scores = [6 / 7, Math.cos(radians(angle)), 2 / 3, 0, -1];
      const p = softmax(scores, T), shares = softmax(scores.slice(1), T);
      drawing.replaceChildren();
      names.forEach((name, j) => {
        const y = 14 + 46 * j;
        svg(drawing, "text", { x: 96, y: y + 20, "text-anchor": "end" }, name);
        svg(drawing, "rect", { x: 104, y, width: 400 * shares[j], height: 28, fill: colours[j] });
        svg(drawing, "text", { x: 110 + 400 * shares[j], y: y + 20, class: "value" },
            shares[j].toFixed(3));
      });
      for (const tick of [0, 0.5, 1]) {
        svg(drawing, "text", { x: 104 + 400 * tick, y: 218, "text-anchor": "middle" }, tick);
      }
      svg(drawing, "text", { x: 304, y: 238, "text-anchor": "middle" }, "share of the push");
      said.textContent =
        `Probability of the positive ${p[0].toFixed(3)}, loss ${(-Math.log(p[0])).toFixed(3)}, ` +
        `all of the push ${((1 - p[0]) / T).toFixed(2)}.`;
    };
    const temperature = slider(form, "temperature", [-2, 0, 0.01, -1],
                               (value) => (10 ** value).toFixed(3), draw);
    const turn = slider(form, "angle of the very near negative", [0, 180, 1, 37],
                        (value) => `${value}°`, draw);
    const drawing = canvas(box, 580, 246, "The share of the push on each of four negatives");
    const said = html(box, "p", { className: "said" });
    said.setAttribute("aria-live", "polite");
    draw();
  };

  // A3: nine questions and nine passages on a circle, trained with and without one false negative
  const START = [
    [51.38, 64.62, 62.64, 219.34, 201.3, 214.43, 359.51, 360.03, 346.63],
    [74.22, 63.58, 61.48, 197.97, 208.2, 175.97, 290.29, 340.7, 265.19],
  ];
  const T = 0.2, RATE = 0.1, STEPS = 50, NINE = [...Array(9).keys()];
  const topic = (i) => Math.floor(i / 3);
  const cosines = (angles) => angles[0].map((q) => angles[1].map((p) => Math.cos(q - p)));

  // For each question the four nearest passages of other topics; where it is flipped, its nearest
  // unlabelled answer takes the place of the last of them
  const negatives = (angles, flipped) => cosines(angles).map((scores, i) => {
    const nearest = (allowed) => NINE.filter(allowed).sort((a, b) => scores[b] - scores[a]);
    const chosen = nearest((j) => topic(j) !== topic(i)).slice(0, 4);
    if (flipped.has(i)) chosen[3] = nearest((j) => topic(j) === topic(i) && j !== i)[0];
    return chosen;
  });

  const train = (start, listed) => {
    const path = [start];
    for (let step = 0; step < STEPS; step += 1) {
      const [q, p] = path.at(-1), change = [NINE.map(() => 0), NINE.map(() => 0)];
      NINE.forEach((i) => {
        const passages = [i, ...listed[i]];
        const weights = softmax(passages.map((j) => Math.cos(q[i] - p[j])), T);
        passages.forEach((j, place) => {
          // The loss by the cosine, times the cosine by the angle
          const slope = ((weights[place] - (place === 0)) / T) * Math.sin(q[i] - p[j]);
          change[0][i] += slope;
          change[1][j] -= slope;
        });
      });
      path.push([q, p].map((angles, kind) => angles.map((a, i) => a + RATE * change[kind][i])));
    }
    return path;
  };

  // The share of a question's two unlabelled answers among its three nearest passages
  const recall = (angles) => sum(cosines(angles).map((scores, i) => {
    const top = [...NINE].sort((a, b) => scores[b] - scores[a]).slice(0, 3);
    return top.filter((j) => topic(j) === topic(i) && j !== i).length / 2;
  })) / 9;

  const circle = (box) => {
    const form = html(box, "form", {}), start = START.map((row) => row.map(radians));
    const flipped = new Set([5]);
    let path;
    const fields = html(form, "fieldset", {});
    html(fields, "legend", { textContent: "a false negative for question" });
    const compute = () => { path = train(start, negatives(start, flipped)); draw(); };
    const draw = () => {
      drawing.replaceChildren();
      svg(drawing, "circle", { cx: 0, cy: 0, r: 90, class: "ring" });
      const now = path[step()];
      for (const kind of [0, 1]) {
        NINE.forEach((i) => {
          const radius = 50 + 52 * kind + 12 * (i % 3), colour = [BLUE, GREEN, ORANGE][topic(i)];
          const place = (angle) => [radius * Math.cos(angle), -radius * Math.sin(angle)];
          const [from, to] = [place(start[kind][i]), place(now[kind][i])];
          svg(drawing, "line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1],
                                 stroke: colour, "stroke-opacity": 0.5 });
          for (const [[x, y], fill] of [[from, "none"], [to, colour]]) {
            const shape = { fill, stroke: colour, "stroke-width": 1.5 };
            if (kind) svg(drawing, "circle", { cx: x, cy: y, r: 6.5, ...shape });
            else svg(drawing, "path", { d: `M${x - 8} ${y + 6}h16l-8-14z`, ...shape });
          }
          svg(drawing, "text", { x: to[0], y: to[1] + (kind ? 3.2 : 4.5), class: "inside" }, i);
        });
      }
      const loss = sum(NINE.map((i) => -Math.log(softmax(
        [i, ...negatives(start, flipped)[i]].map((j) => Math.cos(now[0][i] - now[1][j])), T)[0])));
      said.textContent =
        `Step ${step()}: training loss ${loss.toFixed(2)}, recall of the answers that nobody ` +
        `labelled ${recall(now).toFixed(2)} (before training ${recall(start).toFixed(2)}).`;
    };
    NINE.forEach((i) => {
      const label = html(fields, "label", {});
      const input = html(label, "input", { type: "checkbox", checked: flipped.has(i), value: i });
      label.append(` ${i}`);
      input.addEventListener("change", () => {
        if (input.checked) flipped.add(i); else flipped.delete(i);
        compute();
      });
    });
    const step = slider(form, "step", [0, STEPS, 1, STEPS], (value) => value, () => draw());
    const drawing = canvas(box, 300, 300, "Questions and passages on a circle");
    drawing.setAttribute("transform", "translate(150 150)");
    const said = html(box, "p", { className: "said" });
    said.setAttribute("aria-live", "polite");
    compute();
  };

  // A4: ten candidates of two questions under four rules
  const QUESTIONS = {
    A: { scores: [0.79, 0.755, 0.74, 0.72, 0.68, 0.66, 0.62, 0.58, 0.5, 0.41], positive: 0.8,
         answers: 1 },
    B: { scores: [0.46, 0.43, 0.39, 0.37, 0.36, 0.34, 0.33, 0.31, 0.29, 0.15], positive: 0.4,
         answers: 3 },
  };
  const mine = (scores, ceiling, skip) =>
    scores.map((_, rank) => rank).filter((rank) => scores[rank] < ceiling).slice(skip, skip + 4);

  const rules = (box) => {
    const form = html(box, "form", {});
    const draw = () => {
      drawing.replaceChildren();
      const said = [];
      Object.entries(QUESTIONS).forEach(([name, { scores, positive, answers }], place) => {
        const top = 20 + 186 * place, at = (score) => 120 + 470 * (score / 0.9);
        const limits = {
          "shifted": [Infinity, shift()], "threshold": [threshold(), 0],
          "margin": [positive - margin(), 0], "percentage": [positive * share(), 0],
        };
        svg(drawing, "text", { x: 4, y: top, class: "value" }, `question ${name}`);
        svg(drawing, "line", { x1: at(positive), x2: at(positive), y1: top + 6, y2: top + 150,
                               stroke: GREEN, "stroke-dasharray": "5 4" });
        svg(drawing, "text", { x: at(positive), y: top, "text-anchor": "middle", fill: GREEN },
            "labelled answer");
        Object.entries(limits).forEach(([rule, [ceiling, skip]], row) => {
          const y = top + 26 + 34 * row, taken = mine(scores, ceiling, skip);
          svg(drawing, "text", { x: 4, y: y + 5 }, rule);
          svg(drawing, "line", { x1: at(0.1), x2: at(0.9), y1: y, y2: y, class: "ring" });
          if (Number.isFinite(ceiling)) {
            const x = at(Math.min(ceiling, 0.9));
            svg(drawing, "line", { x1: x, x2: x, y1: y - 13, y2: y + 13, class: "ceiling" });
          }
          scores.forEach((score, rank) => {
            const colour = rank < answers ? VERMILION : BLUE;
            const shape = { stroke: colour, "stroke-width": 2,
                            fill: taken.includes(rank) ? colour : "var(--pst-color-background)" };
            const x = at(score);
            if (rank < answers) {
              svg(drawing, "path", { d: `M${x} ${y - 7}l7 7l-7 7l-7-7z`, ...shape });
            } else svg(drawing, "circle", { cx: x, cy: y, r: 5.5, ...shape });
          });
          const wrong = taken.filter((rank) => rank < answers).length;
          const right = taken.filter((rank) => rank >= answers).map((rank) => scores[rank]);
          const hardness = right.length ? sum(right) / right.length / positive : NaN;
          said.push([name, rule, `${wrong} of ${taken.length}`,
                     right.length ? `${Math.round(100 * hardness)} %` : "–"]);
        });
      });
      [0.1, 0.3, 0.5, 0.7, 0.9].forEach((tick) => svg(
        drawing, "text", { x: 120 + 470 * (tick / 0.9), y: 378, "text-anchor": "middle" }, tick));
      svg(drawing, "text", { x: 380, y: 397, "text-anchor": "middle" }, "the teacher's score");
      body.replaceChildren();
      for (const cells of said) {
        const row = html(body, "tr", {});
        cells.forEach((textContent) => html(row, "td", { textContent }));
      }
    };
    const two = (value) => value.toFixed(2);
    const shift = slider(form, "n of the shift", [0, 6, 1, 3], (value) => value, draw);
    const threshold = slider(form, "threshold", [0.1, 0.9, 0.01, 0.7], two, draw);
    const margin = slider(form, "margin", [0, 0.3, 0.01, 0.05], two, draw);
    const share = slider(form, "percentage", [0.5, 1.05, 0.01, 0.95],
                         (value) => `${Math.round(100 * value)} %`, draw);
    const drawing = canvas(box, 600, 404, "What four rules take of ten candidates");
    const table = html(html(box, "div", { className: "table-box" }), "table", {});
    table.className = "table";
    const head = html(html(table, "thead", {}), "tr", {});
    for (const textContent of ["question", "rule", "answers among the negatives", "hardness"]) {
      html(head, "th", { textContent });
    }
    const body = html(table, "tbody", {});
    draw();
  };

  const FIGURES = { loss, circle, rules };
  for (const box of document.querySelectorAll(".play")) {
    box.replaceChildren();
    FIGURES[box.dataset.figure](box);
    box.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  }
}
