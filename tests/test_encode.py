"""Encoders: equality with Norse, values calculated by hand, and what Norse refuses."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch

from fused_lif.functional import encode
from fused_lif.module import encode as modules
from fused_lif.types import LIFParameters

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    norse = pytest.importorskip("norse.torch")
    from norse.torch.functional import encode as norse_encode
    from norse.torch.module import encode as norse_modules

FLOATS = [torch.float32, torch.float64]

# Name of the function, of the module, and arguments of both.
POISSON = [
    ("poisson_encode", "PoissonEncoder", (20,)),
    ("poisson_encode", "PoissonEncoder", (20, 300, 0.002)),
    ("poisson_encode_step", "PoissonEncoderStep", ()),
    ("poisson_encode_step", "PoissonEncoderStep", (300, 0.002)),
    ("signed_poisson_encode", "SignedPoissonEncoder", (20,)),
    ("signed_poisson_encode", "SignedPoissonEncoder", (20, 300, 0.002)),
    ("signed_poisson_encode_step", "SignedPoissonEncoderStep", ()),
    ("signed_poisson_encode_step", "SignedPoissonEncoderStep", (300, 0.002)),
]
LIF = [
    ("constant_current_lif_encode", "ConstantCurrentLIFEncoder"),
    ("spike_latency_lif_encode", "SpikeLatencyLIFEncoder"),
]
# Values that float32 holds exactly and a sharpness that Norse 1.1.0 does not ignore ("super" does).
CONSTANTS = {
    "default": {"alpha": torch.tensor(1.0)},
    "other": {
        "tau_mem_inv": torch.tensor(250.0),
        "v_leak": torch.tensor(0.25),
        "v_th": torch.tensor(4.0),
        "method": "tanh",
        "alpha": torch.tensor(2.0),
    },
    "per neuron": {
        "tau_mem_inv": torch.tensor([50.0, 100.0, 200.0]),
        "v_th": torch.tensor([0.5, 1.0, 1.5]),
        "v_reset": torch.tensor([0.0, -0.5, 0.25]),
        "alpha": torch.tensor(1.0),
    },
}


def random_values(*shape, dtype=torch.float32, signed=False, seed=0):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * values - 1 if signed else values).to(dtype)


def seeded(function, *args, **kwargs):
    torch.manual_seed(7)
    return function(*args, **kwargs)


def assert_identical(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", encode.__all__)
def test_function_signature_is_norses(name):
    ours = inspect.signature(getattr(encode, name)).parameters
    theirs = inspect.signature(getattr(norse_encode, name)).parameters
    positional = [parameter for parameter in ours if parameter != "backend"]
    assert positional == list(theirs)
    for parameter in theirs.keys() - {"p", "kernel", "distance_function"}:
        assert ours[parameter].default == theirs[parameter].default


@pytest.mark.parametrize("name", modules.__all__)
def test_module_signature_is_norses(name):
    ours = inspect.signature(getattr(modules, name)).parameters
    theirs = inspect.signature(getattr(norse_modules, name)).parameters
    assert [parameter for parameter in ours if parameter != "backend"] == list(theirs)
    for parameter in theirs.keys() - {"p", "kernel", "distance_function"}:
        assert ours[parameter].default == theirs[parameter].default


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(2, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(("function", "module", "args"), POISSON)
def test_poisson_equals_norse(function, module, args, shape, dtype):
    x = random_values(*shape, dtype=torch.float64, signed="signed" in function).to(dtype)
    expected = seeded(getattr(norse, function), x, *args)
    assert_identical(seeded(getattr(encode, function), x, *args), expected)
    assert_identical(seeded(getattr(modules, module)(*args), x), expected)


@pytest.mark.parametrize(("function", "args"), [(row[0], row[2]) for row in POISSON])
def test_poisson_draws_from_the_generator(function, args):
    x = random_values(50, signed="signed" in function)
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    state = torch.random.get_rng_state()
    for _ in range(2):  # the second call goes on where the first one stopped
        actual = getattr(encode, function)(x, *args, generator=ours)
        assert_identical(actual, getattr(norse, function)(x, *args, generator=theirs))
        assert actual.any()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("function", "args"), [(row[0], row[2]) for row in POISSON])
def test_poisson_of_a_single_number(function, args):
    one, row = (
        seeded(getattr(encode, function), x, *args) for x in (torch.ones(()), torch.ones(1))
    )
    assert_identical(one, row.squeeze(-1))


def test_poisson_rate():
    x = torch.tensor([0.0, 0.1, -0.5]).expand(1000, 3)
    spikes = seeded(encode.signed_poisson_encode, x, 20, f_max=500, dt=0.002)
    torch.testing.assert_close(
        spikes.mean((0, 1)), torch.tensor([0.0, 0.1, -0.5]), rtol=0, atol=0.01
    )


@pytest.mark.parametrize("function", ["signed_poisson_encode", "signed_poisson_encode_step"])
def test_signed_poisson_gradient_is_zero_as_in_norse(function):
    args = () if function.endswith("step") else (20,)
    gradients = []
    for encoder in (getattr(encode, function), getattr(norse, function)):
        x = random_values(5, 3, signed=True).requires_grad_()
        seeded(encoder, x, *args).sum().backward()
        gradients.append(x.grad)
    assert_identical(*gradients)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("constants", CONSTANTS)
def test_constant_current_equals_norse(constants, dtype):
    x = (20 * random_values(5, 3, dtype=torch.float64)).to(dtype)
    theirs = norse.LIFParameters(**CONSTANTS[constants])
    ours = LIFParameters(**CONSTANTS[constants])
    expected = norse.constant_current_lif_encode(x, 30, theirs)
    assert 0.01 < expected.mean() < 0.8
    assert_identical(encode.constant_current_lif_encode(x, 30, ours), expected)
    assert_identical(modules.ConstantCurrentLIFEncoder(30, ours)(x), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("constants", CONSTANTS)
def test_spike_latency_lif_equals_norse(constants, dtype):
    x = 20 * random_values(5, 3, dtype=dtype)
    theirs = norse.LIFParameters(**CONSTANTS[constants])
    ours = LIFParameters(**CONSTANTS[constants])
    expected = norse.spike_latency_lif_encode(x, 30, theirs)
    assert expected.any()
    assert_identical(encode.spike_latency_lif_encode(x, 30, ours), expected)
    assert_identical(modules.SpikeLatencyLIFEncoder(30, ours)(x), expected)


@pytest.mark.parametrize(("function", "module"), LIF)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4)], ids=str)
def test_lif_encoders_take_any_shape(shape, function, module):
    x = 20 * random_values(*shape)
    # Norse refuses a single number.
    expected = getattr(norse, function)(x.unsqueeze(0), 10, dt=0.002).squeeze(1)
    expected = expected.reshape(10, *shape)
    assert_identical(getattr(encode, function)(x, 10, dt=0.002), expected)
    assert_identical(getattr(modules, module)(10, dt=0.002)(x), expected)


@pytest.mark.parametrize(("function", "module"), LIF)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("constants", CONSTANTS)
def test_lif_encoder_gradients_equal_norse(constants, dtype, function, module):
    weights = random_values(12, 5, 3, signed=True, seed=1)

    def gradients(encoder, parameters):
        x = (20 * random_values(5, 3, dtype=dtype)).requires_grad_()
        names = ("tau_mem_inv", "v_leak", "v_th", "v_reset")
        values = parameters(**CONSTANTS[constants])._asdict()
        leaves = [torch.as_tensor(values[name]).to(dtype, copy=True) for name in names]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        p = parameters(**{**values, **dict(zip(names, leaves, strict=True))})
        (weights * encoder(x, 12, p)).sum().backward()
        return [x.grad, *(leaf.grad for leaf in leaves)]

    actual = gradients(getattr(encode, function), LIFParameters)
    expected = gradients(getattr(norse, function), norse.LIFParameters)
    # Norse computes part of the first step in float32, which the gradients of the constants show.
    limits = [2e-6] * 5 if dtype == torch.float32 else [1e-14] + [1e-7] * 4
    assert expected[0].any()
    for ours, theirs, limit in zip(actual, expected, limits, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= limit * max(1, theirs.abs().max())


def test_constant_current_by_hand():
    # v = 0.2, 0.38 | 0.4, 0.76 | 0.8, 1.52 -> 0 | 1.6 -> 0, 1.6 -> 0 with dt / tau_mem = 0.1
    spikes = encode.constant_current_lif_encode(torch.tensor([2, 4, 8, 16]), 2)
    assert_identical(spikes, torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]))


def test_spike_latency_lif_takes_integers():
    spikes = encode.spike_latency_lif_encode(torch.tensor([1, 6, 11]), 3)
    assert_identical(spikes, torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_spike_latency_lif_computes_halves_in_float32(dtype):
    x = (20 * random_values(5, 3)).to(dtype)
    expected = encode.spike_latency_lif_encode(x.float(), 30).to(dtype)
    assert_identical(encode.spike_latency_lif_encode(x, 30), expected)


def test_learnable_constant_of_encoder_module():
    threshold = torch.nn.Parameter(torch.tensor(1.0))
    encoder = modules.ConstantCurrentLIFEncoder(10, LIFParameters(v_th=threshold, method="tanh"))
    assert any(parameter is threshold for parameter in encoder.parameters())
    encoder(10 * random_values(20)).sum().backward()
    assert threshold.grad < 0


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(1,), (20,), (20, 0), (20, 3, 4)], ids=str)
def test_spike_latency_equals_norse(shape, dtype):
    spikes = (random_values(*shape) < 0.2).to(dtype)
    expected = norse.spike_latency_encode(spikes)
    assert_identical(encode.spike_latency_encode(spikes), expected)
    assert_identical(modules.SpikeLatencyEncoder()(spikes), expected)


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
def test_spike_latency_of_signed_spikes_equals_norse(sparsity):
    x = random_values(20, 50, signed=True)
    spikes = torch.where(x.abs() > sparsity, x.sign(), 0)
    assert_identical(encode.spike_latency_encode(spikes), norse.spike_latency_encode(spikes))


def test_spike_latency_gradient_equals_norse():
    spikes = (random_values(20, 50) < 0.1).float()
    weights = random_values(20, 50, signed=True, seed=1)
    gradients = []
    for encoder in (encode.spike_latency_encode, norse.spike_latency_encode):
        x = spikes.clone().requires_grad_()
        (weights * encoder(x)).sum().backward()
        gradients.append(x.grad)
    assert_identical(*gradients)


def test_spike_latency_by_hand():
    spikes = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]])
    expected = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert_identical(encode.spike_latency_encode(spikes), expected)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("scale", [None, 0, 2, 0.7, torch.tensor(0.0), torch.tensor(1.3)], ids=str)
@pytest.mark.parametrize("out_features", [1, 8, 33])
def test_population_equals_norse(out_features, scale, dtype):
    x = (3 * random_values(5, 3, dtype=torch.float64)).to(dtype)
    expected = norse.population_encode(x, out_features, scale)
    # One unit in the last place of a centre, if the processor rounds torch.linspace otherwise.
    tolerance = {"rtol": 0, "atol": 1e-6}
    actual = encode.population_encode(x, out_features, scale)
    torch.testing.assert_close(actual, expected, **tolerance)
    actual = modules.PopulationEncoder(out_features, scale)(x)
    torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("scale", [None, 2, torch.tensor(1.3)], ids=str)
def test_population_gradient_equals_norse(scale):
    weights = random_values(5, 3, 8, signed=True, seed=1)
    gradients = []
    for encoder in (encode.population_encode, norse.population_encode):
        leaves = [random_values(5, 3).requires_grad_()]
        own_scale = scale
        if isinstance(scale, torch.Tensor):
            own_scale = scale.clone().requires_grad_()
            leaves.append(own_scale)
        (weights * encoder(leaves[0], 8, own_scale)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_population_takes_functions():
    def kernel(distance):
        return 1 / (1 + distance)

    def distance(x, y):
        return (x - y).abs()

    x = random_values(5, 3)
    expected = norse.population_encode(x, 8, 2, kernel, distance)
    actual = modules.PopulationEncoder(8, 2, kernel, distance)(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_population_scale_per_sample():
    x = random_values(4, 3)
    scale = torch.tensor([[0.5], [0.0], [2.0], [3.0]], dtype=torch.float64)
    actual = encode.population_encode(x, 8, scale)
    assert actual.dtype == torch.float32
    for row, own_scale, values in zip(actual, scale, x, strict=True):
        expected = norse.population_encode(values, 8, own_scale[0].float() or x.max())
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)


def test_population_of_no_values():
    assert encode.population_encode(torch.empty(0, 3), 8).shape == (0, 3, 8)


def test_population_scale_belongs_to_the_module():
    constant = modules.PopulationEncoder(3, torch.tensor([1.0, 2.0]))
    assert constant.to(torch.float64).scale.dtype == torch.float64
    assert not constant.state_dict()
    learnable = modules.PopulationEncoder(3, torch.nn.Parameter(torch.tensor(2.0)))
    learnable(random_values(5)).sum().backward()
    assert learnable.scale.grad is not None


@pytest.mark.parametrize("sigma", [1, 0.3])
def test_gaussian_rbf_and_distance_equal_norse(sigma):
    x, y = random_values(5, 3), random_values(3, seed=1)
    distance = encode.euclidean_distance(x, y)
    assert_identical(distance, norse_encode.euclidean_distance(x, y))
    expected = norse_encode.gaussian_rbf(distance, sigma)
    assert_identical(encode.gaussian_rbf(distance, sigma), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: encode.poisson_encode(x, 0),
            "seq_length must be a positive int, got 0",
        ),
        (
            lambda x: encode.signed_poisson_encode(x, 2.5),
            "seq_length must be a positive int, got 2.5",
        ),
        (
            lambda x: encode.constant_current_lif_encode(x, -1),
            "seq_length must be a positive int, got -1",
        ),
        (
            lambda x: encode.spike_latency_lif_encode(x, 0),
            "seq_length must be a positive int, got 0",
        ),
        (
            lambda x: encode.constant_current_lif_encode(x, 2, dt=float("nan")),
            "dt must be a positive and finite number, in seconds, got nan",
        ),
        (
            lambda x: encode.spike_latency_lif_encode(x, 2, dt=0),
            "dt must be a positive and finite number, in seconds, got 0",
        ),
        (
            lambda x: encode.poisson_encode(x, 2, f_max=-1),
            "f_max must be a positive and finite number, in Hz, got -1",
        ),
        (
            lambda x: encode.poisson_encode_step(x, f_max=float("inf")),
            "f_max must be a positive and finite number, in Hz, got inf",
        ),
        (
            lambda x: encode.signed_poisson_encode_step(x, dt=-0.5),
            "dt must be a positive and finite number, in seconds, got -0.5",
        ),
        (
            lambda x: encode.population_encode(x, 0),
            "out_features must be a positive int, got 0",
        ),
        (
            lambda x: encode.population_encode(x, 2, torch.ones(2)),
            r"scale must broadcast to the shape of input_values \(3,\), got \(2,\)",
        ),
        (
            lambda x: encode.spike_latency_encode(x[:0]),
            r"input_spikes must have at least one time step, got shape \(0,\)",
        ),
        (
            lambda x: encode.spike_latency_encode(x[0]),
            r"input_spikes must have at least one time step, got shape \(\)",
        ),
    ],
)
def test_error_messages(call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(torch.ones(3))


@pytest.mark.parametrize(("function", "module"), LIF)
def test_unknown_backend_raises(function, module):
    with pytest.raises((RuntimeError, ValueError), match="no-such-backend"):
        getattr(encode, function)(torch.ones(3), 2, backend="no-such-backend")
    with pytest.raises((RuntimeError, ValueError), match="no-such-backend"):
        getattr(modules, module)(2, backend="no-such-backend")(torch.ones(3))


def make_encoders():
    return [
        modules.ConstantCurrentLIFEncoder(5, LIFParameters(v_th=torch.tensor(0.5)), 0.002),
        modules.SpikeLatencyLIFEncoder(5, LIFParameters(v_th=torch.tensor(0.5)), 0.002),
        modules.SpikeLatencyEncoder(),
        modules.PopulationEncoder(4, torch.tensor(2.0)),
        modules.PoissonEncoder(5, 200),
        modules.PoissonEncoderStep(200),
        modules.SignedPoissonEncoder(5, 200),
        modules.SignedPoissonEncoderStep(200),
    ]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("encoder", make_encoders(), ids=lambda m: type(m).__name__)
def test_encoder_copies(encoder, duplicate):
    x = 5 * random_values(6, 3)
    again = duplicate(encoder)
    assert repr(again) == repr(encoder)
    assert_identical(seeded(again, x), seeded(encoder, x))


@pytest.mark.parametrize("encoder", make_encoders()[1:4], ids=lambda m: type(m).__name__)
def test_encoder_compiles_without_graph_break(encoder):
    x = 5 * random_values(6, 3)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    assert_identical(compiled(x), encoder(x))


def test_encoder_repr():
    representations = [repr(encoder) for encoder in make_encoders()]
    assert representations[0].startswith("ConstantCurrentLIFEncoder(seq_length=5, p=LIFParameters(")
    assert representations[1].startswith("SpikeLatencyLIFEncoder(seq_length=5, p=LIFParameters(")
    assert representations[2:] == [
        "SpikeLatencyEncoder()",
        "PopulationEncoder(out_features=4, scale=2.0, kernel=gaussian_rbf, "
        "distance_function=euclidean_distance)",
        "PoissonEncoder(seq_length=5, f_max=200, dt=0.001)",
        "PoissonEncoderStep(f_max=200, dt=0.001)",
        "SignedPoissonEncoder(seq_length=5, f_max=200, dt=0.001)",
        "SignedPoissonEncoderStep(f_max=200, dt=0.001)",
    ]
