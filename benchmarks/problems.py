"""What is computed, and who computes it: inputs, and the candidates that the library brings.

`Setting` says what is computed, `Problem` holds its tensors, and a `Candidate` turns a problem into
calls to be timed. `peers.py` has the candidates that are not ours, `graphs.py` those that replay a
CUDA graph, and `cases.py` says who meets on which settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from limits import MATMUL_SIZE, copied_elements
from torch import Tensor

import fused_lif

DT = 0.001
ALPHA = 1.0  # Norse 1.1.0 ignores the alpha of "super"; with 1 all candidates compute the same
FORWARD, BACKWARD, BOTH, INFERENCE = "forward", "backward", "forward_backward", "inference"
CONSTANTS = ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")
ONE_STATE = (1000.0, 125.0)  # tau_syn_inv and tau_mem_inv of constants "one state"
CHANNELS = 32  # of a feature map
#: The constants with gradients, by what a setting says of them; no others have any.
LEARNABLE = {
    "per neuron": CONSTANTS,
    "per channel": CONSTANTS,
    "two states": CONSTANTS[:2],
    "notebook": ("tau_mem_inv", "v_th"),
}
#: Share of ones in the input of a recurrent layer. With weights drawn from a normal distribution of
#: deviation gain / sqrt(columns), 3 to 8 % of its neurons spike at every shape of `cases.py`, and
#: gradients neither grow nor vanish over time.
INPUT_RATE, INPUT_GAIN, RECURRENT_GAIN = 0.05, 6.0, 0.5
#: Weights are multiples of this: sums over spikes are exact, and so the same in every order.
WEIGHT_UNIT = 2.0**-10


#: From x to ``z``, or ``z, v, i``, on a fresh graph.
Layer = Callable[[Tensor], tuple[Tensor, ...]]
LayerOf = Callable[["Problem"], Layer]


@dataclass(frozen=True)
class Setting:
    """One computation.

    Attributes:
        T: Steps.
        B: Batch.
        N: Neurons.
        model: "lif", "li" or "recurrent", a sequence; "adjoint", a "lif" with that method; "cell"
            or "recurrent_cell", one step; "encoder", the constant-current encoder;
            "three_layers" or "notebook", the networks of `networks.py`.
        dtype: Type of the input, as torch names it; constants and states are float32 for half ones.
        constants: "per neuron", shape ``[N]`` and with gradients; "per channel", the same of a
            feature map, shape ``[C, 1, 1]``; "scalar" and without gradients; "two states", time
            constants per neuron with gradients, rest and reset at 0, as in libraries whose neuron
            has no others; "one state", scalars that make the synaptic current that of the input,
            as in libraries whose neuron has no other state than the potential; "notebook",
            membrane time constants and thresholds per neuron with gradients.
        input: "busy", or "quiet": currents in the first five steps, gradients in the last five,
            and in between values that shrink until they are denormal.
        device: Where the tensors are, "cpu" or "cuda".
        input_size: Features of the spikes that a recurrent layer takes; other layers take currents.
        threads: Threads of torch; `None` are those of the run.
    """

    T: int
    B: int
    N: int
    model: str = "lif"
    dtype: str = "float32"
    constants: str = "per neuron"
    input: str = "busy"
    device: str = "cpu"
    input_size: int | None = None
    threads: int | None = None

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of a step without batch: ``[N]``, or ``[C, H, W]`` with constants per channel."""
        if self.constants != "per channel":
            return (self.N,)
        side = math.isqrt(self.N // CHANNELS)
        if CHANNELS * side**2 != self.N:
            raise ValueError(f"N must be {CHANNELS} channels of a square, got {self.N}")
        return (CHANNELS, side, side)

    @property
    def is_recurrent(self) -> bool:
        """Whether there are weights."""
        return self.model in ("recurrent", "recurrent_cell")

    @property
    def is_cell(self) -> bool:
        """Whether it is one step in the middle of a sequence."""
        return self.model in ("cell", "recurrent_cell")

    @property
    def has_spikes(self) -> bool:
        """Whether the output is one of spikes, and not of potentials."""
        return self.model not in ("li", "notebook")

    def of_neurons(self) -> Setting:
        """Returns the setting of a layer of neurons in a network; others return themselves."""
        if self.model == "three_layers":
            return replace(self, model="lif", input_size=None)
        return replace(self, model="recurrent") if self.model == "notebook" else self


def random_spikes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns spikes of the rate `INPUT_RATE`."""
    return (torch.rand(shape, generator=generator) < INPUT_RATE).float()


def integer_weights(rows: int, columns: int, gain: float, generator: torch.Generator) -> Tensor:
    """Returns weights of deviation ``gain / sqrt(columns)``, multiples of `WEIGHT_UNIT`."""
    drawn = gain * columns**-0.5 * torch.randn(rows, columns, generator=generator)
    return (drawn / WEIGHT_UNIT).round() * WEIGHT_UNIT


class Problem:
    """The tensors of a setting, the same ones every time.

    Attributes:
        x: Input current, shape ``[T, B, N]``, or spikes, ``[T, B, input_size]``; without T for a
            cell and the encoder.
        v: Potential before the first step, shape ``[B, N]``.
        i: Synaptic current before the first step, shape ``[B, N]``.
        z: Spikes before the first step, shape ``[B, N]``; a recurrent layer takes them.
        weights: Of a recurrent layer, "input_weights" ``[N, input_size]`` and "recurrent_weights"
            ``[N, N]``; empty for others.
        constants: The constants of `CONSTANTS` by name (the first three for "li").
        grad_z: Gradient of the output, in its shape.
        leaves: Tensors that get a gradient, by name.
    """

    def __init__(self, setting: Setting) -> None:
        s = self.setting = setting
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, s.dtype)
        state_dtype = torch.promote_types(dtype, torch.float32)

        def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        step, learnable = (s.B, *s.step_shape), LEARNABLE.get(s.constants, ())

        def constant(name: str, mean: float, spread: float) -> Tensor:
            shape = (CHANNELS, 1, 1) if s.constants == "per channel" else (s.N,)
            value = uniform(shape, mean - spread, mean + spread)
            if name not in learnable:
                return torch.tensor(mean, dtype=state_dtype, device=s.device)
            return torch.nn.Parameter(value.to(s.device, state_dtype))

        def weights(columns: int, gain: float) -> Tensor:
            value = integer_weights(s.N, columns, gain, generator)
            return torch.nn.Parameter(value.to(s.device, state_dtype))

        time = () if s.is_cell or s.model == "encoder" else (s.T,)
        if s.is_recurrent:
            assert s.input_size is not None
            x = random_spikes((*time, s.B, s.input_size), generator)
        else:
            low, high = (1.0, 3.0) if s.model == "encoder" else (0.0, 0.6)
            if s.constants == "one state":
                high = 3.0
            x = uniform((*time, *step), low, high)
        grad_z = torch.randn(step if s.is_cell else (s.T, *step), generator=generator)
        v, i, z = (torch.zeros(step) for _ in range(3))
        if s.is_cell:  # in the middle of a sequence
            v, i = uniform(step, 0.0, 1.2), uniform(step, 0.0, 1.0)
        if s.model == "recurrent_cell":
            z = random_spikes(step, generator)
        if s.input == "quiet":
            x[:5] *= 5
            x[5:] = 0
            grad_z[:-5] = 0

        self.is_half = dtype.itemsize == 2
        self.x = x.to(s.device, dtype)
        self.v, self.i, self.z = (state.to(s.device, state_dtype) for state in (v, i, z))
        self.grad_z = grad_z.to(s.device, dtype)
        rest = 0.0 if s.input == "quiet" else 0.05
        # One state: the current decays within the step, and 1/8 of the way is an exact product.
        tau_syn_inv, tau_mem_inv = ONE_STATE if s.constants == "one state" else (200.0, 100.0)
        ranges = {
            "tau_syn_inv": (tau_syn_inv, 20.0),
            "tau_mem_inv": (tau_mem_inv, 10.0),
            "v_leak": (0.0, rest),
            "v_th": (1.0, 0.1),
            "v_reset": (0.0, rest),
        }
        self.constants = {name: constant(name, *ranges[name]) for name in CONSTANTS}
        if s.model == "li":
            self.constants = {name: self.constants[name] for name in CONSTANTS[:3]}
        self.weights = {}
        if s.is_recurrent:
            self.weights["input_weights"] = weights(s.input_size, INPUT_GAIN)
            self.weights["recurrent_weights"] = weights(s.N, RECURRENT_GAIN)
        self.leaves = {"x": self.x} | self.weights
        self.leaves |= {name: q for name, q in self.constants.items() if name in learnable}
        if s.is_cell:
            self.leaves |= {"v": self.v, "i": self.i}
        if s.model == "recurrent_cell":
            self.leaves["z"] = self.z
        if s.model == "encoder":  # its input is data, and it has no synapse
            self.leaves = {n: q for n, q in self.leaves.items() if n not in ("x", "tau_syn_inv")}
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def compose(self, layer_of: LayerOf) -> Layer:
        """Returns the layer of a candidate; a network chains several."""
        return layer_of(self)

    def backward(self, outputs: tuple[Tensor, ...]) -> None:
        """Runs backward from z, and for a cell, which others follow, from the state too."""
        roots = outputs if self.setting.is_cell else outputs[:1]
        torch.autograd.backward(roots, [self.grad_z.to(root.dtype) for root in roots])

    def parameters(self, library: Any) -> Any:
        """Returns the constants as ``LIFParameters`` or ``LIParameters`` of Norse or of ours."""
        if self.setting.model == "li":
            return library.LIParameters(**self.constants)
        alpha = torch.tensor(ALPHA, device=self.setting.device)
        method = "adjoint" if self.setting.model == "adjoint" else "super"
        return library.LIFParameters(**self.constants, method=method, alpha=alpha)

    def state(self, library: Any) -> Any:
        """Returns the state before the first step as Norse's or our tuple."""
        if self.setting.is_recurrent:
            return library.LIFState(self.z, self.v, self.i)
        if self.setting.model == "li":
            return library.LIState(self.v, self.i)
        return library.LIFFeedForwardState(self.v, self.i)


class Call(NamedTuple):
    """What one repetition does: ``run`` on the clock, on what ``before`` prepared off the clock.

    ``computes_before`` says that ``before`` runs kernels, which must end before the clock starts.
    """

    run: Callable[[Any], Any]
    before: Callable[[], Any] = lambda: None
    computes_before: bool = False


class Candidate(Protocol):
    """One way to compute a problem.

    Attributes:
        name: What stands in the column "backend".
        exact: Whether all spikes must be those of the reference.
    """

    name: str
    exact: bool

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time."""

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns "z", "v", "i" and "grad <leaf>", to be compared with the reference."""


@dataclass(frozen=True)
class TorchCandidate:
    """A candidate whose gradients come from torch's autograd.

    ``layer`` makes the neurons of a problem.
    """

    name: str
    layer: LayerOf
    reasons: Callable[[Setting], list[str]] = lambda setting: []
    modes: tuple[str, ...] = (FORWARD, BACKWARD, BOTH, INFERENCE)
    exact: bool = True

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        if mode not in self.modes:
            return [f"has no mode {mode!r}"]
        return self.reasons(setting.of_neurons())

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time; gradients of the repetition before are dropped off the clock."""
        layer, x = problem.compose(self.layer), problem.x
        leaves, backward = tuple(problem.leaves.values()), problem.backward

        def drop_gradients() -> None:
            for leaf in leaves:
                leaf.grad = None

        def graph() -> tuple[Tensor, ...]:
            drop_gradients()
            return layer(x)

        def both(_: None) -> tuple[Tensor, ...]:
            outputs = layer(x)
            backward(outputs)
            return outputs

        def inference(_: None) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return layer(x)

        return {
            FORWARD: Call(lambda _: layer(x)),
            BACKWARD: Call(backward, graph, computes_before=True),
            BOTH: Call(both, drop_gradients),
            INFERENCE: Call(inference),
        }[mode]

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns "z", "v", "i" and "grad <leaf>", to be compared with the reference."""
        for leaf in problem.leaves.values():
            leaf.grad = None
        outputs = dict(zip("zvi", problem.compose(self.layer)(problem.x), strict=False))
        if mode in (BACKWARD, BOTH):
            problem.backward(tuple(outputs.values()))
        gradients = {
            f"grad {name}": leaf.grad
            for name, leaf in problem.leaves.items()
            if leaf.grad is not None
        }
        return {name: value.detach() for name, value in (outputs | gradients).items()}


@dataclass(frozen=True)
class Yardstick:
    """Something else on tensors of the same sizes, to compare times with.

    ``work`` maps a problem and a mode to the function to be timed.
    """

    name: str
    work: Callable[[Problem, str], Callable[[], Any]]
    modes: tuple[str, ...] = (FORWARD, BOTH)
    reasons: Callable[[Setting], list[str]] = lambda setting: []
    exact: bool = True

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        if mode not in self.modes:
            return [f"is no yardstick for mode {mode!r}"]
        return self.reasons(setting)

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time."""
        work = self.work(problem, mode)
        return Call(lambda _: work())

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns nothing: there is nothing to compare."""
        return {}


def _copy(problem: Problem, mode: str) -> Callable[[], Any]:
    """``Tensor.copy_`` between two buffers of `copied_elements`: the speed of memory."""
    elements = copied_elements(problem.setting)
    source, target = (torch.zeros(elements, dtype=problem.x.dtype) for _ in range(2))
    source, target = source.to(problem.x.device), target.to(problem.x.device)
    return lambda: target.copy_(source)


def _matmul(problem: Problem, mode: str) -> Callable[[], Any]:
    """A square product in float32: the rate of multiplications."""
    size = MATMUL_SIZE[problem.setting.device]
    a, b, out = (torch.ones(size, size, device=problem.x.device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def _gemm(problem: Problem, mode: str) -> Callable[[], Any]:
    """The matrix products of a recurrent layer and of its gradients, dense, and nothing else.

    What does not depend on the step before is one product for the whole sequence. Spikes and
    gradients of the current have the right sizes, and any values.
    """
    w_in, w_rec = (weights.detach() for weights in problem.weights.values())
    x, g = problem.x.detach().flatten(0, 1), problem.grad_z.flatten(0, 1)
    z = (g > 0).to(g.dtype)
    z_steps, g_steps = z.split(problem.setting.B), g.split(problem.setting.B)
    current, of_step = torch.empty_like(g), torch.empty_like(g_steps[0])
    grad_x, grad_w_in, grad_w_rec = (torch.empty_like(tensor) for tensor in (x, w_in, w_rec))

    def forward() -> None:
        torch.mm(x, w_in.t(), out=current)
        for z_t in z_steps:
            torch.mm(z_t, w_rec.t(), out=of_step)

    def both() -> None:
        forward()
        for g_t in g_steps:
            torch.mm(g_t, w_rec, out=of_step)
        torch.mm(g.t(), x, out=grad_w_in)
        torch.mm(g.t(), z, out=grad_w_rec)
        torch.mm(g, w_in, out=grad_x)

    return {FORWARD: forward, BOTH: both}[mode]


def functional_layer(backend: str | None) -> LayerOf:
    """Our functions with one backend, or that of the device; a cell is a sequence of one step."""

    def build(problem: Problem) -> Layer:
        model = problem.setting.model
        if model == "notebook":
            return problem.sequence(backend)
        p, functional = problem.parameters(fused_lif), fused_lif.functional
        if model == "encoder":
            encode = functional.encode.constant_current_lif_encode
            return lambda x: (encode(x, problem.setting.T, p, DT, backend=backend),)
        if model == "li":
            integral: Any = functional.leaky_integrator.li_feed_forward_integral
        elif problem.setting.is_recurrent:
            integral = functional.lif.lif_step_integral
        else:
            integral = functional.lif.lif_feed_forward_integral
        state, weights = problem.state(fused_lif), tuple(problem.weights.values())
        is_cell = problem.setting.is_cell

        def layer(x: Tensor) -> tuple[Tensor, ...]:
            z, s = integral(x[None] if is_cell else x, state, *weights, p, DT, backend=backend)
            return z[0] if is_cell else z, s.v, s.i

        return layer

    return build


_MODULES = {
    "lif": "LIF",
    "cell": "LIFCell",
    "recurrent": "LIFRecurrent",
    "recurrent_cell": "LIFRecurrentCell",
}


def module_layer(problem: Problem, library: Any) -> Layer:
    """The modules of Norse or ours; ours choose the backend themselves."""
    setting = problem.setting
    if setting.model == "notebook":
        return problem.cells(library)
    sizes = (setting.input_size, setting.N) if setting.is_recurrent else ()
    options = problem.weights | {"autapses": True} if setting.is_recurrent else {}
    module = getattr(library, _MODULES[setting.model])
    neurons = module(*sizes, problem.parameters(library), dt=DT, **options)
    state = problem.state(library)

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        z, s = neurons(x, state)
        return z, s.v, s.i

    return layer


def _module(problem: Problem) -> Layer:
    return module_layer(problem, fused_lif)


def _reasons_against_backend(backend: str | None = None) -> Callable[[Setting], list[str]]:
    """Asks the backend, by default the C++ one of the device, with an input of a few neurons."""

    def reasons(setting: Setting) -> list[str]:
        try:
            N = CHANNELS if setting.constants == "per channel" else 1
            problem = Problem(replace(setting, T=1, B=1, N=N))
            functional_layer(backend or setting.device)(problem)(problem.x)
        except (RuntimeError, ValueError) as error:
            return [str(error)]
        except Exception:  # no refusal, but a kernel that does not compile: the comparison fails
            return []
        return []

    return reasons


def _operator(problem: Problem) -> Layer:
    """The bare operator on the tensors of the cell, without our Python around it."""
    forward = torch.ops.fused_lif.lif_forward
    tensors = (problem.v, problem.i, *problem.constants.values())
    # Hard reset, no states for backward, no smooth spikes (hence no alpha).
    options = (None, DT, int(fused_lif.types.Neuron.LIF), False, 0, 1, False)
    return lambda x: forward(x, *tensors, *options)[:3]


REFERENCE = TorchCandidate(
    "reference", functional_layer("reference"), modes=(FORWARD, BACKWARD, BOTH)
)
_OPERATOR_MODES = (FORWARD, INFERENCE)
_FUSED = ("cpu", "cuda", "triton")
#: What the library itself brings to the comparison, by the name in the column "backend".
CANDIDATES: dict[str, Candidate] = {
    c.name: c
    for c in (
        *(TorchCandidate(b, functional_layer(b), _reasons_against_backend(b)) for b in _FUSED),
        TorchCandidate("module", _module, _reasons_against_backend()),
        TorchCandidate("operator", _operator, _reasons_against_backend(), _OPERATOR_MODES),
        REFERENCE,
        Yardstick("copy", _copy, (FORWARD, BACKWARD, BOTH, INFERENCE)),
        Yardstick("matmul", _matmul, (FORWARD, BACKWARD, BOTH, INFERENCE)),
        Yardstick("gemm", _gemm),
    )
}
YARDSTICKS = ("copy", "matmul", "gemm", "mm_graph", "mm_fused_graph")
