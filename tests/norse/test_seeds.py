"""The Norse workshop that this project grew from runs with only the library's name changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fused_lif  # noqa: F401

WORKSHOP = Path(__file__).parents[3] / "shared/seeds/000_b0cceac950b31879.txt"


@pytest.mark.skipif(
    not WORKSHOP.exists(), reason="the workshop's text is not beside the repository"
)
def test_workshop_on_parameter_learning():
    matplotlib = pytest.importorskip("matplotlib", reason="the workshop plots")
    pytest.importorskip("tqdm", reason="the workshop shows progress")
    matplotlib.use("Agg")
    # Step 2 explains torch; steps 0, 3 and 4 are the program.
    start, steps = re.split(r"^## Step [13].*$", WORKSHOP.read_text(), flags=re.MULTILINE)[::2]
    blocks = re.findall(r"```python\n(.*?)```", start + steps, re.DOTALL)
    code = "\n".join(blocks)
    code = re.sub(r"^!.*$", "", code, flags=re.MULTILINE)  # installations
    code = code.replace("tqdm.notebook", "tqdm").replace("norse.torch", "fused_lif")
    assert "import fused_lif as norse" in code
    namespace: dict = {}
    threads_deterministic = torch.are_deterministic_algorithms_enabled()
    exec(compile(code, str(WORKSHOP), "exec"), namespace)
    torch.use_deterministic_algorithms(threads_deterministic)
    for losses in (namespace["m1_losses"], namespace["m2_losses"]):
        assert losses[-1] < losses[0]
    names = [n for n, _ in namespace["model"].named_parameters()]
    assert sum(n.endswith("tau_mem_inv") for n in names) == 2
    for layer in (1, 3):
        assert (namespace["model"].model[layer].p.tau_mem_inv != 100.0).any()
