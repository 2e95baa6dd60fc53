"""Gradients of recurrent layers against float64 autograd through the reference, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import (
    IS_SLOW,
    METHODS,
    TOLERANCE,
    all_backends,
    assert_all_grads_close,
    assert_same_bits,
    call,
    gradients,
    random_recurrent_case,
)
from test_lif_forward import DTYPES, layouts
from test_recurrent_forward import SHAPES

from fused_lif import LIFParameters, LIFRecurrent, LIFState, lif_step, lif_step_integral
from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)


def check(case, backend, weight_dtype=None):
    """Compares all gradients of the case with those of the reference in float64.

    The spikes are the same, which is asserted: with exact sums only their rounding differs.
    """
    dtype, reference = case.x.dtype, case.to(torch.float64)
    with torch.no_grad():
        assert torch.equal(case.run(backend)[0].double(), reference.run("reference")[0])
    constants = (c.detach().expand(case.v.shape).clone() for c in reference.constants)
    reference = reference._replace(constants=tuple(c.requires_grad_() for c in constants))
    per_element = gradients(reference, "reference", dtype)
    actual, expected = gradients(case, backend), {}
    for name, tensor in case.inputs().items():
        assert actual[name].dtype == tensor.dtype, name
        expected[name] = per_element[name].sum_to_size(tensor.shape).to(tensor.dtype)
    tolerance = TOLERANCE[weight_dtype or dtype]
    assert_all_grads_close(case, actual, expected, per_element, tolerance)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_reference(shape, dtype, kernels):
    actual = check(random_recurrent_case(shape, dtype), kernels)
    if shape[0] > 1 and 0 not in shape:
        assert all(g.any() for g in actual.values())


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_surrogate_and_reset(dtype, method, reset, detach_reset, backend):
    options = {"method": method, "reset": reset, "detach_reset": detach_reset}
    check(random_recurrent_case((20, 3, 10, 35), dtype, **options), backend)


@pytest.mark.parametrize("detach_reset", [False, True])
def test_detached_reset_is_another_gradient(detach_reset, backend):
    """The tests above could not fail if the option did nothing."""
    default = gradients(random_recurrent_case((40, 3, 10, 35)), backend)
    case = random_recurrent_case((40, 3, 10, 35), detach_reset=detach_reset)
    assert torch.equal(gradients(case, backend)["v"], default["v"]) == detach_reset


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("constant_shape", [(), (6,), (3, 6), (3, 1), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_constants_broadcast(dtype, constant_shape, reset, backend):
    options = {"constant_shape": constant_shape, "reset": reset}
    check(random_recurrent_case((40, 3, 5, 6), dtype, **options), backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_through_recorded_states(dtype, backend):
    check(random_recurrent_case((70, 3, 10, 35), dtype, record_states=True), backend)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_few_and_many_input_spikes(density, kernels):
    check(random_recurrent_case((20, 3, 100, 40), density=density), kernels)


def test_inputs_that_are_not_spikes(kernels):
    case = random_recurrent_case((40, 3, 20, 17))
    x = (torch.randn_like(case.x) * 8).round() / 8
    check(case._replace(x=x.detach().requires_grad_()), kernels)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_another_dtype(weight_dtype, backend):
    """Their gradients come back in their dtype, rounded once."""
    case = random_recurrent_case((20, 3, 10, 12), weight_dtype=weight_dtype)
    check(case, backend, torch.float32 if weight_dtype == torch.float64 else weight_dtype)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65])
def test_segments_of_checkpoints(T, backend):
    check(random_recurrent_case((T, 2, 5, 6), torch.float64), backend)


@pytest.mark.parametrize("shape", [(40, 3, 5, 6), (20, 3, 100, 40)], ids=str)
def test_any_layout(shape, backend):
    case = random_recurrent_case(shape, torch.float64)
    expected = gradients(case, backend)
    for name, x in layouts(case.x.detach()):
        actual = gradients(case._replace(x=x.to(torch.float64).requires_grad_()), backend)
        for key, a in actual.items():
            torch.testing.assert_close(
                a, expected[key], rtol=1e-12, atol=1e-12, msg=lambda m, at=(name, key): f"{at}: {m}"
            )


def test_expanded_input(backend):
    """The gradient has the shape of the view, and autograd sums it."""
    case = random_recurrent_case((40, 6, 30, 20), torch.float64, density=0.9)
    row = case.x[:1, :1].detach().requires_grad_()
    grads = []
    for each in (backend, "reference"):
        spikes, v, i = case._replace(x=row.expand(40, 6, 30)).run(each)
        loss = spikes.sum() + (v * i).sum()
        grads.append(torch.autograd.grad(loss, [row, case.input_weights, case.recurrent_weights]))
    for a, e in zip(*grads):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "which", ["sum", "last step", "batch first", "state z", "only v", "only i", "products"]
)
def test_any_gradient_of_the_output(which, backend):
    """`z.sum()` gives an expanded gradient, other losses strided or none at all."""
    case = random_recurrent_case((40, 3, 10, 35), torch.float64)
    inputs = case.inputs()

    def grads(backend):
        state = LIFState(case.z, case.v, case.i)
        weights = case.input_weights, case.recurrent_weights
        z, s = call(lif_step_integral, case.x, state, *weights, case.parameters(), backend=backend)
        factors = torch.linspace(-1, 1, 35, dtype=torch.float64)
        loss = {
            "sum": lambda: z.sum(),
            "last step": lambda: (z[-1] * factors).sum(),
            "batch first": lambda: (z.transpose(0, 1).contiguous() * factors).sum(),
            "state z": lambda: (s.z * factors).sum(),
            "only v": lambda: (s.v * factors).sum(),
            "only i": lambda: (s.i * factors).sum(),
            "products": lambda: (z[3] * s.z * s.v * s.i).sum(),
        }[which]()
        return torch.autograd.grad(loss, inputs.values(), allow_unused=True, materialize_grads=True)

    actual = grads(backend)
    assert actual[0].any()
    for name, a, e in zip(inputs, actual, grads("reference")):
        torch.testing.assert_close(
            a, e, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_recorded_spikes_of_the_state(backend):
    """Their gradient joins that of the output."""
    case = random_recurrent_case((20, 3, 10, 12), torch.float64)
    grads = []
    for record_states in (True, False):
        z, s = call(
            lif_step_integral,
            case.x,
            LIFState(case.z, case.v, case.i),
            case.input_weights,
            case.recurrent_weights,
            case.parameters(),
            record_states=record_states,
            backend=backend,
        )
        loss = (2 * s.z + z).square().sum() if record_states else (3 * z).square().sum()
        grads.append(torch.autograd.grad(loss, [case.x, case.recurrent_weights]))
    for a, e in zip(*grads):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@all_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autapses_have_no_gradient(dtype, backend):
    """The diagonal of the weights still acts; only its gradient is exactly zero."""
    shape = (40, 3, 10, 35)
    all_of_them = gradients(random_recurrent_case(shape, dtype), backend)
    case = random_recurrent_case(shape, dtype, autapses=False)
    grads = gradients(case, backend)
    without = all_of_them["recurrent_weights"].clone().fill_diagonal_(0)
    assert all_of_them["recurrent_weights"].diagonal().any()
    for name, g in grads.items():
        assert_same_bits(g, without if name == "recurrent_weights" else all_of_them[name], name)


@all_backends
@pytest.mark.parametrize(
    "wanted", ["x", "z", "v", "i", "input_weights", "recurrent_weights", "tau_mem_inv", "v_th"]
)
def test_only_what_is_asked_for(wanted, backend):
    """The other inputs are frozen, and get no gradient."""
    case = random_recurrent_case((40, 3, 5, 6), torch.float64)
    expected = gradients(case, backend)[wanted]
    for name, t in case.inputs().items():
        t.requires_grad_(name == wanted)
    outputs = case.run(backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    torch.autograd.backward(outputs, weights)
    for name, t in case.inputs().items():
        if name == wanted:
            torch.testing.assert_close(t.grad, expected, rtol=1e-12, atol=0)
        else:
            assert t.grad is None, name


@all_backends
def test_nothing_requires_a_gradient(backend):
    case = random_recurrent_case((5, 3, 5, 6))
    for t in case.inputs().values():
        t.requires_grad_(False)
    assert not any(o.requires_grad for o in case.run(backend))


@all_backends
def test_one_tensor_as_both_weights(backend):
    case = random_recurrent_case((40, 3, 12, 12), torch.float64)
    both = case.input_weights
    separate = gradients(
        case._replace(recurrent_weights=both.detach().clone().requires_grad_()), backend
    )
    outputs = case._replace(recurrent_weights=both).run(backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    (shared,) = torch.autograd.grad(outputs, both, weights)
    expected = separate["input_weights"] + separate["recurrent_weights"]
    torch.testing.assert_close(shared, expected, rtol=1e-12, atol=1e-12)


@all_backends
@pytest.mark.parametrize("constant_shape", [(), (3,)], ids=str)
@pytest.mark.parametrize("autapses", [True, False])
def test_gradcheck_below_threshold(autapses, constant_shape, backend):
    """Below the threshold the layer is smooth: finite differences see what backward computes."""
    case = random_recurrent_case(
        (6, 2, 4, 3), torch.float64, constant_shape=constant_shape, exact_sums=False
    )
    case.constants[3].data.fill_(1e6)
    inputs = case.inputs()
    names = [n for n in inputs if n not in ("v_th", "v_reset")]
    diagonal, kept = torch.eye(3, dtype=torch.bool), case.recurrent_weights.detach().clone()

    def function(*tensors):
        named = {**inputs, **dict(zip(names, tensors))}
        weights = named["recurrent_weights"]
        if not autapses:  # the diagonal is a constant: finite differences must not see it either
            weights = torch.where(diagonal, kept, weights)
        return case._replace(
            **{n: named[n] for n in case._fields[:5]},
            recurrent_weights=weights,
            constants=tuple(list(named.values())[6:]),
            options={"autapses": autapses},
        ).run(backend)

    fast = IS_SLOW.get(backend, False)  # random directions instead of all
    assert torch.autograd.gradcheck(function, [inputs[n] for n in names], fast_mode=fast)


@all_backends
def test_backward_again_has_the_same_bits(backend):
    case = random_recurrent_case((40, 3, 10, 35), exact_sums=False)
    outputs, inputs = case.run(backend), list(case.inputs().values())
    weights = [torch.randn_like(o) for o in outputs]
    first = torch.autograd.grad(outputs, inputs, weights, retain_graph=True)
    second = torch.autograd.grad(outputs, inputs, weights)
    again = torch.autograd.grad(case.run(backend), inputs, weights)
    for a, b, c in zip(first, second, again):
        assert_same_bits(a, b)
        assert_same_bits(a, c)


def test_second_derivative_is_refused(backend):
    case = random_recurrent_case((3, 2, 4, 5))
    (grad,) = torch.autograd.grad(case.run(backend)[1].sum(), case.input_weights, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "emulated"], indirect=True)
def test_weights_changed_in_place_before_backward(backend):
    """autograd notices what would give the gradient of another layer."""
    case = random_recurrent_case((3, 2, 4, 5))
    _, v, _ = case.run(backend)
    with torch.no_grad():
        case.recurrent_weights.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        v.sum().backward()


@pytest.mark.parametrize("shape", [(20, 1, 60, 300), (20, 7, 60, 300), (10, 64, 20, 33)], ids=str)
def test_every_number_of_threads_has_the_same_bits(shape):
    case = random_recurrent_case(shape, exact_sums=False)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(gradients(case, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, grad in other.items():
            if name.endswith(
                "weights"
            ):  # dense: a product of BLAS, whose sums may depend on threads
                torch.testing.assert_close(
                    grad, results[0][name], rtol=0, atol=2e-6 * grad.abs().max().item()
                )
            else:
                assert torch.equal(grad, results[0][name]), name


@pytest.mark.parametrize("with_steps", [False, True])
@all_backends
def test_gradient_by_hand(backend, with_steps):
    """Two neurons, three steps: the first fires, which makes the second fire in the next one."""
    dt, alpha, a, b = 0.001, 2.0, 0.5, 0.2
    w_in = torch.tensor([[3.0], [0.5]], dtype=torch.float64, requires_grad=True)
    w_rec = torch.tensor([[0.0, -1.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64, requires_grad=True)
    z_0 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p = LIFParameters(200.0, 500.0, 0.0, 1.2, 0.0, alpha=alpha)
    state = LIFState(z_0, torch.zeros(2), torch.zeros(2))
    if with_steps:
        z = []
        for x_t in x:
            z_t, state = call(lif_step, x_t, state, w_in, w_rec, p, dt, backend=backend)
            z.append(z_t)
        z = torch.stack(z)
    else:
        z, state = call(lif_step_integral, x, state, w_in, w_rec, p, dt, backend=backend)
    # i'_1 = (3, 0.5), v'_1 = (1.5, 0.25), the first fires. i'_2 = (2.4, 0.4 + 2),
    # v'_2 = (1.2, 0.25 + 0.5 (2.4 - 0.25)), both fire or not: 1.2 is not above 1.2, 1.325 is.
    # i'_3 = (1.92 - 1, 1.92), v'_3 = (1.2 + 0.5 (0.92 - 1.2), 0.96).
    assert z.tolist() == [[1, 0], [0, 1], [0, 0]]
    torch.testing.assert_close(state.v.tolist(), [1.06, 0.96], rtol=0, atol=1e-7)
    loss = 2 * z[1, 1] + 3 * state.v[0] + 5 * state.i[1]
    grads = torch.autograd.grad(loss, [x, z_0, w_in, w_rec])

    def g(v):
        return 1 / (alpha * abs(v - 1.2) + 1) ** 2

    # Step 3: only v of the first and i of the second neuron are looked at.
    d_i3 = (a * 3, (1 - b) * 5)  # dL/di'_3
    d_v2 = ((1 - a) * 3, 0.0)  # after the reset; the reset itself is detached
    d_z2 = (2.0 * d_i3[1], 2 - 1.0 * d_i3[0])  # W_rec^T d_i3, and the loss
    # Step 2: the second neuron was reset, so nothing reaches its v'_2 through v.
    d_u2 = (d_v2[0] + g(1.2) * d_z2[0], g(1.325) * d_z2[1])  # dL/dv'_2
    d_i2 = tuple(a * u + (1 - b) * i for u, i in zip(d_u2, d_i3))
    d_v1 = tuple((1 - a) * u for u in d_u2)
    d_z1 = (2.0 * d_i2[1], -1.0 * d_i2[0])
    # Step 1: the first neuron was reset.
    d_u1 = (g(1.5) * d_z1[0], d_v1[1] + g(0.25) * d_z1[1])
    d_i1 = tuple(a * u + (1 - b) * i for u, i in zip(d_u1, d_i2))
    d_x = [3.0 * d[0] + 0.5 * d[1] for d in (d_i1, d_i2, d_i3)]
    expected_rec = [[d_i2[0], d_i3[0]], [d_i2[1], d_i3[1]]]  # z_1 = (1, 0), z_2 = (0, 1)
    assert grads[0].flatten().tolist() == pytest.approx(d_x, rel=1e-6)
    assert grads[1].tolist() == pytest.approx([2.0 * d_i1[1], -1.0 * d_i1[0]], rel=1e-6)
    assert grads[2].flatten().tolist() == pytest.approx(d_i1, rel=1e-6)
    assert grads[3].tolist() == [pytest.approx(row, rel=1e-6) for row in expected_rec]


def test_long_silence(backend):
    """States and gradients fall below the smallest normal number."""
    case = random_recurrent_case((1500, 1, 5, 6), density=0.6)
    x = case.x.detach().clone()
    x[20:] = 0
    constants = [torch.tensor(c) for c in (200.0, 300.0, 0.0, 0.6, 0.0)]
    case = case._replace(
        x=x.requires_grad_(), constants=tuple(c.requires_grad_() for c in constants)
    )
    (z, v, _), (z_ref, v_ref, _) = case.run(backend), case.run("reference")
    assert z[:20].sum() > 3
    assert z[100:].sum() == 0
    assert_same_bits(z, z_ref)
    assert (v - v_ref).abs().max() < 1e-36
    grads = torch.autograd.grad(v.sum() + z.sum(), case.inputs().values())
    expected = torch.autograd.grad(v_ref.sum() + z_ref.sum(), case.inputs().values())
    for name, a, e in zip(case.inputs(), grads, expected):
        torch.testing.assert_close(
            a, e, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_gradients_are_finite_far_from_the_threshold(backend):
    for method in METHODS:
        for dtype in DTYPES:
            case = random_recurrent_case((3, 2, 4, 5), dtype, method=method, alpha=100.0)
            x = (case.x.detach() * 2 - 1) * 1e4
            case = case._replace(x=x.requires_grad_())
            for name, g in gradients(case, backend).items():
                assert g.isfinite().all(), (method, dtype, name)


def test_memory_kept_for_backward():
    """Kept are the input, weights, i' of all steps, and v every 32 steps.

    Input and spikes are kept as bits too: of a row, the number of ones and one word per 64.
    """
    T, B, H = 64, 8, 32
    case = random_recurrent_case((T, B, 20, H))
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        case.run("cpu")
    neurons = 4 * B * H
    limit = case.x.nbytes + case.input_weights.nbytes + case.recurrent_weights.nbytes
    limit += T * neurons  # i'
    limit += math.ceil(T / 32) * neurons  # checkpoints of v
    limit += 8 * T * B * (1 + math.ceil(20 / 64) + 1 + math.ceil(H / 64))
    limit += 3 * neurons + sum(c.nbytes for c in (*case.constants, case.alpha))
    assert sum(kept.values()) <= limit
    assert case.x.data_ptr() in kept


def test_frozen_weights_need_neither_input_nor_spikes():
    case = random_recurrent_case((64, 8, 20, 32))
    weights = (case.input_weights.detach(), case.recurrent_weights.detach())
    x = case.x.detach().clone()
    z, _ = lif_step_integral(
        x,
        LIFState(case.z, case.v, case.i),
        *weights,
        LIFParameters(*case.constants, alpha=case.alpha),
        backend="cpu",
    )
    kept = z.grad_fn.saved_tensors
    assert sum(t.nbytes for t in kept if t is not None) < 1.2 * z.nbytes + weights[1].nbytes * 3
    x.zero_()  # as in Norse, allowed
    z.sum().backward()


@pytest.mark.parametrize("exact", [False, True])
def test_spikes_may_be_changed_in_place(exact):
    case = random_recurrent_case((20, 3, 5, 7))
    layer = LIFRecurrent(5, 7, LIFParameters(v_th=0.3), backend="cpu", exact=exact)
    z, _ = layer(case.x)
    if exact:  # then the spikes themselves are kept
        z = z.clone()
    z.mul_(2.0)
    z.sum().backward()
    expected, layer.recurrent_weights.grad = layer.recurrent_weights.grad, None
    (2.0 * layer(case.x)[0]).sum().backward()
    assert torch.equal(expected, layer.recurrent_weights.grad)


@pytest.mark.parametrize("shape", [(5, 0, 3, 4), (5, 2, 3, 0)])
def test_no_rows_or_neurons_with_constants_of_their_shape(shape, backend):
    T, B, features, H = shape
    tau_mem_inv = torch.full((B, H), 100.0, requires_grad=True)
    zero = torch.zeros(B, H)
    z, _ = call(
        lif_step_integral,
        torch.rand(T, B, features),
        LIFState(zero, zero, zero),
        torch.ones(H, features),
        torch.ones(H, H),
        LIFParameters(tau_mem_inv=tau_mem_inv),
        backend=backend,
    )
    z.sum().backward()
    assert tau_mem_inv.grad.shape == (B, H)
