"""`evaluate`: a saved run on other labelled rows, as one more test of it.

python run_5_models.py evaluate results/minilm/… --data other.csv
python finetune_gpt2.py evaluate results/gpt2/… --data mails.csv --output mails/gpt2
python report.py compare mails/gpt2 mails/distilgpt2      # the same rows, row by row

All rows of the file are test rows: nothing is split, fitted or chosen. The run's own settings, its
tokenizer and the weights that it was tested with are used. A run folder is written that report.py
reads as a test of that run. Rows that the run was trained on are counted and said. Under torchrun
the processes share the rows.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

import core
from data import arena, corpora, documents, glue, instructions, texts, titles
from data.records import require_one_part
from data.rows import choose_rows, fingerprint, normalised_text, stable_hash
from data.tokens import segment_separator
from device import autocast, choose_precision
from evaluation.metrics import Metrics, classification_metrics, softmax
from evaluation.outcomes import RULES
from experiments.experiment import Result, rows_each
from files import damage, read_json, read_yaml, write_text
from models import pretrained
from runs.contents import delete_run, is_run, refuse_others
from runs.folder import SCHEMA_VERSION, environment_facts
from runs.results import last_lines, write_result
from seal import write_record
from settings import Section, current_names, parse_settings, read_so_far, require_read


@dataclass
class EvaluateConfig(Section):
    """Settings of `evaluate`: a saved run on other labelled rows."""

    FIRST_WORD = "run_folder"
    IN_PARALLEL = True

    run_folder: str = ""
    """run folder; it may stand alone: evaluate RUN --data FILE"""
    data: str = ""
    """file of labelled rows, in any layout that training reads: all of them are the test"""
    output: str | None = None
    """run folder to write; null: RUN/evaluations/ and the name of the file"""
    weights: Literal["best", "final"] | None = None
    """which weights of the run; null: those that it was tested with"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""
    minus_one: Literal["a", "b"] | None = None
    """preference: who wins where a winner is -1; null: such numbers are refused"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be used (preference, GLUE)"""


class Evaluated(NamedTuple):
    """What an adapter hands over."""

    result: Result
    content: str  # fingerprint of the rows
    what: str  # what rows share that are the same to a model: a prompt, a text
    groups: list[str]  # that of each row


class SavedRun:
    """A run, opened again."""

    def __init__(self, config: EvaluateConfig, world: core.World | None = None):
        """world: of processes that evaluate together; None: this one alone."""
        self.asked, self.folder = config, Path(config.run_folder)
        if not config.run_folder or not config.data:
            raise ValueError("evaluate needs a run and rows: evaluate RUN --data FILE")
        if Path(config.data).suffix and not Path(config.data).exists():
            raise FileNotFoundError(f"{config.data}: no such file")
        require_one_part(config.data)
        if not is_run(self.folder):
            raise ValueError(f"{self.folder}: no run folder (neither run.json nor config.yaml)")
        self.record = read_json(self.folder / "run.json")
        self.yaml = current_names(read_yaml(self.folder / "config.yaml"))
        self.settings = SimpleNamespace(**self.yaml)
        self.script = str(self.record.get("script"))
        if "evaluated" in self.record:
            raise ValueError(f"{self.folder} is an evaluation itself: name the run")
        if self.script not in ADAPTERS:
            raise ValueError(f"{self.folder}: evaluate does not know runs of {self.script}")
        planned = getattr(self.settings, "test_with", "best")
        self.which = config.weights or pretrained.tested_weights(self.folder, planned)
        self.weights = self.folder / "train/weights" / self.which
        if problem := damage(self.weights):
            tasks = sorted(path.parent.name for path in self.folder.glob("*/run.json"))
            hint = f"; name one of its tasks: {', '.join(tasks)}" if tasks else ""
            raise ValueError(
                f"{self.weights} is no whole folder of saved weights ({problem}){hint}"
            )
        self.world = world = world or core.single_world(config.device)
        # for what only prepares, each process by itself
        self.quiet = replace(world, rank=1, size=1, store=None)

    @cached_property
    def rows(self) -> Any:
        """The rows that the run was trained on and chosen by, as its adapter loads them; None (and
        a note) where they are no longer there."""
        try:
            return OWN_ROWS[self.script](self)
        except (OSError, ValueError, AttributeError, ModuleNotFoundError) as error:
            why = " ".join(str(error).split())[:200]
            self.world.say(
                f"note: the run's own rows cannot be read ({why}): whether it was trained on these "
                "is not known"
            )
            return None

    def seen(self, groups: Sequence[str]) -> dict[str, int] | None:
        """How many of these groups, one of each evaluated row, are among the rows that the run was
        trained on (train) and chosen by (val); None where that is not known."""
        if self.rows is None:
            return None
        wanted, found = set(groups), {"train": set(), "val": set()}
        for row in self.rows:
            if row.split in found and row.group in wanted:
                found[row.split].add(row.group)
        return {
            part: sum(group in there for group in groups)
            for part, there in {
                "train": found["train"],
                "val": found["val"] - found["train"],
            }.items()
        }

    def say(self, notes: Iterable[str]) -> None:
        for line in notes:
            self.world.say(line)

    def precision(self, model_config: Any = None) -> str:
        """As the run was trained, on this device."""
        machine, asked = self.world.machine, self.settings.precision
        kernels = (pretrained.kernels_of(model_config),) if model_config is not None else ()
        return choose_precision(asked, self.world.device.type, machine, *kernels)

    def state(self, model: Any, precision: str) -> SimpleNamespace:
        """What evaluations are handed."""
        device = self.world.device
        self.precision_here = precision
        model = model.to(device).eval()
        context = lambda: autocast(device, precision)  # noqa: E731
        return SimpleNamespace(world=self.world, model=model, autocast=context)


class Seen(NamedTuple):
    """A row that the run knows, where its data have no such rows of their own."""

    split: str
    group: str


# -------------------------------------------------------------------------- preference


def of_preference(run: SavedRun) -> Evaluated:
    from commands.predict import PredictConfig, Predictor
    from experiments import preference

    config = run.asked
    pairs = arena.read_pairs(
        config.data, skip_bad_rows=config.skip_bad_rows, minus_one=lambda: config.minus_one
    )
    opened = PredictConfig(str(run.folder), weights=run.which, device=config.device)
    run.say([pairs.reading])
    predictor, rows = Predictor(opened, run.world), pairs.rows
    if len(predictor.classes) == arena.TIE:
        ties = [row.id for row in rows if row.label == arena.TIE]
        if ties and not config.skip_bad_rows or len(ties) == len(rows):
            raise ValueError(
                f"{config.data}: {len(ties):,} of {len(rows):,} rows are ties (the first has id "
                f"{ties[0]}), and the run was trained without: it has no class for them. "
                "--skip_bad_rows would leave them out."
            )
        rows = [row for row in rows if row.label != arena.TIE]
        pairs.repairs.update({"ties_left_out": len(ties)} if ties else {})
    run.say(arena.said_repairs(pairs.repairs))
    run.precision_here = predictor.precision
    p, swapped = predictor.both_orders(rows)
    figures = preference.pair_metrics(rows, p, swapped)
    saved = read_json(run.folder / "test/metrics/metrics.json")
    if saved.get("tested_with") == run.which and saved.get("temperature"):
        labels, groups = np.array([row.label for row in rows]), [row.group for row in rows]
        figures |= preference.calibrated_metrics(p, labels, groups, saved["temperature"])
    lines = [preference.prediction_line(row, values) for row, values in zip(rows, p, strict=True)]
    content = arena.data_fingerprint(rows)
    return Evaluated(Result(figures, lines), content, "prompt", [row.group for row in rows])


def rows_of_preference(run: SavedRun) -> list[Any]:
    from experiments import preference

    settings = SimpleNamespace(**preference.as_recorded(vars(run.settings)))
    return preference.load_rows(settings, run.quiet, None)[0]


# -------------------------------------------------------------------------------- GLUE


def of_glue(run: SavedRun) -> Evaluated:
    settings, (task,) = run.settings, glue.find_tasks(run.settings.suite)
    path = Path(run.asked.data)
    rows, notes = glue.load_held_out(task, path, skip_bad_rows=run.asked.skip_bad_rows)
    run.say(notes)
    from transformers import AutoModelForSequenceClassification  # after wrong rows

    from experiments.glue import outputs, predictions, score
    from models import bert  # noqa: F401, registers our architecture

    folder = str(run.weights)
    shape = pretrained.load_config(folder)
    tokenizer = pretrained.load_tokenizer(folder, shape)
    ids = glue.cached_sequences(task, rows, tokenizer, settings.max_length, run.world)
    separator = segment_separator(tokenizer, shape)
    pad = tokenizer.pad_token_id
    data = glue.GlueData(ids, rows, "test", pad, settings.max_length, None, separator)
    model = pretrained.load_whole(AutoModelForSequenceClassification, folder, shape)
    state = run.state(model, run.precision(shape))
    each = rows_each(settings.max_length * data.numbers.shape[1])
    values = core.evaluate_rows(state, data, outputs, each)
    lines = [
        line | {"text": row.fields}
        for line, row in zip(predictions(task, data.rows, values), data.rows, strict=True)
    ]
    result = Result(score(task, data.rows, values), lines)
    groups = [row.group for row in data.rows]
    return Evaluated(result, glue.data_fingerprint(rows), task.fields[0], groups)


def rows_of_glue(run: SavedRun) -> list[Any]:
    settings, (task,) = run.settings, glue.find_tasks(run.settings.suite)
    rows, _ = glue.load_task(
        task, settings.data, val_frac=settings.val_frac, skip_bad_rows=settings.skip_bad_rows
    )
    return chosen(rows, settings, settings.train_rows)


def chosen(rows: Sequence[Any], settings: Any, train_rows: int | None = None) -> list[Any]:
    """Those that --limit and --train_frac left."""
    return choose_rows(rows, "", settings.limit, settings.train_frac, train_rows)[0]


# ------------------------------------------------------- finetune_gpt2: texts, or language


def of_gpt2(run: SavedRun) -> Evaluated:
    from models import causal

    shape = causal.load_config(str(run.weights))
    is_classifier = any("Classification" in kind for kind in shape.architectures or [])
    tokenizer = causal.load_tokenizer(str(run.weights), config=shape)
    if is_classifier:
        return of_texts(run, shape, tokenizer)
    return of_language(run, shape, tokenizer)


def of_texts(run: SavedRun, shape: Any, tokenizer: Any) -> Evaluated:
    from experiments.classification import prediction_lines
    from models import causal

    classes = [shape.id2label[number] for number in sorted(shape.id2label)]
    path = Path(run.asked.data)
    texts.require_path(path)
    rows, notes = texts.load_held_out(path, classes)
    run.say(notes)
    length = run.settings.max_length
    ids = texts.cached_sequences(rows, tokenizer, run.world)
    data = texts.TextData(ids, rows, "test", tokenizer, length)
    model = causal.load_model(str(run.weights), shape, classes, tokenizer=tokenizer)
    state = run.state(model, run.precision(shape))
    p = softmax(core.evaluate_rows(state, data, causal.class_logits, rows_each(length)))
    groups = [row.group for row in rows]
    figures = classification_metrics(p, data.labels, groups, classes)

    def read(row: int) -> dict[str, str]:
        tokens = data.sequence(row, None).astype(int)
        return {"text, as read": tokenizer.decode(tokens)}

    result = Result(figures, prediction_lines(rows, p, classes), read=read)
    return Evaluated(result, texts.data_fingerprint(rows), "text", groups)


def of_language(run: SavedRun, shape: Any, tokenizer: Any) -> Evaluated:
    from experiments.language import LanguageModelling
    from models import causal

    settings = run.settings
    rows, separated, notes = documents.load_held_out(
        settings.task, run.asked.data, settings.detokenize
    )
    run.say(notes)
    if not rows:
        raise ValueError(f"{run.asked.data}: it holds no text")

    def windows(all_rows: Sequence[Any], part: str) -> documents.WindowData:
        streams = documents.Streams(all_rows, separated, tokenizer, run.world)
        pad = tokenizer.pad_token_id
        return documents.WindowData(streams.part(part), settings.max_length, settings.stride, pad)

    class Trained(LanguageModelling):
        """The experiment around a trained model, with these documents for the test."""

        def __init__(self) -> None:
            self.config, self.world, self.tokenizer = settings, run.world, tokenizer
            self.test_data = windows(rows, "test")
            if run.rows is not None:
                self.train = windows(run.rows, "train")

        def frequencies(self, data: documents.WindowData) -> float:
            return super().frequencies(data) if run.rows is not None else np.nan

    model = causal.load_model(str(run.weights), shape, tokenizer=tokenizer)
    result = Trained().baseline(run.state(model, run.precision(shape)))
    groups = [row.group for row in rows]
    return Evaluated(result, documents.data_fingerprint(rows), "text", groups)


def rows_of_gpt2(run: SavedRun) -> list[Any]:
    settings = run.settings
    shares = settings.val_frac, settings.test_frac
    shape = pretrained.load_config(str(run.weights))
    if any("Classification" in kind for kind in shape.architectures or []):
        rows, _, _ = texts.load_rows(settings.task, settings.data, *shares)
    else:
        rows, _, _ = documents.load_documents(
            settings.task, settings.data, *shares, settings.detokenize
        )
    return chosen(rows, settings)


# ---------------------------------------------------------------------------- headlines


def of_headlines(run: SavedRun) -> Evaluated:
    every, notes = titles.load_titles(run.asked.data, None, None)
    run.say(notes)
    from commands.titles import open_titles
    from experiments.headlines import Headlines

    opened = open_titles(str(run.folder), run.which, run.asked.device, run.world)

    class Trained(Headlines):
        """The experiment around a trained model, with these titles in place of validation's."""

        def __init__(self) -> None:
            self.config, self.world, self.tokenizer = run.settings, run.world, opened.tokenizer
            self.eos = self.tokenizer.eos_token_id
            self.hold_out(every)
            if run.rows is not None:
                train = [row.title for row in run.rows if row.split == "train"]
                encoded = self.encode(train, "tokenising")
                self.train_stream = titles.build_stream(encoded, self.eos)

        def frequencies(self) -> float:
            return super().frequencies() if run.rows is not None else np.nan

    trained = Trained()
    kernels = pretrained.KERNELS["small-gpt"]
    machine, device = run.world.machine, run.world.device.type
    precision = choose_precision(run.settings.precision, device, machine, kernels)
    result = trained.measure(run.state(opened.model, precision))
    return Evaluated(result, titles.titles_fingerprint(every), "title", trained.groups)


class OwnTitle(NamedTuple):
    split: str
    group: str
    title: titles.Title


def rows_of_headlines(run: SavedRun) -> list[OwnTitle]:
    from experiments.headlines import title_group

    settings = run.settings
    every, _ = titles.load_titles(settings.data, settings.limit, settings.data_seed)
    train, val = titles.split_titles(every, settings.val_frac)
    parts = {"train": train[: max(1, round(len(train) * settings.train_frac))], "val": val}
    return [
        OwnTitle(part, title_group(title), title) for part, own in parts.items() for title in own
    ]


# ------------------------------------------------------------------------- instructions


def of_instructions(run: SavedRun) -> Evaluated:
    from commands.opening import OpenConfig, open_causal
    from experiments.instructions import InstructionTuning
    from models import packed

    settings = run.settings
    rows, notes = instructions.load_held_out(run.asked.data)
    run.say(notes)
    opened = OpenConfig(str(run.folder), weights=run.which, device=run.asked.device)
    model, tokenizer, _ = open_causal(opened, run.world)
    if settings.packing:
        packed.use_packing(model, settings.max_length)

    def part(all_rows: Sequence[Any], split: str) -> instructions.InstructionData:
        ids = instructions.cached_sequences(all_rows, tokenizer, settings.template, run.world)
        return instructions.InstructionData(
            ids,
            all_rows,
            split,
            tokenizer.pad_token_id,
            settings.max_length,
            packing=settings.packing,
            answered=settings.mask_prompt and split == "train",
        )

    class Trained(InstructionTuning):
        """The experiment around a trained model, with these rows for the test."""

        def __init__(self) -> None:
            self.config, self.world, self.tokenizer = settings, run.world, tokenizer
            self.test_data = part(rows, "test")
            if run.rows is not None:
                self.train = part(run.rows, "train")

        def add_frequencies(self, figures: Metrics) -> Any:
            return super().add_frequencies(figures) if run.rows is not None else None

    trained = Trained()
    if cut := trained.test_data.cut:
        run.say([f"{cut:,} rows are longer than --max_length {settings.max_length}: cut there"])
    result = trained.measure(run.state(model, run.precision(model.config)))
    groups = [row.group for row in rows]
    return Evaluated(result, instructions.data_fingerprint(rows), "question", groups)


def rows_of_instructions(run: SavedRun) -> list[Any]:
    settings = run.settings
    rows, _ = instructions.load_rows(settings.data, settings.val_frac, settings.test_frac)
    return chosen(rows, settings)


# -------------------------------------------------------------------------- pretraining


def of_pretraining(run: SavedRun) -> Evaluated:
    source = corpora.open_source(run.asked.data)
    next(iter(source.documents()), None)  # wrong columns show before what is slow to import
    from transformers import AutoModelForMaskedLM

    from experiments.pretraining import Pretraining, frequencies_alone
    from models import bert  # noqa: F401, registers our architecture

    folder, settings = str(run.weights), run.settings
    # packed as in training, by the run's own tokenizer
    corpus = corpora.load_corpus(
        run.asked.data, run.world, tokenizer=folder, seq_length=settings.max_length
    )
    shape = pretrained.load_config(folder)
    model = pretrained.load_whole(AutoModelForMaskedLM, folder, shape)

    class Trained(Pretraining):
        """The experiment around a trained model, with these rows in place of validation's."""

        def __init__(self) -> None:
            self.config, self.world, self.corpus = settings, run.world, corpus
            self.stacking, self.num_layers = None, shape.num_hidden_layers
            self.val = corpora.MlmData(corpus, np.arange(len(corpus)))
            self.frequencies = np.nan
            if run.rows is not None:
                self.frequencies = frequencies_alone(run.rows.corpus, run.rows.train, self.val)

    result = Trained().measure(run.state(model, run.precision()))
    groups = [document_group(text) for _, text in source.documents()]
    return Evaluated(result, corpus.fingerprint, "text", groups)


def document_group(text: str) -> str:
    return stable_hash("text", normalised_text([text]))


class OwnCorpus:
    """The sequences of the run, and its documents, which are read again one by one."""

    def __init__(self, run: SavedRun):
        from experiments import pretraining

        words = ["--config", str(run.folder / "config.yaml")]
        config, _ = parse_settings(pretraining.Config, words, "pretrain_bert.py")
        self.source = corpora.open_source(config.data)
        self.corpus, split = pretraining.load_parts(config, run.quiet, build=False)
        self.train = split.il_train if config.validation.il_model else split.train

    def __iter__(self) -> Iterator[Seen]:
        """Those of the validation rows, too: a split of sequences knows no documents."""
        for _, text in self.source.documents():
            yield Seen("train", document_group(text))


# ------------------------------------------------------------------------------ command

Adapter = Callable[[SavedRun], Evaluated]
PREFERENCE = (
    "run_1_distilbert.py",
    "run_2_appendprompt.py",
    "run_5_models.py",
    "run_6_light.py",
)
ADAPTERS: dict[str, Adapter] = {
    **dict.fromkeys(PREFERENCE, of_preference),
    "eval_bert.py": of_glue,
    "finetune_gpt2.py": of_gpt2,
    "train_headlines.py": of_headlines,
    "alpaca_sft.py": of_instructions,
    "pretrain_bert.py": of_pretraining,
}
OWN_ROWS: dict[str, Callable[[SavedRun], Any]] = {
    **dict.fromkeys(PREFERENCE, rows_of_preference),
    "eval_bert.py": rows_of_glue,
    "finetune_gpt2.py": rows_of_gpt2,
    "train_headlines.py": rows_of_headlines,
    "alpaca_sft.py": rows_of_instructions,
    "pretrain_bert.py": OwnCorpus,
}


def evaluate(config: EvaluateConfig) -> None:
    """Figures with intervals of a saved run on other labelled rows, in a run folder."""
    launched = SimpleNamespace(device=config.device, backend="auto", deterministic=False)
    with core.distributed(launched) as world:
        run = SavedRun(config, world)
        output = Path(config.output or run.folder / "evaluations" / file_stem(config.data))
        world.on_rank_0(lambda: check_output(output, run))
        evaluated = ADAPTERS[run.script](run)
        require_read(config, read_so_far(config))
        metrics = evaluated.result.metrics
        if not np.isfinite(metrics.get("unigram_entropy", 0.0)):  # the run's own rows are not there
            del metrics["unigram_entropy"]
        metrics["tested_with"] = run.which
        seen = run.seen(evaluated.groups)
        verdicts = [str(verdict) for verdict in run.record.get("verdicts") or []]
        if found := leak(seen, evaluated):
            verdicts.append(found)

        def write() -> None:
            if is_run(output):
                delete_run(output)
            write_evaluation(output, run, evaluated, seen, verdicts)

        world.on_rank_0(write)
        rows = f"{len(evaluated.result.rows):,} rows of {config.data}"
        first = f"{run.folder}, its {run.which} weights, on {rows}:"
        lines = [first, *last_lines(metrics, verdicts), f"written: {output}"]
        world.say("\n".join(lines))


def file_stem(data: str) -> str:
    """rows of rows.jsonl.gz."""
    return Path(data).name.split(".")[0] or "rows"


def check_output(output: Path, run: SavedRun) -> None:
    """ValueError where something else is; an earlier evaluation of the run is replaced."""
    refuse_others(output)
    if not is_run(output):
        return
    earlier = read_json(output / "run.json").get("evaluated")
    if not isinstance(earlier, dict) or earlier.get("id") != run.record.get("id"):
        what = "a run" if earlier is None else "an evaluation of another run"
        raise ValueError(f"{output} holds {what}: use another --output")


def leak(seen: dict[str, int] | None, evaluated: Evaluated) -> str:
    """What is to be said where the run knows some of the rows; "" where it knows none."""
    if not seen or not any(seen.values()):
        return ""
    words = {"train": "that the run was trained on", "val": "that it was validated on"}
    parts = [f"{seen[part]:,} have a {evaluated.what} {words[part]}" for part in seen if seen[part]]
    count, what = len(evaluated.groups), evaluated.what  # of packed text the documents
    unit = "rows" if count == len(evaluated.result.rows) else f"{what}s"
    return f"leak: of {count:,} {unit} {' and '.join(parts)}"


def write_evaluation(
    output: Path,
    run: SavedRun,
    evaluated: Evaluated,
    seen: dict[str, int] | None,
    verdicts: Sequence[str],
) -> None:
    """A run folder: the run's settings and record, with these rows for its data."""
    config, record = run.asked, dict(run.record)
    settings = run.yaml | {"data": config.data, "test_with": run.which}
    # two runs that differ in their training rows alone are not two draws of one setting
    settings["trained_on"] = record.get("data_fingerprint") or run.yaml.get("data")
    ids = sorted(str(line["id"]) for line in evaluated.result.rows)
    output.mkdir(parents=True, exist_ok=True)
    contents = {k: v for k, v in (record.get("contents") or {}).items() if k != "data"}
    for name in ("sessions", "repairs", "number", "published"):  # which was of other rows
        record.pop(name, None)
    record |= environment_facts(run.world, run.precision_here, output)
    record |= {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "exit_reason": "evaluated",
        "verdicts": list(verdicts),
        "verdict_rules": record.get("verdict_rules", RULES),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "world_size": run.world.size,
        "device": run.world.device.type,
        "contents": contents,
        "data_fingerprint": evaluated.content,
        "split_fingerprint": fingerprint(ids),
        "evaluated": {
            "run": str(run.folder),
            "id": run.record.get("id"),
            "weights": run.which,
            "trained_on": run.yaml.get("data") or run.yaml.get("task"),
            "data": config.data,
            "rows": len(evaluated.result.rows),
            "seen": seen,
        },
    }
    write_text(output / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    write_result(output / "test", evaluated.result)
    write_record(output, record)
