"""Triton kernels of recurrent layers: lists of senders, the order of sums, layers of all sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cuda_cases import HALVES, assert_close_sequences, run_recurrent_operators
from helpers import CONSTANTS, assert_same_bits, gradients, random_recurrent_case
from test_recurrent_backward import check as check_gradients
from triton_cases import TRITON_DEVICE, assert_same, ops

from fused_lif import LIFRecurrent
from fused_lif.backends import native, triton
from fused_lif.backends.triton import plan
from fused_lif.surrogate import EVENT_METHODS
from fused_lif.testing import smooth_spikes

needs_extension = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

pytestmark = pytest.mark.usefixtures("plans")

#: Ways through the same layer of up to 16 neurons: senders and receivers at once, whether the
#: weights are kept, batch rows per program.
WAYS = {
    "kept": (8, 16, True, 1),
    "streamed": (2, 4, False, 1),
    "rows": (3, 16, True, 2),
    "streamed rows": (1, 1, False, 2),
    "by steps": (None, None, False, 1),
}

ways = pytest.mark.parametrize("way", WAYS)


def silent(case):
    """Constants of neurons that never spike, whose current shrinks by a quarter per step."""
    _, tau_mem_inv, *_ = case.constants
    numbers = [torch.tensor(c, dtype=tau_mem_inv.dtype) for c in (250.0, 300.0, 0.0, 1e9, 0.0)]
    return tuple(numbers)


def real_spikes(case):
    """The case with spikes as initial ``z``: then any kernel multiplies as any other does."""
    return case._replace(z=(case.z.detach() > 0.3).to(case.z.dtype).requires_grad_())


def check(case):
    """Outputs have the bits of the reference; gradients are close to it."""
    with torch.no_grad():
        assert_same(case.run("triton"), case.run("reference"))
    return check_gradients(case, "triton")


@ways
def test_every_way(way, plans):
    plans.recurrent(*WAYS[way])
    actual = check(random_recurrent_case((4, 3, 9, 11), torch.float64))
    assert all(g.any() for g in actual.values())
    launched = [k.kernel for k in plans.launches]
    at_once = {"lif_recurrent_forward_kernel", "lif_recurrent_backward_kernel"} & set(launched)
    assert len(at_once) == (0 if way == "by steps" else 2)
    assert launched.count("lif_backward_kernel") == (4 if way == "by steps" else 0)
    grids = {k.grid for k in plans.launches if k.kernel == "lif_recurrent_backward_kernel"}
    assert grids == ({(math.ceil(3 / WAYS[way][3]),)} if at_once else set())


@pytest.mark.parametrize("T", [1, 9])
@pytest.mark.parametrize("method", EVENT_METHODS)
@ways
def test_event_based_methods(way, method, T, plans):
    """The gradient of a spike of the next step includes what the step after received."""
    plans.recurrent(*WAYS[way])
    check(random_recurrent_case((T, 3, 5, 11), torch.float64, method=method))
    launched = [k.kernel for k in plans.launches]
    assert ("lif_recurrent_backward_kernel" in launched) == (way != "by steps")


@pytest.mark.parametrize("options", [{}, {"reset": "soft", "record_states": True}], ids=str)
@pytest.mark.parametrize("exact", [False, True])
def test_smooth_spikes_go_by_steps(exact, options, plans):
    """Whatever the plan: there is no sender without a spike."""
    plans.recurrent(*WAYS["kept"])
    case = random_recurrent_case(
        (10, 3, 5, 6), torch.float64, alpha=2.0, exact=exact, method="atan", **options
    )
    with smooth_spikes():
        out, *_ = case.run("triton")
        assert ((out > 0) & (out < 1)).all()
        actual, expected = gradients(case, "triton"), gradients(case, "reference")
    torch.testing.assert_close(actual, expected)
    launched = {k.kernel for k in plans.launches}
    assert not {"lif_recurrent_forward_kernel", "lif_recurrent_backward_kernel"} & launched


@pytest.mark.parametrize("options", [{"record_states": True}, {"reset": "soft"}], ids=str)
@pytest.mark.parametrize("way", ["streamed rows", "by steps"])
def test_options(way, options, plans):
    plans.recurrent(*WAYS[way])
    case = random_recurrent_case((5, 3, 5, 6), torch.float64, detach_reset=True, **options)
    check(case._replace(options={**case.options, "method": "tanh"}))


@needs_extension
@pytest.mark.parametrize(("T", "interval"), [(16, 0), (19, 1), (7, 3), (19, 16)])
@pytest.mark.parametrize("way", ["kept", "by steps"])
def test_kept_states(way, T, interval, plans):
    """Of any number of steps, as the CPU keeps them."""
    plans.recurrent(*WAYS[way])
    case = random_recurrent_case((T, 1, 5, 6), torch.float64)
    actual = run_recurrent_operators(ops, case, interval)
    expected = run_recurrent_operators(torch.ops.fused_lif, case, interval)
    assert_same(actual[:5], expected[:5])
    assert_close_sequences(actual[5:], expected[5:], torch.float64)


@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_layers_at_the_limit(above, dtype, plans):
    """One kernel up to the limit of the table, then one per step: equal where sums are exact.

    A float64 neuron counts as two.
    """
    H = 1
    device = plan.device_of(None if triton.IS_INTERPRETED else 0)
    while plan.recurrent_plan(device, "lif_recurrent_forward", H + 1):
        H += 1
    H //= 2 if dtype == torch.float64 else 1
    check(random_recurrent_case((3, 2, 9, H + above), dtype))
    launched = {k.kernel for k in plans.launches}
    assert ("lif_recurrent_forward_kernel" in launched) == (above == 0)
    assert ("lif_forward_kernel" in launched) == (above == 1)


def test_the_same_bits_by_steps(plans):
    """Where sums are exact; the current of each step, too."""
    case = random_recurrent_case((9, 3, 5, 12))
    plans.recurrent(8, 16, True)
    at_once = run_recurrent_operators(ops, case, 1)
    plans.recurrent(None, None)
    assert_same(run_recurrent_operators(ops, case, 1)[:5], at_once[:5])


# ---- lists of senders ----


@pytest.mark.parametrize("senders", [0, 1, 4, 5, 8, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_senders_are_added_in_ascending_order(senders, dtype, plans):
    """Fewer than are loaded at once, as many, one more, all; against a sum by hand."""
    plans.recurrent(forward=4, backward=16)
    generator = np.random.default_rng(senders)
    of = np.float32 if dtype == torch.float32 else np.float64
    z = np.zeros((3, 11), of)
    for row in z:
        row[generator.choice(11, senders, replace=False)] = generator.normal(size=senders)
    weights = generator.normal(size=(11, 11)).astype(of)
    i = generator.normal(size=(3, 11)).astype(of)
    expected = np.zeros_like(z)
    for sender in range(11):
        product = z[:, sender, None] * weights[None, :, sender]
        expected = np.where(z[:, sender, None] != 0, expected + product, expected)
    case = random_recurrent_case((1, 3, 2, 11), dtype)._replace(
        x=torch.zeros(1, 3, 2, dtype=dtype),
        z=torch.from_numpy(z),
        i=torch.from_numpy(i),
        recurrent_weights=torch.from_numpy(weights),
    )
    actual = run_recurrent_operators(ops, case, 0)
    assert_same_bits(actual[3][0], torch.from_numpy(i + expected))


@needs_extension
@pytest.mark.parametrize(
    ("dtype", "unroll"),
    [(torch.float32, 1), (torch.float32, 8), (torch.float64, 2), (torch.bfloat16, 8)],
    ids=str,
)
def test_sums_that_round_are_those_of_the_cpu(unroll, dtype, plans):
    """Bit for bit: W_in input and W_rec z are summed in ascending order."""
    plans.recurrent(unroll, 16)
    plans.input_sums(rows=8, block=8)
    case = real_spikes(random_recurrent_case((10, 3, 30, 13), dtype, exact_sums=False))
    with torch.no_grad():
        actual = case.run("triton")
        assert_same(actual, case.run("cpu"))
    assert 0.05 < actual[0].float().mean() < 0.7


def test_order_of_sums_matters():
    """The two tests above could not fail if these weights were summed exactly."""
    case = real_spikes(random_recurrent_case((10, 3, 30, 13), exact_sums=False))
    ascending = case.run("triton")
    reverse = torch.arange(12, -1, -1)
    turned = case._replace(
        **{name: getattr(case, name)[..., reverse] for name in ("z", "v", "i")},
        input_weights=case.input_weights[reverse],
        recurrent_weights=case.recurrent_weights[reverse][:, reverse],
        constants=tuple(c[reverse] for c in case.constants),
    )
    assert not torch.equal(turned.run("triton")[2][..., reverse], ascending[2])


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
@pytest.mark.parametrize("way", ["streamed", "by steps"])
def test_weights_that_are_not_finite(way, value, plans):
    """Zero times infinity is not a number, also for a sender that never spikes."""
    plans.recurrent(*WAYS[way])
    case = random_recurrent_case((3, 2, 4, 11))
    x, z, v_th = (t.detach().clone() for t in (case.x, case.z, case.constants[3]))
    x[..., 3], z[..., 3], v_th[3] = 0.0, 0.0, 1e9
    case = case._replace(x=x, z=z, constants=(*case.constants[:3], v_th, case.constants[4]))
    for name in ("input_weights", "recurrent_weights"):
        weights = getattr(case, name).detach().clone()
        weights[2, 3] = value
        other = case._replace(**{name: weights})
        with torch.no_grad():
            actual, expected = other.run("triton"), other.run("reference")
        assert_same(actual, expected)
        assert actual[2][..., 2].isnan().all()
        assert not actual[2][..., 5].isnan().any()


@pytest.mark.parametrize("value", [2.0, -0.5, 1e-30, math.inf, math.nan], ids=str)
@pytest.mark.parametrize("way", ["streamed", "by steps"])
def test_initial_spikes_may_be_any_numbers(way, value, plans):
    plans.recurrent(*WAYS[way])
    case = random_recurrent_case((3, 2, 4, 11))
    z = torch.zeros_like(case.z.detach())
    z[1, 4] = value
    case = case._replace(z=z.requires_grad_())
    with torch.no_grad():
        assert_same(case.run("triton"), case.run("reference"))
    if math.isfinite(value):
        check_gradients(case, "triton")


def test_negative_zero_and_silence(plans):
    """No sender, at no step: the current is that of the input."""
    plans.recurrent(4, 16)
    case = random_recurrent_case((4, 2, 3, 11), density=0.0)
    case = case._replace(z=torch.full_like(case.z, -0.0), constants=silent(case))
    results = case.run("triton")
    assert not results[0].any()
    without = case._replace(recurrent_weights=torch.zeros(11, 11))
    assert_same(results, without.run("triton"))


@pytest.mark.parametrize("features", [1, 7, 8, 9, 17])
def test_sums_over_the_input(features, plans):
    """Eight features at once; rows and neurons in several programs, the last ones not full."""
    plans.input_sums(rows=4, block=4)
    case = random_recurrent_case((3, 3, features, 6))
    x = (torch.randn(3, 3, features) * 8).round() / 8
    zeros = torch.zeros(3, 6)
    case = case._replace(x=x, z=zeros, i=zeros, recurrent_weights=torch.zeros(6, 6))
    current = run_recurrent_operators(ops, case._replace(constants=silent(case)), 0)[3]
    grids = {k.grid for k in plans.launches if k.kernel == "lif_input_sums_kernel"}
    assert grids == {(3, 2)}
    for before, now, x_t in zip([zeros, *current], current, x):
        decayed = before - 0.25 * before
        assert_same_bits(now, decayed + x_t @ case.input_weights.detach().t())


# ---- layouts and constants ----


def test_arguments_of_any_layout(plans):
    plans.recurrent(2, 4, rows=2)
    case = random_recurrent_case((4, 3, 6, 7), constant_shape=(3, 7))
    expected = gradients(case, "triton")

    def strided(t):
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=t.dtype)
        return wide[..., ::2].copy_(t.detach()).requires_grad_()

    x = case.x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    other = case._replace(
        x=x,
        **{name: strided(getattr(case, name)) for name in case._fields[1:6]},
        constants=tuple(strided(c) for c in case.constants),
    )
    assert not other.recurrent_weights.is_contiguous()
    assert_same(gradients(other, "triton"), expected)
    out, *_ = case.run("triton")
    for grad in (torch.randn(3, 4, 7).transpose(0, 1), torch.randn(()).expand(4, 3, 7)):
        inputs = list(case.inputs().values())
        a = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        e = torch.autograd.grad(out, inputs, grad.contiguous(), retain_graph=True)
        assert_same(a, e)


@pytest.mark.parametrize(
    ("way", "constant_shape"),
    [
        ("rows", ()),
        ("streamed rows", (2, 1, 1)),
        ("rows", (3, 1)),
        ("rows", (2, 1, 6)),
        ("by steps", (2, 1, 6)),
    ],
    ids=str,
)
def test_constants(way, constant_shape, plans):
    """The batch has two dimensions; the last shape is repeated."""
    plans.recurrent(*WAYS[way])
    check(random_recurrent_case((3, 2, 3, 4, 6), torch.float64, constant_shape=constant_shape))


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
def test_constants_and_weights_of_any_dtype(dtype, plans):
    plans.recurrent(2, 8)
    case = random_recurrent_case((5, 2, 4, 6), weight_dtype=dtype)
    case = case._replace(
        constants=tuple(c.detach().to(dtype).requires_grad_() for c in case.constants)
    )
    with torch.no_grad():
        assert_same(case.run("triton"), case.run("reference"))
    actual, expected = gradients(case, "triton"), gradients(case, "reference")
    rtol = {torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for name, a in actual.items():
        is_converted = "weights" in name or name in CONSTANTS
        assert a.dtype == (dtype if is_converted else torch.float32)
        atol = rtol * expected[name].abs().max().item()
        torch.testing.assert_close(a, expected[name], rtol=rtol, atol=atol)


def test_the_second_call_has_the_same_bits(plans):
    plans.recurrent(2, 4, rows=2)
    case = random_recurrent_case((5, 3, 6, 7), exact_sums=False, constant_shape=())
    assert_same(gradients(case, "triton"), gradients(case, "triton"))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_weights_are_not_autocast(compiled, inside):
    device = TRITON_DEVICE.type
    layer = LIFRecurrent(4, 6, backend="triton").to(device)
    x = (20 * torch.rand(5, 2, 4, device=device)).requires_grad_()
    weights = torch.randn(5, 2, 6, device=device)
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0], inputs, weights)
    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    with torch.autocast(device, dtype=torch.bfloat16):
        spikes, _ = run(x)
        if inside:
            actual = torch.autograd.grad(spikes, inputs, weights)
    if not inside:
        actual = torch.autograd.grad(spikes, inputs, weights)
    for a, e in zip(actual, expected):
        assert e.any()
        assert_same_bits(a, e)


# ---- gradients that are given and needed ----


@pytest.mark.parametrize(
    ("way", "given"),
    [
        *(("rows", given) for given in ("out", "i", "nothing", "out and states")),
        ("by steps", "nothing"),
        ("by steps", "states"),
    ],
)
def test_gradients_that_are_not_given_are_zero(way, given, plans):
    plans.recurrent(*WAYS[way])
    case = random_recurrent_case((5, 3, 4, 6), torch.float64)
    named = {
        "out": torch.randn(5, 3, 6, dtype=torch.float64),
        "v": torch.randn_like(case.v),
        "i": torch.randn_like(case.v),
        "states": torch.randn(2, 5, 3, 6, dtype=torch.float64),
    }
    names = given.split(" and ")
    grads = tuple(g if name in names else None for name, g in named.items())
    zeros = tuple(g if name in names else torch.zeros_like(g) for name, g in named.items())
    actual = run_recurrent_operators(ops, case, 1, grads=grads)
    assert_same(actual, run_recurrent_operators(ops, case, 1, grads=zeros))
    assert actual[5].any() == (given != "nothing")
    if native.IMPORT_ERROR is None:
        expected = run_recurrent_operators(torch.ops.fused_lif, case, 1, grads=grads)
        assert_close_sequences(actual, expected, torch.float64)


@pytest.mark.parametrize("needs", [0, 1, 0b00011000, 0b10101000])
def test_only_what_is_needed(needs):
    case = random_recurrent_case((5, 3, 4, 6))
    all_of_them = run_recurrent_operators(ops, case, 8)[5:]
    actual = run_recurrent_operators(ops, case, 8, needs=needs)[5:]
    assert_same_bits(actual[0], all_of_them[0])  # the gradient of i_jump is always needed
    for k, (a, e) in enumerate(zip(actual[1:], all_of_them[1:])):
        if needs >> k & 1 or k in (1, 2):  # v and i are always there
            assert_same_bits(a, e)
        else:
            assert a.shape == (0,)


@pytest.mark.skipif(not triton.IS_INTERPRETED, reason="a GPU sums in another order")
@pytest.mark.parametrize("way", ["streamed", "by steps"])
def test_exact_sums_are_those_of_torch(way, plans):
    """Step by step, whatever the plan."""
    plans.recurrent(*WAYS[way])
    case = random_recurrent_case((6, 3, 20, 13), exact_sums=False, exact=True)
    with torch.no_grad():
        assert_same(case.run("triton"), case.run("reference"))
    assert "lif_recurrent_forward_kernel" not in {k.kernel for k in plans.launches}
