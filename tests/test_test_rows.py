"""ledger: who looked at which test rows, and what is left of the lead of the best."""

import shutil

import numpy as np
import pytest
from run_folders import classifier, write_run

import report
from benchmarks import race as simulated
from evaluation.winners import shrunk
from reports import ledger, packed


def arms(folder, strengths, seeds=3, **facts):
    for number, strength in enumerate(strengths):
        for seed in range(seeds):
            rows = classifier(200, strength, 100 * number + seed)
            settings = {"lr": 1e-4 * (number + 1)}
            write_run(folder / f"arm{number}/seed_{seed}", rows, seed, settings=settings,
                      metrics={"primary": "log_loss"}, **facts)  # fmt: skip
    return str(folder)


def test_runs_are_counted_by_the_rows_that_they_looked_at(tmp_path):
    path = arms(tmp_path / "a", [0.5, 0.5, 2.0])
    write_run(tmp_path / "a/arm0/tune/lr=1", classifier(200, 0.1, 7), 7)
    write_run(tmp_path / "a/apart", classifier(90, 0.1, 8), 8, settings={"lr": 0.5})
    write_run(tmp_path / "a/waits", None, 9, settings={"lr": 0.6})
    found = ledger.build_ledger([path])
    assert [(s.rows, len(s.runs), s.trials) for s in found.splits] == [(200, 10, 1), (90, 1, 0)]
    assert found.splits[0].best.settings == 3 and found.splits[1].best is None
    text = str(found)
    assert "(200): 10 runs looked, 1 of them trials of a tuning, 3 settings" in text
    assert "(90): 1 run looked" in text and "nothing was chosen by these rows" in text
    best = found.splits[0].best
    assert best.label == "arm2" and best.over_seeds and not best.higher_is_better
    # far better than the others: hardly anything of its lead is luck
    assert 0.9 * best.claimed < best.lead.expected < best.claimed
    assert best.lead.low < best.lead.expected < best.lead.high
    assert f"expect {best.mean - best.lead.expected:.2f}" in text
    as_json = found.as_json()["splits"][0]["best"]
    assert as_json["claimed"] == best.claimed and as_json["low"] == best.lead.low


def test_packed_runs_looked_as_well(tmp_path):
    path = arms(tmp_path / "a", [0.5, 0.5, 2.0])
    before = ledger.build_ledger([path]).as_json()
    packed.pack(tmp_path / "a")
    shutil.rmtree(path)
    assert ledger.build_ledger([path]).as_json() == before


def test_settings_that_are_alike_leave_the_best_no_lead(tmp_path):
    found = ledger.build_ledger([arms(tmp_path / "a", [1.0] * 9)]).splits[0].best
    assert found.lead.expected < 0.5 * found.claimed
    assert found.lead.low < 0 < found.lead.high
    one = ledger.build_ledger([arms(tmp_path / "b", [1.0] * 8, seeds=1)]).splits[0].best
    assert not one.over_seeds and "of these very models" in str(one)


def test_shrinking_is_by_the_share_of_the_spread_that_is_noise():
    # spread² = 4, of which a figure's own noise is 1: three quarters are real
    weights, error = [1 - 1 / 20] + [-1 / 20] * 19, np.sqrt(1 - 1 / 20)
    parts = [(w**2, 1e9) for w in weights]
    found = shrunk(3.0, 2.0, weights, parts, 0.0, 1e9)
    assert found.expected == pytest.approx(0.75 * 3)
    assert found.high == pytest.approx(3 + 1.96 * error, abs=1e-3)
    assert found.low == pytest.approx(3 - 3.0233 * error, abs=1e-3)  # of one in forty × 20
    assert shrunk(1.5, 0.9, weights, parts, 0.0, 1e9).expected == 0
    # the best one's seeds lie together by luck: those of all say more; apart, they count
    narrow, wide = ([(v * weights[0] ** 2, 2), *parts[1:]] for v in (0.01, 9.0))
    assert shrunk(3.0, 2.0, weights, narrow, 0.0, 1e9).high == pytest.approx(found.high, abs=0.1)
    assert shrunk(3.0, 2.0, weights, wide, 0.0, 1e9).high > found.high + 3


def test_the_lead_of_the_best_of_twenty_nulls_is_gone_and_the_interval_covers():
    """A small part of benchmarks/race.py, whose table is on the page."""
    line = simulated.best(np.zeros(20), 3, 0.25, repeats=250)
    assert float(line["claimed"]) > 1 and float(line["on_fresh_rows"]) == 0
    assert float(line["expected"]) < 0.3 * float(line["claimed"])
    assert float(line["false"]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)


def test_the_command_and_the_line_below_a_table(tmp_path, capsys):
    path = arms(tmp_path / "a", [0.5, 1.0, 2.0])
    report.main(["ledger", path])
    assert "the best of 3 settings is arm2: log_loss" in capsys.readouterr().out
    report.main(["table", path])
    assert "9 runs of 3 settings looked at these test rows" in capsys.readouterr().err
    report.main(["table", str(tmp_path / "a/arm0")])
    assert "looked" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no run that looked"):
        empty = tmp_path / "empty"
        empty.mkdir()
        report.main(["ledger", str(empty)])
