"""JAX as a peer: the equations of our reference as a jitted scan, with gradients of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from problems import BOTH, DT, FORWARD, Call, Problem, Setting
from torch import Tensor


@cache
def _jax_functions() -> dict[str, Callable[..., Any]]:
    """Returns the LIF layer as a `jax.lax.scan`, alone and with the gradients for a ``grad_z``.

    ``p`` has the constants by name, and for a recurrent layer the weights, which multiply the input
    of all steps at once and the spikes step by step; the reset of one passes no gradient on. The
    second function takes apart those that are ``learned``, and returns their gradients.
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

    def both(x: Any, p: Any, v: Any, i: Any, z: Any, learned: Any, grad_z: Any) -> Any:
        spikes, pullback = jax.vjp(lambda x, q: forward(x, p | q, v, i, z)[0], x, learned)
        return spikes, pullback(grad_z)

    return {FORWARD: forward, BOTH: both}


@dataclass(frozen=True)
class JaxScan:
    """The same equations as a jitted `jax.lax.scan`, compiled before the clock starts.

    ``unroll`` stays 1: 4 and 8 were two to five times slower.
    """

    reasons: Callable[[Setting], list[str]]
    name: str = "jax"
    exact: bool = False  # XLA may fuse a multiply and an add, which can move a spike

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        if reasons := self.reasons(setting):
            return reasons
        if setting.dtype != "float32":
            return [f"takes only float32 here, not {setting.dtype}"]
        if mode not in (FORWARD, BOTH):
            return [f"has no mode {mode!r}: one jitted function does both"]
        return []

    def _compiled(self, problem: Problem, mode: str) -> Callable[[], Any]:
        import jax

        def to_jax(value: Tensor) -> Any:
            return jax.numpy.asarray(value.detach().cpu().numpy())

        p = {name: to_jax(q) for name, q in (problem.constants | problem.weights).items()}
        arguments = [to_jax(problem.x), p, *map(to_jax, (problem.v, problem.i, problem.z))]
        if mode == BOTH:
            learned = {name: p[name] for name in problem.leaves if name in p}
            arguments += [learned, to_jax(problem.grad_z)]
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
