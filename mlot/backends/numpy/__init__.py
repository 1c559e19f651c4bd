"""The reference backend: NumPy in float64, one sequence at a time, written to be read beside the paper."""
