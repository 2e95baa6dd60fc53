"""Recurrent layers: spikes and states of every backend, and the promised order of their sums.

Weights are multiples of 1/256 unless said otherwise: then every sum over them is exact, and the
reference, whose matrix products add in an order of their own, has the same bits, and so has CUDA
for layers of all sizes. What compares other weights is for the CPU alone, and for emulated CUDA in
tests/test_emulated_clusters.py.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from helpers import (
    MATRIX_PRODUCTS,
    METHODS,
    all_backends,
    assert_same_bits,
    call,
    fast_backends,
    random_recurrent_case,
)
from test_lif_forward import DTYPES, capability, layouts  # noqa: F401 (fixture)
from torch.utils.data import DataLoader, Dataset

from fused_lif import LIFParameters, LIFState, lif_step, lif_step_integral
from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

# T, batch, I, H. The second has a tail of less than a vector, the last five one or several segments
# of checkpoints, no batch, two batch dimensions, an empty batch.
SHAPES = [
    (1, 1, 1, 1),
    (7, 3, 5, 6),
    (40, 2, 33, 17),
    (40, 9, 20, 100),
    (100, 4, 50, 70),
    (40, 20, 12),
    (9, 2, 3, 10, 8),
    (5, 0, 3, 4),
]
NAMES = ("spikes", "v", "i")


def assert_equal_reference(case, backend):
    """Compares a backend with the reference, bit for bit, and returns its result."""
    actual = case.run(backend)
    for name, a, e in zip(NAMES, actual, case.run("reference")):
        assert_same_bits(a, e, name)
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, kernels):
    case = random_recurrent_case(shape, dtype)
    spikes, v, i = assert_equal_reference(case, kernels)
    assert spikes.shape == (*shape[:-2], shape[-1])
    assert spikes.dtype == dtype
    assert v.dtype == i.dtype == case.v.dtype
    if spikes.numel() > 100:
        assert 0.1 < spikes.float().mean() < 0.6


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_any_dtype(dtype, weight_dtype, backend):
    case = random_recurrent_case((20, 3, 10, 12), dtype, weight_dtype=weight_dtype)
    assert_equal_reference(case, backend)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_few_and_many_input_spikes(density, kernels):
    assert_equal_reference(random_recurrent_case((20, 3, 100, 40), density=density), kernels)


def test_inputs_that_are_not_spikes(kernels):
    """Multiples of 1/8 keep the sums exact."""
    case = random_recurrent_case((40, 3, 20, 17))
    x = (torch.randn_like(case.x) * 8).round() / 8
    spikes, *_ = assert_equal_reference(case._replace(x=x), kernels)
    assert 0.1 < spikes.mean() < 0.6


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("constant_shape", [(), (6,), (3, 6), (3, 1), (1,), (1, 1)], ids=str)
def test_constants_broadcast(constant_shape, reset, backend):
    case = random_recurrent_case((40, 3, 5, 6), constant_shape=constant_shape, reset=reset)
    assert_equal_reference(case, backend)


@all_backends
def test_constants_add_batch_dimensions(backend):
    """One sequence, and one layer per threshold."""
    case = random_recurrent_case((20, 10, 8))
    v_th = torch.tensor([[0.2], [0.4], [0.6]])
    parameters = LIFParameters(v_th=v_th)
    weights = case.input_weights, case.recurrent_weights
    state = LIFState(0, 0, 0)
    spikes, s = call(lif_step_integral, case.x, state, *weights, parameters, backend=backend)
    assert spikes.shape == (20, 3, 8)
    for row in range(3):
        p = parameters._replace(v_th=v_th[row])
        z, r = call(lif_step_integral, case.x, state, *weights, p, backend=backend)
        assert_same_bits(spikes[:, row], z)
        assert_same_bits(s.v[row], r.v)
    assert not torch.equal(spikes[:, 0], spikes[:, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_recorded_states(dtype, backend):
    case = random_recurrent_case((40, 3, 5, 6), dtype, record_states=True)
    spikes, v, i = assert_equal_reference(case, backend)
    assert v.shape == i.shape == spikes.shape == (40, 3, 6)
    last = case._replace(options={}).run(backend)
    assert_same_bits(spikes, last[0])
    assert_same_bits(v[-1], last[1])
    assert_same_bits(i[-1], last[2])


@pytest.mark.parametrize("shape", [(40, 3, 5, 6), (20, 3, 100, 40), (1, 4, 70, 30)], ids=str)
def test_any_layout(shape, backend):
    case = random_recurrent_case(shape)
    expected = case.run("reference")
    for name, x in layouts(case.x.detach()):
        assert torch.equal(x, case.x), name
        for a, e in zip(case._replace(x=x).run(backend), expected):
            assert_same_bits(a, e, name)


def test_any_layout_of_weights_and_states(backend):
    case = random_recurrent_case((20, 3, 10, 12))
    strided = [t.detach().t().contiguous().t() for t in case[1:6]]
    padded = [torch.stack([t.detach(), t.detach()], -1).flatten(1)[:, ::2] for t in case[1:6]]
    for tensors in (strided, padded):
        other = case._replace(**dict(zip(case._fields[1:6], tensors)))
        assert not other.input_weights.is_contiguous()
        for a, e in zip(other.run(backend), case.run("reference")):
            assert_same_bits(a, e)


@pytest.mark.parametrize("expanded", ["time", "batch", "features", "all"])
def test_expanded_input(expanded, backend):
    case = random_recurrent_case((40, 6, 30, 20), density=0.9)
    x = {
        "time": case.x[:1].expand(40, -1, -1),
        "batch": case.x[:, :1].expand(-1, 6, -1),
        "features": case.x[..., :1].expand(-1, -1, 30),
        "all": case.x[:1, :1, :1].expand(40, 6, 30),
    }[expanded].detach()
    assert_equal_reference(case._replace(x=x), backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("backend", "exact_sums"),
    [("cpu", True), ("cpu", False), ("reference", True), ("reference", False)]
    + [(b, True) for b in MATRIX_PRODUCTS],
    indirect=["backend"],
)
def test_steps_equal_sequence(dtype, exact_sums, backend):
    """On CUDA a single step takes matrix products, a sequence does not."""
    case = random_recurrent_case((40, 3, 10, 12), dtype, exact_sums=exact_sums)
    expected = case.run(backend)
    state, spikes = LIFState(case.z, case.v, case.i), []
    for x in case.x:
        z, state = call(
            lif_step,
            x,
            state,
            case.input_weights,
            case.recurrent_weights,
            case.parameters(),
            backend=backend,
        )
        spikes.append(z)
        assert torch.equal(state.z, z)
    for name, a, e in zip(NAMES, (torch.stack(spikes), state.v, state.i), expected):
        assert_same_bits(a, e, name)


@all_backends
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)], ids=str)
def test_single_step_of_any_shape(shape, backend):
    weights = torch.ones(4, 6) / 8, torch.zeros(4, 4)
    p = LIFParameters(tau_mem_inv=1000.0, v_th=0.7)
    state = LIFState(0, 0, 0)
    z, s = call(lif_step, torch.ones(shape), state, *weights, p, backend=backend)
    assert z.shape == s.z.shape == s.v.shape == s.i.shape == (*shape[:-1], 4)
    assert z.all()


@all_backends
def test_no_time_step(backend):
    case = random_recurrent_case((4, 2, 3, 5))
    with pytest.raises(ValueError, match="at least one time step"):
        case._replace(x=case.x[:0]).run(backend)


@pytest.mark.parametrize("method", METHODS)
def test_options_of_the_gradient_do_not_change_spikes(method, backend):
    expected = random_recurrent_case((20, 3, 10, 12)).run(backend)
    options = {"method": method, "detach_reset": False, "autapses": False}
    for a, e in zip(random_recurrent_case((20, 3, 10, 12), **options).run(backend), expected):
        assert_same_bits(a, e)


@all_backends
def test_hand_calculated_trace(backend):
    """a = 0.5, b = 0.2; the first neuron excites the second one, which inhibits the first."""
    x = torch.ones(4, 1, dtype=torch.float64)
    input_weights = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    recurrent_weights = torch.tensor([[0.0, -4.0], [1.0, 0.0]], dtype=torch.float64)
    p = LIFParameters(200.0, 500.0, 0.0, 0.9, 0.1)
    spikes, s = call(
        lif_step_integral,
        x,
        LIFState(torch.zeros(2), torch.zeros(2), torch.zeros(2)),
        input_weights,
        recurrent_weights,
        p,
        record_states=True,
        backend=backend,
    )
    # Step 1: i' = (2, 0.5), v' = (1, 0.25). Step 2: i' = (1.6 + 2, 0.4 + 0.5 + 1),
    # v' = (0.1 + 0.5 (3.6 - 0.1), 0.25 + 0.5 (1.9 - 0.25)). Step 3: i' = (2.88 + 2 - 4,
    # 1.52 + 0.5 + 1), v' = (0.1 + 0.5 (0.88 - 0.1), 0.1 + 0.5 (3.02 - 0.1)). Step 4: i' =
    # (0.704 + 2 - 4, 2.416 + 0.5), v' = (0.49 + 0.5 (-1.296 - 0.49), 0.1 + 0.5 (2.916 - 0.1)).
    assert spikes.tolist() == [[1, 0], [1, 1], [0, 1], [0, 1]]
    v = torch.tensor([[0.1, 0.25], [0.1, 0.1], [0.49, 0.1], [-0.403, 0.1]], dtype=torch.float64)
    i_jump = torch.tensor([[2, 0.5], [3.6, 1.9], [0.88, 3.02], [-1.296, 2.916]])
    torch.testing.assert_close(s.v, v, rtol=0, atol=1e-14)
    torch.testing.assert_close(s.i, 0.8 * i_jump.double(), rtol=0, atol=1e-6)
    assert torch.equal(s.z, spikes)


def sum_of_columns(weights, spikes, order):
    """Adds the columns of the neurons that fired, in ascending order if ``order`` is 1."""
    total = np.zeros(len(weights), weights.dtype)
    for column in np.flatnonzero(spikes)[::order]:
        total = total + weights[:, column]
    return total


def run_as_promised(case, order=1):
    """The layer in numpy, for one batch dimension; every operation rounds once."""
    x, z, v, i, input_weights, recurrent_weights = (t.detach().numpy() for t in case[:6])
    tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset = (t.detach().numpy() for t in case.constants)
    a, b = (v.dtype.type(0.001) * tau for tau in (tau_mem_inv, tau_syn_inv))
    spikes = []
    for x_t in x:
        x_sum = np.stack([sum_of_columns(input_weights, row, order) for row in x_t])
        rec_sum = np.stack([sum_of_columns(recurrent_weights, row, order) for row in z])
        i_jump = (i + x_sum) + rec_sum
        v_decayed = v + a * ((v_leak - v) + i_jump)
        z = (v_decayed - v_th > 0).astype(v.dtype)
        v, i = np.where(z > 0, v_reset, v_decayed), i_jump - b * i_jump
        spikes.append(z)
    return tuple(torch.from_numpy(r) for r in (np.stack(spikes), v, i))


def with_binary_spikes(case):
    """Replaces the initial spikes, so that all sums are over spikes."""
    return case._replace(z=(case.z.detach() > 0.3).to(case.z.dtype).requires_grad_())


@pytest.mark.parametrize(
    ("density", "recurrent_mean", "rate"),
    [(0.05, -0.15, 0.04), (0.05, 0.02, 0.75), (0.7, -0.4, 0.2), (0.7, -0.05, 0.65)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sums_are_in_ascending_order(dtype, density, recurrent_mean, rate, capability):  # noqa: F811
    case = random_recurrent_case(
        (20, 3, 70, 50), dtype, exact_sums=False, density=density, recurrent_mean=recurrent_mean
    )
    case = with_binary_spikes(case)
    expected = run_as_promised(case)
    for name, a, e in zip(NAMES, case.run("cpu"), expected):
        assert_same_bits(a, e, name)
    assert expected[0].mean() == pytest.approx(rate, abs=0.1)
    assert not torch.equal(run_as_promised(case, -1)[2], expected[2])  # the order does matter
    torch.testing.assert_close(case.run("reference")[2], expected[2], rtol=1e-4, atol=1e-5)


def test_real_inputs_are_close_to_the_reference(kernels):
    case = random_recurrent_case((40, 3, 70, 50), exact_sums=False)
    case = case._replace(x=torch.randn_like(case.x) * 0.5)
    actual, expected = case.run(kernels), case.run("reference")
    assert_same_bits(actual[0], expected[0])
    assert 0.05 < actual[0].mean() < 0.6
    for a, e in zip(actual[1:], expected[1:]):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


@all_backends
def test_half_input_is_computed_in_float32(backend):
    exact_sums = backend in MATRIX_PRODUCTS  # their order may depend on addresses
    case = random_recurrent_case((100, 4, 20, 30), torch.bfloat16, exact_sums=exact_sums)
    z, v, i = case.run(backend)
    z32, v32, i32 = case.to(torch.float32).run(backend)
    assert z.dtype == torch.bfloat16
    assert_same_bits(z.float(), z32)
    assert_same_bits(v, v32)
    assert_same_bits(i, i32)


@pytest.mark.parametrize("density", [0.05, 0.7])
def test_every_instruction_set_has_the_same_bits(density):
    case = with_binary_spikes(random_recurrent_case((40, 3, 70, 50), exact_sums=False))
    case = case._replace(x=(torch.rand_like(case.x) < density).float())
    _C = native._C
    before, results = _C.cpu_capability(), []
    try:
        for capability in _C.supported_cpu_capabilities():
            _C.set_cpu_capability(capability)
            results.append(case.run("cpu"))
    finally:
        _C.set_cpu_capability(before)
    for other in results[1:]:
        for name, a, e in zip(NAMES, other, results[0]):
            assert_same_bits(a, e, name)


@pytest.mark.parametrize("shape", [(20, 1, 60, 300), (20, 7, 60, 300), (10, 64, 20, 33)], ids=str)
def test_every_number_of_threads_has_the_same_bits(shape):
    case = random_recurrent_case(shape, exact_sums=False)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(case.run("cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, a, e in zip(NAMES, other, results[0]):
            assert_same_bits(a, e, name)


@pytest.mark.parametrize("density", [0.05, 0.7, None], ids=["sparse", "dense", "no spikes"])
def test_rows_of_a_batch_do_not_see_each_other(density):
    case = with_binary_spikes(
        random_recurrent_case((20, 9, 70, 50), exact_sums=False, density=density or 0.3)
    )
    if density is None:
        case = case._replace(x=torch.randn_like(case.x))
    whole = case.run("cpu")
    for rows in ([0], [8], [3, 4], [5, 0, 8, 2, 7]):
        x, *state = (t.detach() for t in case[:4])
        part = case._replace(x=x[:, rows], **dict(zip("zvi", (s[rows] for s in state))))
        spikes, v, i = part.run("cpu")
        assert_same_bits(spikes, whole[0][:, rows], "spikes")
        assert_same_bits(v, whole[1][rows], "v")
        assert_same_bits(i, whole[2][rows], "i")


@fast_backends  # Triton's interpreter has one state for all threads
def test_called_from_several_threads(backend):
    cases = [random_recurrent_case((30, 3, 20, 30 + k), seed=k) for k in range(6)]
    expected = [case.run(backend) for case in cases]
    actual = [None] * len(cases)

    def work(k):
        for _ in range(5):
            actual[k] = cases[k].run(backend)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(cases))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, e in zip(actual, expected):
        for mine, other in zip(a, e):
            assert_same_bits(mine, other)


class Spikes(Dataset):
    """Runs the layer in the worker process."""

    def __len__(self):
        return 4

    def __getitem__(self, k):
        with torch.no_grad():
            return random_recurrent_case((20, 40, 60, 300), seed=k).run("cpu")[0]


def test_forked_workers():
    """The parent has used its threads already: a fork must not wait for them."""
    dataset = Spikes()
    expected = dataset[3]
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    assert torch.equal(list(loader)[3], expected)


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape", [(40, 3, 33, 17), (40, 20, 12), (20, 9, 70, 100), (9, 2, 3, 10, 8)], ids=str
)
@pytest.mark.parametrize("backend", ["cpu", "emulated"], indirect=True)
def test_exact_has_the_bits_of_eager_torch(shape, dtype, with_gradient, backend):
    """Of the same device: tests/test_cuda_device.py compares those of CUDA."""
    case = random_recurrent_case(shape, dtype, exact_sums=False, exact=True)
    with torch.set_grad_enabled(with_gradient):
        assert_equal_reference(case, backend)
        assert_equal_reference(case._replace(x=torch.randn_like(case.x)), backend)


@pytest.mark.parametrize("weight", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["input_weights", "recurrent_weights"])
def test_non_finite_weights_come_out_even_of_silent_senders(name, weight, backend):
    case = random_recurrent_case((9, 20, 100, 40), density=0.02)
    case = case._replace(x=case.x.detach().clone(), z=torch.zeros_like(case.z))
    case.x[..., 7] = 0
    weights = getattr(case, name).detach().clone()
    weights[3, 7] = weight
    case = case._replace(**{name: weights})
    _, v, _ = case.run(backend)
    assert v[:, 3].isnan().all()
    assert v[:, 4].isfinite().all() or name == "recurrent_weights"
    assert_equal_reference(case, backend)


def test_non_finite_input_comes_out(backend):
    case = random_recurrent_case((9, 2, 3, 5))
    x = case.x.detach().clone()
    x[2, 0], x[2, 1, 0], x[2, 1, 1:] = math.nan, math.inf, 0
    case = case._replace(x=x, input_weights=torch.full((5, 3), 0.25))
    _, v, i = case.run(backend)
    assert v[0].isnan().all()  # a NaN stays in the potential
    assert i[0].isnan().all()
    assert not i[1].isfinite().any()
    assert_equal_reference(case, backend)


def test_changed_inputs_do_not_change_an_earlier_result(backend):
    """The state is not a view of what the next call writes."""
    case = random_recurrent_case((20, 3, 10, 12))
    with torch.no_grad():
        spikes, v, i = case.run(backend)
        copies = spikes.clone(), v.clone(), i.clone()
        case._replace(z=spikes[-1], v=v, i=i).run(backend)
    for a, e in zip((spikes, v, i), copies):
        assert_same_bits(a, e)
