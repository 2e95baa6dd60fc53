"""Digit images for the examples: MNIST from its four files, or the small set of scikit-learn."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

MNIST_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
BUILTIN_TEST_IMAGES = 360  # of 1797, a fifth


@dataclass
class Digits:
    """Grey images of digits with their labels, split into a training and a test set."""

    name: str
    train_images: torch.Tensor  # [images, pixels], between 0 and 1
    train_labels: torch.Tensor  # [images], 0 to 9
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def first(self, train: int, test: int) -> Digits:
        """Returns the first images of both sets, for a quick run."""
        return Digits(
            self.name,
            self.train_images[:train],
            self.train_labels[:train],
            self.test_images[:test],
            self.test_labels[:test],
        )

    def normalised(self) -> Digits:
        """Returns the digits with pixels of mean 0 and standard deviation 1 in the training set.

        Those of MNIST have the mean 0.1307 and the standard deviation 0.3081.
        """
        mean, std = self.train_images.mean(), self.train_images.std()
        return replace(
            self,
            train_images=(self.train_images - mean) / std,
            test_images=(self.test_images - mean) / std,
        )

    def batches_per_epoch(self, batch_size: int) -> int:
        """Returns the number of training batches; the last one may be smaller."""
        return -(-len(self.train_images) // batch_size)

    def batch(self, indices: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns training images `[B, pixels]` and their labels `[B]`."""
        return self.train_images[indices].to(device), self.train_labels[indices].to(device)


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of bytes, plain or compressed with gzip.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, the size of
    each as a big-endian 32-bit integer, and then the values.

    Raises:
        ValueError: If the file is not an IDX file of bytes, or too short or too long.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} must hold {math.prod(shape)} values for shape {shape}, "
            f"got {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def find_mnist(folder: Path) -> dict[str, Path] | None:
    """Returns the paths of the four IDX files, ending in .gz or not; None if one is missing."""
    found = {}
    for part, name in MNIST_FILES.items():
        candidates = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not candidates:
            return None
        found[part] = candidates[0]
    return found


def load_mnist(files: dict[str, Path]) -> Digits:
    """Loads MNIST from the files that `find_mnist` found.

    Raises:
        ValueError: If a file is damaged, or images and labels do not belong together.
    """
    arrays = {part: read_idx(path) for part, path in files.items()}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{files[f'{split}_images']} and {files[f'{split}_labels']} must have shapes "
                f"[n, height, width] and [n], got {list(images.shape)} and {list(labels.shape)}"
            )
    return Digits(
        "MNIST",
        _pixels(arrays["train_images"], 255),
        _labels(arrays["train_labels"]),
        _pixels(arrays["test_images"], 255),
        _labels(arrays["test_labels"]),
    )


def load_builtin_digits() -> Digits:
    """Loads the 1797 images of 8x8 pixels of scikit-learn; which of them test is always the same.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the built-in digits need scikit-learn (pip install scikit-learn); "
            "or give --data DIR with the four files of MNIST"
        ) from error
    bunch = load_digits()
    images, labels = _pixels(bunch.data, 16), _labels(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:BUILTIN_TEST_IMAGES], order[BUILTIN_TEST_IMAGES:]
    name = "scikit-learn digits"
    return Digits(name, images[train], labels[train], images[test], labels[test])


def _pixels(images: np.ndarray, largest: int) -> torch.Tensor:
    flat = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))
    return flat / largest


def _labels(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(labels.astype(np.int64))
