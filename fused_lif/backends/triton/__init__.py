"""Triton backend: the same layers on any GPU that Triton supports, without nvcc.

``step.py`` has the equations, ``sequence.py`` and ``recurrent.py`` the kernels, ``operators.py``
what launches them. With ``TRITON_INTERPRET=1`` set before the import of Triton, the kernels run on
the CPU, very slowly: for tests, and to look into them with a debugger.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from typing import Any

import torch
from torch import Tensor

from fused_lif.backends import _autograd
from fused_lif.backends._autograd import Operators, constant_result, reasons_against_kernels
from fused_lif.backends._base import Backend
from fused_lif.types import LIFProblem, LIFResult

#: The oldest Triton with all that the kernels use.
OLDEST_TRITON = (3, 6)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


try:
    import triton

    if _version(triton.__version__) < OLDEST_TRITON:
        raise ImportError(f"version {triton.__version__} is older than 3.6")
    from fused_lif.backends.triton import operators, plan

    IMPORT_ERROR: ImportError | None = None
    VERSION: str = triton.__version__
    IS_INTERPRETED: bool = triton.knobs.runtime.interpret
except ImportError as error:
    IMPORT_ERROR = error
    VERSION = ""
    IS_INTERPRETED = False

#: The oldest compute capability that Triton supports.
OLDEST_CAPABILITY = (8, 0)

#: From here on, the assembler of Triton up to 3.6 fuses multiply and add, told not to or not.
FUSING_CAPABILITY, OLDEST_UNFUSED_TRITON = (10, 0), (3, 7)

#: From here on, Triton brings along what launches a kernel, instead of compiling it.
OLDEST_LAUNCHER_TRITON = (3, 9)


def _lif_recurrent_forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return _autograd.lif_recurrent_forward_fake(*arguments)[:5]


#: The operators that the backend runs. Opaque: torch.compile does not look into them.
OPERATORS: Operators

if IMPORT_ERROR is None:
    _library = torch.library.Library("fused_lif", "FRAGMENT")
    for _function, _fake in (
        (operators.lif_forward, _autograd.lif_forward_fake),
        (operators.lif_backward, _autograd.lif_backward_fake),
        (operators.lif_recurrent_forward, _lif_recurrent_forward_fake),
        (operators.lif_recurrent_backward, _autograd.lif_recurrent_backward_fake),
    ):
        _name = f"{_function.__name__}_triton"
        _library.define(_name + torch.library.infer_schema(_function, mutates_args=()))
        _library.impl(_name, torch.no_grad()(_function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fused_lif::{_name}", _fake, lib=_library)
    OPERATORS = Operators(
        torch.ops.fused_lif.lif_forward_triton.default,
        torch.ops.fused_lif.lif_backward_triton.default,
        torch.ops.fused_lif.lif_recurrent_forward_triton.default,
        torch.ops.fused_lif.lif_recurrent_backward_triton.default,
        operators.input_grad,
        operators.weight_grad,
    )


def _unavailable() -> list[str]:
    if isinstance(IMPORT_ERROR, ModuleNotFoundError) and IMPORT_ERROR.name == "triton":
        return ["triton is not installed (pip install triton)"]
    if IMPORT_ERROR is not None:
        return [f"triton could not be imported ({IMPORT_ERROR})"]
    if not IS_INTERPRETED and not torch.cuda.is_available():
        return ["torch finds no GPU"]
    return []


@constant_result
@functools.cache
def _reasons_against_device(index: int) -> list[str]:
    if IS_INTERPRETED:
        return ["TRITON_INTERPRET=1 is set, and the input is not on the CPU"]
    # Triton compiles a little C on the host, in older versions for every kernel.
    compilers = os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")
    if _version(VERSION) < OLDEST_LAUNCHER_TRITON and not any(compilers):
        return ["Triton needs gcc or clang, or CC to name another C compiler"]
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever goes wrong there, the layer can run elsewhere
        return [f"Triton cannot use the GPU ({error})"]
    if torch.version.hip:
        return []
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return ["Triton needs compute capability 8.0"]
    if capability >= FUSING_CAPABILITY and _version(VERSION) < OLDEST_UNFUSED_TRITON:
        return [
            f"Triton {VERSION} rounds wrongly on compute capability 10.0 and later; 3.7 does not"
        ]
    return []


@constant_result
def _checkpoint_interval(device: torch.device, dtype: torch.dtype) -> int:
    index = None if device.type == "cpu" else device.index
    return plan.checkpoint_interval(plan.device_of(index), dtype)


def _reasons_against(problem: LIFProblem) -> list[str]:
    device = problem.x.device
    if device.type != "cuda" and not (device.type == "cpu" and IS_INTERPRETED):
        return [f"the input is on {device.type}"]
    if IMPORT_ERROR is not None:
        return _unavailable()
    reasons = [] if device.type == "cpu" else _reasons_against_device(device.index)
    return reasons + reasons_against_kernels(problem)


def _run(problem: LIFProblem) -> LIFResult:
    interval = _checkpoint_interval(problem.v.device, problem.v.dtype)
    return _autograd.run(problem, OPERATORS, interval)


TRITON = Backend("triton", _unavailable, _reasons_against, _run)
