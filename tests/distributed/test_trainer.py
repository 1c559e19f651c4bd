"""The Trainer in two processes, started as users start it, logs and learns what one process does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

from distributed_launch import environment
from distributed_trainer import run
from training_cases import FLOAT32

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "distributed_trainer.py"

#: By default accelerate repeats examples until every process has as many batches.
LEFT_OUT = {"accelerator_config": {"even_batches": False}}

#: Sequences of each process and micro-batch, and steps; one process takes twice as many at a time.
RUNS: dict[str, dict[str, Any]] = {
    "even": {
        "examples": 8,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "held_out": 5,
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 2,
    },
    "resumed": {
        "examples": 8,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "stop_at": 2,
    },
    "uneven last batch": {"examples": 7, "per_device_train_batch_size": 2, "max_steps": 4, **LEFT_OUT},
    "accumulated": {
        "examples": 8,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
    },
    "head without logits": {
        "examples": 7,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "use_linear_head": True,
        **LEFT_OUT,
    },
}

#: What is logged from numbers in the models' own type.
EXACT = {
    *("ce", "had", "sl", "sd", "grad_norm", "paired_share", "teacher_kept_mass", "marginal_error"),
    *("eval_loss", "eval_ce", "eval_bits_per_byte"),
}

SHARDED = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {
        name: run(
            folder / name.replace(" ", "-"),
            **settings | {"per_device_train_batch_size": 2 * settings["per_device_train_batch_size"]},
        )
        for name, settings in RUNS.items()
    }


def together(folder: Path, launcher: list[str]) -> dict[str, Any]:
    (folder / "runs.json").write_text(json.dumps(RUNS))
    command = [sys.executable, "-m", *launcher, str(SCRIPT), str(folder)]
    process = subprocess.Popen(
        command,
        env=environment(SCRIPT),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=450)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it has launched as well
        raise
    assert process.returncode == 0, printed
    found: dict[str, Any] = torch.load(folder / "results.pt")
    return found


def same(found: dict[str, Any], want: dict[str, Any], kind: str, run_name: str) -> None:
    assert found["processes"] == 2
    assert found["kind"] == f"DistributedType.{kind}"
    assert len([entry for entry in want["logs"] if "loss" in entry]) == 4
    for ours, theirs in zip(found["logs"], want["logs"], strict=True):
        assert ours.keys() == theirs.keys(), run_name
        if "loss" in theirs:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2 * FLOAT32), run_name
        for name in EXACT & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-7), (run_name, name)
    assert found["weights"].keys() == want["weights"].keys()
    for name, weight in want["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], weight, rtol=1e-7, atol=1e-9, msg=f"{run_name}, {name}"
        )


def test_torchrun_with_ddp(tmp_path: Path, alone: dict[str, Any]) -> None:
    found = together(tmp_path, ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    for name in RUNS:
        same(found[name], alone[name], "MULTI_CPU", name)


def test_accelerate_launch_with_fsdp2(tmp_path: Path, alone: dict[str, Any]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(SHARDED)
    launcher = ["accelerate.commands.launch", "--config_file", str(settings), "--main_process_port", "0"]
    found = together(tmp_path, launcher)
    for name in RUNS:
        same(found[name], alone[name], "FSDP", name)


def test_resuming_is_going_on(alone: dict[str, Any]) -> None:
    for name, weight in alone["even"]["weights"].items():
        torch.testing.assert_close(alone["resumed"]["weights"][name], weight, rtol=1e-12, atol=0)


def test_held_out_text_is_evaluated_after_every_epoch(alone: dict[str, Any]) -> None:
    assert sum("eval_bits_per_byte" in entry for entry in alone["even"]["logs"]) == 2


def test_training_moved_the_weights(alone: dict[str, Any]) -> None:
    from training_cases import make_student

    before = make_student().state_dict()
    for result in alone.values():
        assert max(float((weight - before[n]).abs().max()) for n, weight in result["weights"].items()) > 1e-3
