"""The benchmark cases: which candidates meet on which settings, and the targets.

`problems.py` has the settings and our candidates, `run.py` the clock. The cases of a GPU are timed
with ``--device cuda``; their targets are those of an NVIDIA H200.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from problems import BACKWARD, BOTH, CHANNELS, FORWARD, INFERENCE, YARDSTICKS, Setting
from rows import OURS

SAVED, PEAK = "saved", "peak"  # modes that count bytes
SHAPES = ((32, 256, 100), (100, 64, 512), (1000, 32, 256), (256, 16, 2048))
RECURRENT = ((32, 256, 784, 100), (200, 64, 200, 256), (100, 32, 200, 512), (100, 16, 200, 1024))

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

#: Limits on an NVIDIA H200, by case, backend of the row and mode. Rows of ours: the share of the
#: bandwidth of a copy that they reach at least, or the nanoseconds per step that they take at most;
#: rows of others take at least so many times as long as ours.
GPU_TARGETS: dict[tuple[str, str, str], float] = {
    ("gpu_sequence", "cuda", FORWARD): 0.9,
    ("gpu_sequence", "cuda_graph", FORWARD): 0.9,
    ("gpu_sequence", "cuda", BOTH): 0.8,
    ("gpu_sequence", "cuda_graph", BOTH): 0.8,
    ("gpu_small", "cuda_graph", FORWARD): 40,
    ("gpu_small", "cuda_graph", BOTH): 120,
    ("gpu_small", "norse", FORWARD): 100,
    ("gpu_small", "norse", BOTH): 100,
    ("gpu_spikingjelly", "spikingjelly", BOTH): 1.5,
    ("gpu_recurrent", "cuda_graph", FORWARD): 1500,
    ("gpu_recurrent", "cuda_graph", BACKWARD): 2500,
    ("gpu_recurrent", "mm_fused_graph", FORWARD): 4,
    ("gpu_recurrent", "mm_fused_graph", BACKWARD): 4,
    ("gpu_recurrent", "mm_fused_graph", BOTH): 4,
}
#: Cases of a GPU that are too small to be limited by its bandwidth.
NS_PER_STEP = ("gpu_small", "gpu_recurrent")
#: What our Triton kernels are compared with: the first of these that was timed in turns with them.
TRITON_RIVALS = {"triton": ("spikingjelly", "cuda"), "triton_graph": ("cuda_graph",)}
#: Limits by case, backend and rival, of any mode: Triton takes at most so many times as long.
TRITON_TARGETS: dict[tuple[str, str, str], float] = {
    ("gpu_sequence", "triton_graph", "cuda_graph"): 1.1,
    ("gpu_small", "triton_graph", "cuda_graph"): 1.1,
    ("gpu_spikingjelly", "triton_graph", "cuda_graph"): 1.1,
    ("gpu_spikingjelly", "triton", "spikingjelly"): 1.0,
}
#: Largest ratio to the first setting. "No slower" leaves a margin for noise, "linear" one for the
#: caches: they hold the shortest sequence and not the longest.
SETTING_LIMITS = {"bfloat16": 1.05, "quiet": 1.1}
SAVED_LIMIT, RECURRENT_SAVED_LIMIT = 1.1, 1.125


def shape_of(row: Row) -> Shape:
    """Returns the shape as it stands in `Case.shapes`."""
    return tuple(row[name] for name in ("T", "B", "input_size", "N") if row[name])


def _of_same_setting(row: Row, rows: list[Row]) -> list[Row]:
    columns = ("T", "B", "N", "input_size", "dtype", "constants", "input", "threads")
    return [r for r in rows if all(r[name] == row[name] for name in columns)]


def judge_baselines(row: Row, rows: list[Row]) -> Verdict | None:
    """Compares ours with the limit or the matrix products, and the others with ours."""
    if row["median_ms"] == "":
        return judge_memory(row, rows)
    rows = _of_same_setting(row, rows)
    ours = next((r for r in rows if r["backend"] in OURS), None)
    if ours is None or row["backend"] in YARDSTICKS:
        return None
    key = (row["case"], row["backend"], row["mode"])
    limit = TARGETS.get((*key, shape_of(row)), TARGETS.get((*key, None)))
    if row is ours:
        products = next((r for r in rows if r["backend"] == "gemm"), None)
        if products:
            return Verdict("x gemm", row["median_ms"] / products["median_ms"], limit)
        if row["limit_ms"] == "":
            return None
        return Verdict("x limit", row["median_ms"] / row["limit_ms"], limit)
    if row["backend"] == "operator":
        return Verdict(
            f"= {ours['backend']} / operator", ours["median_ms"] / row["median_ms"], limit
        )
    return Verdict(
        f"x {ours['backend']}", row["median_ms"] / ours["median_ms"], limit, at_most=False
    )


def judge_gpu(row: Row, rows: list[Row]) -> Verdict | None:
    """Compares `cuda` with a copy or with the clock, `triton` with its rivals, others with `cuda`.

    What replays a graph is compared with our graph, what is launched from Python with ours that is.
    Where `cuda` is missing, `triton` takes its place, without targets.
    """
    limit = GPU_TARGETS.get((row["case"], row["backend"], row["mode"]))
    same = {r["backend"]: r for r in _of_same_setting(row, rows)}
    for rival in TRITON_RIVALS.get(row["backend"], ()):
        if rival in same:
            limit = TRITON_TARGETS.get((row["case"], row["backend"], rival))
            return Verdict(f"x {rival}", row["median_ms"] / same[rival]["median_ms"], limit)
    if row["backend"] in ("cuda", "cuda_graph", *TRITON_RIVALS):
        if row["case"] in NS_PER_STEP or row["of_limit"] == "":
            return Verdict("ns per step", 1e6 * row["median_ms"] / row["T"], limit)
        return Verdict("of the limit", row["of_limit"], limit, at_most=False)
    graph = "_graph" if row["backend"].endswith("_graph") else ""
    ours = next((b for b in (f"cuda{graph}", f"triton{graph}") if b in same), None)
    if row["backend"] in ("copy", "matmul") or ours is None:
        return None
    ratio = row["median_ms"] / same[ours]["median_ms"]
    return Verdict(f"x {ours}", ratio, limit if ours.startswith("cuda") else None, at_most=False)


def judge_settings(row: Row, rows: list[Row]) -> Verdict | None:
    """Compares the time per step with that of the first setting."""
    first = next(r for r in rows if r["backend"] == row["backend"])
    if row is first or row["backend"] in YARDSTICKS:
        return None
    ratio = (row["median_ms"] / row["T"]) / (first["median_ms"] / first["T"])
    limit = SETTING_LIMITS.get(row["case"]) if row["backend"] in OURS else None
    return Verdict("x first row, per step", ratio, limit)


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
        device: Where it is measured unless it is named on the command line.
    """

    about: str
    candidates: tuple[str, ...]
    modes: tuple[str, ...]
    shapes: tuple[Shape, ...] = SHAPES
    block: Callable[..., Block] = lambda T, B, N: (Setting(T, B, N),)
    judge: Judge = judge_baselines
    memory: bool = False
    device: str = "cpu"


def quick(setting: Setting) -> Setting:
    """Returns a setting that shows that a case runs, and nothing else."""
    N = CHANNELS * 4 if setting.constants == "per channel" else min(setting.N, 5)
    input_size = setting.input_size and min(setting.input_size, 5)
    return replace(setting, T=-(-setting.T // 16), B=min(setting.B, 3), N=N, input_size=input_size)


def _recurrent(T: int, B: int, input_size: int, N: int) -> Block:
    return (Setting(T, B, N, model="recurrent", input_size=input_size),)


def _both_dtypes(constants: str) -> Callable[..., Block]:
    return lambda T, B, N: tuple(
        Setting(T, B, N, dtype=dtype, constants=constants) for dtype in ("float32", "bfloat16")
    )


def _of(constants: str, model: str = "lif") -> Callable[..., Block]:
    return lambda T, B, N: (Setting(T, B, N, constants=constants, model=model),)


def _growing(size: str, factors: tuple[int, ...]) -> Callable[..., Block]:
    """Settings in which one size is multiplied by each of ``factors``."""

    def block(T: int, B: int, N: int) -> Block:
        first = Setting(T, B, N)
        return tuple(replace(first, **{size: factor * getattr(first, size)}) for factor in factors)

    return block


TRAINING = (FORWARD, BOTH, BACKWARD)
LONG = (1000, 32, 256)
LARGE = (256, 64, 4096)
SMALL_BATCH = (1000, 1, 512)
#: Times the first size, which is 1 MiB of x: up to 1 GiB, and 4 GiB for a training step.
GROWTH = (1, 4, 16, 64, 256, 1024)
PER_NEURON_PEERS = ("reference", "norse", "norse_compiled", "jax")
TWO_STATE_PEERS = ("norse", "norse_compiled", "snntorch", "sinabs", "jax")
CASES: dict[str, Case] = {
    "lif_forward": Case(
        "a LIF layer with five learnable constants per neuron, in training",
        ("copy", "cpu", *PER_NEURON_PEERS),
        (FORWARD,),
        (*SHAPES, SMALL_BATCH),
    ),
    "lif_forward_backward": Case(
        "the same with gradients of the input and of the constants",
        ("copy", "cpu", *PER_NEURON_PEERS),
        (BOTH, BACKWARD),
        (*SHAPES, SMALL_BATCH),
        memory=True,
    ),
    "lif_scalar": Case(
        "a LIF layer with scalar constants without gradients",
        ("copy", "cpu", *PER_NEURON_PEERS),
        TRAINING,
        block=_of("scalar"),
    ),
    "lif_two_states": Case(
        "a LIF layer that rests and resets at 0, with time constants per neuron, as others have it",
        ("copy", "cpu", *TWO_STATE_PEERS),
        TRAINING,
        block=_of("two states"),
    ),
    "lif_one_state": Case(
        "a LIF layer whose current is its input, with scalar constants, as SpikingJelly has it",
        ("copy", "cpu", "spikingjelly", "norse"),
        TRAINING,
        block=_of("one state"),
    ),
    "adjoint": Case(
        'a LIF layer with method="adjoint" and scalar constants, against Norse\'s adjoint steps',
        ("copy", "cpu", "norse"),
        (BOTH,),
        block=_of("scalar", "adjoint"),
    ),
    "li": Case(
        "a leaky integrator with three learnable constants per neuron",
        ("copy", "cpu", "reference", "norse", "norse_compiled"),
        TRAINING,
        block=_of("per neuron", "li"),
    ),
    "encoder": Case(
        "the constant-current LIF encoder with four learnable constants per neuron",
        ("copy", "cpu", "reference", "norse"),
        TRAINING,
        block=_of("per neuron", "encoder"),
    ),
    "lif_cell": Case(
        "one step of LIFCell from a given state; all eight inputs get gradients",
        ("copy", "module", "operator", "reference", "norse_module"),
        (*TRAINING, INFERENCE),
        ((1, 256, 100), (1, 1, 100)),
        lambda T, B, N: (Setting(1, B, N, model="cell"),),
    ),
    "feature_map": Case(
        "a LIF layer on a feature map [T, B, 32, H, W], five learnable constants per channel",
        ("copy", "cpu", *PER_NEURON_PEERS),
        TRAINING,
        ((16, 16, 32 * 28 * 28), (32, 8, 32 * 14 * 14)),
        _of("per channel"),
    ),
    "bfloat16": Case(
        "bfloat16 input against float32",
        ("copy", "cpu", "norse"),
        TRAINING,
        ((100, 64, 512), LONG),
        lambda T, B, N: (Setting(T, B, N), Setting(T, B, N, dtype="bfloat16")),
        judge_settings,
    ),
    "quiet": Case(
        "currents and gradients that shrink until they are denormal, against busy ones",
        ("copy", "cpu"),
        (FORWARD, BOTH),
        ((2000, 32, 256),),
        lambda T, B, N: (Setting(T, B, N), Setting(T, B, N, input="quiet")),
        judge_settings,
    ),
    "threads": Case(
        "one thread against two",
        ("copy", "cpu", "norse"),
        (FORWARD, BOTH),
        block=lambda T, B, N: tuple(Setting(T, B, N, threads=threads) for threads in (2, 1)),
        judge=judge_settings,
    ),
    "saved_memory": Case(
        "bytes that autograd keeps for backward, and the peak of a training step",
        ("cpu", "reference", "norse", "norse_module", "snntorch", "sinabs", "spikingjelly"),
        (SAVED, PEAK),
        (LONG,),
        lambda T, B, N: tuple(
            Setting(T, B, N, constants=constants)
            for constants in ("per neuron", "scalar", "two states", "one state")
        ),
        judge_memory,
    ),
    "norse_module": Case(
        "the module LIF against Norse's, whose backward is quadratic in T",
        ("copy", "module", "norse_module"),
        (BOTH,),
        (LONG,),
    ),
    "against_t": Case(
        "ever longer sequences, ours and others: time, peak and what is kept for backward",
        ("copy", "cpu", "reference", "norse", "norse_module", "jax", "snntorch", "sinabs"),
        (BOTH, SAVED),
        ((16, 32, 256),),
        lambda T, B, N: tuple(
            Setting(T * k, B, N, constants="two states") for k in (1, 4, 16, 64, 128)
        ),
        memory=True,
    ),
    "grow_t": Case(
        "ever longer sequences, up to 1 GiB of input",
        ("copy", "cpu"),
        (FORWARD, BOTH),
        ((16, 32, 512),),
        _growing("T", GROWTH),
        memory=True,
    ),
    "grow_b": Case(
        "ever larger batches, up to 1 GiB of input",
        ("copy", "cpu"),
        (FORWARD, BOTH),
        ((64, 8, 512),),
        _growing("B", GROWTH),
        memory=True,
    ),
    "grow_n": Case(
        "ever more neurons, up to 1 GiB of input",
        ("copy", "cpu"),
        (FORWARD, BOTH),
        ((64, 32, 128),),
        _growing("N", GROWTH),
        memory=True,
    ),
    "recurrent": Case(
        "a recurrent LIF layer on spikes; the input, all weights and constants get gradients",
        (
            *("copy", "matmul", "gemm", "cpu", "module", "reference"),
            *("norse", "norse_compiled", "norse_module", "jax"),
        ),
        TRAINING,
        (*RECURRENT, (100, 64, 200, 64)),
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
        ("copy", "matmul", "module", "reference", "norse_module"),
        TRAINING,
        ((1, 256, 784, 100),),
        lambda T, B, input_size, N: (
            Setting(1, B, N, model="recurrent_cell", input_size=input_size),
        ),
    ),
    "three_layers": Case(
        "three times weights and LIF neurons, on spikes; all weights and constants get gradients",
        ("copy", "matmul", "cpu", *dict.fromkeys(PER_NEURON_PEERS + TWO_STATE_PEERS)),
        TRAINING,
        ((100, 64, 700, 256), (32, 256, 784, 512)),
        lambda T, B, input_size, N: tuple(
            Setting(T, B, N, model="three_layers", input_size=input_size, constants=constants)
            for constants in ("per neuron", "two states")
        ),
    ),
    "notebook": Case(
        "the network of Norse's notebook: cells in a loop as it has them, or one call per layer",
        ("copy", "matmul", "cpu", "module", "reference", "norse_module"),
        TRAINING,
        ((32, 256, 784, 100),),
        lambda T, B, input_size, N: (
            Setting(T, B, N, model="notebook", input_size=input_size, constants="notebook"),
        ),
    ),
    # Of a GPU; the most important ones first.
    "gpu_sequence": Case(
        "a LIF layer with five learnable constants per neuron against the bandwidth of a copy",
        ("copy", "cuda", "cuda_graph", "triton", "triton_graph"),
        TRAINING,
        (LARGE,),
        _both_dtypes("per neuron"),
        judge_gpu,
        device="cuda",
    ),
    "gpu_recurrent": Case(
        "a recurrent LIF layer against a matrix product and a pointwise function per step",
        (
            *("copy", "matmul", "cuda", "cuda_graph", "triton", "triton_graph"),
            *("mm_fused_graph", "mm_graph", "norse"),
        ),
        (FORWARD, BACKWARD, BOTH),
        ((1000, 32, 200, 512),),
        _recurrent,
        judge_gpu,
        device="cuda",
    ),
    "gpu_small": Case(
        "a LIF layer too small to fill a GPU: the time per step, and Norse's",
        ("copy", "cuda", "cuda_graph", "triton", "triton_graph", "norse", "norse_module"),
        (FORWARD, BOTH),
        (LONG,),
        judge=judge_gpu,
        device="cuda",
    ),
    "gpu_spikingjelly": Case(
        "a LIF layer whose constants make it SpikingJelly's, with one state, against its Triton",
        (
            *("copy", "cuda", "triton", "spikingjelly"),
            *("cuda_graph", "triton_graph", "spikingjelly_graph"),
        ),
        (BOTH, FORWARD),
        (LARGE, LONG),
        _both_dtypes("one state"),
        judge_gpu,
        device="cuda",
    ),
    "gpu_batch": Case(
        "ever larger batches: where the bandwidth is reached",
        ("copy", "cuda", "cuda_graph", "triton_graph"),
        (FORWARD, BOTH),
        ((100, 4, 512),),
        _growing("B", (1, 8, 64, 512)),
        judge_gpu,
        device="cuda",
    ),
    "gpu_networks": Case(
        "three times weights and LIF neurons, on spikes",
        ("copy", "matmul", "cuda", "cuda_graph", "triton", "norse"),
        (BOTH,),
        ((100, 256, 700, 1024),),
        lambda T, B, input_size, N: (
            Setting(T, B, N, model="three_layers", input_size=input_size),
        ),
        judge_gpu,
        device="cuda",
    ),
    "gpu_compiled": Case(
        "a LIF layer against steps compiled by torch.compile, Norse's and those of our reference",
        ("copy", "cuda", "cuda_graph", "triton", "norse_compiled", "reference_compiled"),
        (FORWARD, BOTH),
        ((100, 64, 512),),
        judge=judge_gpu,
        device="cuda",
    ),
}
