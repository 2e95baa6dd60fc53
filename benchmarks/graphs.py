"""Candidates that replay a CUDA graph: what a layer costs the GPU, without launches from Python.

`Graphed` captures a candidate whose gradients come from autograd. `MatrixLayer` is the yardstick
of recurrent layers, one matrix product and one pointwise function per step, also in a graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from problems import (
    ALPHA,
    BACKWARD,
    BOTH,
    CANDIDATES,
    CONSTANTS,
    DT,
    FORWARD,
    Call,
    Candidate,
    Problem,
    Setting,
    TorchCandidate,
    Yardstick,
)
from torch import Tensor


class Captured(NamedTuple):
    """A graph: ``replay`` computes ``result`` anew, in the same memory.

    ``owners`` keep the memory: the graph, and what it was captured ``after``.
    """

    replay: Callable[[], None]
    result: Any
    owners: tuple[Any, ...] = ()


def capture(work: Callable[[], Any], after: Captured | None = None) -> Captured:
    """Returns a CUDA graph of ``work``, which may read what the graph ``after`` computes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles kernels, makes handles and workspaces
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=after.owners[0].pool() if after else None):
        result = work()
    return Captured(graph.replay, result, (graph, after))


def _needs_gpu(setting: Setting) -> list[str]:
    return [] if setting.device == "cuda" else ["CUDA graphs need a GPU"]


@dataclass(frozen=True)
class Graphed:
    """A candidate whose forward pass, gradients, or both are captured once and then replayed."""

    inner: TorchCandidate

    @property
    def name(self) -> str:
        """What stands in the column "backend"."""
        return f"{self.inner.name}_graph"

    @property
    def exact(self) -> bool:
        """Whether all spikes must be those of the reference."""
        return self.inner.exact

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        if mode not in (FORWARD, BACKWARD, BOTH):
            return [f"has no mode {mode!r}"]
        return _needs_gpu(setting) or self.inner.reasons_against(setting, mode)

    def _captured(self, problem: Problem, mode: str) -> Captured:
        """Returns the graph of ``mode``: outputs, gradients, or a tuple of both are its result.

        `torch.autograd.grad` returns gradients instead of adding to ``.grad``, whose nodes would
        remember the stream of a graph that ran before.
        """
        layer = problem.compose(self.inner.layer)
        leaves = tuple(problem.leaves.values())

        def gradients(outputs: tuple[Tensor, ...], keep: bool) -> tuple[Tensor | None, ...]:
            grad_z = problem.grad_z.to(outputs[0].dtype)
            return torch.autograd.grad(
                outputs[:1], leaves, [grad_z], retain_graph=keep, allow_unused=True
            )

        def both() -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
            outputs = layer(problem.x)
            return outputs, gradients(outputs, keep=False)

        if mode == BOTH:
            return capture(both)
        forward = capture(lambda: layer(problem.x))
        if mode == FORWARD:
            return forward
        forward.replay()  # fills in what backward reads
        return capture(lambda: gradients(forward.result, keep=True), forward)

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time."""
        captured = self._captured(problem, mode)
        return Call(lambda _: captured.replay())

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns "z", "v", "i" and "grad <leaf>" of a replay, to be compared with the reference.

        All of them hold NaN before, so that what a replay leaves out shows up.
        """
        captured = self._captured(problem, FORWARD if mode == FORWARD else BOTH)
        outputs, gradients = captured.result if mode != FORWARD else (captured.result, ())
        values = dict(zip("zvi", outputs, strict=False))
        names = (f"grad {name}" for name in problem.leaves)
        values |= {n: g for n, g in zip(names, gradients, strict=False) if g is not None}
        with torch.no_grad():
            for value in values.values():
                value.fill_(torch.nan)
        captured.replay()
        return {name: value.detach().clone() for name, value in values.items()}


Pointwise = Callable[..., tuple[Tensor, ...]]


def step_forward(
    x: Tensor, from_spikes: Tensor, v: Tensor, i: Tensor, constants: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One step but for its matrix product; returns z, v, i, and what backward needs."""
    tau_syn_inv, tau_mem_inv, v_leak, v_th, v_reset = constants
    i_jump = (i + x) + from_spikes
    v_decayed = v + DT * tau_mem_inv * ((v_leak - v) + i_jump)
    z = (v_decayed > v_th).to(v.dtype)
    return (
        z,
        torch.where(z > 0, v_reset, v_decayed),
        i_jump - DT * tau_syn_inv * i_jump,
        v_decayed,
        i_jump,
    )


def step_backward(
    grad_z: Tensor,
    from_spikes: Tensor,
    saved: Sequence[Tensor],
    grad_v: Tensor,
    grad_i: Tensor,
    sums: Sequence[Tensor],
    constants: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The adjoint of a step, whose reset lets no gradient through.

    Returns the gradients of i_jump (which is that of i before) and of v before, and the sums over
    time that become the gradients of the constants.
    """
    tau_syn_inv, tau_mem_inv, v_leak, v_th, _ = constants
    v, v_decayed, i_jump, z = saved
    a, b = DT * tau_mem_inv, DT * tau_syn_inv
    s = v_decayed - v_th
    through_spike = (grad_z + from_spikes) / (ALPHA * s.abs() + 1) ** 2
    d = torch.where(z > 0, 0, grad_v) + through_spike
    return (
        d * a + grad_i * (1 - b),
        d * (1 - a),
        sums[0] - DT * grad_i * i_jump,
        sums[1] + DT * d * ((v_leak - v) + i_jump),
        sums[2] + a * d,
        sums[3] - through_spike,
        sums[4] + grad_v * z,
    )


class MatrixLayer:
    """A recurrent LIF layer as a matrix product and a pointwise function per step.

    The products of the input, and those of the gradients of input and weights, are one each for the
    whole sequence.

    Attributes:
        outputs: Spikes ``[T, B, N]``, v and i after the last step; `forward` sets them.
        gradients: By name of the leaf; `backward` sets them.
    """

    def __init__(self, problem: Problem, fuse: Callable[[Pointwise], Pointwise]) -> None:
        self.x, self.grad_z = problem.x.detach(), problem.grad_z
        self.start = (problem.v, problem.i, problem.z)
        self.w_in, self.w_rec = (w.detach() for w in problem.weights.values())
        self.constants = [problem.constants[name].detach() for name in CONSTANTS]
        self.step_forward, self.step_backward = fuse(step_forward), fuse(step_backward)

    def forward(self) -> None:
        """Computes the spikes."""
        v, i, z = self.start
        self.saved, spikes, w_rec = [], [], self.w_rec.t()
        for x_t in (self.x.flatten(0, 1) @ self.w_in.t()).unflatten(0, self.x.shape[:2]).unbind(0):
            v_before = v
            z, v, i, v_decayed, i_jump = self.step_forward(x_t, z @ w_rec, v, i, self.constants)
            self.saved.append((v_before, v_decayed, i_jump, z))
            spikes.append(z)
        self.outputs = (torch.stack(spikes), v, i)

    def backward(self) -> None:
        """Computes the gradients of everything after `forward`."""
        z = self.outputs[0]
        grad_v, grad_i, from_spikes, *sums = (torch.zeros_like(self.start[0]) for _ in range(8))
        of_current = []
        for grad_z_t, saved in zip(self.grad_z.flip(0).unbind(0), self.saved[::-1], strict=True):
            grad_i, grad_v, *sums = self.step_backward(
                grad_z_t, from_spikes, saved, grad_v, grad_i, sums, self.constants
            )
            from_spikes = grad_i @ self.w_rec
            of_current.append(grad_i)
        g = torch.stack(of_current[::-1]).flatten(0, 1)
        before = torch.cat((self.start[2][None], z[:-1])).flatten(0, 1)
        self.gradients = {
            "x": (g @ self.w_in).view_as(self.x),
            "input_weights": g.t() @ self.x.flatten(0, 1),
            "recurrent_weights": g.t() @ before,
        }
        self.gradients |= {n: s.sum(0) for n, s in zip(CONSTANTS, sums, strict=True)}


def compiled(function: Pointwise) -> Pointwise:
    """Returns a function compiled by torch, one graph for each shape."""
    # One process: a pool of compiling ones takes longer to start than two kernels to compile.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return torch.compile(function, dynamic=False, fullgraph=True)


def _matrix_layer(
    fuse: Callable[[Pointwise], Pointwise],
) -> Callable[[Problem, str], Callable[[], Any]]:
    """Returns the work of a yardstick: the replay of a graph of `MatrixLayer`."""

    def work(problem: Problem, mode: str) -> Callable[[], Any]:
        layer = MatrixLayer(problem, fuse)

        def both() -> None:
            layer.forward()
            layer.backward()

        with torch.no_grad():
            captured = capture(both if mode == BOTH else layer.forward)
            if mode == BACKWARD:
                captured.replay()  # fills in what backward reads
                captured = capture(layer.backward, captured)
        return lambda: captured.replay()

    return work


_MODES = (FORWARD, BACKWARD, BOTH)
_cuda, _triton = CANDIDATES["cuda"], CANDIDATES["triton"]
assert isinstance(_cuda, TorchCandidate)
assert isinstance(_triton, TorchCandidate)
#: The candidates that replay graphs, by the name in the column "backend".
GRAPHS: dict[str, Candidate] = {
    c.name: c
    for c in (
        Graphed(_cuda),
        Graphed(_triton),
        Yardstick("mm_graph", _matrix_layer(lambda function: function), _MODES, _needs_gpu),
        Yardstick("mm_fused_graph", _matrix_layer(compiled), _MODES, _needs_gpu),
    )
}
