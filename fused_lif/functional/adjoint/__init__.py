"""Steps with adjoint gradients; names as in ``norse.torch.functional.adjoint``."""
