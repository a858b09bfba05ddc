"""Every architecture in every kind of file that people have, through every script that takes it.

python -m pytest -x tests/long/test_hub_cells.py
"""

from pathlib import Path

import pytest
import torch
from all_scripts import ALL_SCRIPTS, run, words_of, write_data
from hub_models import SAME, SHAPES, build_hub_model, older_names
from safetensors.torch import load_file
from test_hub_models import ENCODERS, TEXTS, round_trip
from tiny_instructions import texts as instruction_texts

from models import pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


def older(architecture: str) -> dict:
    """The shape with norms named as TensorFlow named them, whatever else it renames."""
    rename = SHAPES[architecture].rename
    return {"rename": lambda weights: older_names(rename(weights))}


CELLS = {
    "safetensors": lambda _: {"file": "safetensors"},
    "bin": lambda _: {"file": "bin"},
    "shards": lambda _: {"file": "shards"},
    "bin in shards": lambda _: {"file": "bin_shards"},
    "fp16": lambda _: {"dtype": torch.float16},
    "bf16": lambda _: {"dtype": torch.bfloat16},
    "fp16 in shards": lambda _: {"dtype": torch.float16, "file": "shards"},
    "gamma and beta": older,
    "gamma and beta in shards": lambda name: older(name) | {"file": "bin_shards"},
    "without the base's prefix": lambda name: {
        "rename": lambda weights: {
            key.removeprefix(f"{PREFIXES[name]}."): tensor
            for key, tensor in SHAPES[name].rename(weights).items()
        }
    },
}
PREFIXES = {name: name for name in SHAPES} | {
    **{"deberta-v3": "deberta", "modernbert": "model", "gpt2": "transformer"}
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_goes_there_and_back(architecture, cell, pair_csv, tmp_path):
    changes = CELLS[cell](architecture)
    folder = build_hub_model(architecture, tmp_path / "model", TEXTS, **changes)
    round_trip(folder, pair_csv, tmp_path / "run")


@pytest.fixture(scope="module")
def data(tmp_path_factory, pair_csv) -> dict[str, Path]:
    return write_data(tmp_path_factory.mktemp("rows")) | {"pairs": pair_csv}


def takes(script: str, name: str) -> bool:
    """alpaca_sft.py trains decoders; rates by depth (finetune_gpt2.py) need separate layers."""
    return script != "alpaca_sft" and (script, name) != ("finetune_gpt2", "albert")


@pytest.mark.parametrize(
    "script, name",
    [(s, name) for s in ALL_SCRIPTS for name in pretrained.REGISTRY if takes(s, name)],
)
def test_every_script_takes_every_name(name, script, data, tmp_path):
    folder = build_hub_model(SAME.get(name, name), tmp_path / "model", TEXTS)
    out = tmp_path / "run"
    words = [f"--model={folder}", *words_of(script, data), f"--out={out}", "--save_every=1"]
    assert run(script, *words, "--stop_after=1")["status"] == "stopped"
    assert run(script, *words)["status"] == "finished"
    saved = load_file(out / "train/weights/best/model.safetensors")
    assert not any(key.endswith((".gamma", ".beta")) for key in saved)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if "gamma" not in cell])
@pytest.mark.parametrize("script", ["finetune_gpt2", "alpaca_sft"])
def test_gpt2_goes_there_and_back(script, cell, data, tmp_path):
    texts = [*TEXTS, *instruction_texts()]
    folder = build_hub_model("gpt2", tmp_path / "model", texts, **CELLS[cell]("gpt2"))
    out = tmp_path / "run"
    words = [f"--model={folder}", *words_of(script, data), f"--out={out}", "--save_every=1"]
    assert run(script, *words, "--stop_after=1")["status"] == "stopped"
    assert run(script, *words)["status"] == "finished"
