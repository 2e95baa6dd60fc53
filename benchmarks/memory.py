"""Memory: what autograd keeps, what a call takes at its peak, and what there is.

python benchmarks/memory.py THREADS QUESTION   # the peak of a call, in a process of its own
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from cases import quick
from networks import make_problem
from peers import ALL_CANDIDATES
from problems import FORWARD, Candidate, Problem, Setting
from torch import Tensor

# glibc maps fresh memory for every tensor above 32 MiB; faulting it in costs more than the kernels,
# ours and others'. These settings let it keep freed memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def least_memory(setting: Setting) -> int:
    """Returns the bytes of what lives at once: x, z, gradients and buffers, also of a peak."""
    return 12 * setting.T * setting.B * setting.N * int(getattr(torch, setting.dtype).itemsize)


def available_memory() -> float:
    """Returns the bytes that the machine has to give, infinity where it does not say."""
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return 1024 * int(found[1]) if found else math.inf


def saved_bytes(candidate: Candidate, problem: Problem) -> int:
    """Returns the bytes kept for backward, each storage once, without constants and weights."""
    parameters = (problem.constants | problem.weights).values()
    not_counted = {p.untyped_storage().data_ptr() for p in parameters}
    alive, saved = [], {}

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # a freed address could come back
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = candidate.call(problem, FORWARD).run(None)
    del result
    return sum(saved.values())


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(kilobytes) * 1024


def peak_here(candidate: Candidate, setting: Setting, mode: str) -> int:
    """Returns how far resident memory rises above that with the inputs in place."""
    warm_up = candidate.call(make_problem(quick(setting)), mode)
    warm_up.run(warm_up.before())
    call = candidate.call(make_problem(setting), mode)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM afresh
    before = _resident_bytes("VmRSS")
    result = call.run(call.before())
    peak = _resident_bytes("VmHWM") - before
    del result
    return peak


def peak_memory(candidate: Candidate, setting: Setting, mode: str, threads: int) -> int | str:
    """Returns `peak_here` of a fresh process, or an empty string where it cannot be measured."""
    question = json.dumps([candidate.name, asdict(setting), mode])
    threads = setting.threads or threads
    command = [sys.executable, __file__, str(threads), question]
    environment = {k: v for k, v in os.environ.items() if k not in MALLOC}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode:
        print(
            f"no peak memory of {candidate.name}: {answer.stderr.strip()[-300:]}", file=sys.stderr
        )
        return ""
    return int(answer.stdout.split()[-1])


def main() -> None:
    """Prints what `peak_memory` asks for."""
    threads, question = sys.argv[1:]
    torch.set_num_threads(int(threads))
    name, setting, mode = json.loads(question)
    print(peak_here(ALL_CANDIDATES[name], Setting(**setting), mode))


if __name__ == "__main__":
    main()
