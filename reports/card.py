"""card: a model card in the hub's format, from what a run recorded.

README.md in train/weights/final, so that `hf upload USER/NAME RUN/train/weights/final` publishes
model and card together. The metadata is huggingface_hub's own (ModelCardData, EvalResult).
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.reproduce import FROM_RANDOM
from evaluation import outcomes
from evaluation.metrics import doubtful_groups, with_interval
from files import add_to_folder, write_text
from reports import packed
from reports.arms import environment_notes, show
from reports.bundle import Shortened
from reports.folder import RunFolder, clean, interval_of, load_run, number
from reports.published import sentences
from reports.table import FIGURES, command_of
from settings import flatten

# What NOTICE says, by how a setting names the rows.
TERMS = {
    "reviews": "IMDB and Rotten Tomatoes: no licence stated; published for research",
    "reviews_control": "IMDB and Rotten Tomatoes: no licence stated; published for research",
    "reviews_text": "IMDB and Rotten Tomatoes: no licence stated; published for research",
    "imdb": "no licence stated; its authors ask for a citation (Maas et al. 2011)",
    "ag_news": "for non-commercial use",
    "wikitext2": "CC BY-SA",
    "wikitext103": "CC BY-SA",
    "c4": "ODC-BY 1.0, and Common Crawl's terms",
    "alpaca": "CC BY-NC 4.0; made with a model of OpenAI, whose terms apply",
}
# script → the hub's name of the task, and of the pipeline that serves the weights
TASKS = {
    "run_1_distilbert.py": "text-classification",
    "run_2_appendprompt.py": "text-classification",
    "run_5_models.py": "text-classification",
    "eval_bert.py": "text-classification",
    "pretrain_bert.py": "fill-mask",
    "train_headlines.py": "text-generation",
    "alpaca_sft.py": "text-generation",
}


def write_card(path: str | Path, against: Sequence[str] = (), output: Path | None = None) -> str:
    """Write it; what to print. against: runs or arms that the run is compared with.

    ValueError where there is nothing to say: a run without test figures.
    """
    run = load_run(path)
    if output is not None:
        packed.require_kind(output, ".md")
    text = card_of(run, against)
    final = run.path / "train/weights/final"
    if output is None and (final / "manifest.json").is_file():
        add_to_folder(final, "README.md", text)
        return f"card: {final / 'README.md'}\n  publish model and card: hf upload USER/NAME {final}"
    output = output or run.path / "README.md"
    packed.refuse_inside(output)
    write_text(output, text)
    return f"card: {output}"


def card_of(run: RunFolder, against: Sequence[str] = ()) -> str:
    """The whole text of README.md."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    if not run.metrics:
        raise ValueError(f"{run.path}: a card says what a test found, and this run has no figures")
    rows = source_of(run)
    task = TASKS.get(str(run.record.get("script"))) or _task_of(run)
    split = f"test ({show(run.metrics.get('n'))} rows)"
    fingerprint = run.record.get("split_fingerprint")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=_slug(rows),
            dataset_name=rows,
            dataset_split=split,
            dataset_args={"split_fingerprint": fingerprint} if fingerprint else None,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 6),
            metric_args={"ci95": [round(end, 6) for end in interval]} if interval else None,
        )
        for name, value, interval in figures_of(run)
    ]
    data = ModelCardData(
        model_name=clean(run.path.name),
        eval_results=results,
        library_name="transformers",
        pipeline_tag=task,
        base_model=_hub_base(run),
        tags=["ablate"],
    )
    lines = _body(run, rows, against)
    short = Shortened.of([run], lines)
    body = clean(short.text("\n".join(lines)))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def starts_at_random(run: RunFolder) -> bool:
    """Whether no weights were read: those of the setting `model` are a shape, or a name."""
    init = run.config.get("init")
    return run.record.get("script") in FROM_RANDOM or init not in (None, "pretrained")


def _hub_base(run: RunFolder) -> str | None:
    """The hub id of the weights that it started from; None for random ones, or a folder's."""
    base = run.config.get("model")
    if starts_at_random(run) or not isinstance(base, str) or base.count("/") != 1:
        return None
    contents = run.record.get("contents")  # of settings that name files
    is_folder = "model" in contents if isinstance(contents, dict) else False
    return None if is_folder or Path(base).exists() else base


def figures_of(run: RunFolder) -> list[tuple[str, float, tuple[float, float] | None]]:
    """(name, value, interval) of the test, the primary one first and none under two names; but for
    it, those without an interval are left out where some have one."""
    found: list[tuple[str, float, tuple[float, float] | None]] = []
    for name, value in run.metrics.items():
        interval = interval_of(run.metrics, name)
        twice = any(value == other and interval == ends for _, other, ends in found)
        if interval is not None and not twice:
            found.append((name, float(value), interval))
    primary = run.metrics.get("primary")
    value = number(run.metrics.get(str(primary)))
    if found and value is not None and interval_of(run.metrics, str(primary)) is None:
        found.append((str(primary), float(value), None))  # of too few groups
    if not found:  # averages of a suite have none
        names = [str(primary)] if primary in run.metrics else FIGURES
        known = [(name, number(run.metrics.get(name))) for name in names]
        found = [(name, float(value), None) for name, value in known if value is not None]
    return sorted(found, key=lambda each: each[0] != primary)


def source_of(run: RunFolder) -> str:
    """The rows, as the settings name them."""
    task, data = run.config.get("task"), run.config.get("data")
    name = data if data not in (None, "hub") else task or run.config.get("suite")
    return clean(Path(str(name)).name if Path(str(name)).is_absolute() else name)


def _task_of(run: RunFolder) -> str:
    language = "loss" in run.metrics and "accuracy" not in run.metrics
    return "text-generation" if language else "text-classification"


def _slug(name: str) -> str:
    """As the hub wants the type of a data set."""
    return "".join(c if c.isalnum() or c in "-_./" else "-" for c in name) or "unknown"


def _body(run: RunFolder, rows: str, against: Sequence[str]) -> list[str]:
    settings, record = flatten(run.config), run.record
    base, own = f"`{settings.get('model')}`", run.evaluated is None
    terms_of_base = f"those of {base}"
    if starts_at_random(run):
        base, terms_of_base = f"random weights ({base})", "none, they were drawn at random"
    lines = [
        f"# {clean(run.path.name)}",
        "",
        f"Trained by ablate's `{record.get('script')}` from {base} on `{trained_on(run)}`.",
        "",
        "## What it does on the test rows",
        "",
        "| metric | value | 95 % interval |",
        "|---|---|---|",
    ]
    for name, value, interval in figures_of(run):
        value_text, _, ends = with_interval(value, *(interval or (float("nan"),) * 2)).partition(
            " "
        )
        lines.append(f"| {name} | {value_text} | {ends or '-'} |")
    lines += ["", _about_figures(run)]
    lines += ["", "## What it was compared with", "", *_comparisons(run, against)]
    terms = TERMS.get(str(settings.get("data"))) or TERMS.get(str(settings.get("task")))
    lines += [
        "",
        "## Data",
        "",
        f"- rows: `{rows}` (fingerprint {record.get('data_fingerprint')})",
        f"- split: fingerprint {record.get('split_fingerprint')}"
        + "".join(
            f", {name.removesuffix('_frac')} {settings[name]:.0%}"
            for name in ("val_frac", "test_frac")
            if number(settings.get(name)) is not None
        ),
        f"- terms of the rows: {terms or 'not known to ablate; say them here'}",
        f"- terms of the weights it started from: {terms_of_base}",
        "",
        "## Limits",
        "",
    ]
    lines += [f"- {clean(each)}" for each in (*run.verdicts, *run.notes)]
    lines += [] if run.verdicts else [_without_verdicts(run)]
    lines += [
        f"- one seed ({run.seed}): how much another one would change is not in the intervals",
        *(["- measured on rows of the same source as those it was trained on"] if own else []),
        "",
        "## To repeat it",
        "",
        "```bash",
        f"git checkout {record.get('commit')}",
        *_pins(record),
        shlex.join(shlex.split(command_of(run))) or "# the command was not recorded",
        "```",
        "",
        f"Seed {run.seed}, {record.get('world_size')} process(es), {record.get('precision')} on "
        f"{record.get('device_name') or record.get('device')}; "
        f"{show(record.get('steps'))} steps in {show(record.get('seconds'))} s.",
    ]
    return lines


def trained_on(run: RunFolder) -> str:
    """The rows of its training, of an evaluation those of the run that it measures."""
    if run.evaluated is None:
        return source_of(run)
    name = str(run.evaluated.get("trained_on"))
    return clean(Path(name).name if Path(name).is_absolute() else name)


def _about_figures(run: RunFolder) -> str:
    said = []
    if (rows := number(run.metrics.get("n"))) is not None:
        groups = number(run.metrics.get("groups"))
        of = f" in {groups:,} groups that are resampled together" if groups else ""
        said.append(f"{rows:,} test rows{of}.")
    which = run.evaluated.get("weights") if run.evaluated else run.metrics.get("tested_with")
    if which == "best":
        said.append("The weights were chosen on validation.")
    elif which == "final":
        said.append("The weights are those of the end of the training: no rows chose them.")
    if any(interval for _, _, interval in figures_of(run)):
        said.append("The intervals are for this model on other rows, not for other seeds.")
    if doubt := doubtful_groups(run.metrics):
        said.append(f"Note: {doubt}.")
    return " ".join(said)


def _without_verdicts(run: RunFolder) -> str:
    rules = number(run.record.get("verdict_rules"))
    if rules is None or rules < outcomes.RULES:
        return "- the rules of its time found no fault with the training"
    return "- no rule of ablate's found fault with the training (docs/outcomes.md has the rules)"


def _pins(record: dict[str, Any]) -> list[str]:
    versions = record.get("versions")
    if not isinstance(versions, dict):
        return []
    pins = [
        f"{name}=={str(version).partition('+')[0]}"
        for name, version in versions.items()
        if name != "python"
    ]
    return [f"pip install {' '.join(pins)}"] if pins else []


def _comparisons(run: RunFolder, against: Sequence[str]) -> list[str]:
    lines = [f"- {sentence}" for sentence in sentences([run])]
    if against:
        from reports import compare

        found = [compare.build_report([other, str(run.path)]) for other in against]
        judged = [result for each in found for result in each.judged]
        if not any(result.race for result in judged):  # which has levels of its own
            margins = {result.margin for result in judged}
            compare.share_error(judged, margins.pop() if len(margins) == 1 else None)
        lines += [f"- {result.sentence}" for result in judged]
        notes = dict.fromkeys(
            note for each in found for note in (*each.notes, *environment_notes(each.arms))
        )
        lines += [f"- {clean(note)}" for note in (*notes, *compare.caveats(judged))]
    return lines or ["- nothing: `report.py card RUN --against OTHER` says how it compares"]
