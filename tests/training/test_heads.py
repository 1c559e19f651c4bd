"""The student's head as a LinearHead: the loss and the gradient of the dense path, whatever the model does to logits."""

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

from mlot import LinearHead
from mlot._hf.heads import HeadShape
from mlot.training import MultiLevelOTTrainer
from mlot.training._heads import head_shape, hidden_states, through_head
from training_cases import (
    TEXTS,
    examples,
    make_arguments,
    make_collator,
    make_student,
    make_teacher,
    make_trainer,
)

SMALL = {
    "vocab_size": 270,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=3.0))


def granite():
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))


def cohere():
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.5))


def phi():
    model = PhiForCausalLM(PhiConfig(**SMALL))
    nn.init.normal_(model.lm_head.bias)
    return model


MODELS = {
    "llama": (llama, HeadShape()),
    "gpt2, tied": (make_student, HeadShape()),
    "gemma2, capped": (gemma2, HeadShape(softcap=3.0)),
    "granite, divided": (granite, HeadShape(scale=0.25)),
    "cohere, multiplied": (cohere, HeadShape(scale=0.5)),
    "phi, with a bias": (phi, HeadShape()),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, shape = MODELS[request.param]
    torch.manual_seed(0)
    return make().double(), shape


def test_head_gives_the_loss_and_the_gradient_of_dense_logits(case, tmp_path):
    model, shape = case
    batch = make_collator()(examples())
    found = []
    for use in (False, True):
        trainer = make_trainer(tmp_path, model=model, use_linear_head=use)
        model.train()
        model.zero_grad()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(97))
        loss.backward()
        found.append((loss.item(), {name: weight.grad for name, weight in model.named_parameters()}))
    assert trainer._head == shape
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    # GPT-2 does not differentiate its keys' biases
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-8, atol=1e-12, msg=name)
    assert found[0][1][next(iter(found[0][1]))].abs().max() > 0


def test_no_logits_are_formed(case):
    model, shape = case
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7, 8]])}
    sizes = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, output: (
            sizes.append(output.numel()) if isinstance(output, torch.Tensor) else None
        )
    )
    try:
        through_head(model, inputs, shape, lambda head: sizes.append(head.hidden.numel()))
    finally:
        hook.remove()
    assert max(sizes) < 5 * 270
    dense = model(**inputs).logits
    head = hidden_states(model, inputs, shape)
    assert isinstance(head, LinearHead)
    logits = head.hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * (head.scale or 1)
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    torch.testing.assert_close(logits, dense, rtol=1e-10, atol=1e-12)
    assert "forward" not in vars(model.get_output_embeddings())
    assert "forward" not in vars(model)


def test_forward_that_others_replaced_comes_back():
    model = llama()
    before = model.forward
    model.forward = before
    with pytest.raises(ZeroDivisionError):
        through_head(model, {"input_ids": torch.tensor([[1, 2]])}, HeadShape(), lambda head: 1 / 0)
    assert vars(model)["forward"] == before
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_head_is_found_in_every_precision(dtype):
    assert head_shape(gemma2().to(dtype), "student") == HeadShape(softcap=3.0)
    assert head_shape(granite().to(dtype), "student") == HeadShape(scale=0.25)
    assert head_shape(llama().to(dtype), "student") == HeadShape()


def test_head_of_a_model_without_weights_is_that_of_its_configuration():
    with torch.device("meta"):
        model = gemma2()
    assert head_shape(model, "student") == HeadShape(softcap=3.0)


def test_probing_leaves_the_mode_and_the_random_numbers_alone():
    model = make_student(dropout=0.5).train()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    head_shape(model, "student")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


class Adapted(nn.Module):
    """What an adapter library puts around a model, as far as the Trainer is concerned."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model
        self.config = model.config

    def get_base_model(self):
        return self.base_model

    def forward(self, **inputs):
        return self.base_model(**inputs)


def test_head_is_found_inside_of_adapters(tmp_path):
    model = granite().double()
    losses = []
    for one, use in ((model, False), (Adapted(model), True)):
        trainer = make_trainer(tmp_path, model=one, use_linear_head=use)
        losses.append(trainer.compute_loss(one, make_collator()(examples())).item())
    assert trainer._head == HeadShape(scale=0.25)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


class Low(nn.Linear):
    """A linear map with something added, as adapters have it."""

    def forward(self, hidden):
        return super().forward(hidden) + hidden.mean(dim=-1, keepdim=True)


class Shifted(GPT2LMHeadModel):
    """A model that does something to its logits that no configuration says."""

    def forward(self, **inputs):
        outputs = super().forward(**inputs)
        outputs.logits = outputs.logits.clamp(min=-1)
        return outputs


class Direct(LlamaForCausalLM):
    """A model that reads its head's weight and never calls it."""

    def forward(self, **inputs):
        hidden = self.model(**inputs)[0]
        return CausalLMOutput(logits=hidden @ self.lm_head.weight.T)


def test_heads_that_are_not_plain_are_refused(tmp_path):
    adapted = llama()
    adapted.lm_head = Low(16, 270, bias=False)
    shifted = Shifted(make_student().config)
    nested = llama()
    nested.lm_head = nn.Sequential(nn.Linear(16, 270))
    for model, message in (
        (adapted, "LlamaForCausalLM, whose logits differ from that"),
        (shifted, "Shifted, whose logits differ from that"),
        (nested, "got Sequential in LlamaForCausalLM"),
        (Direct(llama().config), "got Direct, whose logits differ from that"),
    ):
        with pytest.raises(ValueError, match=rf"use_linear_head: expected a student whose head.*{message}"):
            make_trainer(tmp_path, model=model.double(), use_linear_head=True)
    with pytest.raises(ValueError, match="use_linear_head: .*got BertModel without an output embedding"):
        head_shape(
            BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)),
            "student",
        )
    with pytest.raises(ValueError, match="use_teacher_linear_head: expected a teacher whose head"):
        make_trainer(tmp_path, teacher=adapted.double(), use_teacher_linear_head=True)


def test_teacher_by_its_head_is_the_teacher_by_its_logits(tmp_path):
    batch, student = make_collator()(examples()), make_student()
    losses = [
        make_trainer(tmp_path, model=student, use_teacher_linear_head=use).compute_loss(student, batch).item()
        for use in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("use", [False, True])
def test_mixed_precision_trains(use, tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=make_student(dtype=torch.float32),
        teacher=make_teacher(dtype=torch.bfloat16),
        use_linear_head=use,
        bf16=True,
        max_steps=2,
        learning_rate=1e-2,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0]
    plain = make_trainer(tmp_path, model=make_student(), max_steps=1)
    plain.train()
    assert losses[0] == pytest.approx(plain.state.log_history[0]["loss"], rel=2e-2)


def test_checkpointed_activations_give_the_same_gradient(tmp_path):
    gradients = []
    for checkpointing in (False, True):
        model = llama().double()
        model.load_state_dict(gradients[0][1] if gradients else model.state_dict())
        start = {name: value.clone() for name, value in model.state_dict().items()}
        if checkpointing:
            # of another name before transformers 5.23
            enable = (
                getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        trainer = make_trainer(tmp_path, model=model, use_linear_head=True)
        trainer.compute_loss(model.train(), make_collator()(examples())).backward()
        gradients.append(({n: w.grad for n, w in model.named_parameters()}, start))
    for name, gradient in gradients[0][0].items():
        torch.testing.assert_close(gradients[1][0][name], gradient)


def test_outputs_on_request_are_dense(tmp_path):
    student = make_student()
    trainer = MultiLevelOTTrainer(
        student,
        make_arguments(tmp_path, use_linear_head=True),
        teacher=make_teacher(),
        data_collator=make_collator(),
    )
    loss, outputs = trainer.compute_loss(student, make_collator()(examples()), return_outputs=True)
    assert outputs.logits.shape[::2] == (len(TEXTS), 270)
    assert loss.item() == pytest.approx(
        trainer.compute_loss(student, make_collator()(examples())).item(), rel=1e-12
    )
