"""Which setting did it: contributions over a grid of settings × seeds, in runs made without
training."""

import itertools
import json
import math

import numpy as np
import pytest
import yaml
from conftest import PROJECT
from run_folders import write_run

import report
from benchmarks import effects as planted
from evaluation import comparisons, factorial
from evaluation.stats import Influence
from reports import effects

ROWS = 120


def rows_of(loss_change: float, seed: int, noise: float = 0.02) -> dict[str, list]:
    """A language model's rows of 50 targets; nats a target are 2 + the change, and some noise of
    the seed and of each row."""
    hard, own = np.random.default_rng(0), np.random.default_rng(1000 + seed)
    losses = 50 * (2 + loss_change + noise * own.normal() + 0.3 * hard.normal(size=ROWS))
    losses += 50 * 0.1 * own.normal(size=ROWS)
    return {
        "id": [f"r{number:03}" for number in range(ROWS)],
        "group": [f"g{number:03}" for number in range(ROWS)],
        "loss_sum": losses.tolist(),
        "num_targets": [50] * ROWS,
    }


def write_grid(folder, values, seeds, loss, plan=None):
    """A run a point and seed; loss(settings): what the point changes of it."""
    for number, point in enumerate(itertools.product(*values.values())):
        settings = dict(zip(values, point, strict=True))
        for seed in seeds:
            rows = rows_of(loss(settings), 97 * number + seed)
            out = folder / f"p{number}/seed_{seed}"
            write_run(out, rows, seed, settings=settings, script="run_5_models.py")
    if plan is not None:
        (folder / "sweep.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return str(folder)


def lines(found) -> dict[str, tuple[float, str]]:
    return {effects.name_of(x): (round(x.difference.value, 2), x.decision) for x in found.lines}


# ---------------------------------------------------------------------- what the weights are


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_contributions_add_up_to_the_whole_difference(k):
    draw = np.random.default_rng(k)
    values = draw.normal(size=2**k)

    def of(weights):
        return sum(weight * values[point] for point, weight in weights.items())

    whole = of(factorial.whole_difference(k))
    assert sum(of(factorial.contribution(i, k)) for i in range(k)) == pytest.approx(whole)
    parts = [of(factorial.contribution_of_ends(i, k)) for i in range(k)]
    assert sum(parts) + of(factorial.remainder(k)) == pytest.approx(whole)
    assert set(factorial.remainder(k)) <= set(factorial.end_points(k))


def test_a_contribution_is_its_mean_over_all_orders_of_changing_the_settings():
    k, values = 4, np.random.default_rng(0).normal(size=16)
    orders = list(itertools.permutations(range(k)))
    for i in range(k):
        steps = []
        for order in orders:
            before = sum(1 << j for j in order[: order.index(i)])
            steps.append(values[before | 1 << i] - values[before])
        weights = factorial.contribution(i, k)
        assert sum(w * values[p] for p, w in weights.items()) == pytest.approx(np.mean(steps))


def test_what_two_do_together_is_in_equal_parts_in_both():
    values = {p: 1.0 if p & 0b11 == 0b11 else 0.0 for p in range(8)}

    def of(weights):
        return sum(weight * values[point] for point, weight in weights.items())

    assert [of(factorial.contribution(i, 3)) for i in range(3)] == pytest.approx([0.5, 0.5, 0])
    pairs = [of(factorial.together(i, j, 3)) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairs == pytest.approx([1, 0, 0])
    assert of(factorial.where(0, 1, 0, 3)) == 0 and of(factorial.where(0, 1, 1, 3)) == 1


# -------------------------------------------------------------------------- what it says


def test_one_setting_of_three_did_it(tmp_path):
    grid = {"lr": [1e-4, 2e-4], "batch": [8, 32], "prompt": [False, True]}
    folder = write_grid(tmp_path, grid, range(5), lambda s: -0.3 * s["prompt"])
    found = effects.build_effects([folder])
    said = lines(found)
    assert said["prompt"][1] == "better" and said["prompt"][0] == pytest.approx(-0.3, abs=0.05)
    assert {word for name, (_, word) in said.items() if name != "prompt"} == {"undecided"}
    assert found.sentences[1].startswith("prompt false → true (-0.3")
    assert "did it; batch 8 → 32 -0.0" in found.sentences[1]
    bars = sum(line.difference.value for line in found.settings)
    assert bars == pytest.approx(found.total.difference.value, abs=1e-12)
    assert found.grid.seeds == list(range(5)) and found.settings[0].paired_seeds


def test_what_interacts_is_said_in_words(tmp_path):
    grid = {"batch": [8, 32], "prompt": [False, True]}
    folder = write_grid(tmp_path, grid, range(5), lambda s: -0.4 * s["prompt"] * (s["batch"] > 8))
    found = effects.build_effects([folder])
    said = lines(found)
    assert [said[name][1] for name in ("batch", "prompt", "batch × prompt")] == ["better"] * 3
    text = " ".join(found.sentences)
    assert "half of it in the contribution of each" in text
    assert "They matter only together: batch matters only with prompt=true (-0.4" in text
    assert "prompt matters only with batch=32" in text


def test_nothing_did_it_and_a_margin_says_that_it_is_the_same(tmp_path):
    grid = {"batch": [8, 32], "dropout": [0.0, 0.1]}
    folder = write_grid(tmp_path, grid, range(6), lambda s: 0.0)
    found = effects.build_effects([folder])
    assert {word for _, word in lines(found).values()} == {"undecided"}
    assert "None of the settings can be told to have done it." in found.sentences
    assert "Still possible" in found.details[0]
    wide = effects.build_effects([folder], margin=0.5)
    assert {word for _, word in lines(wide).values()} == {"the same"}
    for line in (*found.lines, *wide.lines):
        low, high = line.interval
        assert (low <= 0 <= high) == (not effects.is_called(line))


def test_ends_leave_a_remainder_with_an_interval_of_its_own(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    whole = {name: [0, 1] for name in names}

    def loss(s):
        return -0.3 * s["a"] - 0.4 * s["b"] * s["c"] * (1 - s["d"])

    write_grid(tmp_path / "all", whole, range(4), loss)
    ends = tmp_path / "ends"
    ends.mkdir()
    for point, settings in enumerate(itertools.product([0, 1], repeat=5)):
        if sum(settings) in (0, 1, 4, 5):
            (tmp_path / f"all/p{point}").rename(ends / f"p{point}")
    found = effects.build_effects([str(ends)])
    assert not found.grid.is_full and len(found.lines) == 11
    said = lines(found)
    assert said["a"][1] == "better" and "remainder" in said
    bars = [x for x in found.lines if x.kind in (effects.SETTING, effects.REMAINDER)]
    total = sum(line.difference.value for line in bars)
    assert total == pytest.approx(found.total.difference.value, abs=1e-12)
    assert not any(math.isnan(limit) for line in found.lines for limit in line.interval)
    assert "remainder" in found.as_text() and "a × the rest" in found.as_text()


def test_settings_that_change_together_are_one_line(tmp_path):
    for number, (lr, batch, norm) in enumerate(
        [(1, 8, "a"), (2, 32, "a"), (1, 8, "b"), (2, 32, "b")]
    ):
        for seed in range(3):
            settings = {"lr": lr, "batch": batch, "norm": norm}
            folder = tmp_path / f"p{number}/seed_{seed}"
            write_run(folder, rows_of(-0.2 * (lr - 1), 10 * number + seed), seed, settings=settings)
    found = effects.build_effects([str(tmp_path)])
    assert set(lines(found)) == {"batch + lr", "norm", "(batch + lr) × norm"}


def test_a_seed_that_diverged_counts_as_the_worst(tmp_path):
    grid = {"lr": [1e-4, 1e-2], "batch": [8, 32]}
    folder = write_grid(tmp_path, grid, range(4), lambda s: 0.0)
    for run in tmp_path.glob("*/seed_*"):
        if yaml.safe_load((run / "config.yaml").read_text())["lr"] == 1e-2:
            record = json.loads((run / "run.json").read_text())
            record |= {"status": "failed", "verdicts": ["diverged: the loss is NaN"]}
            (run / "run.json").write_text(json.dumps(record))
            for path in (run / "test/metrics").iterdir():
                path.unlink()
    found = effects.build_effects([folder])
    said = {effects.name_of(line): line.decision for line in found.lines}
    assert said == {"lr": "worse", "batch": "undecided"}
    text = found.as_text()
    assert "4 diverged" in text and "lr 0.0001 → 0.01 (diverged, worse, by ranks) did it" in text
    assert found.picture() is None
    json.dumps(found.as_json(), allow_nan=False)


def test_a_grid_that_is_not_whole_is_refused_with_what_is_missing(tmp_path):
    grid = {"lr": [1e-4, 1e-2], "batch": [8, 32]}
    folder = write_grid(tmp_path, grid, range(3), lambda s: 0.0)
    for run in (tmp_path / "p3").iterdir():
        (run / "test/metrics/predictions.csv").unlink()
    with pytest.raises(
        ValueError, match="no finished run with .*lr=0.01.*batch=32|batch=32, lr=0.01"
    ):
        effects.build_effects([folder])


def test_of_a_setting_with_three_values_two_are_named(tmp_path):
    grid = {"lr": [1e-4, 1e-3, 1e-2], "batch": [8, 32]}
    folder = write_grid(tmp_path, grid, range(3), lambda s: 0.0)
    with pytest.raises(ValueError, match="--levels lr=FROM,TO"):
        effects.build_effects([folder])
    found = effects.build_effects([folder], levels=effects.parse_levels(["lr=1e-2,1e-4"]))
    assert found.grid.factors[0].change in ("lr 0.01 → 0.0001", "batch 8 → 32")
    with pytest.raises(ValueError, match="no run has 5"):
        effects.build_effects([folder], levels={"lr": ["5", "0.01"]})


def test_the_plan_says_where_it_begins_and_what_is_not_counted(tmp_path):
    grid = {"batch": [8, 32], "prompt": [False, True]}
    raised = write_run(tmp_path / "raised", rows_of(0, 1), 1, metrics={"loss": 2.5})
    arms = {"p3": {"batch": 32, "prompt": True}, "p2": {}, "p1": {}, "p0": {}}
    plan = {"arms": arms, "explain": {"a": [str(raised)], "b": []}}
    folder = write_grid(tmp_path / "grid", grid, range(3), lambda s: -0.3 * s["prompt"], plan)
    found = effects.build_effects([folder])
    assert found.grid.name(0) in ("batch=32, prompt=true", "prompt=true, batch=32")
    assert lines(found)["prompt"][1] == "worse"
    assert f"raised the question as A, not counted: {raised}: loss 2.5000" in found.as_text()


def test_seeds_that_are_not_at_every_point_are_left_out(tmp_path):
    grid = {"batch": [8, 32], "prompt": [False, True]}
    folder = write_grid(tmp_path, grid, range(4), lambda s: 0.0)
    (tmp_path / "p0/seed_3/run.json").unlink()
    (tmp_path / "p0/seed_3/config.yaml").unlink()
    found = effects.build_effects([folder])
    assert found.grid.seeds == [0, 1, 2] and "left out: 3" in " ".join(found.notes)


def test_the_command_prints_draws_and_gives_json(tmp_path, capsys):
    grid = {"batch": [8, 32], "prompt": [False, True]}
    folder = write_grid(tmp_path, grid, range(3), lambda s: -0.3 * s["prompt"])
    report.main(["effects", folder])
    said = capsys.readouterr().out
    assert "prompt" in said and f"picture: {folder}/effects.png" in said
    assert (tmp_path / "effects.png").read_bytes()[:4] == b"\x89PNG"
    report.main(["effects", folder, "--json", "--margin", "0.1"])
    content = json.loads(capsys.readouterr().out)
    assert content["design"] == "full" and content["blocked"] and len(content["effects"]) == 3
    assert {"name", "kind", "difference", "low", "high", "verdict"} <= content["effects"][0].keys()
    total = sum(e["difference"] for e in content["effects"] if e["kind"] == "setting")
    assert total == pytest.approx(content["total"]["difference"])
    assert "effects" in (PROJECT / "report.py").read_text()


# ---------------------------------------------------------------------- the planted truths


def test_the_simulation_judges_as_contrast_does():
    case = planted.Case(3, "full", "one", "a seed moves all points")
    values, influences = planted.draw(case, 4, 1.0, 3, np.random.default_rng(0))
    index = np.arange(planted.GROUPS)
    for weights in case.lines().values():
        p, contrast = planted.p_values(values, influences, weights)
        for repeat in range(3):
            cells = [
                [
                    Influence(value, rows, np.full(planted.GROUPS, 1 / planted.GROUPS))
                    for value, rows in zip(*both, strict=True)
                ]
                for both in zip(values[repeat], influences[repeat], strict=True)
            ]
            found = comparisons.contrast(cells, list(weights), index, True, weighted=True)
            assert found.value == pytest.approx(contrast[repeat])
            assert found.p == pytest.approx(p[repeat])


@pytest.mark.parametrize("truth", ["none", "one", "two together"])
def test_planted_truths_are_found_and_nothing_else(truth):
    case = planted.Case(3, "full", truth, "a seed moves those of one prompt")
    line = planted.line_of(case, 400)
    assert float(line["false_low"]) <= 0.05
    if truth != "none":
        assert line["seeds"] == 6 and float(line["right_high"]) >= 0.8
