"""The figures of the example."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

UNIT = {"tau_mem_inv": " 1/s", "v_th": ""}
BLUE, ORANGE, GREY = "#2a6fbb", "#e07b28", "#8a8a8a"


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Writes a figure as PNG and forgets it."""
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_constants(axes: Axes, name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """Draws the histograms of a constant before and after training."""
    low = min(before.min().item(), after.min().item())
    high = max(before.max().item(), after.max().item())
    margin = 0.02 * (high - low) + 1e-3 * high
    drawn = before.min() < before.max()  # at random, in contrast to one value for all
    bins = torch.linspace(low - margin, high + margin, 26 if drawn else 41).tolist()
    for values, when, colour in ((before, "before", GREY), (after, "after", ORANGE)):
        label = f"{when} (mean {values.mean():.3g})"
        fill = (colour, 0.35 if drawn else 0.7)
        axes.hist(values.tolist(), bins, histtype="stepfilled", fc=fill, ec=colour, label=label)
    unit = f" ({UNIT[name].strip()})" if UNIT[name] else " (units of the potential)"
    axes.set(xlabel=name + unit, ylabel="number of neurons")
    if drawn:
        axes.margins(y=0.3)  # room for the legend
        axes.yaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()


def plot_spikes(axes: Axes, spikes: torch.Tensor, dt: float) -> None:
    """Draws a mark for each spike; `spikes` has the shape `[T, N]`."""
    step, neuron = spikes.numpy().nonzero()
    axes.scatter(1000 * dt * (step + 1), neuron, s=6, color="black", marker="|")
    axes.set(xlabel="time (ms)", ylabel="neuron", xlim=(0, 1000 * dt * (len(spikes) + 1)))


def plot_all_constants(
    before: dict[str, list[torch.Tensor]], after: dict[str, list[torch.Tensor]], path: Path
) -> None:
    """Draws the histograms of the constants of a network, one row per layer."""
    layers = len(next(iter(before.values())))
    figure, grid = plt.subplots(layers, len(before), figsize=(11, 3.75 * layers), squeeze=False)
    for column, name in enumerate(before):
        for layer in range(layers):
            plot_constants(grid[layer, column], name, before[name][layer], after[name][layer])
            of = f"LIF layer {layer + 1}" if layers > 1 else "the LIF layer"
            grid[layer, column].set_title(f"{name} of {of}")
    save_figure(figure, path)


def plot_odd_firing(
    losses: dict[str, list[float]],
    before: torch.Tensor,
    after: torch.Tensor,
    spikes: torch.Tensor,
    dt: float,
    path: Path,
) -> None:
    """Draws what came out of part (a).

    Args:
        losses: Loss of each training step of the networks `odd_fixed` and `odd_learnable`.
        before: `tau_mem_inv` of all neurons before training.
        after: The same after training.
        spikes: Output of the learnable network, shape `[T, N]`.
        dt: Length of a time step in seconds.
        path: The file.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5))
    left.semilogy(losses["odd_fixed"], color=BLUE, label="fixed tau_mem_inv")
    left.semilogy(losses["odd_learnable"], color=ORANGE, label="learnable tau_mem_inv")
    left.set(
        title="Odd firing: every fifth neuron learns to spike",
        xlabel="training step",
        ylabel="mean squared error of the spikes",
    )
    left.set_yticks([0.2, 0.1, 0.05, 0.02, 0.01])
    left.set_yticks([], minor=True)
    left.yaxis.set_major_formatter("{x:g}")
    left.legend()
    plot_constants(middle, "tau_mem_inv", before, after)
    middle.set_title("Learnable tau_mem_inv of both layers")
    plot_spikes(right, spikes, dt)
    right.set_title("Output of the learnable network")
    save_figure(figure, path)


def plot_learning_curves(history: list[dict[str, float]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs."""
    epochs = range(1, len(history) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    left.semilogy(epochs, [e["loss"] for e in history], "o-", color=BLUE, label="training")
    left.set(title=f"{title}: loss", xlabel="epoch", ylabel="cross entropy")
    for split, colour in (("train", BLUE), ("test", ORANGE)):
        accuracy = [100 * e[f"{split}_accuracy"] for e in history]
        right.plot(epochs, accuracy, "o-", color=colour, label=f"{split} ({accuracy[-1]:.2f} %)")
    right.set(title=f"{title}: accuracy", xlabel="epoch", ylabel="correct (%)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    right.legend(loc="lower right")
    save_figure(figure, path)


def plot_raster(
    image: torch.Tensor,
    label: int,
    answer: int,
    spikes: list[torch.Tensor],
    voltages: torch.Tensor,
    dt: float,
    path: Path,
) -> None:
    """Draws what a network does with an image.

    Args:
        image: Shape `[pixels]`.
        label: The right answer.
        answer: That of the network.
        spikes: Those of both LIF layers, shape `[T, N]`.
        voltages: Those of the readout, shape `[T, 10]`.
        dt: Length of a time step in seconds.
        path: The file.
    """
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.5), width_ratios=(2, 3, 3, 3))
    side = round(len(image) ** 0.5)
    axes[0].imshow(image.reshape(side, side).numpy(), cmap="gray_r")
    axes[0].set(title=f"input: a {label}", xticks=[], yticks=[])
    for number, of_layer in enumerate(spikes, start=1):
        plot_spikes(axes[number], of_layer, dt)
        axes[number].set_title(f"LIF layer {number}: a spike in {of_layer.mean():.0%} of the steps")
    milliseconds = [1000 * dt * (step + 1) for step in range(len(voltages))]
    others = [digit for digit in range(10) if digit != label]
    axes[3].plot(milliseconds, voltages[:, others].numpy(), color=GREY)
    axes[3].lines[0].set_label("other digits")
    axes[3].plot(
        milliseconds, voltages[:, label].numpy(), color=ORANGE, linewidth=3, label=f"digit {label}"
    )
    axes[3].legend(loc="upper left")
    axes[3].set(title=f"readout: answers {answer}", xlabel="time (ms)", ylabel="voltage")
    save_figure(figure, path)
