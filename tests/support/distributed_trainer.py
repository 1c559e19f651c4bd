"""Runs of the Trainer, by one process or several alike; `test_distributed_trainer` starts it with launchers.

The runs to do come as JSON. Rank 0 writes the logs and the final weights of each.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

import training_cases
from distributed_launch import leave
from mlot.distributed import unsharded
from mlot.training import MultiLevelOTTrainer


def run(
    folder: Path, *, examples: int, held_out: int = 0, stop_at: int = 0, **settings: Any
) -> dict[str, Any]:
    """Train; return the logs and the final weights, whole on every process.

    Args:
        folder: for checkpoints.
        examples: number of examples to train on.
        held_out: number of examples to evaluate on after every epoch.
        stop_at: step to stop at; the rest is done by another trainer, resumed from the checkpoint.
        settings: of the Trainer.
    """

    def make() -> MultiLevelOTTrainer:
        trainer = training_cases.make_trainer(
            folder,
            dataset=training_cases.examples()[:examples],
            eval_dataset=training_cases.examples()[-held_out:] if held_out else None,
            **{"learning_rate": 1e-2} | settings,
        )
        assert isinstance(trainer, MultiLevelOTTrainer)
        return trainer

    trainer = make()
    if stop_at:
        trainer.add_callback(StopAt(stop_at))
        trainer.train()
        trainer = make()
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop_at}"))
    else:
        trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return {
        "logs": [entry for entry in trainer.state.log_history if "train_loss" not in entry],
        "weights": {name: unsharded(weight.detach()).clone() for name, weight in state.items()},
        "processes": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
    }


class StopAt(TrainerCallback):
    """Ends training after a step, as if it had been interrupted there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def fsdp_on_the_host() -> None:
    """Let accelerate shard as its FSDP settings say: on processes without accelerators it ignores them."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    made, plugins = AcceleratorState.__init__, []

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugins.extend([fsdp_plugin] if fsdp_plugin is not None else [])
        if plugins and self.distributed_type == DistributedType.MULTI_CPU:  # every instance starts as that
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[-1]

    AcceleratorState.__init__ = init


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fsdp_on_the_host()
    results = {}
    for name, settings in json.loads((folder / "runs.json").read_text()).items():
        results[name] = run(folder / name, **settings)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    if dist.is_initialized():
        leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
