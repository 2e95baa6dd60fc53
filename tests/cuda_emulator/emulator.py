"""The CUDA operators as operators for CPU tensors, ``torch.ops.fused_lif_emulated``."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cuda_emulator import build
from cuda_emulator.control import Control
from fused_lif.backends import _autograd, native
from fused_lif.backends._autograd import Operators

OPERATORS = Operators._fields


def unavailable() -> str | None:
    """Says why the operators cannot be emulated; ``None`` if they can."""
    if native.IMPORT_ERROR is not None:
        return (
            f"the C++ extension, which has the schemas, could not be loaded: {native.IMPORT_ERROR}"
        )
    return build.unavailable()


@functools.cache
def load() -> Emulator:
    """Builds and registers the operators. CUDA_EMULATOR_SANITIZE=1 takes the sanitized build."""
    path = build.build(sanitize=os.environ.get("CUDA_EMULATOR_SANITIZE") == "1")
    definitions = torch.library.Library(build.LIBRARY, "DEF")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.fused_lif, name).default._schema)
        definitions.define(schema.removeprefix("fused_lif::"))
    torch.ops.load_library(str(path))
    for name in OPERATORS:
        torch.library.register_fake(f"{build.LIBRARY}::{name}", getattr(_autograd, f"{name}_fake"))
    return Emulator(path, definitions)


class Emulator(Control):
    """The emulated operators."""

    def __init__(self, path: build.Path, definitions: torch.library.Library) -> None:
        super().__init__(path)
        self._definitions = definitions  # they are gone with it

    @contextmanager
    def as_backend(self) -> Iterator[None]:
        """Lets the backend ``cpu`` call the emulated operators."""
        emulated = getattr(torch.ops, build.LIBRARY)
        before = native.OPERATORS
        native.OPERATORS = Operators(*(getattr(emulated, name).default for name in OPERATORS))
        try:
            yield
        finally:
            native.OPERATORS = before
