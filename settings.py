"""Settings: a dataclass, overridden by YAML (--config), then by flags and key=value.

    config, given = parse_settings(Config, sys.argv[1:], "run_1_distilbert.py")

The names are the same in every script. jsonargparse checks types; the text below each field is
what --help says of it (usage.py).

A setting that is given is read or refused. What counts only beside another setting is declared in
ONLY_WITH, next to the fields, and refused at once; besides, a config remembers which of its fields
were read, and a run does not begin while one that was given was not (require_read).
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from files import OTHER_BASE, find_file, read_yaml


@dataclass
class Section:
    """A dataclass of settings that remembers which of them were read.

    It begins to with remember(); as_dict and replace do not count as reading.
    """

    ONLY_WITH: ClassVar[dict[str, str]] = {}
    """setting (or section.*) → "other=value|value", "other!=value" or "other" (neither null nor
    false nor 0): what it counts beside. A subclass adds to it."""
    READ_LATER: ClassVar[tuple[str, ...]] = ()
    """settings that nothing reads before or in the first step. A subclass adds to it."""
    REFUSED: ClassVar[dict[str, str]] = {}
    """setting → why this script cannot use it"""
    LEAST: ClassVar[dict[str, int]] = {}
    """setting → the smallest number that it can be"""
    WRITES_A_FILE: ClassVar[bool] = False
    """whether --out, or --output, is a file and no folder"""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        reads = object.__getattribute__(self, "__dict__").get("_reads")
        if reads is not None and name in type(self).__dataclass_fields__:
            seen, prefix = reads
            seen.add(prefix + name)
        return value


def remember(config: Section, seen: set[str], prefix: str = "") -> None:
    """Add the name of each setting to `seen` as it is read from now on."""
    for field in dataclasses.fields(config):
        value = config.__dict__[field.name]
        if isinstance(value, Section):
            remember(value, seen, f"{prefix}{field.name}.")
    config.__dict__["_reads"] = seen, prefix


@contextlib.contextmanager
def _unnoticed(config: Any) -> Iterator[None]:
    """What is read inside is not remembered."""
    reads = config.__dict__.get("_reads")
    before = set(reads[0]) if reads else set()
    try:
        yield
    finally:
        if reads:
            reads[0].intersection_update(before)


def as_dict(config: Any) -> dict[str, Any]:
    """All settings by name, sections as dicts."""
    with _unnoticed(config):
        return dataclasses.asdict(config)


def replace(config: "S", **changes: Any) -> "S":
    """A copy with other values, that goes on remembering in the same place."""
    with _unnoticed(config):
        copy = dataclasses.replace(config, **changes)
    hidden = {name: value for name, value in config.__dict__.items() if name.startswith("_")}
    copy.__dict__.update(hidden)
    return copy


@dataclass
class PublishedFigure:
    """One figure of a published run: a share from 0 to 1, nats, a perplexity, a judge's score."""

    metric: str
    value: float
    high: float | None = None
    """upper end, where a range was published"""
    rows: int | None = None
    """that it was measured on; null: not known"""
    approximate: bool = False
    """whether the number of rows is"""
    note: str = ""
    """which of several figures of that name it is"""
    again: bool = False
    """whether it is the figure above, measured once more of the same run"""


@dataclass
class Published:
    """`published:` of a config that repeats a published run: what that run got, and how.

    It is data about the experiment, no setting of it: names and fingerprints of runs do not have
    it, run.json does.
    """

    table: str
    """of which table it is a line"""
    name: str
    figures: list[PublishedFigure]
    constant: float | None = None
    """accuracy of an answer that is always the same, on rows like these"""
    split: str = ""
    minutes: float | None = None
    minutes_high: float | None = None
    device: str = ""
    memory_gb: float | None = None
    judge: str = ""
    differs: dict[str, str] = dataclasses.field(default_factory=dict)
    """what → how the published run differed from these settings"""
    unknown: list[str] = dataclasses.field(default_factory=list)
    """what is not known of the published run"""


S = TypeVar("S", bound=Section)
Schedule = Literal["linear", "cosine", "constant", "wsd", "one-cycle", "triangle2"]
Optimizer = Literal["adamw", "lion", "sophiag", "muon", "sgd"]


@dataclass
class SelectionSettings(Section):
    """Which of the rows that come by are trained on."""

    name: Literal["uniform", "selective_backprop", "rho_loss"] = "uniform"
    """uniform: all of them"""
    beta: float = 1.0
    """selective backprop: keep a row with probability (rank of its loss)^beta"""
    history: int = 5000
    """selective backprop: losses that a loss is ranked among"""
    mega_batch: int = 3072
    """RHO-loss: rows that each batch is chosen from"""
    il_losses: str | None = None
    """RHO-loss: folder that extract_il_losses wrote"""
    charge_forward: bool = True
    """false: scoring rows is free (the ablation)"""


@dataclass
class SophiaSettings(Section):
    """Sophia-G's curvature."""

    rho: float = 0.04
    """larger clips less"""
    every: int = 10
    """updates between estimates of the curvature"""
    rows: int = 32
    """rows of an estimate"""
    charge: bool = True
    """false: estimates are free (the ablation)"""


@dataclass
class Settings(Section):
    """What every training script can be told; a script's own Config adds to it."""

    ONLY_WITH = {
        "epochs": "budget=null",
        "budget_unit": "budget",
        "warmup_frac": "schedule!=one-cycle|triangle2",
        "decay_frac": "schedule=wsd",
        "min_lr": "schedule!=constant",
        "betas": "optimizer!=sgd",
        "eps": "optimizer=adamw|muon",
        "momentum": "optimizer=sgd",
        "matrix_lr": "optimizer=muon",
        "sophia.*": "optimizer=sophiag",
        "average": "average_frac",
        "selection.beta": "selection.name=selective_backprop",
        "selection.history": "selection.name=selective_backprop",
        "selection.mega_batch": "selection.name=rho_loss",
        "selection.il_losses": "selection.name=rho_loss",
        "selection.charge_forward": "selection.name!=uniform",
    }
    BETAS: ClassVar[dict[str, tuple[float, float]]] = {}
    """of an optimizer where --betas is null and they are not the usual ones"""
    READ_LATER = ("eval_every", "patience", "test_with", "model")  # which names the run's folder

    model: str = "distilbert"
    """short name, local folder or hub id of the model"""
    data: str = ""
    """file, folder, hub id or name of an embedded data set"""
    out: str | None = None
    """run folder; null: the newest unfinished run with these settings, else a new one"""
    fresh: bool = False
    """begin anew, deleting what an earlier run wrote to --out, and nothing else"""
    epochs: float = 3.0
    """passes over the training rows, or as many updates where --selection takes some of them"""
    budget: float | None = None
    """what the run may spend in place of --epochs, in --budget_unit"""
    budget_unit: Literal["steps", "hours", "flops"] = "hours"
    """hours of this machine's clock, steps, or floating-point operations"""
    batch: int = 32
    """rows an update over all processes together"""
    micro_batch: int | None = None
    """rows a forward pass; null: a quarter of --batch, rounded up. Part of the experiment:
    dropout masks are drawn per micro-batch"""
    group_by_length: bool = False
    """batches of rows of similar length: faster, but another experiment"""
    join_tokens: int | None = None
    """tokens of neighbouring micro-batches that are computed together where nothing is drawn in the
    forward pass, so that rounding alone changes; 0: none; null: 16384 on a GPU unless --micro_batch
    is given, else 0"""
    lr: float = 2e-5
    """peak learning rate"""
    schedule: Schedule = "linear"
    """learning rate after the warm-up: down to --min_lr (linear, cosine), constant, or wsd: stable,
    then a straight line. one-cycle: up to the middle and down; triangle2: up for 75 %"""
    warmup_frac: float = 0.06
    """share of the run over which the learning rate rises from 0"""
    decay_frac: float = 0.2
    """wsd: share of the run, its end, over which the learning rate falls"""
    min_lr: float = 0.0
    """learning rate at the end of the schedule (other groups in proportion)"""
    layer_decay: float = 1.0
    """factor on the learning rate from each layer to the one below it, embeddings last; 1: none"""
    optimizer: Optimizer = "adamw"
    """adamw (fused), lion, sophiag, muon (for the layers' matrices, adamw for the rest) or sgd"""
    betas: list[float] | None = None
    """of the optimizer; null: adamw .9/.999, lion .9/.99, sophiag .965/.99, muon's adamw .9/.95"""
    eps: float = 1e-8
    """adamw's epsilon"""
    momentum: float = 0.0
    """sgd's momentum; 0: plain sgd"""
    matrix_lr: float | None = None
    """muon's peak learning rate; null: --lr"""
    sophia: SophiaSettings = dataclasses.field(default_factory=SophiaSettings)
    """curvature of sophiag"""
    weight_decay: float = 0.01
    """weight decay (decoupled; sgd adds it to the gradient), none on biases and norms"""
    max_grad_norm: float | None = 1.0
    """clip the global gradient norm to this; null: no clipping"""
    label_smoothing: float = 0.0
    """share of each target that is spread over all classes (or tokens), in training only"""
    r_drop: float = 0.0
    """R-Drop's α: two passes of different dropout are drawn together, at twice the cost; 0: one"""
    average_frac: float = 0.0
    """evaluate and keep an average of the weights over this share of the run; 0: the last ones"""
    average: Literal["exponential", "window"] = "exponential"
    """exponential: moving, as far back as that share; window: the plain mean of that last share"""
    selection: SelectionSettings = dataclasses.field(default_factory=SelectionSettings)
    """batch selection"""
    seed: int = 0
    """seed of initialisation, data order and dropout, where they have none of their own"""
    seed_init: int | None = None
    """seed of the first weights alone: a head, adapters, or a whole model; null: --seed"""
    seed_order: int | None = None
    """seed of the order of rows, and of which are chosen, alone; null: --seed"""
    seed_masks: int | None = None
    """seed of what is drawn in each micro-batch alone: dropout, layer drop, masked tokens, crops
    and swaps of rows; null: --seed"""
    max_length: int = 512
    """tokens a sequence at most"""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """arithmetic of the forward pass; auto: bf16, else fp16, by device and model; fp32 on a CPU"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute; auto: the first of these that is there"""
    backend: Literal["auto", "nccl", "xccl", "gloo"] = "auto"
    """back end of torch.distributed; auto: by device"""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """in which processes sum their gradients; bf16 halves what they send, and rounds"""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """attention kernel; auto: flash-attn 2 where installed and able, else SDPA"""
    compile: bool = False
    """torch.compile the model, with lengths padded to 8 steps of a ladder"""
    deterministic: bool = False
    """deterministic kernels on a GPU (a CPU always repeats bit for bit)"""
    limit: int | None = None
    """rows in total at most (nested: a smaller limit is a subset); null: all"""
    train_frac: float = 1.0
    """share of the training rows to use (nested)"""
    workers: int = 0
    """processes that collate batches ahead, also in evaluations; 0: in the training process"""
    eval_every: int | None = None
    """steps between evaluations; null: after every epoch. The end is always evaluated"""
    save_every: int | None = None
    """steps between checkpoints, beside the one before every evaluation; null: these alone"""
    keep_every: int | None = None
    """keep each checkpoint whose step is a multiple of this; null: the newest two only"""
    patience: int | None = None
    """evaluations without a better one before the run stops early; null: never"""
    test_with: Literal["best", "final"] = "best"
    """weights for the test: best on validation, or those at the end"""
    trackers: str | None = None
    """also log to tensorboard, wandb or tensorboard,wandb (install what you name)"""
    machine_log: bool = True
    """log what the run takes of the machine: CPU, GPU, memory, waiting for data, checkpoints"""
    page: bool = True
    """write report.html into the run folder at the end"""
    dry_run: bool = False
    """print steps, tokens, parameters, memory and time, and stop"""
    stop_after: int | None = None
    """save and stop after this many steps in this call, as if interrupted; null: never"""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "max_length", "limit", "eval_every", "save_every"):
            self._require(name, lambda value: value >= 1, "1 or more")
        for name in ("keep_every", "patience", "stop_after"):
            self._require(name, lambda value: value >= 1, "1 or more, or null")
        for name in ("lr", "epochs", "max_grad_norm", "budget", "matrix_lr", "eps"):
            self._require(name, lambda value: value > 0, "more than 0")
        self._require("layer_decay", lambda value: 0 < value <= 1, "a factor above 0, up to 1")
        self._require("label_smoothing", lambda value: 0 <= value < 1, "a share from 0, below 1")
        self._require("momentum", lambda value: 0 <= value < 1, "a share from 0, below 1")
        self._require("r_drop", lambda value: value >= 0, "0 or more")
        for name in ("decay_frac", "average_frac"):
            self._require(name, lambda value: 0 <= value <= 1, "a share from 0 to 1")
        for name in ("min_lr", "weight_decay", "workers", "join_tokens"):
            self._require(name, lambda value: value >= 0, "0 or more")
        self._require("warmup_frac", lambda value: 0 <= value <= 1, "a share from 0 to 1")
        self._require("train_frac", lambda value: 0 < value <= 1, "a share above 0, up to 1")
        if self.betas is not None and not (
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        ):
            raise ValueError(f"--betas {self.betas}: expected two numbers from 0, below 1")
        if self.optimizer == "sophiag" and self.precision == "fp16":
            raise ValueError("sophiag's curvature underflows in fp16: use --precision bf16 or fp32")
        if self.selection.name == "rho_loss" and self.selection.il_losses is None:
            raise ValueError(
                "RHO-loss needs irreducible losses: selection.il_losses=FOLDER (made by "
                "pretrain_bert.py extract_il_losses)"
            )

    @property
    def length_steps(self) -> int | None:
        """How many lengths sequences are padded to; None: to any multiple of 8."""
        return 8 if self.compile else None

    def _require(self, name: str, fits: Callable[[float], bool], expected: str) -> None:
        value = getattr(self, name)
        if value is not None and not fits(value):
            raise ValueError(f"--{name} {value:g}: expected {expected}")


# Settings that may differ when a run is continued: they do not change what is computed.
FREE_SETTINGS = {
    "out",
    "fresh",
    "device",
    "backend",
    "workers",
    "save_every",
    "keep_every",
    "trackers",
    "machine_log",
    "page",
    "dry_run",
    "stop_after",
}
# Earlier names, which are short for options of torchrun's own: it takes `--log x` for its own.
OLD_NAMES = {"log": "trackers", "monitor": "machine_log", "run": "run_folder"}
NOTHING = ["null", "false", "0", ""]
# Settings of which whoever types two may mean both.
SOURCES = ("data", "task", "extra_train", "samples", "run_folder")
# Settings that are texts to read, of which an empty one is a text as well.
EMPTY_TEXTS = ("prompt", "response_a", "response_b", "instruction")
C = TypeVar("C", bound=Section)


# An older or published name: the name here, or a function from its value to the settings here.
Aliases = Mapping[str, str | Callable[[str], dict[str, str]]]


SEEDS = ("seed_init", "seed_order", "seed_masks")


def seed_of(config: Any, source: Literal["init", "order", "masks"]) -> int:
    """The seed of one source of noise: its own, else --seed."""
    own = getattr(config, f"seed_{source}", None)
    return config.seed if own is None else own


def precision_words(value: str) -> dict[str, str]:
    """torch's names of dtypes as --precision has them: an alias that scripts share."""
    short = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
    return {"precision": short.get(value, value)}


def parse_settings(
    kind: type[C],
    argv: Sequence[str],
    prog: str = "",
    aliases: Aliases | None = None,
    once: Container[str] = (),
) -> tuple[C, bool]:
    """Read `--config file.yaml`, then flags and key=value, each overriding what came before.

    Settings of a dataclass inside the dataclass are section.name, in YAML also nested. Returns
    (config, given): given is False when nothing that defines the experiment was set. Unknown
    names raise SystemExit naming the nearest valid one; so does a setting that cannot count, that
    is empty, or a second value of those in `once`. Of other settings the later word wins.
    """
    kinds = field_types(kind)
    aliases = {old: name for old, name in OLD_NAMES.items() if name in kinds} | dict(aliases or {})
    words, files, published = [], [], False  # files: (path, its settings by name)
    told: dict[str, str] = {}  # of the command line
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    # `published:` of the last file that has it, and the settings beside it
    reference: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    pending = list(argv)
    while pending:
        key, value = _next_setting(pending, kind, kinds, aliases, prog)
        meant = aliases.get(key, key)
        if key in ("config", "published"):  # published=FILE: as a sweep says it, no settings
            found, content = _settings_of(value, kinds, defaults)
            reference, beside = (found, content) if found else (reference, beside)
            if key == "published":
                if not found:
                    raise SystemExit(f"{prog}: {value} repeats no published run")
                continue
            files.append((value, content))
            continue
        published = published or (key in aliases and key not in OLD_NAMES)
        named = {meant: value} if isinstance(meant, str) else meant(value)
        for name, text in named.items():
            before = told.setdefault(name, text)
            if before != text and name in once:
                raise SystemExit(f"{prog}: --{name} is given twice, {before} and {text}: which?")
            _check_text(f"{prog}: --{name}", name, text, kinds, defaults)
        words += [f"--{name}={text}" for name, text in named.items()]
    parser = _parser_of(kind)
    # default: a date is a text that YAML takes for one
    configs = [
        f"--config={json.dumps(nested(inside), default=str)}" for _, inside in files if inside
    ]
    try:
        parsed = parser.parse_args([*configs, *words])
    except Exception as error:
        raise SystemExit(f"{prog}: {_in_plain_words(str(error), kinds)}") from error
    fields = dataclasses.fields(kind)
    named = {word.removeprefix("--").partition("=")[0] for word in words}
    given = {name: path for path, content in files for name in content}
    given |= dict.fromkeys(named, "")
    flat = vars(parsed.as_flat())
    for name in given.keys() & kinds:
        if flat.get(name) is None and not (
            takes_null(kinds[name]) or defaults.get(name, 0) is None
        ):
            where = f"{given[name]}: " if given[name] else f"{prog}: "
            raise SystemExit(f"{where}--{name} null: it has to have a value")
    try:
        config = kind(**{field.name: _build(field.type, parsed[field.name]) for field in fields})
    except ValueError as error:  # of a file's settings the file is named
        places = {given[name] for name in re.findall(r"--([\w.]+)", str(error)) if name in given}
        where = "".join(f"{place}: " for place in sorted(places) if place)
        raise ValueError(f"{where}{error}") from None
    try:
        _check_range(config, kinds)
        notes = _refuse_idle(config, given)
    except ValueError as error:
        raise SystemExit(f"{prog}: {error}") from None
    config.__dict__.update({"_given": given, "_notes": notes, "_published": published})
    if reference:
        of_file = [f"--config={json.dumps(nested(beside))}"] if beside else []
        before = vars(parser.parse_args(of_file).as_flat())
        changed = {
            name: [before[name], value]
            for name, value in vars(parsed.as_flat()).items()
            if name in kinds.keys() - FREE_SETTINGS - {"seed", "name"} and value != before[name]
        }
        config.__dict__["_reference"] = reference | {"changed": changed}
    remember(config, set())
    return config, bool(configs) or bool(named - FREE_SETTINGS)


def _next_setting(
    pending: list[str], kind: type, kinds: Mapping[str, Any], aliases: Aliases, prog: str
) -> tuple[str, str]:
    """(name as it was typed, value) of the first word, or two, which are taken off `pending`."""
    word = pending.pop(0)
    key, equals, value = word.removeprefix("--").partition("=")
    key = key.replace("-", "_")
    if not equals and not word.startswith("--") and hasattr(kind, "FIRST_WORD"):
        word, key, equals, value = "", kind.FIRST_WORD, "=", word  # download c4-subset
    if not (word.startswith("--") or equals):
        raise SystemExit(f"{prog}: '{word}' is not a setting: use --name value or name=value")
    valid_names = [*kinds, *aliases, "config", "published"]
    if not equals:
        meant = aliases.get(key, key)
        of_type = kinds.get(meant) if isinstance(meant, str) else None
        bare = not pending or pending[0].startswith("--")
        bare = bare or (of_type is bool and "=" in pending[0])  # --fresh batch=8
        if bare and of_type is not bool:
            _check_names([key], valid_names, "flag --")
            raise SystemExit(f"{prog}: --{key} needs a value")
        value = "true" if bare else pending.pop(0)
    _check_names([key], valid_names, "setting ")
    return key, value


def _settings_of(
    path: str, kinds: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`published:` of a settings file, its settings by full names)"""
    content = _read_yaml(path)
    found = pop_published(content, path)
    try:
        content = flatten(current_names(content), whole=kinds)
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from None
    _check_names(content, kinds, "setting ", f"{path}: ")
    for name in (name for name, inside in content.items() if inside == ""):
        _check_text(f"{path}: {name}", name, "", kinds, defaults)
    return found, content


def takes_null(kind: Any) -> bool:
    return kind is Any or type(None) in typing.get_args(kind)


def _check_text(
    where: str, name: str, text: str, kinds: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """SystemExit for an empty value, and for a number that YAML would read to another base: 010 is
    8 there, and 1:30 is 90."""
    if text == "" and name not in EMPTY_TEXTS and defaults.get(name) != "":
        raise SystemExit(f"{where} is empty: is a variable unset? (null is none)")
    is_number = name in kinds and options_of(kinds[name])[0] in (int, float)
    if is_number and OTHER_BASE.fullmatch(text):
        raise SystemExit(f"{where} {text}: expected a number as it is written, without 0 in front")


def _check_range(config: Section, names: Iterable[str]) -> None:
    """ValueError for a number below its class's LEAST, and for a seed that some generator among
    numpy's, torch's and scikit-learn's would not take, perhaps at the end of a run alone."""
    for name in names:
        value, least = value_of(config, name), config.LEAST.get(name)
        if least is not None and value is not None and value < least:
            raise ValueError(f"--{name} {value:g}: expected {least} or more")
        if "seed" in name.rpartition(".")[2] and value is not None and not 0 <= value < 2**32:
            raise ValueError(f"--{name} {value}: expected a whole number from 0 to {2**32 - 1}")


@functools.cache
def _parser_of(kind: type) -> Any:
    import jsonargparse

    # to read the sources for help that usage.py prints takes as long as all the rest
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(kind)
    return parser


def pop_published(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Take `published:` out of a file's settings and return it; {} where it has none.

    SystemExit names a key that it cannot have, one that it lacks, and a value of a wrong type.
    """
    if (published := content.pop("published", None)) is None:
        return {}
    _check_fields(Published, published, f"{where}: published")
    for number, figure in enumerate(published["figures"], 1):
        _check_fields(PublishedFigure, figure, f"{where}: published: figure {number}")
    return published


def _check_fields(kind: type, values: Any, where: str) -> None:
    """SystemExit unless `values` are by name what the dataclass takes."""
    if not isinstance(values, dict):
        raise SystemExit(f"{where}: expected 'name: value' lines, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _check_names(values, fields, "", f"{where}: ")
    for name, field in fields.items():
        required = {field.default, field.default_factory} == {dataclasses.MISSING}
        if required and values.get(name) in (None, "", []):
            raise SystemExit(f"{where}: {name} is missing")
        kinds = [typing.get_origin(one) or one for one in typing.get_args(field.type)]
        kinds = kinds if type(None) in kinds else [typing.get_origin(field.type) or field.type]
        value = values.get(name)
        fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
        if name in values and not (fits and isinstance(value, bool) == (bool in kinds)):
            raise SystemExit(f"{where}: {name}: {value!r} is no {kinds[0].__name__}")


def published_run(config: Section) -> dict[str, Any]:
    """`published:` of the config's file, and as `changed` what the command line changed of its
    settings: for run.json. {} where the file repeats no published run."""
    return config.__dict__.get("_reference", {})


def options_of(kind: Any) -> tuple[Any, list[str]]:
    """(the type beside None, the choices of a Literal)"""
    options = [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
    choices = typing.get_args(options[0]) if typing.get_origin(options[0]) is Literal else ()
    return options[0], [str(choice) for choice in choices]


def _in_plain_words(error: str, kinds: Mapping[str, Any]) -> str:
    """The parser's message on a value of a wrong type, without Python's names of types."""
    key = re.search(r'Parser key "([\w.]+)"', error)
    value = re.search(r"(?:Got value|Given value): (.*)", error)
    if not (key and value and key[1] in kinds):
        return "\n".join(x if len(x) < 500 else f"{x[:500]} …" for x in error.splitlines())
    kind, choices = options_of(kinds[key[1]])
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    expected = f"one of {', '.join(choices)}" if choices else words.get(kind)
    if expected is None and (typing.get_origin(kind) or kind) is dict:
        expected = """names with values, as {"a": 1}"""
    if expected is None:
        of = {"int": "whole numbers", "float": "numbers"}
        each = getattr((typing.get_args(kind) or [str])[0], "__name__", "")
        expected = f"{of.get(each, 'texts')} in brackets, as [a,b]"
    null = ", or null" if type(None) in typing.get_args(kinds[key[1]]) else ""
    near = difflib.get_close_matches(value[1], choices, 1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"--{key[1]} {value[1][:500]}: expected {expected}{null}{hint}"


# ------------------------------------------------------------------- given, so read or refused


def _refuse_idle(config: S, given: Mapping[str, str]) -> list[str]:
    """ValueError if a setting was given that does not count beside the others.

    given: setting → the file that it stands in, "" for the command line. It may be switched off,
    and in a file stand at its default; and where the command line overrides what it counts with, it
    goes back to that: a line each is returned.
    """
    defaults, notes = flatten(dataclasses.asdict(type(config)())), []
    for kind in type(config).__mro__:
        for name, why in kind.__dict__.get("REFUSED", {}).items():
            refuse(config, [name], why, given)
    for name, condition in conditions(type(config)).items():
        if name not in given or _holds(config, condition):
            continue
        file, value = given[name], value_of(config, name)
        if _text(value) in NOTHING or (file and value == defaults[name]):
            continue  # what is off, stays off
        other = _parts(condition)[0]
        why = f"it counts {in_words(condition)}, and --{other} is {_text(value_of(config, other))}"
        if not (file and given.get(other) == ""):
            where = f"{file}: " if file else ""
            raise ValueError(f"{where}--{name} {_text(value)} would change nothing: {why}")
        section, _, field = name.rpartition(".")
        setattr(value_of(config, section) if section else config, field, defaults[name])
        notes.append(f"{name} of {file} is left out: {why}")
    return notes


def refuse(
    config: Section, names: Iterable[str], why: str, given: Mapping[str, str] | None = None
) -> None:
    """ValueError if one of these settings was given (in a file: another value than the default)."""
    given = config.__dict__.get("_given", {}) if given is None else given
    defaults = flatten(dataclasses.asdict(type(config)()))
    for name in names:
        value = value_of(config, name)
        if name in given and not (given[name] and value == defaults[name]):
            raise ValueError(f"--{name} {_text(value)} would change nothing: {why}")


def told(config: Section) -> dict[str, str]:
    """The settings of the command line alone, for `refuse`: a run goes on from its config.yaml."""
    given = config.__dict__.get("_given", {})
    return {name: file for name, file in given.items() if not file}


def conditions(kind: type[Section]) -> dict[str, str]:
    """ONLY_WITH of the class and of all above it, by full names."""
    conditions: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        for pattern, condition in each.__dict__.get("ONLY_WITH", {}).items():
            for name in field_types(kind):
                if fnmatch.fnmatchcase(name, pattern) and name != _parts(condition)[0]:
                    conditions[name] = condition
    return conditions


def _parts(condition: str) -> tuple[str, bool, list[str]]:
    """(setting, whether it must have one of the values, the values)"""
    name, unequal, values = condition.partition("!=")
    if unequal:
        return name, False, values.split("|")
    name, equal, values = condition.partition("=")
    return (name, True, values.split("|")) if equal else (name, False, NOTHING)


def _holds(config: Section, condition: str) -> bool:
    name, wanted, values = _parts(condition)
    return (_text(value_of(config, name)) in values) == wanted


def in_words(condition: str) -> str:
    name, wanted, values = _parts(condition)
    if values == NOTHING:
        return f"with --{name}"
    return (
        f"with --{name} {' or '.join(values)}"
        if wanted
        else f"unless --{name} is {' or '.join(values)}"
    )


def _text(value: Any) -> str:
    """As on the command line: null, true, 0.1, wsd."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def value_of(config: Any, name: str) -> Any:
    """The value of a setting, section.name included."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def model_name(settings: Mapping[str, Any]) -> str:
    """What a run calls its model: of whom it is a student, a shape of its own, or --model."""
    size = settings.get("size")
    shape = f"gpt2-{size}" if size and "gpt2" not in size else size
    return str(settings.get("student_of") or shape or settings.get("model") or "")


def left_out(config: Section) -> list[str]:
    """The settings of files that do not count beside the command line, a line each."""
    return config.__dict__.get("_notes", [])


def in_published_words(config: Section) -> bool:
    """Whether the command line has an older or published name, and nothing says the precision."""
    given = config.__dict__.get("_given", {})
    return config.__dict__.get("_published", False) and "precision" not in given


def read_so_far(config: Section) -> list[str]:
    """The settings that were read since the command line was parsed."""
    return sorted(config.__dict__["_reads"][0]) if "_reads" in config.__dict__ else []


def require_read(config: Section, read: Iterable[str]) -> None:
    """ValueError if a setting was given that is not in `read`; for after the first step."""
    given, read = config.__dict__.get("_given", {}), set(read)
    defaults = flatten(dataclasses.asdict(type(config)()))
    later = {name for kind in type(config).__mro__ for name in getattr(kind, "READ_LATER", ())}
    for name, file in given.items():
        if name in read or name in FREE_SETTINGS or name in later:
            continue
        if file and value_of(config, name) == defaults[name]:
            continue
        raise ValueError(f"--{name} was given, but nothing in this run uses it: leave it out")


def current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, or of an older run, under the names that they have now. ValueError where
    one stands there under both."""
    for old, name in OLD_NAMES.items():
        if {old, name} <= settings.keys():
            raise ValueError(f"{old} and {name} are one setting")
    return {OLD_NAMES.get(key, key): value for key, value in settings.items()}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.lr": 1} to {"train": {"lr": 1}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def field_types(kind: type, prefix: str = "") -> dict[str, type]:
    """The type of every setting by name, those of inner dataclasses as section.name."""
    kinds: dict[str, type] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            kinds |= field_types(field.type, f"{prefix}{field.name}.")
        else:
            kinds[f"{prefix}{field.name}"] = field.type
    return kinds


def flatten(
    settings: Mapping[str, Any], prefix: str = "", whole: Container[str] = ()
) -> dict[str, Any]:
    """{"train": {"lr": 1}} to {"train.lr": 1}; whole: settings whose value is a dict."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        inside = isinstance(value, dict) and name not in whole
        for each, its in (flatten(value, f"{name}.", whole) if inside else {name: value}).items():
            if each in flat:  # selection.name beside selection: {name: …}
                raise ValueError(f"{each} stands there twice")
            flat[each] = its
    return flat


def _build(kind: type, value: Any) -> Any:
    """The inner dataclass from the parser's namespace; other values unchanged."""
    if not dataclasses.is_dataclass(kind) or isinstance(value, kind):
        return value
    return kind(**{f.name: _build(f.type, value[f.name]) for f in dataclasses.fields(kind)})


def _read_yaml(path: str) -> dict:
    try:
        return read_yaml(find_file(path))
    except (OSError, ValueError) as error:
        raise SystemExit(f"settings: {error}") from None


def _check_names(
    names: Iterable[str], valid_names: Iterable[str], what: str, where: str = ""
) -> None:
    valid_names = list(valid_names)
    for name in names:
        if name not in valid_names:
            near = difflib.get_close_matches(str(name), valid_names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "see --help"
            raise SystemExit(f"{where}unknown {what}{name}: {hint}")
