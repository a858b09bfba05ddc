"""gate: what is kept, what is refused, and what its ledger remembers."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from run_folders import write_run

import report
from benchmarks import race as simulated
from evaluation.investing import Terms, Wealth, is_shown
from sweeps import gate

ROWS = 60


def runs(folder: Path, seeds, loss: float = 2.0, **facts) -> str:
    """Runs of one setting, whose seeds spread by .01 nats; rows add next to nothing."""
    for seed in seeds:
        draw = np.random.default_rng([seed, len(folder.name)])
        level = loss + 0.01 * draw.normal()
        count = 20 + np.arange(ROWS) % 3
        sums = count * (level + 0.001 * draw.normal(size=ROWS))
        names = [f"r{row}" for row in range(ROWS)]
        rows = {"id": names, "group": names, "loss_sum": sums.tolist(),
                "num_targets": count.tolist(), "num_chars": count.tolist()}  # fmt: skip
        settings = {"lr": float(len(folder.name))} | facts.get("settings", {})
        more = {**facts, "settings": settings, "metrics": {"primary": "loss"}}
        write_run(folder / f"seed_{seed}", rows, seed, **more)
    return str(folder)


def ask(base: str, candidate: str, path: Path, **given) -> gate.Answer:
    terms = {"proposals": None, "seeds": None, "metric": None} | given
    return gate.gate(base, candidate, path, Namespace(**terms))


@pytest.fixture
def base(tmp_path):
    return runs(tmp_path / "b", range(10))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "loop.jsonl"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------- the wealth


def test_levels_spend_the_wealth_and_a_keep_brings_more():
    wealth = Wealth(Terms(proposals=20))
    levels = [wealth.bid() for _ in range(20)]
    assert sum(level / (1 - level) for level in levels) == pytest.approx(0.05 * 0.95)
    assert levels == pytest.approx([levels[0]] * 20) and wealth.left == pytest.approx(0)
    with pytest.raises(ValueError, match="all 20 proposals"):
        wealth.bid()
    wealth = Wealth(Terms(proposals=20))
    first = wealth.bid()
    wealth.won(first)
    assert wealth.left == pytest.approx(0.05 * 0.95 + 0.05)  # Foster & Stine 2008, section 3
    assert wealth.bid() > 2 * first


def test_half_of_the_groups_are_kept_back():
    shown = [is_shown(f"group {number}") for number in range(2000)]
    assert 0.45 < np.mean(shown) < 0.55 and is_shown("group 1") == shown[1]


def test_noise_chosen_from_history_is_not_kept_and_a_gain_is():
    """A small part of benchmarks/race.py, whose table is on the page."""
    terms = Terms(proposals=60)
    for policy in simulated.POLICIES:
        kept, _, _ = simulated.loops(policy, 1.0, count=200, terms=terms)
        assert kept.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    # the same loop with nothing kept back keeps what was lucky on these rows
    many = Terms(proposals=200)
    kept, _, _ = simulated.loops("variants of the best", 1.0, count=60, terms=many, blind=False)
    assert kept.mean() > 0.15
    _, found, seeds = simulated.loops("at random", 0.0, gain=5.0, count=100, terms=terms)
    assert found.mean() > 0.9 and seeds < 5
    # real seeds on real rows
    kept, found, seeds = simulated.loops_of_bank(0.3, count=30, terms=terms)
    assert kept.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 30) and found.mean() > 0.8 and seeds < 5


# --------------------------------------------------------------------------- the verdicts


def test_a_change_is_kept_on_fresh_seeds_and_becomes_the_base_on_others(base, path, tmp_path):
    better = runs(tmp_path / "better", range(10, 13), 1.9)
    first = ask(base, better, path)
    assert (first.verdict, first.exit) == ("undecided", 2)
    assert first.facts["next_seeds"] == list(range(13, 20))
    runs(tmp_path / "better", range(13, 20), 1.9)
    kept = ask(base, better, path)
    assert (kept.verdict, kept.exit) == ("keep", 0), kept.why
    assert kept.facts["proposal"] == 1 and "lr 1 → 6" in kept.facts["changed"]
    assert kept.facts["base_seeds"] == list(range(20, 30))
    assert kept.facts["next_seeds"] == [30, 31, 32]
    assert kept.facts["kept_back"]["rows"] + kept.facts["shown"]["rows"] == ROWS
    assert ask(base, better, path).verdict == "keep" and len(lines(path)) == 3
    # the base of before is none any more, and the seeds that were lucky are not fresh
    other = runs(tmp_path / "another", range(20, 23), 1.9)
    assert "it is the base now" in ask(base, other, path).why
    assert "needs fresh ones, from 20 on" in ask(better, other, path).why
    anew = tmp_path / "anew!!"  # the same settings
    again = ask(runs(anew, range(30, 36), 1.9), other, path)
    assert again.verdict in ("discard", "undecided") and again.facts["proposal"] == 2
    assert again.facts["level"] > 2 * kept.facts["level"]


def test_what_is_no_better_is_discarded_early_and_for_good(base, path, tmp_path):
    worse = runs(tmp_path / "worse", range(10, 13), 2.1)
    found = ask(base, worse, path)
    assert (found.verdict, found.exit) == ("discard", 1)
    assert found.facts["next_seeds"] == [13, 14, 15] and found.facts["proposals_left"] == 499
    runs(tmp_path / "worse", range(13, 20), 1.0)  # more seeds do not open it again
    assert "settled" in ask(base, worse, path).why and len(lines(path)) == 2


def test_a_candidate_that_comes_again_continues_its_test(base, path, tmp_path):
    level, seen = None, []
    for seeds in (range(10, 12), range(12, 14), range(14, 17), range(17, 20)):
        found = ask(base, runs(tmp_path / "better", seeds, 1.9), path, seeds=10, proposals=40)
        seen.append(found.verdict)
        level = level or found.facts["level"]
        assert found.facts["level"] == level and found.facts["proposal"] == 1
    assert seen == ["undecided"] * 3 + ["keep"]
    assert [len(line["seeds"]) for line in lines(path)[1:]] == [2, 4, 7, 10]
    for shown in lines(path)[1:-1]:  # a loop is not told of what decides
        assert "kept_back" not in shown


def test_a_diverged_seed_is_an_outcome(base, path, tmp_path):
    better = tmp_path / "better"
    runs(better, range(10, 12), 1.5)
    lost = write_run(better / "seed_12", None, 12, status="failed", settings={"lr": 6.0},
                     verdicts=["diverged: the loss is NaN"])  # fmt: skip
    (lost / "test/metrics/metrics.json").unlink()
    found = ask(base, str(better), path)
    assert found.verdict == "discard" and "1 of 3 seeds diverged" in found.why


@pytest.mark.parametrize(
    "case, message",
    [
        ("same", "another seed is no change"),
        ("shared", "a candidate has seeds of its own"),
        ("used", "was used before: fresh ones begin with 13"),
        ("rows", "the test rows are not the same"),
        ("base", "it changes by a keep alone"),
        ("mixed", "differ in more than the seed"),
        ("terms", "the ledger began with 500"),
        ("gone", "was counted, and is not there"),
        ("many", "the ledger's terms are 10"),
        ("nothing", "no such folder"),
        ("foreign", "does not begin with the terms"),
        ("two", "the base has 2 seeds"),
    ],
)
def test_what_is_no_fair_test_is_refused(base, path, tmp_path, case, message):
    first = runs(tmp_path / "better", range(10, 13), 1.9)
    assert ask(base, first, path).verdict == "undecided"
    before = path.read_bytes()
    other, terms = tmp_path / "another", {}
    candidate = runs(other, range(20, 23))
    if case == "same":
        candidate = runs(tmp_path / "c", range(20, 23))
    elif case == "shared":
        candidate = runs(other, range(9, 12))
    elif case == "used":
        candidate = runs(tmp_path / "third one", range(12, 15))
    elif case == "rows":
        for file in other.glob("*/test/metrics/predictions.csv"):
            file.write_text("".join(file.read_text().splitlines(True)[:-1]))
    elif case == "base":
        base = runs(tmp_path / "b", [50])
    elif case == "mixed":
        runs(other, [23], settings={"lr": 7.5})
    elif case == "terms":
        terms = {"proposals": 7}
    elif case == "gone":
        candidate = first
        import shutil

        shutil.rmtree(tmp_path / "better/seed_10")
    elif case == "many":
        candidate = runs(other, range(20, 31))
    elif case == "nothing":
        candidate = str(tmp_path / "nowhere")
    elif case == "foreign":
        path.write_text('{"n": 1}\n')
        before = path.read_bytes()
    elif case == "two":
        base = runs(tmp_path / "2", range(40, 42))
    found = ask(base, candidate, path, **terms)
    assert (found.verdict, found.exit) == ("not comparable", 3) and message in found.why
    assert path.read_bytes() == before


def test_few_groups_cannot_be_halved(path, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "FEWEST_GROUPS", 40)
    base = runs(tmp_path / "b", range(10))
    assert "too few" in ask(base, runs(tmp_path / "better", range(10, 13)), path).why


def test_proposals_end(base, path, tmp_path):
    for number in range(2):
        seeds = range(10 + 3 * number, 13 + 3 * number)
        assert ask(base, runs(tmp_path / f"no{'o' * number}", seeds), path, proposals=2).exit < 3
    last = ask(base, runs(tmp_path / "nooooo", range(20, 23)), path)
    assert "all 2 proposals" in last.why and last.exit == 3


# ------------------------------------------------------------------------- for programs


def test_exit_codes_are_answers_and_errors_are_3(base, path, tmp_path, capsys):
    worse = runs(tmp_path / "worse", range(10, 13), 2.1)
    words = ["gate", base, worse, "--ledger", str(path), "--json"]
    with pytest.raises(SystemExit) as ended:
        report.start(words)
    answer = json.loads(capsys.readouterr().out)
    assert ended.value.code == answer["exit"] == 1 and answer["verdict"] == "discard"
    assert answer["shown"]["difference"] > 0.05 and "kept_back" not in answer
    text = "".join(path.read_text().splitlines(True)[1:]).replace('"base_seeds"', '"seeds_of"')
    for wrong in (["--sedes"], ["--seeds", "x"], ["--metric", "nats"]):
        with pytest.raises(SystemExit) as ended:
            report.start([*words, *wrong])
        assert ended.value.code == 3
    path.write_text(path.read_text().splitlines(True)[0] + text)  # a ledger that was edited
    with pytest.raises(SystemExit) as ended:
        report.start(["gate", base, runs(tmp_path / "other", range(20, 23)), *words[3:]])
    assert ended.value.code == 3


def test_two_loops_share_one_wealth(base, path, tmp_path):
    ends = [
        runs(tmp_path / name, range(first, first + 3), 2.1)
        for name, first in (("one", 20), ("three", 30), ("eleven", 40))
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "report.py", "gate", base, end, "--ledger", str(path)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
        )
        for end in ends
    ]
    assert [p.wait(timeout=120) for p in processes] == [1, 1, 1]
    assert sorted(line["proposal"] for line in lines(path)[1:]) == [1, 2, 3]
    assert sum("gate" in line for line in lines(path)) == 1


@pytest.mark.parametrize("content", ["id,group,loss_sum,num_targets\n", "id\nr0\n", "", "\xff\xfe"])
def test_a_run_whose_rows_cannot_be_read_is_no_seed(base, path, tmp_path, content):
    candidate = runs(tmp_path / "candidate", range(20, 30), 1.9)
    rows = Path(candidate, "seed_23/test/metrics/predictions.csv")
    whole = rows.read_bytes()
    rows.write_bytes(content.encode("latin-1"))
    found = ask(base, candidate, path)
    assert found.verdict == "not comparable" and "seed_23" in found.why, found.why
    assert not path.exists()
    rows.write_bytes(whole)
    assert ask(base, candidate, path).verdict == "keep"


@pytest.mark.parametrize("name", ["seeds", "proposals"])
def test_terms_of_nothing_are_refused(base, path, tmp_path, name):
    found = ask(base, runs(tmp_path / "other", range(20, 23)), path, **{name: 0})
    assert found.why == f"--{name} 0: expected 1 or more"
