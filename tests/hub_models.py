"""Small models in the shape in which the hub has them: names of weights, heads, files, precision.

folder = build_hub_model("bert", folder, texts)                     # as bert-base-uncased is
folder = build_hub_model("bert", folder, texts, file="shards")      # and in another kind of file
folder = into_hub_cache(folder, "google/electra-base-discriminator", home)    # for HF_HOME
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tiny_models import ARCHITECTURES, build_tiny_gpt2, build_tiny_model
from torch import Tensor

Weights = dict[str, Tensor]


def older_names(weights: Weights) -> Weights:
    """As BERT's first files, which were made with TensorFlow, name the norms."""

    def older(name: str) -> str:
        name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
        return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)

    return {older(name): tensor for name, tensor in weights.items()}


def first_roberta(weights: Weights) -> Weights:
    positions = weights["roberta.embeddings.position_embeddings.weight"].shape[0]
    return weights | {"roberta.embeddings.position_ids": torch.arange(positions)[None]}


def first_deberta(weights: Weights) -> Weights:
    """The makers' own names of the heads that they pretrained with."""
    place = ("cls.predictions.transform", "lm_predictions.lm_head")
    renamed = {name.replace(*place): tensor for name, tensor in weights.items()}
    return {n.replace("cls.predictions", "lm_predictions.lm_head"): t for n, t in renamed.items()}


def first_deberta_v3(weights: Weights) -> Weights:
    return first_deberta(weights) | {
        "mask_predictions.dense.weight": torch.ones(32, 32),
        "mask_predictions.classifier.weight": torch.ones(1, 32),
    }


def first_gpt2(weights: Weights) -> Weights:
    """Without the base model's prefix, and with the masks of attention beside the weights."""
    weights = {n.removeprefix("transformer."): t for n, t in weights.items()}
    weights.pop("lm_head.weight", None)
    layers = {name.split(".")[1] for name in weights if name.startswith("h.")}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 256, 256).tril() for layer in layers}
    return weights | masks | {f"h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in layers}


@dataclass
class Shape:
    """How the hub has an architecture."""

    kind: str  # transformers' class with the heads of pretraining
    rename: Callable[[Weights], Weights] = dict
    file: Literal["safetensors", "bin", "shards", "bin_shards"] = "safetensors"
    dtype: torch.dtype = torch.float32


SHAPES = {
    "distilbert": Shape("DistilBertForMaskedLM"),
    "bert": Shape("BertForPreTraining", older_names),
    "roberta": Shape("RobertaForMaskedLM", first_roberta),
    "electra": Shape("ElectraForPreTraining", file="bin"),
    "deberta": Shape("DebertaForMaskedLM", first_deberta, "bin"),
    "deberta-v3": Shape("DebertaV2ForMaskedLM", first_deberta_v3, "bin", torch.float16),
    "albert": Shape("AlbertForPreTraining"),
    "modernbert": Shape("ModernBertForMaskedLM"),
    "gpt2": Shape("GPT2LMHeadModel", first_gpt2),
}
# The names of --model that share an architecture with another one.
SAME = {
    "bert-large": "bert",
    **{f"deberta-v3-{size}": "deberta-v3" for size in ("xsmall", "small", "large")},
}


def build_hub_model(
    architecture: str, folder: Path, texts: Sequence[str], *, layers: int = 2, **changes: Any
) -> Path:
    """A new folder with config, tokenizer and random weights; changes: to its Shape."""
    import transformers

    shape = dataclasses.replace(SHAPES[architecture], **changes)
    if architecture in ARCHITECTURES:
        build_tiny_model(architecture, folder, texts)
    else:
        folder.mkdir(parents=True)
        build_tiny_gpt2(folder, texts, positions=256)
    kind = getattr(transformers, shape.kind)
    config = kind.config_class.from_pretrained(folder)
    config.num_hidden_layers = layers
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:layers]
    config.architectures, config.dtype = [shape.kind], shape.dtype
    torch.manual_seed(1234)
    model = kind(config)
    tied = getattr(model, "all_tied_weights_keys", {})
    weights = {n: t.detach().clone() for n, t in model.state_dict().items() if n not in tied}
    (folder / "model.safetensors").unlink()
    config.save_pretrained(folder)
    write_weights(shape.rename(weights), folder, shape)
    return folder


def write_weights(weights: Weights, folder: Path, shape: Shape) -> None:
    weights = {n: t.to(shape.dtype) if t.is_floating_point() else t for n, t in weights.items()}
    names = list(weights)
    end = "bin" if shape.file.startswith("bin") else "safetensors"
    stem = "pytorch_model" if end == "bin" else "model"
    files = {f"{stem}.{end}": names}
    if shape.file.endswith("shards"):
        files = {f"{stem}-{i + 1:05d}-of-00003.{end}": names[i::3] for i in range(3)}
        places = {name: file for file, part in files.items() for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    for file, part in files.items():
        tensors = {name: weights[name].contiguous() for name in part}
        if end == "bin":
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})


def into_hub_cache(folder: Path, name: str, home: Path, kind: str = "models") -> None:
    """Lay a folder into the cache of the hub below `home` (HF_HOME), as a download would."""
    place = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    commit = hashlib.sha1(name.encode()).hexdigest()
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)


def into_datasets_cache(csv: Path, name: str, home: Path) -> None:
    """Lay the rows of a CSV file into the cache of the package datasets below `home`, as train."""
    import datasets

    owner, short = name.split("/")
    commit = hashlib.sha1(name.encode()).hexdigest()
    place = home / "datasets" / f"{owner}___{short}" / "default/0.0.0" / commit
    rows = datasets.Dataset.from_csv(str(csv), cache_dir=str(home / "made"))
    rows.save_to_disk(place)
    (place / "data-00000-of-00001.arrow").rename(place / f"{short}-train.arrow")
    facts = json.loads((place / "dataset_info.json").read_text())
    train = {"name": "train", "num_examples": len(rows), "dataset_name": short}
    facts |= {"config_name": "default", "dataset_name": short, "splits": {"train": train}}
    (place / "dataset_info.json").write_text(json.dumps(facts))
