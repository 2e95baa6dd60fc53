"""The Norse workshops that this project grew from run with only the library's name changed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fused_lif

SEEDS = Path(__file__).parents[3] / "shared/seeds"
WORKSHOP = SEEDS / "000_b0cceac950b31879.txt"
NOTEBOOK = SEEDS / "003_f0394292760f8835.txt"


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


class Digits(torch.utils.data.Dataset):
    """Stands for torchvision's MNIST: a pattern per digit, with noise."""

    def __init__(self, root, train, transform, download=False):
        self.size = 512 if train else 256
        generator = torch.Generator().manual_seed(2)
        self.patterns = torch.rand(10, 1, 28, 28, generator=generator) < 0.15
        self.noise = torch.rand(self.size, 1, 28, 28, generator=generator) < 0.03

    def __len__(self):
        return self.size

    def __getitem__(self, k):
        image = (self.patterns[k % 10] ^ self.noise[k]).float()
        return (image - 0.1307) / 0.3081, k % 10


@pytest.mark.skipif(not NOTEBOOK.exists(), reason="the notebook is not beside the repository")
def test_notebook_on_parameter_learning(monkeypatch):
    """A recurrent cell whose time constants and thresholds are learned."""
    matplotlib = pytest.importorskip("matplotlib", reason="the notebook plots")
    pytest.importorskip("tqdm", reason="the notebook shows progress")
    matplotlib.use("Agg")
    transforms = SimpleNamespace(Compose=list, ToTensor=lambda: None, Normalize=lambda *_: None)
    torchvision = SimpleNamespace(datasets=SimpleNamespace(MNIST=Digits), transforms=transforms)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = [re.sub(r"\bnorse(\.torch)?\b", "fused_lif", cell) for cell in code]
    code = [cell.replace("tqdm.notebook", "tqdm").replace("epochs=10", "epochs=1") for cell in code]
    training = next(k for k, cell in enumerate(code) if "epochs=1" in cell)

    namespace: dict = {}
    for cell in code[:training]:
        exec(cell, namespace)
    model, test = namespace["model"], namespace["test"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_before, _ = test(model, namespace["DEVICE"], namespace["test_loader"], 0)
    try:
        for cell in code[training:]:
            exec(cell, namespace)
    finally:
        torch.autograd.set_detect_anomaly(False)
        namespace["plt"].close("all")
    loss_after, _ = test(model, namespace["DEVICE"], namespace["test_loader"], 1)

    assert namespace["model_after"] is model
    assert loss_after < 0.95 * loss_before
    assert isinstance(model.snn.cell.cell, fused_lif.LIFRecurrentCell)
    assert sorted(before) == [
        "snn.cell.cell.input_weights",
        "snn.cell.cell.recurrent_weights",
        "snn.cell.tau_mem_inv",
        "snn.cell.v_th",
        "snn.fc_out.weight",
    ]
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()}) == 5
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert not model.snn.cell.cell.recurrent_weights.diagonal().any()
    assert model.snn.cell.cell.p.tau_mem_inv is model.snn.cell.tau_mem_inv
