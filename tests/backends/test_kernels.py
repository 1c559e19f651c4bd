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
    assert "skipped" not in done.stdout


COMPILED = {
    "row_totals": {"INVERSE": 1 / 0.7, "INVERSE_EXTRA": 0.5, "EXTRA": True, "DOUBLED": True, "BLOCK": 256},
    "column_sums": {"INVERSE": 1.0, "ROWS": 8, "BLOCK": 64},
    "row_gradient": {"INVERSE": 1.0, "INVERSE_EXTRA": 0.5, "EXTRA": True, "BLOCK": 256},
    "sinkhorn_rounds": {"INVERSE": 10.0, "HEIGHT": 16, "WIDTH": 16},
    "sinkhorn_rounds_back": {"INVERSE": 10.0, "HEIGHT": 16, "WIDTH": 16},
    "sinkhorn_half_round": {"INVERSE": 10.0, "ROWS": 16, "BLOCK": 32},
}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize(("logits", "inside"), [("bf16", "fp32"), ("fp64", "fp64")])
def test_kernels_compile_for_a_gpu_that_is_not_here(name: str, logits: str, inside: str) -> None:
    """The interpreter takes what the compiler refuses, so the compiler is asked as well."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mlot.backends.torch import triton_kernels

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton was told to interpret")
    kernel, constants = getattr(triton_kernels, name), COMPILED[name]
    numbers = {"stride_b", "stride_t", "stride_n", "stride_i", "stride_j", "rows", "length", "vocabulary"}
    numbers |= {"batch", "height", "width", "rounds"}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in numbers:
            signature[argument] = "i32"
        else:
            signature[argument] = {"mask": "*i1", "logits": f"*{logits}", "gradient": f"*{logits}"}.get(
                argument, f"*{inside}"
            )
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu() -> None:
    done = run(MLOT_KERNELS="auto")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
