from __future__ import annotations

import importlib.util
import os

# Deterministic algorithms need it on CUDA.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

# Kernels of Triton are interpreted where there is no GPU; Triton asks when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from cuda_emulator import emulator
from helpers import BACKENDS, instruction_set, running

# Most of them are written in Triton's language.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_triton*.py"]


@pytest.fixture(autouse=True)
def _seeded_and_deterministic():
    """Seeds every test, and fills new tensors of torch with NaN; sanitizer builds fill ours."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Name of each backend, to be given to ``run``, ``gradients`` or ``call`` of the helpers."""
    with running(request.param):
        yield request.param


@pytest.fixture(params=["baseline", "avx2", "avx512", *BACKENDS[1:]])
def kernels(request):
    """The same; ``cpu`` with the kernels of each instruction set."""
    if request.param in BACKENDS:
        with running(request.param):
            yield request.param
    else:
        with instruction_set(request.param):
            yield "cpu"


@pytest.fixture
def emulated():
    """The emulator of CUDA; the backend ``emulated`` can be used while the test runs."""
    with running("emulated"):
        yield emulator.load()


@pytest.fixture
def cuda(emulated):
    """The emulated operators."""
    return torch.ops.fused_lif_emulated


@pytest.fixture
def plans(monkeypatch):
    """Other plans for the kernels of Triton; the backend ``triton`` can be used meanwhile."""
    with running("triton"):
        from triton_cases import Plans

        yield Plans(monkeypatch)
