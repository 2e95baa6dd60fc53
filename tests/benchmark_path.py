"""Makes the modules of ``benchmarks/`` importable; skips the test file where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers import running

from fused_lif.backends import triton

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not (BENCHMARKS / "run.py").exists():
    pytest.skip("benchmarks/ is not there", allow_module_level=True)
sys.path.append(str(BENCHMARKS))
import clock  # noqa: E402


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    for name in ("NPROC", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "1" if name == "NPROC" else "cpu")
    monkeypatch.setattr(clock, "TURN_SECONDS", 0.01)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def interpreter():
    """Runs Triton's kernels on the CPU; skips the test where they are not interpreted."""
    with running("triton"):
        if not triton.IS_INTERPRETED:
            pytest.skip("Triton does not interpret its kernels here")
        yield
