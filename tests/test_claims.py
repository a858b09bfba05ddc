"""claims.py: one owner a number, one published attempt, and what is left of a run is handed on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT

import claims
from claims import Claims, copy_run, place_of
from files import write_folder

NAME = Path("arm/seed_0")
ELSEWHERE = {"host": "other", "machine": "another boot", "pid": 1, "began": "1"}


def observer(root: Path, silent_after: float = 60.0) -> Claims:
    return Claims(root, NAME, silent_after)


def is_ended(folder: Path) -> bool:
    return (folder / "ended").exists()


@pytest.fixture
def owners(monkeypatch):
    """Claims as of processes on other machines, of which nothing is known here."""
    monkeypatch.setattr(claims, "process", lambda pid=None: dict(ELSEWHERE))


def silence(watcher: Claims, monkeypatch, seconds: float) -> None:
    """So much time passes on the observer's clock."""
    now = time.monotonic() + seconds
    monkeypatch.setattr(claims.time, "monotonic", lambda: now)


def test_a_number_has_one_owner(tmp_path, owners):
    first, second = observer(tmp_path), observer(tmp_path)
    claim = first.take()
    assert claim.number == 1 and second.take() is None and first.take() is None
    # also where a look came before the other's creation: the creation itself decides
    late = observer(tmp_path / "late")
    before = late.look()
    assert observer(tmp_path / "late").take()
    late.look = lambda: before
    assert late.take() is None


def test_silence_is_a_counter_that_does_not_move_while_the_observer_looks(
    tmp_path, owners, monkeypatch
):
    watcher = observer(tmp_path)
    claim = observer(tmp_path).take()
    assert not watcher.look().is_free
    silence(watcher, monkeypatch, 59)
    assert not watcher.look().is_free
    claim.beat()
    silence(watcher, monkeypatch, 100)  # the counter moved since it looked last
    assert not watcher.look().is_free and watcher.take() is None
    silence(watcher, monkeypatch, 300)
    assert watcher.look().silent
    # whoever comes new has seen no silence yet
    assert observer(tmp_path).take() is None
    assert watcher.take().number == 2 and claim.is_lost()


def test_clocks_of_machines_are_not_compared(tmp_path, owners, monkeypatch):
    claim = observer(tmp_path).take()
    monkeypatch.setattr(claims.time, "time", lambda: 0.0)
    claim.beat()
    hour = time.time() + 3600
    for file in claim.folder.iterdir():
        os.utime(file, (hour, hour))
    assert observer(tmp_path).take() is None


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path):
    code = "import sys, claims; from pathlib import Path\n"
    code += "assert claims.Claims(Path(sys.argv[1]), Path('arm/seed_0')).take()\n"
    code += "print('taken', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(tmp_path)]
    owner = subprocess.Popen(
        words, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline() == "taken\n"
    assert observer(tmp_path).take() is None
    owner.send_signal(signal.SIGSTOP)  # paused is not dead
    assert observer(tmp_path).take() is None
    owner.kill()
    owner.wait()
    assert observer(tmp_path).take().number == 2


def test_a_copy_of_a_folder_is_not_the_others(tmp_path, monkeypatch):
    parent = claims.process(os.getppid())
    monkeypatch.setattr(claims, "process", lambda pid=None: dict(parent))
    assert observer(tmp_path / "run").take()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert observer(tmp_path / "run").take() is None
    assert observer(tmp_path / "copy").take().number == 2


def test_one_attempt_is_published_whoever_comes_first(tmp_path, owners, monkeypatch):
    watcher = observer(tmp_path)
    slow = observer(tmp_path).take()
    slow.begin(tmp_path / NAME, is_ended)
    (slow.attempt / "result").write_text("of the first")
    watcher.look()
    silence(watcher, monkeypatch, 61)
    fast = watcher.take()
    assert fast.begin(tmp_path / NAME, is_ended)
    (fast.attempt / "result").write_text("of the second")
    assert not slow.publish(tmp_path / NAME), "it looks whether it is lost"
    # it looked, and was paused before it renamed
    monkeypatch.setattr(type(slow), "is_lost", lambda self: False)
    assert slow.publish(tmp_path / NAME)
    assert not fast.publish(tmp_path / NAME)
    assert (tmp_path / NAME / "result").read_text() == "of the first"
    assert json.loads((tmp_path / NAME / claims.TOKEN).read_text())["token"] == slow.token
    fast.clear()
    assert not fast.attempt.exists()


def test_who_wakes_writes_only_to_what_is_its_own(tmp_path, owners, monkeypatch):
    watcher = observer(tmp_path)
    slow = observer(tmp_path).take()
    slow.begin(tmp_path / NAME, is_ended)
    log = open(slow.attempt / "metrics.jsonl", "a")
    print("step 1", file=log, flush=True)
    write_folder(slow.attempt / "train/weights/best", lambda f: (f / "w").write_text("weights"))
    (slow.attempt / "run.json.tmp").write_text("torn")
    watcher.look()
    silence(watcher, monkeypatch, 61)
    fast = watcher.take()
    assert fast.begin(tmp_path / NAME, is_ended)
    print("step 2", file=log, flush=True)
    (slow.attempt / "train/weights/step_2").mkdir()
    assert (fast.attempt / "metrics.jsonl").read_text() == "step 1\n"
    assert not (fast.attempt / "train/weights/step_2").exists()
    assert not (fast.attempt / "run.json.tmp").exists()
    # what nobody writes to again is there once
    files = [c.attempt / "train/weights/best/w" for c in (slow, fast)]
    assert files[0].samefile(files[1])
    assert [json.loads((c.attempt / claims.TOKEN).read_text())["number"] for c in (slow, fast)] == [
        1, 2,
    ]  # fmt: skip


def test_what_was_let_go_is_moved(tmp_path, owners):
    first = observer(tmp_path).take()
    first.begin(tmp_path / NAME, is_ended)
    (first.attempt / "metrics.jsonl").write_text("step 1\n")
    first.end("stopped")
    second = observer(tmp_path).take()
    assert second.begin(tmp_path / NAME, is_ended) and not first.attempt.exists()
    assert (second.attempt / "metrics.jsonl").read_text() == "step 1\n"
    second.end("failed", clean=False)  # a process of it may be left
    third = observer(tmp_path).take()
    assert third.begin(tmp_path / NAME, is_ended) and second.attempt.exists()


def test_a_run_that_was_written_to_its_place_goes_on(tmp_path, owners):
    (tmp_path / NAME).mkdir(parents=True)
    (tmp_path / NAME / "metrics.jsonl").write_text("step 1\n")
    claim = observer(tmp_path).take()
    assert claim.begin(tmp_path / NAME, is_ended)
    assert (claim.attempt / "metrics.jsonl").exists() and not (tmp_path / NAME).exists()
    assert claim.publish(tmp_path / NAME)
    # one that came to its end meanwhile stays where it is
    (tmp_path / NAME / "ended").touch()
    with pytest.raises(claims.ClaimLost):
        claim.begin(tmp_path / NAME, is_ended)
    assert (tmp_path / NAME / "ended").exists()


def test_a_copy_is_made_again_while_its_owner_saves(tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "train/metrics").mkdir(parents=True)

    def save(step: int) -> None:
        with open(source / "train/metrics/metrics.jsonl", "a") as log:
            log.write(f"step {step}\n")
        folder = source / f"train/weights/step_{step}"
        write_folder(folder, lambda f: (f / "w").write_text(str(step)), step=step)

    save(1)
    copies, plain_link = [], claims._link

    def link(one: str, other: str) -> None:
        if one.endswith("/w") and not copies:
            save(2)
        copies.append(one)
        os.link(one, other)

    monkeypatch.setattr(claims, "_link", link)
    copy_run(source, tmp_path / "target")
    steps = sorted(path.name for path in (tmp_path / "target/train/weights").iterdir())
    assert steps == ["step_1", "step_2"] and not (tmp_path / "target.tmp").exists()

    # a volume that has no links
    def refuse(one: str, other: str) -> None:
        raise OSError(38, "no links")

    monkeypatch.setattr(claims, "_link", plain_link)
    monkeypatch.setattr(os, "link", refuse)
    copy_run(source, tmp_path / "other")
    assert (tmp_path / "other/train/weights/step_2/w").read_text() == "2"


def test_places_of_attempts_are_told_from_other_folders_of_that_name(tmp_path):
    (tmp_path / "o/claims").mkdir(parents=True)
    assert place_of(tmp_path / "o/attempts/12/arm/seed_0") == tmp_path / "o/arm/seed_0"
    assert place_of(tmp_path / "o/arm/seed_0") is None
    assert place_of(tmp_path / "results/attempts/1/seed_0") is None


def test_a_script_takes_what_its_sweep_claimed_for_it_and_no_other_folder(tmp_path, monkeypatch):
    claim = observer(tmp_path).take()
    claim.begin(tmp_path / NAME, is_ended)
    for name, value in claim.handed_on().items():
        monkeypatch.setenv(name, value)
    own = claims.claim_run(claim.attempt, print)
    assert own.kind == "child" and own.token == claim.token
    other = claims.claim_run(tmp_path / "elsewhere", print)
    assert other.kind == "beat" and other.folder == tmp_path / "elsewhere/.claim/claims"


def test_what_several_need_is_made_by_one(tmp_path, owners, monkeypatch):
    done, made, said = tmp_path / "done", [], []
    other = Claims(tmp_path / "x.claim", Path(".")).take()

    def wait(seconds: float) -> None:
        other.beat()
        done.touch()

    monkeypatch.setattr(claims.time, "sleep", wait)
    with claims.turn(tmp_path / "x.claim", done.exists, said.append) as mine:
        made += [1] * mine
    assert not made and said == ["other (process 1) is making what x is for: waiting"]
    done.unlink()
    other.end("ended")
    with claims.turn(tmp_path / "x.claim", done.exists, said.append) as mine:
        made += [2] * mine
    assert made == [2] and not (tmp_path / "x.claim").exists()


def test_a_script_waits_for_a_sign_of_another_machine(tmp_path, owners, monkeypatch):
    monkeypatch.setenv("ABLATE_STALE_SECONDS", "0.3")
    run = tmp_path / "run"
    first = claims.claim_run(run, print)
    said: list[str] = []
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: first.beat())
    assert claims.claim_run(run, said.append) is None
    assert "other (process 1) wrote to" in said[0] and "waiting 0 s" in said[0]
    monkeypatch.undo()
    monkeypatch.setenv("ABLATE_STALE_SECONDS", "0.3")
    keeper = claims.Keeper(first)
    keeper._ended.set()  # it is paused
    taken = claims.claim_run(run, said.append)
    assert taken.number == 2
    with pytest.raises(claims.ClaimLost, match="another one took the run over"):
        keeper.require()
    keeper.end()
    assert taken.folder.exists(), "who has lost a claim removes nothing"
    claims.Keeper(taken).end()
    assert not (run / ".claim").exists() and first.is_lost()
    # the next one counts from 1 again, and is not the first
    again = claims.claim_run(run, said.append)
    assert again.number == first.number and first.is_lost() and not again.is_lost()
