"""Figures of the rows of a device, one PNG each; `report.py` says which there are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from rows import (
    OURS,
    Group,
    Row,
    Sweep,
    compared,
    digits,
    mode_name,
    number,
    remarks,
    sizes,
    sweeps,
    usual,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of all figures, in the order of legends and of columns: ours strong, others muted.
COLOURS = {
    "fused_lif": "#d62246",
    "cpu": "#d62246",
    "cuda": "#d62246",
    "triton": "#e8871e",
    "module": "#8c1c33",
    "cuda_graph": "#8c1c33",
    "triton_graph": "#a85f0c",
    "reference": "#9a9a9a",
    "reference_compiled": "#c4c4c4",
    "norse": "#5b84b1",
    "norse_module": "#2f4b6e",
    "norse_compiled": "#9dbbd8",
    "jax": "#6a9f6d",
    "snntorch": "#c2a14d",
    "sinabs": "#9b7fb5",
    "spikingjelly": "#57a5a5",
    "spikingjelly_graph": "#2f6f6f",
    "mm_graph": "#b0876a",
    "mm_fused_graph": "#7d5a42",
}
OTHERS = ("#7f6d5f", "#a3b18a", "#bc8f8f", "#708090")  # of libraries that are not named above
MARKERS = "sD^vP*X<>ph"  # of others; ours are dots
STYLES = {"forward_backward": "-", "forward": "--", "backward": "-.", "saved": ":", "peak": "-."}
MODES = ("forward_backward", "forward", "backward", "inference", "saved", "peak")
UNITS = {
    "median_ms": ("milliseconds", 1.0),
    "memory_bytes": ("MB", 1e-6),
    "of_limit": ("share of the limit", 1.0),
}
#: Layers of a whole sequence, as the main README calls them; other cases have their own figure.
LAYERS = {
    "lif_forward": "LIF",
    "lif_forward_backward": "LIF",
    "lif_two_states": "LIF, two learnable constants",
    "lif_one_state": "LIF, one state",
    "recurrent": "LIFRecurrent",
}
WIDTH = 10.0  # inches


def order(names: Iterable[str]) -> list[str]:
    """Returns names of backends in the order of all figures and tables."""
    known = list(COLOURS)
    return sorted(set(names), key=lambda n: (known.index(n) if n in known else len(known), n))


def _colour(name: str) -> str:
    return COLOURS.get(name) or OTHERS[sum(name.encode()) % len(OTHERS)]


def _marker(name: str) -> str:
    others = [n for n in COLOURS if n not in OURS]
    index = others.index(name) if name in others else sum(name.encode())
    return "o" if name in OURS else MARKERS[index % len(MARKERS)]


def _new(title: str, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _legend(figure: Figure) -> None:
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [n for n in order(found) if not n.startswith("slope")]
    names += [n for n in found if n.startswith("slope")]
    figure.legend(
        [found[name] for name in names],
        names,
        loc="outside lower center",
        ncols=math.ceil(len(names) / math.ceil(len(names) / 6)),
        handlelength=3,
        fontsize=9,
        frameon=False,
    )


def _plain_ticks(axes: Axes, axis: str) -> None:
    """Writes 0.1, 1, 10 instead of powers, and numbers in between where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = getattr(axes, f"get_{axis}lim")()
    decades = math.log10(high / low)
    part = getattr(axes, f"{axis}axis")
    subs = (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 2.2 else (1.0,)
    part.set_major_locator(LogLocator(subs=subs, numticks=12))
    part.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    part.set_minor_formatter(NullFormatter())


class Line(NamedTuple):
    """A line of a chart of rows: what stands beside it, and its values by backend."""

    case: str
    label: str
    values: dict[str, float]


def _charts(
    title: str, lines: dict[str, list[Line]], fill: Callable[[Axes, list[Line]], None], xlabel: str
) -> Figure:
    """Draws a chart for each mode, two beside each other, as high as they have lines."""
    modes = [mode for mode in MODES if mode in lines]
    heights = [
        max(len(lines[mode]) for mode in modes[k : k + 2]) + 3 for k in range(0, len(modes), 2)
    ]
    figure = _new(title, 1.0 + 0.19 * sum(heights))
    columns = min(2, len(modes))
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for k, mode in enumerate(modes):
        axes = figure.add_subplot(grid[divmod(k, columns)], sharex=(figure.axes or [None])[0])
        shown = lines[mode]
        fill(axes, shown)
        cases = [None, *(line.case for line in shown)]
        names = [
            line.label if line.case == before else f"{line.case}  {line.label}"
            for line, before in zip(shown, cases, strict=False)
        ]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set_ylim(max(heights[k // 2] - 3, len(shown)) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(mode_name(mode), fontsize=10)
        axes.set_xlabel(xlabel, fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _labels(rows: list[Row]) -> Callable[[Row], str]:
    """Returns what names a row of a case: sizes, and remarks that not all of its rows have."""
    common: dict[str, set[str]] = {}
    for row in rows:
        common.setdefault(row["case"], set(remarks(row))).intersection_update(remarks(row))
    return lambda row: " ".join(
        [sizes(row), *(r for r in remarks(row) if r not in common[row["case"]])]
    )


def _speedups(title: str, groups: list[Group]) -> Figure:
    found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    label = _labels([g.first for g in groups])
    for g in groups:
        ratios = {name: g.ratio(row) for name, row in g.peers.items()}
        key = (g.first["mode"], g.first["case"], label(g.first))
        found[key] |= {name: ratio for name, ratio in ratios.items() if ratio}
    lines: dict[str, list[Line]] = defaultdict(list)
    for (mode, case, name), values in found.items():
        lines[mode].append(Line(case, name, values))

    ratios = [ratio for values in found.values() for ratio in values.values()]
    span = min(0.8, 0.8 * min(ratios)), max(2.0, 1.25 * max(ratios))

    def dots(axes: Axes, shown: list[Line]) -> None:
        for name in order(name for line in shown for name in line.values):
            points = [(line.values[name], k) for k, line in enumerate(shown) if name in line.values]
            axes.scatter(
                *zip(*points, strict=True),
                s=28,
                color=_colour(name),
                marker=_marker(name),
                label=name,
                zorder=3,
            )
        axes.axvline(1, color=COLOURS["cpu"], linewidth=2, label="ours")
        axes.set_xscale("log")
        axes.set_xlim(*span)
        _plain_ticks(axes, "x")
        for k in range(1, len(shown)):
            if shown[k].case != shown[k - 1].case:
                axes.axhline(k - 0.5, color="#cccccc", linewidth=0.8)

    figure = _charts(title, lines, dots, "time, as a multiple of ours")
    _legend(figure)
    return figure


def _limits(title: str, rows: list[Row]) -> Figure:
    lines: dict[str, list[Line]] = defaultdict(list)
    label, right = _labels(rows), max(1.0, *(float(row["of_limit"]) for row in rows))
    for row in sorted(rows, key=lambda row: -float(row["of_limit"])):
        text = f"{row['case']}  {label(row)}, {row['backend']}"
        lines[row["mode"]].append(Line("", text, {row["backend"]: float(row["of_limit"])}))

    def bars(axes: Axes, shown: list[Line]) -> None:
        values = [next(iter(line.values.values())) for line in shown]
        colours = [_colour(next(iter(line.values))) for line in shown]
        axes.barh(range(len(shown)), values, 0.7, color=colours)
        axes.axvline(1, color="#444444", linewidth=1)
        axes.set_xlim(0, 1.02 * right)
        for k, value in enumerate(values):
            inside = value > 0.3 * right
            axes.text(
                value + (-0.01 if inside else 0.01) * right,
                k,
                digits(value, 2),
                va="center",
                ha="right" if inside else "left",
                color="white" if inside else "black",
                fontsize=7,
            )

    return _charts(title, lines, bars, "share of the limit")


Lines = dict[tuple[str, str], list[tuple[float, float]]]


def points(sweep: Sweep, column: str) -> Lines:
    """Returns sizes and values of a column, by backend and mode, where they were measured."""
    found: Lines = {}
    for name, rows in sweep.lines.items():
        pairs = [(int(row[sweep.axis]), number(row, column)) for row in rows]
        if measured := [(float(size), value) for size, value in pairs if value]:
            found[name] = measured
    return found


def _curves(axes: Axes, sweep: Sweep, column: str, lines: Lines, several_modes: bool) -> None:
    unit, factor = UNITS[column]
    for backend, mode in sorted(
        lines, key=lambda name: order([n for n, _ in lines]).index(name[0])
    ):
        xs, ys = zip(*lines[backend, mode], strict=True)
        axes.plot(
            xs,
            [factor * y for y in ys],
            STYLES.get(mode, "-") if several_modes else "-",
            color=_colour(backend),
            marker=_marker(backend),
            markersize=4.5,
            linewidth=2.2 if backend in OURS else 1.4,
            label=f"{backend}, {mode_name(mode)}" if several_modes else backend,
            zorder=4 if backend in OURS else 3,
        )
    axes.set_xscale("log", base=2)
    if column != "of_limit":
        ours = [name for name in lines if name[0] in OURS] or list(lines)
        xs, ys = zip(*lines[ours[0]], strict=True)
        guide = [(x, 0.5 * factor * ys[-1] * x / xs[-1]) for x in xs]
        guide = [(x, y) for x, y in guide if y >= 0.5 * factor * min(ys)]
        axes.plot(*zip(*guide, strict=True), ":", color="#555555", linewidth=1, label="slope 1")
        axes.set_yscale("log")
        _plain_ticks(axes, "y")
    else:
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    ticks = sorted({x for line in lines.values() for x, _ in line})
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(ticks) > 5 else {}
    axes.set_xticks(ticks, [f"{x:.0f}" for x in ticks], **turned)
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.set_xlabel(f"{sweep.axis}  ({sweep.fixed})", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.grid(alpha=0.3)


Panel = tuple[str, Sweep, str, Lines]  # title, sweep, column, lines


def _panels(title: str, panels: list[Panel], columns: int, several_modes: bool) -> Figure:
    rows = -(-len(panels) // columns)
    figure = _new(title, 0.8 + 3.0 * rows)
    grid = figure.add_gridspec(rows, columns)
    for k, (name, sweep, column, lines) in enumerate(panels):
        if not lines:
            continue
        axes = figure.add_subplot(grid[divmod(k, columns)])
        axes.set_title(name, fontsize=10)
        _curves(axes, sweep, column, lines, several_modes)
    _legend(figure)
    return figure


def _by_mode(found: list[Sweep], column: str) -> list[Panel]:
    """Returns a panel for each sweep and mode in which something was measured."""
    panels = []
    for sweep in found:
        lines = points(sweep, column)
        for mode in [m for m in MODES if any(m == name[1] for name in lines)]:
            of_mode = {name: line for name, line in lines.items() if name[1] == mode}
            title = f"{sweep.case}: {mode_name(mode)}"
            panels.append((title, sweep, column, of_mode))
    return panels


def figures(rows: list[Row]) -> dict[str, Callable[[], Figure]]:
    """Returns what draws each figure for which there are rows, by the end of its file's name.

    Only rows with the usual number of threads and malloc are drawn.
    """
    threads, malloc = usual(rows)
    where = f"{rows[0]['device']}, threads: {threads}"
    rows = [
        r for r in rows if (r["threads"], r["malloc"]) == (threads, malloc) and r["mode"] in MODES
    ]
    found = sweeps(rows)
    grown = {sweep.case for sweep in found}
    groups = [g for g in compared(rows) if g.first["case"] not in grown]
    layers = [g for g in groups if g.first["case"] in LAYERS or g.first["case"].startswith("gpu_")]
    others = [g for g in groups if g not in layers]
    ours = [
        r for r in rows if r["backend"] in OURS and number(r, "of_limit") and r["case"] not in grown
    ]
    beside = [sweep for sweep in found if sweep.has_peers]
    time, memory = (_by_mode(beside, column) for column in ("median_ms", "memory_bytes"))
    alone = [sweep for sweep in found if not sweep.has_peers]
    growth = []
    for column in ("median_ms", "memory_bytes"):
        if any(points(sweep, column) for sweep in alone):
            growth += [(sweep.case, sweep, column, points(sweep, column)) for sweep in alone]
    shares = []
    for sweep in found:
        lines = points(sweep, "of_limit")
        if own := {name: line for name, line in lines.items() if name[0] in OURS}:
            shares.append((sweep.case, sweep, "of_limit", own))
    drawn: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "speedup": (layers, lambda: _speedups(f"Speed-up of layers: {where}", layers)),
        "cases": (others, lambda: _speedups(f"Speed-up of other cases: {where}", others)),
        "time": (time, lambda: _panels(f"Time: {where}", time, min(2, len(time)), False)),
        "memory": (memory, lambda: _panels(f"Memory: {where}", memory, min(2, len(memory)), False)),
        "growth": (growth, lambda: _panels(f"Growth: {where}", growth, len(alone), True)),
        "limit": (ours, lambda: _limits(f"Share of the limit: {where}", ours)),
        "limit-growth": (
            shares,
            lambda: _panels(f"Share of the limit: {where}", shares, min(3, len(shares)), True),
        ),
    }
    return {name: draw for name, (data, draw) in drawn.items() if data}
