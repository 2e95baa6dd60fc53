"""The figures of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _comparison import CONDITIONS, TIME_CONSTANTS
from _plots import BLUE, GREY, ORANGE, plt, save_figure
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

GREEN = "#3c9a5f"
COLOURS = dict(zip(CONDITIONS, ("#555555", BLUE, ORANGE, GREEN), strict=True))
Runs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # task -> condition -> seeds


def plot_learning(runs: Runs, names: Mapping[str, str], path: Path) -> None:
    """Draws accuracies on the test set: above after each epoch, below after the last.

    Args:
        runs: The final runs, in the order of their seeds.
        names: What to call the tasks.
        path: The file.
    """
    figure, grid = plt.subplots(
        2, len(runs), figsize=(3.7 * len(runs) + 0.8, 7.2), squeeze=False, height_ratios=(3, 2)
    )
    for column, (task, conditions) in enumerate(runs.items()):
        curves, last = grid[:, column]
        for condition, of_seeds in conditions.items():
            _draw_curve(curves, of_seeds, COLOURS[condition], CONDITIONS[condition])
        curves.set(title=f"{names[task]}: learning", xlabel="epoch", ylabel="correct, test (%)")
        curves.xaxis.get_major_locator().set_params(integer=True)
        curves.set_ylim(_lower_limit(conditions), min(100.0, curves.get_ylim()[1]))
        _draw_last(last, conditions)
        last.set(title="after the last epoch, seed by seed", ylabel="correct, test (%)")
        curves.set_xlim(left=1)
    _add_legend(figure, grid)
    save_figure(figure, path)


def _add_legend(figure: plt.Figure, grid: np.ndarray) -> None:
    """Puts the legend of the first axes below all."""
    handles, labels = grid[0, 0].get_legend_handles_labels()
    columns = min(len(labels), 2 * grid.shape[1])
    lines = -(-len(labels) // columns)
    for axes in grid[-1]:  # leaves room
        axes.set_xlabel(axes.get_xlabel() + (lines + 1) * "\n")
    figure.legend(handles, labels, loc="lower center", ncols=columns)


def _draw_curve(axes: Axes, of_seeds: Sequence[Mapping[str, Any]], colour: str, label: str) -> None:
    accuracy = 100 * np.array([run["accuracy"] for run in of_seeds])
    mean, epochs = accuracy.mean(0), np.arange(1, accuracy.shape[1] + 1)
    spread = accuracy.std(0, ddof=1) if len(accuracy) > 1 else 0 * mean
    axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.plot(epochs, mean, color=colour, label=label)


def _lower_limit(conditions: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Returns an accuracy that leaves out the steep beginning, where nothing can be told apart."""
    last = min(run["accuracy"][-1] for of_seeds in conditions.values() for run in of_seeds)
    epochs = len(next(iter(conditions.values()))[0]["accuracy"])
    quarter = min(
        np.mean([run["accuracy"][epochs // 4] for run in of_seeds])
        for of_seeds in conditions.values()
    )
    return 100 * min(last, float(quarter)) - 2


def _draw_last(axes: Axes, conditions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    accuracy = 100 * np.array(
        [[run["accuracy"][-1] for run in of_seeds] for of_seeds in conditions.values()]
    )
    places = np.arange(len(accuracy))
    axes.plot(places, accuracy, color=GREY, alpha=0.35, linewidth=0.8)
    for place, condition in enumerate(conditions):
        colour = COLOURS[condition]
        axes.scatter(np.full(accuracy.shape[1], place), accuracy[place], s=14, color=colour)
        mean = accuracy[place].mean()
        axes.plot([place - 0.28, place + 0.28], [mean, mean], color=colour, linewidth=3)
    axes.set_xticks(places, [CONDITIONS[condition].split()[0] for condition in conditions])
    axes.set_xlim(-0.5, len(accuracy) - 0.5)


def plot_time_constants(
    runs: Runs, names: Mapping[str, str], first: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Draws the distributions of the time constants over the neurons of all seeds.

    Args:
        runs: As in `plot_learning`.
        names: Likewise.
        first: For each task the values before training that all neurons share, in seconds.
        path: The file.
    """
    figure, grid = plt.subplots(
        len(TIME_CONSTANTS), len(runs), figsize=(3.7 * len(runs) + 0.8, 6.6), squeeze=False
    )
    for column, (task, conditions) in enumerate(runs.items()):
        for row, name in enumerate(TIME_CONSTANTS):
            axes = grid[row, column]
            values = {
                condition: 1000 * np.concatenate([run[name] for run in of_seeds])
                for condition, of_seeds in conditions.items()
            }
            _draw_distributions(axes, values, 1000 * first[task][name])
            axes.set(title=f"{names[task]}: {name}", xlabel=f"{name} (ms)")
            axes.set_ylabel("neurons of all seeds" if column == 0 else "")
    _add_legend(figure, grid)
    save_figure(figure, path)


def _draw_distributions(axes: Axes, values: Mapping[str, np.ndarray], first: float) -> None:
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, (0.0, 0.999))
    bins = np.geomspace(0.95 * low, 1.05 * high, 36)
    for condition, style in (
        ("drawn", {"histtype": "step", "linewidth": 1.5}),
        ("learned_each", {"histtype": "stepfilled", "alpha": 0.45}),
    ):
        if condition in values:
            label = CONDITIONS[condition] + ("; (iv) before" if condition == "drawn" else "")
            clipped = values[condition].clip(bins[0], bins[-1])
            axes.hist(clipped, bins, color=COLOURS[condition], label=label, **style)
    top = 1.15 * axes.get_ylim()[1]
    axes.axvline(first, color=COLOURS["fixed"], linestyle="--", label="(i); (iii) before")
    if "learned" in values:
        axes.vlines(
            values["learned"], 0.92 * top, top, COLOURS["learned"], label="(iii) after, each seed"
        )
    axes.set_xscale("log")
    axes.set_ylim(0, top)
    axes.xaxis.set_major_formatter("{x:g}")
    ticks = [f * 10.0**e for e in range(-1, 5) for f in (1, 2, 5)]
    axes.set_xticks([tick for tick in ticks if bins[0] <= tick <= bins[-1]])
    axes.xaxis.set_minor_formatter(NullFormatter())
