"""Exact solution of networks of LIF neurons in continuous time, with exact gradients.

Between events the state has a closed form, a sum of two exponentials. Spike times are roots of it,
bisected to the last bit; one step of Newton's method with tensors then gives them the derivative of
the implicit function theorem. So autograd through :func:`simulate` is the gradient of the exact
solution. Nothing here knows of adjoint equations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fused_lif import LIFParameters


class Network(NamedTuple):
    """A network of N neurons; all tensors float64.

    Attributes:
        p: Constants, each of shape ``[N]``.
        v: Membrane potential at time 0, shape ``[N]``.
        i: Synaptic current at time 0, shape ``[N]``.
        input_weights: Jump of the current at an input spike, shape ``[N, I]``.
        recurrent_weights: Jump of the current at a spike of the network, shape ``[N, N]``.
    """

    p: LIFParameters
    v: Tensor
    i: Tensor
    input_weights: Tensor
    recurrent_weights: Tensor


class Solution(NamedTuple):
    """What happened.

    Attributes:
        times: Spike times of each neuron.
        order: Who fired in which order: ``n`` for a neuron, ``-1 - j`` for an input.
        v: Membrane potential at the end, shape ``[N]``.
    """

    times: list[list[Tensor]]
    order: list[int]
    v: Tensor


def flow(v: Tensor, i: Tensor, s: Tensor, p: LIFParameters) -> tuple[Tensor, Tensor]:
    """Returns the state a time ``s`` later, if nothing happens in between."""
    mem, syn = torch.exp(-p.tau_mem_inv * s), torch.exp(-p.tau_syn_inv * s)
    gain = p.tau_mem_inv / (p.tau_mem_inv - p.tau_syn_inv)
    return p.v_leak + (v - p.v_leak) * mem + i * gain * (syn - mem), i * syn


def crossing_time(v, i, tau_syn_inv, tau_mem_inv, v_leak, v_th, limit):
    """Returns when the potential rises through the threshold, or ``None``: not before ``limit``."""
    c_syn = i * tau_mem_inv / (tau_mem_inv - tau_syn_inv)
    c_mem = v - v_leak - c_syn

    def above(s):
        decayed = c_mem * math.exp(-tau_mem_inv * s) + c_syn * math.exp(-tau_syn_inv * s)
        return v_leak + decayed > v_th

    assert not above(0.0), "above the threshold from the start: there is no crossing"
    ends = [limit]
    if c_mem * c_syn < 0:  # there is one extremum, and between it and 0 the potential is monotonic
        ratio = -(tau_mem_inv * c_mem) / (tau_syn_inv * c_syn)
        extremum = math.log(ratio) / (tau_mem_inv - tau_syn_inv)
        if 0 < extremum < limit:
            ends = [extremum, limit]
    end = next((e for e in ends if above(e)), None)
    if end is None:
        return None
    start = 0.0
    while start < (middle := (start + end) / 2) < end:
        start, end = (start, middle) if above(middle) else (middle, end)
    return end


def simulate(network: Network, inputs: list[tuple[float, int]], end: float, reset: str) -> Solution:
    """Follows a network from event to event.

    Args:
        network: The network.
        inputs: Time and sender of each input spike.
        end: When to stop.
        reset: ``"hard"`` or ``"soft"``.
    """
    p, v, i, input_weights, recurrent_weights = network
    constants = torch.stack([*p[:3], p.v_th], dim=1).tolist()
    now = torch.zeros((), dtype=torch.float64)
    times: list[list[Tensor]] = [[] for _ in constants]
    order = []
    for until, j in [*sorted(inputs), (end, None)]:
        while True:
            limit, first = until - now.item(), None
            for n, at in enumerate(zip(v.tolist(), i.tolist())):
                s = crossing_time(*at, *constants[n], limit)
                if s is not None:
                    limit, first = s, n
            if first is None:
                break
            spike_time = now.detach() + limit
            v_at, i_at = flow(v, i, spike_time - now, p)
            slope = (p.tau_mem_inv * (p.v_leak - v_at + i_at))[first].detach()
            spike_time = spike_time - (v_at - p.v_th)[first] / slope
            v, i = flow(v, i, spike_time - now, p)
            fired = torch.arange(len(v)) == first
            v = torch.where(fired, v - p.v_th if reset == "soft" else p.v_reset, v)
            i = i + recurrent_weights[:, first]
            now = spike_time
            times[first].append(now)
            order.append(first)
        v, i = flow(v, i, until - now, p)
        now = torch.tensor(until, dtype=torch.float64)
        if j is not None:
            i = i + input_weights[:, j]
            order.append(-1 - j)
    return Solution(times, order, v)
