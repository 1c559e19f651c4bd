"""Memory, counted in bytes that torch's allocator handed out: no second copy of the logits anywhere."""

from collections.abc import Callable

import pytest
import torch

import mlot
import mlot.nn
from benchmarks.memory import peak_bytes, saved_bytes

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
BATCH, LENGTH, V_S, V_T = 2, 128, 50257, 32000


def logits(vocabulary: int, dtype: torch.dtype = torch.float32, length: int = LENGTH) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(BATCH, length, vocabulary, dtype=dtype)


def step(student: torch.Tensor, teacher: torch.Tensor, matching: str) -> Callable[[], object]:
    config = mlot.MultiLevelOTConfig(matching=matching)

    def run() -> object:
        loss = mlot.multi_level_ot(student, teacher, config=config).loss
        return torch.autograd.grad(loss, student)

    return run


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("matching", ["rank", "optimal"])
def test_a_step_takes_a_quarter_of_the_logits_beside_the_gradient(matching: str) -> None:
    student, teacher = logits(V_S).requires_grad_(), logits(V_T)
    extra = peak_bytes(step(student, teacher, matching), CPU) - nbytes(student)
    assert 0 < extra <= nbytes(student) // 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_not_copied_to_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(V_S, dtype).requires_grad_(), logits(V_T, dtype)
    extra = peak_bytes(step(student, teacher, "rank"), CPU) - nbytes(student)
    assert 0 < extra <= nbytes(student) // 2  # half of half the bytes: the slices are in float32


def test_what_a_step_takes_does_not_grow_with_the_vocabulary_or_the_length() -> None:
    """Beyond the gradient: slices of fixed size, columns sums of the vocabulary, and traces of the length."""
    config = mlot.MultiLevelOTConfig(matching="rank")
    extra = {}
    for vocabulary, length in ((4000, 64), (32000, 64), (4000, 512)):
        student = logits(vocabulary, length=length).requires_grad_()
        teacher = logits(vocabulary, length=8)

        def run(student: torch.Tensor = student, teacher: torch.Tensor = teacher) -> object:
            return torch.autograd.grad(mlot.multi_level_ot(student, teacher, config=config).loss, student)

        extra[vocabulary, length] = peak_bytes(run, CPU) - nbytes(student)
    # Eight times the logits; what grows are sums (B, V) and keys for sorting them, or traces (B, T, k).
    assert extra[32000, 64] - extra[4000, 64] <= BATCH * 28000 * 48 + (1 << 21)
    assert extra[4000, 512] - extra[4000, 64] <= BATCH * 448 * 50 * 4 * 12 + (1 << 21)


@pytest.mark.parametrize("matching", ["rank", "optimal", "sinkhorn"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_criterion_takes_four_mebibytes_beside_its_gradient(
    matching: str, overwrite: bool, dtype: torch.dtype
) -> None:
    """With one thread; kept columns are a tenth of a mebibyte. With the gradient in place, nothing else."""
    config = mlot.MultiLevelOTConfig(matching=matching)
    criterion = mlot.nn.MultiLevelOTLoss(config, overwrite_logits=overwrite)
    student, teacher = logits(V_S, dtype).requires_grad_(), logits(V_T, dtype)
    labels = torch.randint(V_S, (BATCH, LENGTH)), torch.randint(V_T, (BATCH, LENGTH))

    def run() -> object:
        return torch.autograd.grad(criterion(student, teacher, *labels), student)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        extra = peak_bytes(run, CPU)
    finally:
        torch.set_num_threads(threads)
    extra -= 0 if overwrite else nbytes(student)
    assert 0 < extra <= (4 << 20) + BATCH * LENGTH * config.k * 4


@pytest.mark.parametrize("chunk_bytes", [None, 1 << 22])
def test_a_head_takes_what_its_chunks_take(chunk_bytes: int | None) -> None:
    """64 MiB by default, where the logits alone would be 49; with smaller chunks, a fifth of the logits."""
    torch.manual_seed(0)
    hidden = torch.randn(BATCH, LENGTH, 64, requires_grad=True)
    weight = torch.randn(V_S, 64, requires_grad=True)
    teacher = logits(V_T)
    config = mlot.MultiLevelOTConfig(matching="rank")
    given = {} if chunk_bytes is None else {"chunk_bytes": chunk_bytes}
    head = mlot.LinearHead(hidden, weight, **given)

    def run() -> object:
        loss = mlot.multi_level_ot(head, teacher, config=config).loss
        return torch.autograd.grad(loss, (hidden, weight))

    extra = peak_bytes(run, CPU) - nbytes(hidden) - nbytes(weight)
    assert 0 < extra <= (1 << 26 if chunk_bytes is None else BATCH * LENGTH * V_S * 4 // 5)


def test_what_is_saved_for_backward() -> None:
    """Selection keeps normalisers and columns, no array of the vocabulary's width but the logits themselves."""
    student, teacher = logits(8000).requires_grad_(), logits(6000)
    config = mlot.MultiLevelOTConfig(matching="rank")
    saved = saved_bytes(
        lambda: mlot.multi_level_ot(student, teacher, config=config).loss, inputs=(student, teacher)
    )
    assert saved <= nbytes(student) // 4


def test_sinkhorn_saves_scalings_not_plans() -> None:
    torch.manual_seed(0)
    cost = torch.rand(4, 256, 256, requires_grad=True)
    for n_iter in (20, 200):
        saved = saved_bytes(lambda n=n_iter: mlot.sinkhorn(cost, n_iter=n).value, inputs=(cost,))
        assert saved <= 4 * 2 * 256 * 4 * (n_iter + 4) + 4096


def test_masked_positions_cost_nothing() -> None:
    """A batch of which most is padding takes no more slices than its valid part."""
    student, _teacher = logits(V_S).requires_grad_(), logits(V_T)
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    mask[:, :4] = True
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if "exp_" in str(func) and isinstance(out, torch.Tensor) and out.shape[-1:] == (V_S,):
                seen.append(out.numel())
            return out

    with Watch():
        mlot.select(student, mask, k=50)
    assert sum(seen) == mask.sum() * V_S
