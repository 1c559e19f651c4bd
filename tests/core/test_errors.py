"""Bad input: the error names the argument, what came and what was expected, before any computation."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mlot
import mlot.nn
from error_cases import arrays
from mlot.backends import get_backend
from problems import BACKENDS

backends = pytest.mark.parametrize("backend", BACKENDS)


def cast(array: object, kind: str) -> object:
    if isinstance(array, torch.Tensor):
        return array.to({"int": torch.int64, "float": torch.float64}[kind])
    return array.astype({"int": np.int64, "float": np.float64}[kind])


Call = Callable[[SimpleNamespace], object]
LOSS: dict[str, tuple[type[Exception], Call, str]] = {
    "rank of student": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student[0], a.teacher),
        r"student: expected logits \(B, T, V\), got shape \(4, 9\)",
    ),
    "rank of teacher": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher[0, 0]),
        r"teacher: expected logits \(B, T, V\), got shape \(11,\)",
    ),
    "batch": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher[:1]),
        r"teacher: expected the batch size of student, 2, got 1",
    ),
    "no vocabulary": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student[:, :, :0], a.teacher),
        r"student: expected a vocabulary of at least one column, got shape \(2, 4, 0\)",
    ),
    "integer logits": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.integers, a.teacher),
        r"student: expected floating-point numbers, got .*int64",
    ),
    "complex logits": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.complex),
        r"teacher: expected floating-point numbers, got .*complex128",
    ),
    "shape of student mask": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, student_mask=a.teacher_mask),
        r"student_mask: expected shape \(2, 4\), as student, got \(2, 5\)",
    ),
    "shape of teacher mask": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, teacher_mask=a.teacher_mask[0]),
        r"teacher_mask: expected shape \(2, 5\), as teacher, got \(5,\)",
    ),
    "integer mask": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, student_mask=cast(a.student_mask, "int")),
        r"student_mask: expected booleans, got .*int64",
    ),
    "float mask": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, teacher_mask=cast(a.teacher_mask, "float")),
        r"teacher_mask: expected booleans, got .*float64",
    ),
    "shape of pairs": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, pairs=a.pairs[0]),
        r"pairs: expected \(2, P, 2\), got shape \(1, 2\)",
    ),
    "float pairs": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, pairs=cast(a.pairs, "float")),
        r"pairs: expected integers, got .*float64",
    ),
    "student pairs out of range": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, pairs=a.pairs + 4),
        r"pairs: expected student positions from 0 to 3 \(or -1 for no pair\), got 4",
    ),
    "negative pairs": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, pairs=a.pairs - 2),
        r"pairs: expected student positions from 0 to 3 \(or -1 for no pair\), got -2",
    ),
    "config": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, config={"k": 5}),
        r"config: expected a MultiLevelOTConfig or None, got dict",
    ),
    "reduction": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, reduction="average"),
        r"reduction: expected one of \('none', 'sum', 'mean'\), got 'average'",
    ),
    "type of reduction": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, reduction=None),
        r"reduction: expected one of .*, got NoneType None",
    ),
    "num_items": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, num_items=0),
        r"num_items: expected a finite number > 0, got 0",
    ),
    "num_items for a sum": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, num_items=3, reduction="sum"),
        r"num_items: expected None unless reduction is 'mean', got 3 with 'sum'",
    ),
    "shape of num_items": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, num_items=a.student[0, 0]),
        r"num_items: expected one number, got shape \(9,\)",
    ),
    "backend": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, backend="tensorflow"),
        r"backend: expected one of \[.*'numpy'.*'torch'.*\], got 'tensorflow'",
    ),
    "type of backend": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, backend=torch),
        r"backend: expected a name, got module",
    ),
    "list": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, [[[1.0, 2.0]]]),
        r"teacher: expected an array of a registered backend \(numpy, torch.*\) or a source of such arrays, got list",
    ),
    "return_plan": (
        TypeError,
        lambda a: mlot.multi_level_ot(a.student, a.teacher, return_plan=1),
        r"return_plan: expected True or False, got int 1",
    ),
    "too few columns in saved traces": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, mlot.select(a.teacher, k=3)),
        r"teacher: expected traces of at least 9 columns, got 3 of 11",
    ),
    "too few columns in the student's traces": (
        ValueError,
        lambda a: mlot.multi_level_ot(
            mlot.select(a.student, k=3), a.teacher, config=mlot.MultiLevelOTConfig(k=2, pool=4)
        ),
        r"student: expected traces of at least 4 columns, got 3 of 9",
    ),
    "temperature of saved traces": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, mlot.select(a.teacher, k=11, temperature=3.0)),
        r"teacher: expected traces selected at temperature 1.0, got 3.0",
    ),
    "sequence temperature of saved traces": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, mlot.select(a.teacher, k=11, extra_temperatures=(4.0,))),
        r"teacher: expected one that the traces were selected for \(1.0, 4.0\), got 2.0; "
        r"select them with extra_temperatures=\(2.0,\)",
    ),
    "standardised traces": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, mlot.select(a.teacher, k=11, standardize=True)),
        r"teacher: expected traces with standardize=False, got standardize=True",
    ),
    "another mask than that of the traces": (
        ValueError,
        lambda a: mlot.multi_level_ot(a.student, mlot.select(a.teacher, k=11), teacher_mask=~a.teacher_mask),
        r"teacher_mask: expected the mask that the traces were selected with",
    ),
    "uld of traces": (
        TypeError,
        lambda a: mlot.uld(a.student, mlot.select(a.teacher, k=11)),
        r"teacher: expected logits or a LinearHead, since ULD needs every column, got Traces",
    ),
    "uld batch": (
        ValueError,
        lambda a: mlot.uld(a.student[:1], a.teacher),
        r"teacher: expected the batch size of student, 1, got 2",
    ),
    "uld reduction": (
        ValueError,
        lambda a: mlot.uld(a.student, a.teacher, reduction="batchmean"),
        r"reduction: expected one of .*, got 'batchmean'",
    ),
    "k of select": (
        ValueError,
        lambda a: mlot.select(a.student, k=0),
        r"k: expected an integer >= 1 or None, got 0",
    ),
    "type of k of select": (
        TypeError,
        lambda a: mlot.select(a.student, k=2.0),
        r"k: expected an integer >= 1 or None, got float 2.0",
    ),
    "temperature of select": (
        ValueError,
        lambda a: mlot.select(a.student, k=2, temperature=0.0),
        r"temperature: expected a finite number > 0, got 0.0",
    ),
    "extra temperatures": (
        TypeError,
        lambda a: mlot.select(a.student, k=2, extra_temperatures=2.0),
        r"extra_temperatures: expected a tuple of numbers, got float 2.0",
    ),
    "an extra temperature": (
        ValueError,
        lambda a: mlot.select(a.student, k=2, extra_temperatures=(-2.0,)),
        r"extra_temperatures: expected a finite number > 0, got -2.0",
    ),
    "standardize": (
        TypeError,
        lambda a: mlot.select(a.student, k=2, standardize="yes"),
        r"standardize: expected True or False, got str 'yes'",
    ),
    "mask of select": (
        ValueError,
        lambda a: mlot.select(a.student, a.teacher_mask, k=2),
        r"mask: expected shape \(2, 4\), as source, got \(2, 5\)",
    ),
    "token cost of logits": (
        TypeError,
        lambda a: mlot.token_cost(a.student, a.teacher),
        r"student: expected Traces \(see mlot.select\), got (numpy.ndarray|torch.Tensor)",
    ),
    "kind of token cost": (
        ValueError,
        lambda a: mlot.token_cost(mlot.select(a.student, k=2), mlot.select(a.teacher, k=2), "l2"),
        r"kind: expected one of \('l1', 'log'\), got 'l2'",
    ),
    "unmatched sequence cost": (
        ValueError,
        lambda a: mlot.sequence_cost(mlot.select(a.student, k=3), mlot.select(a.teacher, k=2)),
        r"student: expected matched traces of 2 columns, as the teacher, got 3",
    ),
    "temperature of sequence cost": (
        ValueError,
        lambda a: mlot.sequence_cost(
            mlot.select(a.student, k=2), mlot.select(a.teacher, k=2), temperature=3.0
        ),
        r"temperature: expected one that the traces were selected for \(1.0, 2.0\), got 3.0",
    ),
    "two temperatures": (
        ValueError,
        lambda a: mlot.token_cost(mlot.select(a.student, k=2, temperature=3.0), mlot.select(a.teacher, k=2)),
        r"temperature: expected one that both traces serve, got None with student at 3.0 and teacher at 1.0",
    ),
    "had of unmatched traces": (
        ValueError,
        lambda a: mlot.had(mlot.select(a.student, k=3), mlot.select(a.teacher, k=2)),
        r"student: expected matched traces of 2 columns, as the teacher, got 3",
    ),
    "sl of logits": (TypeError, lambda a: mlot.sl(a.student, a.teacher), r"student: expected Traces"),
    "rounds of a sinkhorn distance": (
        ValueError,
        lambda a: mlot.sinkhorn_distance(mlot.select(a.student, k=2), mlot.select(a.teacher, k=2), n_iter=0),
        r"n_iter: expected an integer >= 1, got 0",
    ),
    "shape of assign": (
        ValueError,
        lambda a: mlot.assign(a.cost[None].swapaxes(1, 2)),
        r"cost: expected \(B, R, S\) with R <= S, got shape \(1, 4, 3\)",
    ),
    "method of assign": (
        ValueError,
        lambda a: mlot.assign(a.cost[None], "auction"),
        r"method: expected one of \('optimal', 'greedy', 'rank'\), got 'auction'",
    ),
    "integer costs of assign": (
        TypeError,
        lambda a: mlot.assign(cast(a.cost[None], "int")),
        r"cost: expected floating-point numbers, got .*int64",
    ),
    "rank of a cost": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost[0]),
        r"cost: expected \(B, T_t, T_s\) or \(T_t, T_s\), got shape \(4,\)",
    ),
    "empty cost": (
        ValueError,
        lambda a: mlot.emd(a.cost[:0]),
        r"cost: expected at least one row and one column, got shape \(0, 4\)",
    ),
    "integer cost": (
        TypeError,
        lambda a: mlot.sinkhorn(cast(a.cost, "int")),
        r"cost: expected floating-point numbers, got .*int64",
    ),
    "epsilon": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost, epsilon=0),
        r"epsilon: expected a finite number > 0, got 0",
    ),
    "infinite epsilon": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost, epsilon=float("inf")),
        r"epsilon: expected a finite number > 0, got inf",
    ),
    "n_iter": (
        TypeError,
        lambda a: mlot.sinkhorn(a.cost, n_iter=True),
        r"n_iter: expected an integer >= 1, got bool True",
    ),
    "tol": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost, tol=-1e-3),
        r"tol: expected a finite number >= 0 or None, got -0.001",
    ),
    "shape of a": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost, a.cost[0]),
        r"a: expected shape \(3,\) or \(3,\), got \(4,\)",
    ),
    "negative b": (
        ValueError,
        lambda a: mlot.emd(a.cost, b=-a.cost[0]),
        r"b: expected non-negative weights, got -",
    ),
    "weightless a": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost, a=0 * a.cost[:, 0]),
        r"a: expected weights with a positive total, got 0",
    ),
    "unequal totals": (
        ValueError,
        lambda a: mlot.sinkhorn(a.cost, a=1 + 0 * a.cost[:, 0]),
        r"b: expected the total of a, 3.0, got 1.0",
    ),
    "rank of labels": (
        ValueError,
        lambda a: mlot.mask_from_labels(a.integers),
        r"labels: expected \(B, T\), got shape \(2, 4, 9\)",
    ),
    "float labels": (
        TypeError,
        lambda a: mlot.mask_from_labels(a.cost),
        r"labels: expected integers, got .*float64",
    ),
    "ignore_index": (
        TypeError,
        lambda a: mlot.mask_from_labels(a.integers[0], ignore_index=None),
        r"ignore_index: expected an integer, got NoneType None",
    ),
}


@backends
@pytest.mark.parametrize("case", LOSS)
def test_calls(backend: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, call, message = LOSS[case]
    a = arrays(backend)
    with pytest.raises(error, match=f"^{message}") as caught:
        call(a)
    assert isinstance(caught.value, error)


@backends
def test_checks_come_before_any_computation(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that cannot compute, bad arguments still raise their own errors."""
    a = arrays(backend)
    a.traces = [mlot.select(a.student, k=9), mlot.select(a.teacher, k=9)]
    working = get_backend(backend)
    for operation in (
        "select take keep token_cost assign sequence_cost sinkhorn emd had sl uld inner index_pairs restrict_pairs"
    ).split():
        monkeypatch.setattr(
            type(working), operation, lambda *_, name=operation, **__: pytest.fail(f"{name} was called")
        )
    for name, (error, call, message) in LOSS.items():
        if "mlot.select" in call.__code__.co_names or "select" in call.__code__.co_names:
            continue  # these need traces first
        with pytest.raises(error, match=f"^{message}"):
            call(a)
        assert name
