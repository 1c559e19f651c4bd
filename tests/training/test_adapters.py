"""Adapters of PEFT: the gradient of dense logits where the head is read, or a refusal before training."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
from torch import nn

from training_cases import examples, make_collator, make_student, make_teacher, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")

ON_THE_HEAD = {
    "lora": ("student", {"target_modules": ["lm_head"]}),
    # The student's head is its embedding, to which these tokens belong.
    "tokens": ("student", {"target_modules": ["c_attn"], "trainable_token_indices": [1, 5]}),
    "teacher's": ("teacher", {"target_modules": ["lm_head"]}),
}
BESIDE_THE_HEAD = {
    "lora": {"target_modules": ["c_attn"]},
    "saved head": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
}
LONGER = (peft.PromptTuningConfig, peft.PromptEncoderConfig)


def adapted(model: nn.Module, settings: dict) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **settings)).double()


def gradients(folder, settings: dict, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = adapted(make_student(), settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter: A would have no gradient to compare
            nn.init.normal_(weight, std=0.1)
    trainer = make_trainer(folder, model=model, **changes)
    trainer.compute_loss(model, make_collator()(examples())).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("settings", BESIDE_THE_HEAD.values(), ids=BESIDE_THE_HEAD)
def test_adapters_beside_the_head_have_the_gradient_of_dense_logits(tmp_path, settings):
    dense, read = (gradients(tmp_path, settings, use_linear_head=head) for head in (False, True))
    assert dense.keys() == read.keys()
    for name, gradient in dense.items():
        assert gradient.any(), name
        torch.testing.assert_close(read[name], gradient, rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("modules", [["lm_head"], ["c_attn"], ["c_attn", "lm_head"]])
def test_accumulation_changes_no_gradient_of_adapters(tmp_path, modules):
    """On the head and off it; a step of size 1 in float64."""
    changes = []
    for size, parts in ((8, 1), (3, 3)):
        torch.manual_seed(0)
        model = adapted(make_student(), {"target_modules": modules})
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
        before = {name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad}
        trainer = make_trainer(
            tmp_path,
            model=model,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
        )
        trainer.train()
        after = dict(model.named_parameters())
        changes.append({name: after[name].detach() - weight for name, weight in before.items()})
    for name, change in changes[0].items():
        assert change.any(), name
        torch.testing.assert_close(changes[1][name], change, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("side", "settings"), ON_THE_HEAD.values(), ids=ON_THE_HEAD)
def test_adapters_on_the_head_are_refused_where_it_is_read(tmp_path, side, settings):
    """Fresh ones, too, which change no value yet; without the option the student's are trained."""
    models = {"model": make_student(), "teacher": make_teacher()}
    name, option = {
        "student": ("model", "use_linear_head"),
        "teacher": ("teacher", "use_teacher_linear_head"),
    }[side]
    models[name] = adapted(models[name], settings)
    with pytest.raises(ValueError, match=f"^{option}: expected a {side} .* got one with an adapter on it"):
        make_trainer(tmp_path, **models, **{option: True})
    trainer = make_trainer(tmp_path, **models)
    trainer.compute_loss(trainer.model, make_collator()(examples())).backward()
    if side == "student":
        assert all(w.grad is not None for w in trainer.model.parameters() if w.requires_grad)


def test_a_merged_adapter_is_read(tmp_path):
    model = adapted(make_student(), ON_THE_HEAD["lora"][1]).merge_and_unload()
    trainer = make_trainer(tmp_path, model=model, use_linear_head=True)
    assert torch.isfinite(trainer.compute_loss(model, make_collator()(examples())))


@pytest.mark.parametrize("kind", LONGER)
@pytest.mark.parametrize("side", ["model", "teacher"])
def test_virtual_tokens_are_refused_by_name(tmp_path, side, kind):
    models = {"model": make_student(), "teacher": make_teacher()}
    models[side] = peft.get_peft_model(models[side], kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match=rf"^{side}: expected a model with a row .* 3 virtual tokens"):
        make_trainer(tmp_path, **models)


def test_prefix_tuning_is_served(tmp_path):
    """Its virtual tokens are keys and values, and no rows of logits."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make_student(), config).double()
    trainer = make_trainer(tmp_path, model=model)
    trainer.compute_loss(model, make_collator()(examples())).backward()
    assert all(w.grad.any() for w in model.parameters() if w.requires_grad)
