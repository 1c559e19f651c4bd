"""Several processes on this machine that run a list of cases together."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

#: A case gets the rank and the number of processes, and raises where it fails.
Case = Callable[[int, int], None]


def launch(script: str | Path, world: int, folder: Path, *, timeout: float = 450) -> dict[str, str]:
    """Run the cases of a script in so many processes; return what failed in each case, empty for nothing."""
    script = Path(script)
    logs = [folder / f"printed-{rank}.txt" for rank in range(world)]
    running = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(world), str(folder)]
            running.append(
                subprocess.Popen(command, env=environment(script), stdout=out, stderr=subprocess.STDOUT)
            )
    try:
        for process in running:
            process.wait(timeout)
    finally:
        for process in running:
            process.kill()
    failures: dict[str, str] = {}
    for rank, log in enumerate(logs):
        found = folder / f"found-{rank}.json"
        outcomes = json.loads(found.read_text()) if found.exists() else {}
        for name in case_names(script):
            absent = f"process {rank} did not get here; it printed:\n{log.read_text()}"
            if any(outcomes.values()):
                absent = f"process {rank} had failed before: {[n for n, text in outcomes.items() if text]}\n"
            failures[name] = failures.get(name, "") + outcomes.get(name, absent)
    return failures


def report(failures: dict[str, str]) -> str:
    """What failed, case by case."""
    return "\n".join(f"{name}\n{text}" for name, text in failures.items() if text)


def environment(script: Path) -> dict[str, str]:
    """Variables for a process that imports what the script's folder and the project's hold."""
    path = os.pathsep.join([str(script.parents[2]), str(script.parent)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def case_names(script: str | Path) -> list[str]:
    """Names of the cases of a script, in order, without running it."""
    lines = Path(script).read_text().splitlines()
    return [
        line.removeprefix("def ").partition("(")[0]
        for line in lines
        if line.startswith("def ") and line.endswith("(rank: int, world: int) -> None:")
    ]


def leave() -> NoReturn:
    """End this process as soon as all have got here, without the interpreter's way out.

    On that way a thread of gloo that is still at work can abort the process, after everything was done.
    """
    import torch.distributed as dist

    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(script: str, namespace: dict[str, Case]) -> None:
    """Run the cases of a script as one of the processes; stop at the first that fails."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=150),
    )
    outcomes: dict[str, str] = {}
    for name in case_names(script):
        try:
            namespace[name](rank, world)
            outcomes[name] = ""
        except Exception:
            outcomes[name] = f"process {rank}:\n{traceback.format_exc()}\n"
        (folder / f"found-{rank}.json").write_text(json.dumps(outcomes))
        failed = torch.tensor(float(bool(outcomes[name])))
        dist.all_reduce(failed)
        if failed:
            break
    leave()
