"""The loss for TRL's GOLD trainer, against the TRL that is installed."""

import inspect
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import mlot
import mlot.trl
from gold_cases import COMPLETIONS, ONE_STEP, batch, make_trainer, settings, spans, tokenizers
from mlot import align
from mlot._gold import byte_pairs
from mlot.trl import MultiLevelOTLoss

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl.experimental.gold", exc_type=ImportError)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
def test_signatures_are_those_of_uld(gold: Any, method: str) -> None:
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
        for cls in (MultiLevelOTLoss, gold.ULDLoss)
    )
    assert ours == theirs


def test_everything_that_the_trainer_reads_of_its_loss_is_there(gold: Any) -> None:
    names = set(re.findall(r"self\.uld_loss_fn\.(\w+)", inspect.getsource(gold.GOLDTrainer)))
    optional = {"last_matched_loss", "last_unmatched_loss"}  # asked for by hasattr
    assert "use_extended_uld" in names
    for name in names - optional:
        assert hasattr(MultiLevelOTLoss(settings()), name), name


def test_bad_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="config: expected TRL's GOLDConfig, got object without uld_cross"):
        MultiLevelOTLoss(object())
    with pytest.raises(ValueError, match="uld_use_hybrid_loss: expected False"):
        MultiLevelOTLoss(settings(uld_use_hybrid_loss=True))
    with pytest.raises(ValueError, match=r"config\.uld_student_temperature: expected a finite number > 0"):
        MultiLevelOTLoss(settings(uld_student_temperature=0))
    with pytest.raises(ValueError, match="merge_strategy: expected one of"):
        MultiLevelOTLoss(settings(uld_token_merge_strategy="guessed"))
    with pytest.raises(TypeError, match="trainer: expected a GOLDTrainer, got int"):
        MultiLevelOTLoss.for_trainer(3)
    unused = SimpleNamespace(uld_loss_fn=None, args=SimpleNamespace(use_uld_loss=False))
    with pytest.raises(ValueError, match="use_uld_loss=True"):
        MultiLevelOTLoss.for_trainer(unused)
    with pytest.raises(TypeError, match="settings: expected a MultiLevelOTConfig or None, got dict"):
        MultiLevelOTLoss.for_trainer(unused, {})


def test_bad_inputs_are_refused(gold: Any) -> None:
    criterion, inputs = MultiLevelOTLoss(settings()), batch(gold)
    for name, value, error, match in (
        ("student_byte_offsets", None, ValueError, "student_byte_offsets: expected .* got None"),
        ("teacher_byte_offsets", torch.zeros(3, 2), ValueError, "teacher_byte_offsets: expected shape"),
        ("teacher_labels", inputs["teacher_labels"][:, 1:], ValueError, "teacher_labels: expected shape"),
        ("student_labels", None, TypeError, "student_labels: expected a torch tensor, got NoneType"),
        ("student_logits", torch.zeros(3, 4), ValueError, r"student_logits: expected \(B, T, V\)"),
    ):
        with pytest.raises(error, match=match):
            criterion(**(inputs | {name: value}))


@pytest.mark.parametrize("strategy", ["observed", "bayesian"])
@pytest.mark.parametrize("skip", [True, False])
def test_rows_that_count_are_those_that_uld_slices(gold: Any, strategy: str, skip: bool) -> None:
    inputs = batch(gold)
    chosen = settings(
        uld_token_merge_strategy=strategy, uld_skip_student_eos=skip, uld_skip_teacher_eos=not skip
    )
    masks = MultiLevelOTLoss(chosen).masks(inputs["student_labels"], inputs["teacher_labels"])
    back = int(strategy == "bayesian")
    for side, mask, skipped in (("student", masks[0], skip), ("teacher", masks[1], not skip)):
        want = torch.zeros_like(mask)
        for n, (start, size) in enumerate(spans(inputs[f"{side}_labels"])):
            want[n, start - back : start + size - back - skipped] = True
        assert torch.equal(mask, want)


@pytest.mark.parametrize("strategy", ["observed", "bayesian"])
@pytest.mark.parametrize("skip", [True, False])
def test_pairs_end_at_the_same_byte(gold: Any, strategy: str, skip: bool) -> None:
    """By `mlot.align` on the bytes of the completions; TRL's alignment closes its groups at the same tokens."""
    inputs = batch(gold)
    chosen = settings(uld_token_merge_strategy=strategy, uld_skip_student_eos=skip, uld_skip_teacher_eos=skip)
    criterion = MultiLevelOTLoss(chosen)
    masks = criterion.masks(inputs["student_labels"], inputs["teacher_labels"])
    offsets = inputs["student_byte_offsets"], inputs["teacher_byte_offsets"]
    got = byte_pairs(*masks, *offsets)
    student, teacher = tokenizers()
    for n, completion in enumerate(COMPLETIONS):
        # The prompt's last token stands for the start of the answer, the eos token for its end.
        tokens = []
        for tokenizer in (student, teacher):
            found = align.byte_ranges(tokenizer, completion)
            tokens.append(
                align.TokenBytes(
                    [1, *found.ids, 2],
                    starts=[0, *found.starts, found.total],
                    ends=[0, *found.ends, found.total],
                    special=[True, *found.special, True],
                    total=found.total,
                )
            )
        want = align.pairs(*tokens)
        starts = [spans(inputs[f"{side}_labels"])[n][0] - 1 for side in ("student", "teacher")]
        if strategy == "observed":
            want = want[1:]  # the row before the answer does not count
        elif skip:
            want = want[:-1]  # nor does the one that predicts the eos token
        real = got[n][got[n, :, 0] >= 0].numpy()
        assert np.array_equal(real, want + starts)
        if strategy == "observed":
            groups = gold.ULDLoss._align_by_byte_offsets(
                *(
                    o[n, a + 1 : a + 1 + size - 1].tolist()
                    for o, a, size in zip(
                        offsets,
                        starts,
                        (spans(inputs[f"{s}_labels"])[n][1] for s in ("student", "teacher")),
                        strict=True,
                    )
                )
            )
            ends = [[group[-1] for group in side] for side in groups]
            assert np.array_equal(np.stack(ends, 1) + 1, want)


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("strategy", ["observed", "bayesian"])
def test_value_is_that_of_multi_level_ot(gold: Any, strategy: str, extended: bool) -> None:
    inputs = batch(gold, extended=extended)
    chosen = settings(
        uld_token_merge_strategy=strategy,
        use_extended_uld=extended,
        uld_crossentropy_weight=0.5,
        uld_distillation_weight=0.3,
        uld_student_temperature=1.5,
        uld_teacher_temperature=0.7,
    )
    criterion = MultiLevelOTLoss(chosen)
    criterion.settings = mlot.MultiLevelOTConfig(k=9)
    leaf = inputs["student_logits"].requires_grad_()
    loss = criterion(**inputs)
    (got,) = torch.autograd.grad(loss, leaf)
    masks = criterion.masks(inputs["student_labels"], inputs["teacher_labels"])
    pairs = None
    if extended:
        offsets = inputs["student_byte_offsets"], inputs["teacher_byte_offsets"]
        pairs = byte_pairs(*masks, *offsets)
    ot = mlot.multi_level_ot(
        leaf / 1.5,
        inputs["teacher_logits"] / 0.7,
        student_mask=masks[0],
        teacher_mask=masks[1],
        pairs=pairs,
        config=mlot.MultiLevelOTConfig(k=9),
    )
    nll = torch.nn.functional.cross_entropy(
        leaf[:, :-1].flatten(0, 1), inputs["student_labels"][:, 1:].flatten(), ignore_index=-100
    )
    want = 0.5 * nll + 0.3 * ot.loss
    torch.testing.assert_close(loss, want, rtol=1e-13, atol=0)
    torch.testing.assert_close(got, torch.autograd.grad(want, leaf)[0], rtol=1e-11, atol=1e-16)
    assert set(criterion.last) == {"loss", "cross_entropy", "had", "sl", "sd", "pairs"}
    torch.testing.assert_close(criterion.last["sd"], ot.sd.detach(), rtol=1e-13, atol=0)


def test_answers_that_open_their_sequence(gold: Any) -> None:
    """No row predicts the first token then; ULD leaves it out on both sides, and so do pairs by index."""
    inputs = batch(gold, prompts=False, extended=False)
    chosen = settings(uld_token_merge_strategy="bayesian", use_extended_uld=False)
    inputs["student_labels"][0, spans(inputs["student_labels"])[0][0]] = -100  # here one side has a prompt
    masks = MultiLevelOTLoss(chosen).masks(inputs["student_labels"], inputs["teacher_labels"])
    for n in range(3):
        (s_start, s_size), (t_start, t_size) = (
            spans(inputs[f"{side}_labels"])[n] for side in ("student", "teacher")
        )
        drop = int(s_start == 0 or t_start == 0)
        assert masks[0][n].nonzero().flatten().tolist() == list(
            range(s_start - 1 + drop, s_start - 1 + s_size - 1)
        )
        assert masks[1][n].nonzero().flatten().tolist() == list(
            range(t_start - 1 + drop, t_start - 1 + t_size - 1)
        )


@pytest.mark.parametrize("extended", [True, False])
def test_no_answer_is_a_loss_of_zero(gold: Any, extended: bool) -> None:
    inputs = batch(gold, extended=extended)
    inputs["student_labels"][:] = -100
    leaf = inputs["student_logits"].requires_grad_()
    loss = MultiLevelOTLoss(settings(use_extended_uld=extended, uld_crossentropy_weight=1.0))(**inputs)
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, leaf)[0].any()


@pytest.mark.parametrize("strategy", ["observed", "bayesian"])
@pytest.mark.parametrize("skip", [True, False])
def test_their_uld_is_ours_where_both_pair_by_index(gold: Any, strategy: str, skip: bool) -> None:
    """TRL divides each sequence by its rows and averages over sequences: the one difference."""
    inputs = batch(gold, extended=False)
    chosen = settings(
        uld_token_merge_strategy=strategy,
        use_extended_uld=False,
        uld_skip_student_eos=skip,
        uld_skip_teacher_eos=skip,
    )
    theirs = gold.ULDLoss(chosen)
    leaf = inputs["student_logits"].requires_grad_()
    want = theirs(**inputs)
    masks = MultiLevelOTLoss(chosen).masks(inputs["student_labels"], inputs["teacher_labels"])
    sums = mlot.uld(
        leaf, inputs["teacher_logits"], student_mask=masks[0], teacher_mask=masks[1], reduction="none"
    )
    rows = torch.minimum(masks[0].sum(1), masks[1].sum(1))
    got = (sums / rows).mean()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    pulls = [torch.autograd.grad(value, leaf)[0] for value in (got, want)]
    torch.testing.assert_close(*pulls, rtol=1e-10, atol=1e-16)


@pytest.fixture(scope="module")
def trainer(gold: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_trainer(gold, tmp_path_factory.mktemp("gold"))


def test_gold_trains_with_the_loss_assigned(trainer: Any) -> None:
    """One line, then real steps: the loss is what the models' logits give, and the weights move."""
    trainer.uld_loss_fn = MultiLevelOTLoss.for_trainer(trainer, mlot.MultiLevelOTConfig(k=12))
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    class Spy(MultiLevelOTLoss):
        def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            assert not args
            loss = super().__call__(**kwargs)
            calls.append((kwargs, loss.detach()))
            return loss

    trainer.uld_loss_fn.__class__ = Spy
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(calls) == len(logged) == 2
    assert any(not torch.equal(p, q) for p, q in zip(before, trainer.model.parameters(), strict=True))
    for (inputs, loss), shown in zip(calls, logged, strict=True):
        assert float(loss) == pytest.approx(shown, rel=1e-3)
        masks = trainer.uld_loss_fn.masks(inputs["student_labels"], inputs["teacher_labels"])
        offsets = inputs["student_byte_offsets"], inputs["teacher_byte_offsets"]
        ot = mlot.multi_level_ot(
            inputs["student_logits"],
            inputs["teacher_logits"],
            student_mask=masks[0],
            teacher_mask=masks[1],
            pairs=byte_pairs(*masks, *offsets),
            config=mlot.MultiLevelOTConfig(k=12),
            num_items=inputs["student_labels"][:, 1:].ne(-100).sum(),
        )
        torch.testing.assert_close(loss, ot.loss.detach())
        # prompts and padding are out, and both sides are asked about the same bytes
        for side, mask in zip(("student", "teacher"), masks, strict=True):
            assert not (mask & (inputs[f"{side}_labels"] == -100)).any()
            assert mask.any(1).all()


def test_the_trainers_own_loss_and_ours_take_the_same_call(trainer: Any, gold: Any) -> None:
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for criterion in (
            gold.ULDLoss(trainer.args, trainer.processing_class, trainer.teacher_tokenizer),
            MultiLevelOTLoss(trainer.args, trainer.processing_class, trainer.teacher_tokenizer),
        ):
            trainer.uld_loss_fn = criterion
            losses.append(trainer.compute_loss(trainer.model, batch))
    assert all(loss.shape == () and torch.isfinite(loss) and loss.requires_grad for loss in losses)
    assert not torch.equal(*losses)


def test_gold_trains_on_what_the_student_writes(trainer: Any) -> None:
    """On-policy: GOLD counts the bytes of sampled tokens itself, and the loss takes them as they come."""
    trainer.uld_loss_fn = MultiLevelOTLoss.for_trainer(trainer)
    trainer.lmbda = 1.0
    before = len(trainer.state.log_history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
        held_out = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    losses = [entry["on_policy_loss"] for entry in trainer.state.log_history[before:] if "loss" in entry]
    assert all(np.isfinite(loss) and loss > 0 for loss in [*losses, held_out])
    assert trainer.uld_loss_fn.last["pairs"] > 0


@pytest.mark.parametrize("matching", ["optimal", "text"])
def test_accumulation_changes_no_gradient_and_terms_are_logged(
    gold: Any, tmp_path: Path, matching: str
) -> None:
    """In float64, a step of size 1; answers are of different lengths, so means of means would differ."""
    config = mlot.MultiLevelOTConfig.text() if matching == "text" else mlot.MultiLevelOTConfig(k=12)
    weights, logs = [], []
    for size, parts in ((3, 1), (1, 3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = make_trainer(
                gold,
                tmp_path / str(size),
                torch.float64,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=parts,
                uld_crossentropy_weight=0.5,
                **ONE_STEP,
            )
            trainer.uld_loss_fn = MultiLevelOTLoss.for_trainer(trainer, config)
            before = [p.detach().clone() for p in trainer.model.parameters()]
            trainer.train()
            held_out = trainer.evaluate(trainer.train_dataset)
        weights.append([q.detach() - p for p, q in zip(before, trainer.model.parameters(), strict=True)])
        logs.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
        assert held_out["eval_had"] > 0
    assert max(float(change.abs().max()) for change in weights[0]) > 1e-4
    for whole, cut in zip(*weights, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-7, atol=1e-10)
    for name in ("had", "sl", "cross_entropy", "pairs"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-7), name
    terms = logs[0]["cross_entropy"] * 0.5 + config.had_weight * logs[0]["had"]
    terms += config.sl_weight * logs[0]["sl"] + (config.sd_weight and config.sd_weight * logs[0]["sd"])
    assert logs[0]["loss"] == pytest.approx(terms, rel=1e-4)
    assert logs[1]["loss"] == pytest.approx(terms, rel=1e-4)


def test_the_loss_needs_no_trl() -> None:
    code = "import sys; sys.modules['trl'] = None; import mlot.trl; mlot.trl.MultiLevelOTLoss"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
