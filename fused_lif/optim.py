"""Neuron constants in an optimiser: a group of their own."""

from __future__ import annotations

import math
import numbers
from typing import Any

from torch import Tensor, nn

from fused_lif.module._base import NeuronConstants

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module,
    lr: float | Tensor | None = None,
    neuron_lr: float | Tensor | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Returns two groups for an optimiser: ``"weights"`` and ``"neurons"``, in this order.

    Neuron constants are the parameters of all our layers' constants, parametrized or not. Weight
    decay would pull them to zero, or the logarithm of a time constant to that of 1 s, so theirs is
    zero. Every parameter of the model is in one group, once. Where constants are parametrized,
    ``neuron_lr`` is the relative change of a step of Adam: 0.01 is about 1 %.

    Args:
        model: The model.
        lr: Learning rate of the weights and of everything else; ``None`` leaves it to the
            optimiser, as below.
        neuron_lr: Learning rate of the neuron constants.
        weight_decay: Weight decay of the weights.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If a rate is negative, or if there is a ``neuron_lr`` but nothing to learn.

    Example:
        Clipping and schedules, each group on its own:

        >>> import torch, fused_lif
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), fused_lif.LIF(learnable=["tau_mem_inv"], neurons=3)
        ... )
        >>> groups = param_groups(model, lr=1e-3, neuron_lr=1e-2, weight_decay=1e-4)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> schedule = torch.optim.lr_scheduler.OneCycleLR(
        ...     optimizer, max_lr=[group["lr"] for group in groups], total_steps=100
        ... )
        >>> model(torch.ones(10, 2, 4))[0].sum().backward()
        >>> for group in optimizer.param_groups:
        ...     norm = torch.nn.utils.clip_grad_norm_(group["params"], max_norm=1.0)
        >>> optimizer.step()
        >>> schedule.step()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    constants = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NeuronConstants)
        for parameter in module.parameters()
    }
    weights = [p for p in model.parameters() if id(p) not in constants]
    neurons = [p for p in model.parameters() if id(p) in constants]
    if neuron_lr is not None and not neurons:
        raise ValueError(
            f"neuron_lr must be None for a model without learnable neuron constants, got "
            f"{neuron_lr}; learnable=(...) or a torch.nn.Parameter in p makes them learnable"
        )
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": weights},
        {"name": "neurons", "params": neurons, "weight_decay": 0.0},
    ]
    rates = (("lr", lr, 0, "lr"), ("neuron_lr", neuron_lr, 1, "lr"))
    for name, rate, group, key in (*rates, ("weight_decay", weight_decay, 0, "weight_decay")):
        if rate is None:
            continue
        if not isinstance(rate, numbers.Real | Tensor) or not 0 <= rate < math.inf:
            raise ValueError(f"{name} must be a number that is not negative, got {rate!r}")
        groups[group][key] = rate
    return groups
