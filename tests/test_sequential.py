"""Containers and lifting: equality with Norse, values calculated by hand, what Norse refuses."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from fused_lif.functional.lift import lift
from fused_lif.module.lift import Lift
from fused_lif.module.sequential import (
    RecurrentSequential,
    RecurrentSequentialState,
    SequentialState,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    norse = pytest.importorskip("norse.torch")


class Sum(nn.Module):
    """A stateful layer: its state is the sum of its inputs, its output that sum and the input."""

    def forward(self, x, state=None):
        state = x if state is None else state + x
        return state + x, state


class Recorder(nn.Linear):
    """A layer that is not known to treat all samples alike: it counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def sum_step(x, state=0.0, p=1.0):
    return p * x + state, p * x + state


def random_tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_layers():
    torch.manual_seed(0)
    return [nn.Linear(4, 3), Sum(), nn.ReLU(), nn.LSTM(3, 2), nn.Flatten(2), Sum()]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def gradients(output, inputs, module):
    output.square().sum().backward()
    result = [x.grad.clone() for x in inputs]
    result += [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return result


@pytest.mark.parametrize("return_hidden", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_sequential_equals_norse(steps, return_hidden):
    layers = make_layers()
    results = []
    for container in (SequentialState, norse.SequentialState):
        model = container(*layers, return_hidden=return_hidden)
        inputs = [random_tensor(7, 5, 4, seed=t).requires_grad_() for t in range(steps)]
        state = None
        for x in inputs:
            output, state = model(x, state)
        last = output[-1] if return_hidden else output
        results.append((output, state, gradients(last, inputs, model), model.stateful_layers))
    assert_same(*results)
    assert type(results[0][1]) is list
    assert results[0][3] == [False, True, False, True, False, True]


def test_sequential_runs_norses_layers():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3), norse.LIFCell(), norse.LIFRecurrentCell(3, 2)]
    x = random_tensor(5, 4)
    actual, expected = SequentialState(*layers)(x), norse.SequentialState(*layers)(x)
    assert_same(actual, expected)


def test_sequential_by_hand():
    model = SequentialState(nn.Identity(), Sum(), Sum(), return_hidden=True)
    hidden, state = model(torch.tensor(1.0))
    assert [float(x) for x in hidden] == [1, 2, 4]
    assert [x if x is None else float(x) for x in state] == [None, 1, 2]
    hidden, state = model(torch.tensor(3.0), state)
    assert [float(x) for x in hidden] == [3, 7, 16]
    assert [x if x is None else float(x) for x in state] == [None, 4, 9]


def test_sequential_leaves_the_given_state_alone():
    model = SequentialState(Sum(), nn.Identity())
    given = [None, "untouched"]
    _, state = model(torch.ones(2), given)
    assert given == [None, "untouched"]
    assert state is not given
    assert state[1] == "untouched"
    assert model(torch.ones(2), (None, None))[1][0] is not None  # a tuple will do


def test_sequential_state_of_wrong_length():
    model = SequentialState(Sum(), Sum())
    with pytest.raises(
        ValueError, match=r"^state must have one entry for each of the 2 layers, got 1$"
    ):
        model(torch.ones(2), [None])


def test_sequential_without_layers():
    output, state = SequentialState()(torch.ones(2))
    assert_same(output, torch.ones(2))
    assert state == []


def test_sequential_of_named_layers():
    model = SequentialState(OrderedDict(linear=nn.Linear(2, 2), sum=Sum()))
    assert list(model.state_dict()) == ["linear.weight", "linear.bias"]
    assert model.stateful_layers == [False, True]
    hooked = []
    model.register_forward_state_hooks(lambda layer, inputs, output: hooked.append(layer))
    _, state = model(torch.ones(2))
    assert state[1] is not None
    assert hooked == [model.sum]


def test_sequential_slices():
    model = SequentialState(*make_layers(), return_hidden=True)
    x = random_tensor(7, 5, 4)
    hidden, state = model(x)
    tail = model[2:]
    assert type(tail) is SequentialState
    assert tail.stateful_layers == [False, True, False, True]
    tail_hidden, tail_state = tail(hidden[1])
    torch.testing.assert_close((tail_hidden, tail_state), (hidden[2:], state[2:]))
    assert model[3] is list(model)[3]
    nested = SequentialState(SequentialState(Sum()), return_hidden=True)
    assert not nested[0].return_hidden


def test_sequential_follows_changes_of_its_layers():
    model = SequentialState(nn.Identity())
    model.append(Sum()).insert(0, Sum()).extend([nn.Identity(), Sum()])
    assert model.stateful_layers == [True, False, True, False, True]
    model[1] = Sum()
    del model[0]
    assert model.stateful_layers == [True, True, False, True]
    model.pop(1)
    model += SequentialState(Sum(), nn.Identity())
    assert model.stateful_layers == [True, False, True, True, False]
    assert float(model(torch.tensor(1.0))[0]) == 8
    twice = 2 * model[:1] + SequentialState(nn.Identity())
    assert type(twice) is SequentialState
    assert twice.stateful_layers == [True, True, False]


def test_sequential_knows_decorated_and_compiled_layers():
    class Frozen(Sum):
        @torch.no_grad()
        def forward(self, x, *, state=None):
            return super().forward(x, state)

    compiled = [torch.compile(layer, backend="eager") for layer in (Sum(), nn.ReLU())]
    model = SequentialState(Frozen(), *compiled, nn.GRU(1, 1))
    assert model.stateful_layers == [True, True, False, True]


def test_sequential_hooks():
    model = SequentialState(nn.Linear(4, 3), Sum(), nn.LSTM(3, 2), SequentialState(Sum()))
    seen = []

    def hook(module, inputs, output):
        seen.append((type(module), len(inputs), type(output)))

    model.register_forward_state_hooks(hook)
    assert len(model.forward_state_hooks) == 3
    with pytest.raises(ValueError, match="registered already"):
        model.register_forward_state_hooks(hook)
    model(random_tensor(7, 5, 4))
    assert seen == [(Sum, 2, tuple), (nn.LSTM, 2, tuple), (SequentialState, 2, tuple)]
    model.remove_forward_state_hooks()
    assert model.forward_state_hooks == []
    model(random_tensor(7, 5, 4))
    assert len(seen) == 3
    model.register_forward_state_hooks(hook)


def test_sequential_calls_the_hook_of_a_repeated_layer_once_per_call():
    layer, calls = Sum(), []
    model = SequentialState(layer, layer)
    model.register_forward_state_hooks(lambda *_: calls.append(1))
    model(torch.ones(2))
    assert len(calls) == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize(
    "make",
    [
        lambda: SequentialState(*make_layers()),
        lambda: RecurrentSequential(nn.Linear(4, 4), Sum(), output_modules=[0, -1]),
        lambda: Lift(SequentialState(nn.Linear(4, 4), Sum())),
    ],
)
def test_containers_copy(make, duplicate):
    model = make()
    again = duplicate(model)
    x = random_tensor(7, 5, 4)
    assert repr(again) == repr(model)
    assert_same(again(x), model(x))
    if isinstance(again, SequentialState):
        again[0] = Sum()
        assert again.stateful_layers[0]
        assert not model.stateful_layers[0]


@pytest.mark.parametrize("extended", [False, True])
def test_sequential_compiles_without_graph_break(extended):
    model = SequentialState(nn.Linear(4, 3), Sum(), SequentialState(nn.ReLU(), Sum()))
    if extended:
        model.append(Sum())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = random_tensor(5, 4)
    with torch.no_grad():
        expected, state = model(x)
        actual, compiled_state = compiled(x)
        assert_same((actual, compiled_state), (expected, state))
        assert_same(compiled(x, compiled_state), model(x, state))


@pytest.mark.parametrize("output_modules", [-1, 0, 1])
def test_recurrent_sequential_equals_norse(output_modules):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), Sum(), nn.Tanh()]
    results = []
    for container in (RecurrentSequential, norse.RecurrentSequential):
        model = container(*layers, output_modules=output_modules)
        inputs = [random_tensor(5, 4, seed=t).requires_grad_() for t in range(3)]
        state = None
        for x in inputs:
            output, state = model(x, state)
        results.append((output, tuple(state), gradients(output, inputs, model)))
    assert_same(*results)
    assert list(model.state_dict()) == ["module.0.weight", "module.0.bias"]


def test_recurrent_sequential_feeds_several_outputs_back():
    model = RecurrentSequential(nn.Identity(), Sum(), output_modules=[0, 1])
    output, state = model(torch.tensor(1.0))
    assert isinstance(state, RecurrentSequentialState)
    assert [float(x) for x in output] == [1, 2]
    output, state = model(torch.tensor(10.0), state)
    assert [float(x) for x in output] == [13, 27]
    output, state = model(torch.tensor(1.0), RecurrentSequentialState())
    assert [float(x) for x in output] == [1, 2]


def test_recurrent_sequential_error_messages():
    with pytest.raises(
        ValueError, match=r"^output_modules must be indices of the 1 layers, got \[0, 1\]$"
    ):
        RecurrentSequential(Sum(), output_modules=[0, 1])
    model = RecurrentSequential(nn.Linear(4, 3))
    _, state = model(torch.ones(5, 4))
    with pytest.raises(
        ValueError, match=r"^state.cache must have the shape of x \(5, 4\), got \(5, 3\)$"
    ):
        model(torch.ones(5, 4), state)


BATCHED = [
    (nn.Linear(4, 3), (4,)),
    (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 8)),
    (nn.Conv2d(2, 4, 3, stride=2, groups=2), (2, 8, 9)),
    (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    (nn.ConvTranspose2d(2, 3, 3), (2, 4, 5)),
    (nn.MaxPool1d(2), (2, 8)),
    (nn.MaxPool2d(2), (2, 8, 9)),
    (nn.AvgPool3d(2), (2, 4, 4, 4)),
    (nn.AdaptiveAvgPool2d(2), (2, 8, 9)),
    (nn.AdaptiveMaxPool1d(3), (2, 8)),
]
LOOPED = [
    (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), (2, 8, 9)),
    (Recorder(4, 3), (4,)),
]


LIFTED = [(*case, batch) for case in BATCHED + LOOPED for batch in [(), (1,), (3,), (0,)]]
LIFTED += [(nn.BatchNorm2d(2), (2, 8, 9), (3,)), (nn.Flatten(1), (2, 8), (3,))]


@pytest.mark.parametrize(("module", "shape", "batch"), LIFTED, ids=lambda v: str(v).split("(")[0])
def test_lift_equals_norse(module, shape, batch):
    results = []
    for container in (Lift, norse.Lift):
        lifted = container(copy.deepcopy(module).double())
        x = random_tensor(5, *batch, *shape).double().requires_grad_()
        output = lifted(x)
        results.append((output, gradients(output, [x], lifted), lifted.state_dict()))
    # float32 sums of a convolution differ by 1.1e-5 between machines.
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_lift_of_linear_takes_any_number_of_dimensions():
    linear = nn.Linear(4, 3)
    for shape in [(5, 4), (5, 2, 4), (5, 2, 3, 4)]:
        x = random_tensor(*shape)
        torch.testing.assert_close(Lift(linear)(x), norse.Lift(linear)(x))


def test_lift_of_sparse_sequence():
    x = (random_tensor(5, 3, 4) > 0.5).float()
    linear = nn.Linear(4, 2)
    torch.testing.assert_close(Lift(linear)(x.to_sparse()), Lift(linear)(x))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(5, 2), (5,)), (nn.Conv1d(5, 2, 1), (5, 4)), (nn.MaxPool1d(1), (2, 3, 4, 5, 6))],
)
def test_lift_refuses_steps_that_the_module_refuses(module, shape):
    x = torch.ones(shape)
    for container in (Lift, norse.Lift):
        with pytest.raises(RuntimeError):
            container(module)(x)


def test_lift_calls_known_layers_once_and_others_once_per_step():
    x = random_tensor(5, 3, 4)
    recorder = Recorder(4, 3)
    Lift(recorder)(x)
    assert recorder.calls == 5
    calls = []
    linear = nn.Linear(4, 3)
    hook = linear.register_forward_hook(lambda *_: calls.append(1))
    Lift(linear)(x)
    assert len(calls) == 5
    hook.remove()
    linear.forward = lambda step: calls.append(1) or step
    Lift(linear)(x)
    assert len(calls) == 10


def test_lift_normalises_each_step_by_itself():
    x = torch.arange(4.0).reshape(2, 2, 1) * 1000
    lifted = Lift(nn.BatchNorm1d(1))
    expected = torch.tensor([-1.0, 1.0, -1.0, 1.0]).reshape(2, 2, 1)
    torch.testing.assert_close(lifted(x), expected)


@pytest.mark.parametrize(
    "module", [Sum(), SequentialState(nn.Linear(4, 4), Sum()), nn.GRU(4, 4)], ids=type
)
def test_lift_of_stateful_module_equals_norse(module):
    x = random_tensor(7, 5, 4)
    actual, expected = Lift(module)(x), norse.Lift(module)(x)
    assert_same(actual, expected)
    actual_again = Lift(module)((x, actual[1]))
    assert_same(actual_again, norse.Lift(module)((x, expected[1])))
    assert not torch.equal(actual_again[0], actual[0])


def test_lift_by_hand():
    output, state = Lift(Sum())((torch.tensor([1.0, 2.0]), torch.tensor(10.0)))
    assert_same(output, torch.tensor([12.0, 15.0]))
    assert_same(state, torch.tensor(13.0))
    output = Lift(nn.Identity())((torch.tensor([1.0, 2.0]), "ignored"))
    assert_same(output, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("lifted", [Lift(nn.Linear(4, 3)), Lift(Sum())])
def test_lift_needs_a_time_step(lifted):
    with pytest.raises(
        ValueError, match=r"^x must have at least one time step, got shape \(0, 4\)$"
    ):
        lifted(torch.ones(0, 4))


@pytest.mark.parametrize("module", [nn.Linear(4, 3), Sum()])
def test_lift_compiles_without_graph_break(module):
    lifted = Lift(module)
    x = random_tensor(5, 3, 4)
    torch.testing.assert_close(
        torch.compile(lifted, fullgraph=True, backend="aot_eager")(x), lifted(x)
    )


@pytest.mark.parametrize("p", [None, 2.0])
@pytest.mark.parametrize("kwargs", [{}, {"state": 3.0}, {"p": 0.5}], ids=str)
def test_lifted_function_equals_norse(kwargs, p):
    x = random_tensor(7, 5)
    assert_same(lift(sum_step, p)(x, **kwargs), norse.lift(sum_step, p)(x, **kwargs))


def test_lifted_function():
    lifted = lift(sum_step, p=2.0)
    output, state = lifted(torch.tensor([1.0, 2.0, 3.0]), state=1.0)
    assert_same(output, torch.tensor([3.0, 7.0, 13.0]))
    assert_same(state, torch.tensor(13.0))
    x = random_tensor(7, 5)
    assert_same(pickle.loads(pickle.dumps(lifted))(x), lifted(x))
    with pytest.raises(
        ValueError, match=r"^input_tensor must have at least one time step, got shape \(0, 5\)$"
    ):
        lifted(x[:0])
