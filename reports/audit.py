"""audit: do a run's files belong together, and do its figures follow from its rows?

    audit_run(load_run("results/demo")).problems      # [] where nothing speaks against the run

Everything is worked out again from other files of the run: figures from predictions.csv, learning
rates from the settings, verdicts from the log, hashes from the files. What cannot be, is said.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from data.fingerprints import Unreachable, fingerprints_of
from evaluation import outcomes
from evaluation.metrics import apply_temperature, classification_metrics, interval_facts
from evaluation.stats import METHOD
from files import content_digest, damage
from methods.schedules import learning_rate_factor
from reports import packed
from reports.compare import run_interval
from reports.folder import BESIDE, RunFolder, load_run, load_runs, number
from reports.predictions import Predictions, load_predictions, read_rows
from seal import digest_of, hash_of
from settings import FREE_SETTINGS, flatten

CLOSE = 1e-5  # relative: predictions.csv has all digits, some sums were made in float32
OTHER_NAMES = {"nats_per_token": "loss", "val_loss": "loss"}  # of one figure, headlines' first
MOST_NAMED, MOST_LAYERS = 6, 200
# told by the log, or no figure
NO_FIGURES = {"no_interval", "other_interval_method", "interval_method", "tested_with", "best_step"}


@dataclass
class Audit:
    """What was looked at in a run, area by area; `open` is what nothing can be said of."""

    run: RunFolder
    problems: list[str] = field(default_factory=list)
    checked: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)

    def require(self, holds: bool, problem: str) -> bool:
        if not holds:
            self.problems.append(problem)
        return holds

    def __str__(self) -> str:
        lines = [f"{self.run.path}: {self.outcome}"]
        lines += [f"  PROBLEM  {problem}" for problem in self.problems]
        lines += [f"  checked  {area}: {text}" for area, text in self.checked.items()]
        lines += [f"  unknown  {area}: {text}" for area, text in self.open.items()]
        return "\n".join(lines)

    @property
    def outcome(self) -> str:
        if self.problems:
            count = len(self.problems)
            return f"{count} problem{'s' if count > 1 else ''}"
        return "its files agree with each other" if self.checked else "nothing could be checked"

    def as_json(self) -> dict[str, Any]:
        return {
            **{"run": str(self.run.path), "problems": self.problems},
            **{"checked": self.checked, "unknown": self.open},
        }


def report(paths: Sequence[str], as_text: bool = True) -> tuple[str | dict[str, Any], bool]:
    """(what to print, whether no run has a problem)."""
    audits = [audit_run(run) for run in with_parts(load_runs(paths, copies=True))]
    good = not any(audit.problems for audit in audits)
    if not as_text:
        return {"schema_version": 1, "runs": [audit.as_json() for audit in audits]}, good
    if len(audits) == 1:
        return str(audits[0]), good
    lines = [
        {
            "run": audit.run.name,
            "problems": len(audit.problems) or "-",
            "checked": ", ".join(audit.checked) or "-",
            "unknown": ", ".join(audit.open) or "-",
        }
        for audit in audits
    ]
    text = tabulate(lines, headers="keys", disable_numparse=True)
    wrong = [f"{audit.run.path}: {problem}" for audit in audits for problem in audit.problems]
    count = sum(bool(audit.problems) for audit in audits)
    end = f"{len(audits)} runs, {count or 'none'} with problems"
    return "\n".join([text, "", *wrong, end]), good


def with_parts(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Each run, and behind it the runs that lie in its folder: a suite's tasks, evaluations."""
    found = []
    for run in runs:
        inside = [p.parent for p in packed.files_below(run.path) if p.name == "run.json"]
        found += [run, *(load_run(place) for place in sorted(inside) if place != run.path)]
    return found


def audit_run(run: RunFolder) -> Audit:
    audit = Audit(run)
    for note in run.notes:
        if not note.startswith(("stopped:", "failed:", "still running", BESIDE)):
            audit.problems.append(note)
    for check in (files, record, figures, log, rates, weights, verdicts, rows):
        check(audit)
    return audit


# ---------------------------------------------------------------- files, settings, record


def files(audit: Audit) -> None:
    """The hashes that the run wrote down at its end (seal.py)."""
    run = audit.run
    if not run.record:
        audit.open["files"] = "there is no run.json that can be read"
        return
    if "digest" not in run.record:
        audit.open["files"] = "the run is older than the hashes that runs keep of their files"
        return
    whole = audit.require(
        run.record["digest"] == digest_of(run.record), "run.json was changed after it was written"
    )
    sealed = run.record.get("files")
    if not isinstance(sealed, dict):
        audit.open["files"] = "they are hashed at the end of a run"
        return
    for name, known in sealed.items():
        try:
            now = hash_of(packed.read_bytes(run.path / str(name)))
        except OSError:
            audit.problems.append(f"{name} is not there any more")
            continue
        whole &= audit.require(now == known, f"{name} was changed after the run had ended")
    if whole:
        audit.checked["files"] = f"run.json and {len(sealed)} files are as the run left them"


def record(audit: Audit) -> None:
    """run.json against config.yaml, its own sessions, and the files that settings name."""
    run, settings = audit.run, flatten(audit.run.config)
    facts = run.record
    if not facts:
        audit.open["record"] = "there is no run.json that can be read"
        return
    if "seed" in facts and "seed" in settings and run.evaluated is None:
        audit.require(
            facts["seed"] == settings["seed"],
            f"seed is {facts['seed']} in run.json and {settings['seed']} in config.yaml",
        )
    # of an evaluation it is another command; a continued run may have other free settings
    words = _words(facts.get("command")) if run.evaluated is None else {}
    for name, value in words.items():
        if name in settings and name not in NOT_COMPARED and _plain(settings[name]) is not None:
            audit.require(
                _same_value(value, settings[name]),
                f"the command says {name} {value}, config.yaml {settings[name]}",
            )
    sessions = facts.get("sessions")
    if isinstance(sessions, list) and sessions and all(isinstance(s, dict) for s in sessions):
        last = sessions[-1]
        for name in ("commit", "versions", "device", "world_size"):
            if name in last and name in facts:
                audit.require(
                    last[name] == facts[name],
                    f"run.json: {name} is {facts[name]}, its last session's {last[name]}",
                )
        begins = [number(s.get("from_step")) for s in sessions]
        known = all(step is not None for step in begins)
        audit.require(
            known and begins[0] == 0,  # later ones may fall back, where a checkpoint was damaged
            f"run.json: its sessions begin at steps {begins}, which is no run from the start",
        )
    if run.status == "finished" and run.evaluated is None and facts.get("exit_reason") == ALL_DONE:
        steps, total = number(facts.get("steps")), number(facts.get("total_steps"))
        if steps is not None and total is not None:
            audit.require(steps == total, f"run.json: finished after {steps} of {total} steps")
    _contents(audit)
    audit.checked["record"] = "run.json, its sessions and config.yaml agree"
    if any(problem.startswith(("run.json:", "the command", "seed")) for problem in audit.problems):
        del audit.checked["record"]


ALL_DONE = "all steps done"
NOT_COMPARED = {*FREE_SETTINGS, "name", "eval", "data", "model", "config"}


def _words(command: Any) -> dict[str, str]:
    """--name value, --name=value and name=value of a command line."""
    found: dict[str, str] = {}
    words = [str(word) for word in command] if isinstance(command, list) else []
    for word, after in itertools.zip_longest(words[1:], words[2:], fillvalue=""):
        name, is_pair, value = word.partition("=")
        if not name.startswith("--") and not is_pair:
            continue
        if not is_pair and (not after or after.startswith("--")):
            continue
        found[name.lstrip("-").replace("-", "_")] = value if is_pair else after
    return found


def _plain(value: Any) -> Any:
    """A number or true or false; None for what may be written in many ways."""
    return value if isinstance(value, int | float) else None


def _same_value(word: str, value: Any) -> bool:
    if isinstance(value, bool):
        return word.lower() == str(value).lower()
    try:
        return math.isclose(float(word), value, rel_tol=1e-12)
    except ValueError:  # "null" said and a default put in its place
        return True


def _contents(audit: Audit) -> None:
    """Files and folders that settings name: the digests of run.json, where they lie here."""
    known = audit.run.record.get("contents")
    settings, same = flatten(audit.run.config), 0
    for name, digest in known.items() if isinstance(known, dict) else ():
        path = settings.get(name)
        if not isinstance(path, str) or not (now := content_digest(Path(path))):
            audit.open[name] = f"{path} is not here"
        elif audit.require(
            now == digest, f"{name}: {path} holds something else than when the run began"
        ):
            same += 1
    if same:
        audit.checked["contents"] = f"{same} of the files and folders that settings name"


# -------------------------------------------------------------------------------- figures


def figures(audit: Audit) -> None:
    """Of the test and of the baseline, from their predictions.csv."""
    run = audit.run
    for part, reported in (("test", run.metrics), ("baseline", run.baseline)):
        if not reported:
            continue
        if not packed.is_file(run.path / part / "metrics/predictions.csv"):
            audit.open[f"{part} figures"] = "no predictions.csv"
            continue
        seen = RunFolder(run.path, run.config, run.record, reported)
        frame_rows = load_predictions(seen, part)
        if frame_rows is None:
            audit.problems += [f"{part}: {note}" for note in seen.notes]
            continue
        try:
            exact = _exact(seen, part)
        except ValueError as error:
            audit.problems.append(str(error))
            exact = {}
        _figures(audit, part, reported, frame_rows, exact)


def _exact(run: RunFolder, part: str) -> dict[str, Any]:
    """All that a classifier's rows give, by the function that made metrics.json."""
    frame = read_rows(run, part)
    names = [name.removeprefix("p_") for name in frame if name.startswith("p_")]
    if not names or "label" not in frame:
        return {}
    place = {name: k for k, name in enumerate(names)}
    labels = frame["label"].map(place).to_numpy(int)
    p = frame[[f"p_{name}" for name in names]].to_numpy(float)
    chosen = np.array(names)[p.argmax(axis=1)]
    if (frame["prediction"].to_numpy() != chosen).any():
        row = int((frame["prediction"].to_numpy() != chosen).argmax())
        raise ValueError(
            f"{part}: predictions.csv, row {frame['id'][row]}: the prediction is "
            f"{frame['prediction'][row]}, the most probable class {chosen[row]}"
        )
    primary = run.metrics.get("primary", "log_loss")
    groups = frame["group"].tolist()
    found = classification_metrics(p, labels, groups, names, primary=primary)
    temperature = number(run.metrics.get("temperature"))
    if temperature:
        logits = np.log(np.maximum(p, np.finfo(np.float64).tiny))
        after = classification_metrics(
            apply_temperature(logits, temperature), labels, groups, names
        )
        for name in ("log_loss", "expected_calibration_error"):
            found[f"{name}_calibrated"] = after[name]
        if "log_loss_ci95" in after:
            found["log_loss_calibrated_ci95"] = after["log_loss_ci95"]
    return found


def _figures(
    audit: Audit, part: str, reported: Mapping, found: Predictions, exact: Mapping[str, Any]
) -> None:
    today = reported.get("interval_method") == METHOD
    facts = {"n": len(found), **interval_facts(found.primary, found.groups, _sizes(found))}
    known = {**facts, **exact}
    wrong: dict[str, str] = {}  # by figure
    right, unknown = [], []
    for name, value in reported.items():
        base, _, _ = name.partition("_ci95")
        if name in NO_FIGURES:
            continue
        of_others = name.startswith("val_") and reported.get("evaluated_on") != "validation"
        if of_others or name.startswith("judge") or isinstance(value, dict):
            unknown.append(name)  # of a baseline, its figures of validation rows among them
            continue
        is_interval = name.endswith("_ci95")
        if is_interval and (not today or base in reported.get("other_interval_method", ())):
            if not _holds(value, reported.get(base)):
                wrong[name] = f"{name} {_show(value)} does not hold {_show(reported.get(base))}"
            continue
        computed = known.get(name)
        if computed is None:
            computed = _from_rows(base, found, is_interval)
        if computed is None:
            unknown.append(name)
        elif _close(computed, value):
            right.append(name)
        else:
            wrong[name] = (
                f"{name} is {_show(value)} in metrics.json, predictions.csv gives {_show(computed)}"
            )
    primary = wrong.get(found.primary)
    if primary and len(wrong) > 2:  # figures are changed one by one, rows change all at once
        audit.problems.append(
            f"{part}: {len(wrong)} of {len(wrong) + len(right)} figures are not those of "
            f"predictions.csv, which is another run's or was changed ({primary})"
        )
    else:
        audit.problems += [f"{part}: {problem}" for problem in wrong.values()]
    if right and not wrong:
        intervals = sum(name.endswith("_ci95") for name in right)
        audit.checked[f"{part} figures"] = (
            f"{len(right) - intervals} figures and {intervals} intervals follow from "
            f"{len(found):,} rows"
        )
    if unknown:
        names = ", ".join(dict.fromkeys(name.partition("_ci95")[0] for name in unknown))
        audit.open[f"{part} figures"] = f"not in predictions.csv: {names}"


def _sizes(found: Predictions) -> np.ndarray | None:
    return found.influence(found.primary).leverage


def _from_rows(name: str, found: Predictions, is_interval: bool) -> Any:
    """The value of a figure, or its interval, from the sums of the rows; None: they lack it."""
    curve = math.exp if name.endswith("perplexity") else float
    figure = name.replace("perplexity", "loss")
    if name.startswith("num_") and name in found.others and not is_interval:
        return found.others[name].sum()
    for candidate in (figure, OTHER_NAMES.get(figure, figure)):
        if candidate not in found.statistics or candidate in found.others:
            continue
        if not is_interval:
            value = found.value(candidate)
            return curve(value) if value < 700 else None
        ends = run_interval(found, candidate)
        if not (math.isfinite(ends.low) and math.isfinite(ends.high)) or ends.high > 700:
            return None
        return [curve(ends.low), curve(ends.high)]
    return None


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) or isinstance(b, list | tuple):
        both = isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b)
        return both and all(map(_close, a, b))
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    x, y = number(a), number(b)
    if x is None or y is None:
        return x is None and y is None
    return math.isclose(x, y, rel_tol=CLOSE, abs_tol=1e-7)


def _holds(interval: Any, value: Any) -> bool:
    """Whether an interval is one, and has its figure in it."""
    if not isinstance(interval, list) or len(interval) != 2 or number(value) is None:
        return number(value) is None
    low, high = map(number, interval)
    if low is None or high is None:
        return False
    slack = CLOSE * max(1.0, abs(value))
    return low - slack <= value <= high + slack


def _show(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], list):
        return f"[{', '.join(map(_show, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------- training


def log(audit: Audit) -> None:
    """metrics.jsonl: each step once, what is counted never less, the best step the best."""
    run = audit.run
    if run.evaluated is not None or not number(run.record.get("steps")):
        return
    if not packed.is_file(run.path / "train/metrics/metrics.jsonl"):
        audit.open["log"] = "no metrics.jsonl lies here"
        return
    training, evaluations = run.lines
    audit.problems += [note for note in run.notes if "metrics.jsonl" in note]
    before, steps = len(audit.problems), [line["step"] for line in training]
    total = int(run.record["steps"])
    missing = sorted(set(range(1, total + 1)) - set(steps))
    twice = sorted({step for step in steps if steps.count(step) > 1}) if _repeats(steps) else []
    audit.require(not missing, f"metrics.jsonl: {_ranges(missing)} missing of {total} steps")
    audit.require(not twice, f"metrics.jsonl: {_ranges(twice)} there more than once")
    beyond = [step for step in steps if step > total]
    audit.require(not beyond, f"metrics.jsonl: {_ranges(beyond)} beyond the {total} of run.json")
    ordered = steps == sorted(steps)
    audit.require(ordered or bool(twice), "metrics.jsonl: its steps are not in order")
    for name in ("examples", "tokens", "seconds"):
        values = [(line["step"], number(line.get(name))) for line in training]
        known = [(step, value) for step, value in values if value is not None]
        for (_, earlier), (step, later) in zip(known, known[1:], strict=False):
            if later < earlier:
                audit.problems.append(
                    f"metrics.jsonl: {name} falls from {earlier:g} to {later:g} at step {step}"
                )
                break
    if training and (seconds := number(run.record.get("seconds"))) is not None:
        last = number(training[-1].get("seconds"))
        if last is not None and not missing:
            audit.require(
                abs(last - seconds) <= 0.01,
                f"run.json has {seconds} seconds of training, metrics.jsonl {last:.3f}",
            )
    _batches(audit, training)
    _best(audit, evaluations)
    if len(audit.problems) == before:
        audit.checked["log"] = (
            f"{total:,} steps, each once, and {len(evaluations):,} evaluations in order"
        )


def _repeats(steps: Sequence[int]) -> bool:
    return len(set(steps)) < len(steps)


def _ranges(steps: Sequence[int]) -> str:
    """steps 3 to 5 and 9"""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1][-1:] = [step] if len(parts[-1]) > 1 else [parts[-1][0], step]
        else:
            parts.append([step])
    words = [" to ".join(map(str, part)) for part in parts[:MOST_NAMED]]
    more = f" and {len(parts) - MOST_NAMED} more stretches" if len(parts) > MOST_NAMED else ""
    one = len(steps) == 1
    return f"step{'' if one else 's'} {', '.join(words)}{more} {'is' if one else 'are'}"


def _batches(audit: Audit, training: Sequence[dict]) -> None:
    """Rows a step are --batch, but for the last batch of an epoch, where rows are not chosen."""
    settings = flatten(audit.run.config)
    batch = number(settings.get("batch"))
    if batch is None or settings.get("selection.name", "uniform") != "uniform":
        return
    counts = [number(line.get("examples")) for line in training]
    if len(counts) < 2 or any(count is None for count in counts):
        return
    each = np.diff([0, *counts])
    audit.require(
        each.max() <= batch and (len(each) < 4 or np.median(each) == batch or each.max() == batch),
        f"metrics.jsonl: {np.median(each):g} rows a step, where config.yaml has a batch of "
        f"{batch:g}",
    )


def _best(audit: Audit, evaluations: Sequence[dict]) -> None:
    run = audit.run
    best = number(run.metrics.get("best_step"))
    losses = [(number(line.get("val_loss")), line["step"]) for line in evaluations]
    losses = [each for each in losses if each[0] is not None]
    if best is None or not losses or run.metrics.get("tested_with") != "best":
        return
    lowest = min(losses)
    audit.require(
        best in [step for loss, step in losses if loss == lowest[0]],
        f"the best step is {best:g} in metrics.json; in metrics.jsonl step {lowest[1]} has the "
        f"lowest validation loss ({lowest[0]:.6g})",
    )


def rates(audit: Audit) -> None:
    """The learning rate of each step, from the settings alone."""
    run, settings = audit.run, flatten(audit.run.config)
    lr, total = number(settings.get("lr")), number(run.record.get("total_steps"))
    if run.evaluated is not None or not number(run.record.get("steps")):
        return
    if "log" in audit.open:
        return
    training, _ = run.lines
    name = settings.get("schedule")
    lines = [line for line in training if number(line.get("lr")) is not None]
    if lr is None or not total or not isinstance(name, str) or not lines:
        audit.open["learning rates"] = "the budget does not tell how many steps there are"
        if not lines:
            audit.open["learning rates"] = "metrics.jsonl has none"
        return
    if settings.get("head_epochs"):
        audit.open["learning rates"] = "each phase has its own course"
        return
    try:
        factors = [
            learning_rate_factor(
                (line["step"] - 1) / total,
                name,
                float(settings.get("warmup_frac") or 0.0),
                float(settings.get("min_lr") or 0.0) / lr,
                float(settings.get("decay_frac") or 0.0),
            )
            for line in lines
        ]
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        audit.problems.append(f"config.yaml: {name} is no schedule that is known here")
        return
    # the log has the rate of the first group of parameters
    ratios = [line["lr"] / f for line, f in zip(lines, factors, strict=True) if f > 0]
    seen = float(np.median(ratios)) if ratios else lr
    peak = next((each for each in _peaks(lr, settings) if _near(seen, each)), lr)
    for line, factor in zip(lines, factors, strict=True):
        if not _near(line["lr"], peak * factor):
            audit.problems.append(
                f"metrics.jsonl: the learning rate of step {line['step']} is {line['lr']:.6g}; "
                f"by config.yaml ({name}, peak {peak:g}) it is {peak * factor:.6g}"
            )
            return
    audit.checked["learning rates"] = f"those of {len(lines):,} steps are those of the settings"


def _peaks(lr: float, settings: Mapping[str, Any]) -> Iterator[float]:
    """Those that groups of parameters may have, that of --lr first."""
    yield lr
    if settings.get("optimizer") == "muon" and settings.get("matrix_lr"):
        yield settings["matrix_lr"]
    factors = settings.get("lr_factors")
    yield from (lr * factor for factor in factors if factor) if isinstance(factors, list) else ()
    decay = number(settings.get("layer_decay")) or 1.0
    if decay != 1.0:
        yield from (lr * decay**depth for depth in range(1, MOST_LAYERS))


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-15)


def weights(audit: Audit) -> None:
    """Manifests: each file as it was written, by this run, with the code of one of its sessions."""
    run, folder = audit.run, audit.run.path / "train/weights"
    below = packed.files_below(folder) if packed.is_dir(folder) else []
    places = sorted(path.parent for path in below if path.name == "manifest.json")
    if not places:
        audit.open["weights"] = "none lie here"
        return
    sessions = [each for each in run.sessions if isinstance(each, dict)]
    whole = unsigned = 0
    for place in places:
        if place.name.endswith(("damaged", "old", "tmp")):
            continue
        before = len(audit.problems)
        name, manifest = f"train/weights/{place.name}", _manifest(place)
        problem = _damage(place, manifest) if packed.is_packed(place) else damage(place)
        audit.require(problem is None, f"{name}: {problem}")
        step = number(manifest.get("step"))
        if place.name.startswith("step_"):
            audit.require(
                step == int(place.name[5:]) if place.name[5:].isdigit() else False,
                f"{name}: its manifest is of step {step}",
            )
        if place.name == "best" and (best := number(run.metrics.get("best_step"))) and step:
            audit.require(step == best, f"{name}: of step {step}, metrics.json has {best:g}")
        total = number(run.record.get("steps"))
        if step is not None and total is not None:
            audit.require(step <= total, f"{name}: of step {step}, the run has {total}")
        if "run" in manifest:
            audit.require(
                manifest["run"] == run.record.get("id"), f"{name} was written by another run"
            )
            _commit(audit, name, manifest, sessions)
        else:
            unsigned += 1
        whole += len(audit.problems) == before
    if whole:
        audit.checked["weights"] = (
            f"{whole} folder{'s' * (whole > 1)} of weights as the manifests say"
        )
    if unsigned:
        audit.open["weights"] = f"{unsigned} manifests do not say which run and commit wrote them"


def _manifest(place: Path) -> dict[str, Any]:
    try:
        content = json.loads(packed.read_bytes(place / "manifest.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _damage(place: Path, manifest: Mapping[str, Any]) -> str | None:
    """As files.damage, of a packed folder."""
    known = manifest.get("files")
    for name, fact in known.items() if isinstance(known, dict) else ():
        try:
            same = hash_of(packed.read_bytes(place / name)) == fact["sha256"]
        except (OSError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        if not same:
            return f"{name} has another hash"
    return None if isinstance(known, dict) else "its manifest names no files"


def _commit(audit: Audit, name: str, manifest: Mapping, sessions: Iterable[Mapping]) -> None:
    """The session that wrote it is the last that began at or before its step."""
    step = number(manifest.get("step"))
    began = [
        session.get("commit")
        for session in sessions
        if step is None or (number(session.get("from_step")) or 0) <= step
    ]
    audit.require(
        manifest.get("commit") in began,
        f"{name} was written by commit {str(manifest.get('commit'))[:12] or 'unknown'}, which no "
        "session of run.json that could have written it ran",
    )


def verdicts(audit: Audit) -> None:
    """Those that the log gives, by the rules of evaluation/outcomes.py; a language model's from its
    figures, too."""
    run = audit.run
    if run.evaluated is not None or run.status != "finished" or "log" in audit.open:
        return
    if not run.lines[0]:
        return
    if run.record.get("verdict_rules") != outcomes.RULES:
        audit.open["verdicts"] = "they are by other rules than today's"
        return
    course = outcomes.Course()
    for line in _in_order(run):
        course.add(line)
    found = outcomes.verdicts_of(course, _evidence(run.metrics))
    kinds = {outcomes.kind_of(verdict): verdict for verdict in found}
    there = {outcomes.kind_of(verdict): verdict for verdict in run.verdicts}
    left_open = "collapsed" if not _evidence(run.metrics) else ""
    for kind in dict.fromkeys([*kinds, *filter(None, there)]):
        if kind == left_open:
            continue
        if kind not in there:
            audit.problems.append(f"run.json lacks the verdict “{kinds[kind]}”")
        elif kind not in kinds:
            audit.problems.append(f"run.json has a verdict that nothing supports: “{there[kind]}”")
        elif kinds[kind] != there[kind]:
            audit.problems.append(
                f"run.json has the verdict “{there[kind]}”; the log gives “{kinds[kind]}”"
            )
    count = len(there.keys() - {left_open, ""})
    audit.checked["verdicts"] = f"{count or 'none'} of the log, by today's rules"
    if left_open:
        audit.open["verdicts"] = "whether answers collapsed is judged on validation rows"
    if any("verdict" in problem for problem in audit.problems):
        del audit.checked["verdicts"]


def _in_order(run: RunFolder) -> list[dict]:
    """Lines of training and evaluation as they were written: a step before its evaluation."""
    training, evaluations = run.lines
    lines = [(line["step"], 0, line) for line in training]
    lines += [(line["step"], 1, line) for line in evaluations]
    return [line for _, _, line in sorted(lines, key=lambda each: each[:2])]


def _evidence(metrics: Mapping[str, Any]) -> outcomes.Evidence:
    """Of a language model: its loss beside that of frequencies."""
    for loss, unigram, words in (
        ("nats_per_token", "unigram_entropy", None),
        ("response_loss", "response_unigram_entropy", "training responses' tokens"),
        ("loss", "unigram_entropy", None),
    ):
        if number(metrics.get(loss)) is not None and number(metrics.get(unigram)) is not None:
            more = (words,) if words else ()
            return outcomes.TokenLoss(metrics[loss], metrics[unigram], *more)
    return None


# ----------------------------------------------------------------------------------- data


def rows(audit: Audit) -> None:
    """Fingerprints of data and split, where the rows can be read here."""
    run = audit.run
    recorded = {
        name: run.record[name]
        for name in ("data_fingerprint", "split_fingerprint")
        if isinstance(run.record.get(name), str)
    }
    if not recorded or run.evaluated is not None:
        return
    try:
        found = fingerprints_of(str(run.record.get("script")), run.config)
    except Unreachable as error:
        audit.open["data"] = str(error)
        return
    same = True
    for name, value in recorded.items():
        what = "rows" if name == "data_fingerprint" else "rows of each part"
        same &= audit.require(
            found[name] == value,
            f"{name} is {value} in run.json; {run.config.get('data')} gives {found[name]}: other "
            f"{what}",
        )
    if same:
        audit.checked["data"] = f"the rows of {run.config.get('data')}, and their split"
