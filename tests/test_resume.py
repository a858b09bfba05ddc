"""A run that is killed, stopped, damaged or out of room ends as if nothing had happened.

Some tests kill real processes; the others train in this process, where a signal, a kill (the
folder as it is at that moment) or a full disk can be put at an exact place.
"""

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
import torch
import yaml
from conftest import PROJECT, WORDS, command, environment, run_script

import run_2_appendprompt
from experiments import preference
from files import DiskFull, damage, sha256
from models import pairs
from runs.folder import FINGERPRINTS
from runs.writer import Writer
from settings import parse_settings

SCRIPT = "run_2_appendprompt.py"
TIMES = {"seconds", "examples_per_second", "tokens_per_second", "peak_memory_bytes", "machine"}


# ------------------------------------------------------------------------------ helpers


@pytest.fixture(scope="session")
def settings(one_layer_bert, pair_csv, cache_folder) -> list[str]:
    """20 steps an epoch, of two micro-batches; checkpoints and evaluations fall on the
    same step now and then."""
    return [
        *("--model", str(one_layer_bert), "--data", str(pair_csv), "--max_length", "32"),
        *("--batch", "8", "--micro_batch", "4", "--lr", "3e-3"),
        *("--save_every", "3", "--eval_every", "7"),
    ]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_here(*settings: str) -> None:
    """The script in this process."""
    config, given = parse_settings(run_2_appendprompt.Config, [*settings, "--page=false"], SCRIPT)
    run_2_appendprompt.main(config, given)


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def metric_lines(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def training_steps(folder: Path) -> list[int]:
    return [line["step"] for line in metric_lines(folder) if "train_loss" in line]


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "train/weights").glob("step_????????"))


def results(folder: Path) -> dict:
    """What does not depend on when or how often a run was interrupted."""
    weights = folder / "train/weights"
    newest = checkpoints(folder)[-1]
    files = [newest / "model.safetensors", folder / "test/metrics/predictions.csv"]
    files += [*(weights / "final").glob("*.safetensors"), *(weights / "best").glob("*.safetensors")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    found["metrics.jsonl"] = metric_lines(folder)
    found["metrics.json"] = json.loads((folder / "test/metrics/metrics.json").read_text())
    found["verdicts"] = record(folder)["verdicts"]
    return found


def assert_same_results(folder: Path, reference: Path) -> None:
    assert record(folder)["status"] == "finished"
    ours, theirs = results(folder), results(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


class Launch:
    """A script in processes of its own, all of which end with the block; without torchrun it is a
    copy of a process that has imported everything."""

    def __init__(self, words: list[str], log: Path):
        self.words, self.log = words, log

    def __enter__(self) -> "Launch":
        with open(self.log, "a") as file:
            if self.words[1].endswith(".py"):
                self.process = forked.Process(self.words[1:], environment(), file, file)
            else:
                self.process = subprocess.Popen(
                    self.words, env=environment(), cwd=PROJECT, stdout=file, stderr=file
                )
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def processes(self) -> list[int]:
        """This process and all below it: torchrun gives each worker a session of its own."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(stat.parent.name))
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def rank(self, number: int) -> int:
        """Process id of a rank."""
        for pid in self.processes():
            if f"\0RANK={number}\0" in Path(f"/proc/{pid}/environ").read_text():
                return pid
        raise AssertionError(f"no rank {number}\n{self.log.read_text()}")

    def send(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGSTOP)  # so that none starts another meanwhile
            self.send(signal.SIGKILL)
            self.process.wait()

    def wait(self, expect: int | None = 0, timeout: float = 180) -> None:
        code = self.process.wait(timeout)
        assert expect in (None, code), f"exit {code}\n{self.log.read_text()}"

    def wait_until(
        self, condition: Callable[[], bool], timeout: float = 120, every: float = 0.01
    ) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"it ended too early\n{self.log.read_text()}"
            assert time.monotonic() < end, f"too slow\n{self.log.read_text()}"
            time.sleep(every)

    def pause_while(self, condition: Callable[[], bool]) -> None:
        """Stop all processes at a moment at which the condition holds."""
        while True:
            self.wait_until(condition, every=0.001)
            self.send(signal.SIGSTOP)
            if condition():
                return
            self.send(signal.SIGCONT)


def launch(folder: Path, *settings: str, processes: int = 1, torchrun: tuple = ()) -> Launch:
    words = command(SCRIPT, *settings, "--out", str(folder), processes=processes)
    place = words.index(str(PROJECT / SCRIPT))
    return Launch([*words[:place], *torchrun, *words[place:]], folder.parent / f"{folder.name}.txt")


def has_reached(folder: Path, step: int) -> Callable[[], bool]:
    path = folder / "train/metrics/metrics.jsonl"
    return lambda: path.exists() and f'{{"step": {step},' in path.read_text()


def is_writing(folder: Path, after: int) -> Callable[[], bool]:
    """Whether a checkpoint of a step after `after` is half written."""
    weights = folder / "train/weights"
    return lambda: any(p.name > f"step_{after:08d}.tmp" for p in weights.glob("step_*.tmp"))


# ---------------------------------------------------------------- kills of real processes

LONG = ("--epochs", "3")  # 60 steps


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    with launch(folder, *settings, *LONG) as run:
        run.wait()
    return folder


@pytest.fixture(scope="module")
def uninterrupted_2(settings, tmp_path_factory) -> Path:
    """The same on two processes."""
    folder = tmp_path_factory.mktemp("uninterrupted_2") / "run"
    run_script(SCRIPT, *settings, *LONG, "--out", str(folder), processes=2)
    return folder


def test_killed_three_times_one_process(uninterrupted, settings, tmp_path):
    folder, draw = tmp_path / "run", random.Random(7)
    with launch(folder, *settings, *LONG) as run:
        run.wait_until(has_reached(folder, draw.randint(3, 12)))
        time.sleep(draw.uniform(0, 0.05))
        run.send(signal.SIGSTOP)
        with pytest.raises(SystemExit, match="another process is writing"):
            train_here(*settings, *LONG, "--out", str(folder))
    with launch(folder, *settings, *LONG) as run:
        run.pause_while(is_writing(folder, after=draw.randint(16, 26)))
    assert list((folder / "train/weights").glob("step_*.tmp"))
    assert [damage(path) for path in checkpoints(folder)] == [None, None]
    with launch(folder, *settings, *LONG) as run:
        run.wait_until(has_reached(folder, draw.randint(30, 50)))
        time.sleep(draw.uniform(0, 0.05))
    assert record(folder)["status"] == "running"
    with launch(folder, *settings, *LONG) as run:
        run.wait()
    assert_same_results(folder, uninterrupted)
    assert not list((folder / "train/weights").glob("*.tmp"))


def test_two_processes_stopped_by_torchrun(uninterrupted_2, settings, tmp_path):
    """Random kills of two processes: tests/long/test_random_kills.py."""
    folder, alone = tmp_path / "run", tmp_path / "alone"
    with launch(folder, *settings, *LONG, processes=2) as run:
        run.wait_until(has_reached(folder, 35))
        run.process.send_signal(signal.SIGTERM)
        run.wait(expect=None, timeout=60)
    assert (record(folder)["status"], record(folder)["exit_reason"]) == ("stopped", "SIGTERM")
    stopped_at = training_steps(folder)[-1]
    assert checkpoints(folder)[-1].name == f"step_{stopped_at:08d}"  # no step is lost
    shutil.copytree(folder, alone)
    run_script(SCRIPT, *settings, *LONG, "--out", str(folder), processes=2)
    assert_same_results(folder, uninterrupted_2)

    train_here(*settings, *LONG, "--out", str(alone))  # on one process
    ours, theirs = metric_lines(alone), metric_lines(uninterrupted_2)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        for name in line.keys() & {"train_loss", "val_loss"}:
            assert line[name] == pytest.approx(other[name], rel=1e-3), line["step"]


def test_a_killed_worker_makes_torchrun_restart_the_job(uninterrupted_2, settings, tmp_path):
    """--fresh must not make a restart begin anew."""
    folder = tmp_path / "run"
    again = (*settings, *LONG, "--fresh")
    with launch(folder, *again, processes=2, torchrun=("--max-restarts=2",)) as run:
        run.wait_until(has_reached(folder, 31))
        os.kill(run.rank(1), signal.SIGKILL)
        run.wait()
    log = run.log.read_text()
    continued = [int(part.split()[0]) for part in log.split("continuing at step ")[1:]]
    assert len(continued) == 1 and continued[0] >= 27, log
    assert_same_results(folder, uninterrupted_2)


# ------------------------------------------------------------------------ in this process

SHORT = ("--epochs", "1.5")  # 30 steps


@pytest.fixture(scope="module")
def short(settings, tmp_path_factory) -> Path:
    """Uninterrupted, 30 steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("short") / "run"
    train_here(*settings, *SHORT, "--out", str(folder))
    return folder


@pytest.fixture(scope="module")
def half(settings, tmp_path_factory) -> Path:
    """The same, stopped after step 23: checkpoints 21 and 23."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("half") / "run"
    train_here(*settings, *SHORT, "--out", str(folder), "--stop_after", "23")
    return folder


@pytest.fixture
def again(half, settings, tmp_path) -> Path:
    """A copy of the half-done run."""
    shutil.copytree(half, tmp_path / "again")
    return tmp_path / "again"


class CallsOf:
    """Do something at the n-th call of a function, before it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str):
        self.calls, self.at = 0, {}
        original = getattr(owner, name)

        def watched(*args, **named):
            self.calls += 1
            if action := self.at.pop(self.calls, None):
                action()
            return original(*args, **named)

        monkeypatch.setattr(owner, name, watched)


def interrupt(number: int = signal.SIGTERM) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_stop_after_stops_and_the_same_command_continues(half, again, short, settings, capsys):
    assert record(half)["status"] == "stopped"
    assert record(half)["exit_reason"] == "--stop_after 23"
    assert training_steps(half) == list(range(1, 24))
    train_here(*settings, *SHORT, "--out", str(again))
    assert "continuing at step 23" in capsys.readouterr().out
    assert_same_results(again, short)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_inside_a_step_stops_after_the_step_before(
    short, settings, tmp_path, monkeypatch, number
):
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2 * 10 + 1] = interrupt(number)  # the first of step 11's two micro-batches
    train_here(*settings, *SHORT, "--out", str(tmp_path))
    assert loss_sum.calls == 21  # no further micro-batch
    assert record(tmp_path)["status"] == "stopped"
    assert record(tmp_path)["exit_reason"] == signal.Signals(number).name
    assert training_steps(tmp_path) == list(range(1, 11))
    train_here(*settings, *SHORT, "--out", str(tmp_path))
    assert_same_results(tmp_path, short)


def test_signals_are_the_callers_again_after_a_run(short):
    handler = signal.getsignal(signal.SIGTERM)  # or that of a command, which another test called
    assert handler is signal.SIG_DFL or "end_by_signals" in handler.__qualname__


@pytest.fixture(scope="module")
def long_evaluation(settings, tmp_path_factory) -> tuple[list[str], Path]:
    """(settings, uninterrupted run): 300 validation rows in three batches, 120 test rows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluation")
    draw = random.Random(1)
    rows = []
    for number in range(600):
        words = [" ".join(draw.choices(WORDS, k=draw.randint(3, 25))) for _ in range(3)]
        row = {"prompt": f"{number} {words[0]}", "response_a": words[1], "response_b": words[2]}
        winner = dict.fromkeys(("winner_model_a", "winner_model_b", "winner_tie"), 0)
        winner[draw.choice(list(winner))] = 1
        rows.append({"id": number, **{k: [v] for k, v in row.items()}, **winner})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = [*settings, "--data", str(folder / "rows.jsonl"), "--epochs", "1"]
    chosen += ["--val_frac", "0.5", "--test_frac", "0.2", "--max_length", "64"]
    train_here(*chosen, "--out", str(folder / "run"))
    return chosen, folder / "run"


def test_a_signal_inside_an_evaluation_and_again_inside_the_evaluation_made_up_for(
    long_evaluation, tmp_path, monkeypatch
):
    chosen, reference = long_evaluation
    forward = CallsOf(monkeypatch, pairs, "pair_outputs")
    forward.at[5] = interrupt()  # the second evaluation, at step 14, in its second batch
    train_here(*chosen, "--out", str(tmp_path))
    assert forward.calls == 5
    assert record(tmp_path)["status"] == "stopped"
    assert metric_lines(tmp_path)[-1]["step"] == 14 and "val_loss" not in metric_lines(tmp_path)[-1]

    forward.at[7] = interrupt()
    train_here(*chosen, "--out", str(tmp_path))
    assert forward.calls == 7
    assert (record(tmp_path)["status"], record(tmp_path)["exit_reason"]) == ("stopped", "SIGTERM")
    train_here(*chosen, "--out", str(tmp_path))
    assert_same_results(tmp_path, reference)


def test_killed_after_an_evaluation_made_up_for(long_evaluation, tmp_path, monkeypatch):
    """The newest checkpoint still says that the evaluation is due; it is not logged twice."""
    chosen, reference = long_evaluation
    first, second = tmp_path / "first", tmp_path / "second"
    forward = CallsOf(monkeypatch, pairs, "pair_outputs")
    forward.at[5] = interrupt()
    train_here(*chosen, "--out", str(first))
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2] = lambda: shutil.copytree(first, second)
    train_here(*chosen, "--out", str(first))
    train_here(*chosen, "--out", str(second))
    assert_same_results(first, reference)
    assert_same_results(second, reference)


def test_a_signal_inside_the_test(long_evaluation, tmp_path, monkeypatch):
    chosen, reference = long_evaluation
    tested = CallsOf(monkeypatch, preference.Preference, "test")
    tested.at[1] = interrupt()
    train_here(*chosen, "--out", str(tmp_path))
    assert (record(tmp_path)["status"], record(tmp_path)["exit_reason"]) == ("stopped", "SIGTERM")
    assert not (tmp_path / "test").exists()
    train_here(*chosen, "--out", str(tmp_path))
    assert_same_results(tmp_path, reference)


def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint is whole before training goes on."""
    submit = Writer.submit

    def submit_and_wait(writer, job) -> None:
        submit(writer, job)
        writer._thread.join()

    monkeypatch.setattr(Writer, "submit", submit_and_wait)


def copies_before_each_operation(
    folder: Path, settings: list[str], copies: Path, steps: range
) -> list[Path]:
    """Finish the run; what a kill would leave before each flush, rename and removal in `steps`.
    Training waits for its writer: a copy is no moment while somebody writes beside it."""
    made: list[Path] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        write_at_once(monkeypatch)
        passes = CallsOf(monkeypatch, preference.Preference, "loss_sum")
        first = training_steps(folder)[-1] if (folder / "train").exists() else 0
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "rename"), (shutil, "rmtree")):
            original = getattr(owner, name)

            def watched(*args, original=original, **named):
                if math.ceil(passes.calls / 2) + first in steps:
                    made.append(copies / f"copy_{len(made):03d}")
                    shutil.copytree(folder, made[-1])
                return original(*args, **named)

            monkeypatch.setattr(owner, name, watched)
        train_here(*settings, "--out", str(folder))
    return made


def test_killed_at_any_operation_of_a_checkpoint(again, short, settings, tmp_path):
    """Step 24 is a checkpoint, after 27 an old one goes, the evaluation at 28 writes best."""
    chosen = [*settings, *SHORT]
    copies = copies_before_each_operation(again, chosen, tmp_path, range(24, 29))
    assert_same_results(again, short)
    kinds = {
        tuple(
            sorted(str(path.relative_to(each)) for path in (each / "train/weights").rglob("*"))
        ): each
        for each in copies
    }
    left = {path.name for each in kinds.values() for path in (each / "train/weights").iterdir()}
    assert {"step_00000024.tmp", "best.old", "best.tmp", "step_00000027.tmp"} <= left
    for each in kinds.values():
        train_here(*chosen, "--out", str(each))
        assert_same_results(each, short)


def test_metrics_are_on_disk_before_the_checkpoint_that_follows_them(again, settings, monkeypatch):
    """A machine that vanishes loses what was not flushed: lines of finished steps must not be."""
    flushed: list[str] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[2] = flushed.clear  # from here on: step 24, a checkpoint without an evaluation
    train_here(*settings, *SHORT, "--out", str(again), "--stop_after", "1")
    names = [re.sub(r"\.\d*tmp$", "", name) for name in flushed]
    assert names.index("metrics.jsonl") < names.index("manifest.json")


# ------------------------------------------------------------------------- damaged files


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "state.pt", 1000)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"step": 23, "files": []}')


@pytest.mark.parametrize("harm", [flip_a_byte, cut_short, lose_the_manifest, garble_the_manifest])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    again, short, settings, capsys, harm
):
    harm(again / "train/weights/step_00000023")
    train_here(*settings, *SHORT, "--out", str(again))
    said = capsys.readouterr().out
    assert "step_00000023 is damaged" in said and "continuing at step 21" in said
    assert (again / "train/weights/step_00000023.damaged").is_dir()
    assert_same_results(again, short)


def test_all_checkpoints_damaged_begins_at_the_start(again, short, settings):
    for folder in checkpoints(again):
        flip_a_byte(folder)
    train_here(*settings, *SHORT, "--out", str(again))
    assert_same_results(again, short)


def test_a_torn_last_line_of_the_metrics_is_cut(again, short, settings):
    path = again / "train/metrics/metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 24, "epoch": 1.2}\n{"step": 25, "epo')
    train_here(*settings, *SHORT, "--out", str(again))
    assert_same_results(again, short)


class Evil:
    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_nothing_is_executed_from_a_checkpoint(half, again, settings, tmp_path):
    newest = checkpoints(again)[-1]
    saved = torch.load(newest / "state.pt", weights_only=True)
    assert saved["numbers"]["step"] == 23
    marker = tmp_path / "executed"
    torch.save({**saved, "extras": Evil(str(marker))}, newest / "state.pt")
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {
        "bytes": (newest / "state.pt").stat().st_size,
        "sha256": sha256(newest / "state.pt"),
    }
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert damage(newest) is None
    with contextlib.suppress(Exception):  # it may refuse to go on, or use the one before
        train_here(*settings, *SHORT, "--out", str(again))
    assert not marker.exists()
    assert record(again)["status"] == "failed" or newest.with_suffix(".damaged").is_dir()


# ----------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """8 MB of their own: a run of 30 steps needs about 1."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here; test_no_room_for_a_file covers part of it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("free_kb", [0, 40, 120, 220])
def test_a_full_disk_costs_nothing_but_time(
    half, short, settings, small_disk, monkeypatch, free_kb
):
    """The less room, the earlier in metrics, weights or state it ends."""
    folder, filler = small_disk / "run", small_disk / "filler"
    shutil.copytree(half, folder)

    def fill_up() -> None:
        room = shutil.disk_usage(small_disk).free - free_kb * 1024
        filler.write_bytes(bytes(room))

    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[1] = fill_up
    with pytest.raises(DiskFull, match="disk full while writing .*make room and run the same"):
        train_here(*settings, *SHORT, "--out", str(folder))
    assert {damage(path) for path in checkpoints(folder)} == {None}
    assert record(folder)["status"] in ("running", "failed")
    filler.unlink()
    train_here(*settings, *SHORT, "--out", str(folder))
    assert_same_results(folder, short)


@pytest.mark.parametrize("call", [1, 3, 4, 8])
def test_no_room_for_a_file(again, short, settings, monkeypatch, call):
    def no_room() -> None:
        raise OSError(28, "No space left on device")

    fsync = CallsOf(monkeypatch, os, "fsync")
    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[1] = lambda: fsync.at.update({fsync.calls + call: no_room})
    with pytest.raises(DiskFull, match="make room and run the same command"):
        train_here(*settings, *SHORT, "--out", str(again))
    assert record(again)["status"] == "failed" and "disk full" in record(again)["exit_reason"]
    assert {damage(path) for path in checkpoints(again)} == {None}
    monkeypatch.undo()
    train_here(*settings, *SHORT, "--out", str(again))
    assert_same_results(again, short)


def test_no_room_for_a_line_of_the_metrics(again, short, settings, monkeypatch):
    def divert() -> None:  # to a device that is always full
        for link in Path("/proc/self/fd").iterdir():
            if link.exists() and link.readlink().name == "metrics.jsonl":
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, int(link.name))
                os.close(full)

    loss_sum = CallsOf(monkeypatch, preference.Preference, "loss_sum")
    loss_sum.at[1] = divert
    with pytest.raises(DiskFull, match="disk full while writing .*metrics.jsonl"):
        train_here(*settings, *SHORT, "--out", str(again))
    assert record(again)["status"] == "failed" and "disk full" in record(again)["exit_reason"]
    train_here(*settings, *SHORT, "--out", str(again))
    assert_same_results(again, short)


# ---------------------------------------------------------------- which run is continued


def test_a_mistyped_path_does_not_bind_the_folder(settings, tmp_path):
    out = ["--out", str(tmp_path / "run"), "--stop_after", "1"]
    wrong = [*settings, "--data", "nofile.csv"]
    with pytest.raises(FileNotFoundError):
        train_here(*wrong, *SHORT, *out)
    train_here(*settings, *SHORT, *out)
    assert training_steps(tmp_path / "run") == [1]


def test_another_script_does_not_continue_the_run(again, settings):
    """Run 1 and run 2 have the same settings and the same folder under results/."""
    import run_1_distilbert

    words = [*settings, *SHORT, "--out", str(again)]
    config, given = parse_settings(run_1_distilbert.Config, words, "run_1_distilbert.py")
    with pytest.raises(SystemExit, match="script: run_2_appendprompt.py there, run_1_distilbert"):
        run_1_distilbert.main(config, given)


def test_rows_that_changed_are_not_continued(again, settings, tmp_path):
    """The loader's position would point at other rows."""
    record_path = again / "run.json"
    saved = json.loads(record_path.read_text())
    record_path.write_text(json.dumps(saved | {"data_fingerprint": "another"}))
    for _ in range(2):  # the failed attempt must not make the new rows the run's own
        with pytest.raises(ValueError, match="rows of --data changed"):
            train_here(*settings, *SHORT, "--out", str(again))


def test_the_rows_of_then_are_remembered(again, settings, monkeypatch):
    """Whatever a session with other rows did before it was refused or stopped."""
    then = {name: record(again)[name] for name in FINGERPRINTS}
    words = [*settings, *SHORT, "--out", str(again)]
    load_rows = preference.load_rows

    def other_rows(config, world, folder):
        rows, facts = load_rows(config, world, folder)
        return rows, facts | dict.fromkeys(FINGERPRINTS, "another")

    def cut_off(config, world, folder):
        other_rows(config, world, folder)
        raise KeyboardInterrupt

    for other, ends in ((cut_off, SystemExit), (other_rows, ValueError)):
        monkeypatch.setattr(preference, "load_rows", other)
        with pytest.raises(ends):
            train_here(*words)
        assert {name: record(again)[name] for name in FINGERPRINTS} == then
    monkeypatch.setattr(preference, "load_rows", load_rows)
    train_here(*words)
    assert record(again)["status"] == "finished"


def test_a_folder_in_which_nothing_began_takes_other_rows(settings, tmp_path):
    words = [*settings, *SHORT, "--out", str(tmp_path / "run"), "--stop_after", "1"]
    with pytest.raises(ValueError):
        train_here(*words, "--limit", "3")
    saved = record(tmp_path / "run")
    assert saved["status"] == "failed"
    saved |= dict.fromkeys(FINGERPRINTS, "another")  # a session that ends later notes its rows
    (tmp_path / "run/run.json").write_text(json.dumps(saved))
    train_here(*words)
    assert training_steps(tmp_path / "run") == [1]


def test_other_settings_are_refused_and_listed(again, settings):
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as refused:
        train_here(*settings, *SHORT, "--out", str(again), "--lr", "1e-2", "--seed", "1")
    text = str(refused.value)
    assert "lr: 0.003 there, 0.01 now" in text and "seed: 0 there, 1 now" in text
    assert "save_every" not in text and "--fresh" in text
    assert before == {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}


def test_settings_that_change_no_result_may_differ(again, short, settings):
    train_here(*settings, *SHORT, "--out", str(again), "--save_every", "4", "--workers", "1")
    assert_same_results(again, short)


def test_a_finished_run_prints_its_result_and_trains_no_more(short, settings, capsys):
    before = {path: path.stat().st_mtime_ns for path in short.rglob("*") if path.name != ".lock"}
    with pytest.raises(SystemExit) as end:
        train_here(*settings, *SHORT, "--out", str(short))
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "is finished" in said and "accuracy" in said
    now = {path: path.stat().st_mtime_ns for path in short.rglob("*") if path.name != ".lock"}
    assert now == before


def test_fresh_begins_anew(again, settings):
    train_here(*settings, *SHORT, "--out", str(again), "--fresh", "--seed", "1", "--stop_after=2")
    assert training_steps(again) == [1, 2]
    assert [path.name for path in checkpoints(again)] == ["step_00000002"]
    assert not (again / "train/weights/best").exists()
    assert yaml.safe_load((again / "config.yaml").read_text())["seed"] == 1


def test_fresh_after_a_kill_while_it_deleted(again, settings):
    """Weights of the earlier run must not become the new one's."""
    (again / "config.yaml").unlink()
    train_here(*settings, *SHORT, "--out", str(again), "--fresh", "--seed", "1", "--stop_after=2")
    assert training_steps(again) == [1, 2]


def test_without_out_the_newest_unfinished_run_with_the_same_settings_continues(
    short, settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train_here(*settings, *SHORT, "--stop_after", "9")
    (first,) = Path("results").glob("*/*")
    train_here(*settings, *SHORT, "--stop_after", "9", "--seed", "1")  # another experiment
    train_here(*settings, *SHORT, "--stop_after", "8")
    assert f"continuing {first} (--fresh begins anew)" in capsys.readouterr().out
    assert training_steps(first) == list(range(1, 18))
    train_here(*settings, *SHORT, "--fresh", "--stop_after", "1")
    assert len(list(Path("results").glob("*/*"))) == 3
    assert training_steps(first) == list(range(1, 18))
    newest = sorted(Path("results").glob("*/*"))[-1]
    train_here(*settings, *SHORT)
    assert_same_results(newest, short)
    train_here(*settings, *SHORT)  # a finished one is not continued, the older one is
    assert_same_results(first, short)


# --------------------------------------------------------- rotation and early stopping


def test_rotation_keeps_the_newest_two_every_nth_and_the_best(settings, tmp_path):
    train_here(*settings, *SHORT, "--out", str(tmp_path), "--save_every=2", "--keep_every=8")
    kept = [int(path.name.removeprefix("step_")) for path in checkpoints(tmp_path)]
    assert kept == [8, 16, 24, 28, 30]
    losses = {m["step"]: m["val_loss"] for m in metric_lines(tmp_path) if "val_loss" in m}
    best = tmp_path / "train/weights/best"
    assert damage(best) is None
    step = json.loads((best / "manifest.json").read_text())["step"]
    assert losses[step] == min(losses.values())
    assert [damage(path) for path in checkpoints(tmp_path)] == [None] * 5


def test_patience_is_remembered_over_a_stop(settings, tmp_path):
    """Without a learning rate the first evaluation stays the best; three more end the run."""
    chosen = [*settings, "--epochs", "3", "--lr", "1e-30", "--patience", "3", "--eval_every", "4"]
    train_here(*chosen, "--out", str(tmp_path / "whole"))
    assert training_steps(tmp_path / "whole")[-1] == 16
    assert "early stopping at step 16" in record(tmp_path / "whole")["exit_reason"]
    for _ in range(4):
        train_here(*chosen, "--out", str(tmp_path / "parts"), "--stop_after", "5")
    assert "early stopping at step 16" in record(tmp_path / "parts")["exit_reason"]
    assert_same_results(tmp_path / "parts", tmp_path / "whole")
