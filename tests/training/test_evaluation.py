"""Bits per byte of held-out text, against computations by hand; the same for any batch size and padding."""

import math

import pytest

pytest.importorskip("transformers")

import torch

import mlot
import mlot.nn
from mlot.training import DistillationCollator
from training_cases import (
    TEXTS,
    chat_tokenizers,
    examples,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
    student_tokenizer,
)

PROMPTED = [
    {"prompt": "what is the", "completion": " end — and the mat"},
    {"prompt": "a ☃", "completion": "then"},
    {"prompt": "in the end", "completion": ""},
]


def by_hand(student, tokenizer, pieces):
    """Nats of the texts alone and with their ends, and the texts' bytes, one sequence at a time."""
    text_nats, nats, labels, size = 0.0, 0.0, 0, 0
    for prompt, completion in pieces:
        before = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        ids = [*before, *tokenizer(completion, add_special_tokens=False)["input_ids"], 2]
        with torch.no_grad():
            log_probs = student(torch.tensor([ids])).logits[0].log_softmax(-1)
        costs = [-log_probs[n - 1, ids[n]].item() for n in range(len(before), len(ids))]
        text_nats += sum(costs[:-1])
        nats += sum(costs)
        labels += len(costs)
        size += len(completion.encode())
    return text_nats / math.log(2) / size, nats / labels


@pytest.fixture(scope="module")
def student():
    return make_student()


def evaluate(folder, student, dataset, batch_size=8, **rest):
    trainer = make_trainer(
        folder,
        model=student,
        teacher=None,
        alpha=0.0,
        eval_dataset=dataset,
        per_device_eval_batch_size=batch_size,
        **rest,
    )
    return trainer.evaluate()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_bits_of_texts_do_not_depend_on_batches(tmp_path, student, batch_size, head):
    bits, loss = by_hand(student, student_tokenizer(), [("", text) for text in TEXTS])
    found = evaluate(tmp_path, student, examples(), batch_size, use_linear_head=head)
    assert found["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-9)
    assert found["eval_loss"] == found["eval_ce"] == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize(
    "collator", [{"padding_side": "left"}, {"pad_to_multiple_of": 16}, {"pairs": "index"}]
)
def test_bits_do_not_depend_on_padding_or_pairs(tmp_path, student, collator):
    bits, _ = by_hand(student, student_tokenizer(), [("", text) for text in TEXTS])
    found = evaluate(tmp_path, student, examples(), 3, collator=make_collator(**collator))
    assert found["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_prompts_are_in_neither_bits_nor_bytes(tmp_path, student, batch_size):
    pieces = [(row["prompt"], row["completion"]) for row in PROMPTED]
    bits, loss = by_hand(student, student_tokenizer(), pieces)
    found = evaluate(tmp_path, student, PROMPTED, batch_size)
    assert found["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-9)
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-9)


def test_ends_of_turns_are_in_the_loss_and_not_in_the_bits(tmp_path, student):
    tokenizer, teacher = chat_tokenizers()
    said = ["the end", "the hen"]
    messages = [{"role": role, "content": words} for words in said for role in ("user", "assistant")]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    with torch.no_grad():
        log_probs = student(torch.tensor([ids])).logits[0].log_softmax(-1)
    ends = [n for n, token in enumerate(ids) if tokenizer.convert_ids_to_tokens(token) == "<|im_end|>"][1::2]
    starts = [
        n - len(tokenizer(words, add_special_tokens=False)["input_ids"])
        for n, words in zip(ends, said, strict=True)
    ]
    text = sum(
        -log_probs[n - 1, ids[n]].item() for a, b in zip(starts, ends, strict=True) for n in range(a, b)
    )
    end = sum(-log_probs[n - 1, ids[n]].item() for n in ends)
    found = evaluate(
        tmp_path, student, [{"messages": messages}], collator=DistillationCollator(tokenizer, teacher)
    )
    assert found["eval_bits_per_byte"] == pytest.approx(text / math.log(2) / 14, rel=1e-9)
    count = sum(b - a + 1 for a, b in zip(starts, ends, strict=True))
    assert found["eval_loss"] == pytest.approx((text + end) / count, rel=1e-9)


def test_uniform_predictions_cost_log2_of_the_vocabulary(tmp_path):
    student = make_student()
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    tokens = sum(len(student_tokenizer()(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    found = evaluate(tmp_path, student, examples())
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["eval_bits_per_byte"] == pytest.approx(tokens * math.log2(270) / size, rel=1e-12)
    assert found["eval_loss"] == pytest.approx(math.log(270), rel=1e-12)


def test_what_is_cut_is_in_neither_bits_nor_bytes(tmp_path, student):
    collator = make_collator(max_length=8, teacher_max_length=30)
    kept = [collator.prepare(row) for row in examples()]
    texts = [
        student_tokenizer().decode([n for n, t in zip(row["input_ids"], row["text_mask"], strict=True) if t])
        for row in kept
    ]
    assert any(a != b for a, b in zip(texts, TEXTS, strict=True))
    bits, _ = by_hand(student, student_tokenizer(), [("", text) for text in texts])
    assert evaluate(tmp_path, student, examples(), collator=collator)["eval_bits_per_byte"] == pytest.approx(
        bits, rel=1e-9
    )


def test_several_sets_of_held_out_text(tmp_path, student):
    found = evaluate(tmp_path, student, {"a": examples()[:3], "b": PROMPTED})
    assert found["eval_a_bits_per_byte"] == pytest.approx(
        evaluate(tmp_path, student, examples()[:3])["eval_bits_per_byte"], rel=1e-12
    )
    assert found["eval_b_loss"] == pytest.approx(
        evaluate(tmp_path, student, PROMPTED)["eval_loss"], rel=1e-12
    )


def test_evaluations_while_training_leave_the_run_alone(tmp_path):
    states, logs = [], []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}):
        student = make_student(dropout=0.3)
        trainer = make_trainer(
            tmp_path,
            model=student,
            eval_dataset=PROMPTED,
            max_steps=3,
            per_device_train_batch_size=3,
            **settings,
        )
        trainer.train()
        states.append(student.state_dict())
        logs.append(
            [
                {k: entry[k] for k in ("loss", "ce", "had")}
                for entry in trainer.state.log_history
                if "loss" in entry
            ]
        )
    assert [entry["step"] for entry in trainer.state.log_history if "eval_bits_per_byte" in entry] == [
        0,
        1,
        2,
        3,
    ]
    assert logs[0] == logs[1]
    for name, weight in states[0].items():
        assert torch.equal(states[1][name], weight)


def test_batches_without_bytes_have_no_bits_per_byte(tmp_path, student):
    def collate(rows):
        batch = make_collator()(rows)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    found = evaluate(tmp_path, student, examples(), collator=collate)
    assert "eval_bits_per_byte" not in found
    assert found["eval_loss"] == pytest.approx(
        evaluate(tmp_path, student, examples())["eval_loss"], rel=1e-12
    )


def test_metrics_of_ones_own_get_logits_and_labels(tmp_path, student):
    def metrics(prediction):
        assert prediction.predictions.shape[:2] == prediction.label_ids.shape
        hit = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"hits": float(hit.sum())}

    found = evaluate(tmp_path, student, examples(), compute_metrics=metrics, use_linear_head=True)
    assert found["eval_hits"] >= 0
    assert "eval_bits_per_byte" in found


def test_nothing_to_ask_for_gives_no_metrics(tmp_path, student):
    trainer = make_trainer(tmp_path, model=student, teacher=None, alpha=0.0)
    found = trainer.evaluate(
        [make_collator().prepare({"prompt": "a" * 9, "completion": "b"}) | {"labels": [-100] * 12}]
    )
    assert "eval_bits_per_byte" not in found


@pytest.mark.parametrize("matching", ["optimal", "text"])
@pytest.mark.parametrize("head", [False, True])
def test_terms_of_the_loss_with_the_teacher(tmp_path, matching, head):
    """Those that training logs for the same batch at the same weights, however it is cut."""
    rest = {"matching": matching, "use_linear_head": head, "k": 6, "learning_rate": 0.0}
    made = [
        make_trainer(
            tmp_path,
            eval_dataset=examples(),
            collator=make_collator(pairs="text" if matching == "text" else "boundary"),
            eval_distillation=True,
            per_device_eval_batch_size=size,
            **rest,
        )
        for size in (8, 3)
    ]
    made[0].train()
    logged = made[0].state.log_history[0]
    names = ("ce", "had", "sl", "sd") if matching == "optimal" else ("ce", "had", "sl")
    for trainer in made:
        metrics = trainer.evaluate()
        for name in names:
            assert metrics[f"eval_{name}"] == pytest.approx(logged[name], rel=1e-9), name
        assert ("eval_sd" in metrics) == ("sd" in logged)
        weighted = sum(
            getattr(trainer.args, f"{name}_weight") * metrics[f"eval_{name}"] for name in names[1:]
        )
        assert metrics["eval_distillation"] == pytest.approx(weighted, rel=1e-9)


def test_terms_of_several_teachers_by_weight(tmp_path):
    teachers = [mlot.Teacher(make_teacher(), 0.8), mlot.Teacher(make_teacher(), 0.5)]
    one, two = (
        make_trainer(tmp_path, teacher=each, eval_dataset=examples(), eval_distillation=True).evaluate()
        for each in (make_teacher(), teachers)
    )
    for name in ("eval_had", "eval_sl", "eval_sd", "eval_distillation"):
        assert two[name] == pytest.approx(1.3 * one[name], rel=1e-10)


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"criterion": mlot.nn.ULDLoss()}])
def test_terms_that_nobody_computes_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match="^eval_distillation: expected False without a teacher"):
        make_trainer(tmp_path, eval_distillation=True, **settings)
