"""Runs that are killed at random moments and continued, until KILLS kills (200) of each kind, and
half as many inside the thread that writes checkpoints.

KILLS=20 python -m pytest -x -s tests/long/test_random_kills.py

All imports are done once: each attempt is a fork of this process, so that a kill costs a second.
Every run that comes to its end must equal the one that nobody interrupted.
"""

import contextlib
import faulthandler
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2  # noqa: F401
import yaml
from conftest import WORDS
from tiny_instructions import build_models, write_rows
from tiny_models import build_tiny_gpt2

import alpaca_sft
import files
import finetune_gpt2
import pretrain_bert
import run_2_appendprompt
import sweep
import train_headlines
from claims import is_counted
from experiments import classification, glue, headlines, instructions, language, pretraining
from settings import parse_settings
from sweeps import running

KILLS = int(os.environ.get("KILLS", "200"))
TIMES = {"seconds", "examples_per_second", "tokens_per_second", "peak_memory_bytes", "machine"}
TIMES |= {"run", "commit"}  # of manifests: whose weights they are
QUIET = ["--page=false", "--device=cpu", "--precision=fp32"]
MODULES = (run_2_appendprompt, pretrain_bert, finetune_gpt2, train_headlines, alpaca_sft)
SCRIPTS = {Path(module.__file__).name: module for module in MODULES}
EXPERIMENTS = (classification, glue, headlines, instructions, language, pretraining)  # imported


# ---------------------------------------------------------------------- forked processes


def fork(action: Callable[[], Any], log: Path, **environment: str) -> int:
    """Process id of a copy of this process that does it; its exit code is that of a script."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        faulthandler.register(signal.SIGUSR1, sys.stderr)
        os.environ.update(environment)
        code = action() or 0
    except SystemExit as end:
        print(end.code)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def script(name: str, words: list[str], before: Callable = lambda: None) -> Callable[[], None]:
    """As `python NAME WORDS` would. before: is done in the process first."""

    def action() -> None:
        before()
        module = SCRIPTS[name]
        config, given = parse_settings(module.Config, words, name, getattr(module, "ALIASES", None))
        module.main(config, given)

    return action


def start(
    name: str, words: list[str], size: int, log: Path, before: Callable = lambda: None
) -> list[int]:
    """Process ids of the ranks."""
    if size == 1:
        return [fork(script(name, words, before), log)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": str(size)}
    return [
        fork(script(name, words, before), log, RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(size)
    ]


def end_of(pids: list[int], seconds: float) -> list[int] | None:
    """Exit codes, once all have ended within so many seconds; else None, all still waited for."""
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while True:
        for pid in pids:
            if pid not in codes:
                with contextlib.suppress(ChildProcessError):
                    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                        codes[pid] = 0
        if len(codes) == len(pids):
            return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if time.monotonic() > end:
            return None
        time.sleep(0.001)


def ends(pids: list[int], log: Path, seconds: float = 600) -> list[int]:
    """Exit codes of a start that nobody kills; one that hangs says where."""
    if (codes := end_of(pids, seconds)) is None:
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(1)
        pytest.fail(f"no end after {seconds} s:\n{log.read_text()[-5000:]}")
    return codes


def kill(pids: list[int]) -> None:
    """SIGKILL to these and to all below them."""
    everyone = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.suspend()  # so that it starts no other
            everyone += [*process.children(recursive=True), process]
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


# ------------------------------------------------------------------------------ results


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    """What must not depend on kills, by path; nothing may be left of a write."""
    weights = folder / "train/weights"
    newest = sorted(weights.glob("step_????????"))
    paths = [newest[-1] / "model.safetensors"]
    for part in ("baseline", "test", "train/weights/best", "train/weights/final", "train/metrics"):
        paths += [path for path in (folder / part).rglob("*") if path.is_file()]
    settings = yaml.safe_load((folder / "config.yaml").read_text()) | {"workers": 0}
    found: dict[str, Any] = {"steps": [path.name for path in newest], "settings": settings}
    for path in paths:
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(x)) for x in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    record = json.loads((folder / "run.json").read_text())
    found["record"] = [record[name] for name in ("status", "verdicts", "steps", "data_fingerprint")]
    left = [path for path in folder.rglob("*") if path.name.endswith(("tmp", "old", "damaged"))]
    assert not left, left
    return found


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert theirs["record"][0] == "finished"


# -------------------------------------------------------------------------------- kinds


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_bert, pair_csv, cache_folder) -> Path:
    """Models and rows for all kinds, made by a copy of this process: torch's threads, once begun,
    would not survive a fork."""
    folder = tmp_path_factory.mktemp("inputs")

    def make() -> None:
        torch.set_num_threads(1)
        draw = random.Random(0)
        build_models(folder / "models")
        write_rows(folder / "rows.json")
        texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
        build_tiny_gpt2(folder / "gpt2", texts)
        lines = [f"{' '.join(draw.choices(WORDS, k=9))},{i % 2}" for i in range(120)]
        (folder / "labels.csv").write_text("\n".join(["text,label", *lines]) + "\n")
        titles = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) + f" {i}" for i in range(300)]
        (folder / "titles.txt").write_text("\n".join(titles) + "\n")
        documents = [" ".join(draw.choices(WORDS, k=draw.randint(60, 200))) for _ in range(200)]
        (folder / "documents.txt").write_text("\n\n".join(documents))

    assert end_of([fork(make, folder / "log.txt")], 300) == [0], (folder / "log.txt").read_text()
    shutil.copytree(tiny_bert, folder / "bert")
    shutil.copy(pair_csv, folder / "pairs.csv")
    return folder


def kinds(inputs: Path) -> dict[str, tuple[str, list[str], int]]:
    """Name → (script, settings, processes)."""
    preference = [
        *(f"--model={inputs / 'bert'}", f"--data={inputs / 'pairs.csv'}", "--max_length=64"),
        *("--batch=8", "--save_every=3", "--eval_every=7", "--lr=3e-3", "--epochs=1"),
    ]
    alpaca = [
        *(f"--model={inputs / 'models/gpt2'}", f"--data={inputs / 'rows.json'}", "--batch=8"),
        *("--micro_batch=4", "--lr=3e-3", "--sample_tokens=2", "--eval_every=4"),
        *("--save_every=3", "--max_length=128", "--epochs=1.5"),
    ]
    return {
        "preference": ("run_2_appendprompt.py", preference, 1),
        "pretraining": (
            "pretrain_bert.py",
            [
                *(f"--data={inputs / 'documents.txt'}", "--model=bert-tiny", "--vocab_size=200"),
                *("--max_length=16", "--lr=2e-3", "--batch=8", "--micro_batch=4"),
                *("--budget_unit=flops", "--budget=1e10", "--validation.fraction=0.2"),
                *("--selection.name=selective_backprop", "--selection.history=200"),
                *("--validation.truncate_to=100", "--save_every=4", "--eval_every=9"),
            ],
            1,
        ),
        "gpt2": (
            "finetune_gpt2.py",
            [
                *(f"--task={inputs / 'labels.csv'}", f"--model={inputs / 'gpt2'}"),
                *("--max_length=16", "--batch=8", "--epochs=1", "--lr=1e-3", "--head_epochs=1"),
                *("--val_frac=0.2", "--test_frac=0.2", "--save_every=3", "--eval_every=7"),
            ],
            1,
        ),
        "headlines": (
            "train_headlines.py",
            [
                *(f"--data={inputs / 'titles.txt'}", "--n_layer=2", "--n_head=2", "--n_embd=32"),
                *("--vocab_size=300", "--max_length=24", "--batch=16", "--lr=1e-2"),
                *("--matrix_lr=1e-2", "--epochs=1", "--save_every=3", "--eval_every=7"),
                *("--average_frac=0.3", "--val_frac=0.2"),
            ],
            1,
        ),
        "alpaca": ("alpaca_sft.py", [*alpaca, "--lora_r=3", "--lora_alpha=6"], 1),
        "sharded": ("alpaca_sft.py", [*alpaca, "--shard=true"], 2),
        "two processes": ("run_2_appendprompt.py", preference, 2),
    }


KINDS = tuple(kinds(Path()))


def killed_until(most: int, kind: str, inputs: Path, tmp_path: Path, attempt: Callable) -> str:
    """A run is begun again until so many kills count; what comes to its end, the last one too, is
    as the one that nobody interrupted. Returns what is to be said.

    attempt(begin, random choices, folder, seconds of a whole run): begins it, and has (its exit
    codes, or None where it was killed; whether that kill counts).
    """
    name, words, size = kinds(inputs)[kind]
    reference, folder, log = tmp_path / "reference", tmp_path / "run", tmp_path / "log.txt"

    def begin(*more: str, out: Path = folder, before: Callable = lambda: None) -> list[int]:
        log.unlink(missing_ok=True)
        return start(name, [*words, *QUIET, *more, f"--out={out}"], size, log, before)

    def require_end(codes: list[int]) -> None:
        assert codes == [0] * size, log.read_text()[-3000:]

    for _ in range(2):  # the second one finds caches, as those that are killed do
        shutil.rmtree(reference, ignore_errors=True)
        started = time.monotonic()
        require_end(ends(begin(out=reference), log))
    whole, wanted = time.monotonic() - started, results(reference)
    draw, kills, whole_runs, begun = random.Random(kind), 0, 0, time.monotonic()
    while kills < most:
        codes, counts = attempt(begin, draw, folder, whole)
        if codes is None:
            kills += counts
            continue
        require_end(codes)
        assert_same(results(folder), wanted)
        shutil.rmtree(folder)
        whole_runs += 1
    require_end(ends(begin(), log))
    assert_same(results(folder), wanted)
    return (
        f"{kind}: {kills} kills of a run of {whole:.1f} s; {whole_runs + 1} came to their end, all "
        f"as uninterrupted; {time.monotonic() - begun:.0f} s"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind, inputs, tmp_path):
    nowhere = 0

    def attempt(begin, draw, folder, whole):
        nonlocal nowhere
        pids = begin(*(["--workers=1"] if draw.random() < 0.2 and kind != "pretraining" else []))
        codes = end_of(pids, draw.uniform(0, 1.1 * whole))
        if codes is None:
            victims = pids if len(pids) == 1 or draw.random() < 0.5 else [draw.choice(pids)]
            kill(victims)
            if rest := [pid for pid in pids if pid not in victims]:  # torchrun ends them
                kill(rest) if end_of(rest, 3) is None else None
            nowhere += not folder.exists()
        return codes, True

    said = killed_until(KILLS, kind, inputs, tmp_path, attempt)
    print(f"\n{said}; {nowhere} kills before its folder")


def write_slowly() -> None:
    """A checkpoint takes some tenths of a second, in which steps go on."""
    write = files.HashedFile.write

    def slow(self, data: Any) -> int:
        time.sleep(0.0005)
        return write(self, data)

    files.HashedFile.write = slow


@pytest.mark.parametrize("kind", ["preference", "headlines", "two processes"])
def test_killed_inside_the_writer(kind, inputs, tmp_path):
    """KILLS / 2 (100) kills while the thread writes a checkpoint that is half there."""

    def attempt(begin, draw, folder, whole):
        weights = folder / "train/weights"
        pids = begin(before=write_slowly)
        seen: set[str] = set()
        enough, codes = draw.randint(1, 4), None
        while len(seen) < enough and (codes := end_of(pids, 0.002)) is None:
            seen |= {path.name for path in weights.glob("step_*.tmp")}
        if codes is None:
            time.sleep(draw.uniform(0, 0.4))
            kill(pids)
        return codes, bool(list(weights.glob("step_*.tmp")))

    said = killed_until(KILLS // 2, kind, inputs, tmp_path, attempt)
    print(f"\n{said}; each inside the writer")


# -------------------------------------------------------------------------------- sweep


class Forked:
    """What sweep.py uses of subprocess.Popen, without a new interpreter."""

    def __init__(self, command: list[str], stdout: Any, env: dict[str, str], **more: Any):
        name = Path(command[1]).name
        self.pid = fork(script(name, command[2:]), Path(stdout.name), **env)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def test_a_sweep_killed_at_random_moments(inputs, tmp_path):
    """The sweep with its run, or the run alone; the same command until nothing is left to do."""
    name, words, _ = kinds(inputs)["preference"]
    fixed = [word.removeprefix("--") for word in [*words, *QUIET] if "--lr=" not in word]
    (tmp_path / "plan.yaml").write_text(
        json.dumps({"script": name, "seeds": 2, "tune": {"lr": [3e-3, 1e-3]}, "arms": ARMS})
    )

    def action(out: Path) -> Callable[[], int]:
        def run() -> int:
            running.subprocess = type("forking", (), {"Popen": Forked, "STDOUT": subprocess.STDOUT})
            running.subprocess.DEVNULL = subprocess.DEVNULL
            sweep.check_settings = lambda plan: None
            sweep.report = lambda *words: None
            config = str(tmp_path / "plan.yaml")
            return sweep.main(["--config", config, "--out", str(out), "--set", *fixed])

        return run

    log, out = tmp_path / "log.txt", tmp_path / "sweep"

    def everything(out: Path) -> dict[str, Any]:
        runs = sorted(path.parent for path in out.rglob("run.json") if is_counted(path))
        return {str(run.relative_to(out)): results(run) for run in runs} | {
            "tuned": (out / "tuned.yaml").read_text()
        }

    for _ in range(2):
        shutil.rmtree(tmp_path / "reference", ignore_errors=True)
        started = time.monotonic()
        assert ends([fork(action(tmp_path / "reference"), log)], log, 900) == [0], log.read_text()
    whole, wanted = time.monotonic() - started, everything(tmp_path / "reference")
    assert len(wanted) == 9
    draw, kills, whole_sweeps, begun = random.Random("sweep"), 0, 0, time.monotonic()
    while kills < KILLS:
        log.unlink(missing_ok=True)
        pid = fork(action(out), log)
        codes = end_of([pid], draw.uniform(0, 0.5 * whole))
        if codes is None:
            kills += 1
            children = psutil.Process(pid).children()
            if draw.random() < 0.3 and children:  # the run alone: the sweep goes on with the others
                with contextlib.suppress(psutil.NoSuchProcess):
                    children[0].kill()
                codes = end_of([pid], 900)
                assert codes in ([0], [1]), log.read_text()
            else:
                kill([pid])
        if codes == [0]:
            assert everything(out) == wanted
            shutil.rmtree(out)
            whole_sweeps += 1
    while codes != [0]:
        codes = end_of([fork(action(out), log)], 900)
        assert codes in ([0], [1]), log.read_text()
    assert everything(out) == wanted
    print(
        f"\nsweep: {kills} kills of a sweep of 8 runs, {whole:.1f} s; {whole_sweeps + 1} came to "
        f"their end, all as uninterrupted; {time.monotonic() - begun:.0f} s"
    )


ARMS = {"plain": {}, "augmented": {"swap": "augment"}}
