"""The training backend: PyTorch, batched and differentiable, on the host and on CUDA."""
