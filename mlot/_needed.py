"""Packages that a part of the library cannot do without, looked for before it imports them."""

from __future__ import annotations

from importlib.util import find_spec


def require_packages(module: str, extra: str, names: tuple[str, ...]) -> None:
    """Raise `ImportError` that names the packages a module lacks, and the extra that brings them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'{module} needs {", ".join(missing)}, not installed here; pip install "mlot[{extra}]"',
            name=missing[0],
        )
