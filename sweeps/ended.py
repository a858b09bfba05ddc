"""How a run ended, from what it wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.metrics import doubtful_groups, with_interval
from evaluation.outcomes import failures
from files import content_digest, read_json
from reports.scripts import text_of
from settings import FREE_SETTINGS
from sweeps.plan import Run


def has_diverged(record: Mapping[str, Any]) -> bool:
    """Whether a run ended as its loss was NaN or infinite: the same command would end so again."""
    verdicts = record.get("verdicts")
    known = [str(v) for v in verdicts] if isinstance(verdicts, list) else []
    return record.get("status") == "failed" and "diverged" in failures(known)


def has_ended(folder: Path) -> bool:
    """Whether a run of whatever settings came to its end there, be it by diverging."""
    record = read_json(folder / "run.json")
    return record.get("status") == "finished" or has_diverged(record)


def is_finished(run: Run, folder: Path | None = None) -> bool:
    """Finished, or diverged, with these very settings; of anything else the script itself is the
    judge. folder: where to look, instead of the run's place."""
    folder = folder or run.folder
    if not has_ended(folder):
        return False
    if folder.is_symlink():  # one that there was, which `explain` put in this place
        return True
    record = read_json(folder / "run.json")
    script, *words = record.get("command") or [""]
    recorded = dict(str(word).removeprefix("--").partition("=")[::2] for word in words)
    settings = {name: text_of(value) for name, value in run.settings.items()}
    names = (recorded.keys() | settings.keys()) - FREE_SETTINGS - {"published"}
    contents = record.get("contents") if isinstance(record.get("contents"), dict) else {}

    def is_same(name: str) -> bool:
        told = settings.get(name)
        if recorded.get(name) == told:
            return True
        # the same rows under another path, of the machine that the run came from
        return bool(told) and name in contents and content_digest(Path(told)) == contents[name]

    return script == Path(run.script).name and all(map(is_same, names))


def headline(metrics: Mapping[str, Any]) -> str:
    """The first figure that has an interval, e.g. accuracy 0.658 [0.621, 0.693]."""
    for name, value in metrics.items():
        if interval := metrics.get(f"{name}_ci95"):
            groups = doubtful_groups(metrics)
            few = f" ({groups.partition(':')[0]})" if groups else ""
            return f"{name} {with_interval(value, *interval)}{few}"
    return "no figure with an interval"
