"""PEP 517 backend: setuptools, with torch as a build requirement only where none is installed."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).parent))
from torch_locate import MINIMUM_TORCH, find_torch


def _torch_requirement() -> list[str]:
    return [] if find_torch() else ["torch>=" + ".".join(map(str, MINIMUM_TORCH))]


def get_requires_for_build_wheel(config_settings=None):  # noqa: D103
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):  # noqa: D103
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_requirement()
