"""Triton kernels of sequences, in tiles of other sizes than those of the interpreter's plans."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import HALVES, assert_close_sequences, at_offset, run_operators, with_input
from helpers import (
    CONSTANTS,
    NEURONS,
    TOLERANCE,
    assert_all_grads_close,
    assert_same_bits,
    gradients,
    random_case,
)
from test_lif_backward import check as check_gradients
from test_lif_forward import DTYPES
from triton_cases import Plans, assert_same, check, check_spikes, ops

from fused_lif.backends import native, triton
from fused_lif.backends.triton import arguments, launch, plan
from fused_lif.surrogate import EVENT_METHODS, method_id

needs_extension = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)


@pytest.fixture(autouse=True)
def _small_tiles(plans):
    """16 columns per program, so that the last one is not full."""
    plans.sequence(block=16)


# ---- tiles ----


@pytest.mark.parametrize(("T", "record_states"), [(32, False), (37, False), (37, True)])
@pytest.mark.parametrize("chunk", [1, 4, 8, 16, 32])
def test_every_chunk(chunk, T, record_states, plans):
    plans.sequence(block=16, chunk=chunk)
    check_spikes(random_case((T, 3, 7), record_states=record_states))
    (forward,) = plans.launches
    assert forward.grid == (2,)
    assert forward.arguments["CHUNK"] == chunk
    assert forward.arguments["EVEN"] == (T % chunk == 0)


@pytest.mark.parametrize(
    ("neuron", "dtype"),
    [
        ("lif", torch.float32),
        ("lif", torch.bfloat16),
        ("li", torch.float32),
        ("encoder", torch.float64),
    ],
    ids=str,
)
def test_a_tile_does_not_change_a_bit(neuron, dtype, plans):
    """Nor do chunks, segments, or the second call."""
    options = {"reset": "soft"} if neuron == "lif" else {}
    case = random_case((7, 3, 7), dtype, neuron, constant_shape=(), **options)
    results = []
    for block, chunk, interval, programs in [
        (64, 4, 8, 1),
        (64, 4, 8, 1),
        (16, 1, 16, 2),
        (32, 16, 4, 1),
        (16, 8, 2, 2),
    ]:
        plans.sequence(block, chunk, interval)
        outputs = dict(zip(("out", "v_end", "i_end"), case.run("triton")))
        results.append({**outputs, **gradients(case, "triton")})
        assert set(plans.programs("lif_backward_kernel")) == {programs}
    for result in results[1:]:
        assert_same(result, results[0])
    assert results[0]["x"].any()


@pytest.mark.parametrize(
    ("neuron", "dtype", "columns"),
    [
        *(("lif", dtype, 35) for dtype in DTYPES),
        ("li", torch.float32, 35),
        ("encoder", torch.bfloat16, 35),
        ("lif", torch.float64, 600),
        ("lif", torch.float32, 1100),
        ("lif", torch.bfloat16, 1100),
    ],
    ids=str,
)
def test_plans_of_a_gpu(neuron, dtype, columns, plans, monkeypatch):
    """The rows of the table for a device that it does not name."""
    monkeypatch.undo()
    plans = Plans(monkeypatch)
    device = plans.gpu()
    check(random_case((3, columns), dtype, neuron))
    for name, _, given in plans.launches:
        if name != "constant_grads_kernel":
            kernel = name.removesuffix("_kernel")
            planned = plan.sequence_plan(device, kernel, columns, dtype.itemsize)
            assert given["BLOCK"] == planned.block
            kept = plan.checkpoint_interval(device, dtype)
            assert given["INTERVAL"] in (0, kept)


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 33])
def test_incomplete_segments(T, plans):
    plans.sequence(block=16, chunk=8, interval=16)
    check(random_case((T, 17), torch.float64))
    segments = [k.arguments for k in plans.launches if k.kernel == "lif_backward_kernel"]
    assert [s["EVEN"] for s in segments] == {
        1: [True],
        2: [True],
        15: [False],
        16: [True],
        17: [False, True],
        33: [False, True],
    }[T]


each_event_method = pytest.mark.parametrize("method", EVENT_METHODS)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("neuron", ["lif", "encoder"])
@each_event_method
def test_event_based_methods_across_segments(method, neuron, T, plans):
    """The gradient of the next spike is that of another segment, or of another launch."""
    plans.sequence(block=16, chunk=8, interval=16)
    check_gradients(random_case((T, 17), torch.float64, neuron, method=method), "triton")
    given = [k.arguments for k in plans.launches if k.kernel == "lif_backward_kernel"]
    assert [(k["EVEN"], k["grad_next_ptr"] is None) for k in given] == {
        1: [(True, True)],
        15: [(False, True)],
        16: [(True, True)],
        17: [(False, True), (True, False)],
        33: [(False, True), (True, False)],
    }[T] * (len(given) // (1 + (T > 16)))


@each_event_method
def test_event_based_methods_of_half_types_take_the_tiles_of_float32(method, plans, monkeypatch):
    """Those of their own would spill."""
    monkeypatch.undo()
    plans = Plans(monkeypatch)
    device = plans.gpu()
    check(random_case((3, 2, 600), torch.bfloat16, method=method))
    of = [plan.sequence_plan(device, "lif_backward", 1200, size).block for size in (4, 2)]
    assert of[0] < of[1]
    blocks = {k.arguments["BLOCK"] for k in plans.launches if k.kernel == "lif_backward_kernel"}
    assert blocks == {of[0]}


@needs_extension
@pytest.mark.parametrize("interval", [1, 3, 16])
@pytest.mark.parametrize("spike", ["smooth", *EVENT_METHODS])
def test_current_encoder_with_soft_reset(spike, interval, plans):
    """No public function has it."""
    plans.sequence(block=16, chunk=8)
    case = random_case((19, 17), torch.float64, "encoder", reset="soft")
    options = {"smooth": True} if spike == "smooth" else {"method": method_id(spike)}
    actual = run_operators(ops, case.x.detach(), case, interval, **options)
    expected = run_operators(torch.ops.fused_lif, case.x.detach(), case, interval, **options)
    assert_close_sequences(actual, expected, torch.float64)
    assert actual[4].any()


@needs_extension
@pytest.mark.parametrize(
    ("neuron", "T", "interval"),
    [
        *(("lif", *case) for case in [(1, 0), (16, 0), (19, 1), (7, 3), (13, 6), (23, 16)]),
        ("li", 5, 1),
        ("li", 7, 3),
        ("encoder", 5, 1),
        ("encoder", 7, 3),
    ],
)
def test_kept_states(neuron, interval, T, plans):
    """Of any number of steps, as the CPU keeps them."""
    plans.sequence(block=16, chunk=8)
    case = random_case((T, 17), torch.float64, neuron)
    actual = run_operators(ops, case.x.detach(), case, interval)
    expected = run_operators(torch.ops.fused_lif, case.x.detach(), case, interval)
    assert_same(actual[:4], expected[:4])
    assert_close_sequences(actual[4:], expected[4:], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_steps(dtype):
    """Without a time dimension, with a time dimension of one, and without any dimension."""
    case = random_case((1, 3, 7), dtype)
    x = case.x.detach()
    with_time = run_operators(ops, x, case, 0)
    without = run_operators(ops, x[0], case, 0)
    assert_same(with_time[1:4], without[1:4])
    assert_same_bits(with_time[0][0], without[0])
    assert_same_bits(with_time[4][0], without[4])
    assert_same(with_time[5:], without[5:])
    case = random_case((5,), dtype, constant_shape=())
    check_spikes(case)
    actual, expected = (
        gradients(case, "triton"),
        gradients(case.to(torch.float64), "reference", dtype),
    )
    for name, e in expected.items():
        torch.testing.assert_close(actual[name].double(), e, rtol=1e-2, atol=1e-4)


def test_steps_that_do_not_exist_change_nothing(plans):
    """Neither do columns: what lies behind the input is not a number."""
    case = random_case((5, 3, 7))
    memory = torch.full((8, 4, 7), torch.nan)
    x = memory[:5, :3]
    x.copy_(case.x.detach())
    plans.sequence(block=16, chunk=32)
    check(with_input(case, x))
    assert memory[5:].isnan().all()


# ---- more than 31 bits ----


@pytest.mark.parametrize(
    ("neuron", "options"),
    [*((neuron, {}) for neuron in NEURONS), ("lif", {"record_states": True})],
    ids=str,
)
def test_columns_of_64_bits(neuron, options, plans):
    plans.arguments(LARGE=True)
    case = random_case((5, 2, 17), torch.bfloat16, neuron, **options)
    view = case.x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    check(with_input(case, view))
    assert {k.arguments["LARGE"] for k in plans.launches if "LARGE" in k.arguments} == {True}


@pytest.mark.parametrize(
    ("columns", "is_large"), [(2**31 - 17, False), (2**31 - 16, True), (2**31 + 5, True)]
)
def test_when_columns_need_64_bits(columns, is_large, plans):
    """The last program counts beyond the last column."""
    x = torch.empty(1, columns, device="meta")
    c = torch.empty((), device="meta")
    given = launch.Constants("op", [c] * 5, x.shape[1:], x)
    layout = arguments.layout_of(x, 1)[1]
    launch.Forward(x, layout, x[0], x[0], given, 1, 0.001, 0, False).launch()
    sums = launch.ConstantSums((c,) * 5, 0, x[0])
    launch.Backward(
        *(x, layout, *[None] * 4, x, layout, x, x[0], x[0], given, x, x[0], x[0], sums),
        *(1, 0, 0.001, 0, False, False, "super", 1),
    ).launch()
    assert [k.kernel for k in plans.launches] == ["lif_forward_kernel", "lif_backward_kernel"]
    assert [k.arguments["LARGE"] for k in plans.launches] == [is_large] * 2


@pytest.mark.parametrize(
    ("T", "strides"),
    [(3, (2**30 + 64, 64, 1)), (3, (64, 2**31 + 64, 1))],
    ids=["two steps", "a row"],
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
    outputs = [torch.randn(o.shape).to(o.dtype) for o in case.run("triton")]
    weights = memory.as_strided(case.x.shape, strides, 512).copy_(outputs[0])
    results = []
    for input_tensor, of_spikes in ((case.x.detach(), outputs[0]), (x, weights)):
        inputs = (ops, input_tensor, case)
        results.append(run_operators(*inputs, 2, grads=(of_spikes, *outputs[1:], None)))
    assert_same(results[1], results[0])


# ---- layouts ----


def layouts():
    """Sequences of 5 steps, dimensions of a step, whether they are read where they lie."""
    x = torch.arange(5 * 4 * 3 * 16.0)
    contiguous = x.view(5, 12, 16)
    batch_first = x.view(12, 5, 16).transpose(0, 1)
    maps = x.view(4, 5, 3, 16).transpose(0, 1)  # [T, B, C, W], contiguous in C and W
    return {
        "contiguous": (contiguous, 2, True),
        "batch first": (batch_first, 2, True),
        "maps": (maps, 3, True),
        "short rows": (x.view(60, 16)[:, :15].view(12, 5, 15).transpose(0, 1), 2, False),
        "gaps between rows": (x.view(5, 6, 32)[:, :, :17], 2, True),
        "gaps between steps": (x.view(5, 12, 16)[:, :10], 2, True),
        "rows at two distances": (x.view(4, 5, 3, 16).permute(1, 2, 0, 3)[:, :2], 3, False),
        "features first": (x.view(16, 5, 12).permute(1, 2, 0), 2, False),
        "every second": (x.view(5, 12, 16)[..., ::2], 2, False),
        "repeated step": (x[: 12 * 16].view(1, 12, 16).expand(5, 12, 16), 2, True),
        "repeated rows": (x[: 5 * 16].view(5, 1, 16).expand(5, 12, 16), 2, True),
        "repeated short rows": (x[: 5 * 8].view(5, 1, 8).expand(5, 12, 8), 2, False),
        "repeated step and rows": (x[:16].expand(5, 12, 16), 2, True),
        "repeated step of short rows": (x[:8].expand(5, 12, 8), 2, False),
        "repeated number": (x[7].expand(5, 12, 16), 2, False),
        "one step": (x.view(12, 5, 16).transpose(0, 1)[:1], 2, True),
        "sizes of one": (x.view(5, 1, 12, 16).transpose(1, 2)[:, :, :, None], 4, True),
        "no time": (x.view(12, 5, 16)[:, 1], 2, True),
        "no time, copied": (x.view(12, 80)[:, ::5], 2, False),
        "a number per step": (x.view(5, 192)[:, 3], 0, True),
        "a number": (x[7], 0, True),
    }


@pytest.mark.parametrize("name", layouts())
def test_layout(name):
    """A layout describes where the elements lie; what it cannot describe is copied."""
    x, dims, is_view = layouts()[name]
    there, (stride_t, row, stride_row) = arguments.layout_of(x, dims)
    assert (there.data_ptr() == x.data_ptr()) == is_view
    has_time = x.dim() > dims
    T, m = len(x) if has_time else 1, torch.arange(x[0].numel() if has_time else x.numel())
    columns = m if row is None else m // row * stride_row + m % row
    offsets = torch.arange(T)[:, None] * stride_t + columns
    memory = there.as_strided(
        (there.untyped_storage().nbytes() // 4 - there.storage_offset(),), (1,)
    )
    assert torch.equal(memory[offsets].reshape(x.shape), x)
    if "repeated step" in name:  # which is copied once, if at all
        assert stride_t == 0
        assert is_view or there.untyped_storage().nbytes() == 4 * m.numel()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("batch first", torch.float32),
        ("batch first", torch.bfloat16),
        ("gaps between rows", torch.bfloat16),
        ("short rows", torch.float32),
        ("maps", torch.float32),
    ],
    ids=str,
)
def test_input_and_gradient_of_any_layout(name, dtype, plans):
    view, *_ = layouts()[name]
    plans.sequence(block=128)  # rows cross programs
    case = random_case(view.shape, dtype)
    x = torch.empty_strided(view.shape, view.stride(), dtype=dtype).copy_(case.x.detach())
    check(with_input(case, x))
    grad = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(torch.randn(x.shape))
    out, *_ = case.run("triton")
    a = torch.autograd.grad(out, list(case.inputs().values()), grad, retain_graph=True)
    e = torch.autograd.grad(out, list(case.inputs().values()), grad.contiguous())
    assert_same(a, e)


@pytest.mark.parametrize("expanded", ["time", "batch", "time and batch", "all"])
def test_expanded_input_and_gradient(expanded):
    T, B, N = 5, 2, 17
    sizes = {
        "time": (1, B, N),
        "batch": (T, 1, N),
        "time and batch": (1, 1, N),
        "all": (1, 1, 1),
    }[expanded]
    row = random_case((T, B, N))
    x = row.x.detach()[tuple(slice(n) for n in sizes)].expand(T, B, N)
    check(with_input(row._replace(x=x.contiguous().requires_grad_()), x))
    out, *_ = row.run("triton")
    grad = torch.randn(sizes).expand(T, B, N)
    inputs = [row.x, row.v, row.constants[3]]
    a = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    assert_same(a, torch.autograd.grad(out, inputs, grad.contiguous()))


def test_states_and_constants_of_any_layout():
    case = random_case((9, 2, 17), constant_shape=(2, 17))
    expected = gradients(case, "triton")
    wide = torch.full((2, 34), torch.nan)
    views = []
    for t in (case.v, case.i, *case.constants):
        view = wide.clone()[:, ::2].copy_(t.detach())
        assert not view.is_contiguous()
        views.append(view.requires_grad_())
    other = case._replace(v=views[0], i=views[1], constants=tuple(views[2:]))
    assert_same(gradients(other, "triton"), expected)
    aligned = case._replace(x=at_offset(case.x, 1).requires_grad_())
    assert_same(gradients(aligned, "triton"), expected)


# ---- constants ----


@pytest.mark.parametrize(
    ("step", "constant_shape"),
    [
        ((3, 7), ()),
        ((3, 7), (7,)),
        ((3, 7), (3, 1)),
        ((3, 7), (3, 7)),
        ((2, 3, 2, 5), (3, 1, 1)),
        ((2, 3, 2, 5), (3, 1, 5)),  # repeated
        ((2, 3, 2, 5), (2, 1, 2, 1)),
        ((2, 1, 2, 5), (2, 1, 2, 1)),  # adjacent: the dimension between is of size one
        ((2, 3, 2, 3, 2), (2, 1, 2, 1, 2)),
    ],
    ids=str,
)
def test_constants_broadcast(step, constant_shape):
    check(random_case((3, *step), torch.float64, constant_shape=constant_shape))


@pytest.mark.parametrize("constant_shape", [(), (5,), (3, 1, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants_of_any_dtype(dtype, constant_shape):
    """They are read as they are, and their gradients rounded once."""
    step = (2, 3, 2, 5)
    case = random_case((4, *step), constant_shape=constant_shape)
    constants = tuple(c.detach().to(dtype).requires_grad_() for c in case.constants)
    case = case._replace(constants=constants)
    check_spikes(case)
    actual = gradients(case, "triton")
    wide = torch.promote_types(dtype, torch.float32)
    per_element = case._replace(
        constants=tuple(
            c.detach().to(wide).expand(step).clone().requires_grad_() for c in constants
        )
    )
    per_element = gradients(per_element, "reference")
    expected = dict(per_element)
    for name, c in zip(CONSTANTS, constants):
        assert actual[name].dtype == dtype
        expected[name] = per_element[name].sum_to_size(c.shape)
    tolerance = TOLERANCE[dtype] if dtype in HALVES else TOLERANCE[torch.float32]
    assert_all_grads_close(case, actual, expected, per_element, tolerance._replace(grad=2e-6))


def test_constants_that_differ_from_each_other():
    """Each has a size and a stride of its own, and one of them is repeated."""
    case = random_case((3, 2, 3, 2, 5), torch.float64, constant_shape=(2, 3, 2, 5))
    shapes = [(), (5,), (3, 1, 5), (2, 1, 1, 1), (2, 3, 2, 5)]
    for turn in range(0, 5, 2):
        constants = []
        for c, shape in zip(case.constants, shapes[turn:] + shapes[:turn]):
            sizes = (1,) * (4 - len(shape)) + shape
            part = c.detach()[tuple(map(slice, sizes))].reshape(shape)
            constants.append(part.clone().requires_grad_())
        check(case._replace(constants=tuple(constants)))


@pytest.mark.parametrize("alpha_shape", [(3, 7), (7,), (3, 1)], ids=str)
def test_alpha_of_each_neuron(alpha_shape):
    case = random_case((7, 3, 7), torch.float64)
    check(case._replace(alpha=3 + torch.rand(alpha_shape, dtype=torch.float64)))


# ---- gradients that are given and needed ----


@pytest.mark.parametrize(
    ("neuron", "given"),
    [
        *(("lif", given) for given in ("out", "v", "i", "states", "nothing", "out and states")),
        ("li", "i"),
        ("encoder", "states"),
    ],
)
def test_gradients_that_are_not_given_are_zero(given, neuron):
    case = random_case((5, 17), torch.float64, neuron)
    named = {
        "out": torch.randn_like(case.x),
        "v": torch.randn_like(case.v),
        "i": None if neuron == "encoder" else torch.randn_like(case.v),
        "states": torch.randn(1 if neuron == "encoder" else 2, 5, 17, dtype=torch.float64),
    }
    names = given.split(" and ")
    grads = tuple(g if name in names else None for name, g in named.items())
    zeros = tuple(
        g if name in names or g is None else torch.zeros_like(g) for name, g in named.items()
    )
    x = case.x.detach()
    actual = run_operators(ops, x, case, 1, grads=grads)
    assert_same(actual, run_operators(ops, x, case, 1, grads=zeros))
    if given not in ("nothing", "i"):
        assert actual[4].any()
    if native.IMPORT_ERROR is None:
        expected = run_operators(torch.ops.fused_lif, x, case, 1, grads=grads)
        assert_close_sequences(actual, expected, torch.float64)


@pytest.mark.parametrize("given", ["v", "out"])
@each_event_method
def test_gradients_of_events_that_are_not_given_are_zero(given, method):
    case = random_case((9, 17), torch.float64)
    grads = tuple(torch.randn(s, dtype=torch.float64) for s in ((9, 17), 17))
    given = [g if name == given else None for name, g in zip(("out", "v"), grads)]
    zeros = [torch.zeros_like(g) if a is None else a for g, a in zip(grads, given)]
    results = [
        run_operators(ops, case.x, case, 4, grads=(*pair, None, None), method=method_id(method))
        for pair in (given, zeros)
    ]
    assert_same(*results)
    assert results[0][4].any()


@pytest.mark.parametrize("needs", [0, 1, 0b11000, 0b01010000, 0b10101001])
def test_only_what_is_needed(needs):
    case = random_case((5, 17))
    x = case.x.detach()
    all_of_them = run_operators(ops, x, case, 8)[4:]
    actual = run_operators(ops, x, case, 8, needs=needs)[4:]
    for k, (a, e) in enumerate(zip(actual, all_of_them)):
        if needs >> k & 1 or k in (1, 2):  # v and i are always there
            assert_same_bits(a, e)
        else:
            assert a.shape == (0,)


# ---- sums over columns ----


@pytest.mark.parametrize(
    ("step", "constant_shape", "stages"),
    [
        ((4096,), (), 1),
        ((4097,), (), 2),
        ((3, 20_001), (), 2),
        ((3, 5000), (3, 1), 2),  # each sum in two chunks
        ((128, 40), (40,), 1),
        ((129, 40), (40,), 2),
        ((16_385, 17), (17,), 3),
        ((300, 2, 30, 2), (2, 1, 2), 2),  # repeated
    ],
    ids=str,
)
def test_sums_over_many_columns(step, constant_shape, stages, plans):
    """More columns than one program adds up: its sums are added again by the next launch.

    After a single step of an LI the gradient of v_leak is the sum of that of x, taken in float64.
    """
    plans.sequence(block=65536 if triton.IS_INTERPRETED else 1024)
    case = random_case((1, *step), neuron="li", constant_shape=constant_shape)
    out, *_ = case.run("triton")
    weights = torch.randn(out.shape)
    x, v_leak = torch.autograd.grad(out, [case.x, case.constants[2]], weights)
    assert len(plans.programs("constant_grads_kernel")) == stages
    terms = x[0].double()
    assert terms.all()
    expected = terms.sum_to_size(constant_shape)
    limit = 2**-24 * expected.abs() + 1e-15 * terms.abs().sum_to_size(constant_shape)
    if constant_shape == (2, 1, 2):  # sums of what was repeated are rounded to float32
        limit = 2e-7 * terms.abs().sum_to_size(constant_shape)
    assert ((v_leak.double() - expected).abs() <= limit).all()


@pytest.mark.parametrize("constant_shape", [(), (5,)], ids=str)
def test_no_more_programs_than_a_grid_has(constant_shape, plans, monkeypatch):
    """Each adds up more then."""
    monkeypatch.setattr(launch, "_MAX_CHUNKS", 3)
    plans.sequence(block=65536 if triton.IS_INTERPRETED else 1024)
    case = random_case((1, 8000, 5), neuron="li", constant_shape=constant_shape)
    out, *_ = case.run("triton")
    x, v_leak = torch.autograd.grad(out, [case.x, case.constants[2]], torch.randn(out.shape))
    assert [k.grid[1] for k in plans.launches if k.kernel == "constant_grads_kernel"] == [3, 1]
    expected = x[0].double().sum_to_size(constant_shape)
    torch.testing.assert_close(v_leak.double(), expected, rtol=1e-7, atol=1e-9)


def test_sums_of_every_constant(plans):
    """In two launches; rates have a factor dt."""
    plans.sequence(block=1024)
    check(random_case((5, 3, 3000), constant_shape=()))
    assert len(plans.programs("constant_grads_kernel")) == 2


def test_lengths_share_kernels(plans):
    """A few kernels serve all lengths from two chunks on."""
    plans.sequence(block=16, chunk=8, interval=16)
    for T in (33, 40, 47, 48, 63, 64):
        gradients(random_case((T, 5)), "triton")
    variants = {}
    for one in plans.launches:
        constants = {k: a for k, a in one.arguments.items() if k.isupper() and len(k) > 1}
        variants.setdefault(one.kernel, set()).add(tuple(sorted(constants.items())))
    assert len(variants["lif_forward_kernel"]) <= 2
    assert len(variants["lif_backward_kernel"]) <= 3  # the sums of one go on in the other
