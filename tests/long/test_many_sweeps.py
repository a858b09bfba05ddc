"""Three sweeps on one folder, killed or paused at random: each run is published once, and all is as
of one that nobody disturbed.

    DISTURBANCES=50 python -m pytest -s tests/long/test_many_sweeps.py

One has its clock three minutes off; one sees no locks and listings that are late. A kill or a pause
is of a sweep alone, whose scripts go on, or of its whole machine. Pauses are of up to three times
the silence after which others take over.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT
from many_sweeps import Machine, contents, prepare, published

DISTURBANCES = int(os.environ.get("DISTURBANCES", "50"))
SEED = int(os.environ.get("DISTURBANCE_SEED", "0"))
STALE = 2.0
PLAN = {
    "script": "fake.py",
    "seeds": 3,
    "pace": 0.2,
    "tune": {"lr": [0.1, 0.2]},
    "arms": {"one": {}, "two": {"freeze": "all"}, "three": {"freeze": "some"}},
}


def machines(folder: Path) -> list[Machine]:
    words = ["--config", "plan.yaml", "--out", "volume/o"]
    stale = {"ABLATE_STALE_SECONDS": str(STALE)}
    return [
        Machine(folder, "plain", words, **stale),
        Machine(folder, "early", words, FAKE_CLOCK="-180", **stale),
        Machine(folder, "bare", words, FAKE_NO_LOCKS="1", FAKE_LATE="1.0", **stale),
    ]


def one_sweep(folder: Path, draw: random.Random, wanted: int) -> int:
    """Three sweeps until all is done; how often they were disturbed."""
    folder.mkdir()
    prepare(folder)
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    three, paused, gone, count = machines(folder), {}, {}, 0
    try:
        for machine in three:
            machine.start()
        until = time.monotonic() + 900
        while any(machine.code != 0 for machine in three):
            assert time.monotonic() < until, "\n".join(m.log.read_text()[-2000:] for m in three)
            time.sleep(draw.uniform(0.2, 1.0))
            now = time.monotonic()
            for machine in three:
                if machine in paused and now > paused[machine]:
                    del paused[machine]
                    machine.send(signal.SIGCONT, children=True)
                elif machine not in paused and machine.code not in (None, 0):
                    assert machine.code == -signal.SIGKILL, machine.log.read_text()[-3000:]
                    if now > gone.setdefault(machine, now + draw.uniform(0, 2 * STALE)):
                        del gone[machine]
                        machine.start()  # the same command again
            alive = [m for m in three if m.code is None and m not in paused and m.children()]
            if alive and count < wanted:
                machine, whole = draw.choice(alive), draw.random() < 0.5
                count += 1
                if draw.random() < 0.5:
                    machine.send(signal.SIGSTOP, whole)
                    paused[machine] = now + draw.uniform(0.2, 3 * STALE)
                else:
                    machine.send(signal.SIGKILL, whole)
    finally:
        for machine in three:
            machine.end()
    return count


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder)
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    machine = Machine(folder, "alone", ["--config", "plan.yaml", "--out", "volume/o"])
    machine.start()
    assert machine.wait(300) == 0, machine.log.read_text()
    return contents(folder / "volume/o")


def test_sweeps_that_are_killed_and_paused_publish_each_run_once(tmp_path, undisturbed):
    draw, count, number, taken = random.Random(SEED), 0, 0, 0
    while count < DISTURBANCES:
        number += 1
        folder = tmp_path / f"sweep_{number}"
        count += one_sweep(folder, draw, min(25, DISTURBANCES - count))
        places = published(folder)
        assert sorted(places) == sorted(set(places)), "a run was published twice"
        assert len(places) == 3 * (3 + 2)
        claims = list((folder / "volume/o/claims").rglob("[2-9].json"))
        taken += len(claims)
        got = contents(folder / "volume/o")
        assert got.keys() == undisturbed.keys()
        assert [name for name in got if got[name] != undisturbed[name]] == []
    assert taken, "no run was ever taken over, and so nothing was tested"
    print(f"\n{count} kills and pauses in {number} sweeps; {taken} times a run was taken over")


def test_training_that_is_killed_and_paused_ends_bit_identical(tmp_path, tiny_bert, pair_csv):
    """Two machines, a script that trains, and its weights; each is killed or paused whole."""
    weights = {}
    for name in ("undisturbed", "disturbed"):
        folder = tmp_path / name
        folder.mkdir()
        prepare(folder)
        plan = {"script": str(PROJECT / "run_2_appendprompt.py"), "seeds": 2, "save_every": 5}
        plan |= {"model": str(tiny_bert), "data": str(pair_csv), "max_length": 64, "batch": 8}
        plan |= {"epochs": 12, "lr": 3e-3, "device": "cpu", "page": False, "precision": "fp32"}
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
        draw, count = random.Random(SEED), 0
        two = machines(folder)[:: 2 if name == "disturbed" else 3]
        try:
            for machine in two:
                machine.start()
            until = time.monotonic() + 900
            while any(machine.code != 0 for machine in two):
                assert time.monotonic() < until, "\n".join(m.log.read_text() for m in two)
                time.sleep(draw.uniform(1, 3))
                for machine in two if name == "disturbed" else []:
                    if machine.code is not None:
                        machine.code == 0 or machine.start()
                    elif machine.children() and count < DISTURBANCES / 5 and draw.random() < 0.3:
                        count += 1
                        number = draw.choice([signal.SIGSTOP, signal.SIGKILL])
                        machine.send(number, children=True)
                        time.sleep(draw.uniform(0, 3 * STALE))
                        machine.send(signal.SIGCONT, children=True)
        finally:
            for machine in two:
                machine.end()
        out = folder / "volume/o"
        files = ("train/weights/best/*.safetensors", "test/metrics/predictions.csv")
        weights[name] = {
            str(path.relative_to(out)): path.read_bytes()
            for pattern in files
            for path in sorted(out.glob(f"runs/seed_*/{pattern}"))
        }
        assert len(published(folder)) == 2 and len(weights[name]) >= 4
    assert count, "nothing was killed, and so nothing was tested"
    print(f"\n{count} kills and pauses of two machines that train")
    assert weights["disturbed"].keys() == weights["undisturbed"].keys()
    for name, content in weights["undisturbed"].items():
        assert weights["disturbed"][name] == content, name
