"""Every model that --model names, in the hub's shape: loaded, trained, saved, resumed, asked."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from all_scripts import run, words_of, write_data
from conftest import PROJECT, WORDS
from hub_models import SAME, SHAPES, build_hub_model, older_names
from safetensors.torch import load_file, save_file
from tiny_instructions import texts as instruction_texts

from commands import predict
from commands.opening import OpenConfig, open_causal
from data import arena
from models import pretrained

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
TEXTS += [" ".join(str(number) for number in range(100))]
ENCODERS = [name for name in SHAPES if name != "gpt2"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """hub(architecture) → its folder, built when first asked for."""
    root = tmp_path_factory.mktemp("hub")

    def find(architecture: str) -> Path:
        folder, texts = root / architecture, TEXTS
        if architecture == "gpt2":
            texts = [*TEXTS, *instruction_texts()]
        return folder if folder.exists() else build_hub_model(architecture, folder, texts)

    return find


def test_every_name_of_the_registry_has_a_shape():
    assert {SAME.get(name, name) for name in pretrained.REGISTRY} == set(ENCODERS)


def original_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the files hold, in fp32, whatever they are."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        weights |= torch.load(path, weights_only=True)
    return {name: tensor.float() for name, tensor in weights.items()}


def assert_all_from(folder: Path, encoder: torch.nn.Module) -> None:
    """Each tensor of the encoder is the one in the files of its name, new or old."""
    there = original_weights(folder)
    for name, tensor in encoder.state_dict().items():
        older = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        older = older.replace("LayerNorm.bias", "LayerNorm.beta")
        ends = [key for key in there if key.endswith((f".{name}", f".{older}"))]
        ends += [key for key in (name, older) if key in there]
        assert any(torch.equal(there[key], tensor.cpu()) for key in ends), name


def round_trip(folder: Path, pair_csv: Path, out: Path) -> None:
    """Load, step, save, stop, resume, step, test, predict; and what is saved opens elsewhere."""
    from transformers import AutoModel

    assert_all_from(folder, pretrained.load_encoder(str(folder), attention="eager"))
    words = [f"--model={folder}", *words_of("run_5_models", {"pairs": pair_csv})]
    words += ["--lr=1e-3", f"--out={out}", "--save_every=1"]
    assert run("run_5_models", *words, "--stop_after=1")["status"] == "stopped"
    record = run("run_5_models", *words)
    assert record["status"] == "finished" and record["steps"] == 2

    asked = predict.PredictConfig(run_folder=str(out), device="cpu")
    opened = predict.Predictor(asked)
    with open(out / "test/metrics/predictions.csv", newline="") as file:
        lines = {line["id"]: line for line in csv.DictReader(file)}
    rows = [row for row in arena.load_arena(str(pair_csv))[0] if row.id in lines]
    p = opened(rows)
    told = [[float(lines[row.id][f"p_{name}"]) for name in ("A", "B", "tie")] for row in rows]
    np.testing.assert_allclose(p, told, atol=1e-5)

    best = out / "train/weights/best"
    model, report = AutoModel.from_pretrained(best, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all("pooler" in key for key in report["missing_keys"])
    ours = opened.answer.model.encoder.state_dict()
    assert set(load_file(best / "model.safetensors")) == set(ours)
    theirs = model.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


@pytest.fixture(scope="module")
def data(tmp_path_factory, pair_csv) -> dict[str, Path]:
    return write_data(tmp_path_factory.mktemp("rows")) | {"pairs": pair_csv}


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_model_of_the_hub_goes_there_and_back(architecture, hub, pair_csv, tmp_path):
    round_trip(hub(architecture), pair_csv, tmp_path / "run")


@pytest.mark.parametrize(
    "script, architecture",
    [
        ("eval_bert", "bert"),
        ("finetune_gpt2", "bert"),
        ("finetune_gpt2", "gpt2"),
        ("alpaca_sft", "gpt2"),
    ],
)
def test_other_scripts_read_back_what_they_save(script, architecture, hub, data, tmp_path):
    out = tmp_path / "run"
    words = [f"--model={hub(architecture)}", *words_of(script, data), f"--out={out}"]
    assert run(script, *words, "--save_every=1", "--stop_after=1")["status"] == "stopped"
    assert run(script, *words, "--save_every=1")["status"] == "finished"
    weights = load_file(out / "train/weights/best/model.safetensors")
    assert not any(name.endswith((".gamma", ".beta", "masked_bias")) for name in weights)
    if script == "alpaca_sft":
        open_causal(OpenConfig(model=str(out), device="cpu"))
    again = tmp_path / "again"  # and a run goes on from what a run saved
    words = [f"--model={out}", *words_of(script, data), f"--out={again}"]
    assert run(script, *words)["status"] == "finished"


def test_weights_that_an_earlier_version_saved_by_older_names_are_read(tiny_bert, tmp_path):
    model = pretrained.load_encoder(str(tiny_bert))
    pretrained.save_weights(model, tmp_path)
    new = load_file(tmp_path / "model.safetensors")
    save_file(older_names(new), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert set(pretrained.read_weights(tmp_path)) == set(new)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    pretrained.restore_weights(model, tmp_path)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_models_are_saved_in_one_place():
    """Another place would write the names that weights came with, which nothing reads back."""
    places = []
    for path in PROJECT.rglob("*.py"):
        if not {"tests", "benchmarks", ".venv"} & set(path.relative_to(PROJECT).parts):
            for call in re.findall(r"(\w+)\.save_pretrained\(", path.read_text()):
                if "tokenizer" not in call:
                    places.append(f"{path.name}: {call}")
    assert places == ["pretrained.py: model"]
