"""Finds the torch to build against without importing it.

An isolated build cannot import the torch that pip is going to install next to: pip masks
``sys.path``. But ``sys.prefix`` is still that environment's, and the headers are files.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

MINIMUM_TORCH = (2, 10)


class Torch(NamedTuple):
    """A torch installation: its directory, its version, such as ``2.13.0+cpu``, and its CUDA's."""

    directory: Path
    version: str
    cuda: str | None = None


def _candidates() -> list[Path]:
    directories = [os.environ.get("FUSED_LIF_TORCH_DIR", "")]
    directories += [os.path.join(p, "torch") for p in sys.path if p]
    directories += [os.path.join(sysconfig.get_path(k), "torch") for k in ("platlib", "purelib")]
    config = Path(sys.prefix, "pyvenv.cfg")
    if config.exists() and re.search(
        r"include-system-site-packages\s*=\s*true", config.read_text(), re.IGNORECASE
    ):
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        directories.append(os.path.join(sysconfig.get_path("platlib", vars=base), "torch"))
    return [Path(d) for d in directories if d]


def find_torch() -> Torch | None:
    """Returns the first torch that is new enough and has the headers of the stable ABI."""
    for directory in _candidates():
        if not (directory / "include/torch/csrc/stable/library.h").exists():
            continue
        text = (directory / "version.py").read_text()
        match = re.search(r"__version__ = '([^']+)'", text)
        if match and tuple(int(n) for n in match[1].split(".")[:2]) >= MINIMUM_TORCH:
            cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
            return Torch(directory, match[1], cuda and cuda[1])
    return None
