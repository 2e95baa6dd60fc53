"""Networks: several layers of neurons and of weights, which every library's neurons can take.

A `Network` is a problem whose `compose` chains the layers that a candidate makes of sub-problems.
"""

from __future__ import annotations

from typing import Any

import torch
from problems import (
    DT,
    INPUT_GAIN,
    Layer,
    LayerOf,
    Problem,
    Setting,
    integer_weights,
    random_spikes,
)
from torch import Tensor

import fused_lif

CLASSES = 10  # outputs of the notebook's network
LAYERS = 3


def make_problem(setting: Setting) -> Problem:
    """Returns the problem of a setting, whatever its model."""
    return {"three_layers": Network, "notebook": Notebook}.get(setting.model, Problem)(setting)


class Network(Problem):
    """Three times weights and LIF neurons; spikes go in, and spikes come out.

    The first weights are ``[N, input_size]``, the others ``[N, N]``. Each product is one call for
    the whole sequence, whoever computes the neurons. x needs no gradient.
    """

    def __init__(self, setting: Setting) -> None:
        assert setting.input_size is not None
        self.layers = [Problem(setting.of_neurons()) for _ in range(LAYERS)]
        last = self.layers[-1]
        self.setting, self.is_half = setting, last.is_half
        generator = torch.Generator().manual_seed(1)
        dtype = last.x.dtype
        x = random_spikes((setting.T, setting.B, setting.input_size), generator)
        self.x, self.grad_z = x.to(setting.device, dtype), last.grad_z
        columns = [setting.input_size] + [setting.N] * (LAYERS - 1)
        self.weights = {}
        for k, n in enumerate(columns, 1):
            weights = integer_weights(setting.N, n, INPUT_GAIN, generator)
            self.weights[f"layer{k}_weights"] = torch.nn.Parameter(weights.to(self.x.device, dtype))
        self.constants = {
            f"layer{k}_{name}": q
            for k, layer in enumerate(self.layers, 1)
            for name, q in layer.constants.items()
        }
        learnable = {name: q for name, q in self.constants.items() if q.requires_grad}
        self.leaves = self.weights | learnable

    def compose(self, layer_of: LayerOf) -> Layer:
        """Returns the network with the neurons of a candidate."""
        neurons = [layer_of(layer) for layer in self.layers]
        weights = tuple(self.weights.values())

        def layer(x: Tensor) -> tuple[Tensor, ...]:
            for w, n in zip(weights, neurons, strict=True):
                x = n(torch.nn.functional.linear(x, w))[0]
            return (x,)

        return layer


class Notebook(Problem):
    """The network of Norse's notebook on parameters: encoder, recurrent LIF, weights, readout.

    x are currents, ``[B, input_size]``; the output is the logarithm of the probability of each of
    `CLASSES` classes, ``[B, CLASSES]``, from the largest potential of the readout over time; and
    ``grad_z`` is that of the negative log-likelihood. The time constants and thresholds of the
    recurrent layer are learned, one per neuron.
    """

    def __init__(self, setting: Setting) -> None:
        self.layer = Problem(setting.of_neurons())
        self.setting, self.is_half = setting, False
        generator = torch.Generator().manual_seed(1)
        currents = 1.5 * torch.rand(setting.B, setting.input_size, generator=generator)
        self.x = currents.to(setting.device)
        readout = integer_weights(CLASSES, setting.N, 1.0, generator)
        self.readout = torch.nn.Parameter(readout.to(setting.device))
        self.weights = self.layer.weights | {"readout_weights": self.readout}
        self.constants = self.layer.constants
        learnable = {name: q for name, q in self.constants.items() if q.requires_grad}
        self.leaves = self.weights | learnable
        targets = torch.randint(CLASSES, (setting.B,), generator=generator)
        one_hot = torch.nn.functional.one_hot(targets, CLASSES)
        self.grad_z = (-one_hot.float() / setting.B).to(setting.device)

    def _decode(self, voltages: Tensor) -> tuple[Tensor, ...]:
        return (torch.log_softmax(voltages.amax(0), dim=1),)

    def cells(self, library: Any) -> Layer:
        """Returns the network as the notebook has it: a loop over cells in Python."""
        s, p = self.setting, self.layer.parameters(library)
        encode = library.ConstantCurrentLIFEncoder(s.T, dt=DT)
        cell = library.LIFRecurrentCell(
            s.input_size, s.N, p, dt=DT, autapses=True, **self.layer.weights
        )
        readout = library.LICell(dt=DT)

        def layer(x: Tensor) -> tuple[Tensor, ...]:
            state = readout_state = None
            voltages = []
            for spikes in encode(x).unbind(0):
                z, state = cell(spikes, state)
                current = torch.nn.functional.linear(z, self.readout)
                v, readout_state = readout(current, readout_state)
                voltages.append(v)
            return self._decode(torch.stack(voltages))

        return layer

    def sequence(self, backend: str | None) -> Layer:
        """Returns the same network with one call per layer."""
        s, p = self.setting, self.layer.parameters(fused_lif)
        encode = fused_lif.ConstantCurrentLIFEncoder(s.T, dt=DT, backend=backend)
        layers = fused_lif.SequentialState(
            fused_lif.LIFRecurrent(
                s.input_size, s.N, p, dt=DT, autapses=True, backend=backend, **self.layer.weights
            ),
            torch.nn.Linear(s.N, CLASSES, bias=False),
            fused_lif.LI(dt=DT, backend=backend),
        )
        layers[1].weight = self.readout
        return lambda x: self._decode(layers(encode(x))[0])
