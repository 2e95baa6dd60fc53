"""Recurrent layers of any shape, layout, type and options equal the reference."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    METHODS,
    RecurrentCase,
    assert_same_bits,
    fast_backends,
    random_recurrent_case,
    slow_backends,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_property import BACKEND_FIXTURE

from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    batch = draw(st.lists(st.sampled_from([1, 2, 3, 5]), max_size=2))
    sizes = st.sampled_from([1, 2, 7, 16, 33, 70])
    shape = (draw(st.sampled_from([1, 2, 7, 33])), *batch, draw(sizes), draw(sizes))
    step = (*batch, shape[-1])
    keep = draw(st.lists(st.booleans(), min_size=len(step), max_size=len(step)))
    constant_shape = [n if k else 1 for n, k in zip(step, keep)]
    while constant_shape and constant_shape[0] == 1 and draw(st.booleans()):
        constant_shape = constant_shape[1:]
    case = random_recurrent_case(
        shape,
        dtype,
        density=draw(st.sampled_from([0.0, 0.02, 0.3, 1.0])),
        recurrent_mean=draw(st.sampled_from([-0.2, -0.05, 0.05])),
        constant_shape=constant_shape,
        weight_dtype=draw(st.sampled_from([None, torch.float32, torch.float64, torch.bfloat16])),
        seed=draw(st.integers(0, 2**31)),
        reset=draw(st.sampled_from(["hard", "soft"])),
        detach_reset=draw(st.booleans()),
        autapses=draw(st.booleans()),
        method=draw(st.sampled_from(METHODS)),
        record_states=draw(st.booleans()),
    )
    x = case.x.detach()
    if draw(st.booleans()):  # numbers that are no spikes: multiples of 1/8
        x = x * (torch.randn(x.shape) * 8).round().to(dtype) / 8
    if draw(st.booleans()):  # another order of the dimensions in memory
        order = draw(st.permutations(range(x.dim())))
        x = x.permute(order).contiguous().permute(sorted(range(x.dim()), key=order.__getitem__))
    z = case.z.detach()
    if draw(st.booleans()):
        z = (z > 0.3).to(z.dtype)
    return case._replace(x=x.requires_grad_(), z=z.requires_grad_())


@fast_backends
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases())
def test_equals_reference(case: RecurrentCase, backend):
    check_equal_to_reference(case, backend)


@slow_backends
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases())
def test_few_equal_reference(case: RecurrentCase, backend):
    check_equal_to_reference(case, backend)


def check_equal_to_reference(case, backend):
    for name, a, e in zip(("spikes", "v", "i"), case.run(backend), case.run("reference")):
        assert_same_bits(a, e, name)


@fast_backends
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_gradients_equal_reference(case: RecurrentCase, seed, backend):
    check_gradients(case, seed, backend)


@slow_backends
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=BACKEND_FIXTURE)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_gradients_of_few_equal_reference(case: RecurrentCase, seed, backend):
    check_gradients(case, seed, backend)


def check_gradients(case, seed, backend):
    """The limits are wide: gradients of some of these layers grow from step to step."""
    inputs, results = case.inputs(), []
    for each in (backend, "reference"):
        outputs = case.run(each)
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
        results.append(
            torch.autograd.grad(
                outputs, list(inputs.values()), weights, allow_unused=True, materialize_grads=True
            )
        )
    if not all(g.isfinite().all() for g in results[1]):
        return  # overflow of a half type: compared by their spikes and states
    limits = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
    for name, a, e in zip(inputs, *results):
        assert a.shape == e.shape
        limit = max(limits[case.x.dtype], limits[e.dtype])
        scale = max(1.0, e.double().abs().max().item())
        assert ((a.double() - e.double()).abs() <= limit * scale).all(), name
