"""Runs that `test_training_processes` compares between one process and two; rank 0 writes what came out."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from distributed_launch import leave
from training_cases import examples, make_llama, make_trainer


def untied():
    return make_llama(0, vocab_size=270, intermediate_size=24, tie_word_embeddings=False)


def trainer(folder, size, **settings):
    """All eight examples in every step, and seven held out in batches of two on each process."""
    return make_trainer(
        folder,
        model=untied(),
        eval_dataset=examples()[:7],
        per_device_train_batch_size=size,
        per_device_eval_batch_size=2,
        logging_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=4,
        use_linear_head=True,
        **settings,
    )


def runs(folder, size):
    """Logs of a run, of the rest of it after a checkpoint, and of one with local means."""
    found = {}
    whole = trainer(folder / "whole", size)
    whole.train()
    found["whole"] = whole.state.log_history
    rest = trainer(folder / "whole", size)
    rest.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-3"))
    found["resumed"] = rest.state.log_history
    local = trainer(folder / "local", size, average_tokens_across_devices=False)
    local.train()
    found["local"] = local.state.log_history
    return found


def main(folder):
    torch.set_num_threads(1)
    found = runs(folder, 4)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
