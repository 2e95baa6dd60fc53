"""C++ backends: the operators in ``csrc``."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_lif.backends import _autograd
from fused_lif.backends._autograd import Operators, constant_result, reasons_against_kernels
from fused_lif.backends._base import Backend
from fused_lif.types import LIFProblem, LIFResult

try:
    from fused_lif import _C  # loading it registers torch.ops.fused_lif.*

    IMPORT_ERROR: ImportError | None = None
    #: Compute capabilities that the extension has CUDA kernels for, as in "8.0 9.0+PTX".
    CUDA_ARCHITECTURES: str = _C.build_info()["cuda_architectures"]
except ImportError as error:
    IMPORT_ERROR = error
    CUDA_ARCHITECTURES = ""

#: Steps from one kept state to the next.
#: In float32, 32 steps cost 1/16 of the input's memory, and a block of columns fits the L1 cache.
CHECKPOINT_INTERVAL = 32


def _surrogate_grad_fake(s: Tensor, method: int, alpha: float) -> Tensor:
    return s.new_empty(s.shape)


#: The operators that the backends run.
OPERATORS: Operators

if IMPORT_ERROR is None:
    for _name in Operators._fields:
        torch.library.register_fake(f"fused_lif::{_name}", getattr(_autograd, f"{_name}_fake"))
    torch.library.register_fake("fused_lif::surrogate_grad", _surrogate_grad_fake)
    OPERATORS = Operators(*(getattr(torch.ops.fused_lif, n).default for n in Operators._fields))


def _run(problem: LIFProblem) -> LIFResult:
    return _autograd.run(problem, OPERATORS, CHECKPOINT_INTERVAL)


def _unavailable() -> list[str]:
    if IMPORT_ERROR is None:
        return []
    return [f"the C++ extension could not be loaded ({IMPORT_ERROR})"]


def _unavailable_on_cuda() -> list[str]:
    if IMPORT_ERROR is not None:
        return _unavailable()
    reasons = []
    if not CUDA_ARCHITECTURES:
        reasons.append("the extension was built without CUDA (set FUSED_LIF_CUDA=1 to demand it)")
    if not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    return reasons


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for some architectures, as in ``"8.0 9.0+PTX"``, run on a device.

    Machine code runs on devices of the same major version and the same or a greater minor one; PTX
    on all later ones.
    """
    for name in architectures.split():
        major, minor = map(int, name.removesuffix("+PTX").rstrip("af").split("."))
        if capability >= (major, minor) and (capability[0] == major or name.endswith("+PTX")):
            return True
    return False


_covered: dict[int, list[str]] = {}  # devices that have been asked about, with the answer


@constant_result
def _reasons_against_device(index: int) -> list[str]:
    if index not in _covered:
        capability = torch.cuda.get_device_capability(index)
        _covered[index] = [
            f"the extension was built for compute capability {CUDA_ARCHITECTURES or 'none'}, "
            f"and the device has {capability[0]}.{capability[1]}"
        ]
        if covers(CUDA_ARCHITECTURES, capability):
            _covered[index] = []
    return _covered[index]


def _reasons_against_cpu(problem: LIFProblem) -> list[str]:
    reasons = [] if IMPORT_ERROR is None else _unavailable()
    if problem.x.device.type != "cpu":
        reasons.append(f"the input is on {problem.x.device.type}")
    return reasons + reasons_against_kernels(problem)


def _reasons_against_cuda(problem: LIFProblem) -> list[str]:
    device = problem.x.device
    if device.type != "cuda":
        return [f"the input is on {device.type}"]
    if not CUDA_ARCHITECTURES:
        return _unavailable_on_cuda()
    reasons: list[str] = _reasons_against_device(device.index)
    return reasons + reasons_against_kernels(problem)


CPU = Backend("cpu", _unavailable, _reasons_against_cpu, _run)
CUDA = Backend("cuda", _unavailable_on_cuda, _reasons_against_cuda, _run)
