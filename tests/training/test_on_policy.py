"""Batches that the student writes itself: read by both models, compared by the teacher alone, repeatable."""

import json

import pytest

pytest.importorskip("transformers")

import torch

from mlot.training import DistillationCollator
from mlot.training._answers import page
from mlot.training._on_policy import ANSWERS, generate
from training_cases import chat_tokenizers, make_collator, make_student, make_teacher, make_trainer

PROMPTS = [
    {"prompt": "the cat", "completion": " sat"},
    {"prompt": "a man, ", "completion": "the mat and the hat"},
    {"prompt": "in the end it is ", "completion": "the same"},
]
CHAT = [
    {"messages": [{"role": "user", "content": "say the"}, {"role": "assistant", "content": "the"}]},
    {"messages": [{"role": "user", "content": "an ant"}, {"role": "assistant", "content": "a hen"}]},
]
SETTINGS = {"on_policy": 1.0, "on_policy_max_new_tokens": 8, "per_device_train_batch_size": 2}


def answers(folder):
    return [json.loads(line) for line in (folder / ANSWERS).read_text(encoding="utf-8").split("\n") if line]


def told(ids):
    """A generator that writes the same tokens each time."""

    def write(model, prompts, *, answers, **settings):
        return [ids] * (len(prompts) * answers)

    return write


def run(folder, *, stop=4, resume=None, seed=3, matching="optimal", reuse=1):
    trainer = make_trainer(
        folder,
        model=make_student(0.2, torch.float32),
        teacher=make_teacher(0.0, torch.float32),
        dataset=PROMPTS,
        collator=make_collator(pairs="text" if matching == "text" else "boundary"),
        matching=matching,
        on_policy_reuse=reuse,
        **SETTINGS | {"on_policy": 0.5},
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        seed=seed,
        save_strategy="steps",
        save_steps=stop,
    )
    trainer.train(resume_from_checkpoint=resume)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model.state_dict(), logs, answers(folder)


@pytest.mark.parametrize("matching", ["optimal", "text"])
def test_a_seed_gives_the_run_again_and_a_resumed_run_is_the_run(tmp_path, matching):
    weights, logs, written = run(tmp_path / "whole", matching=matching)
    assert len(written) > 1
    assert any("on_policy_answers" in entry for entry in logs)
    again, _, same = run(tmp_path / "again", matching=matching)
    run(tmp_path / "parts", stop=2, matching=matching)
    checkpoint = str(tmp_path / "parts/checkpoint-2")
    resumed, _, resumed_written = run(tmp_path / "parts", stop=2, resume=checkpoint, matching=matching)
    for name, weight in weights.items():
        assert torch.equal(again[name], weight), name
        assert torch.equal(resumed[name], weight), name
    assert written == same == resumed_written
    assert run(tmp_path / "other", seed=4, matching=matching)[2] != written


def test_answers_are_learnt_from_several_times(tmp_path):
    """Written every third step, by the student of that step; a run that is resumed between reads them again."""
    weights, logs, written = run(tmp_path / "whole", reuse=3, seed=8)
    assert {record["step"] for record in written} == {0, 3}
    numbers = [entry.get("on_policy_answers", 0) for entry in logs]
    assert numbers[1] == numbers[2] == 0 < numbers[0]
    assert not all(
        torch.equal(weights[name], other) for name, other in run(tmp_path / "once", seed=8)[0].items()
    )
    for stop in (1, 2):
        folder = tmp_path / f"parts-{stop}"
        run(folder, stop=stop, reuse=3, seed=8)
        checkpoint = str(folder / f"checkpoint-{stop}")
        resumed, _, again = run(folder, stop=stop, resume=checkpoint, reuse=3, seed=8)
        assert again == written
        for name, weight in weights.items():
            assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize("matching", ["assignment", "text"])
def test_the_gradient_is_that_of_the_distillation_on_the_answers(tmp_path, matching):
    collator = make_collator(pairs="text" if matching == "text" else "boundary")
    config = {"matching": "text", "k": 8} if matching == "text" else {}
    tokenizer = collator.tokenizer
    ids = [*tokenizer("the mat", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rest = {"collator": collator, "dataset": PROMPTS[:1], "learning_rate": 1.0, "optim": "sgd"} | config
    trainer = make_trainer(
        tmp_path / "on",
        generator=told(ids),
        model=make_student(),
        lr_scheduler_type="constant",
        **SETTINGS | rest,
    )
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())

    model = make_student()
    plain = make_trainer(tmp_path / "off", model=model, **rest)
    batch = collator([{"prompt": "the cat", "completion": "the mat"}] * 2)
    items = batch["labels"][:, 1:].ne(-100).sum()
    whole = torch.autograd.grad(
        plain.compute_loss(model, dict(batch), num_items_in_batch=items), model.parameters()
    )
    labels = batch["labels"]
    nll = torch.nn.functional.cross_entropy(
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=-100,
        reduction="sum",
    )
    learnt = torch.autograd.grad(nll / items, model.parameters())
    largest = 0.0
    for (name, old), both, one in zip(before.items(), whole, learnt, strict=True):
        # float64, a step of size 1
        torch.testing.assert_close(old - after[name], both - one, rtol=0, atol=1e-10, msg=name)
        largest = max(largest, float((both - one).abs().max()))
    assert largest > 1e-6


def test_answers_in_a_chat_end_with_the_token_that_ends_a_turn(tmp_path):
    student, teacher = chat_tokenizers()
    end = student.convert_tokens_to_ids("<|im_end|>")
    seen = []

    def write(model, prompts, *, answers, end_ids, **settings):
        seen.extend((list(row), list(end_ids)) for row in prompts)
        return [[*student("the", add_special_tokens=False)["input_ids"], end]] * (len(prompts) * answers)

    trainer = make_trainer(
        tmp_path, dataset=CHAT, collator=DistillationCollator(student, teacher), generator=write, **SETTINGS
    )
    trainer.train()
    assert all(ends == [end] for _, ends in seen)
    assert student.decode(seen[0][0]).endswith("<|im_start|>assistant\n")
    assert [(r["answer"], r["ended"], r["changed"]) for r in answers(tmp_path)] == [("the", True, False)] * 2


def test_tokens_that_their_text_does_not_come_back_as(tmp_path):
    tokenizer = make_collator().tokenizer
    ids = tokenizer.convert_tokens_to_ids(["t", "h", "e"])  # whose text is the one token "the"
    found = {}
    for choice in ("retokenize", "leave_out"):
        trainer = make_trainer(
            tmp_path / choice, dataset=PROMPTS, generator=told(ids), on_policy_changed=choice, **SETTINGS
        )
        trainer.train()
        found[choice] = next(entry for entry in trainer.state.log_history if "loss" in entry)
        assert found[choice]["on_policy_changed"] == 2
        assert [record["left_out"] for record in answers(tmp_path / choice)] == [choice == "leave_out"] * 2
    assert found["retokenize"]["on_policy_left_out"] == 0
    assert found["retokenize"]["ce"] == 0
    # where nothing is left the batch of the data stays
    assert found["leave_out"]["ce"] > 0


def test_answers_may_hold_any_characters_that_end_lines(tmp_path):
    text = "a\u2028b\u0085c\u2029d\re\nf\x1cg\x0bh"
    ids = make_collator().tokenizer(text, add_special_tokens=False)["input_ids"]
    settings = SETTINGS | {"save_strategy": "steps", "save_steps": 1, "on_policy_reuse": 2, "max_steps": 3}
    for resume in (None, str(tmp_path / "checkpoint-1")):
        trainer = make_trainer(tmp_path, dataset=PROMPTS, generator=told(ids), **settings)
        trainer.train(resume_from_checkpoint=resume)
        assert {record["answer"] for record in answers(tmp_path)} == {text}
        assert {record["step"] for record in answers(tmp_path)} == {0, 2}
        assert "\u2028" in (tmp_path / ANSWERS).with_suffix(".html").read_text(encoding="utf-8")


def test_what_was_written_is_in_a_page(tmp_path):
    """Every answer, escaped, with what became of it, and nothing that is fetched."""
    tokenizer = make_collator().tokenizer
    ids = tokenizer("<b>& the", add_special_tokens=False)["input_ids"]
    data = [{"prompt": "<i>the", "completion": " sat"}] * 2
    make_trainer(tmp_path, dataset=data, generator=told(ids), **SETTINGS).train()
    made = (tmp_path / ANSWERS).with_suffix(".html").read_text(encoding="utf-8")
    assert made.count("<pre>&lt;b&gt;&amp; the</pre>") == made.count("&lt;i&gt;the") == 2
    assert "2 answers: 2 without an end, 0 tokenised otherwise than sampled, 0 left out." in made
    assert "<b>" not in made
    assert "http" not in made
    records = [{**answers(tmp_path)[0], "answer": f"a{n}"} for n in range(501)]
    long = page(records)
    assert "501 answers, of which the last 500 are shown" in long
    assert ">a500<" in long
    assert ">a0<" not in long
    said = page([{**records[0], "prompt": CHAT[0]["messages"][:1], "left_out": True}])
    assert "user: say the" in said
    assert "without an end, left out" in said


def test_several_answers_to_a_prompt(tmp_path):
    trainer = make_trainer(
        tmp_path,
        dataset=[*PROMPTS, PROMPTS[0]],
        **SETTINGS | {"on_policy_answers": 2, "per_device_train_batch_size": 4},
    )
    trainer.train()
    prompts = [record["prompt"] for record in answers(tmp_path)]
    assert len(prompts) == 4
    assert prompts[0] == prompts[1]
    assert prompts[2] == prompts[3]


def test_a_run_from_the_start_replaces_what_another_wrote(tmp_path):
    (tmp_path / ANSWERS).write_text('{"step": 0, "answer": "of another run"}\n', encoding="utf-8")
    trainer = make_trainer(tmp_path, dataset=PROMPTS, **SETTINGS)
    for _ in range(2):
        trainer.train()
        assert len(answers(tmp_path)) == 2
        assert all("prompt" in record for record in answers(tmp_path))


def test_sampling_leaves_the_random_numbers_and_the_mode_alone():
    model = make_student(0.2).train()
    state = torch.get_rng_state()
    settings = {"answers": 1, "temperature": 1.0, "max_new_tokens": 6, "end_ids": [2], "pad_id": 0}
    first = generate(model, [[1, 5], [1, 5, 6, 7]], seed=1, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert first == generate(model, [[1, 5], [1, 5, 6, 7]], seed=1, **settings)
    assert first != generate(model, [[1, 5], [1, 5, 6, 7]], seed=2, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_policy": 1.5}, "on_policy: expected a share"),
        ({"on_policy": -1}, "on_policy: expected a finite number"),
        ({"on_policy": 0.5, "alpha": 0.0}, "on_policy: expected 0 with alpha=0"),
        ({"on_policy": 0.5, "overwrite_logits": True}, "on_policy: expected 0 with overwrite_logits"),
        ({"on_policy_temperature": 0.0}, "on_policy_temperature: expected"),
        ({"on_policy_max_new_tokens": 0}, "on_policy_max_new_tokens: expected"),
        ({"on_policy_answers": 0}, "on_policy_answers: expected"),
        ({"on_policy_reuse": 0}, "on_policy_reuse: expected"),
        ({"on_policy_changed": "drop"}, "on_policy_changed: expected one of"),
        ({"on_policy": 0.5}, "on_policy: expected examples with a prompt"),
        ({"on_policy": 0.5, "criterion": lambda *a: 0}, "on_policy: expected a criterion with terms"),
        ({"generator": told([5])}, "generator: expected None with on_policy=0"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        make_trainer(tmp_path, **settings)


def test_a_generator_that_answers_too_little_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, dataset=PROMPTS, generator=lambda *a, **k: [], **SETTINGS)
    with pytest.raises(ValueError, match="generator: expected 1 answers to each of 2"):
        trainer.train()
