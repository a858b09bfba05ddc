"""The jobs of startup.sh, which makes the environment first: demo, test, smoke and check.

    .venv/bin/python -m commands.jobs demo --found cuda:4 --caller DIR [--out DIR] [settings]

found: the kind of device, and how many of them a run may use. caller: the folder where the user
stood, from which --out, --data and --config are meant. All else is passed on to the script.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = ".venv/bin/python"
MOST_PROCESSES, GIB_EACH = 4, 2  # of the tests


@dataclass
class Job:
    """What a job was asked to do, with paths as they are seen from here."""

    kind: str  # of the device: cpu, cuda, xpu, mps
    devices: int
    is_forced: bool  # the device was named by the user
    out: Path | None
    settings: list[str]


def main(words: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("job", choices=["demo", "test", "smoke", "check"])
    parser.add_argument("--found", required=True)
    parser.add_argument("--caller", type=Path, required=True)
    for name in ("--out", "--device", "--data", "--config"):
        parser.add_argument(name)
    if words[0] == "test":  # its words are pytest's
        options, rest = parser.parse_args(words[:5]), list(words[5:])
        return test(rest)
    options, rest = parser.parse_known_args(words)
    for name in ("data", "config"):
        if (value := getattr(options, name)) is not None:
            there = options.caller / value
            rest += [f"--{name}", str(there) if there.exists() else value]
    kind, _, devices = options.found.partition(":")
    forced = options.device or os.environ.get("ABLATE_DEVICE", "auto")
    out = None if options.out is None else options.caller / options.out
    job = Job(kind, int(devices), forced != "auto", out, rest)
    return {"demo": demo, "smoke": smoke, "check": check}[options.job](job)


def say(text: str) -> None:
    print(f"startup: {text}", flush=True)


def call(words: Sequence[str]) -> int:
    """Its exit code. A signal that reaches this process is the other's affair: Ctrl-C goes to both,
    others are passed on, and the run saves what it has."""
    process = subprocess.Popen(words)
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    return process.wait()


def demo(job: Job) -> int:
    out = job.out or Path.cwd() / "results/demo"
    device = ["--device", job.kind] if job.is_forced else []
    processes = 2
    if job.kind == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:  # a batch of 32 is cut into four micro-batches: a fifth GPU would idle
        processes = min(job.devices, 4)
    say(
        f"demo: {processes} processes on {job.kind}, result in {out}; the same command continues "
        "it if it is interrupted"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = ["run_2_appendprompt.py", "--config", "configs/preference/demo.yaml"]
    status = call([PYTHON, *launcher, *script, "--out", str(out), *job.settings, *device])
    metrics, page = out / "test/metrics/metrics.json", out / "report.html"
    if status:
        print(
            f"startup: warning: the run ended with exit code {status}; the same command continues "
            "from its last checkpoint",
            file=sys.stderr,
        )
    elif not metrics.exists():
        say("the run was stopped before its test; the same command continues it")
    else:
        say(f"result: {metrics} (accuracy with its 95 % interval)")
        if page.exists():
            say(f"page to open: {page}")
        ask = "--prompt '...' --response_a '...' --response_b '...'"
        folder = shlex.quote(str(out))
        say(f"next: {PYTHON} run_2_appendprompt.py predict --run_folder {folder} {ask}")
        say("      README.md has the other scripts and your own data, docs/machines.md rented GPUs")
    return status


def test(words: list[str]) -> int:
    """Whole files at a time, the longest first (tests/conftest.py); a process more than there are
    cores, for tests also wait: for other processes, for signals, for the clock."""
    target = ["tests", "--ignore=tests/long"]
    if "--long" in words:
        words.remove("--long")
        target = ["tests/long"]
    elif any(Path(w.partition("::")[0]).exists() for w in words if not w.startswith("-")):
        target = []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    processes = max(1, min((os.cpu_count() or 2) + 1, MOST_PROCESSES, memory // GIB_EACH))
    how = [f"--numprocesses={processes}", "--dist=loadfile", "--no-loadscope-reorder"]
    os.execv(PYTHON, [PYTHON, "-m", "pytest", "-q", *how, *target, *words])


def smoke(job: Job) -> int:
    out = job.out or Path.cwd() / "results/smoke" / time.strftime("%Y%m%d-%H%M%S")
    train = [PYTHON, "run_5_models.py", "--config", "configs/preference/smoke.yaml"]
    train += ["--out", str(out), "--device", job.kind, *job.settings]
    say(f"smoke 1 of 3: one step on {job.kind}, then stop and save ({out})")
    require_call([*train, "--stop_after", "1"])
    require_status(out, "stopped")
    say("smoke 2 of 3: continue from the checkpoint, second step, test")
    require_call(train)
    require_status(out, "finished")
    metrics = out / "test/metrics/metrics.json"
    if not metrics.is_file():
        raise SystemExit(f"startup: smoke: {metrics} is missing")
    say("smoke 3 of 3: predict with the saved model")
    words = ["predict", "--run_folder", str(out), "--prompt", "x"]
    words += ["--response_a", "y", "--response_b", "z"]
    found = subprocess.run([PYTHON, "run_5_models.py", *words], stdout=subprocess.PIPE, text=True)
    print(found.stdout, end="", flush=True)
    try:
        json.loads(found.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise SystemExit("startup: smoke: the last line of predict is not JSON") from None
    say(
        f"smoke OK on {job.kind}: a step, a checkpoint, continuing from it, a test and a prediction"
    )
    return 0


def require_call(words: Sequence[str]) -> None:
    if status := call(words):
        raise SystemExit(status)


def require_status(out: Path, wanted: str) -> None:
    try:
        status = json.loads((out / "run.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        raise SystemExit(f"startup: smoke: no readable {out}/run.json") from None
    if status != wanted:
        raise SystemExit(f"startup: smoke: run.json says '{status}', expected '{wanted}'")


def check(job: Job) -> int:
    say("check: about ten minutes on a GPU; docs/gpu.md says what the lines mean and what to send")
    output = ["--output", str(job.out or "check.jsonl")]
    words = ["-m", "benchmarks.check", "--device", job.kind, *output, *job.settings]
    return call([PYTHON, *words])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
