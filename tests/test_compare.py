"""report.py compare, table and power: what they say of run folders, and that it is true."""

import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import PROJECT
from run_folders import classifier, write_run
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

import report as report_script
from evaluation import comparisons, metrics, planning
from reports import compare, compare_page, folder, table
from reports.arms import build_arms
from reports.predictions import load_predictions


@pytest.fixture
def report(capsys):
    """report.py as a user calls it; gives what it printed, also as its last words."""

    def call(*words: object, fails: bool = False) -> str:
        try:
            report_script.main(list(map(str, words)))
            failed, last = False, ""
        except SystemExit as ended:
            failed, last = True, str(ended)
        printed = capsys.readouterr()
        text = printed.out + printed.err + last
        assert failed == fails, text
        return text

    return call


def sentence(text: str, metric: str = "log_loss") -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{metric}, "))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of a weak and of a strong classifier, and three more of the weak one."""
    top = tmp_path_factory.mktemp("runs")
    for arm, strength, first in (("weak", 1.0, 0), ("again", 1.0, 3), ("strong", 2.0, 6)):
        for seed in range(3):
            rows = classifier(400, strength, first + seed)
            settings = {"lr": 3e-4 if arm == "strong" else 1e-4}
            write_run(top / arm / f"seed_{seed}", rows, seed=seed, settings=settings)
    return top


# --------------------------------------------------------------------------------- steps


def test_each_step_is_compared_with_the_one_before_it(runs, report):
    ladder = [runs / name for name in ("weak", "again", "strong")]
    said = report("steps", *ladder, "--metric=log_loss", "--columns=minutes,commit")
    lines = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()[2:5]]
    pairs = [compare.compare(build_arms(ladder[i : i + 2]), ["log_loss"]) for i in (0, 1)]
    found = [pair[0].difference for pair in pairs]
    raw = [difference.p for difference in found]
    for line, difference, level in zip(lines[1:], found, comparisons.levels(raw), strict=True):
        low, high = difference.interval(1 - level)
        assert metrics.with_interval(difference.value, low, high, "+") in line
    assert [line[-2] for line in lines[1:]] == [
        compare.show_p(p) for p in comparisons.corrected(raw)
    ]
    assert [line[-1] for line in lines] == ["-", "undecided", "better"]
    assert [line[1] for line in lines] == ["-", "nothing", "lr 0.0001 → 0.0003"]
    arms = build_arms(ladder)
    figure = compare._figure(arms[2], "log_loss").split()[0]  # a column has the digits of its best
    assert [cell for cell in lines[2] if cell.startswith(figure[:-1])]
    assert "corrected for 2 comparisons (Holm)" in said and "Two runs are two models" not in said


def test_a_folder_of_steps_is_read_in_the_order_of_names(runs, report, tmp_path):
    for name, arm in (("1_weak", "weak"), ("2_strong", "strong"), ("0_again", "again")):
        shutil.copytree(runs / arm / "seed_0", tmp_path / name / "seed_0")
    (tmp_path / "3_has_not_begun").mkdir()
    said = report("steps", tmp_path, "--markdown")
    names = re.findall(r"^\| (\d_\w+) ", said, re.MULTILINE)
    assert names == ["0_again", "1_weak", "2_strong"]
    assert "Two runs are two models" in said and "| better on these rows |" in said


def test_a_ladder_may_return_and_what_is_not_finished_is_left_out(runs, report, tmp_path):
    for number, arm in enumerate(("weak", "strong", "weak", "strong")):
        shutil.copytree(runs / arm, tmp_path / f"{number}_{arm}")
    (tmp_path / "2_weak/seed_1/test/metrics/predictions.csv").unlink()
    shutil.rmtree(tmp_path / "3_strong/seed_0/test")
    steps = [tmp_path / name for name in ("0_weak", "1_strong", "2_weak", "3_strong/seed_0")]
    said = report("steps", *steps, "--metric=accuracy")
    lines = [re.split(r"\s{2,}", line) for line in said.splitlines()]
    assert [line[:3] for line in lines if re.match(r"\d_", line[0])] == [
        ["0_weak", "-", "0, 1, 2"],
        ["1_strong", "lr 0.0001 → 0.0003", "0, 1, 2"],
        ["2_weak", "lr 0.0003 → 0.0001", "0, 2"],
    ]
    assert said.count("no test rows yet") == 2
    table = report("steps", *steps[:2], "--csv", "--metric=accuracy").splitlines()
    assert len(table) == 3 and table[0].startswith("step,what changed,seeds,accuracy,accuracy_low")


def test_what_is_no_ladder_is_refused(runs, report, tmp_path):
    assert "two steps or more" in report("steps", runs / "weak/seed_0", fails=True)
    shutil.copytree(runs / "weak", tmp_path / "ladder/0_weak")
    assert "two steps or more" in report("steps", tmp_path / "ladder", fails=True)
    write_run(tmp_path / "other/seed_0", classifier(100, 1.0, 0))
    said = report("steps", runs / "weak", tmp_path / "other", fails=True)
    assert "not compared: the test rows are not the same" in said
    said = report("steps", runs / "weak", runs / "again", "--metric=f2", fails=True)
    assert "no metric f2 in all of these runs, which have accuracy" in said


# ------------------------------------------------------------------------------- compare


def test_figures_from_predictions_equal_sklearn(runs):
    run = folder.load_run(runs / "weak/seed_0")
    rows = load_predictions(run)
    raw = classifier(400, 1.0, 0)
    p = np.column_stack([raw[f"p_{name}"] for name in ("A", "B", "tie")])
    assert rows.value("log_loss") == pytest.approx(sklearn_metrics.log_loss(raw["label"], p))
    f1 = sklearn_metrics.f1_score(raw["label"], raw["prediction"], average="macro")
    assert rows.value("f1_macro") == pytest.approx(f1)


def test_a_run_that_went_on_elsewhere_says_so(tmp_path, report):
    """A rented GPU vanished, the next one is another: each session counts, not the last alone."""
    here = {"device": "cuda", "device_name": "A100", "commit": "a" * 40, "versions": {"torch": "1"}}
    there = here | {"device_name": "T4", "versions": {"torch": "2"}}
    rows = classifier(100, 1.0, 0)
    write_run(tmp_path / "whole", rows, **there, sessions=[there])
    write_run(tmp_path / "parts", rows, **there, sessions=[here, there, there])
    write_run(tmp_path / "old", rows, **there)  # without a list of sessions
    older = {name: value for name, value in here.items() if name != "device_name"}
    write_run(tmp_path / "unnamed", rows, **there, sessions=[older, there])
    said = report("compare", tmp_path / "whole", tmp_path / "parts")
    lines = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    assert ["device_name", "T4", "A100 then T4"] in lines
    assert ["versions.torch", "2", "1 then 2"] in lines
    assert "The environment differs too (device_name, versions.torch)" in said
    said = report("compare", tmp_path / "whole", tmp_path / "unnamed")
    assert re.search(r"device_name +T4 +- then T4\n", said)
    same = report("compare", tmp_path / "whole", tmp_path / "old")
    assert "No setting, data or environment differs" in same


def test_an_arm_against_itself_is_not_separable_and_a_stronger_one_is_better(runs, report):
    asked = ("--metrics", "accuracy,log_loss,f1_macro")
    same = report("compare", runs / "weak", runs / "again", *asked)
    for metric in ("accuracy", "log_loss", "f1_macro"):
        said = sentence(same, metric)
        assert ": undecided. Still possible: better by up to " in said
        assert re.search(r"3 seeds an arm on 400 rows: a true difference of 0\.\d+ to", said)
    assert "No setting, data or environment differs" in same
    other = report("compare", runs / "weak", runs / "strong", *asked)
    assert "strong is better" in sentence(other, "accuracy")
    assert "strong is better" in sentence(other)  # lower is better there
    assert "weak is worse" in sentence(report("compare", runs / "strong", runs / "weak"))
    assert "corrected for 3 comparisons (Holm)" in other
    assert "lr" in other and "batch" not in other  # what differs, nothing else


def test_two_runs_are_two_models(runs, report):
    text = report("compare", runs / "weak/seed_0", runs / "strong/seed_0")
    assert "on these rows strong is better than weak" in sentence(text)
    text = report("compare", runs / "weak/seed_0", runs / "again/seed_0")
    assert "undecided on these rows" in sentence(text)
    assert "Two such models on 400 rows: a true difference of" in sentence(text)
    assert "3 or more an arm" in text


def test_seeds_given_one_by_one_are_pooled_by_settings(runs, tmp_path, report):
    for number, path in enumerate(sorted(runs.glob("[ws]*/seed_*"))):
        shutil.copytree(path, tmp_path / f"run_{number}")
    pooled = report("compare", *sorted(tmp_path.iterdir()))
    assert pooled.count("3 run(s)") == 2 and "is better" in pooled or "is worse" in pooled
    assert "lr=0.0003" in pooled
    by_lr = report("compare", *sorted(tmp_path.iterdir()), "--group-by", "lr")
    assert sentence(by_lr) == sentence(pooled)
    assert "has no such setting" in report("compare", tmp_path, "--group-by", "nosuch", fails=True)


def test_several_arms_are_corrected_together(runs):
    alone = compare.compare(build_arms([runs / "weak", runs / "again"]), ["accuracy"])
    arms = build_arms([runs / "weak", runs / "again", runs / "strong"])
    together = compare.compare(arms, ["accuracy", "log_loss"])
    assert len(together) == 4
    raw = [found.difference.p for found in together]
    assert [found.p for found in together] == comparisons.corrected(raw)
    assert alone[0].p == pytest.approx(raw[0])
    for found in together:
        low, high = found.interval
        assert (found.p < 0.05) == (low > 0 or high < 0) == (found.decision != "undecided")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split_fingerprint": "s2"}, "different splits"),
        ({"data_fingerprint": "d2"}, "different data"),
        ({"rows": classifier(300, 1.0, 1)}, "test rows are not the same"),
        ({"rows": classifier(400, 1.0, 1, rows_seed=9)}, "other labels"),
        ({"rows": classifier(400, 1.0, 1, per_group=2)}, "grouped otherwise"),
    ],
)
def test_other_rows_are_refused_and_compared_unpaired_on_demand(
    runs, tmp_path, change, reason, report
):
    rows = change.pop("rows", classifier(400, 1.0, 1))
    other = write_run(tmp_path / "other", rows, **change)
    refused = report("compare", runs / "weak/seed_0", other, fails=True)
    assert reason in refused and "--anyway" in refused
    text = report("compare", runs / "weak/seed_0", other, "--anyway")
    assert "on their own rows (unpaired)" in sentence(text) and reason in text


def test_pairing_is_worth_its_name(runs):
    """The same two models, paired and not: rows that are hard for both no longer count."""
    arms = build_arms([runs / "weak/seed_0", runs / "again/seed_0"])
    paired, apart = (compare.compare(arms, ["log_loss"], p)[0].difference for p in (True, False))
    assert paired.value == apart.value
    assert np.ptp(paired.interval()) < 0.8 * np.ptp(apart.interval())


def test_language_models_are_compared_by_token_or_by_character(tmp_path, report):
    draw = np.random.default_rng(0)
    targets, losses = draw.integers(20, 60, 200), draw.gamma(4, 1, 200)

    def rows(better: float, tokens: float) -> dict[str, list]:
        noisy = losses + draw.normal(0, 0.1, 200) - better
        return {
            "id": list(range(200)),
            "group": [n // 4 for n in range(200)],
            "loss_sum": (noisy * targets).tolist(),
            "num_targets": [int(t * tokens) for t in targets],
            "num_chars": [int(t * 4) for t in targets],
        }

    base = write_run(tmp_path / "base", rows(0.0, 1))
    better = write_run(tmp_path / "better", rows(0.2, 1))
    text = report("compare", base, better)
    assert "on these rows better is better" in sentence(text, "loss") and "perplexity" in text
    assert "nats_per_char" not in text  # of equal tokenizers the same comparison
    asked = report("compare", base, better, "--metrics", "nats_per_char,num_chars")
    assert sentence(asked, "nats_per_char") and "undecided" in sentence(asked, "num_chars")
    settings = {"vocab_size": 99}  # another tokenizer
    other = write_run(tmp_path / "other", rows(0.2, 1.5), settings=settings)
    text = report("compare", base, other)
    assert "loss, " not in text and "other is better" in sentence(text, "nats_per_char")
    assert "across tokenizers" in report("compare", base, other, "--metrics=loss", fails=True)


def test_regressions_are_compared_by_pearson_and_squared_error(tmp_path, report):
    draw = np.random.default_rng(0)
    label = draw.uniform(0, 5, 300)
    for name, noise in (("good", 0.5), ("bad", 1.5)):
        predicted = label + draw.normal(0, noise, 300)
        ids = list(range(300))
        rows = {"id": ids, "group": ids, "label": label.tolist(), "prediction": predicted.tolist()}
        write_run(tmp_path / name, rows)
        found = load_predictions(folder.load_run(tmp_path / name))
        assert found.value("pearson") == pytest.approx(np.corrcoef(label, predicted)[0, 1])
        assert found.value("spearman") == pytest.approx(scipy_stats.spearmanr(label, predicted)[0])
    text = report("compare", tmp_path / "bad", tmp_path / "good", "--metrics=pearson,mse,spearman")
    for metric in ("pearson", "mse", "spearman"):
        assert "good is better than bad" in sentence(text, metric)


def test_one_seed_run_three_times_is_one_seed(tmp_path, report):
    """Such runs differ by nothing, so that any difference between arms would look certain."""
    for arm, number in (("a", 1), ("b", 2)):
        for copy in range(3):
            write_run(tmp_path / arm / f"run_{copy}", classifier(200, 1.0, number), seed=0)
    text = report("compare", tmp_path / "a", tmp_path / "b")
    assert "on these rows" in sentence(text) and "same settings and seed: left out" in text
    assert "in two arms" in report("compare", tmp_path / "a", tmp_path, fails=True)


def test_one_group_is_no_evidence_and_few_are_said(tmp_path, report):
    few = classifier(50, 1.0, 0, per_group=5)
    a, b = (write_run(tmp_path / f"few_{n}", few, seed=n) for n in range(2))
    assert "Only 10 groups of rows" in report("compare", a, b)
    one_group = classifier(50, 1.0, 0) | {"group": ["g"] * 50}
    a, b = (write_run(tmp_path / name, one_group, seed=n) for n, name in enumerate("ab"))
    assert "all test rows are in one group" in report("compare", a, b, fails=True)
    blank = classifier(50, 1.0, 0) | {"group": [""] * 50}
    found = load_predictions(folder.load_run(write_run(tmp_path / "c", blank)))
    assert len(np.unique(found.groups)) == 50


def test_code_that_was_changed_but_not_committed_is_a_difference(tmp_path, report):
    for name in "ab":
        run = write_run(tmp_path / name, classifier(50, 1.0, ord(name)), dirty=True)
        (run / "diff.patch").write_text(f"+ changed in {name}")
    assert "diff.patch" in report("compare", tmp_path / "a", tmp_path / "b")


def test_odd_regressions_and_probabilities(tmp_path, report):
    draw = np.random.default_rng(0)
    label = np.round(draw.uniform(0, 5, 80), 2)
    ids = list(range(80))
    rows = {"id": ids, "group": ids, "label": label.tolist()}
    constant = write_run(tmp_path / "constant", rows | {"prediction": [2.37] * 80})
    whole = write_run(tmp_path / "whole", rows | {"prediction": label.round().tolist()})
    text = report("compare", constant, whole)
    assert "whole is better" in sentence(text, "pearson") and "+0.9" in text
    logits = classifier(50, 1.0, 0)
    logits["p_A"] = [3.0] * 50
    bad = write_run(tmp_path / "logits", logits)
    assert "no probabilities" in report("compare", bad, constant, fails=True)


def test_text_of_others_cannot_write_to_the_terminal(tmp_path, report):
    hostile = "collapsed \x1b[2J\x1b]0;owned\x07"
    run = write_run(tmp_path / "a", classifier(50, 1.0, 0), verdicts=[hostile])
    other = write_run(tmp_path / "b", classifier(50, 1.0, 1), settings={"model": hostile})
    assert "\x1b" not in report("compare", run, other) + report("table", run, other)


# ------------------------------------------------------------------------- broken folders


def test_broken_folders_are_said_and_never_a_stack_trace(runs, tmp_path, report):
    whole = runs / "weak/seed_0"
    torn = shutil.copytree(whole, tmp_path / "torn")
    with open(torn / "train/metrics/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train_l')
    assert "0.5000" in report("table", torn)
    running = shutil.copytree(whole, tmp_path / "running")
    shutil.rmtree(running / "test")
    record = json.loads((running / "run.json").read_text())
    (running / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert "still running, or killed" in report("table", running)
    assert "no test rows" in report("compare", whole, running, fails=True)
    future = shutil.copytree(whole, tmp_path / "future")
    (future / "run.json").write_text(json.dumps(record | {"schema_version": 7}))
    assert "later version" in report("compare", future, runs / "strong/seed_0")
    half = shutil.copytree(whole, tmp_path / "half")
    (half / "run.json").write_text('{"status": ')
    (half / "config.yaml").unlink()
    assert "run.json cannot be read" in report("table", half)
    nan = classifier(400, 1.0, 0)
    nan["p_A"][3] = math.nan
    bad = write_run(tmp_path / "bad", nan)
    assert "NaN" in report("compare", whole, bad, fails=True)
    twice = classifier(400, 1.0, 0)
    twice["id"][1] = twice["id"][0]
    assert "occurs twice" in report(
        "compare", whole, write_run(tmp_path / "twice", twice), fails=True
    )
    assert "no such folder" in report("table", tmp_path / "none", fails=True)
    (tmp_path / "empty").mkdir()
    assert "no run folder" in report("compare", tmp_path / "empty", whole, fails=True)
    assert "did you mean --columns" in report("table", whole, "--colums", "lr", fails=True)


def test_numbers_and_na_as_labels_stay_text(tmp_path):
    rows = {"id": [1, 2, 3, 4], "group": [1, 2, 3, 4], "label": ["NA", "0", "NA", "0"]}
    rows |= {"prediction": ["NA", "0", "0", "0"], "p_NA": [0.9, 0.2, 0.3, 0.4]}
    rows |= {"p_0": [0.1, 0.8, 0.7, 0.6]}
    found = load_predictions(folder.load_run(write_run(tmp_path / "run", rows)))
    assert found.value("accuracy") == 0.75
    plain = {name: rows[name] for name in ("id", "group", "label", "prediction")}
    plain |= {"label": [1, 0, 1, 0], "prediction": [1, 0, 0, 0]}  # classes as numbers
    found = load_predictions(folder.load_run(write_run(tmp_path / "plain", plain)))
    assert found.value("accuracy") == 0.75 and "log_loss" not in found.statistics


# --------------------------------------------------------------------- verdicts and designs


def test_a_margin_makes_the_same_and_says_when_it_was_chosen(runs, tmp_path, report):
    paths = (runs / "weak", runs / "again")
    text = report("compare", *paths, "--metrics=accuracy", "--margin", 0.2)
    assert ": the same, within 0.2." in sentence(text, "accuracy")
    assert "was chosen with the results at hand" in text
    narrow = report("compare", *paths, "--metrics=accuracy", "--margin", 0.05)
    assert re.search(r"undecided\. .* one of 0\.05 with \d+ to [\d,]+ seeds", narrow)
    assert "above 0" in report("compare", *paths, "--margin", 0, fails=True)
    for name in ("weak", "again"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "sweep.yaml").write_text("margin: 0.2\n")
    planned = report("compare", tmp_path / "weak", tmp_path / "again", "--metrics=accuracy")
    assert "the same, within 0.2" in planned and "0.2 was in the plan" in planned


def test_seeds_are_paired_where_the_plan_says_so_and_only_there(tmp_path, report):
    """A seed moves both arms alike: .03 is lost unpaired and called paired."""
    base = classifier(300, 1.0, 0)
    for arm, gain in (("a", 0.0), ("b", 0.02)):
        for seed in range(3):
            rows = {name: list(values) for name, values in base.items()}
            moved = 0.15 * (seed - 1) + gain + (0.002 * seed if arm == "b" else 0)
            p = np.array([rows[f"p_{name}"] for name in ("A", "B", "tie")]).T
            labels = np.array([("A", "B", "tie").index(label) for label in rows["label"]])
            p = p * np.exp(moved * np.eye(3)[labels])
            p /= p.sum(axis=1, keepdims=True)
            rows |= {f"p_{name}": p[:, k].tolist() for k, name in enumerate(("A", "B", "tie"))}
            write_run(tmp_path / arm / f"seed_{seed}", rows, seed=seed)
    arms = (tmp_path / "a", tmp_path / "b")
    assert ": undecided." in sentence(report("compare", *arms))
    (tmp_path / "sweep.yaml").write_text("paired: true\n")
    said = sentence(report("compare", *arms))
    assert "b is better" in said and re.search(r"Paired by seed, r \+0\.9\d|r \+1\.00", said)
    (tmp_path / "sweep.yaml").write_text("paired: [unclosed")
    broken = report("compare", *arms)
    assert ": undecided." in sentence(broken) and "sweep.yaml cannot be read" in broken


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """prompt × batch, three seeds each: the prompt matters, the batch more."""
    top = tmp_path_factory.mktemp("grid")
    for prompt, batch in ((0, 2), (0, 32), (1, 2), (1, 32)):
        for seed in range(3):
            strength = 1.0 + 0.4 * prompt + (0.8 if batch == 32 else 0)
            rows = classifier(400, strength, 17 * prompt + batch + seed)
            settings = {"batch": batch, "append_prompt": bool(prompt)}
            write_run(top / f"p{prompt}_b{batch}/seed_{seed}", rows, seed=seed, settings=settings)
    return top


def test_a_grid_is_blocked_by_the_other_factor(grid, report):
    text = report("compare", grid, "--group-by", "append_prompt")
    assert "(in each of 2 blocks: batch=2; batch=32)" in sentence(text)
    assert "append_prompt=True is better" in sentence(text)
    assert "differ in more than the seed" not in text and "cannot say" not in text
    found = compare.build_report([str(grid)], ["append_prompt"]).judged[0]
    pooled = compare.compare(build_arms([str(grid)], ["append_prompt"]))[0]
    assert found.difference.value == pytest.approx(pooled.difference.value)
    assert found.difference.error < 0.7 * pooled.difference.error
    assert found.difference.freedom > 4


def test_each_contrast_is_judged_by_what_differs_in_it(grid, report):
    arms = [grid / name for name in ("p0_b2", "p0_b32", "p1_b2", "p1_b32")]
    text = report("compare", *arms)
    told = [line for line in text.splitlines() if "cannot say which" in line]
    assert told == [
        "p1_b32 against p0_b2: 2 settings differ (append_prompt, batch): their difference cannot "
        "say which of them did it."
    ]
    assert "The arms are a grid of append_prompt × batch: --group-by append_prompt" in text
    three = report("compare", *arms[:3])
    assert "cannot say" not in three and "are a grid" not in three


def test_what_a_grid_lacks_is_said(grid, tmp_path, report):
    for name in ("p0_b2", "p0_b32", "p1_b2"):
        shutil.copytree(grid / name, tmp_path / name)
    text = report("compare", tmp_path, "--group-by", "append_prompt")
    assert "append_prompt=False has batch=32: left" in text
    shutil.rmtree(tmp_path / "p0_b2")
    text = report("compare", tmp_path, "--group-by", "append_prompt")
    assert "share no other settings" in text


def test_responses_decide_where_they_were_trained(report):
    """The committed example that had the opposite verdict: all tokens differ, responses do not."""
    paths = [PROJECT / f"docs/results/alpaca/{name}" for name in ("full", "lora")]
    text = report("compare", *paths)
    assert "undecided on these rows" in sentence(text, "response_loss")
    assert not any(line.startswith("loss, ") for line in text.splitlines())
    asked = report("compare", *paths, "--metrics=loss")
    assert "full is better" in sentence(asked, "loss") or "lora is worse" in sentence(asked, "loss")


def test_the_declared_metric_decides(tmp_path, report):
    for name, strength in (("a", 1.0), ("b", 2.0)):
        metrics = {"primary": "accuracy", "accuracy": 0.5}
        write_run(tmp_path / name, classifier(200, strength, 1), metrics=metrics)
    text = report("compare", tmp_path / "a", tmp_path / "b")
    assert sentence(text, "accuracy") and "\nlog_loss, " not in text
    beside = text[text.index("without a verdict") :]
    assert "log_loss" in beside and "f1_macro" in beside
    assert "corrected" not in text  # one comparison, however many figures stand beside it


def test_json_says_what_the_text_says(runs, report):
    paths = (runs / "weak", runs / "again", runs / "strong")
    text, found = report("compare", *paths), json.loads(report("compare", *paths, "--json"))
    assert found["schema"] == 1 and [a["label"] for a in found["arms"]] == [
        "weak", "again", "strong"]  # fmt: skip
    judged = [each for each in found["comparisons"] if each["judged"]]
    assert [each["verdict"] for each in judged] == ["undecided", "better"]
    assert all(each["sentence"] in text for each in judged)
    assert {each["metric"] for each in found["comparisons"]} == {"log_loss", "accuracy", "f1_macro"}
    steps = json.loads(report("steps", *paths, "--json"))["steps"]
    assert [step["changed"] for step in steps] == ["nothing", "lr 0.0001 → 0.0003"]
    lines = json.loads(report("table", runs, "--json"))["lines"]
    assert len(lines) == 3 and len(lines[0]["val_loss"]) == 3


def test_notes_are_short_and_said_once(tmp_path, report):
    long = "collapsed: log loss 1.1 is not below that of a constant answer, a lower --lr would help"
    for arm in "ab":
        for seed in range(3):
            rows = classifier(50, 1.0, seed + ord(arm))
            write_run(tmp_path / arm / f"seed_{seed}", rows, seed=seed, verdicts=[long])
    text = report("compare", tmp_path / "a", tmp_path / "b")
    assert text.count("collapsed") == 1 and text.count("note: 6 of 6 runs, ") == 1


def test_ten_runs_of_ten_thousand_rows_in_two_seconds(tmp_path):
    for number in range(10):
        rows = classifier(10_000, 1.0, number)
        write_run(tmp_path / "ab"[number // 5] / f"seed_{number % 5}", rows, seed=number % 5)
    started = time.process_time()  # as of a core that nobody else uses
    compare.report([str(tmp_path / "a"), str(tmp_path / "b")])
    assert time.process_time() - started < 2


# --------------------------------------------------------------------------------- table


def test_table_folds_seeds_and_shows_what_differs(runs):
    columns, lines = table.build_table(folder.load_runs([runs]))
    assert columns[0] == "run" and "lr" in columns and "batch" not in columns
    assert [line["seeds"].value for line in lines] == ["0, 1, 2"] * 3
    values = [0.5, 0.51, 0.52]
    cell = lines[0]["val_loss"]
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(values), scipy_stats.sem(values))
    assert (cell.value, cell.low, cell.high) == pytest.approx((np.mean(values), low, high))
    each = table.build_table(folder.load_runs([runs]), fold=False)[1]
    assert len(each) == 9


def test_table_columns_order_and_styles(runs, report):
    text = report("table", runs, "--columns", "run,lr,val_loss", "--sort=-lr", "--csv")
    head, first, *_ = text.splitlines()
    assert head.startswith("run,lr,val_loss,val_loss_low,val_loss_high")
    assert first.startswith("strong,0.0003,0.51")
    assert report("table", runs, "--markdown").splitlines()[0].startswith("| run")
    assert "<table>" in report("table", runs, "--html")
    assert "did you mean 'val_loss'" in report("table", runs, "--columns", "va_loss", fails=True)
    assert "--sort nosuch" in report("table", runs, "--sort", "nosuch", fails=True)


def test_a_table_fits_the_terminal_and_names_what_it_leaves_out(runs, report, monkeypatch):
    whole = report("table", runs, "--wide")
    for width in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = report("table", runs)  # with a note behind it
        text = "\n".join(line for line in text.splitlines() if "looked at these" not in line)
        assert max(map(len, text.splitlines())) <= width
        shown = text.splitlines()[0].split()
        left = text.partition("(--wide): ")[2].replace("\n", " ").split(", ")
        assert set(whole.splitlines()[0].split()) == {*shown, *map(str.strip, left)} - {""}
        if width < 100:  # what was asked for is shown whole
            names = "run,lr,val_loss,train_loss,minutes,seeds"
            assert report("table", runs, "--columns", names).splitlines()[0].split() == names.split(
                ","
            )


def test_a_table_shows_the_primary_figure_first_as_exactly_as_it_is_known(tmp_path, report):
    metrics = {"accuracy": 0.70123, "accuracy_ci95": [0.6, 0.8], "constant_accuracy": 0.5123}
    metrics |= {"log_loss": 0.61234, "log_loss_ci95": [0.6, 0.62], "primary": "log_loss"}
    run = write_run(tmp_path / "run", classifier(50, 1.0, 0), metrics=metrics)
    head, _, line, base = report("table", run).splitlines()[:4]
    assert head.split()[:3] == ["run", "log_loss", "accuracy"]
    assert "0.612 [0.600, 0.620]  0.70 [0.60, 0.80]" in line
    assert base.startswith("(without a model)") and "0.51" in base.split()


def test_table_of_interval_peak_memory_and_minutes(tmp_path, report):
    facts = {"peak_memory_bytes": 3 * 2**30, "seconds": 90.0}
    metrics = {"accuracy": 0.7, "accuracy_ci95": [0.6, 0.8], "perplexity": 12.5}
    run = write_run(tmp_path / "run", classifier(50, 1.0, 0), metrics=metrics, **facts)
    text = report("table", run, "--wide")
    assert "0.70 [0.60, 0.80]" in text and "3.00" in text and "1.5" in text
    assert "12.50" in text


def test_table_says_what_makes_a_line_again(tmp_path, report):
    words = ["run_2_appendprompt.py", "--data", "my rows.csv", "--out", "x", "--out=y", "--seed=0"]
    facts = {"command": words, "world_size": 2}
    run = write_run(tmp_path / "run", classifier(50, 1.0, 0), **facts)
    text = report("table", run, "--columns", "run,command", "--markdown")
    made = "torchrun --nproc_per_node=2 run_2_appendprompt.py --data 'my rows.csv' --seed=0"
    assert text.splitlines()[2] == f"| run | {made} |"


def test_trials_of_a_tuned_sweep_are_no_results(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "sweep")
    shutil.copytree(runs / "weak/seed_0", tmp_path / "sweep/weak/tune/lr=1")
    assert len(folder.find_runs(tmp_path / "sweep")) == 9
    assert len(folder.find_runs(tmp_path / "sweep/weak/tune")) == 1


def test_a_hundred_runs_in_three_seconds(tmp_path, report):
    for number in range(100):
        settings = {"lr": 1e-5 * (number // 5 + 1)}
        write_run(
            tmp_path / f"run_{number:03d}", None, seed=number % 5, settings=settings, steps=500
        )
    command = [sys.executable, str(PROJECT / "report.py"), "table", str(tmp_path), "--wide"]
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - started.ru_utime - started.ru_stime < 3
    assert len(done.stdout.splitlines()) == 22
    assert "and 99 more: finished, but without" in done.stderr  # said once


# --------------------------------------------------------------------------------- power


def test_power_answers_before_any_run(runs, report):
    text = report("power", "--difference", 0.02, "--disagreement", 0.2, "--accuracy", 0.65)
    rows = planning.rows_needed(planning.Design(), 0.02, math.sqrt(0.2 - 0.02**2))
    assert f"{rows:,}" in text and "unpaired" in text
    asked = ("--rows", 600, "--row-std", 0.5, "--seed-std", 0.01)
    smallest = [
        planning.detectable(planning.Design(3, 0.01, 0.5**2 / 600, 599, many)) for many in (1, 7)
    ]
    assert f"{smallest[0]:.4f}" in report("power", *asked)
    assert f"{smallest[1]:.4f}" in report("power", *asked, "--comparisons", 7)
    seeds = sorted((runs / "weak").iterdir())
    like = report("power", "--like", *seeds, "--difference", 0.05)
    assert "Smallest difference that 400 rows show" in like and "log_loss as in 3 runs" in like
    assert re.search(r"^3 +0\.\d\d to 0\.\d\d$", like, re.MULTILINE)  # a range, not one number
    table = json.loads(report("power", *asked, "--json"))["tables"][0]
    assert table["rows"][0] == ["3", f"{smallest[0]:.4f}"]
    assert "disagree on more rows" in report(
        "power", "--difference", 0.3, "--disagreement", 0.2, fails=True
    )
    assert "--difference, --rows" in report("power", fails=True)
    assert "runs of 2 settings" in report("power", "--like", runs / "weak", runs / "strong",
                                          fails=True)  # fmt: skip


def test_groups_are_not_called_rows(tmp_path, report):
    for seed in range(3):
        write_run(tmp_path / f"seed_{seed}", classifier(120, 1.0, seed, per_group=3), seed=seed)
    text = report("power", "--like", tmp_path, "--metric", "accuracy")
    assert "Smallest difference that 40 groups of rows show" in text


def test_yaml_settings_are_read_safely(tmp_path, report):
    run = write_run(tmp_path / "run", None)
    (run / "config.yaml").write_text("lr: !!python/object/apply:os.system ['touch hacked']")
    assert "config.yaml cannot be read" in report("table", run)
    assert not (tmp_path / "hacked").exists() and yaml.safe_load("lr: 1") == {"lr": 1}


def test_the_page_says_the_verdict_first_and_shows_forest_and_bands(runs, report):
    paths = [runs / name for name in ("weak", "again", "strong")]
    page = report("compare", *paths, "--html")
    assert page.lstrip().startswith("<!") and page.count("<svg") == 4  # three metrics, one band
    verdict = page.index("strong against weak")
    assert verdict < page.index("Differences") < page.index("What else differs")
    said = re.sub(r"\s+", " ", page)
    for result in compare.build_report([str(path) for path in paths]).judged:
        assert result.sentence.split(": ")[0] in said
    assert "band: from the lowest to the highest run" in said and "0.0003" in page
    hostile = "<script>alert(1)</script>"
    found = compare.build_report([str(path) for path in paths])
    found.arms[2].label = hostile
    assert hostile not in compare_page.html(found)
