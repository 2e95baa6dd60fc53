"""The CUDA kernels and operators on the CPU: what the tests of all backends do not reach.

They run in ``cuda_emulator``: every width of the kernels, any layout, the sums of the gradients of
constants, any order of threads, and each wait taken out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from cuda_emulator import build, emulator
from cuda_emulator.control import SCHEDULES
from helpers import (
    CONSTANTS,
    NEURONS,
    TOLERANCE,
    assert_all_grads_close,
    assert_same_bits,
    call,
    gradients,
    random_case,
    random_recurrent_case,
    running,
)
from test_lif_backward import check as check_gradients
from test_recurrent_backward import check as check_recurrent_gradients
from test_recurrent_forward import run_as_promised, with_binary_spikes

from fused_lif import LIFParameters, LIFState, lif_step_integral
from fused_lif.backends import native
from fused_lif.types import Neuron

pytestmark = pytest.mark.skipif(
    emulator.unavailable() is not None, reason=str(emulator.unavailable())
)

HALVES = (torch.float16, torch.bfloat16)
cpu = torch.ops.fused_lif


@pytest.fixture(autouse=True)
def emulated():
    """The emulator; all tests of this file run with its operators."""
    with running("emulated"):
        yield emulator.load()


@pytest.fixture
def cuda(emulated):
    return torch.ops.fused_lif_emulated


def check_spikes(case):
    for name, a, e in zip(("out", "v", "i"), case.run("emulated"), case.run("reference")):
        assert_same_bits(a, e, name)


def check(case):
    """Compares outputs and gradients with those of the reference."""
    check_spikes(case)
    check_gradients(case, "emulated")


def with_input(case, x):
    """The case with a view of the same numbers as input."""
    assert torch.equal(x, case.x)
    return case._replace(x=x.detach().requires_grad_())


def at_offset(t, elements):
    """The same tensor, some elements behind the beginning of its memory."""
    memory = torch.empty(t.numel() + elements, dtype=t.dtype)
    return memory[elements:].view(t.shape).copy_(t.detach())


# ---- widths: plan.h chooses the columns per thread ----


@pytest.mark.parametrize(
    ("dtype", "columns", "forward", "backward"),
    [
        (torch.float64, 600, 1, 1),
        (torch.float32, 512, 4, 2),
        (torch.float32, 508, 1, 2),
        (torch.float32, 514, 1, 2),
        (torch.float32, 515, 1, 1),
        *(
            (half, *columns)
            for half in HALVES
            for columns in [
                (1024, 8, 4),
                (1020, 2, 4),
                (1026, 2, 2),
                (516, 2, 4),
                (510, 2, 2),
                (1027, 1, 1),
                (31, 1, 1),
            ]
        ),
    ],
    ids=str,
)
def test_every_width(dtype, columns, forward, backward, emulated):
    """One to eight columns per thread, forward and backward."""

    def planned(is_backward):
        plan = native._C.cuda_sequence_plan(is_backward, columns, dtype.itemsize, 0, False, 1)
        return plan[0]

    assert (planned(False), planned(True)) == (forward, backward)
    with emulated.device(multiprocessors=1):
        for neuron in NEURONS:
            check(random_case((35, columns), dtype, neuron))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{"reset": "soft"}, {"record_states": True}], ids=str)
def test_wide_kernels_with_options(options, dtype, emulated):
    with emulated.device(multiprocessors=1):
        check(random_case((35, 2, 512), dtype, **options))


@pytest.mark.parametrize("multiprocessors", [1, 2, 7, 1000])
def test_any_number_of_multiprocessors(multiprocessors, emulated):
    """Blocks of 32 to 128 threads; the last one of them is not full."""
    with emulated.device(multiprocessors=multiprocessors):
        check(random_case((5, 3, 1004)))


@pytest.mark.parametrize(
    ("columns", "constant_shape"),
    [(512, (2, 1)), (516, (4, 129)), (520, (260, 2)), (516, (172, 3))],
)
def test_constants_that_a_pack_cannot_share(columns, constant_shape, emulated):
    """Wide kernels take constants that are the same, or adjacent, for all columns of a thread."""
    size, inner = constant_shape
    step = (size, columns // size) if inner == 1 else (columns // inner // 4, 4, inner)
    constants = (size, 1) if inner == 1 else (4, 1) if inner % 2 else (inner,)
    with emulated.device(multiprocessors=1):
        for dtype in (torch.float32, torch.bfloat16):
            case = random_case((9, *step), dtype, constant_shape=constants)
            check(case)


# ---- layouts ----


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_misaligned_input(dtype, elements, emulated):
    with emulated.device(multiprocessors=1):
        case = random_case((35, 2, 512), dtype)
        check(with_input(case, at_offset(case.x, elements)))


@pytest.mark.parametrize("elements", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_misaligned_gradient_state_and_constants(dtype, elements, emulated):
    case = random_case((35, 2, 512), dtype)
    outputs = [torch.randn(case.x.shape).to(dtype), torch.randn(2, 512), torch.randn(2, 512)]
    moved = [at_offset(g, elements) for g in outputs]
    other = case._replace(
        v=at_offset(case.v, elements).requires_grad_(),
        i=at_offset(case.i, elements).requires_grad_(),
        constants=tuple(at_offset(c, elements).requires_grad_() for c in case.constants),
    )
    with emulated.device(multiprocessors=1):
        expected = torch.autograd.grad(case.run("emulated"), case.inputs().values(), outputs)
        actual = torch.autograd.grad(other.run("emulated"), other.inputs().values(), moved)
    for name, a, e in zip(case.inputs(), actual, expected):
        assert_same_bits(a, e, name)


@pytest.mark.parametrize("neurons", [64, 68, 66, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_first(neurons, dtype, emulated):
    """Rows of at least 64 neurons are read where they lie."""
    case = random_case((35, 16, neurons), dtype)
    view = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    with emulated.device(multiprocessors=1):
        check(with_input(case, view))
        # The gradient of the output, too.
        weights = torch.randn(16, 35, neurons).to(dtype).transpose(0, 1)
        out, *_ = case.run("emulated")
        a = torch.autograd.grad(out, case.x, weights, retain_graph=True)
        e = torch.autograd.grad(out, case.x, weights.contiguous())
        assert_same_bits(*a, *e)


@pytest.mark.parametrize(
    ("neurons", "stride_row", "stride_t"),
    [(66, 35 * 72, 72), (64, 67, 16 * 67), (64, 66, 16 * 66), (64, 2242, 64), (72, 80, 1281)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_with_gaps(neurons, stride_row, stride_t, dtype, emulated):
    """One of the sizes that decide does not allow a wide access; all others do."""
    case = random_case((35, 16, neurons), dtype, constant_shape=())
    strides = (stride_t, stride_row, 1)
    memory = torch.full((34 * stride_t + 15 * stride_row + neurons,), float("nan"), dtype=dtype)
    with emulated.device(multiprocessors=1):
        x = memory.as_strided(case.x.shape, strides).copy_(case.x.detach())
        check(with_input(case, x.detach()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("expanded", ["time", "batch", "time and batch", "all"])
def test_expanded_input_and_gradient(expanded, dtype, emulated):
    T, B, N = 35, 8, 128
    row = random_case((T, B, N), dtype)
    sizes = {
        "time": (1, B, N),
        "batch": (T, 1, N),
        "time and batch": (1, 1, N),
        "all": (1, 1, 1),
    }[expanded]
    x = row.x.detach()[tuple(slice(n) for n in sizes)].expand(T, B, N)
    case = row._replace(x=x.contiguous().requires_grad_())
    with emulated.device(multiprocessors=1):
        check(case)
        expected = case.run("emulated")
        outputs = with_input(case, x).run("emulated")
        for a, e in zip(outputs, expected):
            assert_same_bits(a, e)
        weights = torch.randn(sizes).to(dtype).expand(T, B, N)
        (a,) = torch.autograd.grad(expected[0], case.v, weights, retain_graph=True)
        (e,) = torch.autograd.grad(expected[0], case.v, weights.contiguous())
        assert_same_bits(a, e)


@pytest.mark.parametrize(
    ("T", "strides"),
    [(2, (2**31 + 64, 64, 1)), (34, (2**26 + 64, 64, 1)), (3, (64, 2**31 + 64, 1))],
    ids=["a step", "33 steps", "a row"],
)
def test_offsets_of_more_than_31_bits(T, strides):
    """Most of the memory is never touched."""
    torch.use_deterministic_algorithms(False)  # it would be filled
    case = random_case((T, 2, 64), torch.bfloat16)
    elements = (T - 1) * strides[0] + strides[1] + 1024
    try:
        memory = torch.empty(elements, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no 4 GiB of addresses: {error}")
    x = memory.as_strided(case.x.shape, strides)
    x.copy_(case.x.detach())
    outputs = [torch.randn(o.shape).to(o.dtype) for o in case.run("emulated")]
    weights = memory.as_strided(case.x.shape, strides, 512).copy_(outputs[0])
    results = []
    for input_tensor, of_spikes in ((case.x.detach(), outputs[0]), (x, weights)):
        inputs = (torch.ops.fused_lif_emulated, input_tensor, case)
        results.append(run_operators(*inputs, 32, grads=(of_spikes, *outputs[1:], None)))
    for a, e in zip(*results):
        assert_same_bits(a, e)


# ---- constants ----


@pytest.mark.parametrize(
    ("step", "constant_shape"),
    [
        ((3, 5), ()),
        ((3, 5), (1, 1)),
        ((3, 5), (5,)),
        ((3, 5), (3, 1)),
        ((3, 5), (3, 5)),
        ((40, 3), (3,)),  # a lane for each of them
        ((300, 40), (40,)),
        ((300, 40), (300, 1)),
        ((2, 4, 5, 6), (4, 1, 1)),
        ((2, 4, 5, 6), (4, 1, 6)),
        ((2, 4, 5, 6), (2, 1, 5, 1)),
        ((2, 1, 5, 6), (2, 1, 5, 1)),  # one group: the dimension between is of size one
        ((2, 3, 4, 5, 6), (2, 1, 4, 1, 6)),
        ((2, 3, 4, 5, 6), (1, 3, 1, 5, 1)),
        ((2, 3, 2, 3, 2, 3, 2), (2, 1, 2, 1, 2, 1, 2)),
        ((2, 3, 2, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 1, 2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_constants_broadcast(step, constant_shape, dtype):
    check(random_case((5, *step), dtype, constant_shape=constant_shape))


@pytest.mark.parametrize("constant_shape", [(), (6,), (2, 1, 4, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("recurrent", [False, True], ids=["sequence", "recurrent"])
def test_constants_of_any_dtype(dtype, constant_shape, recurrent):
    """They are read as they are, and their gradients rounded once."""
    shape = (9, 2, 3, 4, 5, 6)
    if recurrent:
        case = random_recurrent_case((*shape[:-1], 7, 6), constant_shape=constant_shape)
    else:
        case = random_case(shape, constant_shape=constant_shape)
    constants = tuple(c.detach().to(dtype).requires_grad_() for c in case.constants)
    case = case._replace(constants=constants)
    check_spikes(case)
    actual = gradients(case, "emulated")
    for name in CONSTANTS:
        assert actual[name].dtype == dtype
    size = shape[1:]
    wide = torch.promote_types(dtype, torch.float32)
    per_element = case._replace(
        constants=tuple(
            c.detach().to(wide).expand(size).clone().requires_grad_() for c in constants
        )
    )
    per_element = gradients(per_element, "reference")
    expected = dict(per_element)
    for name, c in zip(CONSTANTS, constants):
        expected[name] = per_element[name].sum_to_size(c.shape)
    tolerance = TOLERANCE[dtype] if dtype in HALVES else TOLERANCE[torch.float32]
    tolerance = tolerance._replace(grad=2e-6)
    assert_all_grads_close(case, actual, expected, per_element, tolerance)


def test_too_many_groups_of_dimensions():
    shape = (2,) * 9
    constant_shape = (2, 1) * 4 + (2,)
    match = "v_th has more than 4 groups of dimensions between those that it broadcasts over"
    for case in (random_case((3, *shape)), random_recurrent_case((3, *shape[:-1], 5, 2))):
        constants = list(case.constants)
        constants[3] = torch.full(constant_shape, 0.5)
        with pytest.raises(RuntimeError, match=match):
            case._replace(constants=tuple(constants)).run("emulated")
    case = random_case((3, *shape))
    constants = [*(c.detach() for c in case.constants), torch.full(constant_shape, 3.0)]
    alpha = case._replace(constants=tuple(constants[:5]), alpha=constants[5])
    out, *_ = alpha.run("emulated")  # alpha is of the backward alone
    with pytest.raises(RuntimeError, match="alpha has more than 4 groups"):
        out.sum().backward()


@pytest.mark.parametrize("step", [(0, 3), (3, 0), (0,)], ids=str)
def test_no_columns(step):
    """Gradients of constants that the neurons share are zero."""
    for constant_shape in ((), step, step[-1:]):
        case = random_case((5, *step), constant_shape=constant_shape)
        check_spikes(case)
        for name, g in gradients(case, "emulated").items():
            assert g.shape == case.inputs()[name].shape
            assert not g.any(), name


@pytest.mark.parametrize(
    ("step", "constant_shape"),
    [
        ((8192,), ()),  # one block
        ((8193,), ()),
        ((3, 70_001), ()),  # the chunks of a chunk
        ((2**21 + 8196,), ()),  # three launches
        ((3, 40_000), (3, 1)),
        ((256, 40), (40,)),
        ((257, 40), (40,)),
        ((66_000, 8), (8,)),  # three launches
        ((300, 2, 300, 2), (2, 1, 2)),
    ],
    ids=str,
)
def test_sums_over_many_columns(step, constant_shape, emulated):
    """More columns than one block adds up: its sums are added again by the next launch.

    After a single step of an LI the gradient of v_leak is the sum of that of x, taken in float64.
    """
    case = random_case((1, *step), neuron="li", constant_shape=constant_shape)
    with emulated.device(multiprocessors=1):
        out, *_ = case.run("emulated")
        weights = torch.randn(out.shape)
        x, v_leak = torch.autograd.grad(out, [case.x, case.constants[2]], weights)
    terms = x[0].double()
    assert terms.all()
    expected = terms.sum_to_size(constant_shape)
    limit = 2**-24 * expected.abs() + 1e-15 * terms.abs().sum_to_size(constant_shape)
    assert ((v_leak.double() - expected).abs() <= limit).all()


def test_sums_of_every_constant():
    """What a constant per column gets is what a shared one adds up; rates have a factor dt."""
    case = random_case((9, 3, 9000), constant_shape=())
    per_column = case._replace(
        constants=tuple(c.detach().expand(3, 9000).clone().requires_grad_() for c in case.constants)
    )
    actual, columns = gradients(case, "emulated"), gradients(per_column, "emulated")
    for name in CONSTANTS:
        terms = columns[name].double()
        assert terms.any()
        assert (actual[name] - terms.sum()).abs() <= 1e-7 * terms.abs().sum(), name


# ---- operators ----


def operator_arguments(case):
    constants = dict(zip(CONSTANTS, case.constants))
    if case.neuron == "encoder":
        constants["tau_syn_inv"] = None
    if case.neuron == "li":
        constants["v_th"] = constants["v_reset"] = None
    i = None if case.neuron == "encoder" else case.i
    tensors = (case.v, i, *constants.values())
    neuron = {"lif": Neuron.LIF, "li": Neuron.LI, "encoder": Neuron.CURRENT_ENCODER}[case.neuron]
    alpha = None if case.neuron == "li" else case.alpha
    return tensors, alpha, int(neuron), case.options.get("reset") == "soft"


@torch.no_grad()
def run_operators(ops, x, case, interval, *, grads=None, needs=255):
    """Calls lif_forward and lif_backward; returns the results of both."""
    tensors, alpha, neuron, soft = operator_arguments(case)
    forward = ops.lif_forward(x, *tensors, 0.001, neuron, soft, interval)
    if grads is None:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in forward]
        grads = (weights[0], weights[1], None if tensors[1] is None else weights[2], None)
        if interval == 1:
            grads = (*grads[:3], weights[3])
    options = (0.001, neuron, soft, interval, 1, False, needs)
    return *forward, *ops.lif_backward(*grads, x, forward[3], *tensors, alpha, *options)


@torch.no_grad()
def run_recurrent_operators(ops, case, interval, *, grads=None, needs=255):
    soft = case.options.get("reset") == "soft"
    tensors = case[:6]
    forward = ops.lif_recurrent_forward(
        *tensors, *case.constants, 0.001, soft, False, interval, True
    )[:5]
    out, v, i, i_jump, states = forward
    if grads is None:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in (out, v, i)]
        recorded = torch.randn(states.shape, generator=generator).to(v.dtype)
        grads = (*weights, recorded if interval == 1 else None)
    backward = (i_jump, states, case.v, case.recurrent_weights, *case.constants, case.alpha)
    options = (0.001, soft, interval, 1, False, needs)
    return *forward, *ops.lif_recurrent_backward(*grads, *backward, *options)


def assert_close_sequences(actual, expected, dtype):
    """Same shapes and dtypes, and numbers within the limits of gradients."""
    for k, (a, e) in enumerate(zip(actual, expected)):
        assert a.shape == e.shape, k
        assert a.dtype == e.dtype, k
        if e.numel():
            scale = e.double().abs().max().clamp(min=1e-300)
            worst = ((a.double() - e.double()).abs().max() / scale).item()
            assert worst <= 10 * TOLERANCE[dtype].grad, (k, worst)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("interval", [0, 1, 8, 32])
@pytest.mark.parametrize("neuron", NEURONS)
def test_kept_states(T, interval, neuron, cuda):
    if interval == 0 and T > 32:
        return
    case = random_case((T, 3, 7), torch.float64, neuron)
    actual = run_operators(cuda, case.x, case, interval)
    expected = run_operators(cpu, case.x, case, interval)
    for a, e in zip(actual[:4], expected[:4]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[4:], expected[4:], torch.float64)
    if interval in (0, 8):  # the recomputed steps have the same bits
        for a, e in zip(actual[4:], run_operators(cuda, case.x, case, 32)[4:]):
            assert_same_bits(a, e)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("interval", [0, 1, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_kept_states_of_recurrent_layers(T, interval, dtype, cuda):
    if interval == 0 and T > 32:
        return
    case = random_recurrent_case((T, 3, 5, 7), dtype)
    actual = run_recurrent_operators(cuda, case, interval)
    expected = run_recurrent_operators(cpu, case, interval)
    for a, e in zip(actual[:5], expected[:5]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[5:], expected[5:], case.v.dtype)
    if interval in (0, 8):
        for a, e in zip(actual[5:], run_recurrent_operators(cuda, case, 32)[5:]):
            assert_same_bits(a, e)


@pytest.mark.parametrize("shape", [(4, 70), (1, 4, 70)], ids=["no time", "one step"])
def test_a_single_step(shape, cuda):
    case = random_case((1, 4, 70))
    x = case.x.detach().reshape(shape)
    actual, expected = (run_operators(ops, x, case, 0) for ops in (cuda, cpu))
    assert actual[0].shape == x.shape
    for a, e in zip(actual[:4], expected[:4]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[4:], expected[4:], torch.float32)


@pytest.mark.parametrize("given", ["out", "v", "i", "states", "nothing", "out and states"])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("T", [20, 70])
def test_gradients_that_are_not_given_are_zero(given, neuron, T, cuda):
    case = random_case((T, 3, 7), torch.float64, neuron)
    states = torch.randn(1 if neuron == "encoder" else 2, T, 3, 7, dtype=torch.float64)
    named = {
        "out": torch.randn_like(case.x),
        "v": torch.randn_like(case.v),
        "i": None if neuron == "encoder" else torch.randn_like(case.v),
        "states": states,
    }
    names = given.split(" and ")
    grads = tuple(g if name in names else None for name, g in named.items())
    zeros = tuple(
        g if name in names or g is None else torch.zeros_like(g) for name, g in named.items()
    )
    actual = run_operators(cuda, case.x, case, 1, grads=grads)
    for a, e in zip(actual, run_operators(cuda, case.x, case, 1, grads=zeros)):
        assert_same_bits(a, e)
    expected = run_operators(cpu, case.x, case, 1, grads=grads)
    assert_close_sequences(actual, expected, torch.float64)
    if given not in ("nothing", "i"):
        assert actual[4].any()


@pytest.mark.parametrize("given", ["out", "v", "i", "states", "nothing", "out and states"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_recurrent_gradients_that_are_not_given_are_zero(given, dtype, cuda):
    case = random_recurrent_case((40, 3, 5, 7), dtype)
    named = {
        "out": torch.randn(40, 3, 7, dtype=dtype),
        "v": torch.randn_like(case.v),
        "i": torch.randn_like(case.v),
        "states": torch.randn(2, 40, 3, 7, dtype=dtype),
    }
    names = given.split(" and ")
    grads = tuple(g if name in names else None for name, g in named.items())
    actual = run_recurrent_operators(cuda, case, 1, grads=grads)
    expected = run_recurrent_operators(cpu, case, 1, grads=grads)
    assert_close_sequences(actual, expected, dtype)
    assert actual[5].any() == (given != "nothing")


@pytest.mark.parametrize("needs", [0, 255, *(1 << k for k in range(8)), 0b10101001])
@pytest.mark.parametrize("recurrent", [False, True], ids=["sequence", "recurrent"])
def test_only_what_is_needed(needs, recurrent, cuda):
    if recurrent:
        case = random_recurrent_case((40, 3, 5, 7))
        all_of_them = run_recurrent_operators(cuda, case, 32)[5:]
        actual = run_recurrent_operators(cuda, case, 32, needs=needs)[5:]
        assert_same_bits(actual[0], all_of_them[0])  # the gradient of i_jump is always needed
        actual, all_of_them = actual[1:], all_of_them[1:]
    else:
        case = random_case((40, 3, 7))
        all_of_them = run_operators(cuda, case.x, case, 32)[4:]
        actual = run_operators(cuda, case.x, case, 32, needs=needs)[4:]
    for k, (a, e) in enumerate(zip(actual, all_of_them)):
        if needs >> k & 1 or k in (1, 2):  # v and i are always there
            assert_same_bits(a, e)
        else:
            assert a.shape == (0,)


def test_more_time_steps_than_31_bits(cuda):
    case = random_case((1, 1))
    x = case.x.detach().expand(2**31, 1)
    tensors, _, *options = operator_arguments(case)
    with pytest.raises(RuntimeError, match=r"CUDA takes at most \d+ time steps, got 2147483648"):
        cuda.lif_forward(x, *tensors, 0.001, *options, 0)


def test_spikes_are_not_packed(cuda):
    """Recurrent layers keep the spikes themselves: autograd notices if they are changed."""
    case = random_recurrent_case((20, 3, 5, 7))
    *_, input_spikes, spikes = cuda.lif_recurrent_forward(
        *case[:6], *case.constants, 0.001, False, False, 32, True
    )
    assert input_spikes.shape == spikes.shape == (0,)
    grad, words = torch.randn(3, 7), torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="CUDA takes input, not packed spikes"):
        cuda.weight_grad(grad, torch.zeros(3, 5), words, 5)
    with pytest.raises(RuntimeError, match="CUDA takes input, not packed spikes"):
        cuda.weight_grad(grad, None, words, 5)
    z, _ = call(
        lif_step_integral,
        case.x,
        LIFState(case.z, case.v, case.i),
        case.input_weights,
        case.recurrent_weights,
        LIFParameters(),
        backend="emulated",
    )
    z.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("constant_shape", [(), (2, 1, 4, 1), (3, 1, 6)], ids=str)
def test_constants_of_recurrent_layers(constant_shape):
    """The batch has several dimensions; the last one of the step are the neurons."""
    case = random_recurrent_case((9, 2, 3, 4, 5, 6), torch.float64, constant_shape=constant_shape)
    check_spikes(case)
    check_recurrent_gradients(case, "emulated")


# ---- recurrent layers in clusters of blocks ----

# T, batch, I, H: one to eight blocks of 64 neurons, some of them not full.
CLUSTERS = [
    (9, 1, 3, 1),
    (8, 3, 5, 63),
    (20, 17, 5, 64),
    (33, 2, 5, 65),
    (9, 3, 5, 128),
    (9, 5, 5, 129),
    (40, 5, 7, 200),
    (9, 2, 3, 256),
    (9, 2, 3, 257),
    (65, 33, 3, 70),
    (9, 2, 3, 512),
]


def rows_per_cluster(shape, **device):
    T, B, _, H = shape
    device = {"capability": 90, "multiprocessors": 4, "shared_memory": 227 << 10, **device}
    return native._C.cuda_cluster_rows(T, B, H, False, 0, **device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", CLUSTERS, ids=str)
def test_clusters(shape, dtype):
    assert rows_per_cluster(shape) > 0
    case = random_recurrent_case(shape, dtype)
    check_spikes(case)
    check_recurrent_gradients(case, "emulated")


@pytest.mark.parametrize(
    "device",
    [{"capability": 80}, {"shared_memory": 48 << 10}, {"multiprocessors": 132}],
    ids=str,
)
def test_clusters_and_matrix_products_agree(device, emulated):
    shape = (40, 5, 7, 200)
    case = random_recurrent_case(shape, record_states=True)
    expected = case.run("emulated")
    assert (rows_per_cluster(shape, **device) > 0) == ("multiprocessors" in device)
    with emulated.device(**device):
        for a, e in zip(case.run("emulated"), expected):
            assert_same_bits(a, e)
        check_recurrent_gradients(case, "emulated")


@pytest.mark.parametrize("options", [{"reset": "soft"}, {"record_states": True}], ids=str)
@pytest.mark.parametrize("constant_shape", [(), (5, 1), (5, 70)], ids=str)
def test_clusters_with_options(constant_shape, options):
    case = random_recurrent_case((40, 5, 7, 70), constant_shape=constant_shape, **options)
    check_spikes(case)
    check_recurrent_gradients(case, "emulated")


@pytest.mark.parametrize("recurrent_mean", [-0.05, -0.02, 0.01])
@pytest.mark.parametrize("shape", [(20, 3, 70, 150), (20, 3, 300, 50)], ids=str)
def test_sums_are_in_ascending_order(shape, recurrent_mean):
    case = random_recurrent_case(shape, exact_sums=False, recurrent_mean=recurrent_mean)
    case = with_binary_spikes(case)
    expected = run_as_promised(case)
    for a, e in zip(case.run("emulated"), expected):
        assert_same_bits(a, e)
    assert 0.05 < expected[0].mean() < 0.99
    assert not torch.equal(run_as_promised(case, -1)[2], expected[2])


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_recurrent_layers_have_the_bits_of_the_cpu(dtype, density, cuda):
    """For spikes of any density, and weights whose sums are not exact."""
    case = with_binary_spikes(
        random_recurrent_case((33, 10, 140, 90), dtype, exact_sums=False, density=density)
    )
    actual, expected = (run_recurrent_operators(ops, case, 32) for ops in (cuda, cpu))
    assert 0.05 < expected[0].float().mean() < 0.95
    for a, e in zip(actual[:5], expected[:5]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[5:], expected[5:], torch.float32)


@pytest.mark.parametrize("name", ["input_weights", "recurrent_weights"])
@pytest.mark.parametrize("where", [(0, 0), (149, 139), (70, 65)], ids=str)
@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_infinite_weights_of_silent_senders(name, where, weight):
    """Zero times infinity is NaN: then no sender can be left out."""
    case = random_recurrent_case((9, 3, 150, 150), density=0.02)
    case = case._replace(x=case.x.detach().clone(), z=torch.zeros_like(case.z))
    case.x[..., where[1]] = 0
    weights = getattr(case, name).detach().clone()
    weights[where] = weight
    case = case._replace(**{name: weights})
    assert case.run("reference")[1][:, where[0]].isnan().all()
    check_spikes(case)


# ---- any order of threads ----


def all_bits(seed=0):
    """Outputs and gradients of kernels of every kind, with all barriers that there are."""
    cases = [
        random_case((70, 3, 350), torch.float32, constant_shape=(), seed=seed),
        random_case((70, 3, 350), torch.bfloat16, seed=seed),
        random_case((35, 20, 30), torch.float64, "li", constant_shape=(20, 1), seed=seed),
        random_case((35, 9000), torch.float16, "encoder", constant_shape=(), seed=seed),
        random_recurrent_case((40, 3, 10, 35), torch.float64, constant_shape=(), seed=seed),
        random_recurrent_case((40, 5, 10, 200), constant_shape=(), seed=seed),
        random_recurrent_case((9, 5, 300, 70), torch.float16, seed=seed),
    ]
    results = []
    for case in cases:
        results += case.run("emulated")
        results += gradients(case, "emulated").values()
    return results


@pytest.mark.parametrize("schedule", [*SCHEDULES, "random:3"])
def test_every_schedule_has_the_same_bits(schedule, emulated):
    expected = all_bits()
    with emulated.schedule(schedule):
        for a, e in zip(all_bits(), expected):
            assert_same_bits(a, e)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_every_device_has_the_same_bits(multiprocessors, emulated):
    expected = all_bits()
    with emulated.device(multiprocessors=multiprocessors):
        for a, e in zip(all_bits(), expected):
            assert_same_bits(a, e)


def test_gradients_are_deterministic():
    for a, e in zip(all_bits(), all_bits()):
        assert_same_bits(a, e)


#: Kernels in which a wait may be left out here, and why.
HARMLESS = {
    # Shared memory that is not yet written is all ones here, which means that a weight is infinite.
    # That is right for any weights, but slow.
    "find_infinite_kernel",
}


def test_every_wait_is_needed():
    """Without any one of them, results are wrong or a kernel fails, in some order of threads.

    That can also be a crash: it is tried in another process, which goes on behind it.
    """
    sites, found_out = [], []
    while not sites or len(found_out) < len(sites):
        result = subprocess.run(
            [sys.executable, __file__, str(len(found_out))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = result.stdout.splitlines()
        assert lines, result.stderr
        sites = json.loads(lines[0])
        found_out += [line == "found out" for line in lines[1:]]
        if result.returncode != 0:
            # A signal, or what the address sanitizer makes of one.
            assert result.returncode < 0 or "AddressSanitizer" in result.stderr, result.stderr
            found_out.append(True)
    assert {site.split(":")[0] for site in sites} == {
        path.name
        for path in (build.ROOT / "csrc/cuda").glob("*.cu")
        if re.search(r"__syncthreads|barrier_wait|__pipeline_wait_prior", path.read_text())
    }
    survivors = [site for site, found in zip(sites, found_out) if not found]
    assert [site for site in survivors if _kernel_of(site) not in HARMLESS] == []


def _kernel_of(site):
    """Name of the kernel that has the place `file.cu:12 __syncthreads`."""
    file, line = site.split()[0].split(":")
    lines = (build.ROOT / "csrc/cuda" / file).read_text().splitlines()[: int(line)]
    return re.findall(r"(\w+_kernel)\(", "\n".join(lines))[-1]


def _is_found_out(emulated, site, expected):
    for schedule in SCHEDULES:
        with emulated.schedule(schedule), emulated.skipping(site):
            try:
                actual = all_bits()
            except RuntimeError:
                return True
        if not all(torch.equal(a, e) for a, e in zip(actual, expected)):
            return True
    return False


def _try_without_waits(first):
    torch.manual_seed(0)
    with running("emulated"):
        emulated = emulator.load()
        with emulated.sites() as sites:
            expected = all_bits()
        print(json.dumps(sites), flush=True)
        for site in sites[first:]:
            found = _is_found_out(emulated, site, expected)
            print("found out" if found else "survived", flush=True)


if __name__ == "__main__":
    _try_without_waits(int(sys.argv[1]))
