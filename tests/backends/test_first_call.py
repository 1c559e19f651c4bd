"""What a fresh process does first: import the library, or compile a loss before anything ran."""

from __future__ import annotations

import subprocess
import sys

import pytest

FUNCTION = """
import torch, mlot
config = mlot.MultiLevelOTConfig(k=4)
def loss(student, teacher):
    return mlot.multi_level_ot(student, teacher, config=config).loss
arguments = torch.randn(2, 5, 30, requires_grad=True), torch.randn(2, 6, 40)
"""
MODULE = """
import torch, mlot.nn
loss = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=4))
arguments = torch.randn(2, 5, 30, requires_grad=True), torch.randn(2, 6, 40)
arguments += torch.randint(30, (2, 5)), torch.randint(40, (2, 6))
"""
COMPILED = """
value = torch.compile(loss, fullgraph=True, backend={backend!r})(*arguments)
value.backward()
compiled, arguments[0].grad = arguments[0].grad, None
expected = loss(*arguments)
expected.backward()
torch.testing.assert_close(value, expected)
torch.testing.assert_close(compiled, arguments[0].grad)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("start", [FUNCTION, MODULE], ids=["function", "module"])
def test_the_first_call_can_be_compiled(start: str, backend: str) -> None:
    run("import warnings; warnings.simplefilter('ignore')" + start + COMPILED.format(backend=backend))


def test_importing_the_library_imports_nothing_heavy() -> None:
    heavy = "('torch', 'ot', 'scipy.optimize', 'scipy.sparse', 'scipy.special', 'importlib.metadata')"
    code = f"import sys, numpy; before = {{*sys.modules}}; import mlot; print([m for m in {heavy} if m in "
    assert run(code + "{*sys.modules} - before])").strip() == "[]"
