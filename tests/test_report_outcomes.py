"""Seeds that diverged or collapsed are outcomes of tables and comparisons, never missing values."""

import csv
import io
import json

import pytest
from run_folders import classifier, write_run

from reports import compare, steps, table, watch
from reports.folder import load_run, load_runs
from reports.outcomes import counted, notes

METRICS = {"accuracy": 0.6, "accuracy_ci95": [0.5, 0.7], "log_loss": 0.9}
WHY = "the loss or its gradient stayed NaN or infinite for 5 steps, up to step 4"


def diverged(folder, seed=0, **facts):
    """A run whose loss was 2.5 when it diverged; without test rows."""
    run = write_run(folder, None, seed=seed, status="failed", exit_reason=f"Diverged: {WHY}",
                    verdicts=[f"diverged: {WHY}"], **facts)  # fmt: skip
    (run / "test/metrics/metrics.json").unlink()
    lines = [
        {"step": 1, "train_loss": 1.0, "lr": 1e-4},
        {"step": 2, "train_loss": 2.5, "lr": 1e-4},
        {"step": 2, "val_loss": 2.25},
        *({"step": step, "train_loss": None, "lr": 1e-4} for step in range(3, 8)),
    ]
    log = run / "train/metrics/metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def arm(folder, strength, lost=(), seeds=3, **facts):
    for seed in range(seeds):
        place = folder / f"seed_{seed}"
        if seed in lost:
            diverged(place, seed, settings=facts.get("settings", {}))
        else:
            rows = classifier(200, strength, seed)
            write_run(place, rows, seed=seed, metrics=METRICS, **facts)
    return folder


def test_a_table_counts_what_diverged(tmp_path):
    arm(tmp_path / "a", 1.0, settings={"lr": 1e-4})
    arm(tmp_path / "b", 1.0, lost=[1], settings={"lr": 1e-3})
    arm(tmp_path / "c", 1.0, lost=[0, 1, 2], settings={"lr": 1e-2})
    columns, lines = table.build_table(load_runs([tmp_path]))
    assert "verdicts" in columns
    a, b, c = lines
    assert a["verdicts"].value is None and a["accuracy"].text().startswith("0.6000")
    assert b["verdicts"].value == "1 diverged of 3" and b["accuracy"].text() == "0.6000 (2 of 3)"
    assert c["verdicts"].value == "3 diverged of 3" and c["accuracy"].text() == "diverged"
    assert c["train_loss"].text().startswith("2.5000")  # the loss that they had
    assert c["val_loss"].text().startswith("2.2500")
    rows = list(csv.DictReader(io.StringIO(table.render(columns, lines, "csv"))))
    assert rows[1]["accuracy_seeds"] == "2 of 3" and rows[2]["accuracy"] == "diverged"
    _, alone = table.build_table(load_runs([tmp_path]), ["accuracy"], fold=False)
    assert [line["accuracy"].text() for line in alone].count("diverged") == 4
    assert table.sort_lines(lines, "-accuracy")[-1] is c


def test_a_table_counts_what_collapsed_and_takes_it_into_the_mean(tmp_path):
    arm(tmp_path / "a", 0.0, verdicts=["collapsed: all A"])
    arm(tmp_path / "b", 1.0, verdicts=["overfitted: rose"], settings={"lr": 1e-3})
    _, (a, b) = table.build_table(load_runs([tmp_path]))
    assert a["verdicts"].value == "3 collapsed of 3" and b["verdicts"].value == "3 overfitted of 3"
    assert a["accuracy"].value == pytest.approx(0.6)


def test_a_comparison_with_a_diverged_seed_is_one_by_ranks(tmp_path):
    good, bad = arm(tmp_path / "good", 3.0), arm(tmp_path / "bad", 3.0, lost=[0, 2])
    text = compare.report([str(good), str(bad)], names=["accuracy"])
    assert "diverged 2 of 3 of bad, 0 of 3 of good" in text
    assert "seed_0 diverged with a training loss of 2.5000 at step 2" in text
    assert "validation loss of 2.2500 at step 2" in text
    assert "By ranks" in text and "undecided" in text and "(1 of 3 seeds)" in text
    assert "nan" not in text.lower().replace("nan or inf", "")
    assert "note: 2 of 6 runs, " in text and "failed:" not in text and "test rows" not in text


def test_six_seeds_that_diverge_are_worse(tmp_path):
    good = arm(tmp_path / "good", 3.0, seeds=6)
    bad = arm(tmp_path / "bad", 3.0, lost=range(6), seeds=6)
    (result,) = compare.compare(compare.build_arms([str(good), str(bad)]), ["accuracy"])
    assert result.p == pytest.approx(2 / 924) and result.decision == "worse"
    assert "bad is worse" in result.sentence and "differ by" not in result.sentence
    back = compare.compare(compare.build_arms([str(bad), str(good)]), ["log_loss"])[0]
    assert back.decision == "better"
    text = compare.report([str(bad), str(good)], names=["log_loss"])
    assert "6 diverged" in text


def test_two_runs_one_of_which_diverged(tmp_path):
    write_run(tmp_path / "a", classifier(100, 2.0, 0), metrics=METRICS)
    diverged(tmp_path / "b", settings={"lr": 1e-3})
    text = compare.report([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "diverged 1 of 1 of b, 0 of 1 of a" in text and "undecided" in text
    with pytest.raises(ValueError, match="all of these runs diverged"):
        compare.report([str(diverged(tmp_path / "c")), str(tmp_path / "b")])


def test_a_run_that_failed_otherwise_is_no_outcome(tmp_path):
    good, bad = arm(tmp_path / "good", 2.0), arm(tmp_path / "bad", 2.0)
    broken = write_run(bad / "seed_3", None, seed=3, status="failed", exit_reason="OSError: full")
    (broken / "test/metrics/metrics.json").unlink()
    text = compare.report([str(good), str(bad)], names=["accuracy"])
    assert "By ranks" not in text and "nothing to compare row by row" in text


def test_a_ladder_keeps_the_step_that_diverged(tmp_path):
    for name, lost in (("1_base", []), ("2_hot", [0, 1, 2]), ("3_cool", []), ("4_mixed", [1])):
        arm(tmp_path / name, 2.0, lost)
    text = steps.report([str(tmp_path)], "accuracy", None, "simple")
    line = {row.split()[0]: row for row in text.splitlines() if row[:1].isdigit()}
    assert "diverged" in line["2_hot"] and "(2 of 3)" in line["4_mixed"]
    assert "3_cool" in line and "nan" not in text.lower().replace("nan or inf", "")


def test_older_records_are_read_as_outcomes(tmp_path):
    run = diverged(tmp_path / "a", steps=7)
    record = json.loads((run / "run.json").read_text())
    old = {"verdicts": [], "exit_reason": "ValueError: row 0 has NaN or Inf: the model diverged"}
    (run / "run.json").write_text(json.dumps(record | old | {"steps": 7}))
    assert load_run(run).failures == ["diverged"] and counted([load_run(run)]) == "diverged"
    (run / "run.json").write_text(json.dumps(record | old))  # before the first step: of the data
    assert load_run(run).failures == []


def test_watch_and_notes(tmp_path):
    run = write_run(tmp_path / "a", classifier(50, 0.0, 0), verdicts=["collapsed: all \x1b[2JA"])
    look = watch.state(load_run(run), watch.MetricsLog(run))
    assert look[0] == ("status", "finished, but collapsed")
    assert watch._style(*look[0]) == "bold red"
    other = write_run(tmp_path / "b", classifier(50, 0.0, 0), verdicts=["collapsed: all B"])
    said = notes([load_run(run), load_run(other)])
    assert len(said) == 1 and said[0].startswith("note: 2 of 2 runs, ") and "\x1b" not in said[0]
