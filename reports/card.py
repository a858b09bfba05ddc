"""card: a model card in the hub's format, from what a run recorded.

README.md in train/weights/final, so that `hf upload USER/NAME RUN/train/weights/final` publishes
model and card together. The metadata is huggingface_hub's own (ModelCardData, EvalResult).
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.metrics import doubtful_groups, with_interval
from files import add_to_folder, write_text
from reports.arms import show
from reports.bundle import Shortened, strings
from reports.folder import RunFolder, clean, load_run, number
from reports.published import sentences
from reports.table import command_of
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
    text = card_of(run, against)
    final = run.path / "train/weights/final"
    if output is None and (final / "manifest.json").is_file():
        add_to_folder(final, "README.md", text)
        return f"card: {final / 'README.md'}\n  publish model and card: hf upload USER/NAME {final}"
    output = output or run.path / "README.md"
    write_text(output, text)
    return f"card: {output}"


def card_of(run: RunFolder, against: Sequence[str] = ()) -> str:
    """The whole text of README.md."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    if not run.metrics:
        raise ValueError(f"{run.path}: a card says what a test found, and this run has no figures")
    settings = flatten(run.config)
    rows = source_of(run)
    task = TASKS.get(str(run.record.get("script"))) or _task_of(run)
    split = f"test ({run.metrics.get('n')} rows)"
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
    base = settings.get("model")
    data = ModelCardData(
        model_name=clean(run.path.name),
        eval_results=results,
        library_name="transformers",
        pipeline_tag=task,
        base_model=base if isinstance(base, str) and base.count("/") == 1 else None,
        tags=["ablate"],
    )
    lines = _body(run, rows, against)
    short = Shortened([*strings(run.config), *strings(run.record), *lines])
    body = short.text("\n".join(lines))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def figures_of(run: RunFolder) -> list[tuple[str, float, list[float] | None]]:
    """(name, value, interval) of the test, the primary one first and none under two names; those
    without an interval are left out where some have one."""
    found: list[tuple[str, float, list[float] | None]] = []
    for name, value in run.metrics.items():
        interval = run.metrics.get(f"{name}_ci95")
        known = number(value)
        twice = any(known == value and interval == ends for _, value, ends in found)
        if known is not None and isinstance(interval, list) and len(interval) == 2 and not twice:
            found.append((name, float(known), interval))
    primary = run.metrics.get("primary")
    if not found and number(run.metrics.get(str(primary))) is not None:
        found = [(str(primary), float(run.metrics[str(primary)]), None)]
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
    base = settings.get("model")
    lines = [
        f"# {clean(run.path.name)}",
        "",
        f"Trained by ablate's `{record.get('script')}` from `{base}` on `{rows}`.",
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
    groups = run.metrics.get("groups")
    lines += [
        "",
        f"{run.metrics.get('n'):,} test rows"
        + (f" in {groups:,} groups that are resampled together" if groups else "")
        + f"; the weights were chosen on validation (tested: {run.metrics.get('tested_with')}). "
        "The intervals are for this model on other rows, not for other seeds."
        + (f" Note: {doubt}." if (doubt := doubtful_groups(run.metrics)) else ""),
    ]
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
        f"- terms of the weights it started from: those of `{base}`",
        "",
        "## Limits",
        "",
    ]
    lines += [f"- {clean(verdict)}" for verdict in run.verdicts] or [
        "- no rule of ablate's found fault with the training (docs/outcomes.md has the rules)"
    ]
    lines += [
        f"- one seed ({run.seed}): how much another one would change is not in the intervals",
        "- measured on rows of the same source as those it was trained on",
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

        for other in against:
            found = compare.build_report([other, str(run.path)])
            lines += [f"- {result.sentence}" for result in found.results if result.judged]
            lines += [f"- {clean(note)}" for note in found.notes]
    return lines or ["- nothing: `report.py card RUN --against OTHER` says how it compares"]
