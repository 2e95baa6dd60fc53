"""Candidates that are not ours: an adapter per library, and why it is absent where it is.

Every adapter computes the same thing as our reference: `run.py` compares outputs and gradients
before it starts the clock, and drops a peer that differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from cases import BOTH, DT, FORWARD, Call, Candidate, Layer, Problem, Setting, TorchCandidate
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
    x, setting = problem.x, problem.setting
    if setting.model == "encoder":
        encode = functional.encode.constant_current_lif_encode
        p = problem.parameters(norse)
        return lambda: (encode(x, setting.T, p, DT),)
    if setting.model == "li":
        library: Any = functional.leaky_integrator
        step, start = library.li_feed_forward_step, library.LIState(problem.v, problem.i)
    else:
        library = functional.lif
        step = library.lif_feed_forward_step
        start = library.LIFFeedForwardState(problem.v, problem.i)
    p = problem.parameters(library)

    def layer() -> tuple[Tensor, ...]:
        state, outputs = start, []
        for x_t in x.unbind(0):
            z, state = step(x_t, state, p, DT)
            outputs.append(z)
        return torch.stack(outputs), state.v, state.i

    return layer


def _norse_module(problem: Problem) -> Layer:
    """Norse's modules from a given state; without one, release 1.1.0 fails for ``v_leak [N]``."""
    import norse.torch as norse

    module = norse.LIFCell if problem.setting.model == "cell" else norse.LIF
    neurons = module(problem.parameters(norse), dt=DT)
    state = norse.LIFFeedForwardState(problem.v, problem.i)

    def layer() -> tuple[Tensor, ...]:
        z, s = neurons(problem.x, state)
        return z, s.v, s.i

    return layer


@cache
def _jax_functions() -> dict[str, Callable[..., Any]]:
    """Returns the LIF layer as a `jax.lax.scan`, alone and with the gradients for a ``grad_z``.

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

    def forward(x: Any, constants: Any, v: Any, i: Any) -> Any:
        tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset = constants

        def step(state: Any, x_t: Any) -> Any:
            v, i = state
            i_jump = i + x_t
            v_decayed = v + DT * tau_mem_inv * ((v_leak - v) + i_jump)
            z = spike(v_decayed - v_th)
            v = (1 - z) * v_decayed + z * v_reset
            return (v, i_jump - DT * tau_syn_inv * i_jump), z

        (v, i), z = jax.lax.scan(step, (v, i), x)
        return z, v, i

    def both(x: Any, constants: Any, v: Any, i: Any, grad_z: Any) -> Any:
        z, pullback = jax.vjp(lambda x, constants: forward(x, constants, v, i)[0], x, constants)
        return z, pullback(grad_z)

    return {FORWARD: forward, BOTH: both}


class JaxScan:
    """The same equations as a jitted `jax.lax.scan`, compiled before the clock starts.

    ``unroll`` stays 1: 4 and 8 were two to five times slower.
    """

    name = "jax"
    exact = False  # XLA may fuse a multiply and an add, which can move a spike

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        if reasons := _needs("jax", "lif")(setting):
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

        constants = tuple(to_jax(c) for c in problem.constants.values())
        arguments = [to_jax(problem.x), constants, to_jax(problem.v), to_jax(problem.i)]
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
        z, (grad_x, grad_constants) = self._compiled(problem, mode)()
        gradients = dict(zip(problem.constants, grad_constants, strict=True), x=grad_x)
        return {"z": to_torch(z)} | {f"grad {k}": to_torch(g) for k, g in gradients.items()}


#: The peers by the name in the column "backend".
PEERS: dict[str, Candidate] = {
    c.name: c
    for c in (
        TorchCandidate("norse", _norse, _needs("norse", "lif", "li", "encoder")),
        TorchCandidate("norse_module", _norse_module, _needs("norse", "lif", "cell")),
        JaxScan(),
    )
}
#: Those that are measured with ``--peers`` only.
OPTIONAL = ("jax",)
