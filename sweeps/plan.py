"""What a sweep asks for: arms × seeds, each a run of a script with its settings."""

import argparse
import difflib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import console
import files
from claims import ATTEMPTS, CLAIMS, Claims
from evaluation.comparisons import MIN_SEEDS
from files import PROJECT, find_file, read_json
from reports import scripts
from reports.predictions import direction
from reports.scripts import folder_name, text_of
from settings import flatten, pop_published
from sweeps import cost, noise
from sweeps.notices import refusal_of
from sweeps.options import Parser
from sweeps.words import last_words

SWEEP_KEYS = (
    *("script", "processes", "seeds", "grid", "arms", "tune", "tune_seed", "tune_by"),
    *("paired", "margin", "explain", "race", "noise"),
)
DECLARED = {"race": None, "paired": False, "margin": None}  # before the first result, or not at all
COMMANDS = ("explain", "push", "pull", "status")  # of sweep.py
ENGINES = ("slurm", "local")  # sweeps/on_….py
MOST_SEEDS = 100  # whoever asks for 1337 means the seed
OWN_SETTINGS = {
    "seed": "--seeds",
    "out": "--out",
    "dry_run": "--dry_run",
    "fresh": "another --out",
    "script": "its first word, or script: of an arm",
}


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

    folder: Path  # its place, where it is once it has ended
    script: str
    settings: dict[str, Any]
    out: Path  # of the sweep

    @property
    def claims(self) -> Claims:
        """Of all who work on it, as a new observer sees them."""
        return Claims(self.out, self.folder.relative_to(self.out))

    @property
    def arm(self) -> str:
        return self.name.partition("/")[0]

    @property
    def name(self) -> str:
        """arm/seed_0, or arm/tune/value"""
        parts = self.folder.parts
        return "/".join(parts[-3:] if parts[-2] == "tune" else parts[-2:])


def refuse(problem: str) -> SystemExit:
    return SystemExit(f"sweep.py: {problem}")


def parse_arguments(argv: Sequence[str], description: str | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="sweep.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    add("--noise", nargs="*", metavar="SEED=DRAWS", help=(
        "which source of chance makes the spread? (default: seed_init=4 seed_order=2 seed_masks=2)"
    ))  # fmt: skip
    add("--dry_run", action="store_true", help="print the commands, and stop")
    add("--gpu", help=f"of --dry_run: the hours on {', '.join(cost.GPUS)}, by FLOPs")
    add("--margin", type=float, help="a difference of the primary metric that does not matter")
    add("--race", action="store_true", help="seeds one by one, until each arm is settled")
    add("--max_seeds", type=int, help="of --race (default: 10)")
    add("--hours", type=float, help="start no run that would not end within so many")
    add("--price", type=float, help="of an hour of this machine, for --max_cost")
    add("--max_cost", type=float, help="of all runs: start none that would cost more")
    add("--notify", metavar="URL", default=os.environ.get("ABLATE_NOTIFY"), help=(
        "is posted a line of JSON when a run fails, and at the end (or ABLATE_NOTIFY)"
    ))  # fmt: skip
    add("--stale", type=float, metavar="SECONDS", help=(
        "of silence, after which a run of another machine is taken over (default: 180)"
    ))  # fmt: skip
    add("--leave", action="store_true", help=(
        "end when no run is left to start, rather than wait for those of others"
    ))  # fmt: skip
    add("--on", metavar="ENGINE", help="slurm: as jobs of a cluster (docs/many_machines.md)")
    for engine in ENGINES:
        add(f"--{engine}", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=(
            f"of its jobs with --on {engine}: array=8 time=4:00:00 gpus=1 partition=…"
        ))  # fmt: skip
    # --dry-run is --dry_run, as in the scripts
    parts = [word.partition("=") if word[:2] == "--" else (word, "", "") for word in argv]
    words = [
        (f"--{name[2:].replace('-', '_')}" if name[:2] == "--" else name) + equals + value
        for name, equals, value in parts
    ]
    args, unknown = parser.parse_known_args(words)
    if unknown:
        if not unknown[0].startswith("-"):  # behind what was to be a command, perhaps
            find_script(args.script)
        flags = [option for action in parser._actions for option in action.option_strings]
        name = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.75)
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
    for name in ("hours", "price", "max_cost", "stale"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise refuse(f"--{name} {value:g}: expected more than 0")
    if (args.price is None) != (args.max_cost is None):
        raise refuse(
            "--price and --max_cost go together: what an hour costs, and what all may cost"
        )
    if args.on not in (None, *ENGINES):
        raise refuse(f"--on {args.on}: expected {' or '.join(ENGINES)}")
    for engine in ENGINES:
        if getattr(args, engine) and args.on != engine:
            raise refuse(f"--{engine} is for --on {engine}")
    if args.notify is not None and (problem := refusal_of(args.notify)):
        raise refuse(problem)
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
        if args.max_seeds is not None:
            raise refuse("--max_seeds: seeds as they are needed are for --race")
        return None
    if args.aa:
        raise refuse("--aa is no race")
    if args.seeds is not None and "," not in args.seeds:
        raise refuse(f"--seeds {args.seeds}: a race adds them one by one, up to --max_seeds")
    most = args.max_seeds if args.max_seeds is not None else (inside or {}).get("max_seeds", 10)
    if isinstance(most, bool) or not isinstance(most, int) or not MIN_SEEDS <= most <= MOST_SEEDS:
        raise refuse(f"max_seeds {text_of(most)}: expected {MIN_SEEDS} to {MOST_SEEDS}")
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
    try:
        path = find_file(script)
    except OSError:
        names = [*COMMANDS, *(path.name for path in PROJECT.glob("*.py"))]
        near = difflib.get_close_matches(script, names, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise refuse(f"no such script: {script[:200]}{hint}") from None
    if path.suffix != ".py":
        raise refuse(f"{script}: expected a script, NAME.py")
    return path


def read_yaml(path: str) -> dict[str, Any]:
    try:
        content = files.read_yaml(find(path, "config"))
        if not isinstance(content.get("published"), str) and pop_published(content, path):
            content["published"] = path  # whose figures each run then carries
        return plain(content)
    except ValueError as error:
        raise refuse(str(error)) from None


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as section.name; SystemExit where one stands there in both ways."""
    try:
        return flatten(settings)
    except ValueError as error:
        raise refuse(str(error)) from None


def words_of(run: Run, out: Path | None = None) -> list[str]:
    """What the script is told, without --: torchrun takes options that begin as its own do.

    out: the folder to write to, instead of the run's place.
    """
    words = {name: text_of(value) for name, value in run.settings.items()}
    words |= {"out": out or run.folder}
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
        given = keys.get("seeds", 1 if "noise" in keys else 3) if args.seeds is None else args.seeds
        if args.noise is not None and args.seeds is None:
            given = 1  # what is drawn has seeds of its own
        seeds = self.seeds_from(given)
        if (args.noise is not None or "noise" in keys) and len(seeds) > 1:
            raise refuse(f"seeds {given}: --noise draws seeds of its own, beside one: 0, or '0,'")
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
        self.noise = self.noise_of(args, keys)
        if self.noise and "arms" not in keys:
            arms = noise.arms_of(self.noise)
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
            base, own = flat(base), flat(own)
            # else a label would name a value that the run does not have
            places = [("arms", own), ("grid", grid), ("tune", arm_tune), ("--set", fixed)]
            for (one, names), (other, others) in itertools.combinations(places, 2):
                if twice := names.keys() & others.keys():
                    raise refuse(f"{', '.join(sorted(twice))}: both in {one} and in {other}")
            for point in combinations(grid):
                varied = {name: point[name] for name in grid if len(grid[name]) > 1}
                settings = {**flat(common), **base, **own, **point, **fixed}
                settings = {n: value for n, value in settings.items() if n not in arm_tune}
                name = label_of(varied, *([str(label)] if label != "" else [])) or "runs"
                if name in ("tune", CLAIMS, ATTEMPTS):  # folders that hold no results
                    raise refuse(f"arm {name}: another label, a sweep has a folder of this name")
                self.arms.append(Arm(name, arm_script, settings, arm_seeds, arm_tune))
        if any(arm.tune for arm in self.arms) and not direction(self.tune_by.removeprefix("val_")):
            raise refuse(f"tune_by {self.tune_by}: is higher better, or lower? That is not known")
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

    def noise_of(self, args: argparse.Namespace, keys: Mapping[str, Any]) -> dict[str, int]:
        """Draws of each source's seed, outermost first; {}: no such sweep."""
        try:
            if args.noise is None:
                return noise.check_design(keys["noise"]) if "noise" in keys else {}
            design = noise.parse_design(args.noise)
        except ValueError as error:
            raise refuse(str(error)) from None
        if args.aa or self.race or self.tune or keys.keys() & {"grid", "arms"} or args.grid:
            raise refuse("--noise takes one experiment: no grid, arms, tune, --aa or --race")
        return design

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
            label_of(point): self._run(
                Path(arm.label, "tune", label_of(point)),
                arm.script,
                {**arm.settings, **point, "seed": self.tune_seed},
            )
            for point in (combinations(arm.tune) if arm.tune else [])
        }

    def runs(self, arm: Arm, chosen: Mapping[str, Any]) -> list[Run]:
        settings = {**arm.settings, **chosen}
        return [
            self._run(Path(arm.label, f"seed_{seed}"), arm.script, {**settings, "seed": seed})
            for seed in arm.seeds
        ]

    def _run(self, name: Path, script: str, settings: dict[str, Any]) -> Run:
        return Run(self.out / name, script, settings, self.out)

    def every_run(self) -> list[Run]:
        """By their folders: what tuning will choose is not known yet."""
        trials = [run for arm in self.arms for run in self.trials(arm).values()]
        return trials + [run for arm in self.arms for run in self.runs(arm, {})]

    def command(self, run: Run, out: Path | None = None) -> list[str]:
        """Every setting on the command line: run.json then says all that the run was told.

        out: the folder that it writes to, instead of the run's place.
        """
        launcher = [sys.executable]
        if self.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            if handled := signals_to_handle():
                launcher += [f"--signals-to-handle={handled}"]
            launcher += [f"--nproc_per_node={self.processes}"]
        return [*launcher, str(find_script(run.script)), *words_of(run, out)]

    def as_sweep_file(self) -> dict[str, Any]:
        return {
            "processes": self.processes,
            "tune_seed": self.tune_seed,
            "tune_by": self.tune_by,
            **self.declared,
            **({"explain": self.explain} if self.explain else {}),
            **({"noise": self.noise} if self.noise else {}),
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


def signals_to_handle() -> str:
    """What torchrun has to pass on besides its own four signals, or must not; "" for those."""
    signals = ["SIGTERM", "SIGINT"]
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup, which torchrun undoes
    slurm = "SLURM_JOB_ID" in os.environ  # it signals every process of a job, ahead of its limit
    signals += [] if ignored else ["SIGHUP", "SIGQUIT"]
    signals += ["SIGUSR1", "SIGUSR2"] if slurm else []
    return ",".join(signals) if ignored or slurm else ""


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
