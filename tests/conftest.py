from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_and_deterministic():
    """Seeds every test, and fills new tensors of torch with NaN; sanitizer builds fill ours."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
