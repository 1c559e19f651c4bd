"""Runs that are killed: what is left is whole, and resuming gives the files of a run that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import saved_run
from mlot.saved import SavedTeacher, TeacherWriter, verify_folder
from saved_cases import cases, files_of, manifest

pytestmark = pytest.mark.slow

SCRIPT = Path(saved_run.__file__)
SHARDS = -(-saved_run.EXAMPLES // saved_run.PER_SHARD)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    saved_run.main(str(folder))
    files = files_of(folder)
    assert len(files) == SHARDS + 1
    return files


def run(folder: Path, *arguments: object) -> int:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode


def check_what_is_left(folder: Path, whole: dict[str, bytes], shards: int) -> None:
    """Complete files are those of the whole run; anything else is a temporary file, which nobody reads."""
    files = files_of(folder)
    complete = {name: data for name, data in files.items() if not name.startswith(".")}
    assert complete.items() <= whole.items()
    assert len([name for name in complete if name.endswith(".safetensors")]) == shards
    if "manifest.json" in complete:
        saved = SavedTeacher(folder)
        saved.verify()
        assert len(saved) == min(shards * saved_run.PER_SHARD, saved_run.EXAMPLES)


# The manifest is the first file to be written; each file takes two calls of fsync, one for its folder.
@pytest.mark.parametrize(
    ("point", "count", "shards"),
    [
        ("write", 1, 0),
        ("write", 3, 2),
        ("write", SHARDS, SHARDS - 1),
        ("fsync", 5, 2),
        ("replace", 0, 0),
        ("replace", 4, 3),
    ],
)
def test_killed_at_a_point(
    point: str, count: int, shards: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert run(tmp_path, point, count) == -signal.SIGKILL
    check_what_is_left(tmp_path, whole, shards)
    saved_run.main(str(tmp_path))
    assert files_of(tmp_path) == whole


def test_killed_again_and_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Killed within the third file that it writes, a run needs several starts, and ends all the same."""
    for shards in (1, 3, 5):  # the first run writes the manifest, too
        assert run(tmp_path, "write", 2) == -signal.SIGKILL
        check_what_is_left(tmp_path, whole, shards)
    saved_run.main(str(tmp_path))
    assert files_of(tmp_path) == whole


def test_killed_from_outside_at_any_moment(whole: dict[str, bytes], tmp_path: Path) -> None:
    """The moment is the machine's choice, not the test's."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    child = subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path)], env=environment)
    while child.poll() is None and not (tmp_path / "manifest.json").exists():
        time.sleep(0.001)
    time.sleep(random.Random(0).uniform(0, 0.02))
    child.kill()
    child.wait()
    names = [name for name in files_of(tmp_path) if name.endswith(".safetensors")]
    check_what_is_left(tmp_path, whole, len(names))
    saved_run.main(str(tmp_path))
    assert files_of(tmp_path) == whole


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A writer that was killed holds no lock, though its lock file remains."""
    assert run(tmp_path, "write", 2) == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    TeacherWriter(tmp_path, manifest()).close()


def test_torn_temporary_files_are_never_read(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Halves of every size under the names of temporary files: ignored by readers, removed by the next writer."""
    saved_run.main(str(tmp_path))
    shard = whole["00001.safetensors"]
    (tmp_path / "00001.safetensors").unlink()
    for n, size in enumerate((0, 7, 8, 200, len(shard) - 1, len(shard))):
        (tmp_path / f".00001.safetensors.{n:08x}.partial").write_bytes(shard[:size])
    saved = SavedTeacher(tmp_path)
    assert len(saved) == saved_run.EXAMPLES - saved_run.PER_SHARD
    keys = [each.key for each in cases(saved_run.EXAMPLES)]
    assert saved.missing(keys) == keys[saved_run.PER_SHARD : 2 * saved_run.PER_SHARD]
    assert set(verify_folder(tmp_path).values()) == {None}
    saved_run.main(str(tmp_path))
    assert files_of(tmp_path) == whole
