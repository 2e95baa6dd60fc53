"""Inputs, tolerances and comparisons shared by all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from cuda_emulator import emulator
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fused_lif
from fused_lif import LIFFeedForwardState, LIFParameters, LIFState, LIParameters, LIState
from fused_lif.backends import native, triton
from fused_lif.functional.lif import lif_current_encoder_integral
from fused_lif.surrogate import SURROGATES

# ---- backends ----

#: What computes besides the reference. ``emulated`` are the kernels of ``cuda`` on the CPU; where
#: there is no GPU, those of ``triton`` are interpreted on the CPU.
BACKENDS = ("cpu", "emulated", "cuda", "triton")

#: Where recurrent layers take some sums over neurons by matrix products, in an order of their own:
#: in float64, for few steps, for large layers. The others are in ascending order, as on the CPU.
MATRIX_PRODUCTS = ("emulated", "cuda", "triton")

#: For tests of the backend ``cuda`` on a GPU.
DEVICE = "cuda"

#: Runs a test that takes ``backend`` (conftest.py) with the reference too.
all_backends = pytest.mark.parametrize("backend", [*BACKENDS, "reference"], indirect=True)


#: For tests of hundreds of examples: Triton's interpreter takes too long; and a few for that.
IS_SLOW = {b: b == "triton" and triton.IS_INTERPRETED for b in BACKENDS}
fast_backends = pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if not IS_SLOW[b]], indirect=True
)
slow_backends = pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if IS_SLOW[b]], indirect=True
)


def why_not(backend: str) -> str | None:
    """Says why a backend cannot run on this machine; ``None`` if it can."""
    if backend == "emulated":
        return emulator.unavailable()
    if backend == "cuda":
        reasons = native.CUDA.unavailable() or native._reasons_against_device(0)
        return "; ".join(reasons) or None
    if backend == "triton":
        return "; ".join(triton.TRITON.unavailable()) or None
    return None


@contextmanager
def running(backend: str) -> Iterator[str]:
    """Skips the test if the backend cannot run; within it, ``call`` takes it."""
    if reason := why_not(backend):
        pytest.skip(reason)
    if backend == "emulated":
        with emulator.load().as_backend():
            yield backend
    elif backend == "triton" and triton.IS_INTERPRETED:
        import triton_interpreter  # needs Triton

        with triton_interpreter.mended():
            yield backend
    else:
        yield backend


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Runs the kernels of one instruction set of the CPU; skips the test without it."""
    _C = native._C
    if name not in _C.supported_cpu_capabilities():
        pytest.skip(f"this machine has no {name}")
    before = _C.cpu_capability()
    _C.set_cpu_capability(name)
    try:
        yield
    finally:
        _C.set_cpu_capability(before)


class _Moved(torch.autograd.Function):
    """A tensor on another device, with its strides, its alignment and what lies between."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, device: torch.device) -> Tensor:
        ctx.device = t.device
        elements = t.untyped_storage().nbytes() // t.element_size()
        memory = t.detach().as_strided((elements,), (1,), 0).to(device, copy=True)
        return memory.as_strided(t.shape, t.stride(), t.storage_offset())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Moved.apply(grad, ctx.device), None


def moved(tree: Any, device: str) -> Any:
    """Moves tensors as they lie in memory; their gradients go the way back."""
    return tree_map_only(Tensor, lambda t: _Moved.apply(t, torch.device(device)), tree)


def call(function: Callable[..., Any], *arguments: Any, backend: str | None, **options: Any) -> Any:
    """Calls a public function with a backend. Arguments and results are on the CPU."""
    if backend == "cuda" or (backend == "triton" and not triton.IS_INTERPRETED):
        results = function(*moved(arguments, DEVICE), backend=backend, **options)
        return moved(results, "cpu")
    if backend == "emulated":
        assert native.OPERATORS[0] is not torch.ops.fused_lif.lif_forward.default, "not running"
        backend = "cpu"
    return function(*arguments, backend=backend, **options)


# ---- cases ----


class Tolerance(NamedTuple):
    """Limits of CONTRIBUTING.md, "Numbers"; about ten times the largest difference measured."""

    state: float  # max abs(a - b) / max(1, max abs(b))
    grad: float  # per time step: max abs(a - b) / max abs(b)
    grad_sum: float  # gradients of constants: abs(a - b) / sum of abs of what is summed


TOLERANCE = {
    torch.float64: Tolerance(1e-14, 1e-14, 1e-14),
    torch.float32: Tolerance(1e-6, 2e-6, 2e-6),
    torch.float16: Tolerance(1e-6, 1e-3, 1e-3),
    torch.bfloat16: Tolerance(1e-6, 4e-3, 4e-3),
}

NEURONS = ("lif", "li", "encoder")
METHODS = tuple(SURROGATES)
CONSTANTS = ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")


class Case(NamedTuple):
    """One call: a neuron, its arguments as leaves that require gradients, and its options."""

    neuron: str
    x: Tensor
    v: Tensor
    i: Tensor
    constants: tuple[Tensor, ...]  # in the order of CONSTANTS
    alpha: Tensor
    options: dict[str, Any]

    def run(self, backend: str | None) -> tuple[Tensor, ...]:
        """Returns spikes (or potentials) and states."""
        options = {"backend": backend, **self.options}
        if self.neuron == "li":
            p, state = LIParameters(*self.constants[:3]), LIState(self.v, self.i)
            out, s = call(fused_lif.li_feed_forward_integral, self.x, state, p, **options)
            return out, s.v, s.i
        method = options.pop("method", "super")
        p = LIFParameters(*self.constants, method=method, alpha=self.alpha)
        if self.neuron == "encoder":
            return call(lif_current_encoder_integral, self.x, self.v, p, **options)
        state = LIFFeedForwardState(self.v, self.i)
        out, s = call(fused_lif.lif_feed_forward_integral, self.x, state, p, **options)
        return out, s.v, s.i

    def inputs(self) -> dict[str, Tensor]:
        """Tensors that the outputs depend on, by name."""
        named = {"x": self.x, "v": self.v, "i": self.i, **dict(zip(CONSTANTS, self.constants))}
        unused = {"lif": (), "li": ("v_th", "v_reset"), "encoder": ("i", "tau_syn_inv")}
        return {k: t for k, t in named.items() if k not in unused[self.neuron]}

    def to(self, dtype: torch.dtype) -> Case:
        """Returns the same case with all tensors in another dtype."""

        def convert(t: Tensor) -> Tensor:
            return t.detach().to(dtype).requires_grad_()

        constants = tuple(map(convert, self.constants))
        return self._replace(
            x=convert(self.x),
            v=convert(self.v),
            i=convert(self.i),
            constants=constants,
            alpha=self.alpha.to(dtype),
        )


def random_case(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    neuron: str = "lif",
    *,
    constant_shape: Sequence[int] | None = None,
    alpha: float = 3.0,
    seed: int = 0,
    **options: Any,
) -> Case:
    """A case of shape ``[T, *step]`` whose neurons spike now and then.

    Numbers are drawn in float64 and rounded, so that all dtypes get the same ones. States are
    float32 for half types. Constants have the shape ``constant_shape``, by default one per neuron.
    """
    generator = torch.Generator().manual_seed(seed)
    step = tuple(shape[1:])
    per_neuron = step[-1:] if constant_shape is None else tuple(constant_shape)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(size: Sequence[int], mean: float, std: float, of: torch.dtype) -> Tensor:
        values = mean + std * torch.randn(tuple(size), generator=generator, dtype=torch.float64)
        return values.to(of).requires_grad_()

    return Case(
        neuron,
        normal(shape, 0.5 if neuron != "encoder" else 0.8, 0.5, dtype),
        normal(step, 0.0, 0.2, state_dtype),
        normal(step, 0.0, 0.2, state_dtype),
        (
            normal(per_neuron, 200.0, 20.0, state_dtype),
            normal(per_neuron, 120.0, 10.0, state_dtype),
            normal(per_neuron, 0.0, 0.1, state_dtype),
            normal(per_neuron, 0.6, 0.1, state_dtype),
            normal(per_neuron, 0.0, 0.1, state_dtype),
        ),
        torch.tensor(alpha, dtype=state_dtype),
        options,
    )


class RecurrentCase(NamedTuple):
    """One call of a layer with recurrent connections, like a ``Case``."""

    x: Tensor
    z: Tensor
    v: Tensor
    i: Tensor
    input_weights: Tensor
    recurrent_weights: Tensor
    constants: tuple[Tensor, ...]  # in the order of CONSTANTS
    alpha: Tensor
    options: dict[str, Any]

    def parameters(self) -> LIFParameters:
        """Constants as the functions take them."""
        method = self.options.get("method", "super")
        return LIFParameters(*self.constants, method=method, alpha=self.alpha)

    def run(self, backend: str | None) -> tuple[Tensor, ...]:
        """Returns spikes, potentials and currents; the spikes in the state are the last ones."""
        options = {k: o for k, o in self.options.items() if k != "method"}
        out, s = call(
            fused_lif.lif_step_integral,
            self.x,
            LIFState(self.z, self.v, self.i),
            self.input_weights,
            self.recurrent_weights,
            self.parameters(),
            backend=backend,
            **options,
        )
        assert torch.equal(s.z, out if options.get("record_states") else out[-1])
        return out, s.v, s.i

    def inputs(self) -> dict[str, Tensor]:
        """Tensors that the outputs depend on, by name."""
        return {**dict(zip(self._fields[:6], self)), **dict(zip(CONSTANTS, self.constants))}

    def to(self, dtype: torch.dtype) -> RecurrentCase:
        """Returns the same case with all tensors in another dtype."""

        def convert(t: Tensor) -> Tensor:
            return t.detach().to(dtype).requires_grad_()

        constants, alpha = tuple(map(convert, self.constants)), self.alpha.to(dtype)
        return RecurrentCase(*map(convert, self[:6]), constants, alpha, self.options)


def random_recurrent_case(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    exact_sums: bool = True,
    recurrent_mean: float = -0.05,
    density: float = 0.3,
    constant_shape: Sequence[int] | None = None,
    weight_dtype: torch.dtype | None = None,
    alpha: float = 3.0,
    seed: int = 0,
    **options: Any,
) -> RecurrentCase:
    """A case of input ``[T, *batch, I]`` and H neurons, for the shape ``(T, *batch, I, H)``.

    Inputs are spikes; ``z`` is not. With ``exact_sums`` weights are multiples of 1/256, which all
    dtypes represent, and ``z`` of 1/4: sums over them are exact, so their order does not matter.
    """
    generator = torch.Generator().manual_seed(seed)
    *sequence, features, hidden = shape
    step = (*sequence[1:], hidden)
    per_neuron = step[-1:] if constant_shape is None else tuple(constant_shape)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def leaf(t: Tensor, of: torch.dtype) -> Tensor:
        return t.to(of).requires_grad_()

    def normal(size: Sequence[int], mean: float, std: float, grid: int = 0) -> Tensor:
        t = mean + std * torch.randn(tuple(size), generator=generator, dtype=torch.float64)
        return (t * grid).round() / grid if grid else t

    def weights(columns: int, mean: float) -> Tensor:
        t = normal((hidden, columns), mean, 0.2, 256 if exact_sums else 0).clamp(-0.5, 0.5)
        return leaf(t, weight_dtype or state_dtype)

    x = torch.rand((*sequence, features), generator=generator, dtype=torch.float64) < density
    return RecurrentCase(
        leaf(x, dtype),
        leaf(normal(step, 0.3, 0.5, 4), state_dtype),
        leaf(normal(step, 0.0, 0.2), state_dtype),
        leaf(normal(step, 0.0, 0.2), state_dtype),
        weights(features, 0.05),
        weights(hidden, recurrent_mean),
        (
            leaf(normal(per_neuron, 200.0, 20.0), state_dtype),
            leaf(normal(per_neuron, 300.0, 20.0), state_dtype),
            leaf(normal(per_neuron, 0.1, 0.1), state_dtype),
            leaf(normal(per_neuron, 0.4, 0.1), state_dtype),
            leaf(normal(per_neuron, 0.0, 0.1), state_dtype),
        ),
        torch.tensor(alpha, dtype=state_dtype),
        options,
    )


def gradients(
    case: Case | RecurrentCase, backend: str | None, weight_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Gradients of a loss that looks at all outputs with random weights.

    The weights of spikes are first rounded to ``weight_dtype``, by default that of the input.
    """
    outputs = case.run(backend)
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs
    ]
    weights[0] = weights[0].to(weight_dtype or case.x.dtype).to(outputs[0].dtype)
    inputs = case.inputs()
    grads = torch.autograd.grad(
        outputs, list(inputs.values()), weights, allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, grads))


def assert_same_bits(actual: Tensor, expected: Tensor, name: str = "tensor") -> None:
    """Equal as numbers, NaN where NaN is expected, and of the same dtype and shape."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: {actual.shape} instead of {expected.shape}"
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert same.all(), (
        f"{name} differs in {int((~same).sum())} of {same.numel()} places; first at "
        f"{(~same).nonzero()[0].tolist()}: {actual[~same][0]} instead of {expected[~same][0]}"
    )


def assert_grad_close(actual: Tensor, expected: Tensor, limit: float, name: str) -> None:
    """Compares the gradient of a sequence step by step: it shrinks a million times on the way."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return
    difference = (actual.double() - expected.double()).abs().flatten(1).amax(1)
    scale = expected.double().abs().flatten(1).amax(1).clamp(min=1e-300)
    worst = (difference / scale).max().item()
    assert worst <= limit, f"gradient of {name} is off by {worst:.1e} of its size, limit {limit}"


def assert_all_grads_close(
    case: Case | RecurrentCase,
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    per_element: dict[str, Tensor],
    tolerance: Tolerance,
) -> None:
    """Compares gradients of all inputs.

    ``per_element`` has the gradients for one value of a constant per neuron and batch row: what is
    summed for fewer values. Sums cancel, so errors are measured against the sum of the sizes, the
    largest of all values.
    """
    assert actual.keys() == expected.keys()
    for name, a in actual.items():
        b = expected[name]
        if name in CONSTANTS:
            assert a.shape == b.shape
            if a.numel() == 0 or per_element[name].numel() == 0:
                assert not a.any()
                continue
            size = per_element[name].double().abs().sum_to_size(b.shape).max().clamp(min=1e-300)
            worst = ((a.double() - b.double()).abs().max() / size).item()
            limit = tolerance.grad_sum
            assert worst <= limit, f"gradient of {name} is off by {worst:.1e}, limit {limit}"
        else:
            steps = a if name == "x" else a.unsqueeze(0)
            assert_grad_close(steps, b if name == "x" else b.unsqueeze(0), tolerance.grad, name)
