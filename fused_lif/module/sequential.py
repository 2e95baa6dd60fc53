"""Containers that pass the state of each layer along, as in ``norse.torch.module.sequential``."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["RecurrentSequential", "RecurrentSequentialState", "SequentialState"]


def is_module_stateful(module: nn.Module) -> bool:
    """Tells whether a module is called as ``module(input, state)`` and returns ``(output, state)``.

    That is so if its ``forward`` has a parameter named ``state``, or if it is one of torch's
    recurrent layers.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile(module) wraps
    return isinstance(module, nn.RNNBase) or "state" in inspect.signature(module.forward).parameters


class SequentialState(nn.Sequential):
    """A ``torch.nn.Sequential`` whose layers may have state.

    Stateful layers, those whose ``forward`` has a parameter named ``state`` and torch's ``RNN``,
    ``LSTM`` and ``GRU``, are called with their state; all others with their input only.

    Args:
        *args: Layers, or one ``OrderedDict`` of named layers.
        return_hidden: Whether to return the output of every layer instead of that of the last one.

    Shape:
        - Input: what the first layer takes, and a list with one state per layer.
        - Output: what the last layer returns, and a list with one state per layer; those of
          stateless layers are returned as given, ``None`` if there are none.

    Example:
        >>> model = SequentialState(nn.Linear(4, 3), nn.RNN(3, 2))
        >>> output, state = model(torch.ones(10, 5, 4))
        >>> output.shape, state[0], state[1].shape
        (torch.Size([10, 5, 2]), None, torch.Size([1, 5, 2]))
        >>> output, state = model(torch.ones(10, 5, 4), state)
    """

    def __init__(
        self, *args: nn.Module | OrderedDict[str, nn.Module], return_hidden: bool = False
    ) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.return_hidden = return_hidden
        self.forward_state_hooks: list[RemovableHandle] = []
        self._inspected = self._inspect()

    def _inspect(self) -> tuple[list[nn.Module], list[bool]]:
        layers = list(self)
        return layers, [is_module_stateful(layer) for layer in layers]

    @property
    def stateful_layers(self) -> list[bool]:
        """Whether each layer is stateful, also after layers were replaced, added or removed."""
        if self._inspected[0] != list(self):  # inspecting takes ten times as long as comparing
            self._inspected = self._inspect()
        return self._inspected[1]

    @overload
    def __getitem__(self, idx: slice) -> SequentialState: ...
    @overload
    def __getitem__(self, idx: int) -> nn.Module: ...
    def __getitem__(self, idx: slice | int) -> nn.Module:
        """Returns one layer, or those of a slice in a container of the same kind."""
        part = super().__getitem__(idx)
        if isinstance(idx, slice) and isinstance(part, SequentialState):
            part.return_hidden = self.return_hidden
        return part

    def __add__(self, other: nn.Sequential) -> SequentialState:
        """Returns a container with the layers of both."""
        return SequentialState(*super().__add__(other), return_hidden=self.return_hidden)

    def __mul__(self, other: int) -> SequentialState:
        """Returns a container with the same layers ``other`` times."""
        return SequentialState(*super().__mul__(other), return_hidden=self.return_hidden)

    def register_forward_state_hooks(
        self, forward_hook: Callable[[nn.Module, Any, Any], Any]
    ) -> None:
        """Registers a forward hook with every stateful layer.

        Args:
            forward_hook: Called as ``forward_hook(layer, inputs, (output, state))`` after each call
                of a layer.

        Raises:
            ValueError: If there are hooks already; :meth:`remove_forward_state_hooks` removes them.
        """
        if self.forward_state_hooks:
            raise ValueError(
                "forward_hook must be the only one, but forward state hooks are registered already"
            )
        stateful = (layer for layer in self.children() if is_module_stateful(layer))
        self.forward_state_hooks = [layer.register_forward_hook(forward_hook) for layer in stateful]

    def remove_forward_state_hooks(self) -> None:
        """Removes the hooks that :meth:`register_forward_state_hooks` registered."""
        for handle in self.forward_state_hooks:
            handle.remove()
        self.forward_state_hooks.clear()

    def forward(
        self, input_tensor: Any, state: Sequence[Any] | None = None
    ) -> tuple[Any, list[Any]]:
        """Applies the layers one after the other.

        Args:
            input_tensor: Input of the first layer.
            state: One state per layer; ``None``, as a whole or for a layer, starts from the layer's
                default.

        Returns:
            Output of the last layer (a list with that of every layer if ``return_hidden``) and a
            new list with one state per layer.

        Raises:
            ValueError: If the length of ``state`` is not the number of layers.
        """
        states = [None] * len(self) if state is None else list(state)
        if len(states) != len(self):
            raise ValueError(
                f"state must have one entry for each of the {len(self)} layers, got {len(states)}"
            )
        output = input_tensor
        hidden = []
        for index, (layer, stateful) in enumerate(zip(self, self.stateful_layers, strict=True)):
            if stateful:
                output, states[index] = layer(output, states[index])
            else:
                output = layer(output)
            if self.return_hidden:
                hidden.append(output)
        return hidden if self.return_hidden else output, states


class RecurrentSequentialState(NamedTuple):
    """State of :class:`RecurrentSequential`.

    Attributes:
        cache: Output of the call before, which joins the next input; a list if there are several.
        state: One state per layer.
    """

    cache: torch.Tensor | list[torch.Tensor] | None = None
    state: list[Any] | None = None


class RecurrentSequential(nn.Module):
    """A :class:`SequentialState` whose output is added to the input of the next call.

    Args:
        *modules: Layers.
        output_modules: Index of the layer whose output is returned and fed back, or a list of them,
            whose outputs are returned as a list and all fed back.

    Raises:
        ValueError: If there is no layer ``output_modules``.

    Example:
        >>> model = RecurrentSequential(nn.Identity())
        >>> output, state = model(torch.ones(2))
        >>> output, state = model(torch.ones(2), state)
        >>> output
        tensor([2., 2.])
    """

    def __init__(self, *modules: nn.Module, output_modules: list[int] | int = -1) -> None:
        super().__init__()
        self.module = SequentialState(*modules, return_hidden=True)
        self.output_modules = output_modules
        size = len(self.module)
        indices = [output_modules] if isinstance(output_modules, int) else output_modules
        if not all(-size <= index < size for index in indices):
            raise ValueError(
                f"output_modules must be indices of the {size} layers, got {output_modules}"
            )

    def forward(
        self, x: torch.Tensor, state: RecurrentSequentialState | None = None
    ) -> tuple[Any, RecurrentSequentialState]:
        """Applies the layers to the sum of the input and the output of the call before.

        Args:
            x: Input of the first layer.
            state: State that the call before returned; ``None`` starts without feedback.

        Returns:
            Output of the layer ``output_modules`` (a list for several) and the new state.

        Raises:
            ValueError: If the output of the call before does not have the shape of ``x``.
        """
        cache, states = RecurrentSequentialState() if state is None else state
        if cache is not None:
            for feedback in [cache] if isinstance(cache, torch.Tensor) else cache:
                if feedback.shape != x.shape:
                    raise ValueError(
                        "state.cache must have the shape of x "
                        f"{tuple(x.shape)}, got {tuple(feedback.shape)}"
                    )
                x = x + feedback
        hidden, states = self.module(x, states)
        if isinstance(self.output_modules, int):
            output = hidden[self.output_modules]
        else:
            output = [hidden[index] for index in self.output_modules]
        return output, RecurrentSequentialState(output, states)

    def extra_repr(self) -> str:
        """Returns the settings that ``repr`` shows."""
        return f"output_modules={self.output_modules}"
