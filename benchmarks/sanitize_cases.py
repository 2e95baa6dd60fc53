"""Small layers, forward and backward, for compute-sanitizer: `gpu.py` runs them under it.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python benchmarks/sanitize_cases.py
    ... python benchmarks/sanitize_cases.py --backend triton

Without caching every tensor is an allocation of its own, so that no access out of bounds hits a
neighbour. Outputs must be those of the CPU; the spikes of a layer are the same on both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from compare import describe
from problems import BOTH, FORWARD, Problem, Setting, TorchCandidate, functional_layer

WIDTHS = ((1, 1), (3, 5), (2, 33), (1, 130), (4, 300))  # (B, N)
WIDE = (16, 16384)  # enough columns for the kernels with wide accesses


def settings() -> Iterator[Setting]:
    """Yields what is computed: every kernel, with and without gradients of constants."""
    for model in ("lif", "li", "encoder"):
        for dtype in ("float32", "bfloat16"):
            for k, (B, N) in enumerate(WIDTHS):
                for T in (1, 70):
                    per_neuron = model != "encoder" and (k + T) % 2 == 0
                    constants = "per neuron" if per_neuron else "scalar"
                    yield Setting(T, B, N, model, dtype, constants)
    for dtype in ("float32", "bfloat16"):
        for model in ("lif", "li"):
            yield Setting(5, *WIDE, model, dtype)
        for N in (40, 130, 300):
            for T in (5, 9):  # by matrix products, and in clusters of blocks
                yield Setting(T, 3, N, "recurrent", dtype, input_size=7)
                yield Setting(T, 3, N, "recurrent", dtype, "scalar", input_size=33)


def triton_settings() -> Iterator[Setting]:
    """Yields few: each takes Triton seconds to compile. Every kernel, masked and not."""
    yield Setting(70, 2, 33)
    yield Setting(64, 4, 300, dtype="bfloat16", constants="scalar")
    yield Setting(64, 3, 5, "li")
    yield Setting(70, 3, 5, "encoder", constants="scalar")
    for N in (40, 130):  # one kernel, with weights in registers and without
        yield Setting(20, 3, N, "recurrent", input_size=7)
    yield Setting(5, 3, 1100, "recurrent", input_size=7)  # by matrix products


def differences(setting: Setting, backend: str | None = None) -> list[str]:
    """Runs a setting, and on the CPU too; returns what is not the same."""
    layer = TorchCandidate("any", functional_layer(backend))
    mode = FORWARD if setting.model == "encoder" else BOTH
    actual = layer.results(Problem(setting), mode)
    layer = TorchCandidate("expected", functional_layer(None))  # the backend of the CPU
    expected = layer.results(Problem(replace(setting, device="cpu")), mode)
    found = [f"no {name}" for name in sorted(expected.keys() - actual.keys())]
    for name, value in actual.items():
        a, b = value.double().cpu(), expected[name].double()
        if name.startswith("grad"):
            limit = 2e-2 if value.dtype == torch.bfloat16 else 1e-4
            if not (a - b).abs().max() <= limit * max(b.abs().max().item(), 1e-3):
                found.append(f"{name} differs by {(a - b).abs().max():.1e}")
        elif not torch.equal(a, b):
            found.append(f"{name} differs in {(a != b).sum()} of {a.numel()} values")
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", help='"triton"; default: the one of the device')
    options = parser.parse_args(argv)
    device, count, failed = options.device, 0, 0
    for setting in triton_settings() if options.backend == "triton" else settings():
        setting, count = replace(setting, device=device), count + 1
        try:
            found = differences(setting, options.backend)
        except Exception as error:  # a kernel that does not compile, say; the others may
            found = [describe(error)]
        if found:
            failed += 1
            values = {k: v for k, v in asdict(setting).items() if v is not None}
            print(f"{values}: {'; '.join(found)}", flush=True)
    print(f"{count - failed} of {count} layers compute on {device} what they do on the CPU")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
