"""Writes the report of each ``results/*.csv``, its figures, and the tables of the main README.

    python benchmarks/report.py           # after a benchmark
    python benchmarks/report.py --check   # status 1 if a text is not what the rows give

Of each case, the rows of its last run are used: ratios are those of medians of one run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from figures import LAYERS, figures, order, points
from rows import (
    COPIED_BYTES,
    MATMUL_SIZE,
    Group,
    Row,
    compared,
    digits,
    group,
    group_key,
    last_runs,
    mode_name,
    number,
    remarks,
    sizes,
    sweeps,
    usual,
)

ROOT = Path(__file__).resolve().parent
BEGIN = "<!-- benchmarks: begin (benchmarks/report.py writes this) -->"
END = "<!-- benchmarks: end -->"
#: What measures the machine: not to be compared with ours.
LIMITS = ("copy", "matmul")
DOTS_PER_INCH = 150
#: Exponents are those of problems that are larger than so many neuron-steps.
FITTED = 1e6
HOW_TO_READ = """\
Times are medians in milliseconds; *x ours* is the median of another library over ours, both timed
in turns in one run; what replays a CUDA graph is compared with ours replayed. *Of limit* is the
least time that a copy and a matrix product allow, which were measured beside it, over the time
taken (of memory: the least bytes over those taken): 1 is as fast as this machine can.
[Benchmarks](../README.md) says what cases, modes and names mean."""
ABOUT = {
    "speedup": "How many times as long other libraries take for the same layer.",
    "cases": "The same of all other cases.",
    "time": "Time over the size that grows; all other sizes stay.",
    "memory": "Memory over the same: peaks, and in mode `saved` what autograd keeps for backward.",
    "growth": "Ours alone, up to what the memory holds.",
    "limit": "Share of the limit that ours reaches.",
    "limit-growth": "The same over the size that grows.",
}


def times(ratio: float | None) -> str:
    """Returns a ratio of two times."""
    return f"{digits(ratio, 2)}x" if ratio else ""


def megabytes(row: Row) -> str:
    """Returns the memory of a row in MB."""
    return f"{float(row['memory_bytes']) / 1e6:.1f}" if row["memory_bytes"] else ""


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Returns a table in Markdown, or nothing if it has no lines."""
    body = [f"| {' | '.join(cells)} |" for cells in lines]
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *body] if body else []


def _span(values: Iterable[str]) -> str:
    found = sorted(set(filter(None, values)), key=float)
    return " to ".join(dict.fromkeys(found[:1] + found[-1:]))


def _commits(rows: Iterable[Row]) -> str:
    changes = {"yes": " with changes", "unknown": " (changes unknown)", "no": ""}
    return ", ".join(
        dict.fromkeys(row["commit"] + changes.get(row["uncommitted"], "") for row in rows)
    )


def _quantiles(row: Row) -> tuple[float, float, float]:
    """Returns the median and the quantiles in milliseconds; the median if they are missing."""
    middle = float(row["median_ms"])
    return middle, float(row["q20_ms"] or middle), float(row["q80_ms"] or middle)


class Report:
    """The report of a device.

    Attributes:
        name: Of the CSV file, without its end.
        rows: Of the last runs.
        figures: What draws each PNG, by the end of its name.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.rows = path.stem, last_runs([path])
        if not self.rows:
            raise ValueError(f"{path.name} must have rows to report, but has none")
        self.figures = figures(self.rows)
        self._usual = usual(self.rows)
        self._groups = group(self.rows)

    def _case(self, row: Row) -> str:
        """Returns the case with what distinguishes its rows besides sizes."""
        threads, malloc = self._usual
        notes = remarks(row)
        notes += ["default malloc"] if row["malloc"] == "default" != malloc else []
        notes += [f"threads: {row['threads']}"] if row["threads"] != threads else []
        return f"{row['case']} ({', '.join(notes)})" if notes else row["case"]

    def _figure(self, name: str) -> list[str]:
        if name not in self.figures:
            return []
        return [ABOUT[name], "", f"![{ABOUT[name]}]({self.name}-{name}.png)"]

    def _head(self) -> list[str]:
        rows = self.rows
        tokens = {token for row in rows for token in row["versions"].split()}
        versions = sorted(token for token in tokens if not token.endswith("=none"))
        dates = sorted(row["date"][:10] for row in rows)
        facts = {
            "Threads": _span(row["threads"] for row in rows),
            "Commits": _commits(rows),
            "Dates": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
            "Load at the start of a case": _span(row["load"] for row in rows),
            "Versions": ", ".join(token.replace("=", " ") for token in versions),
        }
        return [*(f"- {name}: {value}" for name, value in facts.items()), "", HOW_TO_READ]

    def _measured_limits(self) -> list[str]:
        gigabytes: dict[float, list[float]] = {}
        gigaflops: list[float] = []
        size = MATMUL_SIZE["cuda" if "cuda=" in self.rows[0]["versions"] else "cpu"]
        for row in self.rows:
            if (row["threads"], row["malloc"]) != self._usual:
                continue
            seconds = 1e-3 * (number(row, "median_ms") or math.nan)
            if row["backend"] == "copy":
                element = {"float64": 8, "float32": 4}.get(row["dtype"], 2)
                steps = int(row["T"]) * int(row["B"]) * int(row["N"])
                copied = max(element * steps, COPIED_BYTES)
                gigabytes.setdefault(copied / 1e6, []).append(2e-9 * copied / seconds)
            if row["backend"] == "matmul":
                gigaflops.append(2e-9 * size**3 / seconds)
        lines = [
            (f"copy of {digits(copied)} MB", _range(rates), "GB/s, read and written")
            for copied, rates in sorted(gigabytes.items())
        ]
        if gigaflops:
            lines.append((f"float32 product of {size}²", _range(gigaflops), "GFLOP/s"))
        return table(("what", "rate", "unit"), lines)

    def _summary(self) -> list[str]:
        groups = compared(self.rows)
        names = order(name for g in groups for name in g.peers)
        lines = []
        for g in groups:
            ours = g.first
            ratios = {name: g.ratio(row) for name, row in g.peers.items()}
            lines.append(
                (
                    self._case(ours),
                    sizes(ours),
                    mode_name(ours["mode"]),
                    ours["backend"],
                    digits(number(ours, "median_ms")),
                    digits(number(ours, "of_limit"), 2),
                    *(times(ratios.get(name)) for name in names),
                )
            )
        return table(("case", "T, B, N", "mode", "ours", "ms", "of limit", *names), lines)

    def _exponents(self) -> list[str]:
        lines = []
        for sweep in sweeps(self.rows):
            found = {c: points(sweep, c) for c in ("median_ms", "memory_bytes")}
            steps = math.prod(int(sweep.first[n]) for n in "TBN") / int(sweep.first[sweep.axis])
            for name in sweep.lines:
                fits = [fit(found[c].get(name, []), FITTED / steps) for c in found]
                if any(fits):
                    which = (self._case(sweep.first), sweep.axis, sweep.fixed)
                    which += (name[0], mode_name(name[1]))
                    lines.append((*which, *(text or "" for text in fits)))
        return table(("case", "over", "at", "backend", "mode", "time", "memory"), lines)

    def _memory(self) -> list[str]:
        shown = [g for g in self._groups.values() if any(map(megabytes, g.peers.values()))]
        names = order(b for g in shown for b, row in g.rows.items() if row["memory_bytes"])
        return table(
            ("case", "T, B, N", "what", *names),
            (
                (
                    self._case(g.first),
                    sizes(g.first),
                    mode_name(g.first["mode"]) + (", peak" if g.first["median_ms"] else ""),
                    *(megabytes(g.rows[n]) if n in g.rows else "" for n in names),
                )
                for g in shown
            ),
        )

    def _threads(self) -> list[str]:
        runs: dict[tuple[str, ...], dict[int, Row]] = {}
        for row in self.rows:
            if row["case"] == "threads" and row["median_ms"]:
                names = ("date", "T", "B", "input_size", "N", "mode", "backend")
                key = (*(row[name] for name in names), *remarks(row))
                runs.setdefault(key, {})[int(row["threads"])] = row
        lines = []
        for by_threads in (run for run in runs.values() if len(run) > 1):
            low, high = min(by_threads), max(by_threads)
            slow, fast = (float(by_threads[k]["median_ms"]) for k in (low, high))
            row = by_threads[low]
            which = (sizes(row), mode_name(row["mode"]), " ".join([row["backend"], *remarks(row)]))
            lines.append(
                (*which, f"{low}: {digits(slow)}", f"{high}: {digits(fast)}", times(slow / fast))
            )
        return table(("T, B, N", "mode", "backend", "threads: ms", "threads: ms", "gain"), lines)

    def _first_calls(self) -> list[str]:
        rows = [row for row in self.rows if row["case"] == "first_call"]
        rows = [row for row in rows if (row["threads"], row["malloc"]) == self._usual]
        modes = list(dict.fromkeys(row["mode"] for row in rows))
        found = {(row["backend"], row["mode"]): row for row in rows}
        return table(
            ("seconds", *map(mode_name, modes)),
            (
                (name, *(_seconds(found.get((name, mode))) for mode in modes))
                for name in order(row["backend"] for row in rows)
            ),
        )

    def _all(self) -> list[str]:
        lines = []
        for row in self.rows:
            g = self._groups[group_key(row)]
            column = "median_ms" if row["median_ms"] else "memory_bytes"
            is_base = row is g.ours or row["backend"] in LIMITS
            ratio = None if is_base else g.ratio(row, column)
            median = spread = ""
            if row["median_ms"]:
                middle, low, high = _quantiles(row)
                median = f"{middle:.4g} ({low:.4g}, {high:.4g})"
                spread = f"{(high - low) / middle:.0%}"
            which = (self._case(row), sizes(row), mode_name(row["mode"]), row["backend"])
            limit = digits(number(row, "of_limit"), 2)
            quantities = (median, spread, row["repeats"], megabytes(row), limit)
            lines.append((*which, *quantities, times(ratio)))
        header = "case|T, B, N|mode|backend|median ms (20 %, 80 %)|spread|n|MB|of limit|x ours"
        return table(header.split("|"), lines)

    def text(self) -> str:
        """Returns the report in Markdown."""
        sections = {
            "Measured limits": [self._measured_limits()],
            "Speed-up": [self._summary(), self._figure("speedup"), self._figure("cases")],
            "Growth": [*map(self._figure, ("time", "memory", "growth")), self._exponents()],
            "Share of the limit": [self._figure("limit"), self._figure("limit-growth")],
            "Memory in MB": [self._memory()],
            "Threads": [self._threads()],
            "First calls": [self._first_calls()],
            "All rows": [self._all()],
        }
        lines = [f"# {self.rows[0]['device']}", "", *self._head()]
        for title, parts in sections.items():
            if present := [part for part in parts if part]:
                lines += ["", f"## {title}"]
                for part in present:
                    lines += ["", *part]
        return "\n".join(lines) + "\n"

    def readme(self, folder: str) -> str:
        """Returns what the main README shows; ``folder`` leads from there to the results."""
        modes = ("forward", "forward_backward")
        found: dict[tuple[str, str], dict[str, Group]] = {}
        for g in self._groups.values():
            row = g.first
            plain = (row["threads"], row["malloc"], row["dtype"]) == (*self._usual, "float32")
            if g.ours and plain and row["case"] in LAYERS and row["mode"] in modes:
                key = (LAYERS[row["case"]], sizes(row))
                found.setdefault(key, {})[row["mode"]] = g
        groups = [g for pair in found.values() for g in pair.values()]
        names = [n for n in order(n for g in groups for n in g.peers) if "reference" not in n]

        def both(pair: dict[str, Group], cell: Callable[[Group], str]) -> str:
            texts = [cell(pair[mode]) if mode in pair else "" for mode in modes]
            return " / ".join(text or "-" for text in texts) if any(texts) else ""

        labels = list(dict.fromkeys(LAYERS.values()))
        lines = [
            (
                layer,
                shape,
                both(pair, lambda g: digits(number(g.first, "median_ms"))),
                both(pair, lambda g: digits(number(g.first, "of_limit"), 2)),
                *(
                    both(pair, lambda g, n=name: times(g.ratio(g.rows[n])) if n in g.rows else "")
                    for name in names
                ),
            )
            for (layer, shape), pair in sorted(found.items(), key=lambda e: labels.index(e[0][0]))
        ]
        commits = _commits(g.first for g in groups)
        text = [
            f"{self.rows[0]['device']}, threads: {self._usual[0]}, commit {commits};"
            f" each cell is forward / forward + backward. [All results]({folder}/{self.name}.md),"
            f" [rows]({folder}/{self.name}.csv).",
            "",
            *table(("layer", "T, B, N", "ours, ms", "of limit", *names), lines),
        ]
        for name in ("speedup", "time"):
            if name in self.figures:
                text += ["", f"![{ABOUT[name]}]({folder}/{self.name}-{name}.png)"]
        return "\n".join(text)


def _range(values: list[float]) -> str:
    low, high = digits(min(values)), digits(max(values))
    return low if low == high else f"{low} to {high}"


def _seconds(row: Row | None) -> str:
    if row is None or not row["median_ms"]:
        return ""
    middle, low, high = (digits(1e-3 * milliseconds) for milliseconds in _quantiles(row))
    return middle if low == high else f"{middle} ({low}, {high})"


def fit(line: Sequence[tuple[float, float]], least: float) -> str | None:
    """Returns the exponent of a power law through the points above a size, and their range.

    Least squares of logarithms; the deviation is that of the worst point from the law.
    """
    logs = [(math.log(x), math.log(y)) for x, y in line if x > least]
    if len(logs) < 3:
        return None
    xs, ys = zip(*logs, strict=True)
    slope, intercept = statistics.linear_regression(xs, ys)
    worst = max(abs(y - slope * x - intercept) for x, y in logs)
    low, high = (f"{round(math.exp(x)):d}" for x in (xs[0], xs[-1]))
    return f"{slope:.2f} ({low} to {high}, deviation {math.expm1(worst):.0%})"


def insert(text: str, part: str) -> str:
    """Returns a text with what stands between the markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"the README must have the lines {BEGIN!r} and {END!r}, once each and in this order; it"
            f" has {text.count(BEGIN)} and {text.count(END)}"
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def texts(reports: Sequence[Report], results: Path, readme: Path) -> dict[Path, str]:
    """Returns what each text must be.

    The README keeps the device that it shows; by default it is the first that ran ours on its CPU.
    """
    found = {results / f"{report.name}.md": report.text() for report in reports}
    shown = [report for report in reports if f"/{report.name}.md)" in readme.read_text()]
    for report in [*shown, *reports]:
        if any(row["backend"] == "cpu" for row in report.rows):
            folder = results.resolve().relative_to(readme.resolve().parent).as_posix()
            found[readme] = insert(readme.read_text(), report.readme(folder))
            break
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--readme", type=Path, default=ROOT.parent / "README.md", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing, compare the texts")
    options = parser.parse_args(argv)
    paths = sorted(options.results.glob("*.csv"))
    if not paths:
        print(f"{options.results.name}/ has no rows yet: run benchmarks/run.py", file=sys.stderr)
        return 1
    try:
        reports = [Report(path) for path in paths]
        found = texts(reports, options.results, options.readme)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        stale = [p for p, text in found.items() if not p.exists() or p.read_text() != text]
        for path in stale:
            print(
                f"{path.name} must be what the rows give, but differs: run benchmarks/report.py",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path, text in found.items():
        path.write_text(text)
    for report in reports:
        for name, draw in report.figures.items():
            draw().savefig(options.results / f"{report.name}-{name}.png", dpi=DOTS_PER_INCH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
