"""Weights that do not fit are refused by every script, and what is new or unused is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from all_scripts import ALL_SCRIPTS, run, words_of, write_data
from conftest import WORDS
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny_gpt2
from torch import Tensor

from models import causal, pretrained

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
Weights = dict[str, Tensor]


def renamed(before: str) -> Callable[[Weights], Weights]:
    return lambda weights: {before + name: tensor for name, tensor in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: t for n, t in weights.items() if part not in n}


def cut(part: str) -> Callable[[Weights], Weights]:
    """One row less than config.json says."""
    return lambda weights: {n: t[:-1] if part in n else t for n, t in weights.items()}


# what was done to a folder, and what the refusal names
SPOILED = {
    "wrapped by DDP": (renamed("module."), "without 'module.'"),
    "wrapped by torch.compile": (renamed("_orig_mod."), "without '_orig_mod.'"),
    "a part of a larger model": (renamed("model.text_encoder."), "'model.text_encoder.'"),
    "wrapped twice": (renamed("module._orig_mod."), "without 'module._orig_mod.'"),
    "a layer is lacking": (without(".1."), "of fewer layers, than its config.json says"),
    "one bias is lacking": (without("0.attention.output.dense.bias"), "lacks 1 weights"),
    "another vocabulary": (cut("word_embeddings"), "has the shape .127, 32. there, and .128, 32."),
    "fewer positions": (cut("position_embeddings"), "has the shape .127, 32. there"),
}


def spoil(folder: Path, new: Path, change: Callable[[Weights], Weights]) -> Path:
    shutil.copytree(folder, new)
    weights = change(load_file(new / "model.safetensors"))
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    return new


@pytest.mark.parametrize("what", SPOILED)
def test_no_loader_takes_weights_that_do_not_fit(what, tiny_bert, tmp_path):
    from transformers import AutoModelForMaskedLM

    change, reason = SPOILED[what]
    folder = str(spoil(tiny_bert, tmp_path / "model", change))
    config = pretrained.load_config(folder)
    for load in (
        lambda: pretrained.load_encoder(folder),
        lambda: causal.load_model(folder, config, ("a", "b")),
        lambda: pretrained.load_whole(AutoModelForMaskedLM, folder, config),
    ):
        with pytest.raises(ValueError, match=f"{folder} .*{reason}"):
            load()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return build_tiny_gpt2(tmp_path_factory.mktemp("models") / "gpt2", TEXTS, positions=256)


@pytest.mark.parametrize(
    "change, reason",
    [
        (renamed("module."), "without 'module.'"),
        (without("h.1."), "of fewer layers"),
        (without("wpe"), "lacks 1 weights"),
        (cut("wte"), "has the shape"),
    ],
)
def test_no_decoder_is_loaded_in_part(change, reason, gpt2, tmp_path):
    folder = str(spoil(gpt2, tmp_path / "model", change))
    for classes in (None, ("a", "b")):
        with pytest.raises(ValueError, match=f"{folder} .*{reason}"):
            causal.load_model(folder, causal.load_config(folder), classes)


def test_weights_inside_another_dictionary_are_none(tiny_bert, tmp_path):
    """As a training script of one's own saves them, beside an epoch."""
    shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({"model": weights, "epoch": 3}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(ValueError, match="lacks .* weights of the encoder or decoder"):
        pretrained.load_encoder(str(tmp_path / "model"))


class Code:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("executed",)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n")


@pytest.mark.parametrize(
    "damage, kind, reason",
    [
        (cut_off, "safetensors", "is cut off or damaged"),
        (cut_off, "bin", "is cut off or damaged"),
        (pointer, "safetensors", "git lfs pull"),
        (pointer, "bin", "git lfs pull"),
        (lambda path: path.write_bytes(b""), "safetensors", "is cut off or damaged"),
        (lambda path: torch.save({"a": Code()}, path), "bin", "nothing is executed from it"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(damage, kind, reason, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    if kind == "bin":
        torch.save(load_file(file), tmp_path / "model/pytorch_model.bin")
        file.unlink()
        file = tmp_path / "model/pytorch_model.bin"
    damage(file)
    with pytest.raises(ValueError, match=f"{tmp_path / 'model'}.*{reason}"):
        pretrained.load_encoder(str(tmp_path / "model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, pair_csv) -> dict[str, Path]:
    return write_data(tmp_path_factory.mktemp("rows")) | {"pairs": pair_csv}


@pytest.mark.parametrize("script", ALL_SCRIPTS)
@pytest.mark.parametrize("before", ["module.", "_orig_mod."])
def test_every_script_refuses_them_before_it_trains(
    script, before, tiny_bert, gpt2, data, tmp_path
):
    model = gpt2 if script == "alpaca_sft" else tiny_bert
    folder = spoil(model, tmp_path / "model", renamed(before))
    words = words_of(script, data)
    with pytest.raises(ValueError, match=f"rename its weights without '{before}'"):
        run(script, f"--model={folder}", *words, f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run/train/weights").exists()


def test_a_head_may_be_new_and_is_said(tiny_bert, gpt2):
    for folder, names in (
        (tiny_bert, "classifier.bias, classifier.weight"),
        (gpt2, "score.weight"),
    ):
        said: list[str] = []
        config = causal.load_config(str(folder))
        causal.load_model(str(folder), config, ("a", "b"), say=said.append)
        assert len(said) == 1 and said[0].startswith("new in the model") and names in said[0]
        causal.load_model(str(folder), config, ("a", "b"), "random", say=said.append)
        assert len(said) == 1  # all of it is: nothing is new


def test_weights_that_config_json_has_no_room_for_are_said(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "model")
    facts = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(facts | {"num_hidden_layers": 1}))
    said: list[str] = []
    assert len(pretrained.load_encoder(str(tmp_path / "model"), say=said.append).encoder.layer) == 1
    assert len(said) == 1 and "has 16 weights more than its config.json has room for" in said[0]
    said.clear()
    pretrained.load_encoder(str(tiny_bert), say=said.append)
    assert not said
