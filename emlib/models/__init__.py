"""Models: loading, adapters, hooks, log-probabilities, and kernels."""
