"""CUDA operators on the CPU, called directly: what they keep, need and refuse."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import (
    SUPER,
    assert_close_sequences,
    check_spikes,
    operator_arguments,
    run_operators,
    run_recurrent_operators,
)
from helpers import (
    NEURONS,
    assert_same_bits,
    call,
    random_case,
    random_recurrent_case,
)
from test_recurrent_backward import check as check_recurrent_gradients

from fused_lif import LIFParameters, LIFState, lif_step_integral
from fused_lif.surrogate import EVENT_METHODS

pytestmark = pytest.mark.usefixtures("emulated")

cpu = torch.ops.fused_lif

#: What a spike is, to ``run_operators`` and ``run_recurrent_operators``.
SPIKES = {
    "surrogate": {},
    "smooth": {"smooth": True},
    **{name: {"method": id_} for name, id_ in EVENT_METHODS.items()},
}
each_spike = pytest.mark.parametrize("spike", SPIKES.values(), ids=SPIKES)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("interval", [0, 1, 8, 32])
@pytest.mark.parametrize("neuron", NEURONS)
@each_spike
def test_kept_states(T, interval, neuron, spike, cuda):
    if interval == 0 and T > 32:
        return
    case = random_case((T, 3, 7), torch.float64, neuron)
    actual = run_operators(cuda, case.x, case, interval, **spike)
    expected = run_operators(cpu, case.x, case, interval, **spike)
    for a, e in zip(actual[:4], expected[:4]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[4:], expected[4:], torch.float64)
    if interval in (0, 8):  # the recomputed steps have the same bits
        for a, e in zip(actual[4:], run_operators(cuda, case.x, case, 32, **spike)[4:]):
            assert_same_bits(a, e)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("interval", [0, 1, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_spike
def test_kept_states_of_recurrent_layers(T, interval, dtype, spike, cuda):
    if (interval == 0 and T > 32) or (spike.get("smooth") and dtype != torch.float64):
        return
    case = random_recurrent_case((T, 3, 5, 7), dtype)
    actual = run_recurrent_operators(cuda, case, interval, **spike)
    expected = run_recurrent_operators(cpu, case, interval, **spike)
    if not spike.get("smooth"):  # otherwise sums over neurons are not exact
        for a, e in zip(actual[:5], expected[:5]):
            assert_same_bits(a, e)
    assert_close_sequences(actual, expected, case.v.dtype)
    if interval in (0, 8):
        for a, e in zip(actual[5:], run_recurrent_operators(cuda, case, 32, **spike)[5:]):
            assert_same_bits(a, e)


@pytest.mark.parametrize("shape", [(4, 70), (1, 4, 70)], ids=["no time", "one step"])
def test_a_single_step(shape, cuda):
    case = random_case((1, 4, 70))
    x = case.x.detach().reshape(shape)
    actual, expected = (run_operators(ops, x, case, 0) for ops in (cuda, cpu))
    assert actual[0].shape == x.shape
    for a, e in zip(actual[:4], expected[:4]):
        assert_same_bits(a, e)
    assert_close_sequences(actual[4:], expected[4:], torch.float32)


@pytest.mark.parametrize("given", ["out", "v", "i", "states", "nothing", "out and states"])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("T", [20, 70])
def test_gradients_that_are_not_given_are_zero(given, neuron, T, cuda):
    case = random_case((T, 3, 7), torch.float64, neuron)
    states = torch.randn(1 if neuron == "encoder" else 2, T, 3, 7, dtype=torch.float64)
    named = {
        "out": torch.randn_like(case.x),
        "v": torch.randn_like(case.v),
        "i": None if neuron == "encoder" else torch.randn_like(case.v),
        "states": states,
    }
    names = given.split(" and ")
    grads = tuple(g if name in names else None for name, g in named.items())
    zeros = tuple(
        g if name in names or g is None else torch.zeros_like(g) for name, g in named.items()
    )
    actual = run_operators(cuda, case.x, case, 1, grads=grads)
    for a, e in zip(actual, run_operators(cuda, case.x, case, 1, grads=zeros)):
        assert_same_bits(a, e)
    expected = run_operators(cpu, case.x, case, 1, grads=grads)
    assert_close_sequences(actual, expected, torch.float64)
    if given not in ("nothing", "i"):
        assert actual[4].any()


@pytest.mark.parametrize("given", ["out", "v", "i", "states", "nothing", "out and states"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_recurrent_gradients_that_are_not_given_are_zero(given, dtype, cuda):
    case = random_recurrent_case((40, 3, 5, 7), dtype)
    named = {
        "out": torch.randn(40, 3, 7, dtype=dtype),
        "v": torch.randn_like(case.v),
        "i": torch.randn_like(case.v),
        "states": torch.randn(2, 40, 3, 7, dtype=dtype),
    }
    names = given.split(" and ")
    grads = tuple(g if name in names else None for name, g in named.items())
    actual = run_recurrent_operators(cuda, case, 1, grads=grads)
    expected = run_recurrent_operators(cpu, case, 1, grads=grads)
    assert_close_sequences(actual, expected, dtype)
    assert actual[5].any() == (given != "nothing")


@pytest.mark.parametrize("needs", [0, 255, *(1 << k for k in range(8)), 0b10101001])
@pytest.mark.parametrize("recurrent", [False, True], ids=["sequence", "recurrent"])
def test_only_what_is_needed(needs, recurrent, cuda):
    if recurrent:
        case = random_recurrent_case((40, 3, 5, 7))
        all_of_them = run_recurrent_operators(cuda, case, 32)[5:]
        actual = run_recurrent_operators(cuda, case, 32, needs=needs)[5:]
        assert_same_bits(actual[0], all_of_them[0])  # the gradient of i_jump is always needed
        actual, all_of_them = actual[1:], all_of_them[1:]
    else:
        case = random_case((40, 3, 7))
        all_of_them = run_operators(cuda, case.x, case, 32)[4:]
        actual = run_operators(cuda, case.x, case, 32, needs=needs)[4:]
    for k, (a, e) in enumerate(zip(actual, all_of_them)):
        if needs >> k & 1 or k in (1, 2):  # v and i are always there
            assert_same_bits(a, e)
        else:
            assert a.shape == (0,)


@each_spike
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_current_encoder_with_soft_reset(dtype, spike, cuda):
    """No public function has it."""
    if spike.get("smooth") and dtype != torch.float64:
        return
    case = random_case((40, 3, 35), dtype, "encoder", reset="soft")
    actual = run_operators(cuda, case.x, case, 32, **spike)
    expected = run_operators(cpu, case.x, case, 32, **spike)
    assert_close_sequences(actual, expected, dtype)
    assert actual[4].any()


@pytest.mark.parametrize("recurrent", [False, True], ids=["sequence", "recurrent"])
@pytest.mark.parametrize(
    ("dtype", "spike", "message"),
    [
        (torch.float32, {"smooth": True}, "smooth spikes need float64"),
        (torch.float64, {"smooth": True, "method": 9}, "event-based method has no smooth spikes"),
        (torch.float64, {"method": 11}, "unknown method 11; known ones are 0 to 10"),
    ],
    ids=["float32", "events", "unknown"],
)
def test_spikes_that_there_are_not(dtype, spike, message, recurrent, cuda):
    if recurrent:
        run, given = run_recurrent_operators, (random_recurrent_case((3, 2, 4, 5), dtype),)
    else:
        case = random_case((3, 2, 5), dtype)
        run, given = run_operators, (case.x, case)
    with pytest.raises(RuntimeError, match=message):
        run(cuda, *given, 0, **spike)


def test_alpha_is_for_smooth_spikes_only(cuda):
    case = random_case((3, 2, 5), torch.float64)
    tensors, alpha, *options = operator_arguments(case)
    for a, smooth in ((alpha, False), (None, True)):
        with pytest.raises(RuntimeError, match="alpha must be given"):
            cuda.lif_forward(case.x, *tensors, a, 0.001, *options, 0, SUPER, smooth)
    case = random_recurrent_case((3, 2, 4, 5), torch.float64)
    for a, smooth in ((alpha, False), (None, True)):
        with pytest.raises(RuntimeError, match="alpha must be given"):
            cuda.lif_recurrent_forward(
                *case[:6], *case.constants, a, 0.001, False, False, 0, SUPER, smooth, True
            )


def test_more_time_steps_than_31_bits(cuda):
    case = random_case((1, 1))
    x = case.x.detach().expand(2**31, 1)
    tensors, _, *options = operator_arguments(case)
    with pytest.raises(RuntimeError, match=r"CUDA takes at most \d+ time steps, got 2147483648"):
        cuda.lif_forward(x, *tensors, None, 0.001, *options, 0, SUPER, False)


def test_spikes_are_not_packed(cuda):
    """Recurrent layers keep the spikes themselves: autograd notices if they are changed."""
    case = random_recurrent_case((20, 3, 5, 7))
    *_, input_spikes, spikes = cuda.lif_recurrent_forward(
        *case[:6], *case.constants, None, 0.001, False, False, 32, SUPER, False, True
    )
    assert input_spikes.shape == spikes.shape == (0,)
    grad, words = torch.randn(3, 7), torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="CUDA takes input, not packed spikes"):
        cuda.weight_grad(grad, torch.zeros(3, 5), words, 5)
    with pytest.raises(RuntimeError, match="CUDA takes input, not packed spikes"):
        cuda.weight_grad(grad, None, words, 5)
    z, _ = call(
        lif_step_integral,
        case.x,
        LIFState(case.z, case.v, case.i),
        case.input_weights,
        case.recurrent_weights,
        LIFParameters(),
        backend="emulated",
    )
    z.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("constant_shape", [(), (2, 1, 4, 1), (3, 1, 6)], ids=str)
def test_constants_of_recurrent_layers(constant_shape):
    """The batch has several dimensions; the last one of the step are the neurons."""
    case = random_recurrent_case((9, 2, 3, 4, 5, 6), torch.float64, constant_shape=constant_shape)
    check_spikes(case)
    check_recurrent_gradients(case, "emulated")
