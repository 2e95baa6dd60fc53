"""Sequences to classify, in which time matters: touched letters, spoken digits, rows of images.

Where they come from, with their licences; none of them is part of this package:

- Braille letters: S. F. Mueller-Cleve et al., Frontiers in Neuroscience 16:951164, 2022; data
  doi:10.5281/zenodo.7050094, CC BY 4.0 according to third parties. Events of a sigma-delta encoder
  with threshold 10, from github.com/miskarous/tactile_braille_reading, as one .npz file.
- Spoken digits: Jakobovski et al., Free Spoken Digit Dataset, CC BY-SA 4.0,
  github.com/Jakobovski/free-spoken-digit-dataset, as one .npz file.
- MNIST: (c) Y. LeCun and C. Cortes, derived from NIST; CC BY-SA 3.0 according to those who pass it
  on. Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Proceedings of the IEEE 86:2278, 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from _data import find_mnist, load_mnist

BRAILLE_FILE, SPEECH_FILE = "braille_th10_events.npz", "fsdd.npz"
BRAILLE_SECONDS, BRAILLE_STEPS, BRAILLE_CHANNELS = 1.3, 52, 24
SPEECH_RATE = 8000  # samples per second
FRAME, HOP = 256, 80  # samples: 32 ms and 10 ms
MEL_BANDS, SPEECH_STEPS = 40, 80  # what is longer than 0.8 s is cut off: 2 % of the recordings
SILENCE = 1e-6  # added to the energy of a band


@dataclass
class Sequences:
    """Sequences with their classes, split into three sets.

    Attributes:
        classes: Number of classes.
        dt: Length of one step, in seconds.
        inputs: All sequences, shape `[T, sequences, channels]`.
        labels: Their classes, shape `[sequences]`.
        train: Indices of those to learn from while settings are searched.
        validation: Indices of those that choose the settings.
        test: Indices of those that only the final networks see.
    """

    classes: int
    dt: float
    inputs: torch.Tensor
    labels: torch.Tensor
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return self.inputs.shape[0]

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns sequences `[T, B, channels]` and their classes `[B]`."""
        return self.inputs[:, indices], self.labels[indices]


def load_braille(folder: Path) -> Sequences:
    """Loads letters read by a sliding fingertip: numbers of events in bins of 25 ms.

    There is no official split: the last 40 trials of each letter test, the 40 before validate.
    Some trials may be near copies of others, so accuracies may be higher than for new trials.

    Raises:
        ValueError: If the file is not there.
    """
    archive = _open(folder, BRAILLE_FILE)
    trials = len(archive["label"])
    trial = np.repeat(np.arange(trials), np.diff(archive["offsets"]))
    step = (archive["t"] * (BRAILLE_STEPS / BRAILLE_SECONDS)).astype(np.int64)
    counts = np.zeros((BRAILLE_STEPS, trials, BRAILLE_CHANNELS), np.float32)
    np.add.at(counts, (np.minimum(step, BRAILLE_STEPS - 1), trial, archive["channel"]), 1)
    labels = archive["label"].astype(np.int64)
    from_last = np.empty(trials, np.int64)  # 0 is the last trial of a letter
    for letter in np.unique(labels):
        (of_letter,) = np.nonzero(labels == letter)
        from_last[of_letter] = np.arange(len(of_letter))[::-1]
    return _split(
        TASKS["braille"].dt,
        counts,
        labels,
        validation=(from_last >= 40) & (from_last < 80),
        test=from_last < 40,
    )


def load_speech(folder: Path) -> Sequences:
    """Loads spoken digits as spikes that mark changes of the energy in 40 mel bands.

    The official split: recordings 0 to 4 of each digit and speaker test. 5 to 13 validate.

    Raises:
        ValueError: If the file is not there.
    """
    archive = _open(folder, SPEECH_FILE)
    audio, offsets = archive["audio"], archive["offsets"]
    spikes = np.zeros((SPEECH_STEPS, len(offsets) - 1, 2 * MEL_BANDS), np.float32)
    bank = mel_bank()
    for number, (begin, end) in enumerate(pairwise(offsets)):
        energy = log_mel(audio[begin:end].astype(np.float32) / 32768, bank)[:SPEECH_STEPS]
        spikes[: len(energy), number] = delta_code(energy)
    return _split(
        TASKS["fsdd"].dt,
        spikes,
        archive["label"].astype(np.int64),
        validation=(archive["index"] >= 5) & (archive["index"] < 14),
        test=archive["index"] < 5,
    )


def mel_bank(rate: int = SPEECH_RATE) -> np.ndarray:
    """Returns triangular filters, evenly spaced in mel from 50 Hz on: `[bands, frequencies]`."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    corners = 700 * (10 ** (np.linspace(mel(50), mel(rate / 2), MEL_BANDS + 2) / 2595) - 1)
    low, middle, high = (corners[k : MEL_BANDS + k, None] for k in range(3))
    frequencies = np.arange(FRAME // 2 + 1) * rate / FRAME
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(audio: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the energy in each band: `[frames, bands]`, a frame every 10 ms."""
    audio = np.pad(audio, (0, max(0, FRAME - len(audio))))
    frames = 1 + (len(audio) - FRAME) // HOP
    cut = audio[np.arange(FRAME) + HOP * np.arange(frames)[:, None]] * np.hanning(FRAME)
    return np.log(np.abs(np.fft.rfft(cut)) ** 2 @ bank.T + SILENCE)


def delta_code(signal: np.ndarray, threshold: float = 1.0) -> np.ndarray:
    """Returns how many thresholds a signal rose and fell since the last spike.

    Args:
        signal: Shape `[T, channels]`.
        threshold: Change that makes a spike.

    Returns:
        Shape `[T, 2 * channels]`: numbers of spikes for rising and then for falling channels.
    """
    followed = signal[0].copy()
    spikes = np.zeros((len(signal), 2 * signal.shape[1]), np.float32)
    for t, value in enumerate(signal):
        change = np.trunc((value - followed) / threshold)
        followed += change * threshold
        spikes[t] = np.concatenate([np.maximum(change, 0), np.maximum(-change, 0)])
    return spikes


def load_rows(folder: Path, images: int = 20_000) -> Sequences:
    """Loads MNIST row by row, one in each step of 1 ms; pixels are currents between 0 and 1.

    Args:
        folder: Has the four files of MNIST.
        images: How many of the 60,000 training images to use; the last fifth of them validates.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    files = find_mnist(folder)
    if not files:
        raise ValueError(f"{folder} does not hold the four files of MNIST")
    data = load_mnist(files)
    images = min(images, len(data.train_images))
    pixels = torch.cat([data.train_images[:images], data.test_images])
    side = round(pixels.shape[1] ** 0.5)
    number = np.arange(len(pixels))
    return _split(
        TASKS["mnist"].dt,
        pixels.reshape(-1, side, side).transpose(0, 1).contiguous().numpy(),
        torch.cat([data.train_labels[:images], data.test_labels]).numpy(),
        validation=(number >= images - images // 5) & (number < images),
        test=number >= images,
    )


def make_intervals(sequences: int = 1500, seed: int = 0) -> Sequences:
    """Makes sequences of two pulses; their class is how long the first was before the second.

    The intervals are 2, 4, 8, 16 and 32 steps of 1 ms, each 20 % shorter or longer at most. The
    first pulse comes on one half of the channels and the second on the other, at any time, and
    there are some other spikes: their numbers do not tell the class.
    """
    steps, channels = 50, 16
    intervals = torch.tensor([2, 4, 8, 16, 32])
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator)

    labels = torch.randint(len(intervals), (sequences,), generator=generator)
    interval = (intervals[labels] * (0.8 + 0.4 * uniform(sequences))).round().long()
    first = (uniform(sequences) * (steps - interval)).long()
    spikes = uniform(steps, sequences, channels) < 0.005
    every, half = torch.arange(sequences), channels // 2
    spikes[first, every, :half] |= uniform(sequences, half) < 0.8
    spikes[first + interval, every, half:] |= uniform(sequences, half) < 0.8
    number = np.arange(sequences)
    return _split(
        TASKS["intervals"].dt,
        spikes.float().numpy(),
        labels.numpy(),
        validation=(number >= sequences // 2) & (number < 2 * sequences // 3),
        test=number >= 2 * sequences // 3,
    )


def _open(folder: Path, name: str) -> dict[str, np.ndarray]:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} does not hold {name}")
    with np.load(folder / name) as archive:
        return dict(archive)


def _split(
    dt: float,
    inputs: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
) -> Sequences:
    def indices(chosen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.nonzero(chosen)[0])

    return Sequences(
        int(labels.max()) + 1,
        dt,
        torch.from_numpy(inputs),
        torch.from_numpy(labels),
        train=indices(~validation & ~test),
        validation=indices(validation),
        test=indices(test),
    )


@dataclass(frozen=True)
class Task:
    """Sequences that can be loaded.

    Attributes:
        name: What a figure calls them.
        dt: Length of one step, in seconds.
        load: Loads them from their folder.
    """

    name: str
    dt: float
    load: Callable[[Path], Sequences]


TASKS = {  # those with a folder have this name
    "braille": Task("Braille letters", BRAILLE_SECONDS / BRAILLE_STEPS, load_braille),
    "fsdd": Task("Spoken digits", HOP / SPEECH_RATE, load_speech),
    "mnist": Task("MNIST by rows", 0.001, load_rows),
    "intervals": Task("Intervals", 0.001, lambda folder: make_intervals()),
}


def load_task(task: str, data: Path | None) -> Sequences:
    """Loads the sequences of a task from the subfolder of `data` with its name.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    if task != "intervals" and data is None:
        raise ValueError(f"the task {task} needs --data")
    return TASKS[task].load((data or Path()) / task)
