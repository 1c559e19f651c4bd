"""One step of GOLD by one process or by several; `test_gold_processes` compares what it does to the weights."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import torch.distributed as dist

import mlot.trl
from distributed_launch import leave
from gold_cases import COMPLETIONS, ONE_STEP, PROMPTS, make_trainer

#: Sequences of each of two processes at a time, and micro-batches; one process takes all four at once.
CUTS = {"batches": (2, 1), "accumulated": (1, 2)}
#: Answers of different lengths in sequences of one length: padding on the left moves positions, which models
#: turn into angles in float32.
TEXT = PROMPTS[0] + COMPLETIONS[0]
PLACES = [n for n, character in enumerate(TEXT) if character == " "][1:8:2]
DATA = ([TEXT[:n] for n in PLACES], [TEXT[n:] for n in PLACES])


def step(folder: Path, size: int, parts: int) -> dict[str, Any]:
    """Changes of the weights by one step over all four examples, and its log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gold import gold_trainer

        trainer = make_trainer(
            gold_trainer,
            folder,
            torch.float64,
            DATA,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            gradient_checkpointing=False,
            uld_crossentropy_weight=0.5,
            **ONE_STEP,
        )
        trainer.uld_loss_fn = mlot.trl.MultiLevelOTLoss.for_trainer(trainer, mlot.MultiLevelOTConfig(k=12))
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
    after = trainer.model.state_dict()
    return {
        "changes": {name: after[name] - value for name, value in before.items()},
        "log": next(entry for entry in trainer.state.log_history if "loss" in entry),
        "processes": trainer.accelerator.num_processes,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    results = {name: step(folder / f"{name}-{rank}", *cut) for name, cut in CUTS.items()}
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
