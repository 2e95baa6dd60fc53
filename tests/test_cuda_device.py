"""What only a GPU shows: streams, devices, graphs, large tensors, synchronisation, modules.

That results are those of the reference is tested with all backends, in tests/test_lif_*.py,
test_recurrent_*.py, test_*property.py and test_operators.py.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from helpers import (
    DEVICE,
    NEURONS,
    TOLERANCE,
    assert_grad_close,
    assert_same_bits,
    call,
    gradients,
    moved,
    random_case,
    random_recurrent_case,
    why_not,
)
from test_lif_backward import check as check_gradients
from test_recurrent_backward import check as check_recurrent_gradients
from test_recurrent_forward import with_binary_spikes
from torch import nn
from torch.utils._triton import has_triton

from fused_lif import (
    LI,
    LIF,
    LIFFeedForwardState,
    LIFParameters,
    LIFRecurrent,
    LIFState,
    SequentialState,
    lif_feed_forward_integral,
    lif_feed_forward_step,
    lif_step_integral,
)
from fused_lif.backends import native

pytestmark = [
    pytest.mark.skipif(why_not("cuda") is not None, reason=str(why_not("cuda"))),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch's own: of prototypes, of streams
]

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
several_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def make_lif(**options):
    """A layer with a learnable constant per neuron, for 100 neurons."""
    p = LIFParameters(tau_mem_inv=nn.Parameter(torch.full((100,), 300.0)), v_th=0.4, alpha=5.0)
    return LIF(p, **options).to(DEVICE), 2 * torch.rand(40, 3, 100, device=DEVICE)


def make_recurrent(**options):
    """A layer of 100 neurons and 20 inputs."""
    p = LIFParameters(tau_mem_inv=nn.Parameter(torch.full((100,), 300.0)), v_th=0.4, alpha=5.0)
    layer = LIFRecurrent(20, 100, p, **options).to(DEVICE)
    return layer, (torch.rand(40, 3, 20, device=DEVICE) < 0.3).float()


LAYERS = {"LIF": make_lif, "LIFRecurrent": make_recurrent}


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    return LAYERS[request.param]()


def grads_of(layer, x, *, state=None):
    """Spikes, potentials, and the gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    z, s = layer(x, state)
    weights = torch.linspace(-1, 1, z.shape[-1], device=z.device)
    outputs, grad_outputs = [z, s.v, s.i], [weights.expand_as(t) for t in (z, s.v, s.i)]
    grads = torch.autograd.grad(outputs, [x, *layer.parameters()], grad_outputs)
    return z.detach(), s.v.detach(), *grads


def assert_same(actual, expected):
    for k, (a, e) in enumerate(zip(actual, expected)):
        assert_same_bits(a.detach().cpu(), e.detach().cpu(), f"result {k}")


# ---- streams, devices, graphs ----


def test_current_stream(layer_and_input):
    """All work is in the stream that is current: the input comes there, late."""
    layer, x = layer_and_input
    expected = grads_of(layer, x)
    late = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        grads_of(layer, late)  # has memory of this stream from here on
        torch.cuda._sleep(400_000_000)  # cycles: a fifth of a second
        late.copy_(x)
        actual = grads_of(layer, late)
    stream.synchronize()
    assert expected[0].any()
    assert_same(actual, expected)


@several_devices
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_device_that_is_not_current(make):
    layer, x = make()
    expected = grads_of(layer, x)
    other = copy.deepcopy(layer).to("cuda:1")
    assert torch.cuda.current_device() == 0
    actual = grads_of(other, x.to("cuda:1"))
    assert all(t.device == torch.device("cuda:1") for t in actual)
    assert torch.cuda.current_device() == 0
    assert_same(actual, expected)


@several_devices
def test_tensors_of_two_devices():
    layer, x = make_lif()
    with pytest.raises(ValueError, match="must be on the device of input_tensor"):
        layer(x.to("cuda:1"))
    tensors = [torch.zeros(3, device="cuda:1") for _ in range(2)]
    constants = [torch.ones((), device="cuda:1") for _ in range(5)]
    with pytest.raises(RuntimeError, match="v must be on the device of x"):
        torch.ops.fused_lif.lif_forward(
            torch.zeros(4, 3, device="cuda:0"),
            *(*tensors, *constants, None),
            *(0.001, 0, False, 0, 1, False),
        )


def captured(function, inputs):
    """Returns a CUDA graph of the function, and its results, which a replay overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*inputs)
    return graph, results


def test_cuda_graph_of_layers(layer_and_input):
    layer, x = layer_and_input
    graph, results = captured(lambda x: grads_of(layer, x), [x])
    for k in range(3):
        x.copy_(torch.rand_like(x) * 2 if isinstance(layer, LIF) else (torch.rand_like(x) < 0.4))
        with torch.no_grad():
            layer.p.tau_mem_inv.fill_(200.0 + 50 * k)
        graph.replay()
        replayed = [r.clone() for r in results]
        assert replayed[0].any()
        assert_same(replayed, grads_of(layer, x))


def test_cuda_graph_of_functions():
    """Default constants are on the CPU; they do not disturb the capture."""
    x, zero = 3 * torch.rand(40, 3, 100, device=DEVICE), torch.zeros(3, 100, device=DEVICE)
    w_in, w_rec = torch.randn(100, 100, device=DEVICE), torch.randn(100, 100, device=DEVICE) / 10

    def run(x):
        x = x.detach().requires_grad_()
        z, s = lif_feed_forward_integral(x, LIFFeedForwardState(zero, zero), LIFParameters())
        r, t = lif_step_integral(z, LIFState(zero, zero, zero), w_in, w_rec, LIFParameters())
        y, u = lif_feed_forward_step(x[0], LIFFeedForwardState(0.0, 0.0))
        outputs = [z, s.v, r, t.i, y, u.v]
        (grad,) = torch.autograd.grad(outputs, x, [torch.ones_like(o) for o in outputs])
        return *(o.detach() for o in outputs), grad

    graph, results = captured(run, [x])
    for _ in range(3):
        x.copy_(3 * torch.rand_like(x))
        graph.replay()
        replayed = [r.clone() for r in results]
        assert replayed[0].any()
        assert_same(replayed, run(x))


def test_no_synchronization(layer_and_input):
    layer, x = layer_and_input
    state = layer.initial_state(x)
    weights, p = torch.randn(100, 100, device=DEVICE), LIFParameters()
    spikes = torch.rand(20, 3, 100, device=DEVICE)
    expected = grads_of(layer, x)
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            x.sum().item()
        actual = grads_of(layer, x, state=state)
        spikes = spikes.requires_grad_()
        z, _ = lif_step_integral(spikes, LIFState(0.0, 0.0, 0.0), weights, weights, p)
        y, _ = lif_feed_forward_integral(spikes, LIFFeedForwardState(0.0, 0.0))
        torch.autograd.grad([z, y], spikes, [torch.ones_like(z), torch.ones_like(y)])
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert_same(actual, expected)


# ---- numbers ----


@pytest.mark.parametrize("shape", [(35, 33, 4096), (35, 33, 4097)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
def test_large_sequences_have_the_bits_of_the_cpu(neuron, dtype, shape):
    case = random_case(shape, dtype, neuron)
    with torch.no_grad():
        for name, a, e in zip(("out", "v", "i"), case.run("cuda"), case.run("cpu")):
            assert_same_bits(a, e, name)


@pytest.mark.parametrize("constant_shape", [(), (4096,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_large_sequences(dtype, constant_shape):
    """Enough columns for the widest kernels of a GPU of 132 multiprocessors."""
    check_gradients(random_case((20, 33, 4096), dtype, constant_shape=constant_shape), "cuda")


@pytest.mark.parametrize(
    "shape",
    [(100, 32, 128, 256), (50, 33, 700, 512), (50, 70, 100, 513), (20, 16, 64, 2000)],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_recurrent_layers_have_the_bits_of_the_cpu(dtype, shape):
    """With exact weights: for the largest layers, matrix products add in another order."""
    density, recurrent_mean = min(0.3, 20 / shape[-2]), -1 / shape[-1]
    case = random_recurrent_case(shape, dtype, density=density, recurrent_mean=recurrent_mean)
    with torch.no_grad():
        spikes, *states = case.run("cuda")
        for a, e in zip((spikes, *states), case.run("cpu")):
            assert_same_bits(a, e)
    assert 0.05 < spikes.float().mean() < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_sums_over_weights_have_the_bits_of_the_cpu(density, dtype):
    """Also where they are not exact, for layers that a cluster of blocks has room for."""
    device = torch.cuda.get_device_properties(0)
    shape = (100, 33, 300, 400)
    rows = native._C.cuda_cluster_rows(
        *(shape[0], shape[1], shape[3], False, 0),
        capability=10 * device.major + device.minor,
        multiprocessors=device.multi_processor_count,
        shared_memory=getattr(device, "shared_memory_per_block_optin", 0),
    )
    if rows == 0:
        pytest.skip("this GPU takes matrix products")
    case = random_recurrent_case(
        shape, dtype, exact_sums=False, density=density, recurrent_mean=-0.01
    )
    case = with_binary_spikes(case)
    with torch.no_grad():
        spikes, *states = case.run("cuda")
        for a, e in zip((spikes, *states), case.run("cpu")):
            assert_same_bits(a, e)
    assert 0.05 < spikes.float().mean() < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(40, 32, 64, 256), (40, 9, 30, 512)], ids=str)
def test_gradients_of_large_recurrent_layers(shape, dtype):
    case = random_recurrent_case(shape, dtype, recurrent_mean=-1 / shape[-1])
    check_recurrent_gradients(case, "cuda")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_exact_has_the_bits_of_eager_torch(dtype):
    """Of sizes for which all addresses are aligned alike, so that BLAS takes the same kernels."""
    case = random_recurrent_case((20, 8, 32, 64), dtype, exact_sums=False, exact=True)
    case = moved(case._replace(options={}), DEVICE)
    results = []
    for options in ({"backend": "cuda", "exact": True}, {"backend": "reference"}):
        z, s = lif_step_integral(
            case.x,
            LIFState(case.z, case.v, case.i),
            case.input_weights,
            case.recurrent_weights,
            case.parameters(),
            **options,
        )
        results.append((z, s.v, s.i))
    assert results[0][0].any()
    assert_same(*results)


@pytest.mark.parametrize(
    ("make", "shape", "options"),
    [
        (random_case, (50, 33, 4097), {"constant_shape": ()}),
        (random_case, (50, 33, 4096), {"dtype": torch.bfloat16}),
        (random_recurrent_case, (50, 33, 100, 300), {"exact_sums": False, "constant_shape": ()}),
        (random_recurrent_case, (20, 16, 64, 1000), {"exact_sums": False}),
    ],
    ids=["scalars", "bfloat16", "clusters", "matrix products"],
)
def test_gradients_are_deterministic(make, shape, options):
    case = make(shape, **options)
    first = gradients(case, "cuda")
    for _ in range(5):
        for name, g in gradients(case, "cuda").items():
            assert torch.equal(g, first[name]), name


def test_more_elements_than_31_bits():
    """Every neuron is computed on its own: some of them are compared with the CPU."""
    T, B, N = 64, 32, 2**20 + 8
    needed = 5 * 2 * T * B * N
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GiB of memory, {free >> 30} are free")
    torch.use_deterministic_algorithms(False)  # it would fill all of it
    x = torch.empty(T, B, N, dtype=torch.bfloat16, device=DEVICE)
    assert x.numel() > 2**31
    for x_t in x:
        x_t.normal_(0.5, 0.5)
    zero = torch.zeros(B, N, device=DEVICE)
    p = LIFParameters(alpha=3.0, v_th=0.6)
    parts = [(0, slice(0, 70)), (B - 1, slice(N - 70, N)), (17, slice(N // 2, N // 2 + 70))]

    def run(x, zero, backend, grad_out):
        x, v = x.detach().requires_grad_(), zero.detach().requires_grad_()
        z, s = lif_feed_forward_integral(x, LIFFeedForwardState(v, zero), p, backend=backend)
        return z.detach(), s.v.detach(), *torch.autograd.grad([z, s.v], [x, v], grad_out)

    results = run(x, zero, "cuda", [x, zero + 1])
    for b, columns in parts:
        part = x[:, b, columns].cpu()
        start = torch.zeros(part.shape[1:])
        expected = run(part, start, "cpu", [part, start + 1])
        z, v, grad_x, grad_v = results
        assert_same_bits(z[:, b, columns].cpu(), expected[0], "spikes")
        assert_same_bits(v[b, columns].cpu(), expected[1], "v")
        assert 0.01 < expected[0].float().mean() < 0.5
        limit = TOLERANCE[torch.bfloat16].grad
        assert_grad_close(grad_x[:, b, columns].cpu(), expected[2], limit, "x")
        assert_grad_close(grad_v[b, columns].cpu()[None], expected[3][None], limit, "v")


# ---- torch ----


@pytest.mark.filterwarnings("ignore")  # those of the compiler
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiles_without_graph_breaks(layer_and_input, compiler):
    if compiler == "inductor" and not has_triton():
        pytest.skip("needs Triton")
    layer, x = layer_and_input
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    expected = grads_of(layer, x)
    x = x.detach().requires_grad_()
    z, s = compiled(x)
    assert_same([z, s.v], expected[:2])
    outputs = [z, s.v, s.i]
    weights = torch.linspace(-1, 1, 100, device=DEVICE)
    grads = torch.autograd.grad(
        outputs, [x, *layer.parameters()], [weights.expand_as(t).contiguous() for t in outputs]
    )
    for a, e in zip(grads, expected[2:]):
        torch.testing.assert_close(a, e)


def test_autocast(layer_and_input):
    """Neurons and their sums over weights are computed as without it."""
    layer, x = layer_and_input
    expected = grads_of(layer, x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        actual = grads_of(layer, x)
    assert_same(actual, expected)


def test_autocast_of_a_network():
    """Linear layers give bfloat16 currents; spikes stay bfloat16, states float32."""
    model = SequentialState(nn.Linear(20, 100), LIF(), LIFRecurrent(100, 30), LI()).to(DEVICE)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out, states = model(torch.rand(20, 3, 20, device=DEVICE))
    assert out.dtype == torch.bfloat16
    assert states[1].v.dtype == states[2].v.dtype == states[3].v.dtype == torch.float32
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def kept_bytes(layer, x):
    """Bytes that autograd keeps for the backward, each memory counted once."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _results = layer(x)  # as long as they live, no memory is used twice
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_kept_for_backward(dtype):
    """The input, and every 32nd state; of a recurrent layer i', every 32nd v, and the spikes."""
    T, B, N, features = 96, 8, 64, 32
    state = 4 * B * N
    small = 2 * state + 4096  # initial states, constants and their rounding up
    x = torch.rand(T, B, N, device=DEVICE).to(dtype).requires_grad_()
    kept = kept_bytes(LIF().to(DEVICE), x)
    assert x.nbytes < kept <= x.nbytes + 2 * math.ceil(T / 32) * state + small

    layer = LIFRecurrent(features, N).to(DEVICE)
    x = torch.rand(T, B, features, device=DEVICE).to(dtype)
    weights = layer.input_weights.nbytes + layer.recurrent_weights.nbytes
    kept = kept_bytes(layer, x)
    spikes = T * B * N * x.element_size()
    i_jump = T * state
    limit = x.nbytes + spikes + i_jump + math.ceil(T / 32) * state + weights + 2 * small
    assert x.nbytes + spikes + i_jump < kept <= limit


def test_no_memory_is_left(layer_and_input):
    layer, x = layer_and_input
    grads_of(layer, x)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        grads_of(layer, x)
    assert torch.cuda.memory_allocated() == before


# ---- modules ----


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(layer_and_input, clone):
    layer, x = layer_and_input
    other = clone(layer)
    assert all(p.device.type == "cuda" for p in other.parameters())
    assert_same(grads_of(other, x), grads_of(layer, x))


def test_layers_move_between_devices():
    """Constants that are no parameters too. Spikes are the same on both."""
    layer, x = make_lif()
    on_cpu = copy.deepcopy(layer).to("cpu")
    assert all(c.device.type == "cpu" for c in on_cpu.p if isinstance(c, torch.Tensor))
    assert_same_bits(on_cpu(x.cpu())[0].detach(), layer(x)[0].detach().cpu())
    back = on_cpu.to(DEVICE)
    assert all(c.device.type == "cuda" for c in back.p if isinstance(c, torch.Tensor))
    assert_same(grads_of(back, x), grads_of(layer, x))
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run this input: the input is on"):
        LIF(backend="cuda")(x.cpu())
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run this input: the input is on"):
        LIF(backend="cpu").to(DEVICE)(x)


def test_cuda_is_chosen(layer_and_input):
    layer, x = layer_and_input
    node = type(layer(x.requires_grad_())[0].grad_fn).__name__
    assert node in ("_LIFSequenceBackward", "_LIFRecurrentBackward")
    expected = grads_of(layer, x)
    layer.backend = "cuda"
    assert_same(grads_of(layer, x), expected)
    layer.backend = "reference"
    torch.testing.assert_close(grads_of(layer, x)[0].mean(), expected[0].mean(), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore")  # of unequal devices
def test_data_parallel():
    class Spikes(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.lif = make_recurrent()[0], make_lif()[0]

        def forward(self, x):
            return self.lif(self.recurrent(x)[0])[0]

    model, x = Spikes(), (torch.rand(40, 6, 20, device=DEVICE) < 0.3).float()
    parallel = nn.DataParallel(model, dim=1)
    z, expected = parallel(x), model(x)
    assert_same([z], [expected])
    grads = torch.autograd.grad(z.sum(), list(model.parameters()))
    for a, e in zip(grads, torch.autograd.grad(expected.sum(), list(model.parameters()))):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_constants_on_the_cpu():
    """Scalars go to the device of the input, as in torch; other tensors must be there."""
    x = 2 * torch.rand(20, 3, 5, device=DEVICE)
    state = LIFFeedForwardState(torch.tensor(0.1), 0)
    v_th = torch.tensor(0.4, requires_grad=True)
    z, _ = lif_feed_forward_integral(x, state, LIFParameters(v_th=v_th, v_reset=0.1))
    z.sum().backward()
    assert v_th.grad.device.type == "cpu"
    assert v_th.grad != 0
    expected = call(
        lif_feed_forward_integral,
        x.cpu(),
        state,
        LIFParameters(v_th=0.4, v_reset=0.1),
        backend="cpu",
    )
    assert_same([z], [expected[0]])
    with pytest.raises(ValueError, match="v_th must be on the device of input_tensor"):
        lif_feed_forward_integral(x, state, LIFParameters(v_th=torch.ones(5)))
