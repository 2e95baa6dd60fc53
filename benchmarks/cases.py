"""The benchmark cases: inputs, what is compared with what, and the targets.

`Setting` says what is computed, `Problem` holds its tensors, a `Candidate` turns a problem into
calls to be timed, and `CASES` says which candidates meet on which settings. `peers.py` has the
candidates that are not ours, `run.py` the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import fused_lif

DT = 0.001
ALPHA = 1.0  # Norse 1.1.0 ignores the alpha of "super"; with 1 all candidates compute the same
FORWARD, BACKWARD, BOTH, INFERENCE = "forward", "backward", "forward_backward", "inference"
SAVED, PEAK = "saved", "peak"  # modes that count bytes
SHAPES = ((32, 256, 100), (100, 64, 512), (1000, 32, 256), (256, 16, 2048))
RECURRENT = ((32, 256, 784, 100), (200, 64, 200, 256), (100, 32, 200, 512), (100, 16, 200, 1024))
CONSTANTS = ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")
#: Share of ones in the input of a recurrent layer. With weights drawn from a normal distribution of
#: deviation gain / sqrt(columns), 3 to 8 % of its neurons spike at every shape of `RECURRENT`, and
#: gradients neither grow nor vanish over time.
INPUT_RATE, INPUT_GAIN, RECURRENT_GAIN = 0.05, 6.0, 0.5
#: Weights are multiples of this: sums over spikes are exact, and so the same in every order.
WEIGHT_UNIT = 2.0**-10


@dataclass(frozen=True)
class Setting:
    """One computation.

    Attributes:
        T: Steps.
        B: Batch.
        N: Neurons.
        model: "lif", "li" or "recurrent", a sequence; "cell" or "recurrent_cell", one step;
            "encoder", the constant-current encoder.
        dtype: Type of the input, as torch names it; constants and states are float32 for half ones.
        constants: "per neuron", shape ``[N]`` and with gradients, or "scalar" and without.
        input: "busy", or "quiet": currents in the first five steps, gradients in the last five,
            and in between values that shrink until they are denormal.
        device: Where the tensors are, "cpu" or "cuda".
        input_size: Features of the spikes that a recurrent layer takes; other layers take currents.
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

    @property
    def is_recurrent(self) -> bool:
        """Whether there are weights."""
        return self.model in ("recurrent", "recurrent_cell")

    @property
    def is_cell(self) -> bool:
        """Whether it is one step in the middle of a sequence."""
        return self.model in ("cell", "recurrent_cell")


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

        def per_neuron(mean: float, spread: float) -> Tensor:
            value = uniform((s.N,), mean - spread, mean + spread)
            if s.constants == "scalar":
                return torch.tensor(mean, dtype=state_dtype, device=s.device)
            return torch.nn.Parameter(value.to(s.device, state_dtype))

        def spikes(shape: tuple[int, ...]) -> Tensor:
            return (uniform(shape, 0.0, 1.0) < INPUT_RATE).float()

        def weights(columns: int, gain: float) -> Tensor:
            drawn = gain * columns**-0.5 * torch.randn(s.N, columns, generator=generator)
            value = (drawn / WEIGHT_UNIT).round() * WEIGHT_UNIT
            return torch.nn.Parameter(value.to(s.device, state_dtype))

        time = () if s.is_cell or s.model == "encoder" else (s.T,)
        if s.is_recurrent:
            assert s.input_size is not None
            x = spikes((*time, s.B, s.input_size))
        else:
            low, high = (1.0, 3.0) if s.model == "encoder" else (0.0, 0.6)
            x = uniform((*time, s.B, s.N), low, high)
        grad_z = torch.randn((s.B, s.N) if s.is_cell else (s.T, s.B, s.N), generator=generator)
        v, i, z = (torch.zeros(s.B, s.N) for _ in range(3))
        if s.is_cell:  # in the middle of a sequence
            v, i = uniform((s.B, s.N), 0.0, 1.2), uniform((s.B, s.N), 0.0, 1.0)
        if s.model == "recurrent_cell":
            z = spikes((s.B, s.N))
        if s.input == "quiet":
            x[:5] *= 5
            x[5:] = 0
            grad_z[:-5] = 0

        self.is_half = dtype.itemsize == 2
        self.x = x.to(s.device, dtype)
        self.v, self.i, self.z = (state.to(s.device, state_dtype) for state in (v, i, z))
        self.grad_z = grad_z.to(s.device, dtype)
        rest = 0.0 if s.input == "quiet" else 0.05
        self.constants = {
            "tau_syn_inv": per_neuron(200.0, 20.0),
            "tau_mem_inv": per_neuron(100.0, 10.0),
            "v_leak": per_neuron(0.0, rest),
            "v_th": per_neuron(1.0, 0.1),
            "v_reset": per_neuron(0.0, rest),
        }
        if s.model == "li":
            self.constants = {name: self.constants[name] for name in CONSTANTS[:3]}
        self.weights = {}
        if s.is_recurrent:
            self.weights["input_weights"] = weights(s.input_size, INPUT_GAIN)
            self.weights["recurrent_weights"] = weights(s.N, RECURRENT_GAIN)
        self.leaves = {"x": self.x} | self.weights
        if s.constants == "per neuron":
            self.leaves |= self.constants
        if s.is_cell:
            self.leaves |= {"v": self.v, "i": self.i}
        if s.model == "recurrent_cell":
            self.leaves["z"] = self.z
        if s.model == "encoder":
            self.leaves = {}
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def backward(self, outputs: tuple[Tensor, ...]) -> None:
        """Runs backward from z, and for a cell, which others follow, from the state too."""
        roots = outputs if self.setting.is_cell else outputs[:1]
        torch.autograd.backward(roots, [self.grad_z.to(root.dtype) for root in roots])

    def parameters(self, library: Any) -> Any:
        """Returns the constants as ``LIFParameters`` or ``LIParameters`` of Norse or of ours."""
        if self.setting.model == "li":
            return library.LIParameters(**self.constants)
        return library.LIFParameters(**self.constants, method="super", alpha=torch.tensor(ALPHA))

    def state(self, library: Any) -> Any:
        """Returns the state before the first step as Norse's or our tuple."""
        if self.setting.is_recurrent:
            return library.LIFState(self.z, self.v, self.i)
        if self.setting.model == "li":
            return library.LIState(self.v, self.i)
        return library.LIFFeedForwardState(self.v, self.i)


class Call(NamedTuple):
    """What one repetition does: ``run`` on the clock, on what ``before`` prepared off the clock."""

    run: Callable[[Any], Any]
    before: Callable[[], Any] = lambda: None


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


Layer = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class TorchCandidate:
    """A candidate whose gradients come from torch's autograd.

    ``layer`` maps a problem to a function that returns ``z``, or ``z, v, i``, on a fresh graph.
    """

    name: str
    layer: Callable[[Problem], Layer]
    reasons: Callable[[Setting], list[str]] = lambda setting: []
    modes: tuple[str, ...] = (FORWARD, BACKWARD, BOTH, INFERENCE)
    exact: bool = True

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        return self.reasons(setting) if mode in self.modes else [f"has no mode {mode!r}"]

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time; gradients of the repetition before are dropped off the clock."""
        layer, leaves = self.layer(problem), tuple(problem.leaves.values())
        backward = problem.backward

        def drop_gradients() -> None:
            for leaf in leaves:
                leaf.grad = None

        def graph() -> tuple[Tensor, ...]:
            drop_gradients()
            return layer()

        def both(_: None) -> tuple[Tensor, ...]:
            outputs = layer()
            backward(outputs)
            return outputs

        def inference(_: None) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return layer()

        return {
            FORWARD: Call(lambda _: layer()),
            BACKWARD: Call(backward, graph),
            BOTH: Call(both, drop_gradients),
            INFERENCE: Call(inference),
        }[mode]

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns "z", "v", "i" and "grad <leaf>", to be compared with the reference."""
        for leaf in problem.leaves.values():
            leaf.grad = None
        outputs = dict(zip("zvi", self.layer(problem)(), strict=False))
        if mode in (BACKWARD, BOTH):
            problem.backward(tuple(outputs.values()))
        gradients = {
            f"grad {name}": leaf.grad
            for name, leaf in problem.leaves.items()
            if leaf.grad is not None
        }
        return {name: value.detach().cpu() for name, value in (outputs | gradients).items()}


@dataclass(frozen=True)
class Yardstick:
    """Something else on tensors of the same sizes, to compare times with.

    ``work`` maps a problem and a mode to the function to be timed.
    """

    name: str
    work: Callable[[Problem, str], Callable[[], Any]]
    exact: bool = True

    def reasons_against(self, setting: Setting, mode: str) -> list[str]:
        """Returns why it cannot run; empty if it can."""
        return [] if mode in (FORWARD, BOTH) else [f"is no yardstick for mode {mode!r}"]

    def call(self, problem: Problem, mode: str) -> Call:
        """Returns what to time."""
        work = self.work(problem, mode)
        return Call(lambda _: work())

    def results(self, problem: Problem, mode: str) -> dict[str, Tensor]:
        """Returns nothing: there is nothing to compare."""
        return {}


def _copy(problem: Problem, mode: str) -> Callable[[], Any]:
    """``Tensor.copy_`` between two buffers of the size of x: the speed of memory, for the floor."""
    source, target = problem.x.detach().clone(), torch.zeros_like(problem.x)
    return lambda: target.copy_(source)


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


def _functional(backend: str) -> Callable[[Problem], Layer]:
    """Our functions with one backend; a cell is a sequence of one step."""

    def build(problem: Problem) -> Layer:
        model = problem.setting.model
        p, functional = problem.parameters(fused_lif), fused_lif.functional
        if model == "encoder":
            encode = functional.encode.constant_current_lif_encode
            return lambda: (encode(problem.x, problem.setting.T, p, DT, backend=backend),)
        if model == "li":
            integral: Any = functional.leaky_integrator.li_feed_forward_integral
        elif problem.setting.is_recurrent:
            integral = functional.lif.lif_step_integral
        else:
            integral = functional.lif.lif_feed_forward_integral
        state, weights = problem.state(fused_lif), tuple(problem.weights.values())
        is_cell = problem.setting.is_cell

        def layer() -> tuple[Tensor, ...]:
            x = problem.x[None] if is_cell else problem.x
            z, s = integral(x, state, *weights, p, DT, backend=backend)
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
    sizes = (setting.input_size, setting.N) if setting.is_recurrent else ()
    options = problem.weights | {"autapses": True} if setting.is_recurrent else {}
    module = getattr(library, _MODULES[setting.model])
    neurons = module(*sizes, problem.parameters(library), dt=DT, **options)
    state = problem.state(library)

    def layer() -> tuple[Tensor, ...]:
        z, s = neurons(problem.x, state)
        return z, s.v, s.i

    return layer


def _module(problem: Problem) -> Layer:
    return module_layer(problem, fused_lif)


def _reasons_against_backend(backend: str | None = None) -> Callable[[Setting], list[str]]:
    """Asks the backend, by default the C++ one of the device, with an input of one neuron."""

    def reasons(setting: Setting) -> list[str]:
        try:
            _functional(backend or setting.device)(Problem(replace(setting, T=1, B=1, N=1)))()
        except (RuntimeError, ValueError) as error:
            return [str(error)]
        return []

    return reasons


def _operator(problem: Problem) -> Layer:
    """The bare operator on the tensors of the cell, without our Python around it."""
    forward = torch.ops.fused_lif.lif_forward
    tensors = (problem.x, problem.v, problem.i, *problem.constants.values())
    options = (DT, int(fused_lif.types.Neuron.LIF), False, 0)  # hard reset, no states for backward
    return lambda: forward(*tensors, *options)[:3]


REFERENCE = TorchCandidate("reference", _functional("reference"), modes=(FORWARD, BACKWARD, BOTH))
_OPERATOR_MODES = (FORWARD, INFERENCE)
_FUSED = ("cpu", "cuda", "triton")
#: What the library itself brings to the comparison, by the name in the column "backend".
CANDIDATES: dict[str, Candidate] = {
    c.name: c
    for c in (
        *(TorchCandidate(b, _functional(b), _reasons_against_backend(b)) for b in _FUSED),
        TorchCandidate("module", _module, _reasons_against_backend()),
        TorchCandidate("operator", _operator, _reasons_against_backend(), _OPERATOR_MODES),
        REFERENCE,
        Yardstick("copy", _copy),
        Yardstick("gemm", _gemm),
    )
}
YARDSTICKS = ("copy", "gemm")
#: Those that targets are about; the others are compared with the first of them in a case.
OURS = (*_FUSED, "module")

Row = dict[str, Any]


class Verdict(NamedTuple):
    """A ratio, and the target it has to meet if there is one."""

    label: str
    value: float
    limit: float | None = None
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether the target is met; true without a target."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.value:.3g} {self.label}"
        sign, word = "≤" if self.at_most else "≥", "pass" if self.passed else "FAIL"
        return f"{self.value:.3g} {self.label} ({sign} {self.limit:g}: {word})"


Judge = Callable[[Row, list[Row]], Verdict | None]

Shape = tuple[int, ...]  # (T, B, N), or (T, B, input_size, N) of a recurrent layer
Block = tuple[Setting, ...]
#: Limits of ratios, by case, backend of the row, mode and shape (`None`: any). Rows of ours take at
#: most so many times the yardstick; rows of others take at least so many times as long as ours.
TARGETS: dict[tuple[str, str, str, Shape | None], float] = {
    ("lif_forward", "jax", FORWARD, None): 3,
    ("lif_forward_backward", "jax", BOTH, None): 6,
    ("recurrent", "jax", BOTH, None): 3,
    ("norse_module", "norse_module", BOTH, None): 300,
    ("lif_cell", "norse_module", BOTH, (1, 256, 100)): 3,
    ("lif_cell", "operator", FORWARD, (1, 1, 100)): 3,
    ("lif_cell", "operator", INFERENCE, (1, 1, 100)): 3,
}
for _shape, _floors, _norse in zip(
    SHAPES,
    ((1.5, 3.0), (1.3, 2.5), (1.3, 2.5), (1.3, 2.5)),
    ((35, 30), (55, 40), (90, 60), (50, 35)),
    strict=True,
):
    for _case, _mode, _k in (("lif_forward", FORWARD, 0), ("lif_forward_backward", BOTH, 1)):
        TARGETS[_case, "cpu", _mode, _shape] = _floors[_k]
        TARGETS[_case, "norse", _mode, _shape] = _norse[_k]
for _shape, _gemms, _norse in zip(
    RECURRENT, (1.2, 0.8, 0.8, 0.8), ((5, 4), (15, 6), (12, 5), (8, 4)), strict=True
):
    TARGETS["recurrent", "cpu", BOTH, _shape] = _gemms
    TARGETS["recurrent", "norse", FORWARD, _shape] = _norse[0]
    TARGETS["recurrent", "norse", BOTH, _shape] = _norse[1]

#: Largest ratio to the first setting. "No slower" leaves a margin for noise, "linear" one for the
#: caches: they hold the shortest sequence and not the longest.
SETTING_LIMITS = {"bfloat16": 1.05, "quiet": 1.1, "linear_in_t": 1.5}
SAVED_LIMIT, RECURRENT_SAVED_LIMIT = 1.1, 1.125


def shape_of(row: Row) -> Shape:
    """Returns the shape as it stands in `Case.shapes`."""
    return tuple(row[name] for name in ("T", "B", "input_size", "N") if row[name])


def judge_baselines(row: Row, rows: list[Row]) -> Verdict | None:
    """Compares ours with the yardstick, and the others with ours."""
    ours = next((r for r in rows if r["backend"] in OURS), None)
    if ours is None or row["backend"] in YARDSTICKS:
        return None
    key = (row["case"], row["backend"], row["mode"])
    limit = TARGETS.get((*key, shape_of(row)), TARGETS.get((*key, None)))
    if row is ours:
        yardstick = next((r for r in rows if r["backend"] in YARDSTICKS), None)
        if yardstick is None:
            return None
        ratio = row["median_ms"] / yardstick["median_ms"]
        if yardstick["backend"] == "gemm":
            return Verdict("x gemm", ratio, limit)
        # copy_ moves two elements per neuron-step, forward two (x, z), backward three (x, grad_z,
        # grad_x).
        return Verdict("x floor", ratio / (2.5 if row["mode"] == BOTH else 1.0), limit)
    if row["backend"] == "operator":
        return Verdict(
            f"= {ours['backend']} / operator", ours["median_ms"] / row["median_ms"], limit
        )
    return Verdict(
        f"x {ours['backend']}", row["median_ms"] / ours["median_ms"], limit, at_most=False
    )


def judge_settings(row: Row, rows: list[Row]) -> Verdict | None:
    """Compares the time per step with that of the first setting."""
    first = next(r for r in rows if r["backend"] == row["backend"])
    if row is first:
        return None
    ratio = (row["median_ms"] / row["T"]) / (first["median_ms"] / first["T"])
    return Verdict("x first row, per step", ratio, SETTING_LIMITS[row["case"]])


def judge_memory(row: Row, rows: list[Row]) -> Verdict | None:
    """Compares bytes with those of the input; a recurrent layer needs its current and z too."""
    label, per_step, limit = "x input", row["N"], SAVED_LIMIT
    if row["input_size"]:
        label, per_step = "x (input + current + z)", row["input_size"] + 2 * row["N"]
        limit = RECURRENT_SAVED_LIMIT
    size = getattr(torch, row["dtype"]).itemsize * row["T"] * row["B"] * per_step
    has_limit = row["mode"] == SAVED and row["backend"] in OURS
    return Verdict(label, row["memory_bytes"] / size, limit if has_limit else None)


@dataclass(frozen=True)
class Case:
    """Candidates that meet on the same settings.

    Attributes:
        about: One line for ``--list``.
        candidates: Names of those compared.
        modes: What is timed; `SAVED` and `PEAK` count bytes instead.
        shapes: Those at which they meet; all of the same length.
        block: Returns the settings of one shape; they are timed in turns.
        judge: Returns the ratio of a row, given the rows timed in turns with it.
        memory: Whether the peak of the memory is measured besides the time.
    """

    about: str
    candidates: tuple[str, ...]
    modes: tuple[str, ...]
    shapes: tuple[Shape, ...] = SHAPES
    block: Callable[..., Block] = lambda T, B, N: (Setting(T, B, N),)
    judge: Judge = judge_baselines
    memory: bool = False


def quick(shape: Shape) -> Shape:
    """Returns a shape that shows that a case runs, and nothing else."""
    T, B, *features = shape
    return -(-T // 16), min(B, 3), *(min(n, 5) for n in features)


def _recurrent(T: int, B: int, input_size: int, N: int) -> Block:
    return (Setting(T, B, N, model="recurrent", input_size=input_size),)


LONG = (1000, 32, 256)
CASES: dict[str, Case] = {
    "lif_forward": Case(
        "a LIF layer with five learnable constants per neuron, in training",
        ("copy", "cpu", "reference", "norse", "jax"),
        (FORWARD,),
        memory=True,
    ),
    "lif_forward_backward": Case(
        "the same with gradients of the input and of the constants",
        ("copy", "cpu", "reference", "norse", "jax"),
        (BOTH, BACKWARD),
        memory=True,
    ),
    "lif_scalar": Case(
        "a LIF layer with scalar constants without gradients",
        ("copy", "cpu", "reference", "norse"),
        (FORWARD, BOTH),
        block=lambda T, B, N: (Setting(T, B, N, constants="scalar"),),
    ),
    "li_forward_backward": Case(
        "a leaky integrator with three learnable constants per neuron",
        ("copy", "cpu", "reference", "norse"),
        (BOTH,),
        block=lambda T, B, N: (Setting(T, B, N, model="li"),),
    ),
    "encoder_forward": Case(
        "the constant-current LIF encoder",
        ("cpu", "reference", "norse"),
        (FORWARD,),
        block=lambda T, B, N: (Setting(T, B, N, model="encoder", constants="scalar"),),
    ),
    "lif_cell": Case(
        "one step of LIFCell from a given state; all eight inputs get gradients",
        ("module", "operator", "reference", "norse_module"),
        (BOTH, FORWARD, INFERENCE),
        ((1, 256, 100), (1, 1, 100)),
        lambda T, B, N: (Setting(1, B, N, model="cell"),),
    ),
    "bfloat16": Case(
        "bfloat16 input against float32",
        ("cpu",),
        (FORWARD, BOTH),
        ((100, 64, 512), LONG),
        lambda T, B, N: (Setting(T, B, N), Setting(T, B, N, dtype="bfloat16")),
        judge_settings,
    ),
    "linear_in_t": Case(
        "time per step of ever longer sequences",
        ("cpu",),
        (FORWARD, BOTH),
        ((2000, 16, 256),),
        lambda T, B, N: tuple(Setting(T * k // 16, B, N) for k in (1, 2, 4, 8, 16)),
        judge_settings,
    ),
    "quiet": Case(
        "currents and gradients that shrink until they are denormal, against busy ones",
        ("cpu",),
        (FORWARD, BOTH),
        ((2000, 32, 256),),
        lambda T, B, N: (Setting(T, B, N), Setting(T, B, N, input="quiet")),
        judge_settings,
    ),
    "saved_memory": Case(
        "bytes that autograd keeps for backward, and the peak of a training step",
        ("cpu", "reference", "norse", "norse_module"),
        (SAVED, PEAK),
        (LONG,),
        lambda T, B, N: (Setting(T, B, N), Setting(T, B, N, constants="scalar")),
        judge_memory,
    ),
    "norse_module": Case(
        "the module LIF against Norse's, whose backward is quadratic in T",
        ("module", "norse_module"),
        (BOTH,),
        (LONG,),
    ),
    "recurrent": Case(
        "a recurrent LIF layer on spikes; the input, all weights and constants get gradients",
        ("gemm", "cpu", "module", "reference", "norse", "norse_module", "jax"),
        (FORWARD, BOTH),
        RECURRENT,
        _recurrent,
    ),
    "recurrent_memory": Case(
        "the same: bytes that autograd keeps for backward, and the peak of a training step",
        ("cpu", "reference", "norse"),
        (SAVED, PEAK),
        RECURRENT,
        _recurrent,
        judge_memory,
    ),
    "recurrent_cell": Case(
        "one step of LIFRecurrentCell from a given state; all eleven inputs get gradients",
        ("module", "reference", "norse_module"),
        (BOTH,),
        ((1, 256, 784, 100),),
        lambda T, B, input_size, N: (
            Setting(1, B, N, model="recurrent_cell", input_size=input_size),
        ),
    ),
}
