"""reports/watch.py: what it says of a run while the run writes, stops, resumes and ends."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PROJECT

from reports.folder import MetricsLog, load_run
from reports.watch import clean, seconds_left, silence, sparkline, state, total_steps, watch


class Writer:
    """A run folder, written to as a run would."""

    def __init__(self, path: Path, **record):
        self.path = path
        self.log = path / "train/metrics/metrics.jsonl"
        self.log.parent.mkdir(parents=True)
        (path / "config.yaml").write_text("epochs: 2.0\nlr: 0.001\n")
        self.record(status="running", **record)

    def record(self, **facts) -> None:
        (self.path / "run.json").write_text(json.dumps({"schema_version": 1, **facts}))

    def steps(self, first: int, last: int, **more) -> None:
        with open(self.log, "a") as file:
            for step in range(first, last + 1):
                line = {"step": step, "epoch": step / 50, "train_loss": 2 / step, "lr": 1e-3}
                line |= {"grad_norm": 1.5, "tokens_per_second": 4000.0, "seconds": 2.0 * step}
                file.write(json.dumps(line | more) + "\n")

    def append(self, text: str) -> None:
        with open(self.log, "a") as file:
            file.write(text)


@pytest.fixture
def run(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "run")


def said(run: Writer, log: MetricsLog | None = None) -> dict[str, str]:
    log = log or MetricsLog(run.path)
    log.read()
    loaded = load_run(run.path)
    loaded.notes += log.notes()
    rows: dict[str, str] = {}
    for name, value in state(loaded, log):
        rows[name] = f"{rows[name]} | {value}" if name in rows else value
    return rows


def test_a_log_that_grows(run):
    log = MetricsLog(run.path)
    assert said(run, log)["step"] == "none yet"
    run.steps(1, 10)
    assert said(run, log)["step"] == "10 of 100 (10%)"
    run.steps(11, 20, peak_memory_bytes=2**30)
    run.append(
        '{"step": 20, "val_loss": 0.5, "val_accuracy": 0.75}\n{"step": 15, "val_loss": 0.4}\n'
    )
    run.append('{"step": 20, "val_loss": 0.6}\n')
    rows = said(run, log)
    assert rows["step"] == "20 of 100 (20%)"
    assert rows["loss"].startswith("0.1000, mean of the last 20: 0.35")
    assert rows["validation"] == "loss 0.6000  (step 20)"
    assert rows["best"] == "loss 0.4000  (step 15)"
    assert rows["memory"] == "1.00 GiB at most" and rows["lr"] == "1.00e-03"
    assert rows["trained"] == "40 s, about 3 min left"  # 80 steps of 2 s


def test_a_resume_that_cuts_the_log(run):
    log = MetricsLog(run.path)
    run.steps(1, 30)
    run.append('{"step": 31, "train_')
    assert "torn" in said(run, log)["note"]
    run.log.write_text("".join(run.log.read_text().splitlines(keepends=True)[:20]))
    rows = said(run, log)
    assert rows["step"].startswith("20 of") and "torn" not in rows["note"]
    assert len(log.training) == 20


def test_a_loss_that_is_not_finite(run):
    run.steps(1, 5)
    run.steps(6, 8, train_loss=None, grad_norm=None)
    rows = said(run)
    assert rows["loss"].startswith("not finite") and rows["grad norm"] == "not finite"
    assert rows["curve"].endswith("xxx")


def test_silence_is_said_and_what_to_do(run):
    run.steps(1, 3)
    log, loaded = MetricsLog(run.path), load_run(run.path)
    assert silence(loaded, log) == ""
    for path in (run.log, run.path / "run.json"):
        os.utime(path, (time.time() - 90, time.time() - 90))
    assert "nothing written for 90 s" in silence(loaded, log)
    assert "same command continues it" in said(run)["note"]
    run.record(status="finished")
    os.utime(run.path / "run.json", (time.time() - 90, time.time() - 90))
    assert silence(load_run(run.path), log) == ""


def test_the_latest_of_the_machine_is_shown(run):
    run.steps(1, 2)
    assert "machine" not in said(run)
    line = {"step": 3, "train_loss": 1.0, "machine": {"cpu_share": 0.93, "process_share": 0.61}}
    line["machine"] |= {"data_share": 0.02, "memory_bytes": 2**30, "odd": "x"}
    with open(run.log, "a") as file:
        file.write(json.dumps(line) + "\n")
    run.steps(4, 5)
    assert said(run)["machine"] == ("CPU 93%  this process 61%  waiting for data 2%  1.00 GiB now")


def test_a_run_that_falls_silent_is_said_once(run, capsys, monkeypatch):
    monkeypatch.setattr("reports.watch.SILENT_SECONDS", 0.2)
    run.steps(1, 2)
    thread = threading.Timer(0.8, lambda: run.record(status="stopped"))
    thread.start()
    watch(run.path, every_seconds=0.05)
    thread.join()
    assert capsys.readouterr().out.count("nothing written for") == 1


def test_once_prints_the_state_and_returns(run, capsys):
    run.steps(1, 3)
    run.record(status="running", verdicts=["collapsed: all \x1b[2JA\x07"])
    watch(run.path, once=True)
    text = capsys.readouterr().out
    assert "collapsed: all [2JA" in text and "3 of 100" in text
    assert not any(ord(letter) < 32 and letter != "\n" for letter in text)


def test_it_follows_a_run_to_its_end(run, capsys):
    run.steps(1, 2)

    def train() -> None:
        for step in range(3, 7):
            time.sleep(0.1)
            run.steps(step, step)
        run.record(status="finished", exit_reason="all steps done")

    thread = threading.Thread(target=train)
    thread.start()
    watch(run.path, every_seconds=0.05)
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert sum("status" in line and "running" in line for line in lines) == 1
    assert any("finished" in line for line in lines[-12:])
    assert any(line.startswith("step 4 of 100") for line in lines)


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_an_ended_run_is_shown_once(run, status, capsys):
    run.steps(1, 4)
    run.record(status=status, exit_reason="why not")
    (run.path / "test/metrics").mkdir(parents=True)
    metrics = {"accuracy": 0.61, "accuracy_ci95": [0.54, 0.67], "broken_ci95": 3, "x_ci95": [1, 2]}
    (run.path / "test/metrics/metrics.json").write_text(json.dumps(metrics))
    watch(run.path)
    text = capsys.readouterr().out
    assert "0.6100  [0.5400, 0.6700]" in text and text.count("status") == 1
    assert " left" not in text


def test_a_terminal_gets_a_view_that_is_redrawn(run):
    """In a pseudo-terminal, as over SSH; Ctrl-C ends it without a word."""
    pty = pytest.importorskip("pty")
    pytest.importorskip("rich")
    run.steps(1, 40)
    code = "import sys; from pathlib import Path; from reports.watch import watch; "
    code += "watch(Path(sys.argv[1]), 0.2)"
    outside, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        cwd=PROJECT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    text = b""
    while b"41 of 100" not in text:
        text += os.read(outside, 4096)
        if b"40 of 100" in text and b"41" not in run.log.read_bytes().split(b'"step": ')[-1][:3]:
            run.steps(41, 41)
    process.send_signal(2)
    while process.poll() is None:
        try:
            text += os.read(outside, 4096)
        except OSError:  # closed with the process
            break
    assert process.wait(10) == 0
    assert b"Traceback" not in text and "█".encode() in text[text.index(b"41 of 100") :]
    os.close(outside)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        watch(tmp_path / "nothing")


def test_steps_in_all_are_known_from_the_record_or_the_epochs(run):
    loaded = load_run(run.path)
    assert total_steps(loaded, {"step": 10, "epoch": 0.2}) == 100
    assert total_steps(loaded, {"step": 10}) is None
    loaded.record["total_steps"] = 70
    assert total_steps(loaded, {"step": 10, "epoch": 0.2}) == 70
    recent = [{"step": 10, "seconds": 5.0}, {"step": 20, "seconds": 15.0}]
    assert seconds_left(recent, 70) == 50 and seconds_left(recent[:1], 70) is None


def test_a_sparkline_has_the_shape_of_its_values(monkeypatch):
    assert sparkline([1.0, 2.0, None, 8.0]) in ("▁▂x█", "_.x@")
    assert sparkline([1.0]) == "" and len(sparkline([float(i) for i in range(1000)])) <= 48
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert sparkline([0.0, 1.0]).isascii()


def test_clean_takes_control_characters_only():
    assert clean("a\x00\x1b[1mb\x9b\u202ec\ud800") == "a[1mbc"
    assert clean("tab\tline\nüß 漢字 🙂") == "tab\tline\nüß 漢字 🙂"


def test_a_run_of_a_sweep_is_followed_to_its_place(tmp_path, capsys):
    attempt = Writer(tmp_path / "o/attempts/1/arm/seed_0")
    (tmp_path / "o/claims/arm/seed_0").mkdir(parents=True)
    attempt.steps(1, 3)

    def publish() -> None:
        time.sleep(0.1)
        attempt.steps(4, 5)
        attempt.record(status="finished")
        (tmp_path / "o/arm").mkdir()
        os.rename(attempt.path, tmp_path / "o/arm/seed_0")

    thread = threading.Thread(target=publish)
    thread.start()
    watch(attempt.path, every_seconds=0.02)
    thread.join()
    last = capsys.readouterr().out.rpartition("seed_0\n")[2]
    assert "finished" in last and re.search(r"step +5", last)
