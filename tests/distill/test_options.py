"""Options: those of transformers and of the loss reach the trainer, and what has no effect is refused."""

import json
import sys
from dataclasses import fields, replace

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_cases import SHORT, run_without_training, save_gpt2, save_llama, texts_of, write_text
from mlot import MultiLevelOTConfig
from mlot._hf.made import train_bpe, train_unigram
from mlot.distill import run as running
from mlot.distill.arguments import Settings
from mlot.distill.cli import main
from mlot.distill.errors import DistillError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of seven documents."""
    return write_text(tmp_path_factory.mktemp("text"), documents=7)


@pytest.fixture(scope="module")
def models(text, tmp_path_factory):
    """Folders of a GPT-2 that teaches and of a Llama that learns."""
    folder, documents = tmp_path_factory.mktemp("models"), texts_of(text)
    teacher = save_gpt2(folder / "gpt2", train_bpe(documents, 300, 32))
    return teacher, save_llama(folder / "llama", train_unigram(documents, 280, 32))


@pytest.fixture
def command(models, text, tmp_path, monkeypatch):
    """Runs the command on the folders, and returns the arguments of the trainer and the report."""
    seen = []
    trainer = running.MultiLevelOTTrainer

    def watched(model, arguments, **kwargs):
        seen.append((model, arguments, kwargs))
        return trainer(model, arguments, **kwargs)

    monkeypatch.setattr(running, "MultiLevelOTTrainer", watched)

    def call(*words, text=text):
        sources = ["--teacher", models[0], "--student", models[1], *(["--text", text] if text else [])]
        words = [str(w) for w in (*SHORT, *sources, *words, "--output", tmp_path / "out", "--overwrite")]
        assert main(words) == 0
        return seen[-1], json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))

    return call


# -- what reaches the trainer ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_arguments_of_transformers_reach_the_trainer(command):
    words = "--bf16 --gradient-checkpointing --weight_decay 0.3 --lr-scheduler-type constant --adam-beta2 0.9"
    (model, args, _), report = command(*words.split(), "--report-to", "none", "--save-strategy", "no")
    assert args.bf16
    assert (
        model.is_activation_checkpointing
        if hasattr(model, "is_activation_checkpointing")
        else args.gradient_checkpointing
    )
    assert (args.weight_decay, args.adam_beta2, args.lr_scheduler_type) == (0.3, 0.9, "constant")
    assert args.save_strategy == "no"
    shown = {"bf16": True, "adam_beta2": 0.9, "weight_decay": 0.3, "lr_scheduler_type": "constant"}
    assert report["settings"] | shown == report["settings"]


def test_every_setting_of_the_loss_reaches_it(command):
    words = {
        "k": "6", "matching": "greedy", "pool": "30", "temperature": "1.5", "sequence-temperature": "3",
        "had-weight": "0.5", "sl-weight": "0.2", "sd-weight": "0.3", "epsilon": "0.2", "n-iter": "9",
        "tol": "0.001", "token-cost": "log", "sequence-cost": "log", "alpha": "0.4",
    }  # fmt: skip
    (_, args, _), report = command(
        *(w for name, v in words.items() for w in (f"--{name}", v)), "--standardize"
    )
    config = args.ot_config()
    named = {each.name for each in fields(MultiLevelOTConfig)} & {name.replace("-", "_") for name in words}
    for name in named | {"standardize"}:
        assert getattr(config, name) != getattr(MultiLevelOTConfig(), name)
        assert report["settings"][name] == getattr(config, name)
    assert args.alpha == 0.4


def test_k_none_from_a_shell(command):
    (_, args, _), report = command("--matching", "rank", "--k", "none", "--steps", "1")
    assert args.ot_config().k is None
    assert report["settings"]["k"] is None


def test_the_plan_from_the_text(command, tmp_path):
    (_, args, _), report = command("--matching", "text", "--baseline")
    assert (args.ot_config(), args.alpha) == (replace(MultiLevelOTConfig.text(), k=8), 1.0)
    (notice,) = report["notices"][-1:]
    assert notice.startswith("--matching text: the page's transport plan")
    assert 'id="text-plan"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    plain, distilled = (report["models"][name] for name in ("student-ce", "student-mlot"))
    assert plain["curve"][0] == distilled["curve"][0]
    assert plain["bits_per_byte"] != distilled["bits_per_byte"]


def test_epochs(command):
    given = SHORT.index("--steps")
    del SHORT[given : given + 2]
    try:
        (_, args, kwargs), report = command("--num-train-epochs", "2", "--batch-size", "32")
    finally:
        SHORT[given:given] = ["--steps", "4"]
    assert args.max_steps == -1
    steps = 2 * -(-len(kwargs["train_dataset"]) // 32)
    assert report["models"]["student-mlot"]["steps"] == steps
    assert report["models"]["student-mlot"]["curve"][-1]["step"] == steps


def test_the_best_checkpoint_survives(command):
    words = [
        "--load-best-model-at-end",
        "--metric-for-best-model",
        "eval_bits_per_byte",
        "--learning-rate",
        "5",
    ]
    _, report = command(*words, "--steps", "6", "--checkpoint-every", "3")
    curve = {point["step"]: point["bits_per_byte"] for point in report["models"]["student-mlot"]["curve"]}
    measured = report["models"]["student-mlot"]["bits_per_byte"]
    assert measured == pytest.approx(min(curve[3], curve[6]), rel=1e-5)


# -- text ------------------------------------------------------------------------------------------------


def test_several_files_of_several_kinds(command, text, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"row {n} of a table, which is a text"} for n in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"text": "a row on the disk"}]).save_to_disk(tmp_path / "saved")
    (tmp_path / "b.jsonl").write_text('{"prompt": "the of ", "completion": "and to"}\n')
    names = [text, tmp_path / "a.parquet", tmp_path / "saved", tmp_path / "b.jsonl"]
    _, report = command("--text", *names, text=None)
    sizes = report["text"]
    assert sizes["train"]["documents"] + sizes["held_out"]["documents"] == 7 + 5 + 1 + 1
    assert sizes["source"] == ", ".join(map(str, names))


def test_a_file_to_measure_on(command, text, tmp_path):
    documents = texts_of(text)
    apart = tmp_path / "held-out.jsonl"
    apart.write_text("".join(json.dumps({"text": t}) + "\n" for t in (documents[0], "the of and to")))
    _, report = command("--eval-file", apart)
    # what is in both is measured on, not trained on
    assert (report["text"]["train"]["documents"], report["text"]["held_out"]["documents"]) == (6, 2)
    assert report["text"]["held_out"]["bytes"] == len((documents[0] + "the of and to").encode())


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def test_a_chat_template_for_a_base_student(command, tmp_path):
    turns = [{"role": "user", "content": "the of"}, {"role": "assistant", "content": "and to in"}]
    lines = [{"messages": [*turns, {"role": "user", "content": f"is {n}"}, turns[1]]} for n in range(6)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    words = [
        "--text",
        tmp_path / "chat.jsonl",
        "--chat-template",
        tmp_path / "template.jinja",
        "--length",
        "32",
    ]
    command(*words, text=None)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "student-mlot").chat_template == TEMPLATE


# -- adapters --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters(command, models, tmp_path):
    peft = pytest.importorskip("peft")
    words = ["--lora-rank", "2", "--lora-target", "q_proj", "v_proj", "--lora-alpha", "8", "--baseline"]
    (model, _, _), report = command(*words)
    assert model.peft_config["default"].r == 2
    assert model.peft_config["default"].lora_alpha == 8
    student = tmp_path / "out" / "student-mlot"
    merged = AutoModelForCausalLM.from_pretrained(student)
    start = AutoModelForCausalLM.from_pretrained(models[1])
    changed = {n for n, w in merged.named_parameters() if not torch.equal(w, start.state_dict()[n])}
    assert changed == {f"model.layers.0.self_attn.{n}_proj.weight" for n in "qv"}
    adapted = peft.PeftModel.from_pretrained(start, student / "adapter").merge_and_unload()
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(adapted.state_dict()[name], weight)
    first = [report["models"][name]["curve"][0]["bits_per_byte"] for name in ("student-ce", "student-mlot")]
    assert first[0] == first[1]


@pytest.mark.slow
def test_adapters_resume(command, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    words = ["--lora-rank", "2", "--baseline", "--seed", "3"]
    _, whole = command(*words)
    painter = running.Painter
    monkeypatch.setattr(running, "Painter", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(AssertionError):
        command(*words)
    monkeypatch.setattr(running, "Painter", painter)
    _, again = command(*words, "--resume")
    for name in ("student-ce", "student-mlot"):
        for what in ("curve", "bits_per_byte", "samples"):
            assert whole["models"][name][what] == again["models"][name][what]


def test_adapters_without_peft(models, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("mlot._hf.adapters.find_spec", lambda name: None)
    words = ["--teacher", models[0], "--student", models[1], "--text", text, "--output", tmp_path / "out"]
    assert main([str(word) for word in (*SHORT, *words, "--lora-rank", "2")]) == 2
    assert (
        "--lora-rank: adapters need peft, which is not installed; pip install peft" in capsys.readouterr().err
    )


def test_modules_that_are_not_there_get_no_adapters(models, text, tmp_path, capsys):
    pytest.importorskip("peft")
    words = ["--teacher", models[0], "--student", models[1], "--text", text, "--output", tmp_path / "out"]
    assert main([str(word) for word in (*SHORT, *words, "--lora-rank", "2", "--lora-target", "nothing")]) == 2
    assert "mlot.distill: error: --lora-target: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- what is refused -------------------------------------------------------------------------------------

FOLDERS = {"teacher": "t", "student": "s"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            FOLDERS | {"student_width": 64},
            "--student-width: expected none, since the models come from --teacher",
        ),
        (FOLDERS | {"teacher_steps": 5}, "--teacher-steps: expected none, since the models come from"),
        ({"lora_alpha": 3}, "--lora-alpha: expected none, since there is no --lora-rank"),
        ({"eval_file": ["x"], "held_out": 0.1}, "--held-out: expected none, since --eval-file says what"),
        ({"max_steps": 3, "num_train_epochs": 2.0}, "--num-train-epochs: expected none, since --steps says"),
        ({"eval_steps": 3, "evaluations": 4}, "--evaluations: expected none, since --eval-steps says when"),
        ({"save_steps": 3, "checkpoint_every": 4}, "--checkpoint-every: expected none, since --save-steps"),
        ({"matching": "rank", "pool": 300}, "--pool: expected none, since --matching rank compares none"),
        ({"sd_weight": 0.0, "epsilon": 0.2}, "--epsilon: expected none, since --sd-weight is 0"),
        ({"matching": "text", "pairs": "index"}, "--pairs: expected none, since --matching is text"),
        ({"do_train": True}, "--do-train: expected none, since the command trains"),
        (
            {"resume_from_checkpoint": "x"},
            "--resume-from-checkpoint: expected none, since --resume continues",
        ),
        ({"matching": "best"}, "--matching: expected one of"),
        ({"k": "many"}, "--k: expected an integer or none, got 'many'"),
        ({"lora_rank": 0}, "--lora-rank: expected an integer >= 1 or None, got 0"),
        ({"label_smoothing_factor": 0.1}, "--label-smoothing-factor: expected 0, since the loss has"),
    ],
)
def test_what_has_no_effect_or_is_out_of_range_is_refused(given, message):
    with pytest.raises(DistillError) as caught:
        Settings.of(**given)
    assert str(caught.value).startswith(message)


def test_quick_leaves_folders_alone():
    assert Settings.of(quick=True, **FOLDERS).arguments.max_steps == 100


@pytest.mark.parametrize("template", ["nowhere.jinja", "teacher"])
def test_chat_templates_that_are_not_there(models, text, tmp_path, capsys, monkeypatch, template):
    run_without_training(monkeypatch)
    words = ["--teacher", models[0], "--student", models[1], "--text", text, "--output", tmp_path / "out"]
    assert main([str(word) for word in (*SHORT, *words, "--chat-template", template)]) == 2
    assert "mlot.distill: error: --chat-template: expected a " in capsys.readouterr().err
