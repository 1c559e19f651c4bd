"""The command line: which study, in which folder, by how many processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_RESULTS = Path(__file__).parent.parent / "results"
_DESCRIPTION = """\
Train the same small student from the same start on the same real text by ten losses, tuned equally, and
compare them on held-out text. Every finished training is a file in the work folder: the command resumes where
it stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and write its results; returns 2 if the folder is of another study, 130 when stopped."""
    options = _parser().parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before libraries that ask are loaded, here and in workers
    import torch

    from benchmarks.efficacy.outcome import write_results
    from benchmarks.efficacy.sizes import SIZES
    from benchmarks.efficacy.work import OtherStudyError, Study

    torch.set_num_threads(options.threads)
    size = SIZES[options.size]
    name = "efficacy" if options.size == "small" else f"efficacy-{options.size}"
    folder = options.work or Path("build") / f"efficacy-{options.size}-{options.device.replace(':', '')}"
    results = options.results or _RESULTS / name
    try:
        study = Study(size, folder, options.device)
        if not options.report:
            study.run(options.workers, lambda line: print(line, flush=True))
    except OtherStudyError as error:
        print(f"benchmarks.efficacy: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {folder}", file=sys.stderr)
        return 130
    if not study.finished():
        print(f"benchmarks.efficacy: error: --report: nothing is finished in {folder} yet", file=sys.stderr)
        return 2
    found = write_results(study, results, options.workers)
    print(f"\n{found}\n\nresults in {results}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.efficacy",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "large"),
        default="small",
        help="tiny: seconds, shows nothing; small: two cores, an hour or two; large: a GPU (small)",
    )
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--threads", type=_count, default=1, metavar="N", help="threads of each process (1)")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="work folder (build/efficacy-SIZE-DEVICE)")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where results go (benchmarks/results/efficacy)"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing, write what the finished part of the study found"
    )
    return parser


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {value}")
    return value
