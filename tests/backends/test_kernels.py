"""Triton's kernels, through its interpreter where there is no GPU, against the reference and the eager operations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

CASES = Path(__file__).parents[1] / "support" / "kernel_cases.py"


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", str(CASES)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=CASES.parent.parent,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels run on it")
def test_kernels_through_the_interpreter() -> None:
    """In a process of its own: the interpreter has to be chosen before Triton is imported."""
    done = run(TRITON_INTERPRET="1", MLOT_KERNELS="auto")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    assert "2 skipped" in done.stdout  # what is for tensor cores


COMPILED = {
    "row_totals": {
        "INVERSE": 1 / 0.7, "INVERSE_EXTRA": 0.5, "EXTRA": True, "DOUBLED": True, "LEFT_OUT": True, "BLOCK": 256
    },
    "column_sums": {"INVERSE": 1.0, "STRETCH": 128, "ROWS": 8, "BLOCK": 64},
    "row_gradient": {
        "INVERSE": 1.0, "INVERSE_EXTRA": 0.5, "EXTRA": True, "LEFT_OUT": True, "BLOCK": 256
    },
    "sinkhorn_rounds": {"INVERSE": 10.0, "HEIGHT": 16, "WIDTH": 16},
    "sinkhorn_rounds_back": {"INVERSE": 10.0, "HEIGHT": 16, "WIDTH": 16},
    "sinkhorn_half_round": {"INVERSE": 10.0, "ROWS": 16, "BLOCK": 32},
    "sinkhorn_half_round_back": {"INVERSE": 10.0, "ROWS": 16, "BLOCK": 32},
    "pairwise_l1": {"ROWS": 64, "COLUMNS": 64},
    "pairwise_l1_back": {"ROWS": 16, "AXES": 16, "COLUMNS": 16},
    "uld_counts": {"BLOCK": 256},
    "uld_bins": {"BLOCK": 256},
    "uld_signs": {"SIDE": -1, "KEEP": True, "BLOCK": 256},
    "uld_undecided": {"SIDE": 1, "BLOCK": 128},
    "uld_gradient": {"BLOCK": 256},
}  # fmt: skip
BITS = 5
POINTERS = {
    "mask": "*i1", "valid": "*i1", "left_out": "*i32", "starts": "*i64", "counts": "*i32", "table": "*i8",
    "signs": "*i8", "edges": "*i64", "order": "*i64", "tokens": "*i32", "listed": "*i32",
    "counts_s": "*i32", "counts_t": "*i32", "above_s": "*i32", "above_t": "*i32", "above": "*i32",
    "places": "*i32", "places_s": "*i32", "places_t": "*i32", "other_counts": "*i32", "other_places": "*i32",
    "other_above": "*i32",
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize(("logits", "inside"), [("bf16", "fp32"), ("fp64", "fp64")])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_here(
    name: str, logits: str, inside: str, capability: int
) -> None:
    """The interpreter takes what the compiler refuses, so the compiler is asked as well."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mlot.backends.torch import triton_kernels, triton_transport, triton_uld
    from mlot.backends.torch.uld_counts import constants_of

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton was told to interpret")
    modules = (triton_kernels, triton_transport, triton_uld)
    kernel = next(getattr(module, name) for module in modules if hasattr(module, name))
    dtype = torch.float64 if inside == "fp64" else torch.float32
    bins = zip(("FRACTION", "LOWEST", "HIGHEST"), constants_of(dtype, BITS), strict=True)
    bins = [*bins, ("BINS", constants_of(dtype, BITS)[2] + 1)]
    constants = COMPILED[name] | {key: value for key, value in bins if key in kernel.arg_names}
    numbers = {"stride_b", "stride_t", "stride_n", "stride_i", "stride_j", "rows", "length", "vocabulary"}
    numbers |= {"batch", "height", "width", "rounds", "words", "stride", "capacity", "other_capacity"}
    numbers |= {"depth", "student_vocabulary", "teacher_vocabulary"}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in numbers:
            signature[argument] = "i32"
        else:
            of_logits = {"logits": f"*{logits}", "gradient": f"*{logits}"}
            signature[argument] = (POINTERS | of_logits).get(argument, f"*{inside}")
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=target)
    assert compiled.asm["cubin"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu() -> None:
    done = run(MLOT_KERNELS="auto")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
