"""torch's own checks of the operators: schemas, fake functions, tracing."""

from __future__ import annotations

import pytest
import torch
from helpers import BACKENDS, DEVICE, moved, running

from fused_lif import LIFParameters
from fused_lif.backends import native
from fused_lif.surrogate import method_id
from fused_lif.types import Neuron

SUPER, EVENTPROP = (method_id(name) for name in ("super", "eventprop"))

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)


@pytest.fixture(params=[b for b in BACKENDS if b != "triton"])
def backend(request):
    """Those in C++; test_triton_operators.py has the others."""
    with running(request.param):
        yield request.param


def opcheck(name, arguments, backend="cpu", **options):
    """Checks an operator of a backend, given arguments on the CPU."""
    library = torch.ops.fused_lif
    if backend == "emulated":
        library = torch.ops.fused_lif_emulated
        # Tracing sees the same fake functions as with the CPU.
        options.setdefault("test_utils", ("test_schema", "test_faketensor"))
    elif backend == "cuda":
        arguments = moved(arguments, DEVICE)
    torch.library.opcheck(getattr(library, name).default, arguments, **options)


def arguments(neuron, shape, interval, dtype=torch.float32):
    """Arguments of lif_forward for a sequence, or for a single step if the shape has two sizes."""
    p = LIFParameters(tau_mem_inv=torch.full((shape[-1],), 120.0))
    x = torch.rand(shape, dtype=dtype)
    v, i = torch.zeros(shape[-2:]), torch.zeros(shape[-2:])
    synapse, threshold = neuron != Neuron.CURRENT_ENCODER, neuron != Neuron.LI
    return (
        x,
        v,
        i if synapse else None,
        p.tau_syn_inv if synapse else None,
        p.tau_mem_inv,
        p.v_leak,
        p.v_th if threshold else None,
        p.v_reset if threshold else None,
        None,
        0.001,
        int(neuron),
        False,
        interval,
        SUPER,
        False,
    )


@pytest.mark.parametrize("interval", [0, 1, 32])
@pytest.mark.parametrize("shape", [(40, 3, 4), (3, 4)], ids=["sequence", "single step"])
@pytest.mark.parametrize("neuron", Neuron)
def test_forward(neuron, shape, interval, backend):
    opcheck("lif_forward", arguments(neuron, shape, interval), backend)


@pytest.mark.parametrize("needs", [255, 1, 0b00011000])
@pytest.mark.parametrize("interval", [1, 32])
@pytest.mark.parametrize("shape", [(40, 3, 4), (3, 4)], ids=["sequence", "single step"])
@pytest.mark.parametrize("neuron", Neuron)
def test_backward(neuron, shape, interval, needs, backend):
    forward = arguments(neuron, shape, interval)
    x, *tensors = forward[:8]
    _, v, _, states = torch.ops.fused_lif.lif_forward(*forward)
    alpha = None if neuron == Neuron.LI else torch.tensor(100.0)
    method = EVENTPROP if needs == 1 and neuron != Neuron.LI else SUPER
    opcheck(
        "lif_backward",
        (
            torch.randn(shape),
            torch.randn_like(v),
            None,
            torch.randn_like(states) if interval == 1 else None,
            x,
            states,
            *tensors,
            alpha,
            *forward[9:13],
            method,
            False,
            False,
            needs,
        ),
        backend,
    )


def test_half_types(backend):
    for dtype in (torch.bfloat16, torch.float16):
        opcheck("lif_forward", arguments(Neuron.LIF, (40, 3, 4), 32, dtype), backend)


def test_surrogate_grad():
    opcheck("surrogate_grad", (torch.rand(5), 1, 100.0))


def recurrent_arguments(shape, interval, *, exact=False, needs_grad=True, dtype=torch.float32):
    """Arguments of lif_recurrent_forward for 5 inputs and 70 neurons."""
    constants = [torch.tensor(c) for c in (200.0, 300.0, 0.0, 0.4, 0.1)]
    constants[1] = constants[1].expand(70).clone()
    return (
        (torch.rand(*shape, 5) < 0.3).to(dtype),
        *(torch.zeros(*shape[-1:], 70) for _ in range(3)),
        torch.randn(70, 5),
        torch.randn(70, 70) / 8,
        *constants,
        None,
        0.001,
        False,
        exact,
        interval,
        SUPER,
        False,
        needs_grad,
    )


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("interval", [0, 1, 32])
@pytest.mark.parametrize("shape", [(40, 3), (3,)], ids=["sequence", "single step"])
def test_recurrent_forward(shape, interval, exact, needs_grad, backend):
    arguments = recurrent_arguments(shape, interval, exact=exact, needs_grad=needs_grad)
    # The fake function takes the emulated operator for that of the CPU, which packs spikes.
    tests = {"test_utils": "test_schema"} if backend == "emulated" else {}
    opcheck("lif_recurrent_forward", arguments, backend, **tests)
    if backend != "cpu":
        return
    op = torch.ops.fused_lif.lif_recurrent_forward
    *_, i_jump, states, input_spikes, hidden_spikes = op(*arguments)
    T = shape[0] if len(shape) == 2 else 1
    rows = {0: 0, 1: T, 32: (T - 1) // 32}[interval]
    assert states.shape == (2 if interval == 1 else 1, rows, 3, 70)
    assert i_jump.shape == ((*shape, 70) if needs_grad else (0,))
    packs = needs_grad and not exact
    assert input_spikes.shape == ((*shape, 2) if packs else (0,))
    assert hidden_spikes.shape == ((*shape, 3) if packs else (0,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_recurrent_forward_of_other_dtypes(dtype, backend):
    x, *tensors = recurrent_arguments((40, 3), 32, dtype=dtype)
    if dtype == torch.float64:
        tensors[:3] = [t.double() for t in tensors[:3]]
    tests = {"test_utils": "test_schema"} if backend == "emulated" else {}
    opcheck("lif_recurrent_forward", (x, *tensors), backend, **tests)


@pytest.mark.parametrize("with_grads", [False, True])
@pytest.mark.parametrize(
    ("shape", "interval", "needs"),
    [
        ((40, 3), 32, 255),
        ((40, 3), 32, 0),
        ((40, 3), 1, 255),
        ((40, 3), 1, 0b00011000),
        ((20, 3), 0, 1),
        ((3,), 0, 255),
        ((3,), 1, 255),
        ((3,), 32, 0b00011000),
    ],
    ids=str,
)
def test_recurrent_backward(shape, interval, needs, with_grads, backend):
    forward = recurrent_arguments(shape, interval)
    v, i, recurrent_weights, constants = *forward[2:4], forward[5], forward[6:11]
    out, _, _, i_jump, states, *_ = torch.ops.fused_lif.lif_recurrent_forward(*forward)
    opcheck(
        "lif_recurrent_backward",
        (
            torch.randn_like(out) if with_grads else None,
            torch.randn_like(v),
            torch.randn_like(v) if with_grads else None,
            torch.randn_like(states) if with_grads and interval == 1 else None,
            i_jump,
            states,
            v,
            i,
            recurrent_weights,
            *constants,
            torch.tensor(100.0),
            0.001,
            False,
            interval,
            EVENTPROP if needs == 1 else SUPER,
            False,
            False,
            needs,
        ),
        backend,
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "packed"),
    [
        ((40, 3), torch.float32, True),
        ((40, 3), torch.float64, False),
        ((40, 3), torch.bfloat16, True),
        ((3,), torch.float16, False),
        ((), torch.float32, True),
    ],
    ids=str,
)
def test_gradients_of_weights_and_input(shape, dtype, packed, backend):
    grad = torch.randn(*shape, 70, dtype=torch.promote_types(dtype, torch.float32))
    x = (torch.rand(*shape, 5) < 0.1).to(dtype)
    spikes = None
    if packed and backend == "cpu":
        words = (x.long() << torch.arange(5)).sum(-1)
        spikes = torch.stack([x.sum(-1).long(), words], -1)
    opcheck("weight_grad", (grad, x, spikes, x.shape[-1]), backend)
    opcheck("input_grad", (grad, torch.randn(70, 5).to(dtype)), backend)
