"""Finds nvcc without asking for a GPU, and says which GPUs the CUDA kernels are built for.

Environment variables: see ``setup.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from torch_locate import Torch

MINIMUM_CUDA = (12, 0)  # the first that compiles C++20
#: From the A100 to Blackwell. The PTX of the last one is what later GPUs compile for themselves.
DEFAULT_ARCHITECTURES = "8.0 8.6 9.0 10.0 12.0"


class Toolkit(NamedTuple):
    """A CUDA toolkit: its compiler, its version, such as ``13.0``, and where its files are."""

    nvcc: str
    version: str
    includes: list[Path]
    libraries: list[Path]
    architectures: list[str]  # all that nvcc knows, without suffixes


class Cuda(NamedTuple):
    """What CUDA code is built with, and for which GPUs: ``["8.0", "9.0+PTX"]``."""

    toolkit: Toolkit
    architectures: list[str]


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout + result.stderr


def find_toolkit() -> Toolkit | None:
    """Returns the toolkit of the nvcc in CUDA_HOME, CUDA_PATH or PATH, the first that there is."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    paths = [os.path.join(home, "bin") for home in homes if home] + [None]
    nvcc = next(filter(None, (shutil.which("nvcc", path=path) for path in paths)), None)
    if nvcc is None:
        return None
    release = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if release is None:
        sys.exit(f"fused_lif: {nvcc} does not tell its version; FUSED_LIF_CUDA=0 builds without it")
    # nvcc may be a wrapper far from its toolkit, but it knows what it is going to use.
    used = _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull)
    tops = [Path(top) for top in re.findall(r"^#\$ TOP=(.+)$", used, re.MULTILINE)]
    includes = [Path(path) for path in re.findall(r'"-I([^"]+)"', used)]
    libraries = [Path(path) for path in re.findall(r'"-L([^"]+)"', used)]
    includes += [top / "include" for top in tops]
    libraries += [top / name for top in tops for name in ("lib64", "lib")]
    codes = re.findall(r"\bsm_(\d+)(\d)\b", _output(nvcc, "--list-gpu-code"))
    return Toolkit(
        nvcc,
        release[1],
        [path for path in includes if (path / "cuda_runtime.h").exists()][:1],
        [path for path in libraries if (path / "libcudart_static.a").exists()][:1],
        [f"{major}.{minor}" for major, minor in codes],
    )


def parse_architectures(text: str, toolkit: Toolkit) -> list[str]:
    """Takes what TORCH_CUDA_ARCH_LIST takes, without names: ``"8.0;9.0a 12.0+PTX"``, or ``native``.

    An empty text stands for the default, as far as nvcc knows it.
    """
    variable = "FUSED_LIF_CUDA_ARCHITECTURES"
    words = list(dict.fromkeys(text.replace(";", " ").split()))
    if not words:
        default = DEFAULT_ARCHITECTURES.split()
        words = [word for word in default if word in toolkit.architectures] or default[:1]
        words[-1] += "+PTX"
    if words == ["native"]:
        query = _output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
        words = sorted(set(re.findall(r"^\d+\.\d$", query, re.MULTILINE)), key=float)
        if not words:
            sys.exit(f"{variable}=native needs a GPU, but nvidia-smi found none")
    for word in words:
        match = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", word)
        if match is None:
            sys.exit(f"{variable} must be 'native' or a list such as '8.0 9.0+PTX', got '{text}'")
        if match[1] not in toolkit.architectures:
            known = " ".join(toolkit.architectures)
            sys.exit(f"{variable} has {word}, but nvcc {toolkit.version} knows only {known}")
    return words


def code_flags(architectures: list[str]) -> list[str]:
    """Returns nvcc's flags: machine code for all architectures, PTX where it is asked for."""
    flags = []
    for word in architectures:
        number = word.removesuffix("+PTX").replace(".", "")
        codes = ["sm_", "compute_"] if word.endswith("+PTX") else ["sm_"]
        flags += [f"-gencode=arch=compute_{number},code={code}{number}" for code in codes]
    return flags


def choose_cuda(torch: Torch) -> Cuda | None:
    """Returns what CUDA code is to be built with; None if the extension goes without."""
    choice = os.environ.get("FUSED_LIF_CUDA", "")
    if choice not in {"", "0", "1"}:
        sys.exit(f"FUSED_LIF_CUDA must be 0 or 1, got '{choice}'")
    if choice == "0" or (choice == "" and torch.cuda is None):
        return None
    toolkit = find_toolkit()
    missing = ""
    if toolkit is None:
        missing = "nvcc is neither in CUDA_HOME or CUDA_PATH nor in PATH"
    elif tuple(map(int, toolkit.version.split("."))) < MINIMUM_CUDA:
        minimum = ".".join(map(str, MINIMUM_CUDA))
        missing = f"CUDA must be {minimum} at least, but {toolkit.nvcc} is {toolkit.version}"
    if missing and choice == "1":
        sys.exit(f"FUSED_LIF_CUDA=1 cannot be done: {missing}")
    if missing or toolkit is None:
        print(f"fused_lif: no CUDA kernels, although this torch could run them: {missing}")
        return None
    text = os.environ.get("FUSED_LIF_CUDA_ARCHITECTURES", "")
    return Cuda(toolkit, parse_architectures(text, toolkit))
