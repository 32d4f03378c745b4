"""What the benchmarks found: a table, a figure, and the README's section."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.__main__ import NAMES
from nvret.study import readme
from nvret.study.figures import COLUMN_WIDTH
from nvret.utils import store
from nvret.utils.errors import NvretError

MET, MISSED = "#0072B2", "#D55E00"  # Okabe and Ito


def table(folder: Path) -> pd.DataFrame:
    """A row for each target: the ratio's median over the rounds, its quartiles, and the target.

    ``fastest`` is the ratio of the two sides' best rounds: on a machine that others use too, the
    nearest to what the code itself needs.

    Args:
        folder: with a JSON file for each benchmark that was run.
    """
    rows = []
    for name in NAMES:
        if not (folder / f"{name}.json").exists():
            continue
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for case in found["cases"]:
            for target in case["targets"]:
                side, other, quantity = target["side"], target["other"], target["quantity"]
                ours, theirs = np.array(case[quantity][side]), np.array(case[quantity][other])
                values = ours / theirs
                low, median, high = np.quantile(np.atleast_1d(values), [0.25, 0.5, 0.75])
                rows.append(
                    {
                        "benchmark": found["title"],
                        "case": case["name"],
                        "side": side,
                        "other": other,
                        "quantity": "time" if quantity == "seconds" else "extra memory",
                        "ratio": median,
                        "low": low,
                        "high": high,
                        "fastest": ours.min() / theirs.min(),
                        "rounds": np.size(values),
                        "target": target["most"],
                        "met": bool(median <= target["most"]),
                    }
                )
    if not rows:
        raise NvretError(f"{folder}: no results; run python -m benchmarks first")
    return pd.DataFrame(rows)


def figure(rows: pd.DataFrame) -> Figure:
    """Each ratio with its quartiles, and the target that it should stay left of."""
    height = 0.9 + 0.3 * len(rows)
    drawn, axis = plt.subplots(figsize=(COLUMN_WIDTH * 1.2, height), layout="constrained")
    for place, row in enumerate(rows.iloc[::-1].itertuples()):
        colour, marker = (MET, "o") if row.met else (MISSED, "s")
        axis.errorbar(
            row.ratio,
            place,
            xerr=[[row.ratio - row.low], [row.high - row.ratio]],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
        )
        axis.plot([row.target] * 2, [place - 0.35, place + 0.35], color="black", linewidth=1.5)
    axis.margins(y=0.02)
    labels = [
        f"{row.case}\n{row.quantity}, {row.side} / {row.other}"
        for row in rows.iloc[::-1].itertuples()
    ]
    axis.set_yticks(range(len(rows)), labels, fontsize=6)
    axis.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_xlabel("ratio, log scale: left is better", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    for colour, marker, label in ((MET, "o", "target met"), (MISSED, "s", "target missed")):
        axis.plot([], [], color=colour, marker=marker, linestyle="none", label=label)
    axis.plot([], [], color="black", linewidth=1.5, label="target")
    drawn.legend(loc="outside upper right", ncols=3, fontsize=7, frameon=False)
    axis.grid(axis="x", alpha=0.3)
    return drawn


def section(folder: Path, rows: pd.DataFrame) -> str:
    """Markdown of the table."""
    facts = json.loads(next(folder.glob("*.json")).read_text(encoding="utf-8"))
    hardware = facts["hardware"]
    lines = [
        f"Taken on {facts['taken']} on {hardware['threads']} threads of {hardware['processor']}, "
        "float32. Every line is a ratio of two sides that took turns in one run: median and "
        "quartiles over the rounds, and the ratio of the fastest rounds, which a busy machine "
        "disturbs least; below 1, `nvret` needs less. The median decides. Product: the bare matrix "
        "product of the same vectors, which no exact search can do without.",
        "",
        "| what | against | ratio | fastest | target | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in rows.itertuples():
        spread = f" [{row.low:.3g}, {row.high:.3g}]" if row.rounds > 1 else ""
        subject = row.case if row.quantity == "time" else f"{row.case}: {row.quantity}"
        verdict = "met" if row.met else "**missed**"
        figures = f"{row.ratio:.3g}{spread} | {row.fastest:.3g} | ≤ {row.target:.3g}"
        lines.append(f"| {subject} | {row.other} | {figures} | {verdict} |")
    return "\n".join(lines)


def write(folder: Path, readme_file: Path | None) -> None:
    """Write ``table.csv`` and ``ratios.png`` beside the results, and the README's section."""
    rows = table(folder)
    with store.atomic_file(folder / "table.csv") as partial:
        rows.to_csv(partial, index=False, float_format="%.4g")
    with store.atomic_file(folder / "ratios.png") as partial:
        figure(rows).savefig(partial, format="png", dpi=150, metadata={"Software": None})
    if readme_file is not None:
        readme.replace(readme_file, "benchmarks", section(folder, rows))
