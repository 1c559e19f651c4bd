"""Runs of the Trainer, by one process or several alike; `test_distributed_trainer` starts it with launchers.

The runs to do come as JSON. Rank 0 writes the logs and the final weights of each.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import training_cases
from mlot.distributed import unsharded
from mlot.training import MultiLevelOTTrainer


def run(folder: Path, *, examples: int, **settings: Any) -> dict[str, Any]:
    """Train; return the logs and the final weights, whole on every process."""
    trainer = training_cases.make_trainer(
        folder, dataset=training_cases.examples()[:examples], **{"learning_rate": 1e-2} | settings
    )
    assert isinstance(trainer, MultiLevelOTTrainer)
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return {
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "weights": {name: unsharded(weight.detach()).clone() for name, weight in state.items()},
        "processes": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
    }


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
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
