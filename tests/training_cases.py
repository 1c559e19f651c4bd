"""Tiny tokenizers, models and data that the tests of `mlot.training` share."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mlot.training import DistillationCollator, MultiLevelOTTrainer, MultiLevelOTTrainingArguments

#: The Trainer adds up the losses that it logs in float32, whatever the model's type.
FLOAT32 = 4 * 2.0**-24

TEXTS = [
    "the cat sat",
    "a man, the mat and the hat in the sun",
    "no",
    "that is it — über das Ende ☃ then",
    "the the the the",
    "mat",
    "an ant and a hen",
    "in the end it is the same",
]
STUDENT_MERGES = [("t", "h"), ("th", "e"), ("a", "n"), ("Ġ", "the"), ("i", "n")]
TEACHER_MERGES = [("a", "t"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("e", "n"), ("en", "d")]


def make_tokenizer(merges, **special):
    """A byte-level tokenizer with these merges, special tokens first."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | special
    added = list(dict.fromkeys(token for token in special.values() if token is not None))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*added, *alphabet, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **{k: v for k, v in special.items() if v}
    )


def student_tokenizer(**special):
    return make_tokenizer(STUDENT_MERGES, **special)


def teacher_tokenizer(**special):
    return make_tokenizer(TEACHER_MERGES, **special)


def make_student(dropout=0.0, dtype=torch.float64, positions=64):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=270,
        n_positions=positions,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).to(dtype)


def make_teacher(dropout=0.0, dtype=torch.float64, positions=64):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=275,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        attention_dropout=dropout,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(dtype)


def make_collator(**settings):
    return DistillationCollator(student_tokenizer(), teacher_tokenizer(), **settings)


def make_arguments(folder, **settings):
    settings = {
        "k": 6,
        "alpha": 0.7,
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "seed": 3,
        "data_seed": 3,
    } | settings
    return MultiLevelOTTrainingArguments(output_dir=str(folder), **settings)


def examples():
    return [{"text": text} for text in TEXTS]


def make_trainer(
    folder, *, model=None, teacher=..., collator=None, dataset=None, kind=MultiLevelOTTrainer, **rest
):
    """A trainer; what is not given is made, settings that are none of the Trainer's go to the arguments."""
    own = {
        name: rest.pop(name)
        for name in ("callbacks", "criterion", "eval_dataset", "compute_metrics")
        if name in rest
    }
    return kind(
        make_student() if model is None else model,
        make_arguments(folder, **rest),
        teacher=make_teacher() if teacher is ... else teacher,
        data_collator=make_collator() if collator is None else collator,
        train_dataset=examples() if dataset is None else dataset,
        **own,
    )
