"""All known differences from Norse 1.1.0, each with its reason.

Tests compare everything else. Our keyword-only arguments (``reset``, ``detach_reset``,
``autapses`` of functions, ``exact``, ``record_states``, ``backend``) are additions and not listed.
"""

from __future__ import annotations

DIFFERENCES: dict[str, str] = {
    # constants and parameters
    "LIFParameters.methods": "no .to(), .cuda(), .broadcast(): layers register and move constants",
    "parameters()": "a Parameter in p is registered; in Norse the optimiser never sees it",
    "constants in half precision": "dt * tau is formed in float32; Norse rounds it to half",
    "float64 constants of a float32 input": "the state follows x; Norse promotes to float64",
    "default_bio_parameters": "exported by fused_lif.functional.lif, as in Norse",
    # surrogates
    "super": "alpha is honoured, as on Norse's main branch; 1.1.0 ignores it (equal for alpha = 1)",
    "adjoint": "works in modules, and for sequences; in Norse 1.1.0 it raises inside every module",
    "adjoint, constants": "have gradients",
    "adjoint, slope of zero": "the spike passes no gradient; Norse gives inf or NaN",
    "circ": "finite for every s; Norse's gives NaN beyond |s| = 1e19 in float32",
    # neurons
    "infinite potential": "a spike resets it; Norse computes 0 * inf = NaN",
    "lif_current_encoder": "resets to v_reset; Norse's v - z (v - v_reset) is off by a rounding",
    "initial state": "has the shape of one step and is float64 for float64 inputs; Norse's cells "
    "start with a 0-dim v, all with float32; per-neuron v_leak works",
    "constructor": "dt may be positional; Norse takes it as a keyword",
    "half inputs": "computed in float32 and returned in the dtype of the input",
    "state larger than the input": "a ValueError; constants may be larger, as in Norse",
    "T = 0": "a ValueError; Norse fails inside torch.stack",
    "sparse inputs": "a TypeError; Norse returns sparse spikes",
    "integer inputs": "a TypeError, except for encoders; Norse promotes",
    # layers with recurrent connections
    "lif_step_integral": "returns the spikes of all steps, as Norse's documentation says; Norse "
    "1.1.0 returns those of the last one",
    "sums over weights": "in ascending order of the sending neuron; with exact=True those of Norse",
    "autapses": "the rule survives deepcopy, pickle and functional_call; Norse's hook does not",
    "weights given as tensors": "become buffers, and the caller's tensor keeps its diagonal; Norse "
    "has a plain attribute, which no checkpoint has, changes it in place and makes it require a "
    "gradient",
    "frozen weights": "stay frozen; without autapses Norse makes them require a gradient",
    "input_size, hidden_size": "integers; Norse has tensors",
    # encoders, containers: see the tests of these
    "encoders": "seq_length, dt, f_max and out_features are checked; 0-dim inputs work; random "
    "numbers are drawn on the device of the input; float64 stays float64",
    "spike_latency_encode": "counts spikes, not their values: differs for values not in 0, 1, -1",
    "spike_latency_lif_encode": "half inputs are computed in float32; integer inputs are accepted",
    "population_encode": "scale may have several elements; Norse fails",
    "SequentialState": "returns a new list of states; Norse changes the caller's; slices and "
    "OrderedDict work; a list of the wrong length is a ValueError",
    "RecurrentSequential": "several output_modules are fed back as a sum; Norse fails",
    "Lift": "stateless torch layers run in one call, equal up to rounding; T = 0 is a ValueError",
    "PoissonEncoderStep, SignedPoissonEncoderStep": "also exported by fused_lif.module",
}

#: Public names of ours that Norse does not have, or has elsewhere.
NEW_NAMES = {
    "backend",
    "check_finite",
    "functional",
    "init",
    "module",
    "optim",
    "parametrizations",
    "parametrize",
    "spike_times",
    "testing",
    "li_feed_forward_integral",
    "lif_feed_forward_integral",
    "lif_step_integral",
}

#: Names whose signature is wider than Norse's ``(p, **kwargs)``.
WIDER_SIGNATURES = {
    "LI",
    "LICell",
    "LIF",
    "LIFCell",
    "LIFRecurrent",
    "LIFRecurrentCell",
    "SpikeLatencyLIFEncoder",
}
