"""Gradients of the C++ operators against autograd through the reference, and finite differences."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    IS_SLOW,
    METHODS,
    NEURONS,
    TOLERANCE,
    assert_all_grads_close,
    assert_grad_close,
    call,
    gradients,
    random_case,
)
from test_lif_forward import DTYPES, SHAPES, capability, layouts  # noqa: F401 (fixture)

from fused_lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_integral
from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)


def check(case, backend):
    """Compares all gradients of the case with those of the reference.

    For half inputs the reference is the float32 one on the rounded numbers.
    """
    half = case.x.dtype in (torch.float16, torch.bfloat16)
    reference = case.to(torch.float32) if half else case
    step = case.v.shape
    per_element = reference._replace(
        constants=tuple(
            c.detach().expand(step).clone().requires_grad_() for c in reference.constants
        )
    )
    actual, expected = gradients(case, backend), gradients(reference, "reference", case.x.dtype)
    if half:
        expected["x"] = expected["x"].to(case.x.dtype)
    assert_all_grads_close(
        case, actual, expected, gradients(per_element, "reference"), TOLERANCE[case.x.dtype]
    )


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_reference(shape, dtype, neuron, kernels):
    check(random_case(shape, dtype, neuron), kernels)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_surrogate_and_reset(dtype, method, reset, detach_reset, kernels):
    options = {"method": method, "reset": reset, "detach_reset": detach_reset}
    check(random_case((40, 3, 35), dtype, **options), kernels)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize(
    "constant_shape", [(), (5,), (3, 5), (3, 1), (1,), (1, 5), (1, 1)], ids=str
)
def test_constants_broadcast(constant_shape, reset, backend):
    options = {"constant_shape": constant_shape, "reset": reset}
    check(random_case((40, 3, 5), torch.float64, **options), backend)


@pytest.mark.parametrize(
    ("shape", "constant_shape"),
    [
        ((9, 2, 4, 5, 6), (4, 1, 1)),
        ((9, 2, 4, 5, 6), (4, 1, 6)),  # a hole in the middle
        ((9, 2, 4, 5, 6), (2, 1, 5, 1)),
        ((3, 7, 1000), (7, 1)),  # rows that cross units of columns
        ((3, 7, 1000), ()),
        ((3, 7, 3000), (3000,)),  # longer than a unit
        ((3, 40, 900), (900,)),
    ],
    ids=str,
)
def test_constants_of_other_shapes(shape, constant_shape, backend):
    check(random_case(shape, torch.float64, constant_shape=constant_shape), backend)


@pytest.mark.parametrize(
    ("shape", "dtype", "constant_shape"),
    [
        ((17, 2, 32768), torch.float32, (2, 1)),
        ((33, 2, 32768), torch.bfloat16, (32768,)),
        ((9, 2, 32768), torch.float64, ()),
        ((17, 2, 32769), torch.float32, (32769,)),  # rows that are not aligned
    ],
    ids=str,
)
def test_large_gradients(shape, dtype, constant_shape, capability):  # noqa: F811
    """From 4 MiB on they are written around the caches; units are larger than a tile."""
    case = random_case(shape, dtype, constant_shape=constant_shape)
    assert case.x.nbytes >= 4 << 20
    check(case, "cpu")


@pytest.mark.parametrize("neuron", ["lif", "li"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_through_recorded_states(dtype, neuron, backend):
    check(random_case((70, 3, 35), dtype, neuron, record_states=True), backend)


@pytest.mark.parametrize("shape", [(40, 3, 5), (20, 3, 200)], ids=str)
def test_any_layout(shape, backend):
    case = random_case(shape, torch.float32)
    expected = gradients(case, backend)
    for name, x in layouts(case.x.detach()):
        actual = gradients(case._replace(x=x.requires_grad_()), backend)
        for key, a in actual.items():
            assert torch.allclose(a, expected[key], rtol=1e-5, atol=1e-5), (name, key)


@pytest.mark.parametrize("which", ["sum", "last step", "batch first", "only v", "only i"])
def test_any_gradient_of_the_output(which, backend):
    """`z.sum()` gives an expanded gradient, other losses strided or none at all."""

    def loss(case, backend):
        z, v, i = case.run(backend)
        weights = torch.linspace(-1, 1, z.shape[-1])
        total = {
            "sum": lambda: z.sum(),
            "last step": lambda: (z[-1] * weights).sum(),
            "batch first": lambda: (z.transpose(0, 1).contiguous() * weights).sum(),
            "only v": lambda: (v * weights).sum(),
            "only i": lambda: (i * weights).sum(),
        }[which]()
        inputs = case.inputs()
        grads = torch.autograd.grad(
            total, inputs.values(), allow_unused=True, materialize_grads=True
        )
        return dict(zip(inputs, grads))

    case = random_case((40, 3, 70))
    actual, expected = loss(case, backend), loss(case, "reference")
    assert_grad_close(actual["x"], expected["x"], 2e-6, "x")
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("wanted", ["x", "v", "i", "tau_mem_inv", "v_th"])
def test_only_what_is_asked_for(wanted, backend):
    """The other inputs are constants; their gradients are not computed."""
    case = random_case((40, 3, 5), torch.float64)
    expected = gradients(case, backend)[wanted]
    for name, t in case.inputs().items():
        t.requires_grad_(name == wanted)
    outputs = case.run(backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    torch.autograd.backward(outputs, weights)
    for name, t in case.inputs().items():
        if name == wanted:
            torch.testing.assert_close(t.grad, expected, rtol=1e-14, atol=0)
        else:
            assert t.grad is None


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("constant_shape", [(), (3,)], ids=str)
def test_gradcheck_below_threshold(neuron, constant_shape, backend):
    """Below the threshold the neuron is smooth: finite differences see what backward computes."""
    case = random_case((6, 2, 3), torch.float64, neuron, constant_shape=constant_shape)
    for c, value in zip(case.constants[3:4], (1e6,)):
        c.data.fill_(value)
    inputs = case.inputs()
    names = [n for n in inputs if n not in ("v_th", "v_reset")]

    def function(*tensors):
        named = dict(zip(names, tensors))
        constants = tuple(named.get(n, c) for n, c in zip(inputs_of_constants, case.constants))
        return case._replace(
            x=named["x"], v=named["v"], i=named.get("i", case.i), constants=constants
        ).run(backend)

    inputs_of_constants = ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")
    # With alpha = 3 and v_th = 1e6 the surrogate leaves 1e-13 of every gradient.
    fast = IS_SLOW.get(backend, False)  # random directions instead of all
    assert torch.autograd.gradcheck(function, [inputs[n] for n in names], fast_mode=fast)


def test_gradient_by_hand(backend):
    """One neuron, two steps, the first of which spikes; every term of the backward pass."""
    dt, alpha = 0.001, 2.0
    values = {
        "tau_syn_inv": 200.0,
        "tau_mem_inv": 500.0,
        "v_leak": 0.1,
        "v_th": 0.4,
        "v_reset": 0.05,
    }
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in values.items()}
    x = torch.tensor([[1.0], [-0.5]], dtype=torch.float64, requires_grad=True)
    state = LIFFeedForwardState(torch.zeros(1).double(), torch.zeros(1).double())
    parameters = LIFParameters(**p, alpha=alpha)
    z, s = call(lif_feed_forward_integral, x, state, parameters, dt, backend=backend)
    assert z.flatten().tolist() == [1, 0]
    (2 * z[0] + 3 * z[1] + 5 * s.v).sum().backward()

    a, b = dt * 500.0, dt * 200.0
    drive_1 = 0.1 - 0.0 + 1.0  # (v_leak - v) + i_jump
    v_1 = a * drive_1
    i_jump_2 = (1 - b) * 1.0 - 0.5
    drive_2 = 0.1 - 0.05 + i_jump_2
    v_2 = 0.05 + a * drive_2
    g_1, g_2 = ((1 / (alpha * abs(v - 0.4) + 1)) ** 2 for v in (v_1, v_2))
    grad_z_2 = 3 + 5 * (0.05 - v_2)
    d_2 = 5 + g_2 * grad_z_2
    grad_v_1 = (1 - a) * d_2  # reaches v after the spike, that is v_reset
    grad_i_1 = a * d_2
    grad_z_1 = 2 + grad_v_1 * (0.05 - v_1)
    d_1 = g_1 * grad_z_1
    expected = {
        "tau_syn_inv": -dt * grad_i_1 * 1.0,
        "tau_mem_inv": dt * (d_1 * drive_1 + d_2 * drive_2),
        "v_leak": a * (d_1 + d_2),
        "v_th": -(g_1 * grad_z_1 + g_2 * grad_z_2),
        "v_reset": grad_v_1,
    }
    for name, value in expected.items():
        assert p[name].grad.item() == pytest.approx(value, rel=1e-13), name
    assert x.grad.flatten().tolist() == pytest.approx([a * d_1 + (1 - b) * a * d_2, a * d_2])


def test_same_bits_for_any_number_of_threads():
    case = random_case((20, 40, 900))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(gradients(case, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, grad in other.items():
            assert torch.equal(grad, results[0][name]), name


def test_surrogate_gradients_are_finite_far_from_the_threshold(backend):
    for method in METHODS:
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            x = torch.tensor([[1e4], [-1e4]], dtype=dtype).T.contiguous().requires_grad_()
            state = LIFFeedForwardState(torch.zeros(2), torch.zeros(2))
            p = LIFParameters(method=method, alpha=torch.tensor(100.0))
            z, s = call(lif_feed_forward_integral, x, state, p, backend=backend)
            (z.sum() + s.v.sum()).backward()
            assert x.grad.isfinite().all(), (method, dtype)


def test_second_derivative_is_refused(backend):
    case = random_case((3, 2, 2))
    (grad,) = torch.autograd.grad(case.run(backend)[1].sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()
