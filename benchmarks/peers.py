"""Candidates that are not ours: an adapter per library, and why it is absent where it is.

Every adapter computes the same thing as our reference: `run.py` compares outputs and gradients
before it starts the clock, and drops a peer that differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from graphs import Graphed
from problems import (
    ALPHA,
    BOTH,
    DT,
    FORWARD,
    Call,
    Candidate,
    Layer,
    Problem,
    Setting,
    TorchCandidate,
    module_layer,
)
from torch import Tensor


def _needs(package: str, *models: str) -> Callable[[Setting], list[str]]:
    def reasons(setting: Setting) -> list[str]:
        if find_spec(package) is None:
            return [f"{package} is not installed"]
        if setting.model not in models:
            return [f"has no model {setting.model!r} here"]
        return []

    return reasons


def _norse(problem: Problem) -> Layer:
    """Norse's functions for one step, in a loop over ``x.unbind(0)``: linear in T."""
    import norse.torch as norse

    functional = norse.functional
    setting = problem.setting
    if setting.model == "encoder":
        encode = functional.encode.constant_current_lif_encode
        p = problem.parameters(norse)
        return lambda x: (encode(x, setting.T, p, DT),)
    if setting.model == "li":
        library: Any = functional.leaky_integrator
        step = library.li_feed_forward_step
    else:
        library = functional.lif
        step = library.lif_step if setting.is_recurrent else library.lif_feed_forward_step
    p, start = problem.parameters(library), problem.state(library)
    weights = tuple(problem.weights.values())

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        state, outputs = start, []
        for x_t in x.unbind(0):
            z, state = step(x_t, state, *weights, p, DT)
            outputs.append(z)
        return torch.stack(outputs), state.v, state.i

    return layer


def _norse_module(problem: Problem) -> Layer:
    """Norse's modules from a given state; without one, release 1.1.0 fails for ``v_leak [N]``."""
    import norse.torch as norse

    return module_layer(problem, norse)


def _needs_one_state(setting: Setting) -> list[str]:
    if setting.constants != "one state":
        return ["its neuron has one state and scalar constants without gradients"]
    return _needs("spikingjelly", "lif")(setting)


def _spikingjelly(problem: Problem) -> Layer:
    """SpikingJelly's LIF sequence; on a GPU, its Triton kernels.

    ``h = v + (x - (v - v_reset)) / tau`` is our potential for constants "one state", with
    ``tau = 1 / (dt * tau_mem_inv)``. Release 2.0 chooses the kernels itself, unless this variable
    of the environment says which; `LIFNode` calls the same function with a state in the type of x.
    """
    os.environ["SJ_LIF_CUDA_IMPLEMENTATION"] = "triton"  # read at import
    from spikingjelly.activation_based import functional, surrogate

    v = problem.v
    tau = 1 / float(DT * problem.constants["tau_mem_inv"].cpu())
    v_th, v_reset = (float(problem.constants[name].cpu()) for name in ("v_th", "v_reset"))
    spikes = surrogate.SuperSpike(alpha=ALPHA)

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        return functional.lif_multi_step(x, v, tau, True, v_th, v_reset, spikes, False)[:2]

    return layer


@cache
def _jax_functions() -> dict[str, Callable[..., Any]]:
    """Returns the LIF layer as a `jax.lax.scan`, alone and with the gradients for a ``grad_z``.

    ``p`` has the constants by name, and for a recurrent layer the weights, which multiply the input
    of all steps at once and the spikes step by step; the reset of one passes no gradient on.
    `jax.vjp` is what `jax.value_and_grad` calls; it spares jax a loss that torch does not compute.
    """
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def spike(s: Any) -> Any:
        return (s > 0).astype(s.dtype)

    @spike.defjvp
    def spike_jvp(primals: Any, tangents: Any) -> Any:
        (s,), (s_dot,) = primals, tangents
        return spike(s), s_dot / (jnp.abs(s) + 1) ** 2  # "super" with alpha = 1

    def forward(x: Any, p: Any, v: Any, i: Any, z: Any) -> Any:
        is_recurrent = "recurrent_weights" in p
        if is_recurrent:
            x, recurrent_weights = x @ p["input_weights"].T, p["recurrent_weights"].T

        def step(state: Any, x_t: Any) -> Any:
            v, i, z = state
            i_jump = i + x_t
            if is_recurrent:
                i_jump = i_jump + z @ recurrent_weights
            v_decayed = v + DT * p["tau_mem_inv"] * ((p["v_leak"] - v) + i_jump)
            z = spike(v_decayed - p["v_th"])
            resets = jax.lax.stop_gradient(z) if is_recurrent else z
            v = (1 - resets) * v_decayed + resets * p["v_reset"]
            i = i_jump - DT * p["tau_syn_inv"] * i_jump
            return (v, i, z if is_recurrent else None), z

        (v, i, _), z = jax.lax.scan(step, (v, i, z if is_recurrent else None), x)
        return z, v, i

    def both(x: Any, p: Any, v: Any, i: Any, z: Any, grad_z: Any) -> Any:
        spikes, pullback = jax.vjp(lambda x, p: forward(x, p, v, i, z)[0], x, p)
        return spikes, pullback(grad_z)

    return {FORWARD: forward, BOTH: both}


class JaxScan:
    """The same equations as a jitted `jax.lax.scan`, compiled before the clock starts.

    ``unroll`` stays 1: 4 and 8 were two to five times slower.
    """

    name = "jax"
    exact = False  # XLA may fuse a multiply and an add, which can move a spike

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        if reasons := _needs("jax", "lif", "recurrent")(setting):
            return reasons
        if (setting.dtype, setting.constants) != ("float32", "per neuron"):
            return ["only float32 with constants per neuron here"]
        return (
            []
            if mode in (FORWARD, BOTH)
            else [f"has no mode {mode!r}: one jitted function does both"]
        )

    def _compiled(self, problem: Problem, mode: str) -> Callable[[], Any]:
        import jax

        def to_jax(value: Tensor) -> Any:
            return jax.numpy.asarray(value.detach().cpu().numpy())

        p = {name: to_jax(q) for name, q in (problem.constants | problem.weights).items()}
        arguments = [to_jax(problem.x), p, *map(to_jax, (problem.v, problem.i, problem.z))]
        if mode == BOTH:
            arguments.append(to_jax(problem.grad_z))
        compiled = jax.jit(_jax_functions()[mode]).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time."""
        compiled = self._compiled(problem, mode)
        return Call(lambda _: compiled())

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns "z", "v", "i" and "grad <leaf>", to be compared with the reference."""
        import numpy as np

        def to_torch(value: Any) -> Tensor:
            return torch.from_numpy(np.array(value))

        if mode == FORWARD:
            return dict(zip("zvi", map(to_torch, self._compiled(problem, mode)()), strict=True))
        z, (grad_x, grad_p) = self._compiled(problem, mode)()
        gradients = {f"grad {name}": to_torch(g) for name, g in (grad_p | {"x": grad_x}).items()}
        return {"z": to_torch(z)} | gradients


_SPIKINGJELLY = TorchCandidate("spikingjelly", _spikingjelly, _needs_one_state, exact=False)
#: The peers by the name in the column "backend".
PEERS: dict[str, Candidate] = {
    c.name: c
    for c in (
        TorchCandidate("norse", _norse, _needs("norse", "lif", "li", "encoder", "recurrent")),
        TorchCandidate(
            "norse_module",
            _norse_module,
            _needs("norse", "lif", "cell", "recurrent", "recurrent_cell"),
        ),
        _SPIKINGJELLY,
        Graphed(_SPIKINGJELLY),
        JaxScan(),
    )
}
#: Those that are measured with ``--peers`` only.
OPTIONAL = ("jax",)
