"""Neuron constants in an optimiser group of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fused_lif
from fused_lif import LIF, LIFCell, LIFParameters, SequentialState
from fused_lif.optim import param_groups


def network():
    """Weights, and constants learned as they are and parametrized."""
    return SequentialState(
        nn.Linear(4, 3),
        LIF(LIFParameters(v_th=nn.Parameter(torch.full((3,), 0.5)))),
        fused_lif.LIFRecurrent(3, 3, learnable=["tau_mem_inv", "v_reset"]),
    )


def test_every_parameter_is_in_one_group():
    model = network()
    weights, neurons = param_groups(model, lr=1e-3, neuron_lr=1e-2, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names.pop(id(p)) for p in neurons["params"]] == [
        "1.constants.v_th",
        "2.constants.v_reset",
        "2.constants.parametrizations.tau_mem_inv.original",
    ]
    assert {names.pop(id(p)) for p in weights["params"]} == {
        "0.weight",
        "0.bias",
        "2.input_weights",
        "2.recurrent_weights",
    }
    assert not names
    assert (weights["name"], weights["lr"], weights["weight_decay"]) == ("weights", 1e-3, 0.1)
    assert (neurons["name"], neurons["lr"], neurons["weight_decay"]) == ("neurons", 1e-2, 0.0)


def test_constants_shared_with_other_modules():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tau_mem_inv = nn.Parameter(torch.full((4,), 100.0))  # as Norse needs it
            p = LIFParameters(tau_mem_inv=self.tau_mem_inv)
            self.cells = nn.ModuleList([LIFCell(p), LIFCell(p)])
            self.linear = nn.Linear(4, 4, bias=False)

    model = Model()
    weights, neurons = param_groups(model)
    assert neurons["params"] == [model.tau_mem_inv]
    assert weights["params"] == [model.linear.weight]
    assert "lr" not in weights
    assert "weight_decay" not in weights


def test_weight_decay_spares_the_constants():
    model = network()
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1), weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (".constants." in name), name


def test_schedules_and_clipping_per_group():
    model = network()
    optimizer = torch.optim.Adam(param_groups(model, lr=1e-3, neuron_lr=1e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda epoch: 1.0, lambda epoch: 0.5**epoch]
    )
    model(torch.rand(20, 2, 4) * 10)[0].sum().backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1e-3)
        norm = torch.stack([p.grad.norm() for p in group["params"]]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 5e-3]
    optimizer.load_state_dict(optimizer.state_dict())
    assert [g["name"] for g in optimizer.param_groups] == ["weights", "neurons"]


def test_messages():
    model = nn.Sequential(nn.Linear(2, 2), LIF())
    with pytest.raises(ValueError, match="neuron_lr must be None for a model without learnable"):
        param_groups(model, neuron_lr=0.1)
    assert param_groups(model)[1]["params"] == []
    with pytest.raises(
        ValueError, match=r"neuron_lr must be a number that is not negative, got -1"
    ):
        param_groups(network(), neuron_lr=-1)
    with pytest.raises(ValueError, match="weight_decay must be a number that is not negative"):
        param_groups(network(), weight_decay="0.1")
    with pytest.raises(TypeError, match="model must be a module, got list"):
        param_groups([])
