"""Modules; the sub-modules have the names of ``norse.torch.module``."""

from fused_lif.module.encode import (
    ConstantCurrentLIFEncoder,
    PoissonEncoder,
    PoissonEncoderStep,
    PopulationEncoder,
    SignedPoissonEncoder,
    SignedPoissonEncoderStep,
    SpikeLatencyEncoder,
    SpikeLatencyLIFEncoder,
)
from fused_lif.module.leaky_integrator import LI, LICell, LILinearCell
from fused_lif.module.lif import LIF, LIFCell, LIFRecurrent, LIFRecurrentCell
from fused_lif.module.lift import Lift
from fused_lif.module.sequential import (
    RecurrentSequential,
    RecurrentSequentialState,
    SequentialState,
)

__all__ = [
    "LI",
    "LIF",
    "ConstantCurrentLIFEncoder",
    "LICell",
    "LIFCell",
    "LIFRecurrent",
    "LIFRecurrentCell",
    "LILinearCell",
    "Lift",
    "PoissonEncoder",
    "PoissonEncoderStep",
    "PopulationEncoder",
    "RecurrentSequential",
    "RecurrentSequentialState",
    "SequentialState",
    "SignedPoissonEncoder",
    "SignedPoissonEncoderStep",
    "SpikeLatencyEncoder",
    "SpikeLatencyLIFEncoder",
]
