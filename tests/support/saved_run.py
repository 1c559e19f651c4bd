"""A run that saves a teacher, to be killed in the middle: ``saved_run.py FOLDER [PAUSE AFTER]``.

It dies of SIGKILL, at the hands of its own code so that the moment is exact: at the call of a named function
(``write``, ``fsync``, ``replace``) of the so many-th time. Without those arguments it runs to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from mlot.saved import TeacherWriter
from saved_cases import cases, manifest, select, together

EXAMPLES, PER_SHARD, BATCH = 20, 3, 2


def die_at(point: str, count: int) -> None:
    """Kill the process instead of, or within, the so many-th durable step of that kind."""
    left = [count]

    def due() -> bool:
        left[0] -= 1
        return left[0] < 0

    if point == "write":  # half of the content is in the temporary file
        opened = Path.open

        def torn(path: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
            file = opened(path, mode, *args, **kwargs)
            if mode == "xb":
                written = file.write

                class Torn:
                    def __enter__(self) -> Torn:
                        return self

                    def __exit__(self, *_: object) -> None:
                        file.close()

                    def write(self, content: bytes) -> None:
                        if due():
                            written(content[: len(content) // 2])
                            file.flush()
                            os.kill(os.getpid(), signal.SIGKILL)
                        written(content)

                    def __getattr__(self, name: str) -> object:
                        return getattr(file, name)

                return Torn()
            return file

        Path.open = torn
        return
    owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[point]
    original = getattr(owner, name)

    def dying(*args: object) -> object:
        if due():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, dying)


def main(folder: str) -> None:
    made, examples = manifest(), cases(EXAMPLES)
    with TeacherWriter(folder, made, examples_per_shard=PER_SHARD) as writer:
        missing = set(writer.missing([each.key for each in examples]))
        todo = [each for each in examples if each.key in missing]
        for start in range(0, len(todo), BATCH):
            some = todo[start : start + BATCH]
            logits, mask, present = together(some)
            writer.add([each.key for each in some], select(logits, mask, made), present)


if __name__ == "__main__":
    np.seterr(all="raise")
    if len(sys.argv) > 2:
        die_at(sys.argv[2], int(sys.argv[3]))
    main(sys.argv[1])
