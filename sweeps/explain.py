"""explain: two runs, or arms, that differ in several settings at once, and the runs between them.

    question = ask(["results/minilm/a", "results/minilm/b"])
    question.factors, question.points, question.existing, question.minutes
    question.as_sweep_file()          # which sweep.py explain runs

What can be separated by runs is settings. Other rows, versions or machines are named apart. The
runs that raised the question were picked for their difference, so that neither they nor their seeds
are among those that answer it.
"""

import argparse
import contextlib
import itertools
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

import console
from evaluation import factorial
from files import find_file, read_yaml, write_text
from reports import packed, scripts
from reports.arms import FINGERPRINTS, Arm, differences, settings_of
from reports.compare import SCHEMA, require_margin
from reports.effects import MOST_FACTORS, Factor, point_name, shown
from reports.folder import RunFolder, duration, find_runs, number, shared_notes
from reports.outcomes import lost_runs
from reports.scripts import folder_name, text_of
from settings import FREE_SETTINGS, flatten
from sweeps.options import Parser, add_explain_options

# Settings that say which rows there are and what their labels mean: runs that differ in them are
# tested on other rows, or on the same with other labels.
ROWS = (
    *("data", "split", "val_frac", "test_frac", "limit", "labels", "skip_bad_rows", "data_seed"),
    *("task", "suite", "validation.fraction", "validation.seed", "validation.truncate_to"),
)
ALWAYS_OTHER_ROWS = ("labels", "task", "suite")  # whatever the fingerprints say
MOST_POINTS = 256
LONGEST_LABEL = 100  # characters of a folder's name
MOST_SEEDS = 100


@dataclass
class Question:
    """A and B, what differs, and the runs that would tell which of it did it."""

    a: Arm
    b: Arm
    script: str  # that all runs between them are made with
    common: dict[str, Any]  # settings that they share and that are not the script's defaults
    factors: list[Factor]
    changes: list[tuple[dict[str, Any], dict[str, Any]]]  # of each factor: A's and B's settings
    is_full: bool
    seeds: list[int]
    rows: Arm  # the end whose rows the runs are tested on
    other_rows: dict[str, tuple[str, str]]  # settings that say which rows, in which they differ
    others: dict[str, list[list[str]]]  # what else differs, by section
    existing: dict[tuple[int, int], RunFolder] = field(default_factory=dict)  # (point, seed) → run
    seconds: dict[int, float] = field(default_factory=dict)  # of a run, by point
    joined: list[str] = field(default_factory=list)  # why settings are one factor
    notes: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # options of the command that were given

    @property
    def k(self) -> int:
        return len(self.factors)

    @property
    def points(self) -> list[int]:
        return factorial.full_points(self.k) if self.is_full else factorial.end_points(self.k)

    @property
    def missing(self) -> list[tuple[int, int]]:
        wanted = itertools.product(self.points, self.seeds)
        return [place for place in wanted if place not in self.existing]

    @property
    def minutes(self) -> float | None:
        """Of the missing runs, one after another, by the seconds of those that there are."""
        if len(self.seconds) < len(self.points):
            return None
        return sum(self.seconds[point] for point, _ in self.missing) / 60

    def settings(self, point: int) -> dict[str, Any]:
        """What a run of the point is told, but for its seed."""
        told = dict(self.common)
        for i, ends in enumerate(self.changes):
            told |= ends[point >> i & 1]
        return told

    def name(self, point: int) -> str:
        return point_name(self.factors, point)

    @property
    def command(self) -> str:
        seeds = ",".join(map(str, self.seeds)) + ("," if len(self.seeds) == 1 else "")
        paths = [str(_place(self.a)), str(_place(self.b))]
        words = ["python", "sweep.py", "explain", *paths, "--seeds", seeds, *self.words]
        return shlex.join(words)

    def as_sweep_file(self, margin: float | None = None) -> dict[str, Any]:
        """The plan as sweep.py takes it; seeds are paired, which is declared here, before any
        result."""
        arms = {}
        for point in self.points:
            label = folder_name(self.name(point).replace(", ", ","))
            label = label if len(label) <= LONGEST_LABEL else f"point_{point}"
            arms[label] = {"script": self.script, "seeds": self.seeds, **self.settings(point)}
        declared = {"paired": True, **({} if margin is None else {"margin": margin})}
        return {**declared, "explain": self.as_plan(), "arms": arms}

    def as_plan(self) -> dict[str, Any]:
        return {
            "a": [str(run.path) for run in self.a.runs],
            "b": [str(run.path) for run in self.b.runs],
            "changes": [factor.change for factor in self.factors],
            "design": "full" if self.is_full else "ends",
        }

    # -- what is said

    def as_text(self, style: str = "simple") -> str:
        lines = [*self._ends(), *self.notes, ""]
        changed = [[name, f.a[name], f.b[name]] for f in self.factors for name in f.a]
        lines += [tabulate(changed, ["settings that differ", "A", "B"], tablefmt=style,
                           disable_numparse=True), ""]  # fmt: skip
        lines += [*self.joined, *([""] if self.joined else [])]
        if self.other_rows:
            lines += [self.about_rows, ""]
        for section, rows in self.others.items():
            head = [f"else: {section}", "A", "B"]
            lines += [tabulate(rows, head, tablefmt=style, disable_numparse=True), ""]
        if self.others:
            lines += ["None of this is a setting that runs could separate; new runs are all made "
                      "on one machine, from one commit.", ""]  # fmt: skip
        head = ["runs that separate them", *(f"seed {seed}" for seed in self.seeds), "each takes"]
        table = []
        for point in self.points:
            there = [self.existing.get((point, seed)) for seed in self.seeds]
            cells = ["–" if run is None else str(run.path) for run in there]
            takes = duration(self.seconds[point]) if point in self.seconds else "?"
            end = {0: "  (as A)", 2**self.k - 1: "  (as B)"}.get(point, "")
            table.append([self.name(point) + end, *cells, takes])
        lines += [tabulate(table, head, tablefmt=style, disable_numparse=True), ""]
        return "\n".join([*lines, *self._cost()])

    def _ends(self) -> list[str]:
        lines = []
        for letter, arm in (("A", self.a), ("B", self.b)):
            seeds = ", ".join(str(run.seed) for run in arm.runs)
            figures = [f"{name} {value:.4f}" for name, value in _figure(arm)]
            lines.append(", ".join([f"{letter}: {_place(arm)} (seed {seeds})", *figures]))
        return lines

    @property
    def about_rows(self) -> str:
        names = ", ".join(f"{n} {a} → {b}" for n, (a, b) in self.other_rows.items())
        rows = "A" if self.rows is self.a else "B"
        return (
            f"They were tested on other rows ({names}), which no run separates: a figure on "
            f"other rows is another figure. The runs below are all tested on the rows of {rows} "
            "(--rows), and say what the settings do there."
        )

    def _cost(self) -> list[str]:
        wanted = len(self.points) * len(self.seeds)
        text = f"{wanted} runs, {len(self.existing)} of them there already."
        if self.missing and self.minutes is not None:
            text += (
                f" The {len(self.missing)} missing ones take {self.minutes:.1f} minutes of "
                "training one after another, by the seconds of these runs and of what lies between "
                "them."
            )
        picked = (
            "The runs that raised the question and their seeds are not counted: they were picked "
            "for their difference."
        )
        return [text, picked, "", f"They are made and judged by: {self.command}"]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **{end: [str(run.path) for run in arm.runs] for end, arm in self._sides()},
            "script": self.script,
            "settings": [{"from": f.a, "to": f.b} for f in self.factors],
            "joined": self.joined,
            "other_rows": {name: list(ends) for name, ends in self.other_rows.items()},
            "others": {
                section: [{"name": name, "a": a, "b": b} for name, a, b in rows]
                for section, rows in self.others.items()
            },
            "design": "full" if self.is_full else "ends",
            "seeds": self.seeds,
            "points": [
                {
                    "settings": self.name(point),
                    "runs": {
                        str(seed): str(self.existing[point, seed].path)
                        for seed in self.seeds
                        if (point, seed) in self.existing
                    },
                    "seconds": self.seconds.get(point),
                }
                for point in self.points
            ],
            "missing": len(self.missing),
            "minutes": self.minutes,
            "command": self.command,
            "notes": self.notes,
        }

    def _sides(self) -> list[tuple[str, Arm]]:
        return [("a", self.a), ("b", self.b)]


def _place(arm: Arm) -> Path:
    return Path(arm.label)


def _figure(arm: Arm) -> list[tuple[str, float]]:
    """The primary metric of the arm's runs, as their metrics.json have it."""
    names = [run.metrics.get("primary") for run in arm.runs]
    values = [number(run.metrics.get(name)) for run, name in zip(arm.runs, names, strict=True)]
    known = [value for value in values if value is not None]
    if len(set(map(str, names))) > 1 or not known:
        return []
    return [(str(names[0]), sum(known) / len(known))]


# ------------------------------------------------------------------------------ asking


def ask_of(
    options: argparse.Namespace, leave_out: Path | None = None, seeds: Sequence[int] | None = None
) -> Question:
    """`ask` by those options; seeds: of a plan that there is, in place of the default."""
    together = [[name for name in word.split(",") if name.strip()] for word in options.together]
    wanted = parse_seeds(options.seeds) if options.seeds else list(seeds or ()) or 3
    return ask(options.runs, wanted, options.full, together, options.rows, options.under, leave_out)


def ask(
    paths: Sequence[str],
    seeds: int | Sequence[int] = 3,
    full: bool | None = None,
    together: Sequence[Sequence[str]] = (),
    rows: str | None = None,
    under: Sequence[str] = (),
    leave_out: Path | None = None,
) -> Question:
    """ValueError where the two cannot be explained by settings, with the reason.

    seeds: how many, or which. full: all 2^k points, or (False) the ends alone; None: the points up
    to four settings. together: settings to be taken as one. rows: "a" or "b", on whose rows the
    runs are tested. under: folders to look for existing runs in, besides results/ and where A and
    B lie; leave_out: one that is not looked into.
    """
    if len(paths) != 2:
        raise ValueError("explain: give two runs, or two folders of runs that differ in their seed")
    a, b = (_one_setting(path) for path in paths)
    script = _script_of(a, b)
    file = _find_script(script)
    if missing := [folder for folder in under if not Path(folder).is_dir()]:
        raise ValueError(f"--under {missing[0]}: no such folder")
    if rows not in (None, "a", "b"):
        raise ValueError(f"--rows {rows}: expected a or b")
    with scripts.Asking(file) if scripts.is_ours(file) else contextlib.nullcontext() as asking:
        question, texts, defaults = _between(a, b, script, asking, full, together, rows, under)
    home = [Path("results"), *(Path(p) for p in under), *(_above(Path(p)) for p in paths)]
    _look_for_runs(question, texts, defaults, seeds, home, leave_out)
    question.seconds = _seconds(question)
    return question


def _between(
    a: Arm,
    b: Arm,
    script: str,
    asking: scripts.Asking | None,
    full: bool | None,
    together: Sequence[Sequence[str]],
    rows: str | None,
    under: Sequence[str],
) -> tuple[Question, list[dict[str, Any]], dict[str, Any]]:
    """(the question, without its seeds and runs; A's and B's settings as reports compare them; the
    script's defaults)."""
    defaults = _answers(asking, [[]])[0].settings if asking else {}
    told = [_told(arm, defaults, script) for arm in (a, b)]
    texts = [_compared(arm.runs[0], defaults) for arm in (a, b)]
    differing = [n for n in dict.fromkeys([*texts[0], *texts[1]]) if _differ(texts, n)]
    notes = shared_notes([*a.runs, *b.runs])
    same_name = [n for n in differing if told[0].get(n) == told[1].get(n)]
    other_rows = _other_rows(a, b, differing)
    if other_rows is not None and rows is None:
        notes.append("note: which rows to test on is open: --rows a, or --rows b")
    end = b if rows == "b" else a
    which = told[1 if end is b else 0]
    names = [n for n in differing if n not in same_name and n not in (other_rows or {})]
    names = [n for n in names if n != "script"]
    others = differences([a, b])
    others.pop("settings", None)
    if same_name:
        pairs = [[n, shown(texts[0].get(n)), shown(texts[1].get(n))] for n in same_name]
        others = {"the same name, something else behind it": pairs, **others}
    if not names:
        what = "and so in rows, data or environment alone" if others or other_rows else "at all"
        raise ValueError(
            f"{a.label} and {b.label} differ in no setting {what}: a difference between them is "
            "no setting's work (report.py compare; sweep.py --aa shows what seeds alone do)"
        )
    shared = {n: v for n, v in which.items() if n not in names and not _is_default(n, v, defaults)}
    question = Question(
        *(a, b, script, shared, [], [], True, [], end, other_rows or {}, others),
        notes=notes,
        words=_words(full, together, rows or ("a" if other_rows else None), under),
    )
    groups = _together(together, names)
    if len(groups) > MOST_FACTORS:
        raise ValueError(
            f"{len(groups)} settings differ ({', '.join(names)}): {MOST_FACTORS} at most; "
            "--together takes several as one"
        )
    _join_refused(question, groups, told, texts, defaults, asking, full)
    return question, texts, defaults


def _words(
    full: bool | None, together: Sequence[Sequence[str]], rows: str | None, under: Sequence[str]
) -> list[str]:
    words = [] if full is None else ["--full" if full else "--ends"]
    words += [word for names in together for word in ("--together", ",".join(names))]
    words += ["--rows", rows] if rows else []
    return words + [word for folder in under for word in ("--under", folder)]


def _one_setting(path: str) -> Arm:
    """A run, or a folder of the seeds of one setting. ValueError for anything else."""
    runs = find_runs(path)
    for run in runs:
        if run.evaluated:
            raise ValueError(
                f"{run.path} is an evaluation: it was not trained on its rows. Explain the run "
                f"itself, {run.evaluated.get('run')}"
            )
    settings = {repr(sorted(settings_of(run).items(), key=str)) for run in runs}
    if len(settings) > 1:
        raise ValueError(
            f"{path}: its runs differ in more than the seed; give one run, or a folder of the "
            "seeds of one setting (report.py effects takes a whole grid)"
        )
    if not runs[0].config:
        raise ValueError(f"{runs[0].path}: it has no config.yaml that can be read")
    return Arm(str(path), runs)


def _script_of(a: Arm, b: Arm) -> str:
    names = [str(settings_of(arm.runs[0]).get("script")) for arm in (a, b)]
    if names[0] != names[1]:
        by = [str(arm.runs[0].record.get("script") or arm.label) for arm in (a, b)]
        raise ValueError(
            f"{a.label} was made by {by[0]}, {b.label} by {by[1]}: these are two programs, and no "
            "settings lie between them"
        )
    if names[0] == "None":
        raise ValueError(f"{a.runs[0].path}: run.json does not say which script made it")
    return scripts.WHOLE_SCRIPT.get(names[0], names[0])


def _find_script(script: str) -> Path:
    try:
        return find_file(script)
    except OSError:
        raise ValueError(f"no such script: {script}, neither here nor beside report.py") from None


def _answers(asking: scripts.Asking, lines: Sequence[Sequence[str]]) -> list[scripts.Answer]:
    try:
        return asking(lines)
    except ValueError as error:
        last = str(error).strip().splitlines() or ["no word"]
        raise ValueError(
            f"{asking.script} cannot be asked what its settings are: {last[-1]}"
        ) from None


def _told(arm: Arm, defaults: dict[str, Any], script: str) -> dict[str, Any]:
    """All settings of the arm as a command line takes them."""
    run = arm.runs[0]
    config = flatten(run.config, whole=defaults)
    resolved = settings_of(run)
    own = {n: resolved[n] for n in scripts.UNSAID if n in resolved and n in defaults}
    settings = {**defaults, **config, **own}
    gone = [n for n in config if defaults and n not in defaults and n not in FREE_SETTINGS]
    for name in gone:
        run.notes.append(f"{script} has no setting {name} today: left out")
    free = {*FREE_SETTINGS, "seed", *gone}
    return {n: v for n, v in settings.items() if n not in free}


def _compared(run: RunFolder, defaults: dict[str, Any]) -> dict[str, Any]:
    """Its settings as reports compare them; one that is newer than the run has its default."""
    settings = {n: v for n, v in settings_of(run).items() if not defaults or n in defaults}
    fill = {n: v for n, v in defaults.items() if n not in FREE_SETTINGS and n != "seed"}
    return {**fill, **settings}


def _differ(texts: Sequence[dict[str, Any]], name: str) -> bool:
    return text_of(texts[0].get(name)) != text_of(texts[1].get(name))


def _is_default(name: str, value: Any, defaults: dict[str, Any]) -> bool:
    return name in defaults and text_of(defaults[name]) == text_of(value)


def _other_rows(a: Arm, b: Arm, differing: Sequence[str]) -> dict[str, tuple[str, str]] | None:
    """The settings by which A and B have other rows; None where they have the same."""
    records = [arm.runs[0].record for arm in (a, b)]
    both = [[record.get(name) for name in FINGERPRINTS] for record in records]
    moved = [n for n in differing if n in ALWAYS_OTHER_ROWS]
    if any(x != y for x, y in zip(*both, strict=True) if x and y):
        moved += [n for n in differing if n in ROWS and n not in moved]
        if not moved:
            return {"the rows of data": ("", "changed between them")}
    if not moved:
        return None
    configs = [flatten(arm.runs[0].config) for arm in (a, b)]
    return {n: (shown(configs[0].get(n)), shown(configs[1].get(n))) for n in moved}


def _together(asked: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[str]]:
    """The settings that differ, those that are to be taken as one together."""
    groups = [[name] for name in names]
    for wanted in asked:
        wanted = [name.strip().removeprefix("--").replace("-", "_") for name in wanted]
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(
                f"--together {','.join(wanted)}: {unknown[0]} does not differ; these do: "
                f"{', '.join(names)}"
            )
        groups = _merged(groups, [g for g in groups if set(g) & set(wanted)])
    return groups


def _merged(groups: list[list[str]], those: list[list[str]]) -> list[list[str]]:
    """The groups with `those` as one, in the place of the first."""
    one = [name for group in those for name in group]
    kept = [one if group is those[0] else group for group in groups]
    return [group for group in kept if group is one or group not in those]


def _join_refused(
    question: Question,
    groups: list[list[str]],
    told: Sequence[dict[str, Any]],
    texts: Sequence[dict[str, Any]],
    defaults: dict[str, Any],
    asking: scripts.Asking | None,
    full: bool | None,
) -> None:
    """Set the factors, joining those of which a point between A and B is refused by the script:
    the one means nothing without the other."""
    for group in groups:
        if len(group) > 1:
            question.joined.append(f"Taken as one, as --together says: {', '.join(group)}.")
    while True:
        k = len(groups)
        # of three settings the ends are all points
        question.is_full = k <= factorial.MOST_FULL if full is None else full or k <= 3
        if question.is_full and 2**k > MOST_POINTS:
            raise ValueError(f"--full: {2**k} points of {k} settings; --ends has {2 * k + 2}")
        question.factors = [
            Factor(*({n: shown(side.get(n)) for n in group} for side in texts)) for group in groups
        ]
        question.changes = [_ends_of(group, told, defaults) for group in groups]
        if asking is None:
            return
        lines = [
            [f"--{n}={text_of(v)}" for n, v in question.settings(point).items()]
            for point in question.points
        ]
        answers = dict(zip(question.points, _answers(asking, lines), strict=True))
        refused = {point: answer.error for point, answer in answers.items() if answer.error}
        if not refused:
            return
        for point, letter in ((0, "A"), (2**k - 1, "B")):
            if point in refused:
                raise ValueError(f"{letter}'s settings are refused today: {refused[point]}")
        point, error = next(iter(refused.items()))
        i, j = _pair_to_join(groups, refused, point, error)
        question.joined.append(
            f"Taken as one: {', '.join(groups[i] + groups[j])}. They cannot be separated, as "
            f"{question.name(point)} is refused: {error}"
        )
        groups = _merged(groups, [groups[i], groups[j]])


def _ends_of(
    group: Sequence[str], told: Sequence[dict[str, Any]], defaults: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A's and B's settings as a command says them: a default is left unsaid, so that one which
    counts for nothing is not refused."""
    a, b = (
        {n: side[n] for n in group if n in side and not _is_default(n, side[n], defaults)}
        for side in told
    )
    return a, b


def _pair_to_join(
    groups: Sequence[Sequence[str]], refused: dict[int, str], point: int, error: str
) -> tuple[int, int]:
    """Two factors of which one has A's value and the other B's at the refused point: those that
    the script names, else those of which most refused points are that."""
    named = [
        i for i, group in enumerate(groups) if any(re.search(rf"\b{n}\b", error) for n in group)
    ]
    pairs = list(itertools.combinations(range(len(groups)), 2))
    apart = [(i, j) for i, j in pairs if (point >> i ^ point >> j) & 1]

    def weight(pair: tuple[int, int]) -> tuple[int, int]:
        i, j = pair
        return len({i, j} & set(named)), sum((p >> i ^ p >> j) & 1 for p in refused)

    return max(apart, key=weight)


# ----------------------------------------------------------------- which runs there are


def _above(path: Path) -> Path:
    """Where a run's neighbours lie: the folder called results above it, or the one it is in."""
    parents = list(path.parents)
    return next((p for p in parents if p.name == "results"), parents[0] if parents else path)


def _look_for_runs(
    question: Question,
    texts: Sequence[dict[str, Any]],
    defaults: dict[str, Any],
    seeds: int | Sequence[int],
    folders: Sequence[Path],
    leave_out: Path | None,
) -> None:
    """Fill `existing` and choose the seeds: finished runs (or diverged ones, which are outcomes)
    with the point's settings on the same rows and kind of machine."""
    raising = [*question.a.runs, *question.b.runs]
    taken = {run.seed for run in raising}
    if not isinstance(seeds, int) and (both := [seed for seed in seeds if seed in taken]):
        raise ValueError(
            f"seed {both[0]} is of a run that raised the question: it would come out as it did "
            f"then, and was picked for that; other seeds than {', '.join(map(str, sorted(taken)))}"
        )
    base = texts[0] if question.rows is question.a else texts[1]
    wanted = {}
    for point in question.points:
        place = dict(base)
        for i, factor in enumerate(question.factors):
            place |= {n: texts[point >> i & 1].get(n) for n in factor.a}
        wanted[_key(place)] = point
    like = question.rows.runs[0].record
    found: dict[tuple[int, int], RunFolder] = {}
    in_files: list[RunFolder] = []
    for run in _finished_runs(folders, leave_out):
        if run.seed in taken or not isinstance(run.seed, int):
            continue
        record = run.record
        if any(record.get(n) != like.get(n) for n in (*FINGERPRINTS, "device", "precision")):
            continue
        if settings_of(run)["script"] != settings_of(raising[0])["script"]:
            continue
        point = wanted.get(_key(_compared(run, defaults)))
        if point is not None and packed.is_packed(run.path):
            in_files.append(run)
        elif point is not None:
            found.setdefault((point, run.seed), run)
    if isinstance(seeds, int):
        there = {seed: sum(s == seed for _, s in found) for _, seed in found}
        free = [s for s in range(seeds + len(there) + len(taken)) if s not in taken]
        order = sorted({*free, *there}, key=lambda seed: (-there.get(seed, 0), seed))
        seeds = sorted(order[:seeds])
    question.seeds = list(seeds)
    question.existing = {place: run for place, run in found.items() if place[1] in question.seeds}
    if in_files:
        question.notes.append(
            f"note: {len(in_files)} such runs lie in packed folders, e.g. {in_files[0].path}: they "
            "count once they are unpacked"
        )
    versions = {str(run.record.get("versions")) for run in question.existing.values()}
    if len(versions) > 1:
        question.notes.append("note: the runs that exist were made with different versions")


def _key(settings: dict[str, Any]) -> str:
    return repr(sorted((n, text_of(v)) for n, v in settings.items() if n != "script"))


def _finished_runs(folders: Sequence[Path], leave_out: Path | None) -> list[RunFolder]:
    runs: dict[Path, RunFolder] = {}
    out = leave_out.resolve() if leave_out is not None else None
    for folder in folders:
        if not folder.is_dir():
            continue
        try:
            below = find_runs(folder)
        except ValueError:  # none there
            continue
        for run in below:
            place = run.path.resolve()
            inside = out is not None and place.is_relative_to(out)
            if not inside and (run.status == "finished" or lost_runs([run])):
                runs.setdefault(place, run)
    return list(runs.values())


def _seconds(question: Question) -> dict[int, float]:
    """Of a run of each point: the mean of those that there are; else what lies between A and B, the
    more of B's the more of its settings (in proportion, as times multiply)."""
    last = 2**question.k - 1
    known: dict[int, list[float]] = {}
    runs = [(point, run) for (point, _), run in question.existing.items()]
    runs += [(0, run) for run in question.a.runs] + [(last, run) for run in question.b.runs]
    for point, run in runs:
        seconds = number(run.record.get("seconds"))
        if seconds and run.status == "finished":
            known.setdefault(point, []).append(seconds)
    means = {point: sum(values) / len(values) for point, values in known.items()}
    if not means:
        return {}
    middle = math.exp(sum(map(math.log, means.values())) / len(means))
    a, b = means.get(0, middle), means.get(last, middle)
    return {
        point: means.get(point, a * (b / a) ** (point.bit_count() / question.k))
        for point in question.points
    }


def parse_seeds(text: str) -> int | list[int]:
    """3: how many; 3,5,7: these. ValueError for anything else."""
    seeds: int | list[int] = []
    good = False
    try:
        if "," in text:
            seeds = [int(seed) for seed in text.split(",") if seed.strip()]
            good = bool(seeds) and min(seeds) >= 0 and len(set(seeds)) == len(seeds)
        else:
            seeds = int(text)
            good = 1 <= seeds <= MOST_SEEDS
    except ValueError:
        pass
    if not good:
        raise ValueError(f"--seeds {text}: expected how many (to {MOST_SEEDS}), or 3,5,7")
    return seeds


# ------------------------------------------------------------------------ sweep.py explain


def main(argv: Sequence[str], sweep: Callable[[list[str]], int]) -> int:
    """`sweep.py explain A B …`: the plan becomes OUT/sweep.yaml, runs that exist become links, and
    `sweep` runs what is missing. Returns its exit code; SystemExit with what is wrong."""
    parser = Parser(
        prog="sweep.py explain",
        description="The runs between A and B, and which of their settings did it.",
    )
    add_explain_options(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder of the runs (default: results/sweeps/explain_A_B)")
    add("--margin", type=float, help="a difference of the primary metric that does not matter")
    add("--jobs", default="1", help="runs at a time (default: 1)")
    add("--processes", help="processes of each run; more than one: torchrun (default: 1)")
    add("--dry_run", "--dry-run", action="store_true", help="say what is missing, and stop")
    options = parser.parse_args(argv)
    out = options.out or Path("results", "sweeps", _default_name(options.runs))
    try:
        require_margin(options.margin)  # before a plan is written that has it
        before = read_yaml(out / "sweep.yaml") if (out / "sweep.yaml").is_file() else {}
        question = ask_of(options, out, _seeds_of(before))
        if question.other_rows and options.rows is None:
            raise ValueError(question.about_rows)
        console.say(question.as_text())
        if options.dry_run:
            return 0
        write_plan(question, out, before, options.margin)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sweep.py explain: {error}") from None
    words = ["--config", str(out / "sweep.yaml"), "--out", str(out), "--jobs", options.jobs]
    return sweep(words + (["--processes", options.processes] if options.processes else []))


def _default_name(paths: Sequence[str]) -> str:
    """explain_run_1_run_2"""
    parts = ["_".join(Path(path).absolute().parts[-2:]) for path in paths]
    return re.sub(r"[^\w.=+-]+", "_", "_".join(["explain", *parts]))[:LONGEST_LABEL]


def _seeds_of(plan: dict[str, Any]) -> list[int]:
    arms = plan.get("arms") or {"": {}}
    return list(next(iter(arms.values())).get("seeds") or [])


def _is_same(before: Any, now: dict[str, Any]) -> bool:
    """Whether a plan was made for the same question, however its paths were written."""
    if not isinstance(before, dict) or before.keys() != now.keys():
        return False
    both = [
        asked | {end: [Path(str(path)).resolve() for path in asked[end]] for end in "ab"}
        for asked in (before, now)
    ]
    return both[0] == both[1]


def write_plan(question: Question, out: Path, before: dict[str, Any], margin: float | None) -> None:
    """OUT/sweep.yaml, where it is not there, and a link for each run that exists elsewhere.
    ValueError where OUT has another plan: results must not choose how they are judged."""
    plan = question.as_sweep_file(margin)
    if before:
        if not _is_same(before.get("explain"), plan["explain"]):
            raise ValueError(f"{out}/sweep.yaml is the plan of another question: another --out")
        if _seeds_of(before) != question.seeds:
            seeds = ", ".join(map(str, _seeds_of(before)))
            raise ValueError(
                f"the plan in {out} has the seeds {seeds}, and results must not choose how many "
                "there are: leave out --seeds, or use another --out"
            )
        if margin is not None and before.get("margin") != margin:
            raise ValueError(f"the plan in {out} has no margin {margin:g}: another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "sweep.yaml", yaml.safe_dump(plan, sort_keys=False))
    labels = list((before or plan)["arms"])
    for (point, seed), run in question.existing.items():
        place = out / labels[question.points.index(point)] / f"seed_{seed}"
        if place.is_symlink() and not place.exists():
            place.unlink()
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(run.path.resolve(), place.parent.resolve()))
