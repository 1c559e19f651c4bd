"""One thread for torch, and hypothesis without deadlines: the machines that run this are shared."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "default",
    deadline=None,
    max_examples=int(os.environ.get("MLOT_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    derandomize=os.environ.get("CI", "") == "true",
)
settings.load_profile("default")
