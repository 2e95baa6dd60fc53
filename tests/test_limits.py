"""The limit of a computation, counted by hand, and the networks of the benchmark."""

from __future__ import annotations

import benchmark_path
import cases
import compare
import limits
import networks
import peers
import problems
import pytest
import run
import torch
from problems import BACKWARD, BOTH, FORWARD, Setting

pytestmark = pytest.mark.filterwarnings("default")  # those of the peers are not ours
restore = benchmark_path.restore
RECURRENT = Setting(10, 2, 3, model="recurrent", input_size=5)
LAYERS = Setting(10, 2, 3, model="three_layers", input_size=5)


@pytest.mark.parametrize(
    ("setting", "mode", "elements", "flop"),
    [
        (Setting(10, 2, 3), FORWARD, 60 + 60, 0),  # x, z
        (Setting(10, 2, 3), BACKWARD, 60 + 60 + 60, 0),  # x, grad_z, grad_x
        (Setting(10, 2, 3, model="li"), BOTH, 5 * 60, 0),
        (Setting(1, 2, 3, model="cell"), FORWARD, 6 * 6, 0),  # x, z; v, i, before and after
        (Setting(1, 2, 3, model="cell"), BACKWARD, 9 * 6, 0),  # x, v, i; gradients of all six
        (Setting(10, 2, 3, model="encoder"), BOTH, 60 + 60, 0),  # z, grad_z
        # 20 rows of 5 inputs and 3 neurons; 2 operations for each of 8 weights of 3 neurons
        (RECURRENT, FORWARD, 100 + 60, 20 * 3 * 8 * 2),
        (RECURRENT, BACKWARD, 100 + 60 + 100, 20 * 3 * 8 * 2 * 2),
        (RECURRENT, BOTH, 3 * 100 + 2 * 60, 20 * 3 * 8 * 2 * 3),
        (LAYERS, FORWARD, 100 + 3 * 120, 20 * 3 * (5 + 3 + 3) * 2),
        # the first weights get a gradient, and the input none
        (LAYERS, BACKWARD, 100 + 3 * 180, 20 * 3 * (5 + 2 * 3 + 2 * 3) * 2),
    ],
    ids=str,
)
def test_least_work_by_hand(setting, mode, elements, flop):
    assert limits.least_work(setting, mode) == (elements, flop)


def test_the_limit_is_the_slower_of_moving_and_multiplying():
    setting = Setting(1024, 32, 256, model="recurrent", input_size=256)
    neurons = 1024 * 32 * 256
    assert limits.copied_elements(setting) == neurons
    moving = 2.0 * (neurons + neurons) / (2 * neurons)
    multiplying = 2 * neurons * 512 / (2 * 1024**3)
    assert limits.least_ms(setting, FORWARD, 2.0, 1.0) == multiplying > moving
    assert limits.least_ms(setting, FORWARD, 2.0, 1e-3) == moving
    assert limits.least_ms(setting, FORWARD, 2.0, None) is None
    small = Setting(1, 1, 100)  # 1 MiB is copied at least
    assert limits.least_ms(small, FORWARD, 1.0, None) == 100 / (2**20 / 4)


def test_limits_are_those_of_the_same_setting():
    settings = [Setting(1000, 64, n) for n in (100, 200)] * 2
    rows = [
        {"backend": backend, "mode": FORWARD, "median_ms": ms, "memory_bytes": "", "of_limit": ""}
        for backend, ms in (("copy", 1.0), ("copy", 3.0), ("cpu", 2.0), ("cpu", 4.0))
    ]
    run.add_limits(rows, settings)
    assert [row["of_limit"] for row in rows] == ["", "", 0.5, 0.75]
    size = 4 * 1000 * 64 * 100
    row = {"backend": "cpu", "mode": "saved", "median_ms": "", "memory_bytes": 2 * size}
    run.add_limits([row], settings[:1])
    assert row["of_limit"] == 0.5  # x is the least to keep


@pytest.mark.parametrize("constants", ["per neuron", "two states", "scalar"])
def test_norse_computes_our_network(constants):
    setting = Setting(40, 8, 30, model="three_layers", input_size=20, constants=constants)
    problem = networks.make_problem(setting)
    candidates = [problems.CANDIDATES["cpu"], peers.PEERS["norse"]]
    found = compare.verify(candidates, problem, BOTH)
    assert found == {"cpu": [], "norse": []}
    results = problems.REFERENCE.results(problem, BOTH)
    assert 0.01 < results["z"].mean() < 0.2
    z = problem.x
    with torch.no_grad():
        for layer, weights in zip(problem.layers, problem.weights.values(), strict=True):
            z, *_ = problems.REFERENCE.layer(layer)(z @ weights.T)
    assert torch.equal(results["z"], z)
    assert all(results[f"grad layer{k}_weights"].count_nonzero() for k in (1, 2, 3))


def test_the_notebook_in_cells_and_in_one_call_per_layer():
    setting = Setting(32, 8, 30, model="notebook", input_size=50, constants="notebook")
    problem = networks.make_problem(setting)
    assert set(problem.leaves) >= {"readout_weights", "recurrent_weights", "tau_mem_inv", "v_th"}
    module = problems.CANDIDATES["module"]
    found = compare.verify([module, peers.PEERS["norse_module"]], problem, BOTH)
    assert found == {"module": [], "norse_module": []}
    expected = problems.REFERENCE.results(problem, BOTH)
    assert all(expected[f"grad {name}"].count_nonzero() for name in problem.leaves)


def test_a_moved_spike_inside_of_a_network_shows_in_its_gradients():
    setting = Setting(40, 8, 30, model="three_layers", input_size=20)
    problem = networks.make_problem(setting)
    reference = problems.functional_layer("reference")

    def layer_of(layer):
        neurons = reference(layer)

        def moved(x):
            z, v, i = neurons(x)
            return torch.roll(z, 1, 0) if layer is problem.layers[0] else z, v, i

        return moved

    wrong = problems.TorchCandidate("cpu", layer_of)
    assert compare.verify([wrong], problem, BOTH)["cpu"]


@pytest.mark.parametrize("constants", ["per channel", "per neuron"])
def test_a_moved_spike_does_not_hide_wrong_gradients(constants):
    """A peer may move a spike, but not scale the gradients of the constants."""
    setting = Setting(40, 3, 128, constants=constants)
    problem = problems.Problem(setting)
    reference = problems.functional_layer("reference")

    def wrong(problem):
        layer = reference(problem)

        def scaled(x):
            z, v, i = layer(x)
            z = z - 0.5 * (z - z.detach())  # half of the gradient
            flip = torch.zeros_like(z)
            flip[20].view(-1)[0] = 1
            return (z - flip).abs(), v, i

        return scaled

    peer = problems.TorchCandidate("peer", wrong, exact=False)
    found = compare.verify([peer], problem, BOTH)["peer"]
    assert any("tau_mem_inv" in difference for difference in found), found


def test_memory_is_not_counted_of_what_torch_cannot_see(tmp_path):
    out = tmp_path / "rows.csv"
    arguments = ["--quick", "--budget", "0.02", "--case", "against_t", "--out", str(out)]
    run.main([*arguments, "--threads", "1"])
    saved = [line for line in out.read_text().splitlines() if ",saved," in line]
    assert saved
    assert not any(",copy," in line or ",jax," in line for line in saved)


def test_our_candidates_take_every_case():
    for name, case in cases.CASES.items():
        for ours in {"cpu", "module"} & set(case.candidates):
            for setting in case.block(*case.shapes[0]):
                assert problems.CANDIDATES[ours].reasons_against(setting, FORWARD) == [], name
