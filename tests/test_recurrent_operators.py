"""Direct calls of the operators of recurrent layers: gradients of weights and input against matrix
products in float64, and spikes packed into bits.
"""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same_bits
from test_lif_forward import capability  # noqa: F401 (fixture)

from fused_lif.backends import native

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

ops = torch.ops.fused_lif
HALVES = (torch.float16, torch.bfloat16)

#: Sums are in any order; an error is relative to the sum of the sizes of what is added.
LIMITS = {torch.float64: 1e-14, torch.float32: 2e-6}


def assert_product_close(actual, a, b):
    """``actual`` is the matrix product of a and b."""
    a, b = a.double(), b.double()
    assert actual.shape == (a.shape[0], b.shape[1])
    error = (actual.double() - a @ b).abs()
    limit = LIMITS[actual.dtype] * (a.abs() @ b.abs())
    assert (error <= limit).all(), f"off by {(error - limit).max():.1e} more than allowed"


def weight_grad_of(grad, x, spikes=None):
    return ops.weight_grad(grad, x, spikes, x.shape[-1])


def check_weight_grad(grad, x, spikes=None):
    """Compares weight_grad of any batch with a matrix product and returns it."""
    actual = weight_grad_of(grad, x, spikes)
    assert actual.dtype == grad.dtype
    rows = x.shape[:-1].numel()
    a, b = (t.reshape(rows, t.shape[-1]) for t in (grad, x))
    assert_product_close(actual, a.t(), b)
    return actual


def check_input_grad(grad, weights):
    actual = ops.input_grad(grad, weights)
    assert actual.dtype == grad.dtype
    assert actual.shape == (*grad.shape[:-1], weights.shape[1])
    rows = grad.shape[:-1].numel()
    assert_product_close(
        actual.reshape(rows, -1 if rows else weights.shape[1]), grad.reshape(rows, -1), weights
    )
    return actual


def random_spikes(*shape, density=0.1, dtype=torch.float32):
    return (torch.rand(shape) < density).to(dtype)


def pack(x):
    """Rows of numbers as csrc/cpu/kernels.h packs them: the number of ones, then the bits."""
    is_spike = ((x == 0) | (x == 1)).all(-1)
    n = x.shape[-1]
    ones = torch.zeros(*x.shape[:-1], (n + 63) // 64 * 64, dtype=torch.int64)
    ones[..., :n] = x == 1
    words = (ones.unflatten(-1, (-1, 64)) << torch.arange(64)).sum(-1)  # the top bit wraps around
    return torch.cat([torch.where(is_spike, ones.sum(-1), -1)[..., None], words], -1)


def run_layer(x, z=None, *, hidden=70, exact=False):
    """Returns spikes, packed input and packed spikes of lif_recurrent_forward."""
    step = (*x.shape[1:-1], hidden)
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    z = torch.zeros(step, dtype=state_dtype) if z is None else z
    v, i = torch.zeros(2, *step, dtype=state_dtype)
    weights = torch.randn(hidden, x.shape[-1]) * 0.3, torch.randn(hidden, hidden) * 0.1
    constants = (torch.tensor(c) for c in (200.0, 300.0, 0.1, 0.2, 0.0))
    out, *_, input_spikes, hidden_spikes = ops.lif_recurrent_forward(
        x, z, v, i, *weights, *constants, None, 0.001, False, exact, 32, 1, False, True
    )
    return out, input_spikes, hidden_spikes


# ---- gradient of weights ----


# The share of spikes decides between lists of rows and a dense product.
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_weight_grad(dtype, density, capability):  # noqa: F811
    x = random_spikes(30, 7, 130, density=density, dtype=dtype)
    grad = torch.randn(30, 7, 100, dtype=torch.promote_types(dtype, torch.float32))
    actual = check_weight_grad(grad, x)
    assert actual.any() == (density > 0)
    assert_same_bits(weight_grad_of(grad, x, pack(x)), actual)


@pytest.mark.parametrize("hidden", [1, 15, 16, 17, 100, 257])
@pytest.mark.parametrize("inputs", [1, 7, 63, 64, 65, 130])
def test_sizes_of_weights(inputs, hidden, capability):  # noqa: F811
    for dtype in (torch.float32, torch.float64):
        grad = torch.randn(150, hidden, dtype=dtype)
        check_weight_grad(grad, random_spikes(150, inputs, dtype=dtype))
        check_input_grad(grad[:50], torch.randn(hidden, inputs, dtype=dtype))


@pytest.mark.parametrize("density", [0.02, 0.1])
@pytest.mark.parametrize(
    ("rows", "hidden", "dtype"),
    [(6000, 100, torch.float32), (2 * 2614, 100, torch.float32), (5000, 60, torch.float64)],
    ids=str,
)
def test_many_rows(rows, hidden, dtype, density, capability):  # noqa: F811
    """Rows come in chunks of 1 MiB; one of them may have no spike in some or all columns."""
    x = random_spikes(rows, 70, density=density, dtype=dtype)
    x[:1500, 3] = 0
    x[2600:, 5] = 0
    x[:2700, 64:] = 0
    check_weight_grad(torch.randn(rows, hidden, dtype=dtype), x)
    x[:2700] = 0
    check_weight_grad(torch.randn(rows, hidden, dtype=dtype), x)


def test_spikes_that_are_not_evenly_spread():
    """Columns without and with many spikes; all spikes in the last of them; in a few rows."""
    grad = torch.randn(400, 50)
    for rows, columns in (
        (slice(None), slice(0, 1)),
        (slice(None), slice(64, 65)),
        (slice(None), slice(-1, None)),
        (slice(0, 1), slice(None)),
        (slice(-1, None), slice(None)),
    ):
        x = torch.zeros(400, 130)
        x[rows, columns] = 1
        assert check_weight_grad(grad, x).any()


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, 1e-3], ids=str)
def test_one_number_that_is_not_a_spike(value, capability):  # noqa: F811
    for row, column in ((0, 0), (49, 129), (17, 70)):
        x = random_spikes(50, 130, density=0.02)
        x[row, column] = value
        check_weight_grad(torch.randn(50, 20), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_real_inputs(dtype):
    grad = torch.randn(40, 3, 20, dtype=torch.promote_types(dtype, torch.float32))
    check_weight_grad(grad, torch.randn(40, 3, 70).to(dtype))


def test_negative_zero_is_no_spike_and_nan_is_one():
    x = random_spikes(50, 70)
    grad = torch.randn(50, 20)
    expected = weight_grad_of(grad, x, None)
    assert_same_bits(weight_grad_of(grad, torch.where(x == 0, -0.0, x), None), expected)
    x[7, 3] = torch.nan
    actual = weight_grad_of(grad, x, None)
    assert actual[:, 3].isnan().all()
    assert not actual[:, 4].isnan().any()


@pytest.mark.parametrize(
    ("shape", "inputs", "hidden"),
    [((0,), 5, 3), ((0, 4), 5, 3), ((4, 0), 5, 3), ((4, 2), 0, 3), ((4, 2), 5, 0), ((), 5, 3)],
    ids=str,
)
def test_no_rows_or_columns(shape, inputs, hidden):
    grad, x = torch.randn(*shape, hidden), random_spikes(*shape, inputs, density=0.9)
    check_weight_grad(grad, x)
    check_weight_grad(grad, torch.zeros_like(x))
    check_weight_grad(grad, x, pack(x))
    assert weight_grad_of(grad, x, None).shape == (hidden, inputs)
    assert ops.input_grad(grad, torch.randn(hidden, inputs)).shape == (*shape, inputs)


def views(t):
    """The same numbers, laid out differently, or numbers that repeat."""
    T, B, N = t.shape
    padded = torch.full((T, B, N + 3), torch.nan, dtype=t.dtype)
    padded[..., :N] = t
    yield "batch first", t.transpose(0, 1).contiguous().transpose(0, 1)
    yield "features first", t.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "padded rows", padded[..., :N]
    yield "every second", t.repeat_interleave(2, -1)[..., ::2]
    yield "backwards", t.flip(0)[torch.arange(T - 1, -1, -1)]
    yield "one step", t[:1].expand(T, B, N)
    yield "one row", t[:, :1].expand(T, B, N)
    yield "one column", t[..., :1].expand(T, B, N)
    yield "one number", t[:1, :1, :1].expand(T, B, N)


@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("features", [30, 70])
def test_any_layout(features, density):
    x, grad = random_spikes(20, 6, features, density=density), torch.randn(20, 6, 40)
    x[0, 0, 0] = 1

    def compare(actual, expected, name, is_sparse):
        if is_sparse:
            assert_same_bits(actual, expected, name)
        else:  # a product of BLAS, which may depend on the layout
            limit = 2e-6 * expected.abs().max().item()
            torch.testing.assert_close(actual, expected, rtol=0, atol=limit)

    for name, other in views(x):
        other_grad = weight_grad_of(grad, other, None)
        expected = weight_grad_of(grad, other.clone().contiguous(), None)
        compare(other_grad, expected, name, other.float().mean() < 0.2)
        check_weight_grad(grad, other)
    for name, other in views(grad):
        expected = check_weight_grad(other.contiguous(), x)
        compare(weight_grad_of(other, x, None), expected, name, density < 0.2)
    spikes = pack(x).transpose(0, 2).contiguous().transpose(0, 2)
    assert_same_bits(weight_grad_of(grad, x, spikes), weight_grad_of(grad, x, None))


def test_several_batch_dimensions():
    x, grad = random_spikes(4, 2, 3, 5, 70), torch.randn(4, 2, 3, 5, 20)
    actual = check_weight_grad(grad, x)
    flat = weight_grad_of(grad.flatten(0, 3), x.flatten(0, 3), None)
    assert_same_bits(actual, flat)
    weights = torch.randn(20, 70)
    actual, flat = check_input_grad(grad, weights), ops.input_grad(grad.flatten(0, 3), weights)
    assert_same_bits(actual.flatten(0, 3), flat)


def with_threads(n, call):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("inputs", "hidden"), [(70, 300), (1000, 33), (9, 1000)], ids=str)
def test_every_number_of_threads_has_the_same_bits(inputs, hidden, capability):  # noqa: F811
    """Where the input is sparse; dense products are those of torch."""
    x, grad = random_spikes(2000, inputs, density=0.05), torch.randn(2000, hidden)
    weights = torch.randn(hidden, inputs)
    expected = with_threads(1, lambda: weight_grad_of(grad, x, None))
    expected_input = with_threads(1, lambda: ops.input_grad(grad, weights))
    for n in (2, 3):
        assert_same_bits(with_threads(n, lambda: weight_grad_of(grad, x, None)), expected)
        assert_same_bits(with_threads(n, lambda: ops.input_grad(grad, weights)), expected_input)


@pytest.mark.parametrize("batch", [24, 40, 47, 64])
def test_backward_with_every_number_of_threads_has_the_same_bits(batch):
    """What is summed together depends on the shape alone."""
    generator = torch.Generator().manual_seed(0)
    shape, constants = (32, batch, 100), [torch.tensor(c) for c in (200.0, 300.0, 0.1, 0.4, 0.0)]
    grad_out, i_jump = (torch.randn(shape, generator=generator) for _ in range(2))
    arguments = (
        *(grad_out, None, None, None, i_jump),
        *(torch.zeros(1, 0, *shape[1:]), torch.zeros(shape[1:]), torch.zeros(shape[1:])),
        *(torch.randn(100, 100, generator=generator) * 0.02, *constants, torch.tensor(3.0)),
        *(0.001, False, 0, 1, False, True, 255),
    )
    expected = with_threads(1, lambda: ops.lif_recurrent_backward(*arguments))
    assert all(g.any() for g in expected)
    for n in (2, 3):
        actual = with_threads(n, lambda: ops.lif_recurrent_backward(*arguments))
        for k, (a, e) in enumerate(zip(actual, expected)):
            assert_same_bits(a, e, f"gradient {k} with {n} threads")


def test_arguments_that_require_gradients():
    """The operators have no derivative of their own, which must not get in their way."""
    grad = torch.randn(40, 20, requires_grad=True)
    for density in (0.05, 0.5):
        x = random_spikes(40, 30, density=density).requires_grad_()
        check_weight_grad(grad, x)
    check_input_grad(grad, torch.randn(20, 30, requires_grad=True))


# ---- gradient of the input ----


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 31, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_input_grad(dtype, rows, capability):  # noqa: F811
    for inputs, hidden in ((1, 1), (8, 3), (70, 100), (64, 33), (201, 20)):
        grad = torch.randn(rows, hidden, dtype=dtype)
        weights = torch.randn(hidden, inputs, dtype=dtype)
        actual = check_input_grad(grad, weights)
        for r in (0, rows - 1):  # rows do not see each other
            assert_same_bits(ops.input_grad(grad[r], weights), actual[r])


@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_weights_of_any_dtype_and_layout(dtype, weight_dtype):
    grad, weights = torch.randn(40, 20, dtype=dtype), torch.randn(20, 70).to(weight_dtype)
    expected = check_input_grad(grad, weights)
    assert_same_bits(ops.input_grad(grad, weights.t().contiguous().t()), expected)
    assert_same_bits(ops.input_grad(grad, weights.repeat_interleave(2, 1)[:, ::2]), expected)
    assert_same_bits(ops.input_grad(grad, weights.repeat_interleave(2, 0)[::2]), expected)
    for view in (weights[:1].expand(20, 70), weights[:, :1].expand(20, 70)):
        check_input_grad(grad, view)


def test_any_layout_of_grad():
    weights = torch.randn(30, 50)
    for name, grad in views(torch.randn(20, 6, 30)):
        expected = check_input_grad(grad.contiguous(), weights)
        assert_same_bits(ops.input_grad(grad, weights), expected, name)


# 4 MiB and more are written around the caches where rows are whole vectors.
@pytest.mark.parametrize("inputs", [1024, 1040, 1030, 1023])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_large_results(dtype, inputs, capability):  # noqa: F811
    grad = torch.randn(1037, 9, dtype=dtype)
    weights = torch.randn(9, inputs, dtype=dtype)
    actual = check_input_grad(grad, weights)
    assert actual.numel() * actual.element_size() >= 4 << 20
    assert_same_bits(ops.input_grad(grad[:50], weights), actual[:50])


# ---- packed spikes ----


@pytest.mark.parametrize("features", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_packed_rows(dtype, features, capability):  # noqa: F811
    x = random_spikes(20, 11, features, density=0.3, dtype=dtype)
    out, input_spikes, hidden_spikes = run_layer(x, hidden=features)
    assert_same_bits(input_spikes, pack(x))
    assert_same_bits(hidden_spikes, pack(out))
    assert features == 1 or 0.05 < out.float().mean() < 0.95


def test_packed_rows_of_one_step_and_of_a_batch_of_any_shape():
    for shape in ((1, 1, 70), (3, 2, 5, 70), (4, 0, 70), (9, 70)):
        x = random_spikes(*shape, density=0.3)
        out, input_spikes, hidden_spikes = run_layer(x)
        assert_same_bits(input_spikes, pack(x))
        assert_same_bits(hidden_spikes, pack(out))
        if shape[0] == 1:
            continue
        grad = torch.randn_like(out)
        for numbers, packed in ((x, input_spikes), (out[:-1], hidden_spikes[:-1])):
            g = grad[: len(numbers)]
            assert_same_bits(check_weight_grad(g, numbers, packed), check_weight_grad(g, numbers))


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_rows_that_are_not_spikes_are_flagged(dtype, value, capability):  # noqa: F811
    """Rows near them may be flagged too; all others are packed."""
    x = random_spikes(20, 11, 130, density=0.05, dtype=dtype)
    x[3, 2, 0] = x[5, 9, 129] = x[19, 10, 70] = value
    x[7] = value
    out, input_spikes, hidden_spikes = run_layer(x)
    expected = pack(x)
    flagged = input_spikes[..., 0] == -1
    assert flagged[expected[..., 0] == -1].all()
    assert flagged.sum() < 8 * 3 + 11 + 1
    assert_same_bits(input_spikes[~flagged], expected[~flagged])
    assert_same_bits(hidden_spikes, pack(out))
    grad = torch.randn(20, 11, 30, dtype=torch.promote_types(dtype, torch.float32))
    actual = weight_grad_of(grad, x, input_spikes)
    torch.testing.assert_close(actual, weight_grad_of(grad, x, None), equal_nan=True)
    if abs(value) <= 2:
        check_weight_grad(grad, x, input_spikes)


def test_initial_spikes_may_be_any_numbers():
    """They are not packed: hidden_spikes are what comes out."""
    out, _, hidden_spikes = run_layer(random_spikes(9, 3, 30), torch.randn(3, 70))
    assert_same_bits(hidden_spikes, pack(out))


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_packed_spikes_give_the_same_bits(density, capability):  # noqa: F811
    x = random_spikes(30, 9, 130, density=density)
    out, input_spikes, hidden_spikes = run_layer(x, hidden=100)
    grad = torch.randn(30, 9, 100)
    assert_same_bits(check_weight_grad(grad, x, input_spikes), check_weight_grad(grad, x))
    without_input = ops.weight_grad(grad, None, input_spikes, x.shape[-1])
    assert_same_bits(without_input, check_weight_grad(grad, x))
    shifted = grad[1:], out[:-1]
    assert_same_bits(check_weight_grad(*shifted, hidden_spikes[:-1]), check_weight_grad(*shifted))


def test_exact_sums_pack_nothing():
    _, *packed = run_layer(random_spikes(9, 3, 30), exact=True)
    assert [p.numel() for p in packed] == [0, 0]


@pytest.mark.parametrize("count", [0, -1, -7, 1, 1 << 40], ids=str)
def test_packed_spikes_that_are_wrong_do_no_harm(count):
    """The result may be wrong, but nothing outside of the tensors is touched."""
    for features in (1, 63, 64, 65):
        x, grad = random_spikes(40, features), torch.randn(40, 20)
        spikes = torch.full_like(pack(x), -1)  # bits of columns that do not exist
        spikes[:, 0] = count
        assert weight_grad_of(grad, x, spikes).shape == (20, features)
