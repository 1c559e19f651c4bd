"""What a saved teacher was made of and how: the manifest, and how two of them are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np

from mlot import _checks
from mlot._storage import DTYPES, parsed
from mlot._typing import Kept
from mlot._version import __version__
from mlot.config import MultiLevelOTConfig
from mlot.saved._keys import KEY_BYTES

FORMAT = "mlot.saved.1"
MANIFEST = "manifest.json"

#: Says what made the files, and does not change what they mean.
_INFORMATIVE = "mlot_version"
#: What can be kept of a teacher; the first is what folders hold that do not say it.
KEPT: tuple[Kept, ...] = get_args(Kept)
#: What manifests of traces do not need to say.
_NOT_OF_TRACES = ("keep", "student_tokenizer_fingerprint")

#: Type and shape of what is stored, by name.
Stored: TypeAlias = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


@dataclass(frozen=True)
class Manifest:
    """What a saved teacher is: of which model and tokenizer, what was kept, and how it is stored.

    Two manifests that agree in everything but ``mlot_version`` describe the same teacher. The model has a
    name, not a path: its folder may be moved.

    Attributes:
        model: name of the model, such as the last part of its path.
        model_fingerprint: digest of its weights and configuration.
        tokenizer_fingerprint: what `fingerprint` returns for its tokenizer.
        vocab_size: :math:`V`, the teacher's, from which columns or tokens were selected; with
            ``keep="targets"`` the student's.
        k: columns kept of each example; or tokens kept of each position.
        revision: of the model, or ``None``.
        temperature: of the log-probabilities.
        extra_temperatures: further ones that the traces serve; none if others than traces are kept.
        standardize: whether logits were divided by their standard deviation first.
        dtype: storage type of the log-probabilities: ``"float16"``, ``"float32"`` or ``"float64"``.
        settings: other settings it was made with, names to strings, numbers, booleans or ``None``.
        keep: ``"traces"``, the heaviest columns of each example; ``"likeliest"``, the teacher's likeliest
            tokens of each of its positions; or ``"targets"``, what it says in the student's tokens at each of
            the student's positions.
        student_tokenizer_fingerprint: of the tokenizer whose tokens targets are; ``None`` without targets.
        mlot_version: version of the library that began the folder.
        format: of the files.

    Raises:
        TypeError, ValueError: a field is of the wrong kind or out of range.

    >>> from mlot.saved import Manifest
    >>> made = Manifest("teacher", "0f", "a1", vocab_size=32000, k=50)
    >>> made.differences({"k": 20, "dtype": "float16"})
    {'k': (20, 50)}
    """

    model: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    k: int
    revision: str | None = None
    temperature: float = 1.0
    extra_temperatures: tuple[float, ...] = (2.0,)
    standardize: bool = False
    dtype: str = "float16"
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    keep: Kept = "traces"
    student_tokenizer_fingerprint: str | None = None
    mlot_version: str = __version__
    format: str = FORMAT

    def __post_init__(self) -> None:
        for name in ("model", "model_fingerprint", "tokenizer_fingerprint", "mlot_version", "format"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}: expected a string, got {type(getattr(self, name)).__name__}")
        for name in ("revision", "student_tokenizer_fingerprint"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name}: expected a string or None, got {type(value).__name__}")
        _checks.count("vocab_size", self.vocab_size)
        _checks.count("k", self.k)
        if self.k > self.vocab_size:
            raise ValueError(f"k: expected at most vocab_size, {self.vocab_size}, got {self.k}")
        extra = _checks.temperatures(self.temperature, self.extra_temperatures)
        _checks.flag("standardize", self.standardize)
        _checks.choice("dtype", self.dtype, tuple(DTYPES))
        check_kept(self.keep, extra, self.standardize)
        if (self.keep == "targets") != (self.student_tokenizer_fingerprint is not None):
            raise ValueError(
                "student_tokenizer_fingerprint: expected one with keep='targets' and with nothing else, got "
                f"{self.student_tokenizer_fingerprint!r} with keep={self.keep!r}"
            )
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings: expected a mapping, got {type(self.settings).__name__}")
        for name, value in self.settings.items():
            plain = value is None or isinstance(value, str | int | float)
            if (
                not isinstance(name, str)
                or not plain
                or (isinstance(value, float) and not math.isfinite(value))
            ):
                raise TypeError(
                    "settings: expected strings, finite numbers, booleans and None under names, "
                    f"got {value!r} under {name!r}"
                )
        # Equal settings must be equal, and be written, in one way.
        extra = tuple(t for t in dict.fromkeys(extra) if t != self.temperature)
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "extra_temperatures", extra)
        object.__setattr__(self, "settings", dict(sorted(self.settings.items())))

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            TypeError, ValueError: it is no manifest, or one of another format.
        """
        content = parsed(text)
        if not isinstance(content, dict):
            raise TypeError(f"expected an object, got {type(content).__name__}")
        if content.get("format") != FORMAT:
            raise ValueError(f"format: expected {FORMAT!r}, got {content.get('format')!r}")
        known = {each.name for each in fields(Manifest)}
        if set(content) | set(_NOT_OF_TRACES) != known:
            raise ValueError(f"fields: expected {sorted(known)}, got {sorted(content)}")
        return Manifest(**{**content, "extra_temperatures": tuple(content["extra_temperatures"])})

    @property
    def example_arrays(self) -> Stored:
        """What is stored of each example beside its key, sizes and mask, in the order of the files."""
        if self.keep != "traces":
            return {}
        return {"columns": (np.dtype(np.int32), (self.k,)), "column_mass": (self._wide, (self.k,))}

    @property
    def position_arrays(self) -> Stored:
        """What is stored of each position that counts, in the order of the files.

        Ids have the smallest unsigned type that has one number more, :math:`V`, which stands for none.
        """
        log_probs = (np.dtype(DTYPES[self.dtype]), (self.k,))
        if self.keep == "traces":
            normalizers = (self._wide, (len(self.extra_temperatures),))
            return {"log_probs": log_probs, "log_normalizers": normalizers}
        listed: Stored = {"log_probs": log_probs, "ids": (np.min_scalar_type(self.vocab_size), (self.k,))}
        if self.keep == "targets":
            listed |= {"rest": (self._wide, ()), "served": (self._wide, ())}
        return listed

    @property
    def bytes_per_position(self) -> int:
        """Size on disk of what is stored of a position that counts."""
        return _size(self.position_arrays)

    @property
    def bytes_per_example(self) -> int:
        """Size on disk of the key and sizes of an example, and of its columns; its mask is not counted."""
        return KEY_BYTES + 4 + 4 + _size(self.example_arrays)

    @property
    def _wide(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @property
    def digest(self) -> str:
        """Digest of everything that tells one saved teacher from another."""
        content = {name: value for name, value in self.as_dict().items() if name != _INFORMATIVE}
        if self.keep == "traces":
            content = {name: value for name, value in content.items() if name not in _NOT_OF_TRACES}
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    def differences(self, expected: Manifest | Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Compare with what is expected, field by field.

        Args:
            expected: another manifest, of which all is compared but ``mlot_version``; or some fields by their
                names, of which each is compared. ``settings`` given by name are compared one by one.

        Returns:
            Fields that differ, each with what was expected and what there is.

        Raises:
            TypeError, ValueError: ``expected`` is neither, or names a field that there is not.
        """
        own = self.as_dict()
        if isinstance(expected, Manifest):
            wanted = {name: value for name, value in expected.as_dict().items() if name != _INFORMATIVE}
            names = {*wanted["settings"], *own["settings"]}
            wanted["settings"] = {name: wanted["settings"].get(name) for name in sorted(names)}
        elif isinstance(expected, Mapping):
            wanted = dict(expected)
        else:
            raise TypeError(f"expect: expected a Manifest or a mapping, got {type(expected).__name__}")
        unknown = [name for name in wanted if name not in own]
        if unknown:
            raise ValueError(f"expect: expected fields of a Manifest ({', '.join(own)}), got {unknown[0]!r}")
        if not isinstance(wanted.get("settings", {}), Mapping):
            raise TypeError(f"expect: expected settings as a mapping, got {wanted['settings']!r}")
        if isinstance(wanted.get("extra_temperatures"), list):
            wanted["extra_temperatures"] = tuple(wanted["extra_temperatures"])
        different = {
            name: (value, own[name])
            for name, value in wanted.items()
            if name != "settings" and value != own[name]
        }
        for name, value in wanted.get("settings", {}).items():
            if value != own["settings"].get(name):
                different[f"settings[{name!r}]"] = value, own["settings"].get(name)
        return different

    def require(self, expected: Manifest | Mapping[str, Any], folder: Path) -> None:
        """Raise `ValueError` that says what differs, unless this is what is expected; see `differences`."""
        different = self.differences(expected)
        if different:
            listed = "; ".join(f"{name}: expected {a!r}, it has {b!r}" for name, (a, b) in different.items())
            raise ValueError(f"folder: the teacher saved in {str(folder)!r} is another one: {listed}")

    def serves(self, config: MultiLevelOTConfig) -> None:
        """Raise `ValueError` unless the loss can be computed from what is kept with these settings."""
        if self.keep != "likeliest" and (self.keep == "targets") != (config.matching == "text"):
            wanted = "'targets' or 'likeliest'" if config.matching == "text" else "'traces' or 'likeliest'"
            raise ValueError(
                f"keep: expected a teacher saved with {wanted} for matching={config.matching!r}, "
                f"got {self.keep!r}"
            )
        if config.temperature != self.temperature:
            raise ValueError(
                f"temperature: expected a teacher saved at {config.temperature}, got {self.temperature}"
            )
        if config.standardize != self.standardize:
            raise ValueError(
                f"standardize: expected a teacher saved with {config.standardize}, got {self.standardize}"
            )
        if self.keep == "likeliest":
            return
        wanted_k = self.vocab_size if config.k is None else min(config.k, self.vocab_size)
        if self.keep == "targets":
            if wanted_k != self.k:
                raise ValueError(f"k: expected targets saved with k={wanted_k}, as the loss, got {self.k}")
            return
        if wanted_k > self.k:
            raise ValueError(f"k: expected a teacher saved with at least {wanted_k} columns, it has {self.k}")
        served = (self.temperature, *self.extra_temperatures)
        if not any(math.isclose(each, config.sequence_temperature, rel_tol=1e-12) for each in served):
            raise ValueError(
                f"sequence_temperature: expected a saved teacher that serves {config.sequence_temperature}, "
                f"it serves {', '.join(map(str, served))}"
            )


def check_kept(keep: Any, extra_temperatures: tuple[float, ...], standardize: bool) -> None:
    """Require what can be kept, and refuse what traces alone serve."""
    _checks.choice("keep", keep, KEPT)
    if keep == "traces":
        return
    if extra_temperatures:
        raise ValueError(f"extra_temperatures: expected none with keep={keep!r}, got {extra_temperatures}")
    if standardize:
        raise ValueError(f"standardize: expected False with keep={keep!r}, got True")


def _size(arrays: Stored) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in arrays.values())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"folder: expected a saved teacher, found no {MANIFEST} in {str(folder)!r}")
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"folder: {str(path)!r} is damaged or no manifest: {error}") from error
