"""The benchmark cases: which candidates meet on which settings, and the targets.

`problems.py` has the settings and our candidates, `run.py` the clock. The cases of a GPU are timed
with ``--device cuda``; their targets are those of an NVIDIA H200.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from problems import BACKWARD, BOTH, FORWARD, INFERENCE, OURS, YARDSTICKS, Setting

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
#: What our Triton kernels are compared with: the first of these that was timed in turns with them.
TRITON_RIVALS = {"triton": ("spikingjelly", "cuda"), "triton_graph": ("cuda_graph",)}
#: Limits by case, backend and rival, of any mode: Triton takes at most so many times as long.
TRITON_TARGETS: dict[tuple[str, str, str], float] = {
    ("gpu_sequence", "triton_graph", "cuda_graph"): 1.1,
    ("gpu_small", "triton_graph", "cuda_graph"): 1.1,
    ("gpu_spikingjelly", "triton_graph", "cuda_graph"): 1.1,
    ("gpu_spikingjelly", "triton", "spikingjelly"): 1.0,
}
#: Elements per neuron-step that a layer must move: x and z; x, grad_z and grad_x; all of them.
#: A copy moves two.
ELEMENTS = {FORWARD: 2, BACKWARD: 3, BOTH: 5}

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
        return Verdict("x floor", ratio * 2 / ELEMENTS[row["mode"]], limit)
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
    same = {r["backend"]: r for r in rows if r["dtype"] == row["dtype"]}
    for rival in TRITON_RIVALS.get(row["backend"], ()):
        if rival in same:
            limit = TRITON_TARGETS.get((row["case"], row["backend"], rival))
            return Verdict(f"x {rival}", row["median_ms"] / same[rival]["median_ms"], limit)
    if row["backend"] in ("cuda", "cuda_graph", *TRITON_RIVALS):
        if "copy" not in same:
            return Verdict("ns per step", 1e6 * row["median_ms"] / row["T"], limit)
        floor = same["copy"]["median_ms"] * ELEMENTS[row["mode"]] / 2
        return Verdict("of copy bandwidth", floor / row["median_ms"], limit, at_most=False)
    graph = "_graph" if row["backend"].endswith("_graph") else ""
    ours = next((b for b in (f"cuda{graph}", f"triton{graph}") if b in same), None)
    if row["backend"] == "copy" or ours is None:
        return None
    ratio = row["median_ms"] / same[ours]["median_ms"]
    return Verdict(f"x {ours}", ratio, limit if ours.startswith("cuda") else None, at_most=False)


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


def quick(shape: Shape) -> Shape:
    """Returns a shape that shows that a case runs, and nothing else."""
    T, B, *features = shape
    return -(-T // 16), min(B, 3), *(min(n, 5) for n in features)


def _recurrent(T: int, B: int, input_size: int, N: int) -> Block:
    return (Setting(T, B, N, model="recurrent", input_size=input_size),)


def _both_dtypes(constants: str) -> Callable[..., Block]:
    return lambda T, B, N: tuple(
        Setting(T, B, N, dtype=dtype, constants=constants) for dtype in ("float32", "bfloat16")
    )


LONG = (1000, 32, 256)
LARGE = (256, 64, 4096)
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
    # Of a GPU; the most important ones first.
    "gpu_sequence": Case(
        "a LIF layer with five learnable constants per neuron against the bandwidth of a copy",
        ("copy", "cuda", "cuda_graph", "triton", "triton_graph"),
        (FORWARD, BOTH, BACKWARD),
        (LARGE,),
        _both_dtypes("per neuron"),
        judge_gpu,
        device="cuda",
    ),
    "gpu_recurrent": Case(
        "a recurrent LIF layer against a matrix product and a pointwise function per step",
        ("cuda", "cuda_graph", "triton", "triton_graph", "mm_fused_graph", "mm_graph", "norse"),
        (FORWARD, BACKWARD, BOTH),
        ((1000, 32, 200, 512),),
        _recurrent,
        judge_gpu,
        device="cuda",
    ),
    "gpu_small": Case(
        "a LIF layer too small to fill a GPU: the time per step, and Norse's",
        ("cuda", "cuda_graph", "triton", "triton_graph", "norse", "norse_module"),
        (FORWARD, BOTH),
        (LONG,),
        judge=judge_gpu,
        device="cuda",
    ),
    "gpu_spikingjelly": Case(
        "a LIF layer whose constants make it SpikingJelly's, with one state, against its Triton",
        ("cuda", "triton", "spikingjelly", "cuda_graph", "triton_graph", "spikingjelly_graph"),
        (BOTH, FORWARD),
        (LARGE, LONG),
        _both_dtypes("one state"),
        judge_gpu,
        device="cuda",
    ),
}
