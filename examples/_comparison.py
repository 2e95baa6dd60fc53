"""One run of the comparison: a network, its time constants and how it is trained."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _temporal_data import Sequences, load_task
from _training import shuffled_batches
from torch import nn

import fused_lif as snn

CONDITIONS = {  # in the order of the tables
    "fixed": "(i) fixed, one for all",
    "drawn": "(ii) fixed, drawn per neuron",
    "learned": "(iii) learned, one for all",
    "learned_each": "(iv) learned per neuron",
}
DRAWN = ("drawn", "learned_each")  # start from one value per neuron; the others share one
LEARNED = ("learned", "learned_each")
TIME_CONSTANTS = ("tau_mem", "tau_syn")
SHORTEST = 1.05  # steps: Euler's steps need time constants longer than one
GAMMA_SHAPE = 3.0  # of the draws: the standard deviation is 0.58 of the mean
READOUT_MEMORY = 0.5  # membrane time constant of the readout, in lengths of the sequence
MAX_NORM = 1.0  # to which gradients are clipped


@dataclass(frozen=True)
class Settings:
    """How all runs of a task are done, whatever the condition."""

    epochs: int
    batch_size: int
    hidden: int = 100
    alpha: float = 5.0  # of the surrogate
    sequences: int | None = None  # per set, for a quick run


SETTINGS = {
    "braille": Settings(epochs=30, batch_size=64),
    "fsdd": Settings(epochs=20, batch_size=64),
    "mnist": Settings(epochs=8, batch_size=128),
    "intervals": Settings(epochs=10, batch_size=50, hidden=50),
}


@dataclass(frozen=True)
class Job:
    """What distinguishes a run from the others.

    Attributes:
        task: Name of the data.
        stage: "scale" and "search" are measured on the validation set, "final" on the test set.
        condition: A key of `CONDITIONS`.
        seed: Of weights, batches and drawn time constants, which are the same in all conditions.
        steps: Mean of the first membrane time constants, in steps.
        lr: Learning rate of the weights.
        neuron_lr: That of the time constants, parametrized by a logarithm that is bounded by one
            step; None if they are fixed.
    """

    task: str
    stage: str
    condition: str
    seed: int
    steps: float
    lr: float
    neuron_lr: float | None = None


def first_time_constants(job: Job, dt: float, hidden: int) -> dict[str, torch.Tensor]:
    """Returns the time constants before training, in seconds: one for all or one per neuron.

    Those of the synapses are half of those of the membranes on average. Draws below `SHORTEST`
    are raised to it.
    """
    generator = torch.Generator().manual_seed(job.seed)
    values = {}
    for name, mean in (("tau_mem", job.steps * dt), ("tau_syn", job.steps * dt / 2)):
        if job.condition in DRAWN:
            drawn = snn.init.gamma(mean, GAMMA_SHAPE)((hidden,), generator)
            values[name] = drawn.clamp(min=SHORTEST * dt)
        else:
            values[name] = torch.tensor(mean)
    return values


class SequenceClassifier(nn.Module):
    """Input -> recurrent LIF neurons -> leaky integrators, whose voltages over time are scores.

    The score is the soft maximum of the voltages over time, log(sum(exp)). With the largest voltage
    alone some classes would not learn: a voltage starts at zero, and that is then the maximum of
    one that is always negative.

    Thresholds are not among the constants that differ: as `v_leak` and `v_reset` are zero, a lower
    threshold does the same as larger weights to the neuron, but for the surrogate gradient.

    Args:
        job: Condition, seed and mean time constant.
        data: What to classify; the first training sequences set the size of the input weights.
        settings: Sizes.

    Shape:
        - Input: `[T, B, channels]`.
        - Output: scores `[B, classes]`, and spikes `[T, B, hidden]`.
    """

    def __init__(self, job: Job, data: Sequences, settings: Settings) -> None:
        super().__init__()
        dt = data.dt
        time_constants = first_time_constants(job, dt, settings.hidden)
        inverse = {f"{name}_inv": value.reciprocal() for name, value in time_constants.items()}
        if job.condition in LEARNED:
            inverse = {name: nn.Parameter(value) for name, value in inverse.items()}
        p = snn.LIFParameters(**inverse, alpha=settings.alpha)
        torch.manual_seed(job.seed)
        self.hidden = snn.LIFRecurrent(data.inputs.shape[2], settings.hidden, p, dt=dt)
        self.linear = nn.Linear(settings.hidden, data.classes)
        if job.condition in LEARNED:
            snn.parametrize(self.hidden, list(inverse), "log", upper=1 / dt)
        self.readout = snn.LI(leaky_integrator(READOUT_MEMORY * data.steps * dt), dt=dt)
        self._scale_input_weights(data.batch(data.train[:256])[0], job.steps * dt)

    @torch.no_grad()
    def _scale_input_weights(self, inputs: torch.Tensor, tau_mem: float) -> None:
        """Gives voltages of neurons that do not spike the standard deviation 1, the threshold.

        All neurons have the mean time constants meanwhile: in all conditions the weights are the
        same.
        """
        weights = self.hidden.input_weights
        membranes = snn.LI(leaky_integrator(tau_mem), dt=self.hidden.dt)
        voltages, _ = membranes(nn.functional.linear(inputs, weights))
        weights.div_(voltages.std())

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads sequences and returns the score of each class."""
        spikes, _ = self.hidden(inputs)
        voltages, _ = self.readout(self.linear(spikes))
        return voltages.logsumexp(dim=0), spikes

    def time_constants(self) -> dict[str, list[float]]:
        """Returns the present time constants in seconds: one value, or one per neuron."""
        p = self.hidden.p
        return {
            name: [float(f"{1 / v:.4g}") for v in getattr(p, f"{name}_inv").detach().view(-1)]
            for name in TIME_CONSTANTS
        }


def leaky_integrator(tau_mem: float) -> snn.LIParameters:
    """Returns constants with a synapse twice as fast as the membrane."""
    return snn.LIParameters(tau_syn_inv=2 / tau_mem, tau_mem_inv=1 / tau_mem)


def make_optimizer(model: nn.Module, job: Job) -> torch.optim.Adam:
    """Makes an Adam optimizer; time constants that are learned are a group of their own."""
    groups = snn.optim.param_groups(model, lr=job.lr, neuron_lr=job.neuron_lr)
    return torch.optim.Adam([group for group in groups if group["params"]])


@functools.cache
def load(task: str, data: Path | None, sequences: int | None) -> Sequences:
    """Loads a task once per process; `sequences` limits the size of each set."""
    loaded = load_task(task, data)
    for split in ("train", "validation", "test"):
        indices = getattr(loaded, split)
        if sequences is not None:  # some of all classes, as the data may be sorted
            indices = indices[:: max(1, len(indices) // sequences)]
        setattr(loaded, split, indices)
    return loaded


def train(job: Job, settings: Settings, data: Path | None) -> dict[str, Any]:
    """Trains a network and returns what came out, ready to be written as JSON.

    In the stage "final" it learns from the training and the validation set. The accuracy on the
    test set after each epoch is for the learning curves; nothing is chosen by it.
    """
    began, processor_began = time.perf_counter(), time.process_time()
    sequences = load(job.task, data, settings.sequences)
    is_final = job.stage == "final"
    learn_from, judged_by = sequences.train, sequences.validation
    if is_final:
        learn_from = torch.cat([sequences.train, sequences.validation])
        judged_by = sequences.test
    model = SequenceClassifier(job, sequences, settings)
    optimizer = make_optimizer(model, job)
    batches = -(-len(learn_from) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)

    history: dict[str, list[float]] = {"loss": [], "train_accuracy": [], "accuracy": []}
    for epoch in range(settings.epochs):
        order = shuffled_batches(len(learn_from), settings.batch_size, job.seed + 1000 * epoch)
        loss_sum = correct = 0.0
        for chosen in order:
            inputs, labels = sequences.batch(learn_from[chosen])
            scores, _ = model(inputs)
            loss = nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], MAX_NORM)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(chosen)
            correct += (scores.argmax(1) == labels).sum().item()
        history["loss"].append(round(loss_sum / len(learn_from), 5))
        history["train_accuracy"].append(round(correct / len(learn_from), 5))
        if is_final or epoch == settings.epochs - 1:
            accuracy, activity = evaluate(model, sequences, judged_by)
            history["accuracy"].append(round(accuracy, 6))
    return {
        **asdict(job),
        **history,
        "spikes_per_step": round(activity, 4),
        **(model.time_constants() if is_final else {}),
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(time.process_time() - processor_began, 2),
    }


@torch.no_grad()
def evaluate(model: nn.Module, data: Sequences, indices: torch.Tensor) -> tuple[float, float]:
    """Returns the fraction of correct answers, and that of steps in which a neuron spikes."""
    correct = spikes_sum = 0.0
    for chosen in indices.split(500):
        inputs, labels = data.batch(chosen)
        scores, spikes = model(inputs)
        correct += (scores.argmax(1) == labels).sum().item()
        spikes_sum += spikes.mean().item() * len(chosen)
    return correct / len(indices), spikes_sum / len(indices)
