"""`reproduce`: train the first steps of a run again, and hold them against what it recorded.

python run_5_models.py reproduce results/minilm/… --steps 20
python run_5_models.py reproduce results/minilm/… --steps 5 --from 120   # after a kept checkpoint
torchrun --nproc_per_node=4 run_5_models.py reproduce theirs.zip/run --data here.csv
python run_5_models.py reproduce results/minilm/… --steps all            # the whole run, compared

The run may lie in a packed folder or a bundle, and may be of another machine. Equal is equal to the
last digit; where it is not, the same steps are run with another number of threads and without the
processor's wide instructions, and what that changes is what rounding may change here.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import console
from files import PROJECT, cache_folder, damage, read_json, write_text
from settings import Section, Settings, parse_settings

EXACT = ("lr", "examples", "tokens", "epoch")  # no arithmetic of the machine is in them
SLACK = 8.0  # times what other threads and instructions change, up to the same step
ALL = "all"


@dataclass
class Config(Section):
    """Settings of `reproduce`."""

    FIRST_WORD = "run_folder"
    IN_PARALLEL = READS_PACKED = True

    run_folder: str = ""
    """run to train again: a folder, or a place in a packed folder; it may stand alone"""
    steps: str = "20"
    """how many steps, or all: then the two runs are compared as well"""
    from_step: int = 0
    """begin at this step's checkpoint, which the run has kept; also --from; 0: at the start"""
    data: str | None = None
    """where the rows lie here; null: where the run found them"""
    model: str | None = None
    """where the weights lie here that it started from; null: where the run found them"""
    device: str | None = None
    """auto, cuda, xpu, mps or cpu; null: as the run"""
    output: str | None = None
    """folder for the steps; null: one in the cache"""

    def __post_init__(self) -> None:
        if self.steps != ALL and not (self.steps.isdigit() and int(self.steps) > 0):
            raise ValueError(f"--steps {self.steps}: expected a number of steps, or {ALL}")
        if self.from_step < 0:
            raise ValueError(f"--from {self.from_step}: expected a step of a kept checkpoint")


def command_of(main: Callable, kind: type[Settings]) -> tuple[Callable, type, dict[str, str]]:
    """The command of the script whose main and settings these are, for runs.launch."""

    def reproduce(config: Config) -> None:
        again(config, main, kind)

    reproduce.__doc__ = __doc__
    return reproduce, Config, {"from": "from_step"}


def again(config: Config, main: Callable, kind: type[Settings]) -> None:
    """Train, compare, say; SystemExit(1) where the steps depart."""
    script = Path(sys.modules[kind.__module__].__file__ or "").name
    run = open_run(config.run_folder, script)
    if config.model is not None and script in FROM_RANDOM:
        raise ValueError(f"--model {config.model}: {script} starts from no weights of others")
    first = rank() == 0
    folder = Path(config.output or cache_folder() / "reproduced" / str(run.record.get("id", "run")))
    if first:
        prepare(folder, run, config.from_step)
    words = words_for(config, run, folder)
    settings, _ = parse_settings(kind, words, f"{script} reproduce")
    on_cpu = run.record.get("device") == "cpu"
    if on_cpu and isinstance(threads := run.record.get("threads"), int):
        import torch

        torch.set_num_threads(threads)
    main(settings, True)
    if not first:
        return
    found = Comparison(run, folder, config.from_step)
    if found.departs:
        found.allow(measure_rounding(words, script, folder, run, config.from_step))
    console.say(str(found))
    if config.steps == ALL:
        report = [sys.executable, str(PROJECT / "report.py"), "compare", str(run.path), str(folder)]
        subprocess.run(report, check=False)
    if found.departs:
        raise SystemExit(1)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def open_run(path: str, script: str) -> Any:
    """The run; ValueError where it is another script's, or has recorded no steps."""
    from reports import packed
    from reports.folder import load_run

    if path in ("", "."):
        raise ValueError("reproduce needs a run: reproduce RUN --steps 20")
    run = load_run(packed.folder_name(path))
    if run.record.get("script") not in (None, script):
        raise ValueError(f"{path} is a run of {run.record['script']}: use that script")
    if run.evaluated is not None or not run.lines[0]:
        raise ValueError(f"{path} has no steps in train/metrics/metrics.jsonl to compare with")
    if run.config.get("budget") and run.config.get("budget_unit") == "hours":
        raise ValueError(
            f"{path} has a budget of hours by the clock on the wall, and its learning rates follow "
            "that: no machine repeats them"
        )
    return run


def prepare(folder: Path, run: Any, from_step: int) -> None:
    """An empty folder, or with --from what the run had at that step."""
    from reports import packed
    from runs.contents import delete_run, is_run, refuse_others

    refuse_others(folder)
    if is_run(folder):
        delete_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not from_step:
        return
    place = run.path / f"train/weights/step_{from_step:08d}"
    if problem := damage(place):
        kept = sorted(run.path.glob("train/weights/step_*"))
        names = ", ".join(str(int(each.name[5:])) for each in kept) or "none"
        raise ValueError(f"--from {from_step}: {place} cannot be used ({problem}); kept: {names}")
    shutil.copytree(place, folder / "train/weights" / place.name)
    lines = packed.read_bytes(run.path / "train/metrics/metrics.jsonl").decode().splitlines()
    before = [line for line in lines if line.strip() and json.loads(line)["step"] <= from_step]
    write_text(folder / "train/metrics/metrics.jsonl", "".join(f"{line}\n" for line in before))
    settings = packed.read_bytes(run.path / "config.yaml").decode()
    write_text(folder / "config.yaml", settings)
    record = run.record | {"status": "stopped", "steps": from_step}
    write_text(folder / "run.json", json.dumps(record, indent=1))


def words_for(config: Config, run: Any, folder: Path) -> list[str]:
    """The command line that trains those steps."""
    from reports import packed

    settings = yaml.safe_load(packed.read_bytes(run.path / "config.yaml"))
    for name in ("data", "model", "device"):
        if getattr(config, name) is not None:
            settings[name] = getattr(config, name)
    if "frozen_part" in run.record:  # what was measured there may be otherwise here
        settings["cache_features"] = run.record["frozen_part"] == "kept"
    source = folder.with_name(f"{folder.name}.yaml")
    if rank() == 0:
        write_text(source, yaml.safe_dump(settings, sort_keys=False))
    else:
        source = folder.with_name(f"{folder.name}.{rank()}.yaml")  # nobody waits for rank 0 here
        write_text(source, yaml.safe_dump(settings, sort_keys=False))
    words = [f"--config={source}", f"--out={folder}", "--page=false", "--trackers=null"]
    if config.steps != ALL:
        steps = int(config.steps)
        words.append(f"--stop_after={steps}")
        if kept := kept_between(run.path, config.from_step, config.from_step + steps):
            words += [f"--save_every={kept}", f"--keep_every={kept}"]
    return words


def kept_between(path: Path, first: int, last: int) -> int:
    """The last step after `first` of which the run has a checkpoint, up to `last`; 0: none."""
    steps = [int(each.name[5:]) for each in path.glob("train/weights/step_????????")]
    return max((step for step in steps if first < step <= last), default=0)


def measure_rounding(
    words: Sequence[str], script: str, folder: Path, run: Any, from_step: int
) -> list[Mapping[tuple[int, str], float]]:
    """The same steps with other threads, and without wide instructions, on one process each."""
    threads = run.record.get("threads") or 1
    variants = (
        {"OMP_NUM_THREADS": "2" if threads == 1 else "1"},
        {"OMP_NUM_THREADS": str(threads), "ATEN_CPU_CAPABILITY": "default"},
    )
    found = []
    for number, variant in enumerate(variants):
        differs = " ".join(f"{name}={value}" for name, value in variant.items())
        console.say(f"for rounding: the same steps with {differs}")
        place = folder.with_name(f"{folder.name}.rounding_{number}")
        prepare(place, run, from_step)
        own = [word for word in words if not word.startswith("--out=")]
        alone = {k: v for k, v in os.environ.items() if k not in LAUNCHED}
        command = [sys.executable, str(PROJECT / script), *own, f"--out={place}"]
        done = subprocess.run(command, env=alone | variant, capture_output=True, text=True)
        if done.returncode:
            console.say(f"note: it ended with {done.stderr.strip().splitlines()[-1:]}")
            continue
        found.append(values_of(lines_of(place)))
        shutil.rmtree(place)
    return found


FROM_RANDOM = ("pretrain_bert.py", "train_headlines.py")
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def lines_of(folder: Path) -> list[dict]:
    from reports.folder import MetricsLog

    log = MetricsLog(folder)
    log.read()
    return [*log.training, *log.evaluations]


def values_of(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """(step, name) → value, of what a step does: no times, no memory."""
    found: dict[tuple[int, str], float] = {}
    for line in lines:
        step = line["step"]
        for name, value in line.items():
            if isinstance(value, dict) and name == "grad_norms":
                found |= {(step, f"grad_norm of {k}"): v for k, v in value.items()}
            elif name in (*EXACT, "train_loss", "grad_norm") or name.startswith(("lr_", "val_")):
                found[step, name] = value
    return {key: math.nan if value is None else value for key, value in found.items()}


class Comparison:
    """What was recorded then beside what came now, step by step."""

    def __init__(self, run: Any, folder: Path, from_step: int):
        self.run, self.folder = run, folder
        self.then = values_of([*run.lines[0], *run.lines[1]])
        self.now = values_of(lines_of(folder))
        self.record = read_json(folder / "run.json")
        # what was trained now, not what was copied
        self.keys = [k for k in self.now if k[0] > from_step and k in self.then]
        self.keys.sort(key=lambda key: (key[0], ORDER.get(key[1], 9), key[1]))
        self.steps = sorted({step for step, name in self.keys if name == "train_loss"})
        if not self.steps:
            raise ValueError(f"no step of {run.path} was trained again: it has others")
        self.rounding: dict[tuple[int, str], float] = {}
        self.measured = False
        self.tensors = self._tensors()

    def allow(self, variants: Sequence[Mapping[tuple[int, str], float]]) -> None:
        """variants: values of the same steps with other rounding."""
        self.measured = bool(variants)
        largest: dict[str, float] = {}
        for key in self.keys:
            for variant in variants:
                if key in variant and not _same(variant[key], self.now[key]):
                    change = abs(variant[key] - self.now[key])
                    largest[key[1]] = max(largest.get(key[1], 0.0), change)
            self.rounding[key] = SLACK * largest.get(key[1], 0.0)

    @property
    def different(self) -> list[tuple[int, str]]:
        return [key for key in self.keys if not _same(self.then[key], self.now[key])]

    @property
    def beyond(self) -> list[tuple[int, str]]:
        """What rounding does not explain."""
        return [
            key
            for key in self.different
            if key[1] in EXACT
            or key[1].startswith("lr_")
            or not abs(self.then[key] - self.now[key]) <= self.rounding.get(key, 0.0)
        ]

    @property
    def departs(self) -> bool:
        return bool(self.beyond)

    def _tensors(self) -> list[tuple[str, float]] | None:
        """(name, largest difference) of weights of a step that both have kept, largest first."""
        from safetensors.numpy import load_file

        kept = kept_between(self.run.path, self.steps[0] - 1, self.steps[-1])
        places = [p / f"train/weights/step_{kept:08d}/model.safetensors"
                  for p in (self.run.path, self.folder)]  # fmt: skip
        if not kept or not all(place.is_file() for place in places):
            return None
        if problem := damage(places[0].parent):
            raise ValueError(f"{places[0].parent}: these weights are not whole ({problem})")
        self.kept = kept
        a, b = map(load_file, places)
        ours, theirs = (sorted(x.keys() - y.keys()) for x, y in ((a, b), (b, a)))
        if [a[name].shape for name in ours] == [b[name].shape for name in theirs]:
            # tied weights: of their names older versions wrote another one
            b |= {name: b.pop(other) for name, other in zip(ours, theirs, strict=True)}
        if a.keys() != b.keys():
            return [(name, math.inf) for name in sorted(a.keys() ^ b.keys())]
        differences = [(name, _distance(a[name], b[name])) for name in a]
        return sorted(differences, key=lambda each: -each[1])

    def __str__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        steps = f"steps {first} to {last}" if last > first else f"step {first}"
        names = "loss, gradient norm, learning rate, rows and tokens"
        lines = []
        if not self.different:
            lines.append(f"identical to the last digit: {steps} ({names})")
        elif not self.departs:
            step, name = max(self.different, key=lambda key: abs(self.then[key] - self.now[key]))
            change = abs(self.then[step, name] - self.now[step, name])
            lines.append(
                f"equal within rounding: {steps}; {name} differs by at most {change:.2g} (step "
                f"{step}), other threads and instructions change it by up to "
                f"{self.rounding[step, name] / SLACK:.2g} here"
            )
        else:
            step, name = self.beyond[0]
            lines.append(
                f"departs at step {step}: {name} was {self.then[step, name]:.10g}, is "
                f"{self.now[step, name]:.10g}"
            )
            others = [other for at, other in self.beyond[1:] if at == step]
            if others:
                lines.append(f"  at that step also: {', '.join(others[:6])}")
            if self.measured and name not in EXACT:
                limit = self.rounding.get((step, name), 0.0) / SLACK
                lines.append(f"  rounding explains {limit:.2g} there")
        if self.tensors is not None:
            apart = [each for each in self.tensors if each[1] > 0]
            if apart:
                name, most = apart[0]
                lines.append(
                    f"  weights of step {self.kept}: {len(apart)} of {len(self.tensors)} tensors "
                    f"differ, {name} most (by up to {most:.2g})"
                )
            else:
                lines.append(f"  weights of step {self.kept}: all {len(self.tensors)} are equal")
        if self.different:
            lines += [f"  differs: {each}" for each in self.circumstances()]
        return "\n".join(lines)

    def circumstances(self) -> list[str]:
        """What else is not as it was: rows, versions, device, processes, code."""
        then, now = self.run.record, self.record
        said = []
        for name in ("data_fingerprint", "split_fingerprint", "device", "device_name", "precision",
                     "threads", "world_size"):  # fmt: skip
            if name in then and then[name] != now.get(name):
                said.append(f"{name.replace('_', ' ')} {then[name]} then, {now.get(name)} now")
        versions = then.get("versions") or {}
        for name, version in versions.items():
            here = (now.get("versions") or {}).get(name)
            if here != version:
                said.append(f"{name} {version} then, {here} now")
        return said + code_changes(str(then.get("commit") or ""), self.run.path)


def code_changes(commit: str, folder: Path) -> list[str]:
    """Files of code that are not as they were at that commit; what the run changed beside it."""
    said = []
    if (folder / "diff.patch").is_file():
        said.append("the code was changed beside its commit then: diff.patch of the run has what")
    command = ["git", "-C", str(PROJECT), "diff", "--name-only", commit, "--", "*.py"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return said
    if not commit or answer.returncode:
        return [*said, f"the code of commit {commit[:12] or 'unknown'} is not in this repository"]
    files = [name for name in answer.stdout.split() if not name.startswith(("tests/", "docs/"))]
    if files:
        more = f" and {len(files) - 8} more" if len(files) > 8 else ""
        said.append(f"code changed since commit {commit[:12]}: {', '.join(files[:8])}{more}")
    return said


ORDER = {"lr": 0, "examples": 1, "tokens": 2, "epoch": 3, "train_loss": 4, "grad_norm": 5}


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _distance(a: Any, b: Any) -> float:
    import numpy as np

    if a.shape != b.shape:
        return math.inf
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if a.size else 0.0
