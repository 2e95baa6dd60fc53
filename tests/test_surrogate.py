"""Every backend uses the derivatives of fused_lif.surrogate.SURROGATES."""

from __future__ import annotations

import pytest
import torch

from fused_lif.backends import native
from fused_lif.surrogate import SURROGATES

needs_extension = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)
ALPHAS = [0.3, 1.0, 100.0]


@needs_extension
def test_ids_are_those_of_the_header():
    names = [name for name in SURROGATES if name != "box"]  # another name of the last
    assert torch.ops.fused_lif.surrogate_names().split() == names
    assert [SURROGATES[name].id for name in names] == list(range(len(names)))
    assert SURROGATES["box"] is SURROGATES["piecewise_linear"]


def assert_close(actual, expected, alpha):
    """Compares derivatives with those of the table in float64."""
    is_double = actual.dtype == torch.float64
    # Steep exponentials amplify the rounding of alpha * s by its size, up to 200 where it matters.
    limit = (2e-13 if is_double else 1e-4) if alpha == 100.0 else (1e-14 if is_double else 3e-6)
    scale = expected.abs().max()
    assert (
        (actual - expected).abs() <= limit * expected.abs() + 1e-30 + 1e-7 * limit * scale
    ).all()


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", SURROGATES)
def test_cpp_derivative_matches_table(name, alpha, dtype):
    near = torch.linspace(-2, 2, 401, dtype=torch.float64)
    s = torch.cat([near, near * 1e-3, torch.tensor([1e4, -1e4, 1e30, -1e30])]).to(dtype)
    actual = torch.ops.fused_lif.surrogate_grad(s, SURROGATES[name].id, alpha)
    expected = SURROGATES[name].grad(s.double(), alpha)
    assert_close(actual, expected, alpha)
    assert actual.isfinite().all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", SURROGATES)
def test_derivative_of_the_primitive(name, alpha):
    """The table against finite differences of the functions that the names stand for."""
    primitives = {
        "heaviside": lambda s: (s > 0).double(),
        "super": lambda s: s / (1 + alpha * s.abs()),
        "triangle": lambda s: alpha * torch.where(s.abs() < 1, s - s * s.abs() / 2, s.sign() / 2),
        "tanh": lambda s: torch.tanh(alpha * s) / alpha,
        "circ": lambda s: alpha * s / (alpha**2 + s**2).sqrt(),
        "heavi_erfc": lambda s: torch.erf(alpha * s) / alpha,
        "sigmoid": lambda s: torch.sigmoid(alpha * s),
        "atan": lambda s: torch.atan(torch.pi / 2 * alpha * s) / torch.pi,
        "piecewise_linear": lambda s: (alpha * s + 0.5).clamp(0, 1),
    }
    primitives["box"] = primitives["piecewise_linear"]
    # Away from the kinks at 0, 1 and 1 / (2 alpha).
    s = torch.linspace(-1.5, 1.5, 997, dtype=torch.float64) + 1e-4
    h = 1e-6
    kinks = (s.abs() - torch.tensor([[0.0], [1.0], [0.5 / alpha]])).abs().amin(0) < 2 * h
    s = s[~kinks]
    f = primitives[name]
    expected = (f(s + h) - f(s - h)) / (2 * h)
    torch.testing.assert_close(SURROGATES[name].grad(s, alpha), expected, rtol=1e-5, atol=1e-6)
    # The primitive of the table is the one that starts from zero.
    start = torch.full((), -1e18, dtype=torch.float64)
    primitive = SURROGATES[name].primitive
    scale = float(primitive(-start, alpha))
    torch.testing.assert_close(primitive(s, alpha), f(s) - f(start), rtol=0, atol=1e-13 * scale)
    assert float(primitive(start, alpha)) == pytest.approx(0, abs=1e-15 * scale)
