"""The rows of ``results/*.csv``: columns, names, and which rows belong together.

Nothing here needs torch or matplotlib.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = (
    *("case", "backend", "mode", "T", "B", "N", "input_size", "dtype", "constants", "input"),
    *("median_ms", "q20_ms", "q80_ms", "repeats", "memory_bytes", "limit_ms", "of_limit"),
    *("threads", "load"),
    *("malloc", "commit", "uncommitted", "versions", "device", "date"),
)
#: Our backends: others are compared with the first of them that ran on the same setting.
OURS = ("cpu", "cuda", "triton", "module", "cuda_graph", "triton_graph")
#: What is neither ours nor another library.
YARDSTICKS = ("copy", "matmul", "gemm", "operator")
#: Cases in which not only the libraries differ.
OWN_TABLES = ("threads", "first_call")
#: What most settings have; a table says it where one differs.
PLAIN = {"dtype": "float32", "constants": "per neuron", "input": "busy"}
#: Bytes that "copy" reads at least: shorter copies show the time of a call.
COPIED_BYTES = 2**20
#: Rows and columns of the matrices of "matmul", in float32: enough to fill the device.
MATMUL_SIZE = {"cpu": 1024, "cuda": 4096}
Row = dict[str, str]


def slug(name: str) -> str:
    """Returns the name of a device as it stands in the name of a file."""
    name = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def sizes(row: Mapping[str, Any]) -> str:
    """Returns T, B, N as a table shows them, with the size of the input where there are weights."""
    arrow = f"{row['input_size']} → " if row["input_size"] else ""
    return f"{row['T']}, {row['B']}, {arrow}{row['N']}"


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Returns what a table says of a row besides its case and sizes."""
    return [row[name] for name, plain in PLAIN.items() if row[name] not in ("", None, plain)]


def last_runs(paths: Iterable[Path]) -> list[Row]:
    """Returns the rows of the last run of each case, malloc and number of threads.

    Devices whose names differ in what `slug` leaves out share a file: it is the last of them.
    """
    runs: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        with path.open(newline="") as file:
            # Older files lack columns.
            rows = [dict.fromkeys(FIELDS, "") | row for row in csv.DictReader(file)]
        device = max(rows, key=lambda row: row["date"])["device"] if rows else ""
        for row in rows:
            if row["device"] == device:
                key = (path.name, row["threads"], row["malloc"], row["case"])
                runs[key][row["date"]].append(row)
    return [row for dates in runs.values() for row in dates[max(dates)]]


def mode_name(mode: str) -> str:
    """Returns a mode as tables and figures write it."""
    return mode.replace("forward_backward", "forward + backward").replace("_", " ")


def digits(value: float | None, count: int = 3) -> str:
    """Returns a positive number with at least so many digits, and no exponent for what is large."""
    if value is None:
        return ""
    if value >= 10 ** (count - 1):
        return f"{value:.0f}"
    return f"{value:#.{count}g}".rstrip(".")


def number(row: Row, column: str) -> float | None:
    """Returns a quantity; `None` if it was not measured, or is no more than 0."""
    value = float(row[column] or 0)
    return value if value > 0 else None


def usual(rows: list[Row]) -> tuple[str, str]:
    """Returns the number of threads and the malloc of most rows."""
    return Counter((row["threads"], row["malloc"]) for row in rows).most_common(1)[0][0]


class Group(NamedTuple):
    """The rows of one setting and mode, by backend.

    What replays a CUDA graph is a group of its own. ``ours`` is what others are compared with;
    `None` if none of ours ran.
    """

    rows: dict[str, Row]
    ours: Row | None

    @property
    def first(self) -> Row:
        """A row that says which setting it is."""
        return self.ours or next(iter(self.rows.values()))

    @property
    def peers(self) -> dict[str, Row]:
        """Those of other libraries, and of the reference."""
        return {b: r for b, r in self.rows.items() if b not in (*OURS, *YARDSTICKS)}

    def ratio(self, row: Row, column: str = "median_ms") -> float | None:
        """Returns a quantity of ``row`` as a multiple of ours."""
        ours = self.ours and number(self.ours, column)
        value = number(row, column)
        return value / ours if ours and value else None


def group_key(row: Row) -> tuple[Any, ...]:
    """Returns what rows of a group have in common."""
    setting = ("case", "T", "B", "N", "input_size", *PLAIN, "threads", "malloc", "mode")
    return (*(row[name] for name in setting), row["backend"].endswith("_graph"))


def group(rows: Iterable[Row]) -> dict[tuple[Any, ...], Group]:
    """Returns the groups by their keys, in the order of the rows."""
    found: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[group_key(row)][row["backend"]] = row
    return {
        key: Group(members, next((members[name] for name in OURS if name in members), None))
        for key, members in found.items()
    }


def compared(rows: Iterable[Row]) -> list[Group]:
    """Returns the groups with times of ours and of others, but those of `OWN_TABLES`."""
    return [
        g
        for g in group(row for row in rows if row["case"] not in OWN_TABLES).values()
        if any(g.ratio(row) for row in g.peers.values())
    ]


class Sweep(NamedTuple):
    """A case in which one size grows at least eightfold in four steps, and the others stay.

    ``lines`` are the rows by backend and mode, in ascending order of the ``axis``, T, B or N.
    """

    case: str
    axis: str
    lines: dict[tuple[str, str], list[Row]]

    @property
    def first(self) -> Row:
        """A row that says what the other sizes are."""
        return next(iter(self.lines.values()))[0]

    @property
    def has_peers(self) -> bool:
        """Whether anything but ours is in it."""
        return any(backend not in OURS for backend, _ in self.lines)

    @property
    def fixed(self) -> str:
        """The sizes that stay."""
        return ", ".join(f"{name} = {self.first[name]}" for name in "TBN" if name != self.axis)


def sweeps(rows: Iterable[Row]) -> list[Sweep]:
    """Returns the cases in which one size grows."""
    cases: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["backend"] not in YARDSTICKS and row["case"] not in OWN_TABLES:
            cases[tuple(row[k] for k in ("case", *PLAIN, "threads", "malloc"))].append(row)
    found = []
    for (case, *_), members in cases.items():
        values = {name: {int(row[name]) for row in members} for name in "TBN"}
        growing = [name for name in "TBN" if len(values[name]) > 1]
        if len(growing) != 1:
            continue
        (axis,) = growing
        if len(values[axis]) < 4 or max(values[axis]) < 8 * min(values[axis]):
            continue
        lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(members, key=lambda row: int(row[axis])):
            lines[row["backend"], row["mode"]].append(row)
        found.append(Sweep(case, axis, dict(lines)))
    return found
