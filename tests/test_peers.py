"""The adapters of `benchmarks/peers.py` compute what our reference does, or say why they cannot."""

from __future__ import annotations

import gc
import importlib.metadata
import weakref
from dataclasses import replace
from functools import partial

import benchmark_path
import compare
import peers
import pytest
import torch
from problems import BACKWARD, BOTH, FORWARD, REFERENCE, Problem, Setting
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
restore = benchmark_path.restore

LIF = Setting(40, 3, 50)
SCALAR, TWO_STATES, ONE_STATE = (
    replace(LIF, constants=c) for c in ("scalar", "two states", "one state")
)
PER_CHANNEL = replace(LIF, N=128, constants="per channel")
LI = replace(LIF, model="li")
ADJOINT = replace(SCALAR, model="adjoint")
RECURRENT = replace(LIF, N=20, model="recurrent", input_size=30)
CELL = replace(LIF, T=1, model="cell")
RECURRENT_CELL = replace(RECURRENT, T=1, model="recurrent_cell")
ENCODER = replace(LIF, model="encoder")
SEQUENCES = (LIF, SCALAR, TWO_STATES, ONE_STATE, PER_CHANNEL)
#: What each peer computes; networks and bfloat16 are tried with the first.
ABLE = {
    "norse": (*SEQUENCES, LI, ADJOINT, RECURRENT, ENCODER),
    "norse_module": (*SEQUENCES, RECURRENT, CELL, RECURRENT_CELL),
    "norse_compiled": (LIF, PER_CHANNEL, LI, RECURRENT),
    "reference_compiled": (LIF, PER_CHANNEL, LI, RECURRENT),
    "snntorch": (TWO_STATES, SCALAR),
    "sinabs": (TWO_STATES, SCALAR),
    "spikingjelly": (ONE_STATE,),
}
JAX = (*SEQUENCES, RECURRENT)
#: Whose spikes, and so their gradients, are float32 whatever the type of the state.
ROUND = ("snntorch", "sinabs")


def named(setting):
    return f"{setting.model}-{setting.constants}".replace(" ", "_")


def pairs(able):
    return [
        pytest.param(n, s, id=f"{n}-{named(s)}") for n, settings in able.items() for s in settings
    ]


def package(name):
    return {"reference_compiled": "torch"}.get(name, name.partition("_")[0])


def peer(name):
    pytest.importorskip(package(name), reason=f"{package(name)} is not installed")
    return peers.PEERS[name]


@pytest.fixture(autouse=True)
def low_limit():
    """Lets torch.compile keep the graphs of one setting only, unless an adapter says otherwise."""
    with torch._dynamo.config.patch(recompile_limit=3):
        yield


@pytest.fixture
def quick_compiler(monkeypatch):
    """Traces as for inductor, and generates no code."""
    compiler = partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(peers, "compiled", compiler)


def assert_same(name, actual, expected):
    """In float64 and with the same spikes, only rounding is left."""
    limit = 1e-7 if name in ROUND else 1e-12
    for a, e in zip(actual, expected, strict=True):
        assert_close(a.double(), e.double(), rtol=0, atol=limit * e.abs().max().item())


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(("name", "setting"), pairs(ABLE))
def test_outputs_and_gradients_are_those_of_the_reference(name, setting):
    candidate, problem = peer(name), Problem(replace(setting, dtype="float64"))
    assert candidate.reasons_against(problem.setting, BOTH) == []
    expected = REFERENCE.results(problem, BOTH)
    actual = candidate.results(problem, BOTH)
    if setting.T > 1 and setting.model != "li":
        assert 0.01 < expected["z"].mean() < 0.5
    assert expected.keys() - actual.keys() <= {"v", "i"}
    assert_same(name, actual.values(), [expected[key] for key in actual])


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(
    ("name", "setting"), pairs({name: settings[:1] for name, settings in ABLE.items()})
)
def test_layers_of_a_peer_make_a_network(name, setting):
    """The layers take an x of their own, which has a graph, and more than once."""
    problem = Problem(replace(setting, dtype="float64"))
    generator = torch.Generator().manual_seed(0)
    weights = 0.6 * torch.rand(setting.N, setting.N, generator=generator, dtype=torch.float64)
    leaves = [*problem.leaves.values(), torch.nn.Parameter(weights)]

    def gradients(layers):
        z = layers[1](layers[0](1.1 * problem.x)[0] @ leaves[-1])[0]
        return z, *torch.autograd.grad(z, leaves, problem.grad_z)

    expected = gradients([REFERENCE.layer(problem)] * 2)
    assert 0.05 < expected[0].mean() < 0.5
    layers = [peer(name).layer(problem) for _ in range(2)]
    for _ in range(2):
        assert_same(name, gradients(layers), expected)


@pytest.mark.parametrize("setting", JAX, ids=named)
def test_jax_computes_ours(setting):
    candidate = peer("jax")
    assert candidate.reasons_against(setting, BOTH) == []
    problem = Problem(setting)
    assert compare.verify([candidate], problem, FORWARD) == {"jax": []}
    assert compare.verify([candidate], problem, BOTH) == {"jax": []}
    due = {f"grad {name}" for name in problem.leaves}
    assert {n for n in candidate.results(problem, BOTH) if n.startswith("grad")} == due


@pytest.mark.parametrize("name", ["norse_compiled", "reference_compiled"])
def test_compiled_code_computes_ours(name):
    assert compare.verify([peer(name)], Problem(LIF), BOTH) == {name: []}


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", ["norse_compiled", "reference_compiled"])
def test_training_is_compiled_before_the_clock_starts(name):
    problem = Problem(RECURRENT)
    calls = [peer(name).call(problem, mode) for mode in (FORWARD, BACKWARD, BOTH)]
    with torch.compiler.set_stance("fail_on_recompile"):
        for call in calls:
            call.run(call.before())
    assert all(leaf.grad is not None for leaf in problem.leaves.values())


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", ["norse_compiled", "reference_compiled"])
def test_settings_beyond_the_limit_compile_too(name):
    for N in (4, 5):
        problem = Problem(Setting(2, 1, N, constants="scalar"))
        assert peer(name).layer(problem)(problem.x)[0].shape == (2, 1, N)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(
    ("name", "setting"),
    pairs({n: [s for s in settings[:1] if not s.is_recurrent] for n, settings in ABLE.items()}),
)
def test_bfloat16(name, setting):
    problem = Problem(replace(setting, dtype="bfloat16"))
    candidate = peer(name)
    assert candidate.reasons_against(problem.setting, BOTH) == []
    assert compare.verify([candidate], problem, BOTH) == {name: []}
    assert candidate.results(problem, FORWARD)["z"].dtype == torch.bfloat16


def test_synaptic_neurons_keep_no_graph():
    candidate, problem = peer("snntorch"), Problem(TWO_STATES)
    import snntorch

    layer = candidate.layer(problem)
    assert snntorch.SpikingNeuron.instances == []
    potentials = weakref.ref(layer(problem.x)[1])
    gc.collect()
    assert potentials() is None


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("norse", CELL, "has no model 'cell' here"),
        ("norse", replace(LIF, model="adjoint"), "has no gradients of constants, as 'per neuron'"),
        (
            "norse",
            replace(RECURRENT, dtype="bfloat16"),
            "weights are float32, the input is bfloat16",
        ),
        ("norse_compiled", ADJOINT, "has no model 'adjoint' here"),
        ("snntorch", LIF, "takes only constants 'two states' or 'scalar', not 'per neuron'"),
        ("sinabs", ONE_STATE, "takes only constants 'two states' or 'scalar', not 'one state'"),
        ("sinabs", RECURRENT, "has no model 'recurrent' here"),
        ("spikingjelly", SCALAR, "takes only constants 'one state', not 'scalar'"),
        ("jax", replace(LIF, dtype="bfloat16"), "takes only float32 here, not bfloat16"),
    ],
)
def test_what_a_peer_cannot_is_said(name, setting, reason):
    (found,) = peer(name).reasons_against(setting, BOTH)
    assert reason in found


@pytest.mark.parametrize("name", [*ABLE, "jax"])
def test_a_peer_that_is_not_installed_is_absent(name, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    expected = [f"{package(name)} is not installed"]
    assert peers.PEERS[name].reasons_against(LIF, BOTH) == expected


def test_every_peer_is_tested():
    assert peers.PEERS.keys() - {"spikingjelly_graph"} == {*ABLE, "jax"}


@pytest.mark.parametrize("name", peers.PACKAGES)
def test_packages_are_distributions(name):
    pytest.importorskip(name, reason=f"{name} is not installed")
    assert importlib.metadata.version(name)
