"""The command line: which study, in which folder, by how many processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
Train the same small student from the same start on the same real text by every loss, with
SmolLM2-135M-Instruct as the teacher, tuned equally, and compare them on held-out text. Every finished
training is a file in the work folder: the command resumes where it stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and write its results; returns 2 where something is missing, 130 when stopped."""
    options = _parser().parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # before libraries that ask are loaded, here and in workers
    import torch

    from benchmarks.study.report import write
    from benchmarks.study.sizes import SIZES
    from benchmarks.study.work import OtherStudyError, Study

    torch.set_num_threads(1)
    folder = options.work or Path("build") / f"study-{options.size}-{options.device.replace(':', '')}"
    try:
        study = Study(SIZES[options.size], folder, options.device)
        if not options.report:
            study.run(options.workers, lambda line: print(line, flush=True))
    except (OtherStudyError, FileNotFoundError) as error:
        print(f"benchmarks.study: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes from {folder}", file=sys.stderr)
        return 130
    write(study, options.results or folder / "results")
    print(f"results in {options.results or folder / 'results'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "large"),
        default="small",
        help="tiny: a minute, shows nothing; small: two cores, hours; large: a GPU (small)",
    )
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes of one thread (1)")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="work folder (build/study-SIZE-DEVICE)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where results go (in the work folder)")
    parser.add_argument("--report", action="store_true", help="train nothing, write what is finished")
    return parser


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {value}")
    return value
