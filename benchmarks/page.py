"""What the benchmarks found: tables, figures, ``docs/benchmarks.md`` and some lines of README."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.table import BENCHMARKS
from nvret.analysis.looks import BLUE, COLUMN_WIDTH, VERMILION
from nvret.study import readme
from nvret.utils import store
from nvret.utils.errors import NvretError

MET, MISSED = BLUE, VERMILION
# What is no tool that one would use instead
YARDSTICKS = ("one second", "product", "1 µs a negative")


def results(folder: Path) -> dict[str, dict]:
    """Name -> the JSON file of each benchmark that was run.

    Raises:
        NvretError: none was.
    """
    paths = {name: folder / f"{name}.json" for name in BENCHMARKS}
    read = {name: json.loads(path.read_text(encoding="utf-8"))
            for name, path in paths.items() if path.exists()}  # fmt: skip
    if not read:
        raise NvretError(f"{folder}: no results; run python -m benchmarks first")
    return read


def table(folder: Path) -> pd.DataFrame:
    """A row for each target: the ratio's median over the rounds, its quartiles, and the target.

    ``fastest`` is the ratio of the two sides' best rounds: on a machine that others use too, the
    nearest to what the code itself needs.

    Args:
        folder: with a JSON file for each benchmark that was run.
    """
    rows = []
    for result in results(folder).values():
        for case in result["cases"]:
            for target in case["targets"]:
                side, other, quantity = target["side"], target["other"], target["quantity"]
                ours, theirs = np.array(case[quantity][side]), np.array(case[quantity][other])
                values = ours / theirs
                low, median, high = np.quantile(np.atleast_1d(values), [0.25, 0.5, 0.75])
                rows.append(
                    {
                        "benchmark": result["title"],
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
    return pd.DataFrame(rows)


def figure(rows: pd.DataFrame) -> Figure:
    """Each ratio with its quartiles, and the target that it should stay left of."""
    height = 0.9 + 0.3 * len(rows)
    drawn, axis = plt.subplots(figsize=(COLUMN_WIDTH * 1.2, height), layout="constrained")
    labels = []
    for place, row in enumerate(rows.iloc[::-1].itertuples()):
        colour, marker = (MET, "o") if row.met else (MISSED, "s")
        spread = [[row.ratio - row.low], [row.high - row.ratio]]
        axis.errorbar(row.ratio, place, xerr=spread, color=colour, marker=marker, markersize=5,
                      capsize=2)  # fmt: skip
        axis.plot([row.target] * 2, [place - 0.35, place + 0.35], color="black", linewidth=1.5)
        labels.append(f"{row.case}\n{row.quantity}, {row.side} / {row.other}")
    axis.margins(y=0.02)
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


def of_machine(hardware: dict) -> str:
    """Name of a machine's folder of results.

    >>> of_machine({"processor": "AMD EPYC 7B13", "features": ["AVX2"]})
    'amd-epyc-7b13-avx2'
    """
    words = " ".join([hardware["processor"], *hardware["features"][-1:]])
    return re.sub(r"(\(r\)|\(tm\)|[^a-z0-9])+", "-", words.lower()).strip("-")


def machines(folder: Path) -> dict[Path, pd.DataFrame]:
    """The table of each machine that has results, the latest first.

    Raises:
        NvretError: none has.
    """
    found = [path for path in sorted(folder.iterdir()) if (path / "table.csv").is_file()]
    if not found:
        raise NvretError(f"{folder}: no results; run python -m benchmarks first")
    found.sort(key=lambda path: _facts(path)["taken"], reverse=True)
    return {path: table(path) for path in found}


def section(folder: Path, rows: pd.DataFrame) -> str:
    """Markdown of one machine's ratios."""
    lines = [
        f"## {_machine(folder)}",
        "",
        f"Taken on {_facts(folder)['taken']}.",
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
    facts = []
    for case in (case for result in results(folder).values() for case in result["cases"]):
        texts = [
            f"{key} {fact:.4g}" if isinstance(fact, int | float) else f"{key} {fact}"
            for key, fact in case["facts"].items()
        ]
        if texts:
            facts.append(f"- {case['name']}: {'; '.join(texts)}")
    lines += ["", "Measured beside:", "", *facts] if facts else []
    picture = (
        f"![Ratios to the peers and their targets](../results/benchmarks/{folder.name}/ratios.png)"
    )
    return "\n".join([*lines, "", picture])


def text(tables: dict[Path, pd.DataFrame]) -> str:
    """Markdown of what was compared, and of all machines."""
    lines = [
        "Every line is a ratio of two sides that took turns in one run: median and quartiles over "
        "the rounds, and the ratio of the fastest rounds, which a busy machine disturbs least; "
        "below 1, `nvret` needs less. The median decides. In float32, where no other is named.",
        "",
        *(f"- **{benchmark.title}.** {benchmark.compares}" for benchmark in BENCHMARKS.values()),
    ]
    parts = ["\n".join(lines), *(section(folder, rows) for folder, rows in tables.items())]
    return "\n\n".join(parts)


def summary(tables: dict[Path, pd.DataFrame]) -> str:
    """Two lines of Markdown for the README: targets, and ranges over tools and machines."""
    rows = pd.concat(tables.values())
    machines = f"{len(tables)} kinds of machine" if len(tables) > 1 else _machine(*tables)
    times = rows[(rows["quantity"] == "time") & ~rows["other"].isin(YARDSTICKS)]
    compared = []
    for title, group in times.groupby("benchmark", sort=False):
        ends = (group["ratio"].min(), group["ratio"].max())
        ends = dict.fromkeys(f"{value:.2g}" for value in ends)
        compared.append(f"{title} {' to '.join(ends)}")
    return (
        f"{rows['met'].sum()} of {len(rows)} targets met on {machines}: [all ratios, and why some "
        f"are missed](docs/benchmarks.md).\nTime of `nvret` over that of other tools: "
        f"{'; '.join(compared)}."
    )


def write(folder: Path) -> None:
    """Write ``table.csv`` and ``ratios.png`` beside one machine's results."""
    rows = table(folder)
    with store.atomic_file(folder / "table.csv") as partial:
        rows.to_csv(partial, index=False, float_format="%.4g")
    with store.atomic_file(folder / "ratios.png") as partial:
        figure(rows).savefig(partial, format="png", dpi=150, metadata={"Software": None})


def publish(folder: Path, root: Path) -> None:
    """Bring README and ``docs/benchmarks.md`` up to date with all machines' results."""
    tables = machines(folder)
    readme.replace(root / "docs" / "benchmarks.md", "benchmarks", text(tables))
    readme.replace(root / "README.md", "benchmarks", summary(tables))


def _facts(folder: Path) -> dict:
    """When and on what: the same for all benchmarks of a machine, the latest of them."""
    return max(results(folder).values(), key=lambda facts: facts["taken"])


def _machine(folder: Path) -> str:
    hardware = _facts(folder)["hardware"]
    features = ", ".join(hardware.get("features", []))
    named = f"{hardware['threads']} threads of {hardware['processor']}"
    return f"{named} ({features})" if features else named
