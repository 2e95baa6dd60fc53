"""What the parts of the example share: a training loop that can be interrupted and continued."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from _data import Digits
from torch import nn
from tqdm import tqdm


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


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Says which settings of a file differ from those of now."""
    return [
        f"{name} {there.get(name)!r} (now {here.get(name)!r})"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


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
        different = differences(there, here)
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


@dataclass
class Session:
    """What each part gets: the command line, the checkpoint and the request to stop."""

    args: argparse.Namespace
    checkpoint: Checkpoint
    stop: StopRequest


def shuffled_batches(images: int, batch_size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Returns the indices of the images of each batch; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(images, generator=generator).split(batch_size)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, int]:
    """Learns from one batch; returns its loss and the number of correct answers.

    Args:
        model: Maps images `[B, pixels]` to scores `[B, 10]`, the logarithms of probabilities up to
            a constant.
        optimizer: Its optimizer.
        images: Shape `[B, pixels]`, on the device of the model.
        labels: Shape `[B]`, likewise.
    """
    scores = model(images)
    loss = nn.functional.cross_entropy(scores, labels)  # log-softmax and nll_loss in one
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((scores.argmax(1) == labels).sum())


@torch.no_grad()
def measure_accuracy(model: nn.Module, data: Digits, device: str) -> float:
    """Returns the fraction of test images that are classified correctly."""
    correct = 0
    for images, labels in zip(
        data.test_images.split(500), data.test_labels.split(500), strict=True
    ):
        scores = model(images.to(device))
        correct += int((scores.argmax(1) == labels.to(device)).sum())
    return correct / len(data.test_labels)


def train_classifier(
    run: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Digits,
    batch_size: int,
    session: Session,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> list[dict[str, float]]:
    """Trains a network on digits and returns one entry per epoch.

    Args:
        run: Name of the run in the checkpoint.
        model: Maps images `[B, pixels]` to scores `[B, 10]`.
        optimizer: Its optimizer.
        data: The digits.
        batch_size: Number of images per step.
        session: Command line, checkpoint and request to stop.
        schedule: Changes the learning rate after each batch; without, it stays the same.

    Raises:
        Interrupted: If Ctrl-C stopped it.
    """
    args = session.args
    batches_per_epoch = data.batches_per_epoch(batch_size)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if schedule:
        state["schedule"] = schedule
    epoch_start = {"batch": 0, "loss": 0.0, "correct": 0, "images": 0, "seconds": 0.0}
    progress = session.checkpoint.restore(run, {"epoch": 0, "history": [], **epoch_start}, **state)
    history: list[dict[str, float]] = progress["history"]

    done = progress["epoch"] * batches_per_epoch + progress["batch"]
    bar = tqdm(total=args.epochs * batches_per_epoch, desc=run, initial=done)
    while progress["epoch"] < args.epochs:
        # The order depends on seed and epoch only: it is the same after a resume.
        batches = shuffled_batches(
            len(data.train_images), batch_size, args.seed + 1000 * progress["epoch"]
        )
        for batch in batches[progress["batch"] :]:
            began = time.perf_counter()
            loss, correct = training_step(model, optimizer, *data.batch(batch, args.device))
            if schedule:
                schedule.step()

            progress["batch"] += 1
            progress["loss"] += loss * len(batch)
            progress["correct"] += correct
            progress["images"] += len(batch)
            progress["seconds"] += time.perf_counter() - began
            accuracy = progress["correct"] / progress["images"]
            bar.set_description(
                f"{run}, epoch {progress['epoch'] + 1}/{args.epochs}", refresh=False
            )
            bar.set_postfix(
                loss=f"{progress['loss'] / progress['images']:.3f}",
                accuracy=f"{accuracy:.1%}",
                refresh=False,
            )
            bar.update()
            session.stop.count_batch()
            if session.stop.requested:
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
        session.checkpoint.save(run, progress, **state)
        if session.stop.requested:
            bar.close()
            raise Interrupted
    bar.close()
    return history


def time_in_turns(
    steps: dict[str, Callable[[torch.Tensor], object]],
    batches: Sequence[torch.Tensor],
    turn: int = 10,
    warm_up: int = 3,
) -> dict[str, list[float]]:
    """Returns the seconds that each of several training steps takes for each batch.

    All see the same batches in the same order. They take turns of a few batches, in changing order,
    so that whatever else the machine does slows all of them down alike.

    Args:
        steps: What to time, by name; each is called with the indices of a batch.
        batches: The batches.
        turn: Number of batches until the next one's turn.
        warm_up: Number of batches that each learns from before the clock starts.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for batch in batches[:warm_up]:
            steps[name](batch)
    with tqdm(total=len(names) * len(batches)) as bar:
        for start in range(0, len(batches), turn):
            for name in names:
                bar.set_description(name, refresh=False)
                for batch in batches[start : start + turn]:
                    began = time.perf_counter()
                    steps[name](batch)
                    seconds[name].append(time.perf_counter() - began)
                    bar.update()
            names.append(names.pop(0))
    return seconds
