"""The Norse parameter-learning workshop: neuron constants are learned together with the weights.

(a) Odd firing: in a network 100 -> 200 -> 100 every fifth output neuron learns to spike, and the
    others to stay silent; once with fixed and once with learnable `tau_mem_inv`, one per neuron.
(b) Digits: a feed-forward network of LIF layers with a leaky-integrator readout learns to classify
    digits, with learnable `tau_mem_inv` and `v_th`. With `--data DIR` the digits are those of
    MNIST, otherwise the small set that scikit-learn brings along.

Run it with `python examples/parameter_learning.py`; README.md beside it lists what comes out.
Ctrl-C stops after the current batch and keeps a checkpoint; `--resume` continues it to the same
result, bit for bit on the same machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from _data import MNIST_FILES, Digits, find_mnist, load_builtin_digits, load_mnist
from matplotlib.axes import Axes
from torch import nn
from tqdm import tqdm

import fused_lif as snn
from fused_lif.backends import BACKENDS

DT = 0.001  # length of a time step in seconds
START = {"tau_mem_inv": 100.0, "v_th": 1.0}  # Norse's defaults
RANGE = {"tau_mem_inv": (10.0, 500.0), "v_th": (0.1, 5.0)}  # tau_mem between 2 and 100 ms
UNIT = {"tau_mem_inv": " 1/s", "v_th": ""}
ODD_RUNS = {"odd_fixed": [], "odd_learnable": ["tau_mem_inv"]}  # run -> what is learnable
SETTINGS = ("epochs", "batch_size", "lr", "neuron_lr", "seed", "time_steps", "device", "quick")
BLUE, ORANGE, GREY = "#2a6fbb", "#e07b28", "#8a8a8a"


def lif_layer(size: int, learnable: Iterable[str], alpha: float = 100.0) -> snn.LIF:
    """Makes a layer of LIF neurons; each constant in `learnable` has one trained value per neuron.

    Args:
        size: Number of neurons.
        learnable: Names of fields of `LIFParameters`.
        alpha: Sharpness of the surrogate gradient: larger means that only neurons very close to
            their threshold learn.
    """
    constants = {name: nn.Parameter(torch.full((size,), START[name])) for name in learnable}
    return snn.LIF(p=snn.LIFParameters(alpha=torch.tensor(alpha), **constants), dt=DT)


def neuron_constants(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Returns the learnable constants called `name`, one entry per layer."""
    return {path: p for path, p in model.named_parameters() if path.split(".")[-1] == name}


def make_optimizer(model: nn.Module, lr: float, neuron_lr: float) -> torch.optim.Adam:
    """Makes an Adam optimizer in which weights and neuron constants have their own learning rates.

    A step of Adam is about as long as the learning rate, whatever the gradient. A constant of size
    100 needs other steps than one of size 1, hence `neuron_lr` is relative to the initial value.
    """
    groups = []
    for name, start in START.items():
        constants = list(neuron_constants(model, name).values())
        if constants:
            groups.append({"params": constants, "lr": neuron_lr * start})
    in_groups = {id(p) for group in groups for p in group["params"]}
    weights = [p for p in model.parameters() if id(p) not in in_groups]
    return torch.optim.Adam([{"params": weights}, *groups], lr=lr)


@torch.no_grad()
def clamp_constants(model: nn.Module) -> None:
    """Moves neuron constants that the last step took too far back into their range."""
    for name, (low, high) in RANGE.items():
        for constant in neuron_constants(model, name).values():
            constant.clamp_(low, high)


def copy_constants(model: nn.Module, name: str) -> list[torch.Tensor]:
    """Returns the present values of a constant, one tensor per layer, on the CPU."""
    return [p.detach().cpu().clone() for p in neuron_constants(model, name).values()]


def describe_move(name: str, before: list[torch.Tensor], after: list[torch.Tensor]) -> str:
    """Says in one line how far a constant moved."""
    old, new = torch.cat(before), torch.cat(after)
    unit = UNIT[name]
    return (
        f"{name} moved by {(new - old).abs().mean():.3g}{unit} on average "
        f"({(new - old).abs().max():.3g}{unit} at most), "
        f"from {old.mean():.3g}{unit} to {new.mean():.3g} ± {new.std():.2g}{unit}"
    )


class Interrupted(Exception):
    """Training stopped on request, after its checkpoint was written."""


class StopRequest:
    """Remembers a Ctrl-C until the batch is finished: a checkpoint never holds half a step.

    The second Ctrl-C raises KeyboardInterrupt as usual.

    Args:
        after: Stop after this many batches as if Ctrl-C had been pressed; for tests.
    """

    def __init__(self, after: int | None = None) -> None:
        self.batches_left = after
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._previous = signal.signal(signal.SIGINT, self._on_ctrl_c)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_ctrl_c(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def count_batch(self) -> None:
        """Counts a batch against `after`."""
        if self.batches_left is not None:
            self.batches_left -= 1
            self.requested = self.requested or self.batches_left <= 0


class Checkpoint:
    """One file with all that the training runs need to continue; complete even after a crash.

    Args:
        path: The file.
        settings: What the result depends on; a checkpoint made with other settings is refused.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.runs: dict[str, dict[str, Any]] = {}

    def load(self) -> None:
        """Reads the file.

        Raises:
            ValueError: If there is no such file, or it was made with other settings.
        """
        if not self.path.is_file():
            raise ValueError(f"there is no checkpoint {self.path} to resume")
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            there, here = content["settings"], self.settings
        except Exception as error:
            raise ValueError(f"{self.path} is not a checkpoint of this example") from error
        different = [
            f"{name} {there.get(name)!r} (now {here.get(name)!r})"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if different:
            raise ValueError(
                f"cannot resume {self.path}, which was made with {', '.join(different)}: "
                "repeat its settings, or leave out --resume to start anew"
            )
        self.runs = content["runs"]

    def save(self, run: str, progress: dict[str, Any], **parts: Any) -> None:
        """Writes the state of `parts` (model, optimizer, ...) beside the file, then replaces it."""
        self.runs[run] = {
            "progress": progress,
            "random": torch.get_rng_state(),
            "random_cuda": (torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []),
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }
        unfinished = self.path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            torch.save({"settings": self.settings, "runs": self.runs}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.path)

    def restore(self, run: str, progress: dict[str, Any], **parts: Any) -> dict[str, Any]:
        """Puts `parts` back to where the run stopped and returns its progress.

        A run that had not begun stays as it is, and its `progress` is returned.
        """
        if run not in self.runs:
            return progress
        saved = self.runs[run]
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"]:
            torch.cuda.set_rng_state_all(saved["random_cuda"])
        return saved["progress"]


def odd_firing_data(time_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a constant input and the wanted spikes: every fifth neuron in every step.

    Both have the shape `[T, 1, 100]`.
    """
    target = torch.zeros(time_steps, 1, 100)
    target[..., 4::5] = 1.0
    return torch.ones(time_steps, 1, 100), target


def train_odd_firing(
    run: str, args: argparse.Namespace, checkpoint: Checkpoint, stop: StopRequest
) -> tuple[list[float], nn.Module]:
    """Trains one network of part (a) and returns the loss of each step and the network."""
    learnable = ODD_RUNS[run]
    torch.manual_seed(args.seed)  # both networks begin with the same weights
    model = snn.SequentialState(
        nn.Linear(100, 200),
        lif_layer(200, learnable),
        nn.Linear(200, 100),
        lif_layer(100, learnable),
    ).to(args.device)
    optimizer = make_optimizer(model, args.lr, args.neuron_lr)
    # A learnable constant that the optimizer does not know would stay as it is, without a word.
    assert len(neuron_constants(model, "tau_mem_inv")) == 2 * len(learnable)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4 + 2 * len(learnable)

    inputs, target = (tensor.to(args.device) for tensor in odd_firing_data(args.time_steps))
    progress = checkpoint.restore(run, {"losses": []}, model=model, optimizer=optimizer)
    losses = progress["losses"]
    bar = tqdm(range(len(losses), args.odd_steps), run, args.odd_steps, initial=len(losses))
    for _ in bar:
        spikes, _ = model(inputs)
        loss = nn.functional.mse_loss(spikes, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clamp_constants(model)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
        stop.count_batch()
        if stop.requested:
            break
    bar.close()
    checkpoint.save(run, progress, model=model, optimizer=optimizer)
    if stop.requested:
        raise Interrupted
    return losses, model


def describe_losses(losses: list[float], limit: float = 0.02) -> str:
    """Says where the loss ended, and when it was below a limit for the first time."""
    step = next((step for step, loss in enumerate(losses) if loss < limit), None)
    return f"loss {losses[-1]:.4f}, " + (
        f"not yet below {limit}" if step is None else f"below {limit} after {step} steps"
    )


def odd_firing(args: argparse.Namespace, checkpoint: Checkpoint, stop: StopRequest) -> list[str]:
    """Runs part (a), plots it and returns the lines for the summary."""
    losses: dict[str, list[float]] = {}
    for run in ODD_RUNS:
        losses[run], model = train_odd_firing(run, args, checkpoint, stop)
    after = copy_constants(model, "tau_mem_inv")
    before = [torch.full_like(values, START["tau_mem_inv"]) for values in after]

    with torch.no_grad():
        spikes, _ = model(odd_firing_data(args.time_steps)[0].to(args.device))

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
    plot_constants(middle, "tau_mem_inv", torch.cat(before), torch.cat(after))
    middle.set_title("Learnable tau_mem_inv of both layers")
    plot_spikes(right, spikes[:, 0].cpu())
    right.set_title("Output of the learnable network")
    save_figure(figure, args.out / "odd_firing.png")
    return [
        f"Odd firing after {args.odd_steps} steps:",
        f"  fixed tau_mem_inv: {describe_losses(losses['odd_fixed'])}",
        f"  learnable tau_mem_inv: {describe_losses(losses['odd_learnable'])}",
        f"  {describe_move('tau_mem_inv', before, after)}",
    ]


class DigitNetwork(nn.Module):
    """Pixels -> 256 LIF -> 128 LIF -> 10 leaky integrators; constants of LIF neurons are learnable.

    The pixels are currents that do not change over time.

    Args:
        pixels: Number of pixels of an image.
        time_steps: How long an image is shown, in steps of `DT`.

    Shape:
        - Input: images `[B, pixels]`.
        - Output: voltages of the readout `[T, B, 10]`, spikes `[T, B, N]` of both LIF layers.
    """

    def __init__(self, pixels: int, time_steps: int) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.linear1 = nn.Linear(pixels, 256)
        self.lif1 = lif_layer(256, ["tau_mem_inv", "v_th"], alpha=10.0)
        self.linear2 = nn.Linear(256, 128)
        self.lif2 = lif_layer(128, ["tau_mem_inv", "v_th"], alpha=10.0)
        self.linear3 = nn.Linear(128, 10)
        self.readout = snn.LI(dt=DT)
        with torch.no_grad():  # with PyTorch's own size of weights the second layer would not spike
            self.linear1.weight.mul_(2.0)
            self.linear2.weight.mul_(2.0)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shows images to the network."""
        current = self.linear1(images).expand(self.time_steps, -1, -1)
        spikes1, _ = self.lif1(current)
        spikes2, _ = self.lif2(self.linear2(spikes1))
        voltages, _ = self.readout(self.linear3(spikes2))
        return voltages, spikes1, spikes2


def class_scores(voltages: torch.Tensor) -> torch.Tensor:
    """Returns the mean voltage over time of each readout neuron, shape `[B, 10]`."""
    return voltages.mean(dim=0)


def shuffled_batches(images: int, batch_size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Returns the indices of the images of each batch; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(images, generator=generator).split(batch_size)


@torch.no_grad()
def measure_accuracy(model: DigitNetwork, data: Digits, device: str) -> float:
    """Returns the fraction of test images that are classified correctly."""
    correct = 0
    for images, labels in zip(
        data.test_images.split(500), data.test_labels.split(500), strict=True
    ):
        scores = class_scores(model(images.to(device))[0])
        correct += int((scores.argmax(1) == labels.to(device)).sum())
    return correct / len(data.test_labels)


def train_digits(
    model: DigitNetwork,
    data: Digits,
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    stop: StopRequest,
) -> list[dict[str, float]]:
    """Trains the network of part (b) and returns one entry per epoch."""
    batches_per_epoch = -(-len(data.train_images) // args.batch_size)
    optimizer = make_optimizer(model, args.lr, args.neuron_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, args.epochs * batches_per_epoch
    )
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    epoch_start = {"batch": 0, "loss": 0.0, "correct": 0, "images": 0, "seconds": 0.0}
    progress = checkpoint.restore("digits", {"epoch": 0, "history": [], **epoch_start}, **state)
    history = progress["history"]

    done = progress["epoch"] * batches_per_epoch + progress["batch"]
    bar = tqdm(total=args.epochs * batches_per_epoch, desc="digits", initial=done)
    while progress["epoch"] < args.epochs:
        # The order depends on seed and epoch only: it is the same after a resume.
        batches = shuffled_batches(
            len(data.train_images), args.batch_size, args.seed + 1000 * progress["epoch"]
        )
        for batch in batches[progress["batch"] :]:
            began = time.perf_counter()
            images, labels = data.train_images[batch], data.train_labels[batch].to(args.device)
            scores = class_scores(model(images.to(args.device))[0])
            loss = nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            clamp_constants(model)

            progress["batch"] += 1
            progress["loss"] += loss.item() * len(batch)
            progress["correct"] += int((scores.argmax(1) == labels).sum())
            progress["images"] += len(batch)
            progress["seconds"] += time.perf_counter() - began
            accuracy = progress["correct"] / progress["images"]
            bar.set_description(f"epoch {progress['epoch'] + 1}/{args.epochs}", refresh=False)
            bar.set_postfix(
                loss=f"{progress['loss'] / progress['images']:.3f}",
                accuracy=f"{accuracy:.1%}",
                refresh=False,
            )
            bar.update()
            stop.count_batch()
            if stop.requested:
                break
        if progress["batch"] == batches_per_epoch:
            entry = {
                "loss": progress["loss"] / progress["images"],
                "train_accuracy": progress["correct"] / progress["images"],
                "test_accuracy": measure_accuracy(model, data, args.device),
                "seconds": progress["seconds"],
            }
            history.append(entry)
            progress.update(epoch=progress["epoch"] + 1, **epoch_start)
            bar.write(
                f"epoch {progress['epoch']:2d}/{args.epochs}: loss {entry['loss']:.4f}, "
                f"train {entry['train_accuracy']:.2%}, test {entry['test_accuracy']:.2%}, "
                f"{entry['seconds']:.1f} s"
            )
        checkpoint.save("digits", progress, **state)
        if stop.requested:
            bar.close()
            raise Interrupted
    bar.close()
    return history


def digits(
    args: argparse.Namespace, data: Digits, checkpoint: Checkpoint, stop: StopRequest
) -> list[str]:
    """Runs part (b), plots it and returns the lines for the summary."""
    torch.manual_seed(args.seed)
    model = DigitNetwork(data.train_images.shape[1], args.time_steps).to(args.device)
    before = {name: copy_constants(model, name) for name in START}
    history = train_digits(model, data, args, checkpoint, stop)
    after = {name: copy_constants(model, name) for name in START}

    plot_learning_curves(history, data.name, args.out / "digits_learning.png")
    plot_all_constants(before, after, args.out / "digits_constants.png")
    plot_raster(model, data, args.device, args.out / "digits_raster.png")
    seconds = sum(entry["seconds"] for entry in history) / len(history)
    return [
        f"Digits ({data.name}) after {args.epochs} epochs: "
        f"test accuracy {history[-1]['test_accuracy']:.2%}, "
        f"train accuracy {history[-1]['train_accuracy']:.2%}, {seconds:.2f} s per epoch",
        *(f"  {describe_move(name, before[name], after[name])}" for name in START),
    ]


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
    bins = torch.linspace(low - margin, high + margin, 41).tolist()
    axes.hist(
        before.tolist(), bins, color=GREY, alpha=0.6, label=f"before (mean {before.mean():.3g})"
    )
    axes.hist(
        after.tolist(), bins, color=ORANGE, alpha=0.8, label=f"after (mean {after.mean():.3g})"
    )
    unit = f" ({UNIT[name].strip()})" if UNIT[name] else " (units of the potential)"
    axes.set(xlabel=name + unit, ylabel="number of neurons", yscale="log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()


def plot_spikes(axes: Axes, spikes: torch.Tensor) -> None:
    """Draws a mark for each spike; `spikes` has the shape `[T, N]`."""
    step, neuron = spikes.numpy().nonzero()
    axes.scatter(1000 * DT * (step + 1), neuron, s=6, color="black", marker="|")
    axes.set(xlabel="time (ms)", ylabel="neuron", xlim=(0, 1000 * DT * (len(spikes) + 1)))


def plot_all_constants(
    before: dict[str, list[torch.Tensor]], after: dict[str, list[torch.Tensor]], path: Path
) -> None:
    """Draws the histograms of all constants of part (b), one row per layer."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5))
    for column, name in enumerate(before):
        for layer in range(2):
            plot_constants(axes[layer, column], name, before[name][layer], after[name][layer])
            axes[layer, column].set_title(f"{name} of LIF layer {layer + 1}")
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


@torch.no_grad()
def plot_raster(model: DigitNetwork, data: Digits, device: str, path: Path) -> None:
    """Draws what the network does with the first test image."""
    image, label = data.test_images[0], int(data.test_labels[0])
    voltages, spikes1, spikes2 = (
        tensor[:, 0].cpu() for tensor in model(image.unsqueeze(0).to(device))
    )
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.5), width_ratios=(2, 3, 3, 3))
    side = round(len(image) ** 0.5)
    axes[0].imshow(image.reshape(side, side).numpy(), cmap="gray_r")
    axes[0].set(title=f"input: a {label}", xticks=[], yticks=[])
    for number, spikes in enumerate((spikes1, spikes2), start=1):
        plot_spikes(axes[number], spikes)
        axes[number].set_title(f"LIF layer {number}: a spike in {spikes.mean():.0%} of the steps")
    milliseconds = [1000 * DT * (step + 1) for step in range(len(voltages))]
    others = [digit for digit in range(10) if digit != label]
    axes[3].plot(milliseconds, voltages[:, others].numpy(), color=GREY)
    axes[3].lines[0].set_label("other digits")
    axes[3].plot(
        milliseconds, voltages[:, label].numpy(), color=ORANGE, linewidth=3, label=f"digit {label}"
    )
    axes[3].legend(loc="upper left")
    answer = int(class_scores(voltages).argmax())
    axes[3].set(title=f"readout: answers {answer}", xlabel="time (ms)", ylabel="voltage")
    save_figure(figure, path)


def positive_int(text: str) -> int:
    """Reads a number that must be at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="The Norse parameter-learning workshop.")
    parser.add_argument("--part", choices=["odd", "digits", "all"], default="all")
    parser.add_argument("--data", type=Path, help="folder with the four IDX files of MNIST")
    parser.add_argument("--out", type=Path, default=Path("parameter_learning_out"))
    parser.add_argument(
        "--epochs", type=positive_int, help="of part (b); default: 10 for MNIST, else 20"
    )
    parser.add_argument("--batch-size", type=positive_int, help="default: 128 for MNIST, else 64")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of the weights")
    parser.add_argument(
        "--neuron-lr",
        type=float,
        default=1e-2,
        help="learning rate of the neuron constants, relative to their initial values",
    )
    parser.add_argument(
        "--time-steps", type=positive_int, default=32, help=f"of {1000 * DT:g} ms each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", help="of fused_lif; default: the best that can run")
    parser.add_argument("--resume", action="store_true", help="continue the checkpoint in --out")
    parser.add_argument("--quick", action="store_true", help="a few steps only, for tests")
    parser.add_argument("--stop-after", type=positive_int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def find_backend(requested: str | None, device: str) -> str:
    """Returns the backend that runs a layer with learnable constants on `device`.

    Raises:
        ValueError: If there is no such backend or device, or the backend cannot run there.
    """
    reasons = []
    for name in [requested] if requested else BACKENDS:
        try:
            with snn.backend(name):
                lif_layer(1, START).to(device)(torch.zeros(1, 1, 1, device=device))
        except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
            reasons.append(str(error))
        else:
            return name
    raise ValueError("; ".join(reasons))


def run_workshop(args: argparse.Namespace) -> None:
    """Runs the parts that were asked for, and prints and writes the summary.

    Raises:
        Interrupted: If Ctrl-C stopped it.
    """
    mnist_files = find_mnist(args.data) if args.data else None
    if args.data and not mnist_files:
        names = ", ".join(MNIST_FILES.values())
        print(f"{args.data} does not hold MNIST ({names}, plain or .gz)")
    print(f"Part (b) uses {'MNIST' if mnist_files else 'the digits of scikit-learn'}")
    args.epochs = args.epochs or (2 if args.quick else 10 if mnist_files else 20)
    args.batch_size = args.batch_size or (128 if mnist_files else 64)
    args.odd_steps = 20 if args.quick else 300
    backend = find_backend(args.backend, args.device)
    print(f"Runs on {args.device} with fused_lif's backend {backend!r}")

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings |= {"backend": backend, "digits": "MNIST" if mnist_files else "scikit-learn"}
    checkpoint = Checkpoint(args.out / "checkpoint.pt", settings)
    if args.resume:
        checkpoint.load()
    summary = []
    with snn.backend(backend), StopRequest(args.stop_after) as stop:
        if args.part in ("odd", "all"):
            summary += odd_firing(args, checkpoint, stop)
        if args.part in ("digits", "all"):
            data = load_mnist(mnist_files) if mnist_files else load_builtin_digits()
            data = data.first(train=256, test=128) if args.quick else data
            summary += digits(args, data, checkpoint, stop)
    text = "\n".join(summary)
    (args.out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\nFigures, checkpoint and this summary are in {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Runs the example and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    resume = shlex.join(["python", sys.argv[0], *(a for a in argv if a != "--resume"), "--resume"])
    try:
        run_workshop(args)
    except Interrupted:
        print(
            f"\nStopped; the checkpoint is {args.out / 'checkpoint.pt'}. Continue with\n  {resume}"
        )
        return 130
    except KeyboardInterrupt:
        print(
            f"\nStopped at once. If a checkpoint was written before, continue it with\n  {resume}"
        )
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
