"""Draws the rows of ``results/*.csv``: a table in Markdown, and the time per neuron-step as a PNG.

    python benchmarks/plot.py > table.md

Of each case, the rows of its last run are used: ratios are those of medians of one run.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
OURS = ("cpu", "cuda", "triton", "module", "cuda_graph", "triton_graph")
PLOTTED = ("lif_forward", "lif_forward_backward")
REMARKS = {"bfloat16", "scalar", "quiet", "one state"}  # what a table says beside the backend
FIELDS = ("case", "mode", "T", "B", "N", "input_size", "dtype", "constants", "input")
Row = dict[str, str]


def slug(name: str) -> str:
    """Returns the name of a device as it stands in the name of a file."""
    name = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def sizes(row: Mapping[str, Any]) -> str:
    """Returns T, B, N as a table shows them, with the size of the input of a recurrent layer."""
    arrow = f"{row['input_size']} → " if row["input_size"] else ""
    return f"{row['T']}, {row['B']}, {arrow}{row['N']}"


def last_runs(paths: list[Path]) -> list[Row]:
    """Returns the rows of the last run of each case, device and number of threads."""
    runs: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (row["device"], row["threads"], row["malloc"], row["case"])
                runs[key][row["date"]].append({"input_size": ""} | row)  # older files lack it
    return [row for dates in runs.values() for row in dates[max(dates)]]


def _setting(row: Row) -> tuple[str, ...]:
    names = ("device", "threads", "malloc", *FIELDS)
    return tuple(row[name] for name in names)


def markdown(rows: list[Row]) -> str:
    """Returns a table with one line per row; times of others as a multiple of ours."""
    ours = {_setting(row): row for row in reversed(rows) if row["backend"] in OURS}
    lines = [
        "| case | T, B, N | mode | backend | median ms (20 %, 80 %) | MB | x ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        remarks = {row["dtype"], row["constants"], row["input"]} & REMARKS
        malloc = ["(default malloc)"] if row["malloc"] == "default" else []
        base = ours.get(_setting(row))
        column = "median_ms" if row["median_ms"] else "memory_bytes"
        ratio = ""
        if base and base is not row and base[column]:
            ratio = f"{float(row[column]) / float(base[column]):.3g}"
        median, q20, q80 = (f"{float(row[k] or 0):.4g}" for k in ("median_ms", "q20_ms", "q80_ms"))
        cells = (
            row["case"],
            sizes(row),
            row["mode"],
            " ".join([row["backend"], *sorted(remarks), *malloc]),
            f"{median} ({q20}, {q80})" if row["median_ms"] else "",
            f"{float(row['memory_bytes']) / 1e6:.1f}" if row["memory_bytes"] else "",
            ratio,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draws nanoseconds per neuron-step of the cases in `PLOTTED`, one panel for each.

    The floor is the time of a copy, times the bytes that must be moved over those of the copy.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(PLOTTED), figsize=(11, 4), sharey=True, layout="constrained"
    )
    for panel, case in zip(panels, PLOTTED, strict=True):
        nanoseconds: dict[str, dict[str, float]] = defaultdict(dict)
        for row in rows:
            is_default = row["malloc"] == "default"  # page faults, see README.md
            if row["case"] == case and row["mode"] != "backward" and not is_default:
                steps = math.prod(int(row[k]) for k in "TBN")
                shape = sizes(row)
                is_floor = row["backend"] == "copy"
                factor = 2.5 if is_floor and row["mode"] == "forward_backward" else 1.0
                name = "floor" if is_floor else row["backend"]
                nanoseconds[name][shape] = factor * float(row["median_ms"]) * 1e6 / steps
        shapes = list(dict.fromkeys(shape for times in nanoseconds.values() for shape in times))
        width = 0.8 / max(1, len(nanoseconds))
        for k, (backend, times) in enumerate(nanoseconds.items()):
            left = [shapes.index(shape) + k * width - 0.4 for shape in times]
            panel.bar(left, list(times.values()), width, align="edge", label=backend)
        panel.set_xticks(range(len(shapes)), shapes)
        panel.set(yscale="log", title=case, xlabel="T, B, N")
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("nanoseconds per neuron-step")
    if handles := panels[0].get_legend_handles_labels()[0]:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    shown = [row for row in rows if row["case"] in PLOTTED]
    devices = {f"{row['device']}, {row['threads']} threads" for row in shown}
    figure.suptitle(" / ".join(sorted(devices)))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", nargs="*", type=Path, help="default: benchmarks/results/*.csv")
    parser.add_argument("--png", type=Path, help="default: beside the first CSV file")
    options = parser.parse_args(argv)
    paths = options.csv or sorted((ROOT / "results").glob("*.csv"))
    if not paths:
        print("there are no rows yet: run benchmarks/run.py", file=sys.stderr)
        return 1
    rows = last_runs(paths)
    print(markdown(rows))
    draw(rows, options.png or paths[0].with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
