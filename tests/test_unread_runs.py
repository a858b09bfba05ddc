"""A run whose test rows cannot be read is named wherever runs are counted, not just left out."""

import itertools
import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from run_folders import classifier, write_run

from reports import effects, ledger, ranking
from reports.arms import Arm
from reports.folder import load_runs
from sweeps import gate
from sweeps.race import Race

UNREADABLE = "predictions.csv cannot be used"


def arm(folder: Path, seeds=range(3), strength: float = 1.0, **facts) -> Path:
    for seed in seeds:
        number = seed + sum(map(ord, folder.name))
        write_run(folder / f"seed_{seed}", classifier(120, strength, number), seed=seed, **facts)
    return folder


def tear(run: Path) -> None:
    """A probability that is none."""
    file = run / "test/metrics/predictions.csv"
    first, row, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, row.rpartition(",")[0] + ",nan", *others]) + "\n")


def test_power_names_what_it_does_not_take_its_figures_from(tmp_path, report):
    runs = arm(tmp_path / "x", range(5))
    tear(runs / "seed_4")
    write_run(tmp_path / "x/seed_5", None, seed=5, status="failed", verdicts=["diverged: NaN"])
    (tmp_path / "x/seed_5/test/metrics/metrics.json").unlink()
    text = report("power", "--like", runs)
    assert UNREADABLE in text and "x/seed_5: diverged" in text
    assert "the figures are those of 4 of 6 runs" in text and "as 4 runs show it" in text
    found = json.loads(report("power", "--like", runs, "--json"))
    assert any(UNREADABLE in note for note in found["notes"])


def test_power_takes_no_setting_for_a_seed(tmp_path, report):
    runs = arm(tmp_path / "x")
    write_run(runs / "seed_3", classifier(120, 2.0, 9), seed=3, settings={"lr": 1.0})
    assert "runs of 2 settings" in report("power", "--like", runs)


def test_a_table_says_where_a_line_counts_seeds_of_several_settings(tmp_path, report):
    runs = arm(tmp_path / "x")
    assert "seeds of other settings" not in report("table", runs)
    write_run(runs / "seed_3", classifier(120, 2.0, 9), seed=3, settings={"lr": 1.0})
    assert "seed_0: beside it, seeds of other settings (lr), which its line" in report(
        "table", runs
    )


def test_a_metric_that_one_of_the_runs_lacks_is_no_figure_of_them(tmp_path, report):
    runs = arm(tmp_path / "x")
    rows = classifier(120, 1.0, 7)
    rows = {name: values for name, values in rows.items() if not name.startswith("p_")}
    write_run(runs / "seed_3", rows, seed=3)
    text = report("power", "--like", runs, "--metric", "log_loss")
    assert "--metric log_loss: these runs have accuracy" in text


def test_the_best_is_not_chosen_among_settings_that_nobody_could_read(tmp_path):
    for lr in (1.0, 2.0, 3.0):
        arm(tmp_path / f"lr{lr:g}", strength=lr, settings={"lr": lr})
    for seed in range(3):
        tear(tmp_path / f"lr3/seed_{seed}")
    [split] = ledger.build_ledger([str(tmp_path)]).splits
    assert split.best.settings == 2 and UNREADABLE in str(split)
    assert "not among these settings, as their rows cannot be read: lr3" in str(split)
    for seed in range(3):
        tear(tmp_path / f"lr2/seed_{seed}")
    found = ledger.build_ledger([str(tmp_path)])
    assert found.splits[0].best is None and "fewer than two settings have rows" in str(found)
    assert UNREADABLE in found.as_json()["splits"][0]["notes"][0]
    arms = [Arm(f"lr{lr}", load_runs([str(tmp_path / f"lr{lr}")])) for lr in (1, 2, 3)]
    ranked, left_out = ranking.rankings(arms)
    assert not ranked and left_out[0] == "lr2 is in no ranking: its test rows cannot be read"


def test_effects_say_why_a_seed_is_not_at_every_point(tmp_path):
    for number, (lr, batch) in enumerate(itertools.product((1.0, 2.0), (8, 16))):
        arm(tmp_path / f"p{number}", range(4), settings={"lr": lr, "batch": batch})
    tear(tmp_path / "p2/seed_1")
    found = effects.build_effects([str(tmp_path)])
    assert found.grid.seeds == [0, 2, 3]
    assert any(UNREADABLE in note and "p2/seed_1" in note for note in found.notes)


def test_a_look_of_a_race_has_as_many_seeds_as_it_says(tmp_path):
    for label in ("base", "new"):
        arm(tmp_path / label, settings={"lr": float(len(label))})
    plan = {"paired": True, "race": {"max_seeds": 5}, "arms": {"base": {}, "new": {}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plan))
    tear(tmp_path / "new/seed_2")
    with pytest.raises(ValueError, match=f"new/seed_2: {UNREADABLE}"):
        Race(tmp_path, "base", ["new"], list(range(5))).look(3)
    assert not (tmp_path / "looks.jsonl").read_text()


def test_the_gate_names_runs_without_rows(tmp_path):
    base = arm(tmp_path / "base", settings={"lr": 1.0})
    new = arm(tmp_path / "new", range(10, 13), settings={"lr": 2.0})
    write_run(new / "seed_13", None, seed=13, settings={"lr": 2.0}, status="failed")
    given = Namespace(proposals=None, seeds=None, metric=None)
    answer = gate.gate(str(base), str(new), tmp_path / "loop.jsonl", given)
    for said in (str(answer.facts["notes"]), str(answer)):
        assert "new/seed_13 has no test rows: not counted" in said


def test_one_torn_run_stops_no_report_of_many(tmp_path, report):
    arm(tmp_path / "x")
    write_run(tmp_path / "y", classifier(120, 1.0, 9), metrics={"primary": ["log_loss"]})
    for words in (["table"], ["ledger"], ["audit"], ["site", "--output", tmp_path / "site"]):
        text = report(words[0], tmp_path, *words[1:])
        assert "its primary metric is no name" in text or words[0] == "site"
