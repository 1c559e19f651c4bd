"""Time and peak memory of mlot beside plain PyTorch and other libraries: ``python -m benchmarks``.

``loss`` compares whole losses, ``transport`` the Sinkhorn part alone, and ``sweep`` grows the vocabulary,
the length and the batch one at a time. Before anything is timed, every contestant's value and gradient are
compared with mlot's on the same inputs.
"""
