"""The conformance suite: what a backend, ours or a plug-in's, must compute.

A package that brings a backend runs it in its own tests::

    import mlot.testing

    def test_conformance():
        mlot.testing.assert_conforms("my_backend")

Nothing here needs pytest, and only the torch backend needs torch. Quantities whose independent solver (POT)
is not installed are reported as skipped.

A backend conforms if every operation of `mlot.Backend`, and the loss made of them, agrees with plain formulas
in float64 and in float32, leaves its arguments as they were, and is not influenced by what a mask excludes.
Ties count as well: between columns of equal mass the lower index comes first, and among equally cheap
matchings the order is kept where it can be. If the backend differentiates, it says how by an attribute
``gradient`` (see `Gradient`) or the caller by the argument of that name, and its gradients must be those of
the formulas, with the selected columns and the matching as constants.
"""

from mlot.testing._report import Record, Report, table
from mlot.testing._run import OPERATIONS, assert_conforms, check_backend
from mlot.testing._subject import Gradient

__all__ = ["OPERATIONS", "Gradient", "Record", "Report", "assert_conforms", "check_backend", "table"]
