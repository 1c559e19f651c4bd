"""Each extra by itself: in an environment with the wheel, what the extra requires and nothing else, its parts run."""

from pathlib import Path

import pytest

from wheels import build_wheel, environment, run_python

pytestmark = pytest.mark.slow

TORCH = """
import torch, mlot.nn
loss = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=4))
labels = torch.zeros(2, 5, dtype=torch.long)
print(loss(torch.randn(2, 5, 9, requires_grad=True), torch.randn(2, 5, 8), labels, labels).requires_grad)
"""

POT = """
import numpy as np, mlot
print(float(mlot.emd(np.eye(3)).value) == 0)
"""

#: Saves traces and a teacher's shard, reads both, and runs the command on them.
IO = """
import numpy as np, mlot
from mlot.saved import SavedTeacher, TeacherWriter, Manifest, example_key
from mlot.saved.cli import main
traces = mlot.select(np.random.default_rng(0).normal(size=(1, 3, 9)), k=4, extra_temperatures=(2.0,))
traces.save("traces.safetensors")
print(mlot.Traces.load("traces.safetensors").k == 4)
manifest = Manifest(model="m", model_fingerprint="f", tokenizer_fingerprint="t", vocab_size=9, k=4)
with TeacherWriter("saved", manifest) as writer:
    writer.add([example_key([1, 2, 3], [True, True, True])], traces)
print(len(SavedTeacher("saved")) == 1, main(["verify", "saved"]) == 0, main(["info", "saved"]) == 0)
print(main(["save", "--model", "m", "--text", "t", "--output", "o"]) == 2)
"""

#: Makes a model and its tokenizer in a folder.
MODEL = """
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {c: n for n, c in enumerate(["<s>", "</s>", *alphabet])}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
)
def make():
    return LlamaForCausalLM(LlamaConfig(vocab_size=258, hidden_size=32, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=64))
for folder in ("teacher", "student"):
    make().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
"""

HF = (
    MODEL
    + """
from pathlib import Path
from mlot.saved.cli import main
Path("text.txt").write_text("one line\\nanother line\\n")
print(main(["save", "--model", "teacher", "--text", "text.txt", "--output", "saved", "--k", "8"]) == 0)
from mlot.training import DistillationCollator, MultiLevelOTTrainer, MultiLevelOTTrainingArguments
args = MultiLevelOTTrainingArguments(
    "out", max_steps=2, k=8, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
)
data = [{"text": "one line"}, {"text": "another line"}]
trainer = MultiLevelOTTrainer(make(), args, DistillationCollator(tokenizer, tokenizer), data, teacher=make())
print(trainer.train().global_step == 2)
"""
)

DEMO = (
    MODEL
    + """
from pathlib import Path
from mlot.distill.cli import main
Path("text.txt").write_text("\\n\\n".join("a line of text number %d, which is rather long\\n" % n * 30 for n in range(8)))
shared = ["--text", "text.txt", "--steps", "2", "--k", "8", "--length", "48", "--evaluations", "1"]
print(main([*shared, "--teacher", "teacher", "--student", "student"]) == 0)
print(Path("distill-output/report.html").is_file())
"""
)

#: For each extra: a program, the lines that it must print, and modules that must not be there.
PROMISES = {
    None: ("import mlot; print(mlot.__version__ != '')", 1, ("torch", "ot", "safetensors", "rich")),
    "torch": (TORCH, 1, ("ot", "safetensors", "transformers")),
    "pot": (POT, 1, ("torch", "safetensors")),
    "io": (IO, 3, ("torch", "ot", "transformers", "jinja2", "matplotlib")),
    "hf": (HF, 2, ("ot", "matplotlib", "peft", "datasets")),
    "demo": (DEMO, 2, ("ot", "peft", "datasets")),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.parametrize("extra", PROMISES)
def test_an_extra_keeps_its_promise_alone(wheel: Path, tmp_path: Path, extra: str | None) -> None:
    python = environment(wheel, tmp_path / "environment", extra)
    program, lines, absent = PROMISES[extra]
    check = f"from importlib.util import find_spec\nprint([m for m in {absent!r} if find_spec(m)])\n"
    folder = tmp_path / "work"
    folder.mkdir()
    done = run_python(python, check + program, folder)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[0] == "[]"
    said = [line for line in printed if set(line.split()) <= {"True", "False"} and line]
    assert said, printed
    assert len(said) == lines
    assert "False" not in " ".join(said)
    if extra == "io":
        assert "python -m mlot.saved save needs torch, transformers" in done.stderr
        assert 'pip install "mlot[hf]"' in done.stderr


def test_every_extra_is_tried(wheel: Path) -> None:
    import tomllib

    root = Path(__file__).resolve().parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras} - {"all"} == {*PROMISES} - {None}
