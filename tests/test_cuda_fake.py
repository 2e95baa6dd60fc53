"""Fake CUDA tensors, and the backend ``cuda`` where there is no device: neither needs a GPU.

Where torch is built without CUDA it has neither autograd, copies nor indexing of fake CUDA tensors.
So states are given, the backward is called directly, and recurrent layers run for one step.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fused_lif
from fused_lif import (
    LI,
    LIF,
    LICell,
    LIFCell,
    LIFFeedForwardState,
    LIFParameters,
    LIFRecurrentCell,
    LIFState,
    LIParameters,
    LIState,
    backends,
)
from fused_lif.backends import BACKENDS, _autograd, native, select_backend, triton
from fused_lif.functional.lif import lif_current_encoder, lif_current_encoder_integral
from fused_lif.types import LIFProblem, Neuron, Recurrence

pytestmark = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason="the C++ extension is not built"
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
T, B, N, F = 40, 3, 5, 7  # F: input features of recurrent layers
CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake():
    """Tensors made in the test are fake; what they are computed with is not differentiated."""
    with FakeTensorMode(), torch.no_grad():
        yield


@pytest.fixture
def available(monkeypatch):
    """A device, as far as the backend can tell."""
    monkeypatch.setattr(native, "CUDA_ARCHITECTURES", "9.0")
    monkeypatch.setattr(native, "_reasons_against_device", lambda index: [])


def new(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")


def state_type(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def constants(dtype=torch.float32):
    """One for all, one per neuron, one per batch row, of one dtype or another."""
    return (
        new(N, dtype=dtype),
        new(dtype=torch.float64),
        new(B, 1, dtype=torch.bfloat16),
        new(B, N),
        new(1, dtype=dtype),
    )


def described(tensors):
    assert all(t.device == CUDA and t.is_contiguous() for t in tensors)
    return [(t.dtype, tuple(t.shape)) for t in tensors]


@pytest.mark.parametrize("interval", [0, 1, 8, 32])
@pytest.mark.parametrize("has_time", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("neuron", Neuron)
def test_sequence(neuron, dtype, has_time, interval, fake):
    sizes, state = (T, B, N) if has_time else (B, N), state_type(dtype)
    synapse, threshold = neuron != Neuron.CURRENT_ENCODER, neuron != Neuron.LI
    given = list(constants())
    if not synapse:
        given[0] = None
    if not threshold:
        given[3:] = None, None
    v, i = new(B, N, dtype=state), new(B, N, dtype=state) if synapse else None
    x = new(B, *sizes[:-2], N, dtype=dtype).transpose(0, 1) if has_time else new(B, N, dtype=dtype)
    options = (0.001, int(neuron), False, interval)
    outputs = torch.ops.fused_lif.lif_forward(x, v, i, *given, None, *options, 1, False)
    steps = T if has_time else 1
    rows = {0: 0, 1: steps, 8: (steps - 1) // 8, 32: (steps - 1) // 32}[interval]
    kept = (2 if synapse else 1, rows, B, N)
    i_end = (B, N) if synapse else (0,)
    assert described(outputs) == [(dtype, sizes), (state, (B, N)), (state, i_end), (state, kept)]

    alpha = new() if threshold else None
    for needs in (255, 0, 0b10101000, 1):
        grads = torch.ops.fused_lif.lif_backward(
            *(None,) * 4,
            *(x, outputs[3], v, i, *given, alpha),
            *(*options, 1, False, False, needs),
        )
        expected = [(dtype, sizes if needs & 1 else (0,)), (state, (B, N)), (state, i_end)]
        for k, c in enumerate(given):
            is_needed = c is not None and needs >> (3 + k) & 1
            expected.append((c.dtype, tuple(c.shape)) if is_needed else (state, (0,)))
        assert described(grads) == expected


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("interval", [0, 1, 32])
@pytest.mark.parametrize("has_time", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_recurrent_layer(dtype, has_time, interval, exact, needs_grad, fake):
    state, time = state_type(dtype), (T,) if has_time else ()
    x, v = new(*time, B, F, dtype=dtype), new(B, N, dtype=state)
    weights = new(N, F), new(N, N, dtype=torch.bfloat16)
    options = (None, 0.001, False, exact, interval, 1, False, needs_grad)
    outputs = torch.ops.fused_lif.lif_recurrent_forward(
        x, v, v, v, *weights, *constants(), *options
    )
    sequence, steps = (*time, B, N), T if has_time else 1
    rows = {0: 0, 1: steps, 32: (steps - 1) // 32}[interval]
    assert described(outputs) == [
        (dtype, sequence),
        (state, (B, N)),
        (state, (B, N)),
        (state, sequence if needs_grad else (0,)),
        (state, (2 if interval == 1 else 1, rows, B, N)),
        (torch.int64, (0,)),  # no spikes as bits
        (torch.int64, (0,)),
    ]
    if not needs_grad:
        return
    i_jump, states = outputs[3:5]
    for needs in (255, 0, 0b10101000, 1):
        grads = torch.ops.fused_lif.lif_recurrent_backward(
            *(None,) * 4,
            *(i_jump, states, v, v, weights[1], *constants(), new()),
            *(0.001, False, interval, 1, False, False, needs),
        )
        expected = [
            (state, sequence),
            (state, (B, N) if needs & 1 else (0,)),
            *[(state, (B, N))] * 2,
        ]
        for k, c in enumerate(constants()):
            is_needed = needs >> (3 + k) & 1
            expected.append((c.dtype, tuple(c.shape)) if is_needed else (state, (0,)))
        assert described(grads) == expected
    assert described([torch.ops.fused_lif.input_grad(i_jump, weights[0])]) == [
        (state, (*time, B, F))
    ]
    assert described([torch.ops.fused_lif.weight_grad(i_jump, x, None, F)]) == [(state, (N, F))]


class Recorded:
    """The operators, and the names of those that were called."""

    def __init__(self, monkeypatch):
        self.names = []
        recording = {}
        for name in ("lif_forward", "lif_recurrent_forward"):
            operator = getattr(native.OPERATORS, name)

            def record(*arguments, name=name, operator=operator):
                self.names.append(name)
                return operator(*arguments)

            recording[name] = record
        monkeypatch.setattr(native, "OPERATORS", native.OPERATORS._replace(**recording))


@pytest.mark.parametrize("backend", ["cuda", None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_public_functions_and_layers(dtype, backend, fake, available, monkeypatch):
    called, state = Recorded(monkeypatch), state_type(dtype)
    p, li = LIFParameters(*constants(), alpha=new()), LIParameters(*constants()[:3])
    numbers = LIFParameters(200.0, 100.0, 0.0, 1.0, 0.0, alpha=100.0)
    sequence, step = new(T, B, N, dtype=dtype), new(B, N, dtype=dtype)
    v = new(B, N, dtype=state)
    feed_forward, option = LIFFeedForwardState(v, v), {"backend": backend}
    weights = [torch.nn.Parameter(new(N, F), False), torch.nn.Parameter(new(N, N), False)]
    recurrent = dict(zip(("input_weights", "recurrent_weights"), weights), autapses=True)
    features = new(B, F, dtype=dtype)
    results = {
        "lif_forward": [
            LIF(p, **option)(sequence, feed_forward),
            LIFCell(p, **option)(step, feed_forward),
            LI(li, **option)(sequence, LIState(v, v)),
            LICell(li, **option)(step, LIState(v, v)),
            fused_lif.lif_feed_forward_integral(sequence, feed_forward, numbers, **option),
            fused_lif.lif_feed_forward_step(step, LIFFeedForwardState(0, 0), numbers, **option),
            lif_current_encoder_integral(sequence, v, p, **option)[:2],
            lif_current_encoder(step, v, p, **option),
        ],
        "lif_recurrent_forward": [
            LIFRecurrentCell(F, N, p, **recurrent, **option)(features, LIFState(v, v, v)),
            fused_lif.lif_step(features, LIFState(0, 0, 0), *weights, numbers, **option),
        ],
    }
    assert called.names == [name for name, calls in results.items() for _ in calls]
    for calls in results.values():
        for out, end in calls:
            assert described([out])[0] in [(dtype, (T, B, N)), (dtype, (B, N))]
            potential = getattr(end, "v", end)
            assert described([potential]) == [(state, (B, N))]


@pytest.mark.parametrize("record_states", [False, True])
def test_autograd_of_a_sequence(record_states, fake):
    interval = 1 if record_states else 32
    options = _autograd._Options(0.001, 0, False, interval, 1, False, False)
    x, v, given = new(T, B, N, dtype=torch.bfloat16), new(B, N), (*constants(), new())
    ctx = Context([True] * 8 + [False] * 3)
    outputs = _autograd._LIFSequence.forward(ctx, x, v, v, *given, options, native.OPERATORS)
    assert len(outputs) == (4 if record_states else 3)
    grads = _autograd._LIFSequence.backward(ctx, *outputs)
    assert described(grads[:8]) == described([x, v, v, *given[:5]])
    assert grads[8:] == (None, None, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("autapses", [False, True])
def test_autograd_of_a_recurrent_layer(autapses, dtype, fake):
    options = _autograd._Options(0.001, 0, False, 32, 1, False, False)
    x, v = new(B, F, dtype=dtype), new(B, N, dtype=state_type(dtype))
    weights, given = (new(N, F, dtype=torch.bfloat16), new(N, N)), (*constants(), new())
    ctx = Context([True] * 11 + [False] * 5)
    outputs = _autograd._LIFRecurrent.forward(
        ctx, x, v, v, v, *weights, *given, options, native.OPERATORS, False, autapses
    )
    grads = _autograd._LIFRecurrent.backward(ctx, *outputs)
    assert described(grads[:11]) == described([x, v, v, v, *weights, *given[:5]])


@pytest.mark.parametrize("record_states", [False, True])
def test_sequence_of_a_recurrent_layer(record_states, available):
    problem = problem_on("cuda", recurrent=True, dtype=torch.bfloat16)
    problem = problem._replace(record_states=record_states)
    with torch.no_grad():
        result = select_backend(problem).run(problem)
    assert described(result[:3]) == [(torch.bfloat16, (T, B, N)), *[(torch.float32, (B, N))] * 2]
    if record_states:
        assert described([result.states]) == [(torch.float32, (2, T, B, N))]


class Context(SimpleNamespace):
    """What autograd would give to a function."""

    def __init__(self, needs_input_grad):
        super().__init__(needs_input_grad=tuple(needs_input_grad))

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def set_materialize_grads(self, value):
        assert not value


# ---- reasons ----


def problem_on(device, *, recurrent=False, exact=False, dtype=torch.float32):
    """A problem whose tensors have no values."""
    with FakeTensorMode():
        x, v = torch.empty(T, B, N, device=device, dtype=dtype), torch.empty(B, N, device=device)
        c, recurrence = torch.empty((), device=device), None
        if recurrent:
            weights = torch.empty(N, N, device=device)
            recurrence = Recurrence(v, weights, weights, True, exact)
    options = (0.001, Neuron.LIF, "super", *(False,) * 4, recurrence)
    return LIFProblem(x, v, v, *[c] * 6, *options)


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("9.0", (9, 0), True),
        ("8.0", (8, 6), True),  # machine code runs on later minor versions,
        ("8.6", (8, 0), False),  # but not on earlier ones
        ("8.0", (9, 0), False),  # nor on the next major version
        ("8.0+PTX", (9, 0), True),
        ("8.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("8.0 9.0", (9, 0), True),
        ("8.0 10.0", (9, 0), False),
        ("9.0a", (9, 0), True),
        ("10.0f+PTX", (12, 0), True),
        ("", (9, 0), False),
    ],
)
def test_devices_that_are_covered(architectures, capability, expected):
    assert native.covers(architectures, capability) == expected


@pytest.fixture
def machine(monkeypatch):
    """Sets what was built and whether there is a device, of compute capability ``(9, 0)``."""

    def set_machine(architectures, has_device):
        monkeypatch.setattr(native, "CUDA_ARCHITECTURES", architectures)
        monkeypatch.setattr(native, "_covered", {})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_device)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))

    return set_machine


NOT_BUILT = "the extension was built without CUDA (set FUSED_LIF_CUDA=1 to demand it)"
NO_DEVICE = "torch finds no CUDA device"
NOT_COVERED = "the extension was built for compute capability 8.0, and the device has 9.0"


@pytest.mark.parametrize(
    ("architectures", "has_device", "reasons"),
    [
        ("", False, [NOT_BUILT, NO_DEVICE]),
        ("", True, [NOT_BUILT]),
        ("9.0", False, [NO_DEVICE]),
        ("9.0", True, []),
    ],
)
def test_why_cuda_is_unavailable(architectures, has_device, reasons, machine):
    machine(architectures, has_device)
    assert native.CUDA.unavailable() == reasons
    if has_device or not architectures:  # otherwise there cannot be such an input
        assert native.CUDA.reasons_against(problem_on("cuda")) == reasons
    assert native.CUDA.reasons_against(problem_on("cpu")) == ["the input is on cpu"]
    assert native.CPU.reasons_against(problem_on("cuda")) == ["the input is on cuda"]


def test_device_without_kernels(machine):
    machine("8.0", True)
    assert native.CUDA.unavailable() == []
    assert native.CUDA.reasons_against(problem_on("cuda")) == [NOT_COVERED]
    with pytest.raises(RuntimeError, match=NOT_COVERED):
        select_backend(problem_on("cuda"), "cuda")


def test_what_no_kernel_can_do(machine):
    machine("9.0", True)
    (reason,) = native.CUDA.reasons_against(
        problem_on("cuda", recurrent=True, exact=True, dtype=torch.bfloat16)
    )
    assert reason == "exact=True needs input and weights in float32, or all in float64"


def test_extension_that_is_not_there(monkeypatch):
    monkeypatch.setattr(native, "IMPORT_ERROR", ImportError("no file"))
    monkeypatch.setattr(native, "CUDA_ARCHITECTURES", "")
    reason = "the C++ extension could not be loaded (no file)"
    assert native.CUDA.unavailable() == [reason]
    assert native.CUDA.reasons_against(problem_on("cuda")) == [reason]


def test_requested_backend_is_refused_with_its_reasons(machine):
    x, state = torch.ones(3, 2), LIFFeedForwardState(0, 0)
    for architectures in ("", "9.0"):
        machine(architectures, True)
        with pytest.raises(RuntimeError) as error:
            fused_lif.lif_feed_forward_integral(x, state, backend="cuda")
        assert str(error.value) == "backend 'cuda' cannot run this input: the input is on cpu"
        with pytest.raises(RuntimeError, match="'cpu' cannot run this input: the input is on cuda"):
            select_backend(problem_on("cuda"), "cpu")
    machine("", False)
    with pytest.raises(RuntimeError) as error:
        select_backend(problem_on("cuda"), "cuda")
    reasons = f"{NOT_BUILT}; {NO_DEVICE}"
    assert str(error.value) == f"backend 'cuda' cannot run this input: {reasons}"


@pytest.mark.parametrize("architectures", ["", "8.0", "9.0"])
def test_torch_compile_goes_through_the_reasons(architectures, machine):
    """Without a graph break, and without a warning of torch.compile."""
    machine(architectures, torch.cuda.is_available())  # torch.compile asks too
    problems = [problem_on(device) for device in ("cuda", "cpu")]

    def count(x):
        return x + sum(len(native.CUDA.reasons_against(p)) for p in problems)

    expected = count(torch.zeros(()))
    assert expected == 1 if architectures == "9.0" else expected > 1
    torch._dynamo.reset()
    assert torch.compile(count, fullgraph=True, backend="eager")(torch.zeros(())) == expected


def test_choice(machine):
    """cuda for what is on a device that it can use; the CPU never computes for a device."""
    machine("9.0", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select_backend(problem_on("cuda")) is BACKENDS["cuda"]
        assert select_backend(problem_on("cpu")) is BACKENDS["cpu"]
        # Not built for lack of a reason that a user could mend: no warning.
        exact = problem_on("cuda", recurrent=True, exact=True, dtype=torch.bfloat16)
        assert select_backend(exact) is BACKENDS["reference"]


def test_fallback_to_the_reference_warns(machine, fake, monkeypatch):
    machine("", True)
    monkeypatch.setattr(triton, "IMPORT_ERROR", ModuleNotFoundError(name="triton"))
    backends._warn_once.cache_clear()
    numbers = LIFParameters(200.0, 100.0, 0.0, 1.0, 0.0, alpha=100.0)
    state = LIFFeedForwardState(new(B, N), new(B, N))
    with pytest.warns(RuntimeWarning) as caught:
        out, _ = fused_lif.lif_feed_forward_integral(new(T, B, N), state, numbers)
    assert described([out]) == [(torch.float32, (T, B, N))]
    (warning,) = caught
    assert str(warning.message) == (
        f"fused_lif runs on its slow reference backend: {NOT_BUILT}; "
        "triton is not installed (pip install triton); see `python -m fused_lif.info`"
    )
