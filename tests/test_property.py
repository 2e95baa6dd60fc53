"""Backends equal the reference for random shapes, layouts, constants, values up to NaN and inf."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import METHODS, Case, assert_same_bits, fast_backends, slow_backends
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

VALUES = {
    "moderate": [0.0, -0.0, 0.3, -0.7, 1.0, 2.5, -4.0],
    "large": [1e30, -1e30, 3e38, -3e38, 1e300, 1.0, 0.0],
    "not finite": [math.nan, math.inf, -math.inf, 1.0, 0.5],
    # Products of these stay normal: denormals are compared by their own tests.
    "small": [1e-15, -1e-15, 1e-10, 0.0, 1.0],
}


# The fixture `backend` holds for all examples of a test.
BACKEND_FIXTURE = [HealthCheck.function_scoped_fixture]


@st.composite
def cases(draw):
    neuron = draw(st.sampled_from(["lif", "li", "encoder"]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    step = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 17, 70]), max_size=3)))
    if math.prod(step) > 3000:
        step = step[:1]
    shape = (draw(st.sampled_from([1, 2, 7, 8, 33, 65])), *step)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(list(VALUES)))

    def values(size, of, choices=VALUES[kind]):
        table = torch.tensor(choices, dtype=torch.float64)
        picks = torch.randint(len(choices), tuple(size), generator=generator)
        smooth = torch.rand(tuple(size), generator=generator, dtype=torch.float64)
        return (table[picks] * (0.5 + smooth)).to(of)

    def constant(low, high):
        keep = draw(st.lists(st.booleans(), min_size=len(step), max_size=len(step)))
        size = [n if k else 1 for n, k in zip(step, keep)]
        while size and size[0] == 1 and draw(st.booleans()):
            size = size[1:]
        uniform = torch.rand(tuple(size), generator=generator, dtype=torch.float64)
        value = low + (high - low) * uniform
        if kind in ("large", "not finite") and draw(st.booleans()):
            value = torch.where(uniform < 0.2, values(size, torch.float64).double(), value)
        of = draw(st.sampled_from([state_dtype, torch.float32, torch.float64, torch.bfloat16]))
        return value.to(of)

    x = values(shape, dtype)
    if len(step) and draw(st.booleans()):  # another order of the dimensions in memory
        order = draw(st.permutations(range(len(shape))))
        x = x.permute(order).contiguous().permute(sorted(range(len(order)), key=order.__getitem__))
    constants = (
        constant(0.0, 1500.0),
        constant(0.0, 1500.0),
        constant(-0.5, 0.5),
        constant(0.1, 1.5),
        constant(-0.5, 0.1),
    )
    options = (
        {}
        if neuron != "lif"
        else {
            "reset": draw(st.sampled_from(["hard", "soft"])),
            "detach_reset": draw(st.booleans()),
            "method": draw(st.sampled_from(METHODS)),
            "record_states": draw(st.booleans()),
        }
    )
    alpha = torch.tensor(draw(st.sampled_from([1.0, 5.0])), dtype=state_dtype)
    v, i = values(step, state_dtype), values(step, state_dtype)
    return Case(neuron, x, v, i, constants, alpha, options)


@fast_backends
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases())
def test_spikes_and_states(case, backend):
    check_spikes_and_states(case, backend)


@slow_backends
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases())
def test_spikes_and_states_of_few(case, backend):
    check_spikes_and_states(case, backend)


def check_spikes_and_states(case, backend):
    for name, a, e in zip(("out", "v", "i"), case.run(backend), case.run("reference")):
        assert_same_bits(a, e, name)


@fast_backends
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_gradients(case, seed, backend):
    check_gradients(case, seed, backend)


@slow_backends
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_gradients_of_few(case, seed, backend):
    check_gradients(case, seed, backend)


def check_gradients(case, seed, backend):
    """Gradients agree where they are finite and moderate.

    The limits are wide: these constants make some neurons unstable, which amplifies rounding.
    """
    case = case._replace(
        x=case.x.detach().requires_grad_(),
        v=case.v.requires_grad_(),
        i=case.i.requires_grad_(),
        constants=tuple(c.requires_grad_() for c in case.constants),
    )
    inputs = case.inputs()
    results = []
    for each in (backend, "reference"):
        outputs = case.run(each)
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
        results.append(
            torch.autograd.grad(
                outputs, list(inputs.values()), weights, allow_unused=True, materialize_grads=True
            )
        )
    if (
        not all(g.isfinite().all() for g in results[1])
        or max((g.abs().max().item() for g in results[1] if g.numel()), default=0.0) > 1e6
    ):
        return  # overflow and cancellation: compared by their spikes and states
    limits = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
    for name, a, e in zip(inputs, *results):
        assert a.shape == e.shape
        limit = max(limits[case.x.dtype], limits[e.dtype])
        scale = max(1.0, e.double().abs().max().item()) if e.numel() else 1.0
        assert ((a.double() - e.double()).abs() <= limit * scale).all(), name
