"""Verifies gradients: smooth spikes, and gradcheck of your own layer.

A surrogate derivative is not the derivative of the spikes, hence finite differences cannot verify
it. With smooth spikes they can: the step function is replaced by the primitive of the surrogate,
whose derivative the surrogate is. The same kernels then compute exact gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from fused_lif.backends import backend as use_backend
from fused_lif.functional._integrate import smooth_spikes
from fused_lif.module._base import NeuronConstants, NeuronModule

__all__ = ["gradcheck", "smooth_spikes"]


def gradcheck(
    layer: nn.Module,
    input_tensor: Tensor,
    state: Any = None,
    *,
    backend: str | None = None,
    alpha: float | None = 2.0,
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-4,
    fast_mode: bool | None = None,
    verbose: bool = True,
) -> bool:
    """Checks the gradients of a layer, or of a model with such layers, by finite differences.

    Runs :func:`torch.autograd.gradcheck` on a copy of ``layer`` in float64 with smooth spikes, for
    the input, the state, and every parameter that requires a gradient, one after the other; the
    outputs and the states after the last step count. Layers inside of a model start from rest,
    and that state is held fixed, as its ``v = v_leak`` has no gradient. What a layer leaves out of
    its gradient on purpose (``detach_reset=True``, ``autapses=False``) is put in for this; then its
    own gradients are compared with those of the reference.

    Args:
        layer: The layer; it is not changed. Layers that draw random numbers cannot be checked.
        input_tensor: An input as the layer takes it, of any floating-point dtype; small, for each
            of its elements is perturbed.
        state: The state before the first step; ``None`` for the layer's own, which is then checked
            too if the layer has ``initial_state``.
        backend: Name of the backend to check; ``None`` for the one that runs by itself.
        alpha: Sharpness of the surrogates during the check; 2 makes most smooth spikes rise from 0
            to 1. ``None`` keeps that of the layer, with which they may be tiny (``super``) or so
            large that the dynamics explodes (``circ``).
        eps: Perturbation of the finite differences.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        fast_mode: Check a random projection of the gradient; ``None`` where a tensor has more than
            100 elements.
        verbose: Print what was checked.

    Returns:
        True.

    Raises:
        torch.autograd.gradcheck.GradcheckError: If a gradient is wrong; the message names the
            tensor.
        ValueError: If the method of a layer is ``"adjoint"`` or ``"eventprop"``, see
            docs/gradients.md for their verification.

    Example:
        >>> import torch, fused_lif
        >>> v_th = torch.nn.Parameter(torch.full((2,), 0.5))
        >>> layer = fused_lif.LIF(fused_lif.LIFParameters(v_th=v_th))
        >>> fused_lif.testing.gradcheck(layer, torch.full((5, 1, 2), 2.0))
        gradcheck of LIF in float64 with smooth spikes; 6 of 10 outputs would be spikes
          passed: input_tensor (5, 1, 2)
          passed: state.v (1, 2)
          passed: state.i (1, 2)
          passed: constants.v_th (2,)
        True
    """
    layer = copy.deepcopy(layer).double()
    x = input_tensor.detach().double()
    if alpha is not None:
        for module in layer.modules():
            if isinstance(module, NeuronConstants) and hasattr(module, "alpha"):
                module.alpha = torch.tensor(alpha, device=x.device)
    rest: Any = getattr(layer, "initial_state", None)
    if state is None and rest is not None:
        state = rest(x)
    parameters = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    tensors = {**_named_tensors("input_tensor", x), **_named_tensors("state", state), **parameters}
    leaves = {n: t.detach().double().clone().requires_grad_() for n, t in tensors.items()}

    _start_from_rest(layer)

    def run(**changed: Tensor) -> tuple[Tensor, ...]:
        values = leaves | changed
        arguments = [_rebuild("input_tensor", x, values)]
        if state is not None:
            arguments.append(_rebuild("state", state, values))
        weights = {name: values[name] for name in parameters}
        outputs = torch.func.functional_call(layer, weights, tuple(arguments))
        return tuple(_named_tensors("", outputs).values())

    def show(line: str) -> None:
        if verbose:
            print(line)

    with use_backend(backend):
        with torch.no_grad():
            spikes = run()[0]
        ones = int((spikes == 1).sum())
        is_binary = ones + int((spikes == 0).sum()) == spikes.numel()
        would = f"; {ones} of {spikes.numel()} outputs would be spikes" if is_binary else ""
        show(f"gradcheck of {type(layer).__name__} in float64 with smooth spikes{would}")
        left_out = [
            (module, name, value)
            for module in layer.modules()
            for name, value in (("detach_reset", True), ("autapses", False))
            if getattr(module, name, None) is value
        ]
        with smooth_spikes():
            for module, option, value in left_out:
                setattr(module, option, not value)
            for name, leaf in leaves.items():
                try:
                    torch.autograd.gradcheck(
                        lambda value, name=name: run(**{name: value}),
                        leaf,
                        eps=eps,
                        atol=atol,
                        rtol=rtol,
                        fast_mode=leaf.numel() > 100 if fast_mode is None else fast_mode,
                    )
                except GradcheckError as error:
                    reason = str(error).partition("\n")[0].rstrip(",")
                    raise GradcheckError(f"the gradient of {name} is wrong: {reason}") from error
                show(f"  passed: {name} {tuple(leaf.shape)}")
            if left_out:
                for module, option, value in left_out:
                    setattr(module, option, value)
                _compare_with_reference(run, leaves, backend, atol, rtol)
                options = ", ".join(sorted({f"{option}={value}" for _, option, value in left_out}))
                show(f"  passed: equal to the reference with {options}")
    return True


def _start_from_rest(model: nn.Module) -> None:
    """Makes the state of rest independent of the parameters that finite differences change."""
    for module in model.modules():
        if isinstance(module, NeuronModule) and hasattr(module, "initial_state"):
            unchanged = copy.deepcopy(module)

            def give_state(
                _: nn.Module, arguments: tuple[Any, ...], unchanged: Any = unchanged
            ) -> tuple[Any, ...]:
                x, *state = arguments
                return (x, unchanged.initial_state(x) if state in ([], [None]) else state[0])

            module.register_forward_pre_hook(give_state)


def _compare_with_reference(
    run: Callable[[], tuple[Tensor, ...]],
    leaves: dict[str, Tensor],
    backend: str | None,
    atol: float,
    rtol: float,
) -> None:
    def gradients(name: str | None) -> tuple[Tensor, ...]:
        with use_backend(name):
            outputs = run()
        random = torch.Generator().manual_seed(0)
        cotangents = [
            torch.rand(t.shape, generator=random, dtype=t.dtype).to(t.device) for t in outputs
        ]
        return torch.autograd.grad(
            outputs, list(leaves.values()), cotangents, materialize_grads=True
        )

    for name, ours, reference in zip(
        leaves, gradients(backend), gradients("reference"), strict=True
    ):
        if not torch.allclose(ours, reference, atol=atol, rtol=rtol):
            raise GradcheckError(
                f"the gradient of {name} differs from that of the reference by "
                f"{float((ours - reference).abs().max())}"
            )


def _named_tensors(name: str, value: Any) -> dict[str, Tensor]:
    """Returns the tensors in nested tuples and lists by their path, as in ``state.v``."""
    if isinstance(value, Tensor):
        return {name: value}
    named: dict[str, Tensor] = {}
    if isinstance(value, list | tuple):
        for key, item in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            named |= _named_tensors(f"{name}.{key}", item)
    return named


def _rebuild(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns ``value`` with the tensors of these paths."""
    if isinstance(value, Tensor):
        return tensors[name]
    if not isinstance(value, list | tuple):
        return value
    keys = getattr(value, "_fields", range(len(value)))
    items = [_rebuild(f"{name}.{k}", v, tensors) for k, v in zip(keys, value, strict=True)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
