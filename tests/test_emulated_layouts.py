"""CUDA kernels on the CPU: every width, any layout, constants of any shape and type."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import HALVES, at_offset, check, check_spikes, run_operators, with_input
from helpers import (
    CONSTANTS,
    NEURONS,
    TOLERANCE,
    assert_all_grads_close,
    assert_same_bits,
    gradients,
    random_case,
    random_recurrent_case,
)

from fused_lif.backends import native

pytestmark = pytest.mark.usefixtures("emulated")


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
@pytest.mark.parametrize(
    "options",
    [
        {"reset": "soft"},
        {"record_states": True},
        {"method": "eventprop"},
        {"method": "adjoint"},
        {"method": "adjoint", "reset": "soft"},
    ],
    ids=str,
)
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
