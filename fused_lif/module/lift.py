"""Applies a module to every time step of a sequence, as ``norse.torch.module.lift``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fused_lif.module.sequential import is_module_stateful

__all__ = ["Lift"]

# Layers that treat every sample alike, whatever else is in the batch, and their spatial dimensions.
_SPATIAL_DIMS = {
    getattr(nn, f"{name}{dims}d"): dims
    for name in (
        "AdaptiveAvgPool",
        "AdaptiveMaxPool",
        "AvgPool",
        "Conv",
        "ConvTranspose",
        "MaxPool",
    )
    for dims in (1, 2, 3)
}


def _batch_dims(module: nn.Module, x: torch.Tensor) -> int | None:
    """Counts the dimensions of ``x``, time among them, that ``module`` may take as one batch.

    ``None`` means that it must be called step by step: because it may not treat every sample alike
    (subclasses, parametrized layers), because the number of calls shows (hooks), or because such
    steps are no tensors that it takes.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if any(hooks) or "forward" in vars(module) or getattr(module, "return_indices", False):
        return None
    if x.layout != torch.strided:
        return None
    if type(module) is nn.Linear:
        return 1 if x.dim() > 1 else None
    if type(module) not in _SPATIAL_DIMS:
        return None
    batch_dims = x.dim() - 1 - _SPATIAL_DIMS[type(module)]
    return batch_dims if batch_dims in (1, 2) else None


class Lift(nn.Module):
    """Applies a module to every time step of a sequence.

    The module is called once per step, in order, with the state of the step before if it is
    stateful. Linear, convolution and pooling layers of torch take all steps as one batch instead,
    with the same result up to rounding.

    Args:
        module: Module of one time step. It is stateful if its ``forward`` has a parameter named
            ``state`` or if it is one of torch's recurrent layers.

    Shape:
        - Input: ``[T, ...]``, time first, where ``[...]`` is what ``module`` takes; or a tuple of
          such a tensor and the state before the first step, which a stateless module ignores.
        - Output: ``[T, ...]``; from a stateful module a tuple of that and the state after the last
          step.

    Example:
        >>> Lift(nn.Conv2d(3, 8, kernel_size=5))(torch.ones(10, 2, 3, 20, 30)).shape
        torch.Size([10, 2, 8, 16, 26])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.lifted_module = module
        self.is_stateful = is_module_stateful(module)

    def forward(
        self, x: torch.Tensor | tuple[torch.Tensor, Any]
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Applies the module to every step.

        Args:
            x: Input ``[T, ...]``, or a tuple of it and a state.

        Returns:
            Output ``[T, ...]``, or a tuple of it and the last state if the module is stateful.

        Raises:
            ValueError: If there is no time step.
        """
        x, state = x if isinstance(x, tuple) else (x, None)
        if x.dim() == 0 or x.shape[0] == 0:
            raise ValueError(f"x must have at least one time step, got shape {tuple(x.shape)}")
        if self.is_stateful:
            outputs = []
            for step in x.unbind(0):
                output, state = self.lifted_module(step, state)
                outputs.append(output)
            return torch.stack(outputs), state
        batch_dims = _batch_dims(self.lifted_module, x)
        if batch_dims is None:
            return torch.stack([self.lifted_module(step) for step in x.unbind(0)])
        batch: torch.Tensor = self.lifted_module(x.flatten(0, batch_dims - 1))
        return batch.reshape(*x.shape[:batch_dims], *batch.shape[1:])
