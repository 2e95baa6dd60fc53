"""Verifies gradients: smooth spikes, and gradcheck of your own layer.

A surrogate derivative is not the derivative of the spikes, hence finite differences cannot verify
it. With smooth spikes they can: the step function is replaced by the primitive of the surrogate,
whose derivative the surrogate is. The same kernels then compute exact gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        backend: Name of the backend to check, whatever the layers ask for; ``None`` for the one
            that they run with.
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
        TypeError: If ``layer`` is no module or ``input_tensor`` no tensor.
        ValueError: If two calls of the layer differ, or if its method is ``"adjoint"`` or
            ``"eventprop"``: docs/gradients.md shows how these are verified.

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
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a module, got {type(layer).__name__}")
    if not isinstance(input_tensor, Tensor):
        raise TypeError(f"input_tensor must be a tensor, got {type(input_tensor).__name__}")
    layer = copy.deepcopy(layer).double()
    x = input_tensor.detach().double()
    if alpha is not None:
        for module in layer.modules():
            if isinstance(module, NeuronConstants) and hasattr(module, "alpha"):
                module.alpha = torch.tensor(alpha, device=x.device)
    rest: Any = getattr(layer, "initial_state", None) if isinstance(layer, NeuronModule) else None
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

    with torch.enable_grad(), _float64_by_default(), _run_with(layer, backend):
        outputs, again = run(), run()
        if not all(map(torch.equal, outputs, again)):
            raise ValueError(
                "layer must give the same output for the same input, but two calls differ; "
                "layer.eval() switches dropout off"
            )
        ones = int((outputs[0] == 1).sum())
        is_binary = ones + int((outputs[0] == 0).sum()) == outputs[0].numel()
        would = f"; {ones} of {outputs[0].numel()} outputs would be spikes" if is_binary else ""
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
                ours = _gradients(run, leaves)
                with _run_with(layer, "reference"):
                    reference = _gradients(run, leaves)
                for name, gradient in ours.items():
                    difference = (gradient - reference[name]).abs().max()
                    if not torch.allclose(gradient, reference[name], atol=atol, rtol=rtol):
                        raise GradcheckError(
                            f"the gradient of {name} differs from that of the reference by "
                            f"{float(difference):.1e}"
                        )
                options = ", ".join(sorted({f"{option}={value}" for _, option, value in left_out}))
                show(f"  passed: equal to the reference with {options}")
    return True


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """Encoders return torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _run_with(model: nn.Module, backend: str | None) -> Iterator[None]:
    """Runs all layers with a backend, also those that have one of their own; ``None``: as ever."""
    if backend is None:
        yield
        return
    layers = [(m, m.backend) for m in model.modules() if hasattr(m, "backend")]
    try:
        for module, _ in layers:
            module.backend = None  # type: ignore[assignment]
        with use_backend(backend):
            yield
    finally:
        for module, before in layers:
            module.backend = before


def _start_from_rest(model: nn.Module) -> None:
    """Makes the state of rest independent of the parameters that finite differences change."""
    for module in model.modules():
        if isinstance(module, NeuronModule) and hasattr(module, "initial_state"):
            unchanged = copy.deepcopy(module)

            def give_state(
                _: nn.Module,
                arguments: tuple[Any, ...],
                by_name: dict[str, Any],
                unchanged: Any = unchanged,
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                given = dict(zip(("input_tensor", "state"), arguments, strict=False)) | by_name
                if given.get("state") is None:
                    given["state"] = unchanged.initial_state(given["input_tensor"])
                return (), given

            module.register_forward_pre_hook(give_state, with_kwargs=True)


def _gradients(
    run: Callable[[], tuple[Tensor, ...]], leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the gradients of a loss that looks at all outputs."""
    outputs = run()
    random = torch.Generator().manual_seed(0)
    weights = [torch.rand(t.shape, generator=random, dtype=t.dtype).to(t.device) for t in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Returns keys and items of a tuple, a named one, a list or a dict."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    return []


def _named_tensors(name: str, value: Any) -> dict[str, Tensor]:
    """Returns the tensors in nested tuples, lists and dicts by their path, as in ``state.v``."""
    if isinstance(value, Tensor):
        return {name: value}
    named: dict[str, Tensor] = {}
    for key, item in _items(value):
        named |= _named_tensors(f"{name}.{key}", item)
    return named


def _rebuild(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns ``value`` with the tensors of these paths."""
    if isinstance(value, Tensor):
        return tensors[name]
    if not isinstance(value, dict | list | tuple):
        return value
    items = {key: _rebuild(f"{name}.{key}", item, tensors) for key, item in _items(value)}
    if isinstance(value, dict):
        return items
    return type(value)(**items) if hasattr(value, "_fields") else type(value)(items.values())
