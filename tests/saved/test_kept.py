"""What ``matching="text"`` needs of a saved teacher: likeliest tokens, and targets in the student's tokens."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlot
from mlot.saved import Manifest, SavedTeacher, TeacherWriter, example_key, verify_folder
from problems import BACKENDS, as_numpy
from saved_cases import WIDE, Case, cases, files_of, together

backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
kept = pytest.mark.parametrize("keep", ["likeliest", "targets"])
FIELDS = {"likeliest": ("ids", "logprobs"), "targets": ("ids", "log_probs", "rest", "served")}


def manifest(keep: str, **changes: object) -> Manifest:
    student = "5e" if keep == "targets" else None
    made = Manifest(
        "teacher", "0f", "a1", 40, 6, extra_temperatures=(), keep=keep, student_tokenizer_fingerprint=student
    )
    return replace(made, **changes)


def live(keep: str, examples: list[Case], k: int, *, left: bool = False) -> tuple:
    """What a teacher's logits give without storage, its mask, and where there are tokens."""
    logits, mask, present = together(examples, left=left)
    log_p = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    ids = np.argsort(-log_p, axis=2, kind="stable")[..., :k]
    ids[~mask] = -1
    log_p = np.where(ids < 0, -np.inf, np.take_along_axis(log_p, ids, 2))
    if keep == "likeliest":
        return mlot.TopKLogprobs(ids, log_p, vocab_size=40), mask, present
    served = np.where(mask, np.random.default_rng(1).uniform(0.1, 1, mask.shape), 0)
    # some tokens fewer at every other position
    ids[:, ::2, k - 2 :] = -1
    log_p = np.where(ids < 0, -np.inf, log_p)
    rest = np.where(mask, 1 - np.exp(log_p).sum(-1), 0)
    return mlot.TextTargets(ids, log_p, rest, served, 40), mask, present


def save(
    keep: str, examples: list[Case], folder: Path, made: Manifest | None = None, **where: object
) -> tuple:
    made = manifest(keep) if made is None else made
    source, mask, present = live(keep, examples, made.k, **where)
    with TeacherWriter(folder, made, examples_per_shard=3) as writer:
        writer.add([each.key for each in examples], source, present)
    return SavedTeacher(folder, expect=made), source, mask


def in_dtype(value: np.ndarray, name: str, dtype: str) -> np.ndarray:
    """What is read of what was given: log-probabilities went through the stored type."""
    if name == "ids":
        return value
    through = dtype if "log" in name else WIDE[dtype]
    return value.astype(through).astype(WIDE[dtype])


@backends
@dtypes
@kept
def test_what_is_read_is_what_was_given_but_for_the_type(
    keep: str, dtype: str, backend: str, tmp_path: Path
) -> None:
    examples = cases(7)
    saved, source, mask = save(keep, examples, tmp_path, manifest(keep, dtype=dtype))
    saved.verify()
    read = saved.batch([each.key for each in examples], backend=backend)
    assert type(read) is type(source)
    assert read.shape == source.shape
    for name in FIELDS[keep]:
        got, want = getattr(read, name), in_dtype(getattr(source, name), name, dtype)
        assert str(got.dtype).endswith(want.dtype.name)
        got = as_numpy(got)
        np.testing.assert_array_equal(got, want, err_msg=name)
    assert saved.positions == mask.sum()
    padded = saved.batch(range(7), length=12)
    assert padded.shape == (7, 12, 40)
    assert (padded.ids[:, 9:] == -1).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    keep=st.sampled_from(["likeliest", "targets"]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    vocabulary=st.sampled_from([40, 255, 256, 65535, 65536]),
)
def test_round_trip(tmp_path_factory, seed, keep, dtype, vocabulary) -> None:
    """In any order and padding, also where the number of ids is the last that a type has."""
    rng = np.random.default_rng(seed)
    examples = cases(5, seed)
    made = manifest(keep, dtype=dtype, vocab_size=vocabulary)
    source, _, present = live(keep, examples, made.k, left=bool(seed % 2))
    source = source.map(
        lambda array: array if array is not source.ids else np.where(array < 0, -1, vocabulary - 1 - array)
    )
    source = (
        replace(source, vocab_size=vocabulary)
        if keep == "targets"
        else mlot.TopKLogprobs.trusted(source.ids, source.logprobs, vocab_size=vocabulary, temperature=1.0)
    )
    folder = tmp_path_factory.mktemp("t")
    with TeacherWriter(folder, made, examples_per_shard=2) as writer:
        writer.add([each.key for each in examples], source, present)
    saved = SavedTeacher(folder)
    saved.verify()
    order = rng.integers(0, 5, 4)
    read = saved.batch([examples[n].key for n in order])
    for row, n in enumerate(order):
        length = len(examples[n].ids)
        for name in FIELDS[keep]:
            want = in_dtype(getattr(source, name)[n][present[n]], name, dtype)
            np.testing.assert_array_equal(getattr(read, name)[row, :length], want)
    expected = {40: 1, 255: 1, 256: 2, 65535: 2, 65536: 4}[vocabulary]
    per_token = np.dtype(dtype).itemsize + expected
    more = 2 * np.dtype(WIDE[dtype]).itemsize if keep == "targets" else 0
    assert made.bytes_per_position == made.k * per_token + more
    masks = sum(-(-len(each.ids) // 8) for each in examples)
    content = saved.positions * made.bytes_per_position + 5 * made.bytes_per_example + masks
    assert content <= saved.nbytes < content + 2000 * 3


@kept
def test_bounds_hold_for_every_student(keep: str, tmp_path: Path) -> None:
    """HAD and SL over the kept tokens, and the rest, of any student differ by no more than is said."""
    saved, source, mask = save(keep, cases(7), tmp_path)
    read, error = saved.batch(range(7)), saved.storage_error
    logs = FIELDS[keep][1]

    def distribution(held: object) -> np.ndarray:
        t = np.exp(getattr(held, logs).astype(np.float64))[mask]
        return np.column_stack([t, held.rest[mask]]) if keep == "targets" else t

    one, two = distribution(source), distribution(read)
    rng = np.random.default_rng(0)
    for _ in range(20):
        s = rng.dirichlet(np.ones(one.shape[1]), size=len(one))
        had = np.abs(np.abs(one - s).sum(1) - np.abs(two - s).sum(1))
        assert had.max() <= error.had_max * (1 + 1e-9)
        sl = [-(t * np.log(s)).sum() for t in (one, two)]
        assert abs(sl[0] - sl[1]) <= error.sl_relative * sl[0] * (1 + 1e-9)
    assert 0 < error.had_mean <= error.had_max < 1e-2
    assert error.positions == mask.sum()
    listed = np.exp(getattr(source, logs))[mask].sum(1).mean()
    assert error.kept_mass == pytest.approx(listed, rel=1e-12)


@kept
def test_files_resume_and_are_told_from_others(keep: str, tmp_path: Path) -> None:
    examples = cases(7)
    save(keep, examples, tmp_path)
    whole = files_of(tmp_path)
    (tmp_path / "00001.safetensors").unlink()
    assert files_of(save(keep, examples, tmp_path)[0].folder) == whole
    for other in ({"k": 5}, {"dtype": "float32"}, {"temperature": 2.0}, {"vocab_size": 41}):
        with pytest.raises(ValueError, match="another one: "):
            TeacherWriter(tmp_path, manifest(keep, **other))
    with pytest.raises(ValueError, match=f"keep: expected 'traces', it has '{keep}'"):
        SavedTeacher(tmp_path, expect={"keep": "traces"})
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace(f'"keep": "{keep}"', '"keep": "traces"'))
    with pytest.raises(ValueError, match="is damaged|belongs to another"):
        SavedTeacher(tmp_path)


@kept
def test_flipped_bits_are_found(keep: str, tmp_path: Path) -> None:
    """By `verify` at the latest; ids that are none are found on reading."""
    save(keep, cases(3), tmp_path)
    path = tmp_path / "00000.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = np.random.default_rng(0).integers(header, len(whole), 60).tolist()
    for place in places:
        torn = bytearray(whole)
        torn[place] ^= 0x80
        path.write_bytes(torn)
        assert verify_folder(tmp_path)["00000.safetensors"] is not None
    start = json.loads(whole[8:header])["ids"]["data_offsets"][0]
    torn = bytearray(whole)
    torn[header + start] = 200
    path.write_bytes(torn)
    with pytest.raises(ValueError, match="00000.safetensors' is damaged .* ids: expected 0 to 40, got 200"):
        SavedTeacher(tmp_path).batch(range(3))


def test_manifests_of_older_folders_are_of_traces(tmp_path: Path) -> None:
    made = Manifest("teacher", "0f", "a1", vocab_size=40, k=6)
    content = json.loads(made.to_json())
    del content["keep"], content["student_tokenizer_fingerprint"]
    assert Manifest.from_json(json.dumps(content)) == made
    assert made.digest == "768c240257a3825080f3ac1c5cbcc150"


def test_what_is_refused(tmp_path: Path) -> None:
    for settings, error, message in (
        ({"keep": "most"}, ValueError, "^keep: expected one of"),
        ({"keep": "likeliest"}, ValueError, "^extra_temperatures: expected none with keep='likeliest'"),
        (
            {"keep": "likeliest", "extra_temperatures": (), "standardize": True},
            ValueError,
            "^standardize: expected False with keep='likeliest', got True",
        ),
        (
            {"keep": "targets", "extra_temperatures": ()},
            ValueError,
            "^student_tokenizer_fingerprint: expected one with keep='targets' and with nothing else, got None",
        ),
        ({"student_tokenizer_fingerprint": "5e"}, ValueError, "^student_tokenizer_fingerprint: expected one"),
        (
            {"student_tokenizer_fingerprint": 5},
            TypeError,
            "^student_tokenizer_fingerprint: expected a string",
        ),
    ):
        with pytest.raises(error, match=message):
            Manifest("teacher", "0f", "a1", vocab_size=40, k=6, **settings)
    examples = cases(2)
    keys = [each.key for each in examples]
    likeliest, targets = (live(keep, examples, 6)[0] for keep in ("likeliest", "targets"))
    nan = np.where(likeliest.ids >= 0, np.nan, likeliest.logprobs)
    for keep, source, error, message in (
        (
            "likeliest",
            targets,
            TypeError,
            "^traces: expected TopKLogprobs, since .* 'likeliest', got .*TextTargets",
        ),
        (
            "targets",
            likeliest,
            TypeError,
            "^traces: expected TextTargets, since .*'targets', got .*TopKLogprobs",
        ),
        ("likeliest", live("likeliest", examples, 5)[0], ValueError, "^traces: expected k=6, .*, got 5"),
        ("targets", live("targets", examples, 5)[0], ValueError, "^traces: expected k=6, .*, got 5"),
        (
            "targets",
            replace(targets, vocab_size=41),
            ValueError,
            "^traces: expected vocab_size=40, .*, got 41",
        ),
        ("targets", replace(targets, temperature=2.0), ValueError, "^traces: expected temperature=1.0, as"),
        (
            "likeliest",
            replace(likeliest, tail="renormalize"),
            ValueError,
            "^traces: expected tail='fitted', which",
        ),
        ("targets", replace(targets, rest=targets.rest[:, 1:]), ValueError, r"^traces.rest: expected \(2, "),
        (
            "likeliest",
            mlot.TopKLogprobs.trusted(likeliest.ids, nan, vocab_size=40, temperature=1.0),
            ValueError,
            "got NaN",
        ),
    ):
        with TeacherWriter(tmp_path / keep, manifest(keep)) as writer:
            with pytest.raises(error, match=message):
                writer.add(keys, source)
            assert len(writer) == 0


def test_which_loss_a_saved_teacher_serves() -> None:
    text, paper = mlot.MultiLevelOTConfig.text(), mlot.MultiLevelOTConfig.paper()
    traces = Manifest("teacher", "0f", "a1", vocab_size=40, k=40)
    likeliest, targets = manifest("likeliest", k=40), manifest("targets", k=40)
    traces.serves(paper)
    likeliest.serves(paper)
    likeliest.serves(text)
    targets.serves(text)
    for made, config, message in (
        (
            traces,
            text,
            "keep: expected a teacher saved with 'targets' or 'likeliest' for matching='text', got",
        ),
        (
            targets,
            paper,
            "keep: expected a teacher saved with 'traces' or 'likeliest' for matching='optimal'",
        ),
        (targets, replace(text, k=20), "k: expected targets saved with k=20, as the loss, got 40"),
        (targets, replace(text, temperature=2.0), "temperature: expected a teacher saved at 2.0, got 1.0"),
        (likeliest, replace(paper, standardize=True), "standardize: expected a teacher saved with True"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            made.serves(config)


def test_keys_of_both_models_tokens() -> None:
    key = example_key([1, 2], [True, False], [3], [True])
    assert key == example_key([1, 2], [True, False], [3])
    others = [
        example_key([1, 2], [True, False]),
        example_key([1, 2], [True, False], [3], [False]),
        example_key([1, 2], [True, True], [3], [True]),
        example_key([3], [True], [1, 2], [True, False]),
    ]
    assert len({key, *others}) == 5
    with pytest.raises(ValueError, match="^student_mask: expected None without student_ids, got a mask"):
        example_key([1], [True], None, [True])
    with pytest.raises(ValueError, match=r"^student_mask: expected \(2,\), as ids"):
        example_key([1], [True], [1, 2], [True])
