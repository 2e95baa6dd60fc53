"""Candidates that are not ours: an adapter per library, and why it is absent where it is.

Every adapter computes the same thing as our reference: `run.py` compares outputs and gradients
before it starts the clock, and drops a peer that differs. Sequences come out in the type of x.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from graphs import GRAPHS, Graphed, compiled
from peers_jax import JaxScan
from problems import (
    ALPHA,
    CANDIDATES,
    DT,
    LEARNABLE,
    Candidate,
    Layer,
    Problem,
    Setting,
    TorchCandidate,
    module_layer,
)
from torch import Tensor

import fused_lif

Reasons = Callable[[Setting], list[str]]
Step = Callable[..., Any]

#: How many graphs of one function torch.compile keeps, instead of 8. A setting takes three: without
#: gradients, and with them the first step, whose state has none, and all later ones.
GRAPHS_OF_A_STEP = 128


def _needs(package: str, *models: str, constants: tuple[str, ...] = ()) -> Reasons:
    """Returns what asks for a package, and for one of these models and constants (none: any)."""

    def reasons(setting: Setting) -> list[str]:
        if find_spec(package) is None:
            return [f"{package} is not installed"]
        if setting.model not in models:
            return [f"has no model {setting.model!r} here"]
        if constants and setting.constants not in constants:
            able = " or ".join(map(repr, constants))
            return [f"takes only constants {able}, not {setting.constants!r}"]
        return []

    return reasons


def _needs_norse(*models: str) -> Reasons:
    installed = _needs("norse", *models)

    def reasons(setting: Setting) -> list[str]:
        if found := installed(setting):
            return found
        if setting.model == "adjoint" and setting.constants in LEARNABLE:
            return [f"its adjoint has no gradients of constants, as {setting.constants!r} need"]
        return _of_one_type(setting)

    return reasons


def _of_one_type(setting: Setting) -> list[str]:
    if setting.is_recurrent and setting.dtype in ("float16", "bfloat16"):
        return [f"its products take one type: weights are float32, the input is {setting.dtype}"]
    return []


def _step(functional: Any, problem: Problem) -> tuple[Step, Any, Any]:
    """Returns the function for one step, its constants, and the state before the first.

    ``functional`` is that of Norse or ours: the names are the same.
    """
    model, lif = problem.setting.model, functional.lif
    if model == "li":
        li = functional.leaky_integrator
        return li.li_feed_forward_step, problem.parameters(li), problem.state(li)
    p, state = problem.parameters(lif), problem.state(lif)
    if model == "adjoint":  # its forward pass is that of a surrogate, which Norse asks for
        adjoint = functional.adjoint.lif_adjoint
        return adjoint.lif_feed_forward_adjoint_step, p._replace(method="super"), state
    return lif.lif_step if model == "recurrent" else lif.lif_feed_forward_step, p, state


def _loop(problem: Problem, step: Step, p: Any, start: Any) -> Layer:
    """A function for one step in a loop over ``x.unbind(0)``: linear in T."""
    weights = tuple(problem.weights.values())

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        state, outputs = start, []
        for x_t in x.unbind(0):
            z, state = step(x_t, state, *weights, p, DT)
            outputs.append(z)
        return torch.stack(outputs).to(x.dtype), state.v, state.i

    return layer


def _compiled_loop(problem: Problem, step: Step, p: Any, start: Any) -> Layer:
    """The same with a compiled step; to compile the loop would take a time that grows with T.

    A step is one graph, surrogate included, Norse's as ours. Two steps make those of training,
    before it returns; that of inference comes with the first call.
    """
    torch._dynamo.config.recompile_limit = GRAPHS_OF_A_STEP
    layer, x = _loop(problem, compiled(step), p, start), problem.x[:2]
    z, *_ = layer(x)
    torch.autograd.grad(z, tuple(problem.leaves.values()), torch.ones_like(z), allow_unused=True)
    return layer


def _norse(problem: Problem) -> Layer:
    from norse.torch import functional

    if problem.setting.model == "encoder":
        encode = functional.encode.constant_current_lif_encode
        p = problem.parameters(functional.lif)
        return lambda x: (encode(x, problem.setting.T, p, DT),)
    return _loop(problem, *_step(functional, problem))


def _norse_compiled(problem: Problem) -> Layer:
    from norse.torch import functional

    return _compiled_loop(problem, *_step(functional, problem))


def _reference_compiled(problem: Problem) -> Layer:
    step, *arguments = _step(fused_lif.functional, problem)
    return _compiled_loop(problem, partial(step, backend="reference"), *arguments)


def _norse_module(problem: Problem) -> Layer:
    """Norse's modules from a given state; without one, release 1.1.0 fails for ``v_leak [N]``."""
    import norse.torch as norse

    layer = module_layer(problem, norse)

    def in_type_of_x(x: Tensor) -> tuple[Tensor, ...]:
        z, *state = layer(x)
        return z.to(x.dtype), *state

    return in_type_of_x


def _snntorch(problem: Problem) -> Layer:
    """``Synaptic`` of snnTorch, told to reset in the step of the spike, in a loop over steps.

    Its ``syn`` is ``dt * tau_mem_inv`` times our current after the input, so that ``mem`` is our
    potential: x is multiplied once for all steps.
    """
    import snntorch

    c, v, i = problem.constants, problem.v, problem.i
    neurons = snntorch.Synaptic(
        alpha=1.0,
        beta=1.0,
        threshold=c["v_th"],
        spike_grad=snntorch.surrogate.fast_sigmoid(slope=ALPHA),
        reset_mechanism="zero",
        reset_delay=False,
    ).to(v.device)
    snntorch.SpikingNeuron.init()  # forgets them; a list of all neurons would keep their graphs

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        a = DT * c["tau_mem_inv"]
        neurons.alpha, neurons.beta = 1 - DT * c["tau_syn_inv"], 1 - a
        syn, mem, spikes = i, v, []
        for x_t in (a * x.to(v.dtype)).unbind(0):
            z, syn, mem = neurons(x_t, syn, mem)
            spikes.append(z)
        neurons.reset_mem()  # lets go of the graph
        return torch.stack(spikes).to(x.dtype), mem

    return layer


def _sinabs(problem: Problem) -> Layer:
    """Sinabs' LIF sequence, in its layout ``[B, T, ...]``.

    Its ``i_syn`` decays before it is used: with x divided by the decay, once for all steps, it is
    our current after the input. Its own `MembraneReset` passes no gradient on; ours takes its
    place, as does the surrogate.
    """
    from sinabs.activation import SingleSpike
    from sinabs.layers.functional import lif_forward

    c, v, i = problem.constants, problem.v, problem.i

    def reset(spikes: Tensor, state: dict[str, Tensor], v_th: Tensor) -> dict[str, Tensor]:
        return state | {"v_mem": (1 - spikes) * state["v_mem"]}

    def surrogate(v_mem: Tensor, v_th: Tensor) -> Tensor:
        return 1 / (ALPHA * (v_mem - v_th).abs() + 1) ** 2

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        alpha_mem, alpha_syn = 1 - DT * c["tau_mem_inv"], 1 - DT * c["tau_syn_inv"]
        z, state, _ = lif_forward(
            x.to(v.dtype).transpose(0, 1) / alpha_syn,
            alpha_mem,
            alpha_syn,
            {"v_mem": v, "i_syn": i},
            c["v_th"],
            SingleSpike,
            reset,
            surrogate,
            min_v_mem=None,
            norm_input=True,
        )
        return z.transpose(0, 1).to(x.dtype), state["v_mem"]

    return layer


def _spikingjelly(problem: Problem) -> Layer:
    """SpikingJelly's LIF sequence; on a GPU, its Triton kernels, on the CPU a loop in torch.

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


_NO_REST = ("two states", "scalar")  # at 0 there are neither rest nor reset
_SEQUENCES = ("lif", "li", "recurrent")
_SPIKINGJELLY = TorchCandidate(
    "spikingjelly",
    _spikingjelly,
    _needs("spikingjelly", "lif", constants=("one state",)),
    exact=False,
)
#: The peers by the name in the column "backend".
PEERS: dict[str, Candidate] = {
    c.name: c
    for c in (
        TorchCandidate("norse", _norse, _needs_norse(*_SEQUENCES, "adjoint", "encoder")),
        TorchCandidate(
            "norse_module",
            _norse_module,
            _needs_norse("lif", "cell", "recurrent", "recurrent_cell"),
        ),
        TorchCandidate("norse_compiled", _norse_compiled, _needs_norse(*_SEQUENCES), exact=False),
        TorchCandidate(
            "reference_compiled",
            _reference_compiled,
            _needs("torch", *_SEQUENCES),
            exact=False,
        ),
        TorchCandidate(
            "snntorch", _snntorch, _needs("snntorch", "lif", constants=_NO_REST), exact=False
        ),
        TorchCandidate("sinabs", _sinabs, _needs("sinabs", "lif", constants=_NO_REST), exact=False),
        _SPIKINGJELLY,
        Graphed(_SPIKINGJELLY),
        JaxScan(_needs("jax", "lif", "recurrent")),
    )
}
ALL_CANDIDATES = CANDIDATES | GRAPHS | PEERS
#: Those that are measured with ``--peers`` only.
OPTIONAL = ("jax",)
#: The distributions that a row names with their versions.
PACKAGES = ("norse", "jax", "snntorch", "sinabs", "spikingjelly")
