"""A sweep through submitit's local executor, whose time limit interrupts its jobs: each run is
published once, and all is as of a sweep that nobody interrupted.

    python -m pytest -s tests/long/test_scheduler.py      # needs submitit
"""

import json
import signal
import socket
import time
from pathlib import Path

import psutil
import yaml
from conftest import PROJECT
from many_sweeps import Machine, contents, prepare, published

PLAN = {
    "script": "fake.py",
    "seeds": 3,
    "pace": 0.5,
    "tune": {"lr": [0.1, 0.2]},
    "arms": {"one": {}, "two": {"freeze": "all"}},
}


def sweep(folder: Path, *words: str) -> Machine:
    machine = Machine(folder, "cluster", ["--config", "plan.yaml", "--out", "volume/o", *words])
    machine.start()
    return machine


def prepared(folder: Path) -> Path:
    folder.mkdir()
    prepare(folder)
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return folder


def test_jobs_that_are_interrupted_go_on_where_they_were(tmp_path):
    alone, folder = prepared(tmp_path / "alone"), prepared(tmp_path / "jobs")
    undisturbed = sweep(alone, "--jobs", "4")
    # a limit of 30 s, of which 10 are to save in; a run takes 6
    machine = sweep(folder, "--on", "local", "--local", "array=2", "time=0:30", "signal=10")
    assert machine.wait(60) == 0, machine.log.read_text()
    until = time.monotonic() + 400
    jobs = folder / "volume/o/jobs"
    while len(published(folder)) < 2 * (3 + 2):
        time.sleep(0.5)
        logs = "".join(path.read_text() for path in jobs.rglob("*log.*"))
        assert time.monotonic() < until, logs[-4000:]
    time.sleep(3)
    interrupted = logs.count("Calling checkpoint method")
    ends = (folder / "volume/o/claims").rglob("*.end")
    stopped = sum('"stopped"' in path.read_text() for path in ends)
    assert interrupted and stopped, logs[-4000:]
    machine = sweep(folder)  # the same command without --on has the table
    assert machine.wait(60) == 0, machine.log.read_text()
    places = published(folder)
    assert sorted(places) == sorted(set(places)) and len(places) == 2 * (3 + 2)
    print(f"\n{interrupted} interruptions, {stopped} runs that were stopped and went on")
    assert undisturbed.wait(300) == 0, undisturbed.log.read_text()
    got, wanted = contents(folder / "volume/o"), contents(alone / "volume/o")
    # but for checkpoints: one more is saved where a run was stopped
    got, wanted = (
        {n: x for n, x in files.items() if not n.startswith("jobs/") and "/step_" not in n}
        for files in (got, wanted)
    )
    assert got.keys() == wanted.keys()
    assert [name for name in got if got[name] != wanted[name]] == []


def test_the_signal_of_a_cluster_is_heard_through_torchrun(tmp_path, tiny_bert, pair_csv):
    """Slurm signals every process of a job: the sweep, torchrun, and the workers themselves."""
    prepare(tmp_path)
    plan = {"script": str(PROJECT / "run_2_appendprompt.py"), "seeds": [0], "processes": 2}
    plan |= {"model": str(tiny_bert), "data": str(pair_csv), "max_length": 64, "batch": 8}
    plan |= {"epochs": 40, "lr": 3e-3, "device": "cpu", "page": False, "precision": "fp32"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    words = ["--config", "plan.yaml", "--out", "volume/o"]
    machine = Machine(
        tmp_path, socket.gethostname(), words, SLURM_JOB_ID="7", ABLATE_STALE_SECONDS="60"
    )
    machine.start()
    attempt = tmp_path / "volume/o/attempts/1/runs/seed_0"
    until = time.monotonic() + 300
    while not list((attempt / "train/metrics").glob("metrics.jsonl")):
        assert time.monotonic() < until and machine.code is None, machine.log.read_text()
        time.sleep(0.1)
    time.sleep(1)
    everybody = psutil.Process(machine.process.pid)
    for process in [everybody, *everybody.children(recursive=True)]:
        process.send_signal(signal.SIGUSR2)
    assert machine.wait(60) == 128 + signal.SIGUSR2, machine.log.read_text()
    record = json.loads((attempt / "run.json").read_text())
    assert record["status"] == "stopped" and record["world_size"] == 2
    assert (attempt / f"train/weights/step_{record['steps']:08d}/manifest.json").exists()
    ends = list((tmp_path / "volume/o/claims").rglob("*.end"))
    assert json.loads(ends[0].read_text())["outcome"] == "stopped"
    machine.start()  # queued again, the same command
    assert machine.wait(300) == 0, machine.log.read_text()
    record = json.loads((tmp_path / "volume/o/runs/seed_0/run.json").read_text())
    assert record["status"] == "finished"
    assert [session["from_step"] for session in record["sessions"]][1] > 0
