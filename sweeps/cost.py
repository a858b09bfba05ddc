"""What a run would cost on a named GPU, by the FLOPs of its matrix products: from settings alone.

    cost_of("run_5_models.py", settings).hours(GPUS["A100"], "fp32")

Neither weights nor rows are read: the shapes of models and the sizes of published data sets stand
below, and a file of your own is taken by its bytes. Forward, a weight costs two operations a token;
its gradient two, and that of its input two where something below it learns. Attention: 4 · width a
layer and pair of tokens (Chowdhery et al. 2022, PaLM, appendix B). What is no product (below a few
percent), and waiting for data, is left out; which share of its peak a GPU reaches is an assumption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from files import read_json

SHARE = 0.4  # of its peak that training reaches: an assumption, said with each figure
BYTES_A_TOKEN = 4  # of English in a vocabulary of 30,000 to 50,000


@dataclass(frozen=True)
class GPU:
    """By its data sheet, dense products: TFLOP/s in fp16 or bf16, and in fp32."""

    tensor: float
    fp32: float

    def rate(self, precision: str) -> float:
        """FLOP/s that a training run is taken to reach."""
        return SHARE * 1e12 * (self.fp32 if precision == "fp32" else self.tensor)


GPUS = {
    "T4": GPU(65, 8.1),
    "V100": GPU(125, 15.7),
    "RTX-3090": GPU(71, 35.6),
    "RTX-4090": GPU(165, 82.6),
    "L4": GPU(121, 30.3),
    "A40": GPU(149.7, 37.4),
    "A100": GPU(312, 19.5),
    "H100": GPU(989, 66.9),
    "H200": GPU(989, 66.9),
}


@dataclass(frozen=True)
class Shape:
    """Of a transformer: blocks, width, width inside the feed-forward part, vocabulary.

    matrices: of the feed-forward part, 3 where it is gated; positions: products of attention beside
    those of contents, in theirs (DeBERTa's two of relative positions: 3); causal: half the pairs.
    """

    layers: int
    width: int
    inner: int
    vocab: int
    causal: bool = False
    matrices: int = 2
    positions: float = 1.0

    def block(self, length: float) -> float:
        """FLOPs of a forward pass through one block, of a token among `length`."""
        weights = 4 * self.width**2 + self.matrices * self.width * self.inner
        pairs = length / 2 if self.causal else length
        return 2 * weights + 4 * self.width * pairs * self.positions

    @property
    def head(self) -> float:
        """Of the output matrix, a token."""
        return 2.0 * self.width * self.vocab


SHAPES = {
    "distilbert": Shape(6, 768, 3072, 30522),
    "bert": Shape(12, 768, 3072, 30522),
    "bert-large": Shape(24, 1024, 4096, 30522),
    "roberta": Shape(12, 768, 3072, 50265),
    "electra": Shape(12, 768, 3072, 30522),
    "albert": Shape(12, 768, 3072, 30000),
    "deberta": Shape(12, 768, 3072, 50265, positions=3.0),
    "deberta-v3": Shape(12, 768, 3072, 128100, positions=3.0),
    "deberta-v3-xsmall": Shape(12, 384, 1536, 128100, positions=3.0),
    "deberta-v3-small": Shape(6, 768, 3072, 128100, positions=3.0),
    "deberta-v3-large": Shape(24, 1024, 4096, 128100, positions=3.0),
    "modernbert": Shape(22, 768, 1152, 50368, matrices=3),
    "minilm": Shape(6, 384, 1536, 30522),
    "distilgpt2": Shape(6, 768, 3072, 50257, causal=True),
    "gpt2": Shape(12, 768, 3072, 50257, causal=True),
    "gpt2-medium": Shape(24, 1024, 4096, 50257, causal=True),
    "gpt2-large": Shape(36, 1280, 5120, 50257, causal=True),
    "gpt2-xl": Shape(48, 1600, 6400, 50257, causal=True),
}
# config.json of a local folder: the first of these names that is there
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "width": ("hidden_size", "n_embd", "dim"),
    "inner": ("intermediate_size", "n_inner", "hidden_dim"),
    "vocab": ("vocab_size",),
}
DECODERS = ("gpt", "llama", "qwen", "mistral", "opt", "phi", "gemma")


@dataclass(frozen=True)
class Rows:
    """A data set: rows (of a text: 1) and tokens of each, None for as many as --max_length."""

    rows: float
    tokens: float | None
    note: str = ""


# by (script's kind, name): train and test of the published splits, where there are such
DATA = {
    "lmarena-ai/arena-human-preference-55k": Rows(57_477, None, "each sequence at --max_length"),
    "reviews": Rows(16_638, None, "each sequence at --max_length"),
    "reviews_control": Rows(16_638, None, "each sequence at --max_length"),
    "tatsu-lab/alpaca": Rows(52_002, 204, "204 tokens a row, as 999 such rows have"),
    "imdb": Rows(25_000, 300, "300 tokens a text"),
    "ag_news": Rows(120_000, 50, "50 tokens a text"),
    "wikitext2": Rows(1, 2.39e6),
    "wikitext103": Rows(1, 117.9e6),
    "julien040/hacker-news-posts": Rows(100_000, 12.2, "12.2 tokens a title"),
}
TESTS = {"imdb": 25_000, "ag_news": 7_600}  # rows of a test part beside the others
WIKITEXT_TEST = 0.29e6  # tokens


@dataclass(frozen=True)
class Cost:
    """FLOPs of one run, or hours of a GPU that a budget names; what was assumed."""

    flops: float
    assumed: str = ""
    hours_there: float = 0.0  # on this machine's clock: no GPU changes it

    def hours(self, gpu: GPU, precision: str) -> float:
        return self.hours_there or self.flops / gpu.rate(precision) / 3600


def cost_of(script: str, settings: Mapping[str, Any]) -> Cost:
    """Of one run of a script of ours with all its settings. ValueError says what is not known."""
    stem = Path(script).stem
    if stem not in COSTS:
        raise ValueError(f"{script}: no script whose costs are known")
    if settings.get("budget") is not None:
        return of_budget(settings)
    return COSTS[stem](settings)


def of_budget(settings: Mapping[str, Any]) -> Cost:
    budget, unit = float(settings["budget"]), settings["budget_unit"]
    if unit == "flops":
        return Cost(budget)
    if unit == "rst_hours":  # of the published table, whose RTX 3090 reached what it reached
        flops = budget * 3600 * GPUS["RTX-3090"].rate("fp16")
        return Cost(flops, f"{budget:g} h of an RTX 3090 is the budget")
    if unit == "hours":
        return Cost(0.0, "the budget is hours of whatever GPU it is", hours_there=budget)
    raise ValueError(f"budget_unit {unit}: the FLOPs of a step are not known here")


def shape_of(model: str) -> Shape:
    if model in SHAPES:
        return SHAPES[model]
    found = read_json(Path(model) / "config.json")
    values = {
        name: next((found[word] for word in words if found.get(word)), None)
        for name, words in NAMES.items()
    }
    if values["width"] and not values["inner"]:
        values["inner"] = 4 * values["width"]
    if None in values.values():
        raise ValueError(f"model {model}: its shape is not known here (a folder's config.json is)")
    kind = str(found.get("model_type", ""))
    gated = any(kind.startswith(name) for name in DECODERS[1:])
    causal = any(kind.startswith(name) for name in DECODERS)
    return Shape(**values, causal=causal, matrices=3 if gated else 2)


def data_of(name: str) -> Rows:
    """A published set, or a file of rows, a line each."""
    if name in DATA:
        return DATA[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"data {name}: its size is not known here")
    tokens = path.stat().st_size / BYTES_A_TOKEN
    with open(path, "rb") as file:
        rows = max(1, sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")))
    return Rows(rows, tokens / rows, "a token each 4 bytes, a row each line")


def limited(rows: float, settings: Mapping[str, Any]) -> float:
    limit = settings.get("limit")
    return rows if limit is None else min(rows, limit)


@dataclass(frozen=True)
class Parts:
    """Rows of each part of a data set."""

    train: float
    val: float
    test: float

    @classmethod
    def of(cls, rows: float, settings: Mapping[str, Any], test: float | None = None) -> Parts:
        """test: rows of a part of its own."""
        rows = limited(rows, settings)
        val = settings["val_frac"]
        cut = 0.0 if test is not None else settings["test_frac"]
        train = rows * (1 - val - cut) * settings.get("train_frac", 1.0)
        return cls(train, rows * val, rows * cut if test is None else test)


def frozen_blocks(settings: Mapping[str, Any], layers: int) -> tuple[int, bool]:
    """(blocks that learn nothing, whether the embeddings learn)"""
    word, _, count = str(settings.get("freeze", "none")).partition(":")
    if word == "none":
        return 0, True
    return (layers if word == "all" else int(count or layers // 2)), False


# ---------------------------------------------------------------------------- the scripts


def of_preference(settings: Mapping[str, Any]) -> Cost:
    """Two sequences a row; what is frozen runs once and is kept. With both answers in one sequence,
    a head that is not symmetric learns from one order."""
    shape, data = shape_of(settings["model"]), data_of(settings["data"])
    tokens = min(settings["max_length"], data.tokens or settings["max_length"])
    parts = Parts.of(data.rows, settings)
    frozen, _ = frozen_blocks(settings, shape.layers)
    block = shape.block(tokens) * tokens * 2  # of a row
    epochs, passes = settings["epochs"], 2 if settings.get("r_drop") else 1
    once = block * frozen * (parts.train + parts.val + parts.test)
    learning = block * (shape.layers - frozen)
    one_order = settings.get("form") == "joint" and settings.get("head") == "concat"
    train = 3 * passes * learning * parts.train * epochs / (1 + one_order)
    scored = learning * (parts.val * math.ceil(epochs) + parts.test)
    return Cost(once + train + scored, data.note)


def of_alpaca(settings: Mapping[str, Any]) -> Cost:
    """Ten evaluations an epoch; LoRA's base has no gradients of its weights."""
    shape, data = shape_of(settings["size"] or settings["model"]), data_of(settings["data"])
    length = min(settings["max_length"] or 1024, data.tokens)
    parts = Parts.of(data.rows, settings)
    forward = shape.layers * shape.block(length) + shape.head
    rank = settings["lora_r"]
    if rank is None:
        frozen, _ = frozen_blocks(settings, shape.layers)
        train = 3 * forward - 2 * frozen * shape.block(length)
    else:
        word, _, count = str(settings["lora_layers"]).partition(":")
        adapted = int(count) if word == "last" else shape.layers
        inside = 8 * shape.width + 2 * (shape.width + shape.inner)  # q, k, v, o, up, down
        weights = rank * adapted * inside
        weights += rank * (shape.width + shape.vocab) * settings["lora_head"]
        above = adapted * shape.block(length) + shape.head
        train = forward + above + 3 * 2 * weights
        forward += 2 * weights
    epochs, passes = settings["epochs"], 2 if settings.get("r_drop") else 1
    train += forward * bool(settings.get("checkpointing"))
    few = settings["eval_batches"]
    val = parts.val if few is None else min(parts.val, few * settings["batch"])
    each = val + min(val, 200)  # and so many training rows
    if settings["eval_every"]:
        times = parts.train * epochs / settings["batch"] / settings["eval_every"]
    else:
        times = 10 * epochs
    rows = passes * train * parts.train * epochs
    scored = forward * (each * times + parts.test * (1 + settings["baseline"]))
    return Cost(length * (rows + scored), data.note)


def of_gpt2(settings: Mapping[str, Any]) -> Cost:
    """Classification has a phase of the head alone, whose features are computed once; language
    modelling scores each token of an evaluation in two windows (a stride of half of them)."""
    name = settings["data"] or settings["task"]
    teacher = settings["student_of"]
    shape = shape_of(teacher or settings["size"] or settings["model"])
    taught = shape.layers * bool(teacher) * bool(settings["distill_weight"])
    layers = math.ceil(shape.layers / 2) if teacher else shape.layers
    window, epochs = settings["max_length"] or 1024, settings["epochs"]
    if str(name).startswith("wikitext"):
        data = data_of(name)
        forward = layers * shape.block(window) + shape.head
        teaching = taught * shape.block(window) + shape.head * bool(taught)
        scored = 2 * WIKITEXT_TEST * (math.ceil(epochs) + 2)
        return Cost((3 * forward + teaching) * data.tokens * epochs + forward * scored, data.note)
    data = data_of(name)
    length = min(window, data.tokens)
    parts = Parts.of(data.rows, settings, TESTS.get(name))
    forward, teaching = layers * shape.block(length), taught * shape.block(length)
    train = (3 * forward + teaching) * parts.train * epochs
    first = forward * (parts.train + parts.val) * (settings["head_epochs"] != 0)
    scored = forward * (parts.val * math.ceil(epochs) + 2 * parts.test)
    return Cost(length * (first + train + scored), data.note)


def of_headlines(settings: Mapping[str, Any]) -> Cost:
    data = data_of(settings["data"])
    in_total = data.tokens * limited(data.rows, settings)
    width, window = settings["n_embd"], settings["max_length"]
    gated = settings["mlp"] == "swiglu"  # with as many parameters
    shape = Shape(settings["n_layer"], width, 4 * width, settings["vocab_size"], causal=True)
    times, passes = math.ceil(settings["epochs"]) + 1, 2 if settings["r_drop"] else 1
    alone = settings["sequences"] == "titles" or settings["within_titles"]
    forward = shape.layers * shape.block(13 if alone else window) + shape.head
    val = settings["val_frac"]
    tokens = in_total * (1 - val) * settings["epochs"]
    note = f"{data.note}{', gated as wide' * gated}"
    return Cost(forward * (3 * passes * tokens + in_total * val * times), note)


COSTS = {
    "run_1_distilbert": of_preference,
    "run_2_appendprompt": of_preference,
    "run_5_models": of_preference,
    "alpaca_sft": of_alpaca,
    "finetune_gpt2": of_gpt2,
    "train_headlines": of_headlines,
    "pretrain_bert": of_budget,
}


def in_words(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def table(runs: Sequence[tuple[str, str, Mapping[str, Any], int]], gpu: str) -> list[str]:
    """A line an arm, of (label, script, all settings of a run, how many runs), and one in total."""
    card, total, unknown, lines = GPUS[gpu], 0.0, 0, []
    for label, script, settings, count in runs:
        try:
            cost = cost_of(script, settings)
        except (ValueError, KeyError, TypeError) as error:
            why = error if isinstance(error, ValueError) else "not one of our scripts"
            lines.append([label, str(count), "not known", "", "", "", str(why)])
            unknown += 1
            continue
        precision = settings["precision"]
        hours = cost.hours(card, precision)
        total += hours * count
        each = f"{cost.flops:.2e}" if cost.flops else "-"
        times = [in_words(hours), in_words(hours * count)]
        lines.append([label, str(count), each, *times, precision, cost.assumed])
    head = ["arm", "runs", "FLOPs a run", f"a run on one {gpu}", "all", "precision", "assumed"]
    found = tabulate(lines, head, disable_numparse=True).splitlines()
    if unknown == len(lines):
        return found
    rates = f"{SHARE:.0%} of its {card.tensor:g} TFLOP/s in fp16 and bf16, {card.fp32:g} in fp32"
    end = f"in total {in_words(total)} on one {gpu}, at {rates}: an estimate, not measured"
    return [*found, end + (f"; {unknown} arms are not in it" if unknown else "")]
