"""The mixin on somebody else's Trainer: TRL's SFTTrainer trains as ours does, without another line."""

from dataclasses import dataclass

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset

from mlot.training import MultiLevelOTMixin, MultiLevelOTTrainingArguments
from training_cases import (
    examples,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
    student_tokenizer,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", [False, True])
def test_sft_trainer_with_the_loss(tmp_path, head):
    from trl import SFTConfig, SFTTrainer

    @dataclass
    class MyArguments(MultiLevelOTTrainingArguments, SFTConfig):
        pass

    class MyTrainer(MultiLevelOTMixin, SFTTrainer):
        pass

    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "use_linear_head": head}
    args = MyArguments(
        str(tmp_path),
        k=6,
        alpha=0.7,
        max_steps=2,
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        learning_rate=5e-5,
        seed=3,
        data_seed=3,
        **settings,
    )
    data = Dataset.from_list(examples())
    trainer = MyTrainer(
        make_student(),
        args,
        make_collator(),
        data,
        data,
        teacher=make_teacher(),
        processing_class=student_tokenizer(),
    )
    assert isinstance(trainer.train_dataset, Dataset)
    trainer.train()
    ours = make_trainer(tmp_path, eval_dataset=examples(), max_steps=2, **settings)
    ours.train()
    for one, other in zip(trainer.state.log_history[:2], ours.state.log_history[:2], strict=True):
        for name in ("loss", "ce", "had", "sl", "sd", "paired_share", "teacher_kept_mass"):
            assert one[name] == pytest.approx(other[name], rel=1e-6), name
    assert trainer.evaluate()["eval_bits_per_byte"] == pytest.approx(
        ours.evaluate()["eval_bits_per_byte"], rel=1e-6
    )
