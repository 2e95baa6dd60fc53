"""The Norse parameter-learning workshop: neuron constants are learned together with the weights.

(a) Odd firing: in a network 100 -> 200 -> 100 every fifth output neuron learns to spike, and the
    others to stay silent; once with fixed and once with learnable `tau_mem_inv`, one per neuron.
(b) Digits: a feed-forward network of LIF layers with a leaky-integrator readout learns to classify
    digits, with learnable `tau_mem_inv` and `v_th`. With `--data DIR` the digits are those of
    MNIST, otherwise the small set that scikit-learn brings along.
(c) Recurrent: the network of the workshop's notebook, a layer of LIF neurons with recurrent
    connections, learns the same digits. `--part compare` measures it beside Norse.

Run it with `python examples/parameter_learning.py`; README.md beside it lists what comes out.
Ctrl-C stops after the current batch and keeps a checkpoint; `--resume` continues it to the same
result, bit for bit on the same machine.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import _plots as plots
import torch
from _data import MNIST_FILES, Digits, find_mnist, load_builtin_digits, load_mnist
from _training import (
    Checkpoint,
    Interrupted,
    Session,
    StopRequest,
    shuffled_batches,
    time_in_turns,
    train_classifier,
    training_step,
)
from torch import nn
from tqdm import tqdm

import fused_lif as snn
from fused_lif.backends import BACKENDS

DT = 0.001  # length of a time step in seconds
START = {"tau_mem_inv": 100.0, "v_th": 1.0}  # Norse's defaults
RANGE = {"tau_mem_inv": (10.0, 500.0), "v_th": (0.1, 5.0)}  # tau_mem between 2 and 100 ms
ODD_RUNS = {"odd_fixed": [], "odd_learnable": ["tau_mem_inv"]}  # run -> what is learnable
SETTINGS = (
    "epochs",
    "batch_size",
    "lr",
    "neuron_lr",
    "seed",
    "time_steps",
    "form",
    "device",
    "backend",
    "quick",
)


def lif_layer(size: int, learnable: Iterable[str], alpha: float = 100.0) -> snn.LIF:
    """Makes a layer of LIF neurons; each constant in `learnable` has one trained value per neuron.

    Args:
        size: Number of neurons.
        learnable: Names of fields of `LIFParameters`.
        alpha: Sharpness of the surrogate gradient: larger means that only neurons very close to
            their threshold learn.
    """
    constants = {name: nn.Parameter(torch.full((size,), START[name])) for name in learnable}
    return snn.LIF(p=snn.LIFParameters(alpha=torch.tensor(alpha), **constants), dt=DT)


def neuron_constants(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Returns the learnable constants called `name`, one entry per layer."""
    return {path: p for path, p in model.named_parameters() if path.split(".")[-1] == name}


def make_optimizer(model: nn.Module, lr: float, neuron_lr: float) -> torch.optim.Adam:
    """Makes an Adam optimizer in which weights and neuron constants have their own learning rates.

    A step of Adam is about as long as the learning rate, whatever the gradient. A constant of size
    100 needs other steps than one of size 1, hence `neuron_lr` is relative to the initial value.
    After each step the constants are moved back into their range.
    """
    groups = []
    for name, start in START.items():
        constants = list(neuron_constants(model, name).values())
        if constants:
            groups.append({"params": constants, "lr": neuron_lr * start})
    in_groups = {id(p) for group in groups for p in group["params"]}
    weights = [p for p in model.parameters() if id(p) not in in_groups]
    optimizer = torch.optim.Adam([{"params": weights}, *groups], lr=lr)
    optimizer.register_step_post_hook(lambda *_: clamp_constants(model))
    return optimizer


@torch.no_grad()
def clamp_constants(model: nn.Module) -> None:
    """Moves neuron constants that the last step took too far back into their range."""
    for name, (low, high) in RANGE.items():
        for constant in neuron_constants(model, name).values():
            constant.clamp_(low, high)


def copy_constants(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Returns the present values of the learnable constants: one tensor per layer, on the CPU."""
    constants = {name: neuron_constants(model, name).values() for name in START}
    return {
        name: [p.detach().cpu().clone() for p in layers]
        for name, layers in constants.items()
        if layers
    }


def describe_move(name: str, before: list[torch.Tensor], after: list[torch.Tensor]) -> str:
    """Says in one line how far a constant moved."""
    old, new = torch.cat(before), torch.cat(after)
    unit = plots.UNIT[name]
    return (
        f"{name} moved by {(new - old).abs().mean():.3g}{unit} on average "
        f"({(new - old).abs().max():.3g}{unit} at most), "
        f"from {old.mean():.3g}{unit} to {new.mean():.3g} ± {new.std():.2g}{unit}"
    )


def odd_firing_data(time_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a constant input and the wanted spikes: every fifth neuron in every step.

    Both have the shape `[T, 1, 100]`.
    """
    target = torch.zeros(time_steps, 1, 100)
    target[..., 4::5] = 1.0
    return torch.ones(time_steps, 1, 100), target


def train_odd_firing(run: str, session: Session) -> tuple[list[float], nn.Module]:
    """Trains one network of part (a) and returns the loss of each step and the network."""
    args, learnable = session.args, ODD_RUNS[run]
    torch.manual_seed(args.seed)  # both networks begin with the same weights
    model = snn.SequentialState(
        nn.Linear(100, 200),
        lif_layer(200, learnable),
        nn.Linear(200, 100),
        lif_layer(100, learnable),
    ).to(args.device)
    optimizer = make_optimizer(model, args.lr, args.neuron_lr)
    # A learnable constant that the optimizer does not know would stay as it is, without a word.
    assert len(neuron_constants(model, "tau_mem_inv")) == 2 * len(learnable)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4 + 2 * len(learnable)

    inputs, target = (tensor.to(args.device) for tensor in odd_firing_data(args.time_steps))
    progress = session.checkpoint.restore(run, {"losses": []}, model=model, optimizer=optimizer)
    losses = progress["losses"]
    bar = tqdm(range(len(losses), args.odd_steps), run, args.odd_steps, initial=len(losses))
    for _ in bar:
        spikes, _ = model(inputs)
        loss = nn.functional.mse_loss(spikes, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
        session.stop.count_batch()
        if session.stop.requested:
            break
    bar.close()
    session.checkpoint.save(run, progress, model=model, optimizer=optimizer)
    if session.stop.requested:
        raise Interrupted
    return losses, model


def describe_losses(losses: list[float], limit: float = 0.02) -> str:
    """Says where the loss ended, and when it was below a limit for the first time."""
    step = next((step for step, loss in enumerate(losses) if loss < limit), None)
    return f"loss {losses[-1]:.4f}, " + (
        f"not yet below {limit}" if step is None else f"below {limit} after {step} steps"
    )


def odd_firing(session: Session) -> list[str]:
    """Runs part (a), plots it and returns the lines for the summary."""
    args = session.args
    losses: dict[str, list[float]] = {}
    for run in ODD_RUNS:
        losses[run], model = train_odd_firing(run, session)
    after = copy_constants(model)["tau_mem_inv"]
    before = [torch.full_like(values, START["tau_mem_inv"]) for values in after]
    with torch.no_grad():
        spikes, _ = model(odd_firing_data(args.time_steps)[0].to(args.device))
    plots.plot_odd_firing(
        losses,
        torch.cat(before),
        torch.cat(after),
        spikes[:, 0].cpu(),
        DT,
        args.out / "odd_firing.png",
    )
    return [
        f"Odd firing after {args.odd_steps} steps:",
        f"  fixed tau_mem_inv: {describe_losses(losses['odd_fixed'])}",
        f"  learnable tau_mem_inv: {describe_losses(losses['odd_learnable'])}",
        f"  {describe_move('tau_mem_inv', before, after)}",
    ]


def load_digits(args: argparse.Namespace) -> Digits:
    """Loads MNIST where `--data` has it, otherwise the digits of scikit-learn."""
    data = load_mnist(args.mnist_files) if args.mnist_files else load_builtin_digits()
    return data.first(train=256, test=128) if args.quick else data


def learn_digits(
    run: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Digits,
    batch_size: int,
    session: Session,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> list[str]:
    """Trains a network on digits, plots how it went and returns the lines for the summary.

    The arguments are those of `train_classifier`.
    """
    args = session.args
    before = copy_constants(model)
    history = train_classifier(run, model, optimizer, data, batch_size, session, schedule)
    after = copy_constants(model)
    plots.plot_learning_curves(history, data.name, args.out / f"{run}_learning.png")
    plots.plot_all_constants(before, after, args.out / f"{run}_constants.png")
    seconds = sum(entry["seconds"] for entry in history) / len(history)
    return [
        f"{run.capitalize()} ({data.name}) after {args.epochs} epochs: "
        f"test accuracy {history[-1]['test_accuracy']:.2%}, "
        f"train accuracy {history[-1]['train_accuracy']:.2%}, {seconds:.2f} s per epoch",
        *(f"  {describe_move(name, before[name], after[name])}" for name in before),
    ]


class DigitNetwork(nn.Module):
    """Pixels -> 256 LIF -> 128 LIF -> 10 leaky integrators; constants of LIF neurons are learnable.

    The pixels are currents that do not change over time.

    Args:
        pixels: Number of pixels of an image.
        time_steps: How long an image is shown, in steps of `DT`.

    Shape:
        - Input: images `[B, pixels]`.
        - Output: scores `[B, 10]`, the mean voltages of the readout over time.
    """

    def __init__(self, pixels: int, time_steps: int) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.linear1 = nn.Linear(pixels, 256)
        self.lif1 = lif_layer(256, ["tau_mem_inv", "v_th"], alpha=10.0)
        self.linear2 = nn.Linear(256, 128)
        self.lif2 = lif_layer(128, ["tau_mem_inv", "v_th"], alpha=10.0)
        self.linear3 = nn.Linear(128, 10)
        self.readout = snn.LI(dt=DT)
        with torch.no_grad():  # with PyTorch's own size of weights the second layer would not spike
            self.linear1.weight.mul_(2.0)
            self.linear2.weight.mul_(2.0)

    def activity(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns voltages `[T, B, 10]` of the readout, and spikes `[T, B, N]` of both layers."""
        current = self.linear1(images).expand(self.time_steps, -1, -1)
        spikes1, _ = self.lif1(current)
        spikes2, _ = self.lif2(self.linear2(spikes1))
        voltages, _ = self.readout(self.linear3(spikes2))
        return voltages, spikes1, spikes2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shows images to the network and returns the score of each digit."""
        voltages, _, _ = self.activity(images)
        return class_scores(voltages)


def class_scores(voltages: torch.Tensor) -> torch.Tensor:
    """Returns the mean voltage over time of each readout neuron."""
    return voltages.mean(dim=0)


def digits(session: Session) -> list[str]:
    """Runs part (b), plots it and returns the lines for the summary."""
    args, data = session.args, load_digits(session.args)
    batch_size = args.batch_size or (128 if args.mnist_files else 64)
    torch.manual_seed(args.seed)
    model = DigitNetwork(data.train_images.shape[1], args.time_steps).to(args.device)
    optimizer = make_optimizer(model, args.lr, args.neuron_lr)
    steps = args.epochs * data.batches_per_epoch(batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    lines = learn_digits("digits", model, optimizer, data, batch_size, session, schedule)

    with torch.no_grad():
        activity = model.activity(data.test_images[:1].to(args.device))
    voltages, *spikes = (tensor[:, 0].cpu() for tensor in activity)
    plots.plot_raster(
        data.test_images[0],
        int(data.test_labels[0]),
        int(class_scores(voltages).argmax()),
        spikes,
        voltages,
        DT,
        args.out / "digits_raster.png",
    )
    return lines


class RecurrentLoop(nn.Module):
    """100 LIF neurons with recurrent connections and a readout, step by step as in the notebook.

    Args:
        inputs: Number of inputs, I.
        library: `fused_lif` or `norse.torch`: names and random numbers are the same.

    Shape:
        - Input: spikes `[T, B, I]`.
        - Output: voltages of the readout `[T, B, 10]`, and the last states of both layers.
    """

    def __init__(self, inputs: int, library: ModuleType = snn) -> None:
        super().__init__()
        self.lif = library.LIFRecurrentCell(inputs, 100, p=notebook_parameters(100, library))
        self.linear = nn.Linear(100, 10, bias=False)
        self.readout = library.LICell()

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """Runs the network over a sequence."""
        lif_state = readout_state = None
        voltages = []
        for x in inputs:
            spikes, lif_state = self.lif(x, lif_state)
            voltage, readout_state = self.readout(self.linear(spikes), readout_state)
            voltages.append(voltage)
        return torch.stack(voltages), (lif_state, readout_state)


def recurrent_sequence(inputs: int) -> snn.SequentialState:
    """Makes the network of `RecurrentLoop` from layers that run the whole sequence: much faster."""
    return snn.SequentialState(
        snn.LIFRecurrent(inputs, 100, p=notebook_parameters(100)),
        nn.Linear(100, 10, bias=False),
        snn.LI(),
    )


def notebook_parameters(neurons: int, library: ModuleType = snn) -> snn.LIFParameters:
    """Draws a time constant and a threshold for each neuron at random, both learnable."""
    return library.LIFParameters(
        tau_mem_inv=nn.Parameter(100.0 + 20.0 * torch.randn(neurons)),
        v_th=nn.Parameter(0.5 + 0.1 * torch.randn(neurons)),
        alpha=torch.tensor(20.0),
    )


class RecurrentDigitNetwork(nn.Module):
    """Pixels -> spikes -> 100 recurrent LIF -> 10 leaky integrators, as in the notebook.

    Args:
        pixels: Number of pixels of an image.
        time_steps: How long an image is shown, in steps of `DT`.
        form: "loop" or "sequence"; both compute the same.
        library: For the form "loop", see `RecurrentLoop`.

    Shape:
        - Input: images `[B, pixels]`.
        - Output: scores `[B, 10]`, the largest voltages of the readout over time.
    """

    def __init__(self, pixels: int, time_steps: int, form: str, library: ModuleType = snn) -> None:
        super().__init__()
        self.encoder = library.ConstantCurrentLIFEncoder(time_steps)
        self.network = (
            RecurrentLoop(pixels, library) if form == "loop" else recurrent_sequence(pixels)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shows images to the network and returns the score of each digit."""
        voltages, _ = self.network(self.encoder(images))
        return voltages.amax(dim=0)


def recurrent_batch_size(args: argparse.Namespace) -> int:
    """Returns the batch size of part (c): that of the notebook for MNIST."""
    return args.batch_size or (256 if args.mnist_files else 64)


def recurrent(session: Session) -> list[str]:
    """Runs part (c), plots it and returns the lines for the summary."""
    args, data = session.args, load_digits(session.args).normalised()
    torch.manual_seed(args.seed)
    pixels = data.train_images.shape[1]
    model = RecurrentDigitNetwork(pixels, args.time_steps, args.form).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), args.lr)  # one for all, as in the notebook
    batch_size = recurrent_batch_size(args)
    steps = args.epochs * data.batches_per_epoch(batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return learn_digits("recurrent", model, optimizer, data, batch_size, session, schedule)


def import_norse() -> ModuleType | None:
    """Returns `norse.torch`, or says why it cannot and returns None."""
    try:
        import norse.torch
    except ImportError as error:
        print(f"No comparison with Norse, which cannot be imported (pip install norse): {error}")
        return None
    return norse.torch


def compare(session: Session) -> list[str]:
    """Measures an epoch of part (c) with Norse and in both forms; returns the summary."""
    args, data = session.args, load_digits(session.args).normalised()
    pixels = data.train_images.shape[1]

    def training(form: str, library: ModuleType = snn) -> Callable[[torch.Tensor], None]:
        torch.manual_seed(args.seed)  # all begin with the same weights
        model = RecurrentDigitNetwork(pixels, args.time_steps, form, library)
        if library is not snn:  # Norse does not make them parameters of the network
            p = model.network.lif.p
            model.constants = nn.ParameterList([p.tau_mem_inv, p.v_th])
        optimizer = torch.optim.Adam(model.to(args.device).parameters(), args.lr)

        def train_on(batch: torch.Tensor) -> None:
            if session.stop.requested:
                raise KeyboardInterrupt
            training_step(model, optimizer, *data.batch(batch, args.device))

        return train_on

    norse = import_norse()
    steps = {"Norse, loop": training("loop", norse)} if norse else {}
    steps |= {"fused_lif, loop": training("loop"), "fused_lif, sequence": training("sequence")}
    batch_size = recurrent_batch_size(args)
    batches = shuffled_batches(len(data.train_images), batch_size, args.seed)
    seconds = time_in_turns(steps, batches)

    lines = [
        f"One epoch of the recurrent network ({data.name}, {len(batches)} batches of {batch_size}, "
        f"{args.time_steps} steps) on {args.device} with {torch.get_num_threads()} threads:"
    ]
    for name, of_batches in seconds.items():
        line = (
            f"  {name:<19} {1000 * statistics.median(of_batches):8.2f} ms per batch (median), "
            f"{sum(of_batches):7.2f} s per epoch"
        )
        if norse and name != "Norse, loop":
            line += f", {sum(seconds['Norse, loop']) / sum(of_batches):5.2f} times as fast as Norse"
        lines.append(line)
    return lines


PARTS = {  # name -> what runs it, and a layer like those in it
    "odd": (odd_firing, lif_layer(1, START)),
    "digits": (digits, lif_layer(1, START)),
    "recurrent": (recurrent, snn.LIFRecurrent(1, 1)),
    "compare": (compare, snn.LIFRecurrent(1, 1)),
}


def positive_int(text: str) -> int:
    """Reads a number that must be at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="The Norse parameter-learning workshop.")
    parser.add_argument(
        "--part",
        choices=[*PARTS, "all"],
        default="all",
        help="default: all; `compare` runs only if it is asked for",
    )
    parser.add_argument("--data", type=Path, help="folder with the four IDX files of MNIST")
    parser.add_argument("--out", type=Path, default=Path("parameter_learning_out"))
    parser.add_argument(
        "--epochs", type=positive_int, help="of parts (b) and (c); default: 10 for MNIST, else 20"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        help="default: 64; for MNIST 128 in part (b) and 256 in part (c)",
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of the weights")
    parser.add_argument(
        "--neuron-lr",
        type=float,
        default=1e-2,
        help="learning rate of the neuron constants of parts (a) and (b), relative to their "
        "initial values",
    )
    parser.add_argument(
        "--time-steps", type=positive_int, default=32, help=f"of {1000 * DT:g} ms each"
    )
    parser.add_argument(
        "--form",
        choices=["sequence", "loop"],
        default="sequence",
        help="of part (c): layers that run the whole sequence, or a loop over time in Python",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", help="of fused_lif; default: the best that can run")
    parser.add_argument("--resume", action="store_true", help="continue the checkpoint in --out")
    parser.add_argument("--quick", action="store_true", help="a few steps only, for tests")
    parser.add_argument("--stop-after", type=positive_int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def find_backend(requested: str | None, layer: nn.Module, device: str) -> str:
    """Returns the backend that runs a layer with one input on `device`.

    Raises:
        ValueError: If there is no such backend or device, or the backend cannot run there.
    """
    reasons = []
    for name in [requested] if requested else BACKENDS:
        try:
            with snn.backend(name):
                layer.to(device)(torch.zeros(1, 1, 1, device=device))
        except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
            reasons.append(str(error))
        else:
            return name
    raise ValueError("; ".join(reasons))


def run_workshop(args: argparse.Namespace) -> None:
    """Runs the parts that were asked for, and prints and writes the summary.

    Raises:
        Interrupted: If Ctrl-C stopped it.
    """
    args.mnist_files = find_mnist(args.data) if args.data else None
    if args.data and not args.mnist_files:
        names = ", ".join(MNIST_FILES.values())
        print(f"{args.data} does not hold MNIST ({names}, plain or .gz)")
    print(f"The digits are {'MNIST' if args.mnist_files else 'those of scikit-learn'}")
    args.epochs = args.epochs or (2 if args.quick else 10 if args.mnist_files else 20)
    args.odd_steps = 20 if args.quick else 300

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["digits"] = "MNIST" if args.mnist_files else "scikit-learn"
    checkpoint = Checkpoint(args.out / "checkpoint.pt", settings)
    if args.resume:
        checkpoint.load()
    summary = []
    with StopRequest(args.stop_after) as stop:
        for name in ["odd", "digits", "recurrent"] if args.part == "all" else [args.part]:
            part, layer = PARTS[name]
            backend = find_backend(args.backend, layer, args.device)
            print(f"Part {name!r} runs on {args.device} with fused_lif's backend {backend!r}")
            with snn.backend(backend):
                summary += part(Session(args, checkpoint, stop))
    text = "\n".join(summary)
    (args.out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\nFigures, checkpoint and this summary are in {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Runs the example and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    resume = shlex.join(["python", sys.argv[0], *(a for a in argv if a != "--resume"), "--resume"])
    try:
        run_workshop(args)
    except Interrupted:
        print(
            f"\nStopped; the checkpoint is {args.out / 'checkpoint.pt'}. Continue with\n  {resume}"
        )
        return 130
    except KeyboardInterrupt:
        print(
            f"\nStopped at once. If a checkpoint was written before, continue it with\n  {resume}"
        )
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
