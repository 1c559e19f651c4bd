"""Running the checks and gathering what they find."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from mlot import _checks
from mlot.testing import (
    _basics,
    _divergences,
    _gradients,
    _gradients_transport,
    _loss,
    _matching,
    _selection,
    _sparse,
    _text,
    _transport,
)
from mlot.testing._oracle import MissingPackageError
from mlot.testing._report import Record, Report, notes, table
from mlot.testing._subject import Errors, Gradient, MismatchError, Subject

Check = Callable[[Subject, np.random.Generator, int], Errors]

#: Relative errors allowed: results in either precision, and gradients against central differences.
DOUBLE, SINGLE, GRADIENT = 1e-10, 1e-5, 1e-5

_CHECKS: dict[str, Check] = {
    "kind": _basics.check_kind,
    "device": _basics.check_device,
    "convert": _basics.check_convert,
    "from_numpy": _basics.check_from_numpy,
    "to_numpy": _basics.check_to_numpy,
    "stop_gradient": _basics.check_stop_gradient,
    "full_mask": _basics.check_full_mask,
    "mask_from_labels": _basics.check_mask_from_labels,
    "index_pairs": _basics.check_index_pairs,
    "restrict_pairs": _basics.check_restrict_pairs,
    "count_pairs": _basics.check_count_pairs,
    "count_positions": _basics.check_count_positions,
    "select": _selection.check_select,
    "select_sparse": _sparse.check_select_sparse,
    "take": _selection.check_take,
    "keep": _selection.check_keep,
    "token_cost": _matching.check_token_cost,
    "assign": _matching.check_assign,
    "sequence_cost": _matching.check_sequence_cost,
    "marginals": _matching.check_marginals,
    "sinkhorn": _transport.check_sinkhorn,
    "emd": _transport.check_emd,
    "had": _divergences.check_had,
    "sl": _divergences.check_sl,
    "uld": _divergences.check_uld,
    "text_targets": _text.check_text_targets,
    "text_terms": _text.check_text_terms,
    "inner": _transport.check_inner,
    "loss": _loss.check_loss,
}

_GRADIENTS: dict[str, Check] = {
    "convert": _gradients.gradient_of_convert,
    "stop_gradient": _gradients.gradient_of_stop_gradient,
    "select": _gradients.gradient_of_select,
    "take": _gradients.gradient_of_take,
    "keep": _gradients.gradient_of_keep,
    "token_cost": _gradients.gradient_of_token_cost,
    "sequence_cost": _gradients.gradient_of_sequence_cost,
    "sinkhorn": _gradients_transport.gradient_of_sinkhorn,
    "emd": _gradients_transport.gradient_of_emd,
    "had": _gradients.gradient_of_had,
    "sl": _gradients.gradient_of_sl,
    "uld": _gradients.gradient_of_uld,
    "text_terms": _text.gradient_of_text_terms,
    "inner": _gradients_transport.gradient_of_inner,
    "loss": _gradients_transport.gradient_of_loss,
}

#: Operations on no floating numbers, which have no precision to vary.
_WITHOUT_PRECISION = (
    "kind", "device", "full_mask", "mask_from_labels", "index_pairs", "restrict_pairs", "count_pairs",
    "count_positions",
)  # fmt: skip

#: What can be checked: the operations of `mlot.Backend`, and ``"loss"`` for all of them together.
OPERATIONS = tuple(_CHECKS)


def check_backend(
    backend_name: str,
    *,
    seed: int = 0,
    cases: int = 20,
    device: object = None,
    operations: Iterable[str] | None = None,
    gradient: Gradient | None = None,
) -> Report:
    """Compare every operation of a backend with formulas that share no code with it.

    Each operation is given ``cases`` random problems of awkward shapes in float64 and again in float32, and
    must agree with NumPy, SciPy and POT: to 1e-10 and 1e-5 of the quantity's scale. Gradients, if the backend
    has any, must agree with central differences (step 1e-6) of the formulas to 1e-5.

    Args:
        backend_name: one of `mlot.available_backends`.
        seed: of the random problems, an integer >= 0.
        cases: random problems for each quantity; the first eight have shapes that trip code up.
        device: what to pass to the backend's ``from_numpy``.
        operations: which of `OPERATIONS` to check; ``None`` means all.
        gradient: how to differentiate through the backend. ``None`` means the backend's attribute
            ``gradient`` if it has one, torch's autograd for the backend ``"torch"``, and no gradients else.

    Returns:
        `Report`. A quantity whose oracle is not installed is reported as skipped, never as passed.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or an operation is unknown.
        ImportError: the backend needs a package that is not installed.

    >>> report = check_backend("numpy", cases=1, operations=("had", "sl"))
    >>> report.passed
    True
    """
    _checks.count("seed", seed, least=0)
    _checks.count("cases", cases)
    wanted = _operations(operations)
    records = []
    subjects = {single: Subject(backend_name, device, single, gradient) for single in (False, True)}
    for operation in wanted:
        check = _CHECKS[operation]
        records.append(_run(subjects[False], check, operation, operation, DOUBLE, seed, cases))
        if operation == "sinkhorn":
            by_pot = _transport.check_sinkhorn_by_pot
            records.append(
                _run(subjects[False], by_pot, operation, "sinkhorn against POT", DOUBLE, seed, cases)
            )
        if operation not in _WITHOUT_PRECISION:
            records.append(
                _run(subjects[True], check, operation, f"{operation} in float32", SINGLE, seed, cases)
            )
        differentiated = _GRADIENTS.get(operation)
        if differentiated is not None and subjects[False].gradient is not None:
            quantity = f"gradient of {operation}"
            records.append(_run(subjects[False], differentiated, operation, quantity, GRADIENT, seed, cases))
    if subjects[False].gradient is None and any(operation in _GRADIENTS for operation in wanted):
        why = "the backend has none, or no gradient= was given"
        records.append(Record("gradient", "gradients", backend_name, 0, 0.0, GRADIENT, False, why))
    return Report(tuple(records))


def assert_conforms(
    backend_name: str,
    *,
    seed: int = 0,
    cases: int = 20,
    device: object = None,
    operations: Iterable[str] | None = None,
    gradient: Gradient | None = None,
) -> Report:
    """Require a backend to pass `check_backend`, whose arguments these are.

    Returns:
        The report. A warning says what could not be checked because a package is not installed.

    Raises:
        AssertionError: a quantity failed; the message names each failed operation.
        TypeError, ValueError, ImportError: as `check_backend`.
    """
    report = check_backend(
        backend_name, seed=seed, cases=cases, device=device, operations=operations, gradient=gradient
    )
    if not report.passed:
        failed = [record for record in report if not record.passed and not record.skipped]
        names = ", ".join(report.failed_operations) or "nothing could be checked"
        explained = "\n".join(notes(failed))
        raise AssertionError(
            f"backend {backend_name!r} does not conform: {names}\n{explained}\n\n{table(report)}"
        )
    missing = {record.quantity: record.needs for record in report if record.needs}
    if missing:
        what = ", ".join(f"{quantity} (needs {package})" for quantity, package in missing.items())
        warnings.warn(f"backend {backend_name!r}: not checked: {what}", stacklevel=2)
    return report


def _operations(names: Iterable[str] | None) -> tuple[str, ...]:
    if names is None:
        return OPERATIONS
    if isinstance(names, str):
        raise TypeError(f"operations: expected several names, such as ({names!r},), got a string")
    chosen = tuple(names)
    for name in chosen:
        _checks.choice("operations", name, OPERATIONS)
    if not chosen:
        raise ValueError("operations: expected at least one name or None, got none")
    return chosen


def _run(
    subject: Subject, check: Check, operation: str, quantity: str, tolerance: float, seed: int, cases: int
) -> Record:
    """Run one check over its problems and keep the worst error."""
    worst, detail, done = 0.0, "", 0
    for n in range(cases):
        rng = np.random.default_rng((seed, n, zlib.crc32(operation.encode())))
        subject.reset()
        try:
            for what, error in check(subject, rng, n):
                done = n + 1
                if not error <= worst:
                    worst = error if error == error else np.inf
                    detail = f"case {n}: {what}"
            if worst < np.inf:
                subject.check_arguments()
        except MissingPackageError as missing:
            return Record(
                operation, quantity, subject.name, 0, 0.0, tolerance, False, f"needs {missing}", str(missing)
            )
        except MismatchError as mismatch:
            worst, detail, done = np.inf, f"case {n}: {mismatch}", n + 1
        except Exception as error:  # whatever a backend raises is a failure to report
            worst, detail, done = np.inf, f"case {n}: {type(error).__name__}: {error}", n + 1
        if worst == np.inf:
            break
    passed = done > 0 and worst <= tolerance
    return Record(operation, quantity, subject.name, done, float(worst), tolerance, passed, detail)
