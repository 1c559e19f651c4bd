"""Settings: every field documented and checked, round trips, the command line."""

import dataclasses
import json

import pytest

pytest.importorskip("transformers")

import torch
from transformers import HfArgumentParser, TrainingArguments

from mlot import MultiLevelOTConfig
from mlot.training import MultiLevelOTTrainingArguments

THEIRS = {field.name for field in dataclasses.fields(TrainingArguments)}
OURS = [f for f in dataclasses.fields(MultiLevelOTTrainingArguments) if f.name not in THEIRS]
SETTINGS = {
    "alpha": 0.4,
    "k": 7,
    "matching": "greedy",
    "pool": 30,
    "temperature": 1.5,
    "sequence_temperature": 3.0,
    "standardize": True,
    "had_weight": 0.5,
    "sl_weight": 0.2,
    "sd_weight": 0.3,
    "epsilon": 0.2,
    "n_iter": 9,
    "tol": 1e-3,
    "token_cost": "log",
    "sequence_cost": "log",
    "pairs": "index",
    "use_linear_head": True,
    "use_teacher_linear_head": True,
    "overwrite_logits": True,
    "teacher_dtype": "bfloat16",
    "teacher_device": "cpu",
    "log_diagnostics_every": 3,
    "eval_distillation": True,
    "tokenize_ahead": False,
    "on_policy": 0.0,  # all that goes with overwrite_logits
    "on_policy_temperature": 0.9,
    "on_policy_max_new_tokens": 9,
    "on_policy_answers": 2,
    "on_policy_reuse": 2,
    "on_policy_changed": "leave_out",
}


def test_every_field_is_documented():
    assert {field.name for field in OURS} == set(SETTINGS)
    for field in OURS:
        assert field.metadata["help"].endswith(".")
        assert f"\n        {field.name}: " in MultiLevelOTTrainingArguments.__doc__


def test_defaults_are_those_of_the_paper_and_safe(tmp_path):
    args = MultiLevelOTTrainingArguments(str(tmp_path))
    assert args.ot_config() == MultiLevelOTConfig()
    assert args.alpha == 0.15
    assert args.remove_unused_columns is False


def test_every_setting_of_the_loss_gets_there(tmp_path):
    config = MultiLevelOTTrainingArguments(str(tmp_path), **SETTINGS).ot_config()
    for field in dataclasses.fields(MultiLevelOTConfig):
        assert (
            getattr(config, field.name) == SETTINGS[field.name] != getattr(MultiLevelOTConfig(), field.name)
        )


def test_round_trips(tmp_path):
    args = MultiLevelOTTrainingArguments(str(tmp_path / "out"), learning_rate=3e-4, seed=5, **SETTINGS)
    found = args.to_dict()
    assert json.loads(args.to_json_string()) == json.loads(json.dumps(found))
    assert {name: found[name] for name in SETTINGS} == SETTINGS
    path = tmp_path / "args.json"
    path.write_text(args.to_json_string(), encoding="utf-8")
    (again,) = HfArgumentParser(MultiLevelOTTrainingArguments).parse_json_file(str(path))
    differing = {name for name, value in again.to_dict().items() if value != found[name]}
    assert differing <= {"logging_dir"}
    torch.save(args, tmp_path / "training_args.bin")
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert loaded.ot_config() == args.ot_config()


def test_command_line(tmp_path):
    words = [
        "--output_dir",
        str(tmp_path),
        "--k",
        "20",
        "--matching",
        "rank",
        "--use_linear_head",
        "--tol",
        "0.01",
    ]
    (args,) = HfArgumentParser(MultiLevelOTTrainingArguments).parse_args_into_dataclasses(words)
    assert args.ot_config() == MultiLevelOTConfig(k=20, matching="rank", tol=0.01)
    assert args.use_linear_head
    with pytest.raises(SystemExit):
        HfArgumentParser(MultiLevelOTTrainingArguments).parse_args_into_dataclasses(
            [*words, "--matching", "best"]
        )


@pytest.mark.parametrize("none", ["none", "None", "null"])
def test_a_shell_can_say_none(tmp_path, none):
    parser = HfArgumentParser(MultiLevelOTTrainingArguments)
    words = ["--output_dir", str(tmp_path), "--matching", "rank", "--k", none, "--tol", none, "--pool", "300"]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert args.ot_config() == MultiLevelOTConfig(k=None, matching="rank", pool=300)
    assert (args.k, args.tol, args.pool) == (None, None, 300)
    with pytest.raises(ValueError, match="pool: expected an integer or none, got '12.5'"):
        parser.parse_args_into_dataclasses([*words, "--pool", "12.5"])


def test_fields_are_made_of_the_settings_of_the_loss():
    defaults = MultiLevelOTConfig()
    for field in dataclasses.fields(MultiLevelOTConfig):
        made = MultiLevelOTTrainingArguments.__dataclass_fields__[field.name]
        assert getattr(MultiLevelOTTrainingArguments("out"), field.name) == getattr(defaults, field.name)
        assert "`" not in made.metadata["help"]
    assert "max(8k, 256)" in MultiLevelOTTrainingArguments.__dataclass_fields__["pool"].metadata["help"]


def test_settings_of_two_kinds_together(tmp_path):
    @dataclasses.dataclass
    class Theirs(TrainingArguments):
        own: int = 3

        def __post_init__(self):
            super().__post_init__()
            self.own += 1

    @dataclasses.dataclass
    class Mine(MultiLevelOTTrainingArguments, Theirs):
        pass

    args = Mine(str(tmp_path), own=5, k=9)
    assert (args.own, args.ot_config().k, args.remove_unused_columns) == (6, 9, False)
    with pytest.raises(ValueError, match="k: expected"):
        Mine(str(tmp_path), k=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1}, "alpha: expected a finite number >= 0, got -1"),
        ({"k": 0}, "k: expected an integer >= 1 or None, got 0"),
        ({"k": None}, "k: expected a number, since only matching='rank' and 'text' take None"),
        ({"matching": "best"}, "matching: expected one of"),
        ({"pool": 3}, "pool: expected at least k = 50 candidates, got 3"),
        ({"temperature": 0}, "temperature: expected"),
        ({"epsilon": float("nan")}, "epsilon: expected"),
        ({"n_iter": 1.5}, "n_iter: expected"),
        ({"had_weight": 0, "sl_weight": 0, "sd_weight": 0}, "had_weight: expected a positive"),
        ({"pairs": "prefix"}, "pairs: expected one of"),
        ({"use_linear_head": 1}, "use_linear_head: expected True or False"),
        ({"teacher_dtype": "int8"}, "teacher_dtype: expected the name of a floating-point type"),
        ({"teacher_dtype": "Tensor"}, "teacher_dtype: expected the name"),
        ({"teacher_device": "gpu0"}, "teacher_device: expected a device"),
        ({"log_diagnostics_every": -1}, "log_diagnostics_every: expected an integer >= 0, got -1"),
        ({"tokenize_ahead": None}, "tokenize_ahead: expected True or False"),
        ({"remove_unused_columns": True}, "remove_unused_columns: expected False"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: expected 0"),
        (
            {"use_linear_head": True, "torch_compile": True},
            "use_linear_head: expected False with torch_compile",
        ),
        ({"use_linear_head": True, "torch_compile_mode": "default"}, "use_linear_head: expected False"),
    ],
)
def test_what_is_refused(tmp_path, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MultiLevelOTTrainingArguments(str(tmp_path), **settings)
