"""A grid of settings × seeds, run one after another, and the table of it at the end.

    python sweep.py run_5_models.py --config configs/preference/demo.yaml \\
        --grid lr=1e-5,2e-5 freeze=none,all --seeds 3
    python sweep.py --config configs/sweeps/frozen.yaml                 # a whole published table
    python sweep.py --config configs/sweeps/models.yaml --processes 4   # each run under torchrun
    python sweep.py run_5_models.py --config configs/preference/demo.yaml --aa     # the controls
    python sweep.py --config configs/sweeps/frozen.yaml --dry_run       # the commands, and stop
    python sweep.py --config configs/sweeps/models.yaml --dry_run --gpu A100   # and what they cost
    python sweep.py explain results/run_1 results/run_2 --seeds 3       # which setting did it?
    python sweep.py --config configs/sweeps/models.yaml --race --margin 0.01 --max_seeds 12

The same command again skips what is finished and continues what was cut off. Ctrl-C and SIGTERM
let the runs save first. A failed run is listed at the end, and the others are run all the same.
A run that diverged is no failure but an outcome: it counts in the table and the comparison.
--aa runs the same settings with two sets of seeds (first, second: any difference is noise) and
with shuffled labels, which must stay at chance.
--race adds one seed at a time to the arms that are still undecided against the first one, up to
--max_seeds (10), and drops what is better, worse or, with --margin, the same: the looks are planned
for (docs/statistics.md), and --hours H ends it sooner.

A sweep file is a settings file with these keys besides; all other keys are common to all runs:
    script: run_5_models.py
    processes: 2                        # of each run; more than one: torchrun
    seeds: 3                            # 0, 1, 2; or a list
    grid: {lr: [1e-5, 2e-5]}            # every combination, in every arm
    arms:                               # the first one is the baseline
      frozen: {freeze: all, head_lr: 1e-3}
      roberta: {config: configs/preference/roberta.yaml}    # script, seeds: of its own, too
    tune: {lr: [1e-5, 1e-4]}            # each arm tries all of these once, with tune_seed (1000),
                                        # and runs its seeds with the lowest validation loss (of
                                        # the end, with test_with: final); an arm may have as many
                                        # values of its own
    tune_by: val_accuracy               # the best of this figure instead
    paired: true                        # the comparison pairs runs of one seed (docs/statistics.md)
    margin: 0.01                        # a difference of the primary metric that does not matter
    explain: …                          # of `sweep.py explain A B`: docs/explain.md
    race: {max_seeds: 10}               # as --race

OUT/sweep.yaml   the whole plan, itself a sweep file      OUT/tuned.yaml   what tuning chose
OUT/<arm>/seed_<n>/  seed_<n>.log                         OUT/<arm>/tune/<value>/  <value>.log
OUT/looks.jsonl  with how many seeds results were looked at, and what a race decided
"""

import argparse
import difflib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import console
import files
from evaluation.comparisons import MIN_SEEDS
from evaluation.metrics import doubtful_groups, with_interval
from evaluation.outcomes import failures
from files import PROJECT, find_file
from reports import scripts
from reports.scripts import folder_name, text_of
from settings import FREE_SETTINGS, flatten, pop_published
from sweeps import cost, explain

REPORT = PROJECT / "report.py"
LOOKS = "looks.jsonl"
SWEEP_KEYS = (
    *("script", "processes", "seeds", "grid", "arms", "tune", "tune_seed", "tune_by"),
    *("paired", "margin", "explain", "race"),
)
DECLARED = {"race": None, "paired": False, "margin": None}  # before the first result, or not at all
LOWER_IS_BETTER = re.compile("loss|perplexity|nats|bits")
MOST_SEEDS = 100  # whoever asks for 1337 means the seed
OWN_SETTINGS = {
    "seed": "--seeds",
    "out": "--out",
    "dry_run": "--dry_run",
    "fresh": "another --out",
    "script": "its first word, or script: of an arm",
}
# A run that fails this soon and before its first step was given settings that cannot work.
SETTINGS_ERROR_SECONDS = 60.0


@dataclass
class Arm:
    """What is compared: a script and its settings, run with several seeds."""

    label: str
    script: str
    settings: dict[str, Any]
    seeds: list[int]
    tune: dict[str, list]


@dataclass
class Run:
    """One run folder below OUT, and what the script is told."""

    folder: Path
    script: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """arm/seed_0, or arm/tune/value"""
        parts = self.folder.parts
        return "/".join(parts[-3:] if parts[-2] == "tune" else parts[-2:])


# ------------------------------------------------------------------------------ the plan


def refuse(problem: str) -> SystemExit:
    return SystemExit(f"sweep.py: {problem}")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("script", nargs="?", help="the training script, unless the config names it")
    add("--config", help="a settings file of the script, or a sweep file")
    add("--grid", nargs="+", action="extend", default=[], metavar="NAME=VALUE,VALUE")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="fixed")
    add("--seeds", help="3: the seeds 0, 1, 2; or a list such as 3,5,7 (default: 3)")
    add("--out", help="folder of the sweep (default: results/sweeps/<config or script>)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--processes", type=int, help="processes of each run; more than one: torchrun (default: 1)")
    add("--aa", action="store_true", help="the A/A and shuffled-label controls")
    add("--dry_run", action="store_true", help="print the commands, and stop")
    add("--gpu", help=f"of --dry_run: the hours on {', '.join(cost.GPUS)}, by FLOPs")
    add("--margin", type=float, help="a difference of the primary metric that does not matter")
    add("--race", action="store_true", help="seeds one by one, until each arm is settled")
    add("--max_seeds", type=int, help="of --race (default: 10)")
    add("--hours", type=float, help="of runs that --race may take; the same command goes on")
    # --dry-run is --dry_run, as in the scripts; a value stays as it is
    words = [re.sub("^--[^=]*", lambda name: "--" + name[0][2:].replace("-", "_"), w) for w in argv]
    args, unknown = parser.parse_known_args(words)
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings]
        name = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "settings of the script go after --set"
        raise refuse(f"unknown: {unknown[0]}: {hint}")
    if args.jobs < 1:
        raise refuse(f"--jobs {args.jobs}: expected 1 or more")
    if args.gpu is not None:
        if not args.dry_run:
            raise refuse("--gpu is for --dry_run")
        near = {name.lower(): name for name in cost.GPUS}.get(args.gpu.lower().replace("_", "-"))
        if near is None:
            raise refuse(f"--gpu {args.gpu}: expected one of {', '.join(cost.GPUS)}")
        args.gpu = near
    return args


def plain(value: Any) -> Any:
    """YAML 1.1 reads 1e-4, which has no point, as text: here it is a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def parse_value(text: str) -> Any:
    try:
        return plain(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def parse_values(text: str) -> list:
    """1e-5,2e-5 or [1e-5, 2e-5]"""
    value = parse_value(text)
    return value if isinstance(value, list) else [parse_value(part) for part in text.split(",")]


def parse_words(flag: str, words: Sequence[str]) -> dict[str, str]:
    """name=text, each name once."""
    texts: dict[str, str] = {}
    for word in words:
        name, _, text = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not name or not all(part.strip() for part in text.split(",")):
            raise refuse(f"{flag} {word}: expected name=value (a script's name comes before flags)")
        if name in texts:
            raise refuse(f"{flag}: {name} is given twice")
        texts[name] = text
    return texts


def parse_seeds(given: Any) -> list[int]:
    """3 -> [0, 1, 2]; "3,5,7" and [3, 5, 7] -> [3, 5, 7]."""
    try:
        if isinstance(given, list):
            seeds = [int(seed) for seed in given]
        elif "," in str(given):
            seeds = [int(seed) for seed in given.split(",") if seed.strip()]
        else:
            seeds = list(range(min(int(given), MOST_SEEDS + 1)))
            if len(seeds) > MOST_SEEDS:
                raise refuse(f"seeds {given}: so many? The seed {given} alone is '{given},'")
    except (TypeError, ValueError, OverflowError):
        seeds = []
    if not seeds or min(seeds) < 0:
        raise refuse(f"seeds {given}: expected how many, or a list such as 3,5,7")
    if len(set(seeds)) < len(seeds):
        raise refuse(f"seeds {given}: a seed is given twice")
    return seeds


def read_race(args: argparse.Namespace, keys: Mapping[str, Any]) -> int | None:
    """The most seeds of an arm in a race; None where all arms have all seeds from the start."""
    inside = keys.get("race")
    if inside is not None and (not isinstance(inside, dict) or inside.keys() != {"max_seeds"}):
        raise refuse(f"race: {text_of(inside)}: expected {{max_seeds: 10}}")
    if not args.race and inside is None:
        if args.max_seeds is not None or args.hours is not None:
            raise refuse("--max_seeds and --hours are for --race")
        return None
    if args.aa:
        raise refuse("--aa is no race")
    most = args.max_seeds if args.max_seeds is not None else (inside or {}).get("max_seeds", 10)
    if isinstance(most, bool) or not isinstance(most, int) or not MIN_SEEDS <= most <= MOST_SEEDS:
        raise refuse(f"max_seeds {text_of(most)}: expected {MIN_SEEDS} to {MOST_SEEDS}")
    if args.hours is not None and not args.hours > 0:
        raise refuse(f"--hours {args.hours:g}: expected more than 0")
    return most


def seeds_of_race(given: Any, most: int) -> list[int]:
    """0, 1, 2 …, or those of a list and the numbers after them; how many says nothing in a race."""
    known = parse_seeds(given) if isinstance(given, list) or "," in str(given) else [0]
    return [*known, *range(max(known) + 1, max(known) + 1 + most)][:most]


def find(path: str, what: str) -> Path:
    """As seen from here, else beside sweep.py."""
    try:
        return find_file(path)
    except OSError:  # also a name that is too long to be one
        raise refuse(f"no such {what}: {path[:200]}") from None


def find_script(script: str | None) -> Path:
    if not script:
        raise refuse("which script? python sweep.py SCRIPT …, or script: in the config")
    return find(script, "script")


def read_yaml(path: str) -> dict[str, Any]:
    try:
        content = files.read_yaml(find(path, "config"))
        if not isinstance(content.get("published"), str) and pop_published(content, path):
            content["published"] = path  # whose figures each run then carries
        return plain(content)
    except ValueError as error:
        raise refuse(str(error)) from None


def words_of(run: Run) -> list[str]:
    """What the script is told, without --: torchrun takes options that begin as its own do."""
    words = {name: text_of(value) for name, value in run.settings.items()} | {"out": run.folder}
    return [f"{name}={value}" for name, value in words.items()]


def label_of(settings: Mapping[str, Any], *before: str) -> str:
    """before,lr=1e-05,freeze=all: fit for a folder."""
    parts = [*before, *(f"{name}={text_of(value)}" for name, value in settings.items())]
    return folder_name(",".join(parts))


def combinations(values: Mapping[str, list]) -> list[dict[str, Any]]:
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def check_values(key: str, values: Any) -> dict[str, list]:
    if not isinstance(values, dict):
        raise refuse(f"{key}: expected names with lists of values")
    for name, items in values.items():
        if not isinstance(items, list) or not items:
            raise refuse(f"{key}: {name}: expected a list of values, found {text_of(items)}")
        if len({text_of(item) for item in items}) < len(items):
            raise refuse(f"{key}: {name}: a value is given twice in {text_of(items)}")
    return values


class Plan:
    """All that the command line and the config ask for."""

    def __init__(self, args: argparse.Namespace):
        common = read_yaml(args.config) if args.config else {}
        keys = {key: common.pop(key) for key in SWEEP_KEYS if key in common}
        script = args.script or keys.get("script")
        self.jobs = args.jobs
        self.processes = keys.get("processes", 1) if args.processes is None else args.processes
        if not isinstance(self.processes, int) or self.processes < 1:
            raise refuse(f"processes {self.processes}: expected 1 or more")
        self.race = read_race(args, keys)
        self.hours = args.hours
        given = keys.get("seeds", 3) if args.seeds is None else args.seeds
        seeds = self.seeds_from(given)
        fixed = {name: parse_value(text) for name, text in parse_words("--set", args.fixed).items()}
        words = parse_words("--grid", args.grid)
        grid = {name: parse_values(text) for name, text in words.items()}
        grid = check_values("grid", {**check_values("grid", keys.get("grid", {})), **grid})
        self.tune = check_values("tune", keys.get("tune", {}))
        self.tune_seed = keys.get("tune_seed", 1000)
        self.tune_by = keys.get("tune_by", "val_loss")
        arms = keys.get("arms", {"": {}})
        if args.aa:
            if keys.keys() & {"grid", "arms", "tune"} or grid:
                raise refuse("--aa takes one experiment: no grid, arms or tune")
            arms = self.control_arms(script, seeds)
        if not isinstance(arms, dict):
            raise refuse("arms: expected labels with settings")
        self.arms: list[Arm] = []
        for label, own in arms.items():
            if not isinstance(own or {}, dict):
                raise refuse(f"arm {label}: expected settings, found {own!r}")
            own = dict(own or {})
            arm_script = own.pop("script", script)
            arm_seeds = self.seeds_from(own.pop("seeds", seeds))
            arm_tune = check_values(f"arm {label}: tune", own.pop("tune", self.tune))
            base = read_yaml(own.pop("config")) if "config" in own else {}
            base, own = flatten(base), flatten(own)
            # else a label would name a value that the run does not have
            places = [("arms", own), ("grid", grid), ("tune", arm_tune), ("--set", fixed)]
            for (one, names), (other, others) in itertools.combinations(places, 2):
                if twice := names.keys() & others.keys():
                    raise refuse(f"{', '.join(sorted(twice))}: both in {one} and in {other}")
            for point in combinations(grid):
                varied = {name: point[name] for name in grid if len(grid[name]) > 1}
                settings = {**flatten(common), **base, **own, **point, **fixed}
                settings = {n: value for n, value in settings.items() if n not in arm_tune}
                name = label_of(varied, *([str(label)] if label != "" else [])) or "runs"
                if name == "tune":  # of an arm's folder, and no result
                    raise refuse("arm tune: another label, this one is the folder of trials")
                self.arms.append(Arm(name, arm_script, settings, arm_seeds, arm_tune))
        for arm in self.arms:
            find_script(arm.script)
        stem = Path(args.config or self.arms[0].script).stem + ("_aa" if args.aa else "")
        self.out = Path(args.out) if args.out else Path("results", "sweeps", stem)
        if args.margin is not None:
            keys["margin"] = args.margin
        if self.race:
            keys |= {"paired": True, "race": {"max_seeds": self.race}}
        self.declared = self.read_declared(keys)
        self.explain = keys.get("explain")  # the runs between two others: sweeps/explain.py
        self.check_arms()

    def seeds_from(self, given: Any) -> list[int]:
        return seeds_of_race(given, self.race) if self.race else parse_seeds(given)

    def read_declared(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """`paired` and `margin`, which decide how results are judged: a finished run fixes them."""
        declared = {name: keys.get(name, default) for name, default in DECLARED.items()}
        paired, margin = declared["paired"], declared["margin"]
        if not isinstance(paired, bool):
            raise refuse(f"paired: {text_of(paired)}: expected true or false")
        positive = isinstance(margin, int | float) and not isinstance(margin, bool) and margin > 0
        if margin is not None and not (positive and math.isfinite(margin)):
            raise refuse(f"margin: {text_of(margin)}: expected a difference above 0")
        if paired and len({tuple(sorted(arm.seeds)) for arm in self.arms}) > 1:
            raise refuse("paired: true (so is a race): all arms need the same seeds")
        if self.race and len(self.arms) < 2:
            raise refuse("--race: one arm alone: give a --grid, or arms in a sweep file")
        path = self.out / "sweep.yaml"
        before = read_yaml(str(path)) if path.is_file() else {}
        records = [read_json(file) for file in self.out.glob("*/seed_*/run.json")]
        finished = sum(record.get("status") == "finished" for record in records)
        for name, default in DECLARED.items() if before and finished else ():
            if (was := before.get(name, default)) != declared[name]:
                raise refuse(
                    f"{name}: {text_of(declared[name])}: the plan said {text_of(was)} before "
                    f"{finished} runs finished, and results must not choose how they are judged: "
                    f"{name}: {text_of(was)}, or another --out"
                )
        return {name: value for name, value in declared.items() if value != DECLARED[name]}

    @staticmethod
    def control_arms(script: str | None, seeds: list[int]) -> dict[str, dict]:
        others = [max(seeds) + 1 + number for number in range(len(seeds))]
        arms: dict[str, dict] = {"first": {"seeds": seeds}, "second": {"seeds": others}}
        if has_labels(find_script(script)):
            return {**arms, "shuffled": {"labels": "shuffled"}}
        console.say(f"no shuffled labels, as {script} has no setting for them: the A/A pair only")
        return arms

    def check_arms(self) -> None:
        for arm in self.arms:
            for name in (arm.settings.keys() | arm.tune.keys()) & OWN_SETTINGS.keys():
                raise refuse(f"{name} is not for settings, the sweep sets it: {OWN_SETTINGS[name]}")
        trials = {arm.label: len(self.trials(arm)) for arm in self.arms}
        if len(set(trials.values())) > 1:
            few, many = min(trials, key=trials.__getitem__), max(trials, key=trials.__getitem__)
            raise refuse(
                f"tune: {trials[few]} trials in {few}, {trials[many]} in {many}: an arm that is "
                "tuned longer is not compared fairly"
            )
        for one, other in itertools.combinations(self.arms, 2):
            if one.label == other.label:
                raise refuse(f"two arms would share the folder {one.label}")
            if (one.script, one.settings, one.seeds) == (other.script, other.settings, other.seeds):
                raise refuse(f"the arms {one.label} and {other.label} have the same settings")

    def trials(self, arm: Arm) -> dict[str, Run]:
        """What tuning tries in an arm, by label; empty without `tune`."""
        return {
            label_of(point): Run(
                self.out / arm.label / "tune" / label_of(point),
                arm.script,
                {**arm.settings, **point, "seed": self.tune_seed},
            )
            for point in (combinations(arm.tune) if arm.tune else [])
        }

    def runs(self, arm: Arm, chosen: Mapping[str, Any]) -> list[Run]:
        folder = self.out / arm.label
        settings = {**arm.settings, **chosen}
        return [
            Run(folder / f"seed_{seed}", arm.script, {**settings, "seed": seed})
            for seed in arm.seeds
        ]

    def command(self, run: Run) -> list[str]:
        """Every setting on the command line: run.json then says all that the run was told."""
        launcher = [sys.executable]
        if self.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup, which torchrun undoes
                launcher += ["--signals-to-handle=SIGTERM,SIGINT"]
            launcher += [f"--nproc_per_node={self.processes}"]
        return [*launcher, str(find_script(run.script)), *words_of(run)]

    def as_sweep_file(self) -> dict[str, Any]:
        return {
            "processes": self.processes,
            "tune_seed": self.tune_seed,
            "tune_by": self.tune_by,
            **self.declared,
            **({"explain": self.explain} if self.explain else {}),
            "arms": {
                arm.label: {
                    "script": arm.script,
                    "seeds": arm.seeds,
                    **({"tune": arm.tune} if arm.tune else {}),
                    **arm.settings,
                }
                for arm in self.arms
            },
        }

    def __str__(self) -> str:
        runs = sum(len(arm.seeds) for arm in self.arms)
        trials = sum(len(self.trials(arm)) for arm in self.arms)
        tuning = f" after {trials} for tuning" if trials else ""
        return f"{self.out}: runs: {runs}{tuning}, arms: {len(self.arms)}"


def check_settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """Refuse settings that a script would, before anything is run. A script that is not one of
    ours is not asked. Returns all settings of an arm's first run, by label."""
    lines: dict[str, list[list[str]]] = {}
    labels: dict[str, list[str]] = {}
    resolved: dict[str, dict[str, Any]] = {}
    for arm in plan.arms:
        point = {name: values[0] for name, values in arm.tune.items()}
        for run in [*plan.trials(arm).values(), *plan.runs(arm, point)[:1]]:
            lines.setdefault(arm.script, []).append(words_of(run))
            labels.setdefault(arm.script, []).append(arm.label)
    for name, words in lines.items():
        script = find_script(name)
        if not scripts.is_ours(script):
            continue
        try:
            with scripts.Asking(script) as ask:
                answers = ask(words)
        except ValueError as error:
            raise refuse(last_words(str(error))) from None
        for label, answer in zip(labels[name], answers, strict=True):
            if answer.error:
                raise refuse(last_words(answer.error))
            resolved[label] = answer.settings
    return resolved


def has_labels(script: Path) -> bool:
    """Whether a script knows --labels shuffled; asked in a process, as its imports are heavy."""
    command = [sys.executable, str(script), "--help", "all"]
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if answer.returncode:
        raise refuse(f"{script} --help fails: {last_words(answer.stderr)}")
    return "--labels" in answer.stdout and "shuffled" in answer.stdout


# ------------------------------------------------------------------------------- running


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def has_diverged(record: Mapping[str, Any]) -> bool:
    """Whether a run ended as its loss was NaN or infinite: the same command would end so again."""
    verdicts = record.get("verdicts")
    known = [str(v) for v in verdicts] if isinstance(verdicts, list) else []
    return record.get("status") == "failed" and "diverged" in failures(known)


def is_finished(run: Run) -> bool:
    """Finished, or diverged, with these very settings; of anything else the script itself is the
    judge."""
    record = read_json(run.folder / "run.json")
    if run.folder.is_symlink():  # one that there was, which `explain` put in this place
        return record.get("status") == "finished" or has_diverged(record)
    script, *words = record.get("command") or [""]
    recorded = dict(str(word).removeprefix("--").partition("=")[::2] for word in words)
    settings = {name: text_of(value) for name, value in run.settings.items()}
    names = (recorded.keys() | settings.keys()) - FREE_SETTINGS - {"published"}
    return (
        (record.get("status") == "finished" or has_diverged(record))
        and script == Path(run.script).name
        and all(recorded.get(name) == settings.get(name) for name in names)
    )


def headline(metrics: Mapping[str, Any]) -> str:
    """The first figure that has an interval, e.g. accuracy 0.658 [0.621, 0.693]."""
    for name, value in metrics.items():
        if interval := metrics.get(f"{name}_ci95"):
            groups = doubtful_groups(metrics)
            few = f" ({groups.partition(':')[0]})" if groups else ""
            return f"{name} {with_interval(value, *interval)}{few}"
    return "no figure with an interval"


ERROR_LINE = re.compile(r"^(\[rank \d+\] )?[\w.]*(error|Error|Exception|\.py):|other settings:$")


def last_words(log: str) -> str:
    """The error in what a run wrote: its last error line and what follows, on one line."""
    lines = [re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", line).strip() for line in log.splitlines()]
    # torchrun reports a failed process at length, after the process has said why it failed
    before = itertools.takewhile(lambda line: "torch/distributed/elastic" not in line, lines)
    lines = [line for line in before if line] or [line for line in lines if line] or ["no output"]
    starts = [number for number, line in enumerate(lines) if ERROR_LINE.search(line)]
    return " ".join(lines[starts[-1] :] if starts else lines[-1:])[:400]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    cards = [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(cards))]


def environment_of(
    slot: int, jobs: int, processes: int, cores: int, gpus: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Environment of the run in place `slot` of `jobs`: its share of the cores, and of the GPUs
    where there are enough for all."""
    environment = dict(given)
    if jobs * processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // (jobs * processes))))
    if jobs > 1 and len(gpus) >= jobs * processes:
        mine = gpus[slot * processes : (slot + 1) * processes]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return environment


@dataclass
class Child:
    """A run under way."""

    run: Run
    number: str  # 3/12
    process: subprocess.Popen
    started: float
    log_start: int  # bytes of the log that are of earlier sessions
    told_to_stop: bool = False


class Runner:
    """Runs up to plan.jobs at a time, says how each ended, passes signals on."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.failed: dict[str, str] = {}
        self.took_seconds: list[float] = []  # of the runs that finished in this session
        self.signals: list[int] = []
        self.gave_up = False
        self.works = False  # some run of this sweep has finished, now or before
        self.first: Run | None = None
        self.cores = len(os.sched_getaffinity(0))
        self.gpus = visible_gpus() if plan.jobs > 1 else []
        self.running: dict[int, Child] = {}  # by place, 0 to jobs - 1
        self.bar: Any = None

    def __enter__(self) -> "Runner":
        # the handler only takes note: a child that is just being started is not forgotten then
        self.old_handlers = {
            number: signal.signal(number, lambda number, frame: self.signals.append(number))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN  # nohup
        }
        return self

    def __exit__(self, *error: Any) -> None:
        for child in self.running.values():  # only after an error of our own, a full disk say
            child.process.terminate()
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        return bool(self.signals) or self.gave_up

    def run(self, runs: list[Run], later: int = 0) -> None:
        """Run what is not finished; `later` is how many runs will come after these."""
        waiting = [run for run in runs if not is_finished(run)]
        self.works = self.works or len(waiting) < len(runs)
        if len(waiting) < len(runs):
            console.say(f"{len(runs) - len(waiting)} of {len(runs)} are finished already")
        if waiting and sys.stderr.isatty():
            from tqdm import tqdm

            done = len(runs) - len(waiting)
            self.bar = tqdm(total=len(runs), initial=done, unit="run", dynamic_ncols=True)
        running = self.running
        while running or (waiting and not self.stopping):
            while waiting and len(running) < self.plan.jobs and not self.stopping:
                slot = min(set(range(self.plan.jobs)) - running.keys())
                number = len(runs) - len(waiting) + 1
                running[slot] = self.start(waiting.pop(0), slot, f"{number}/{len(runs)}")
            time.sleep(0.05)
            for slot, child in list(running.items()):
                if child.process.poll() is not None:
                    del running[slot]
                    self.end(child, len(waiting) + len(running) + later)
                elif self.stopping and not child.told_to_stop:
                    child.process.terminate()  # it saves, and its run.json says stopped
                    child.told_to_stop = True
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def start(self, run: Run, slot: int, number: str) -> Child:
        self.first = self.first or run
        command = self.plan.command(run)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = environment_of(
            slot, self.plan.jobs, self.plan.processes, self.cores, self.gpus, os.environ
        )
        with open(f"{run.folder}.log", "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            log_start = log.tell()
            # a session of its own: Ctrl-C in the terminal reaches the sweep alone, which tells each
            # run once; torchrun tells its workers
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        console.say(f"{number}  {run.name}  started")
        return Child(run, number, process, time.monotonic(), log_start)

    def end(self, child: Child, left: int) -> None:
        run, code = child.run, child.process.returncode
        seconds = time.monotonic() - child.started
        record = read_json(run.folder / "run.json")
        status = record.get("status", "failed")
        if code == 0 and status == "finished":
            self.took_seconds.append(seconds)
            failed = failures(map(str, record.get("verdicts") or []))
            text = f"finished in {seconds:.0f} s, "
            text += f"but {', '.join(failed)}: " if failed else ""
            text += headline(read_json(run.folder / "test/metrics/metrics.json"))
            mean = sum(self.took_seconds) / len(self.took_seconds)
            if left:
                text += f", {left * mean / self.plan.jobs / 60:.1f} min left"
        elif child.told_to_stop:
            text = f"stopped after {seconds:.0f} s"
        elif has_diverged(record):
            text = f"diverged after {seconds:.0f} s, which counts: {record.get('exit_reason')}"
        else:
            with open(f"{run.folder}.log", "rb") as log:
                log.seek(child.log_start)
                reason = last_words(log.read().decode(errors="replace"))
            if code < 0:
                reason = f"killed by {signal.Signals(-code).name}; last line: {reason}"
            elif code == 0:  # a script that was told to stop has done as it was told
                reason = f"{status}, not finished: {record.get('exit_reason') or reason}"
            self.failed[run.name] = reason
            text = f"FAILED after {seconds:.0f} s: {reason}"
            early = seconds < SETTINGS_ERROR_SECONDS and not (run.folder / "train").exists()
            self.gave_up = self.gave_up or (run is self.first and early and not self.works)
        console.say(f"{child.number}  {run.name}  {text}")
        if self.bar is not None:
            self.bar.update(1)


# -------------------------------------------------------------------------------- tuning


def validation_figure(folder: Path, name: str) -> float:
    """A run's val_loss or another figure, of the weights that it is tested with: at the end with
    test_with: final, else at the lowest val_loss. NaN when no evaluation was finite."""
    lines = (folder / "train/metrics/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluations = [line for line in map(json.loads, lines) if line.get("val_loss") is not None]
    if not evaluations:
        return math.nan
    tested_with = read_yaml(folder / "config.yaml").get("test_with")
    line = (
        evaluations[-1]
        if tested_with == "final"
        else min(evaluations, key=lambda line: line["val_loss"])
    )
    if name not in line:
        raise refuse(f"tune_by {name}: the runs have {', '.join(n for n in line if n != 'step')}")
    return line[name]


def tune(plan: Plan, runner: Runner) -> dict[str, dict[str, Any]]:
    """Every arm tries the same values; returns what each arm then runs with, by label.

    A value with which training diverges has lost. An arm with a trial that failed for another
    reason is left out: with fewer trials than the others it would not be compared fairly.
    """
    if not any(arm.tune for arm in plan.arms):
        return {arm.label: {} for arm in plan.arms}
    later = sum(len(arm.seeds) for arm in plan.arms)
    runner.run([run for arm in plan.arms for run in plan.trials(arm).values()], later)
    chosen: dict[str, dict[str, Any]] = {}
    record: dict[str, dict] = {}
    sign = 1 if LOWER_IS_BETTER.search(plan.tune_by) else -1
    for arm in plan.arms if not runner.stopping else []:
        figures: dict[str, float] = {}
        for label, run in plan.trials(arm).items():
            if has_diverged(read_json(run.folder / "run.json")):
                figures[label] = math.nan
            elif run.name not in runner.failed:
                figures[label] = validation_figure(run.folder, plan.tune_by)
        finite = {label: value for label, value in figures.items() if math.isfinite(value)}
        if len(figures) < len(plan.trials(arm)) or not finite:
            why = "all its trials diverged" if figures and not finite else "tuning chose nothing"
            runner.failed[arm.label] = f"its seeds were not run: {why}"
            continue
        best = min(finite, key=lambda label: sign * finite[label])
        chosen[arm.label] = {name: plan.trials(arm)[best].settings[name] for name in arm.tune}
        record[arm.label] = {"chosen": chosen[arm.label], plan.tune_by: figures}
        tried = ", ".join(f"{label} {value:.4f}" for label, value in figures.items())
        word = "lowest" if sign > 0 else "highest"
        console.say(f"tuned {arm.label}: {best}, the {word} {plan.tune_by} of {tried}")
    if record:
        (plan.out / "tuned.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    return chosen


# ------------------------------------------------------------------------------- the end


def report(*words: str) -> None:
    """report.py in a process of its own; the runs stand without it, so its failure is a warning."""
    sys.stdout.flush()
    if subprocess.run([sys.executable, str(REPORT), *words]).returncode:
        console.say(f"warning: no report; again with: python report.py {shlex.join(words)}")


def note_look(out: Path, seeds: dict[str, list[int]]) -> None:
    """That the results of these seeds of each arm were shown; the same ones again are no look."""
    with files.appending(out / LOOKS) as (looks, add):
        if all(look.get("seeds") != seeds for look in looks):
            add({"seeds": seeds})


def judge_shuffled(runs: Sequence[Run]) -> bool:
    """Say of each run with shuffled labels whether it stayed at chance; True: all did.

    Above chance: even the lower end of the 95 % interval beats the best constant answer. One honest
    run in 40 would be so by luck; more seeds tell.
    """
    at_chance = diverged = 0
    for run in runs:
        metrics = read_json(run.folder / "test/metrics/metrics.json")
        if has_diverged(read_json(run.folder / "run.json")):
            diverged += 1
            console.say(f"{run.name}: diverged, and so has no accuracy to judge by")
            continue
        if not {"accuracy_ci95", "constant_accuracy"} <= metrics.keys():
            console.say(f"{run.name}: no accuracy to judge by")
            continue
        low, high = metrics["accuracy_ci95"]
        above = low > metrics["constant_accuracy"]
        at_chance += not above
        console.say(
            f"{run.name}: accuracy {with_interval(metrics['accuracy'], low, high)}, a constant "
            f"answer {metrics['constant_accuracy']:.4f}: "
            + ("ABOVE CHANCE: something leaks" if above else "at chance")
        )
    judged = len(runs) - diverged
    passed = at_chance == judged > 0
    verdict = "as it must be" if passed else "NOT as it must be"
    console.say(f"verdict: {at_chance} of {judged} runs with shuffled labels at chance, {verdict}")
    return passed


def print_commands(plan: Plan) -> None:
    runs = [run for arm in plan.arms for run in plan.trials(arm).values()]
    for arm in plan.arms:
        runs += plan.runs(arm, {name: "TUNED" for name in arm.tune})
    for run in runs:
        done = "   # finished" if is_finished(run) else ""
        console.answer(shlex.join(["python", *plan.command(run)[1:]]) + done)
    console.answer(str(plan))


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 when a run failed or leaks, 128 + signal when stopped."""
    if argv[:1] == ["explain"]:
        return explain.main(argv[1:], main)
    args = parse_arguments(argv)
    plan = Plan(args)
    resolved = check_settings(plan)
    if args.dry_run:
        print_commands(plan)
        if args.gpu:
            arms = [(arm, len(arm.seeds) + len(plan.trials(arm))) for arm in plan.arms]
            runs = [(a.label, a.script, resolved.get(a.label, {}), n) for a, n in arms]
            for line in cost.table(runs, args.gpu):
                console.answer(line)
        return 0
    console.say(str(plan))
    plan.out.mkdir(parents=True, exist_ok=True)
    written = plan.out / "sweep.yaml"
    if not (args.config and written.exists() and written.samefile(find(args.config, "config"))):
        written.write_text(yaml.safe_dump(plan.as_sweep_file(), sort_keys=False))
    verdicts: list[str] = []  # of a race
    with Runner(plan) as runner:
        chosen = tune(plan, runner)
        runs = {a.label: plan.runs(a, chosen[a.label]) for a in plan.arms if a.label in chosen}
        if not runner.stopping and plan.race:
            from sweeps import race

            try:
                runs, verdicts = race.race(plan, runner, runs, is_finished)
            except ValueError as error:
                raise refuse(f"the race cannot be judged: {error}") from None
        elif not runner.stopping:
            runner.run([run for arm_runs in runs.values() for run in arm_runs])
    if runner.signals:
        console.say("stopped; the same command continues")
        return 128 + runner.signals[0]
    if runner.gave_up:
        console.say("the first run failed before its first step, so the others were not begun:")
        console.say(f"  {runner.first.name}: {runner.failed[runner.first.name]}")
        return 1
    done = [label for label in runs if any(run.name not in runner.failed for run in runs[label])]
    if done:
        report("table", str(plan.out))
    compared = [label for label in done if not args.aa or label in ("first", "second")]
    if plan.explain and done:
        report("effects", str(plan.out))
    elif len(compared) > 1 and compared[0] == plan.arms[0].label:  # the baseline
        paths = [plan.out / label for label in compared]
        if runner.failed:  # the folder of a failed run may hold one of other settings
            arms = [runs[label] for label in compared]
            paths = [r.folder for arm in arms for r in arm if r.name not in runner.failed]
        if not plan.race and not args.aa:
            note_look(plan.out, {a: [run.settings["seed"] for run in runs[a]] for a in compared})
        report("compare", *map(str, paths))
    for line in verdicts:
        console.say(line)
    if args.aa:
        console.say("first and second differ in their seeds alone: what they differ by is noise")
    every = [run for arm in runs.values() for run in arm]
    if diverged := [r.name for r in every if has_diverged(read_json(r.folder / "run.json"))]:
        console.say(f"diverged: {len(diverged)} of {len(every)} runs: {', '.join(diverged)}")
    leaks = args.aa and "shuffled" in done and not judge_shuffled(runs["shuffled"])
    if runner.failed:
        console.say(f"failed: {len(runner.failed)}; the same command tries again")
        for name, reason in runner.failed.items():
            console.say(f"  {name}: {reason}")
    return 1 if runner.failed or leaks else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the runs or after them
        sys.exit(130)
    except OSError as error:
        raise refuse(str(error)) from None
