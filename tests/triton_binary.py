"""What Triton makes of the kernels: ``python tests/triton_binary.py [architecture ...]``.

Calls layers as users do, compiles what they would launch, and prints registers, memory and fused
multiply-adds of every kernel. Fails if a kernel spills or has other local memory, if it takes more
registers than REGISTERS grants, if one that computes spikes fuses multiply and add or flushes
denormals, or if a kernel was never compiled. No GPU is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cuda_binary
import torch

#: Registers that a thread may take, by the name of the kernel. A name may include the first words
#: of its description, as in ``lif_forward_kernel<float64``; the longest one counts. Limits hold for
#: all versions of Triton: 3.6 and 3.9 differ by up to a third.
REGISTERS = {
    "constant_grads_kernel": 72,
    "lif_backward_kernel": 192,
    "lif_backward_kernel<bfloat16, adjoint": 208,
    "lif_backward_kernel<bfloat16, eventprop": 208,
    "lif_backward_kernel<float32, super, 1 step": 64,
    "lif_backward_kernel<float64": 224,
    "lif_forward_kernel": 192,
    "lif_forward_kernel<float32, 1 step": 64,
    "lif_forward_kernel<float64": 80,
    "lif_input_sums_kernel": 192,
    "lif_recurrent_backward_kernel": 255,
    "lif_recurrent_forward_kernel": 255,
}

#: Multiprocessors of what is compiled for: A100, H200, B200.
MULTIPROCESSORS = {"8.0": 108, "9.0": 132, "10.0": 148}

#: All cases are compiled for this one, and those that are ``common`` for the others.
MAIN_ARCHITECTURE = "9.0"

# The ptxas of Triton 3.6 fuses packed operations (FFMA2) on Blackwell, told not to or not.
_OLDEST_VERSION = {"10.0": (3, 7)}

# What a division, exp or sqrt in a surrogate, in its primitive or in an event-based method is made
# of may fuse and flush. Elsewhere nothing may: neither in the spikes of the forward nor where the
# backward recomputes them.
_DIVIDES = re.compile(
    "backward.*<.*(super|tanh|circ|heavi_erfc|sigmoid|atan|adjoint|eventprop)|, smooth "
)


@dataclass
class Kernel(cuda_binary.Kernel):
    """One kernel as compiled for one launch; the name ends with a description of that."""

    flushes: int = 0  # instructions that take denormals for zero
    error: str = ""  # why it could not be compiled


def rounds_as_written(name: str) -> bool:
    """Whether every operation of a kernel must round once, and none may flush denormals."""
    return not _DIVIDES.search(name)


def problems(
    kernels: Iterable[Kernel], expected: Iterable[str], registers: Mapping[str, int] = REGISTERS
) -> list[str]:
    """Returns a sentence on everything that must not be; ``expected`` has the kernels' names."""
    found = []
    of: dict[str, list[cuda_binary.Kernel]] = {}
    for k in kernels:
        # Smooth spikes verify gradients, and may spill: Triton 3.6 does in float64 divisions.
        verifies = ", smooth " in k.name
        of.setdefault(k.architecture, []).append(replace(k, stack=0, spills=0) if verifies else k)
        if k.error:
            found.append(f"{k.name} for {k.architecture} cannot be compiled: {k.error}")
        if k.flushes and rounds_as_written(k.name):
            found.append(f"{k.name} for {k.architecture} flushes denormals {k.flushes} times")
    for architecture, compiled in of.items():
        found += cuda_binary.problems(compiled, registers, rounds_as_written)
        missing = set(expected) - {k.name.split("<")[0] for k in compiled}
        found += [f"no case compiled {name} for {architecture}" for name in sorted(missing)]
    return found


# ---- the cases ----


@dataclass(frozen=True)
class Case:
    """A layer and its input.

    Attributes:
        words: What is special about it.
        step: Shape of a time step of the neurons, such as ``[B, N]``.
        T: Time steps; None for a single step.
        features: Those of the input of a recurrent layer; None for a layer that is not.
        constant: Shape of the constants; None for numbers.
        smooth: Spikes are smooth.
        learns: The constants get gradients; otherwise only input, state and weights do.
        ends: The loss depends on the state after the last step.
        common: It is compiled for all architectures.
    """

    words: str
    step: tuple[int, ...]
    T: int | None = 64
    dtype: torch.dtype = torch.float32
    neuron: str = "LIF"
    method: str = "super"
    reset: str = "hard"
    detach_reset: bool = False
    record_states: bool = False
    smooth: bool = False
    batch_first: bool = False
    features: int | None = None
    exact: bool = False
    constant: tuple[int, ...] | None = ()
    learns: bool = False
    ends: bool = False
    backward: bool = True
    common: bool = False

    def run(self) -> None:
        """Forward and backward, on tensors without memory."""
        from fused_lif.functional._integrate import integrate, smooth_spikes
        from fused_lif.types import LIFParameters, Neuron, Recurrence

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=self.backward)

        def sequence(width: int) -> torch.Tensor:
            step = (*self.step[:-1], width)
            if self.T is None:
                return new(*step, dtype=self.dtype)
            if self.batch_first:
                return new(step[0], self.T, *step[1:], dtype=self.dtype).transpose(0, 1)
            return new(self.T, *step, dtype=self.dtype)

        state = torch.float64 if self.dtype == torch.float64 else torch.float32
        z, v, i = (new(*self.step, dtype=state) for _ in range(3))
        constants: list[Any] = [1.0] * 6
        if self.constant is not None:
            constants = [new(*self.constant).requires_grad_(self.learns) for _ in range(6)]
        recurrence = None
        if self.features is not None:
            H = self.step[-1]
            weights = (new(H, n, dtype=self.dtype) for n in (self.features, H))
            recurrence = Recurrence(z, *weights, True, self.exact)
        with smooth_spikes() if self.smooth else contextlib.nullcontext():
            out, *others = integrate(
                Neuron[self.neuron],
                sequence(self.features or self.step[-1]),
                v,
                i,
                LIFParameters(*constants[:5], self.method, constants[5]),
                0.001,
                single_step=self.T is None,
                reset=self.reset,
                detach_reset=self.detach_reset,
                record_states=self.record_states,
                recurrence=recurrence,
                backend=BACKEND,
            )
        if self.backward:
            results = [out, *(t for t in others if t is not None and self.ends)]
            grads = [sequence(self.step[-1]).detach(), *map(torch.empty_like, results[1:])]
            torch.autograd.backward(results, grads)


def cases(architecture: str) -> list[Case]:
    """All cases, or the common ones; batches as large as the plans distinguish."""
    from fused_lif.backends.triton import plan
    from fused_lif.surrogate import SURROGATES

    sms = MULTIPROCESSORS[architecture]
    plans = plan.table().get(f"cuda:{architecture}", plan.table()["default"])
    large = (sms, 4096)
    found = []
    halves = (torch.bfloat16, torch.float16)

    # Every row of the plans.
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rows = [plans[f"lif_{way}"][str(dtype.itemsize)] for way in ("forward", "backward")]
        limits = sorted({limit for limit, *_ in [*rows[0], *rows[1]] if limit is not None})
        for n in limits:
            found.append(Case(f"{n} per SM", (sms, n), dtype=dtype))
        found.append(Case("many", large, dtype=dtype, common=True))
    for limit, *_ in plans["lif_recurrent_forward"]:
        common = limit == 512
        found.append(Case(f"H = {limit}", (sms, limit), features=700, common=common))
    for limit, *_ in plans["lif_recurrent_backward"]:
        for B, common in ((1, False), (8 * sms, True)):
            found.append(Case(f"[{B}, {limit}]", (B, limit), features=700, common=common))

    def add(words: str, step: tuple[int, ...] = large, **rest: Any) -> None:
        found.append(Case(words, step, **rest))

    for T, words in ((None, "[B, N]"), (1, "[1, B, N]")):
        for dtype in (torch.float32, *halves, torch.float64):
            add(words, T=T, dtype=dtype, common=dtype == torch.float32)
        add(words, T=T, step=(1, 100))
    for T in (5, 16, 100):
        add(f"T = {T}", T=T)
        add(f"T = {T}", T=T, dtype=torch.bfloat16, common=T == 100)
    add("inference", backward=False)
    add("inference", T=100, dtype=torch.float16, backward=False)
    add("states", record_states=True, ends=True)
    add("states", T=5, dtype=torch.float16, record_states=True, ends=True)
    for neuron in ("LI", "CURRENT_ENCODER"):
        add(neuron, neuron=neuron, learns=True, ends=True)
        add(neuron, neuron=neuron, T=None)
    add("learns scalars", method="triangle", learns=True, common=True)
    for method in ("heaviside", "tanh", "circ", "heavi_erfc", "sigmoid", "atan"):
        add("", method=method, T=64 if method == "circ" else 4)
    add("soft", method="piecewise_linear", reset="soft", learns=True, ends=True)
    add("soft, detached", reset="soft", detach_reset=True, T=4)
    for method in ("adjoint", "eventprop"):
        add("", method=method, common=True)
        add("learns scalars", method=method, T=100, dtype=torch.bfloat16, learns=True, common=True)
        add("learns scalars", method=method, dtype=torch.float64, learns=True, ends=True)
        add("soft", method=method, reset="soft", ends=True)
        add("CURRENT_ENCODER", method=method, neuron="CURRENT_ENCODER", learns=True)
    for method in SURROGATES:
        if method != "box":
            add("", method=method, T=4, dtype=torch.float64, smooth=True, common=method == "atan")
    add("soft", method="heavi_erfc", dtype=torch.float64, smooth=True, reset="soft", learns=True)
    add("numbers", constant=None, T=4)
    add("numbers", constant=None, dtype=torch.float64)
    add("learns scalars", learns=True)
    add("learns scalars", learns=True, T=100, dtype=torch.float64)
    add("learns per neuron", constant=(4096,), learns=True, dtype=torch.bfloat16)
    add("learns per channel", (64, 32, 28, 28), constant=(32, 1, 1), learns=True, T=4)
    add("learns all", constant=large, learns=True, T=4)
    add("repeats constants", (64, 32, 28, 28), constant=(32, 1, 28), learns=True, T=4)
    add("batch first", batch_first=True, dtype=torch.bfloat16, common=True)
    add("batch first", batch_first=True, T=5, learns=True)
    add("odd", (1001, 999))
    add("odd", (1001, 999), T=5)
    add("one", (1, 1), T=5, learns=True)
    add("2^31 columns", (1 << 15, 1 << 16), T=4)

    def add_layer(H: int, words: str = "", B: int = 256, **rest: Any) -> None:
        add(f"[{B}, {H}] {words}".strip(), (B, H), features=700, **rest)

    for H in (10, 100, 1000):
        add_layer(H, T=100, dtype=torch.bfloat16, learns=H == 10)
    add_layer(2000, common=True)
    add_layer(2000, "states", T=None, dtype=torch.float16, record_states=True, ends=True)
    add_layer(128, "single", T=None)
    add_layer(128, "exact", T=16, exact=True)
    add_layer(128, "inference", dtype=torch.float16, backward=False)
    add_layer(128, "states", dtype=torch.float64, record_states=True, ends=True)
    add_layer(256, "soft", reset="soft", method="triangle", constant=(256,), learns=True)
    for method in ("adjoint", "eventprop"):
        for H in (64, 128, 256, 2000):
            add_layer(H, method=method, learns=True, common=H in (128, 2000))
        add_layer(128, "states", method=method, dtype=torch.float64, record_states=True, ends=True)
    add_layer(128, "single", method="adjoint", T=None)
    add_layer(128, "smooth", method="tanh", dtype=torch.float64, smooth=True, learns=True)
    return [c for c in found if c.common or architecture == MAIN_ARCHITECTURE]


# ---- compilation ----

BACKEND = "compiled"


class _Driver:
    """A GPU that is not there."""

    architecture = MAIN_ARCHITECTURE

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.get_current_device(), 32)

    def get_current_device(self) -> int:
        return int(self.architecture.replace(".", ""))

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Compiler:
    """Compiles what the Triton backend would launch, and reads the machine code."""

    def __init__(self) -> None:
        import triton
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction

        from fused_lif.backends import BACKENDS, _autograd
        from fused_lif.backends._base import Backend
        from fused_lif.backends.triton import launch, operators, plan

        self.driver = _Driver()
        self.options: dict[str, Any] = {}
        self.launches: list[tuple[str, Any]] = []  # description; what was compiled or why not
        self.read: dict[str, cuda_binary.Kernel] = {}
        compile_ = JITFunction.run

        def run(function: Any, *, grid: Any, warmup: bool, **arguments: Any) -> Any:
            name = _describe(function.__name__, arguments)
            try:
                compiled = compile_(function, grid=grid, warmup=True, **arguments | self.options)
            except (triton.TritonError, RuntimeError) as error:
                compiled = _cause(error)
            self.launches.append((name, compiled))

        def device_of(index: int | None) -> plan.Device:
            of = self.driver.architecture
            return plan.Device(f"cuda:{of}", MULTIPROCESSORS[of])

        functions = _autograd.Operators(
            operators.lif_forward,
            operators.lif_backward,
            operators.lif_recurrent_forward,
            operators.lif_recurrent_backward,
            operators.input_grad,
            operators.weight_grad,
        )
        driver.set_active(self.driver)
        JITFunction.run = run
        launch._on = lambda device: contextlib.nullcontext()
        plan.device_of = device_of
        BACKENDS[BACKEND] = Backend(
            BACKEND,
            lambda: [],
            lambda problem: [],
            lambda problem: _autograd.run(
                problem, functions, plan.checkpoint_interval(device_of(None), problem.v.dtype)
            ),
        )

    def compile(self, case: Case, architecture: str, **options: Any) -> dict[str, Kernel]:
        """Returns the kernels that a case launches, by a hash that only equal ones share.

        ``options`` of Triton come before those of the launch.
        """
        self.driver.architecture = architecture
        self.options = options
        self.launches.clear()
        case.run()
        found = {}
        for name, compiled in reversed(self.launches):
            name = f"{name}, {case.words}>" if case.words else f"{name}>"
            if isinstance(compiled, str):
                found[name] = Kernel(name, architecture, error=compiled)
            else:
                found[compiled.hash] = self._inspect(name, compiled)
        return found

    def _inspect(self, name: str, compiled: Any) -> Kernel:
        if compiled.hash not in self.read:
            self.read[compiled.hash] = _read(compiled.asm["cubin"])
        read = self.read[compiled.hash]
        return Kernel(
            name=name,
            architecture=self.driver.architecture,
            registers=read.registers,
            shared=compiled.metadata.shared,
            stack=read.stack,
            spills=read.spills,
            fma=read.fma,
            threads=32 * compiled.metadata.num_warps,
            flushes=len(re.findall(r"^\s.*\.ftz\b", compiled.asm["ptx"], re.MULTILINE)),
        )


def _cause(error: BaseException) -> str:
    """A line of what was raised first: Triton has an error for every function around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [repr(error)]
    return [*lines[-1:], *(line for line in lines if re.search("[Ee]rror|fatal", line))][-1]


def _describe(name: str, arguments: Mapping[str, Any]) -> str:
    pointers = (f"{p}_ptr" for p in ("input", "out", "grad_out", "x", "i_jump", "sums"))
    pointer = next(arguments[p] for p in pointers if arguments.get(p) is not None)
    tensor = next(t for t in pointer if t is not None) if isinstance(pointer, tuple) else pointer
    words = [str(tensor.dtype).removeprefix("torch.")]
    words += [arguments["METHOD"]] if "METHOD" in arguments else []
    words += [f"smooth {arguments['SMOOTH']}"] if arguments.get("SMOOTH") else []
    words += [_count(arguments[n], "step") for n in ("CHUNK", "SEGMENT") if n in arguments]
    words += [" x ".join(str(arguments[n]) for n in ("ROWS", "BLOCK") if n in arguments)]
    words += [_count(arguments["num_warps"], "warp")]
    words += ["masked"] if arguments.get("EVEN") is False else []
    words += ["adds"] if arguments.get("ADD_TO_SUMS") else []
    return f"{name}<{', '.join(words)}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _read(binary: bytes) -> cuda_binary.Kernel:
    tool = cuda_binary.find_tool("cuobjdump")
    if tool is None:
        sys.exit("cuobjdump comes with Triton for NVIDIA, with nvcc, or in nvidia-cuda-cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary)
        command = [tool, "-res-usage", "-sass", path]
        result = subprocess.run(command, capture_output=True, text=True)
    read = list(cuda_binary.parse(result.stdout.splitlines()))
    if len(read) != 1 or result.returncode:
        sys.exit(f"{tool} cannot read what Triton compiled: {result.stderr or result.stdout}")
    return read[0]


def _version() -> tuple[int, ...]:
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2]))


@functools.cache
def _compiler() -> Compiler:
    return Compiler()


def _compile(case: Case, architecture: str) -> dict[str, Kernel]:
    return _compiler().compile(case, architecture)


def kernel_names() -> set[str]:
    """The kernels of the backend."""
    from triton.runtime.jit import JITFunction

    from fused_lif.backends import triton as package

    modules = (
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    )
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }


def compile_all(tasks: list[tuple[Case, str]]) -> list[Kernel]:
    """All different kernels of the cases, in two processes."""
    found: dict[tuple[str, str], Kernel] = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for (_, architecture), kernels in zip(tasks, pool.map(_compile, *zip(*tasks))):
            for key, kernel in kernels.items():
                found.setdefault((architecture, key), kernel)
    names = [a for a in MULTIPROCESSORS if any(a == architecture for _, architecture in tasks)]
    return sorted(found.values(), key=lambda k: (names.index(k.architecture), k.name.split("<")[0]))


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """Triton compiles, and all anew, unless TRITON_CACHE_DIR says where it has."""
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TRITON_CACHE_DIR", folder)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", default=list(MULTIPROCESSORS))
    parser.add_argument("--words", default="", help="only the cases with these words")
    arguments = parser.parse_args()
    with environment():
        expected = kernel_names()
        for architecture in set(arguments.architectures) & set(_OLDEST_VERSION):
            if _version() < _OLDEST_VERSION[architecture]:
                print(f"not for {architecture}: this version of Triton cannot")
                arguments.architectures.remove(architecture)
        tasks = [
            (case, architecture)
            for architecture in arguments.architectures
            for case in cases(architecture)
            if arguments.words in case.words
        ]
        if not tasks:
            sys.exit("no cases to compile")
        kernels = compile_all(tasks)
    print(cuda_binary.table([kernel for kernel in kernels if not kernel.error]))
    if found := problems(kernels, expected):
        sys.exit("\n" + "\n".join(found))
    print(
        f"{len(kernels)} kernels of {len(tasks)} cases: no local memory, registers within limits, "
        "spikes unfused"
    )


if __name__ == "__main__":
    main()
