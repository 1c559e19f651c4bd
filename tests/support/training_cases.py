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
    extra = special.get("extra_special_tokens", [])
    named = [value for name, value in special.items() if name.endswith("_token") and value is not None]
    added = list(dict.fromkeys([*named, *extra]))
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


def make_llama(seed, *, dtype=torch.float64, **settings):
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    } | settings
    return LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)


def make_teacher(dropout=0.0, dtype=torch.float64, positions=64):
    return make_llama(
        1, dtype=dtype, vocab_size=275, max_position_embeddings=positions, attention_dropout=dropout
    )


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
        for name in ("callbacks", "criterion", "eval_dataset", "compute_metrics", "generator")
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


#: Byte that each character of a byte-level token stands for, as GPT-2 has it.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(n): n for n in _VISIBLE} | {
    chr(256 + n): byte for n, byte in enumerate(n for n in range(256) if n not in _VISIBLE)
}


def bytes_of(tokenizer, ids):
    """What byte-level tokens stand for; special ones for themselves."""
    found = b""
    for token in tokenizer.convert_ids_to_tokens([int(n) for n in ids]):
        special = token in tokenizer.all_special_tokens
        found += token.encode() if special else bytes(_BYTES[character] for character in token)
    return found


#: Chat templates that put different things around, before and after what is said.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}[{{ m.role }}] {{ m.content }} [/]{% endif %}{% endfor %}"
)


def chat_tokenizers():
    student = student_tokenizer(extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    student.chat_template = CHATML
    teacher = teacher_tokenizer()
    teacher.chat_template = BRACKETS
    return student, teacher
