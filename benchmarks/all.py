"""``python -m benchmarks.all``: every benchmark at its standard sizes, results under benchmarks/results/."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

#: What is run: a name for the files, and the command. The sizes of a CUDA device are those of training.
_EVERYWHERE = {
    "criterion": ["criterion"],
    "loss": ["loss"],
    "transport": ["transport"],
    "transport-2048": ["transport", "--batch", "1", "--length", "2048", "--repeats", "3"],
    "step": ["step", "--repeats", "3"],
    "sweep": ["sweep", "--repeats", "3"],
}
_ON_HOST = {"criterion-2-threads": ["criterion", "--threads", "2"], "align": ["align", "--published"]}
_LARGE = ["--batch", "4", "--length", "1024", "--student-vocabulary", "128256", "--dtype", "bfloat16"]
_ON_CUDA = {
    "criterion-large": ["criterion", *_LARGE, "--teacher-vocabulary", "151936", "--hidden", "1024"],
    "loss-large": ["loss", *_LARGE, "--teacher-vocabulary", "151936"],
    "step-large": ["step", *_LARGE, "--teacher-vocabulary", "151936", "--width", "896", "--layers", "24"],
}


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--only", nargs="+", help="names of the runs to do")
    options = parser.parse_args(arguments)
    kind = options.device.partition(":")[0]
    runs = _EVERYWHERE | (_ON_CUDA if kind == "cuda" else _ON_HOST)
    unknown = sorted(set(options.only or ()) - set(runs))
    if unknown:
        parser.error(f"--only: expected some of {', '.join(runs)}, got {', '.join(unknown)}")
    folder = RESULTS / kind
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.only or runs:
        files = ["--output", str(folder / f"{name}.json"), "--markdown", str(folder / f"{name}.md")]
        if name == "sweep":
            files += ["--plot", str(folder / "sweep.png")]
        # A process for each, so that none measures what another left behind.
        command = [sys.executable, "-m", "benchmarks", *runs[name], "--device", options.device, *files]
        if subprocess.run(command, cwd=RESULTS.parent.parent, check=False).returncode:
            failed.append(name)
    print(f"results under benchmarks/results/{kind}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
