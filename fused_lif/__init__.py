"""Fused leaky integrate-and-fire layers for PyTorch, drop-in for ``norse.torch``."""

from fused_lif import functional, init, module, optim, parametrizations, testing
from fused_lif._version import __version__
from fused_lif.backends import backend
from fused_lif.debug import check_finite
from fused_lif.functional.adjoint.lif_adjoint import lif_feed_forward_adjoint_step
from fused_lif.functional.encode import (
    constant_current_lif_encode,
    euclidean_distance,
    gaussian_rbf,
    poisson_encode,
    poisson_encode_step,
    population_encode,
    signed_poisson_encode,
    signed_poisson_encode_step,
    spike_latency_encode,
    spike_latency_lif_encode,
)
from fused_lif.functional.leaky_integrator import (
    li_feed_forward_integral,
    li_feed_forward_step,
    li_step,
)
from fused_lif.functional.lif import (
    lif_current_encoder,
    lif_feed_forward_integral,
    lif_feed_forward_step,
    lif_step,
    lif_step_integral,
)
from fused_lif.functional.lift import lift
from fused_lif.functional.spike_times import spike_times
from fused_lif.module import (
    LI,
    LIF,
    ConstantCurrentLIFEncoder,
    LICell,
    LIFCell,
    LIFRecurrent,
    LIFRecurrentCell,
    Lift,
    LILinearCell,
    PoissonEncoder,
    PopulationEncoder,
    RecurrentSequential,
    RecurrentSequentialState,
    SequentialState,
    SignedPoissonEncoder,
    SpikeLatencyEncoder,
    SpikeLatencyLIFEncoder,
)
from fused_lif.parametrizations import parametrize
from fused_lif.types import LIFFeedForwardState, LIFParameters, LIFState, LIParameters, LIState

__all__ = [
    "LI",
    "LIF",
    "ConstantCurrentLIFEncoder",
    "LICell",
    "LIFCell",
    "LIFFeedForwardState",
    "LIFParameters",
    "LIFRecurrent",
    "LIFRecurrentCell",
    "LIFState",
    "LILinearCell",
    "LIParameters",
    "LIState",
    "Lift",
    "PoissonEncoder",
    "PopulationEncoder",
    "RecurrentSequential",
    "RecurrentSequentialState",
    "SequentialState",
    "SignedPoissonEncoder",
    "SpikeLatencyEncoder",
    "SpikeLatencyLIFEncoder",
    "__version__",
    "backend",
    "check_finite",
    "constant_current_lif_encode",
    "euclidean_distance",
    "functional",
    "gaussian_rbf",
    "init",
    "li_feed_forward_integral",
    "li_feed_forward_step",
    "li_step",
    "lif_current_encoder",
    "lif_feed_forward_adjoint_step",
    "lif_feed_forward_integral",
    "lif_feed_forward_step",
    "lif_step",
    "lif_step_integral",
    "lift",
    "module",
    "optim",
    "parametrizations",
    "parametrize",
    "poisson_encode",
    "poisson_encode_step",
    "population_encode",
    "signed_poisson_encode",
    "signed_poisson_encode_step",
    "spike_latency_encode",
    "spike_latency_lif_encode",
    "spike_times",
    "testing",
]
