"""A rule that one report keeps is kept by all of them: which runs count, as what, and against whom;
where files may be written; what is said where a verdict's preconditions fail."""

import getpass
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from run_folders import classifier, write_run

from reports import bundle, card, compare, folder, ledger, packed, page, several, table
from reports.arms import group_runs
from reports.audit import audit_run
from reports.folder import load_run, load_runs
from reports.predictions import direction


def arm(place: Path, strength: float = 1.0, seeds=range(3), rows_seed: int = 0, **facts) -> Path:
    """Runs of one setting with test rows, as a sweep leaves them."""
    for seed in seeds:
        rows = classifier(150, strength, seed + int(10 * strength), rows_seed)
        own = {"accuracy": 0.5 + seed / 100, **facts.get("metrics", {})}
        settings = {"lr": strength, **facts.get("settings", {})}
        more = {**facts, "metrics": own, "settings": settings}
        write_run(place / f"seed_{seed}", rows, seed=seed, **more)
    return place


# -------------------------------------------------------------------- which runs count, as what


def test_a_run_that_was_made_twice_is_one_seed_everywhere(tmp_path, report):
    for name, seed in (("a", 0), ("b", 0), ("c", 0), ("d", 1)):
        metrics = {"accuracy": 0.5 + seed / 10}
        write_run(tmp_path / "x" / name, classifier(150, 1.0, seed), seed=seed, metrics=metrics)
    other = write_run(tmp_path / "y/a", classifier(150, 2.0, 5), seed=5, settings={"lr": 2.0})
    _, [line] = table.build_table(load_runs([str(tmp_path / "x")]), ["seeds", "accuracy"])
    assert line["seeds"].value == "0, 1" and line["accuracy"].value == pytest.approx(0.55)
    assert "the same settings and seed: left out" in report("table", tmp_path / "x")
    both = [tmp_path / "x", tmp_path / "y"]
    assert "2 run(s), the baseline" in report("compare", *both)
    best = ledger.build_ledger([str(tmp_path)]).splits[0].best
    assert best.settings == 2 and best.seeds == 1 and not best.over_seeds
    assert "log_loss as in 2 runs" in report("power", "--like", tmp_path / "x")
    # a seed of one source alone is no seed, and is not said to be all the same
    write_run(other.parent / "b", classifier(150, 2.0, 6), seed=5,
              settings={"lr": 2.0, "seed_masks": 7})  # fmt: skip
    assert "same settings and seed, but for seed_masks: left out" in report("table", both[1])


def test_runs_of_one_setting_on_other_rows_are_no_seeds_of_it(tmp_path, report):
    first = arm(tmp_path / "x", seeds=range(3))
    for seed in (3, 4):  # the file was changed in between
        rows = classifier(150, 1.0, seed, rows_seed=1)
        write_run(first / f"seed_{seed}", rows, seed=seed, settings={"lr": 1.0},
                  data_fingerprint="d2", split_fingerprint="s2")  # fmt: skip
    assert [len(group) for group in group_runs(load_runs([str(first)]))] == [3, 2]
    shown = report("table", first, "--columns", "run,seeds")
    assert "data_fingerprint=d1" in shown and "data_fingerprint=d2" in shown
    # one seed on both is no repeat: the comparison says that the rows differ
    again = write_run(tmp_path / "y/again", classifier(150, 1.0, 0, 1), seed=0,
                      settings={"lr": 1.0}, data_fingerprint="d2")  # fmt: skip
    shutil.copytree(first / "seed_0", again.parent / "first")
    assert "have different data" in report("compare", again.parent, arm(tmp_path / "z", 2.0))
    # an older run, which does not say, stays with the others
    record = json.loads((first / "seed_1/run.json").read_text())
    del record["data_fingerprint"], record["split_fingerprint"]
    (first / "seed_1/run.json").write_text(json.dumps(record))
    assert [len(group) for group in group_runs(load_runs([str(first)]))] == [3, 2]


def test_a_mean_of_fewer_runs_than_the_line_has_says_of_how_many(tmp_path, report):
    arm(tmp_path / "x")
    place = tmp_path / "x/seed_1/test/metrics/metrics.json"
    place.write_text(json.dumps({"n": 150, "accuracy": 0.6, "judge": 40.0}))
    (tmp_path / "x/seed_2/test/metrics/metrics.json").write_text(json.dumps({"n": 150}))
    shown = report("table", tmp_path, "--columns", "accuracy,judge,n").splitlines()
    assert shown[2].split(") ")[0].endswith("(2 of 3") and "40.0000 (1 of 3)" in shown[2]
    assert shown[2].split()[-1] == "150"
    csv = report("table", tmp_path, "--columns", "accuracy", "--csv")
    assert csv.splitlines()[0].endswith("accuracy_seeds") and csv.splitlines()[1].endswith("2 of 3")


def test_only_a_sweeps_trials_are_trials(tmp_path, report):
    write_run(tmp_path / "tune/one", classifier(150, 1.0, 0))  # somebody's own name
    write_run(tmp_path / "tune/two", classifier(150, 2.0, 1), settings={"lr": 2.0})
    assert len(folder.find_runs(tmp_path)) == 2
    split = ledger.build_ledger([str(tmp_path)]).splits[0]
    assert split.trials == 0 and split.best.settings == 2
    out = tmp_path / "sweep"
    write_run(out / "arm/tune/lr=1", classifier(150, 1.0, 1000), settings={"lr": 3.0})
    (out / "sweep.yaml").write_text("tune: {lr: [1]}\n")  # whose seeds have not been run
    assert len(folder.find_runs(tmp_path)) == 2
    assert ledger.build_ledger([str(tmp_path)]).splits[0].trials == 1


def test_noise_of_two_settings_or_rows_or_of_a_cell_that_is_there_twice_is_refused(
    tmp_path, report
):
    def design(place: Path, **more) -> None:
        for start in range(2):
            for order in range(2):
                settings = {"seed_init": start, "seed_order": order} | more.get("settings", {})
                metrics = {"primary": "loss", "loss": 1 + 0.1 * start + 0.03 * order}
                facts = {**more, "settings": settings, "metrics": metrics}
                write_run(place / f"{start}-{order}/seed_0", None, **facts)

    design(tmp_path / "one")
    assert "loss of 4 runs" in report("noise", tmp_path / "one")
    assert "it has loss" in report("noise", tmp_path / "one", "--metric", "accuracy")
    design(tmp_path / "two/a")
    design(tmp_path / "two/b", settings={"lr": 3.0})
    assert "runs of 2 settings" in report("noise", tmp_path / "two")
    design(tmp_path / "rows")
    write_run(tmp_path / "rows/1-1/seed_0", None, data_fingerprint="d2",
              settings={"seed_init": 1, "seed_order": 1}, metrics={"loss": 1.0})  # fmt: skip
    assert "the data changed between" in report("noise", tmp_path / "rows")
    write_run(tmp_path / "one/1-1/seed_1", None, 1, metrics={"primary": "loss", "loss": 2.0},
              settings={"seed_init": 1, "seed_order": 1})  # fmt: skip
    assert "which one counts?" in report("noise", tmp_path / "one")


def test_a_best_whose_seeds_diverged_says_so(tmp_path, report):
    arm(tmp_path / "x", 1.0)
    arm(tmp_path / "y", 2.0)
    write_run(tmp_path / "y/seed_3", None, seed=3, settings={"lr": 2.0}, status="failed",
              verdicts=["diverged: the loss is NaN"])  # fmt: skip
    (tmp_path / "y/seed_3/test/metrics/metrics.json").unlink()
    assert "seeds of it that diverged are left out: 1" in report("ledger", tmp_path)
    found = json.loads(report("ledger", tmp_path, "--json"))["splits"][0]["best"]
    assert found["label"].endswith("y") and found["diverged"] == 1


def test_the_validation_loss_is_that_of_the_weights_that_are_tested(tmp_path):
    run = write_run(tmp_path / "run", None, settings={"test_with": "final"})
    with open(run / "train/metrics/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 4, "val_loss": 0.9}) + "\n")
    assert table.figures_of(load_run(run))["val_loss"] == 0.9
    run = write_run(tmp_path / "best", None, metrics={"tested_with": "best"})
    with open(run / "train/metrics/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 4, "val_loss": 0.9}) + "\n")
    assert table.figures_of(load_run(run))["val_loss"] == 0.5


# ------------------------------------------------------------------------- against whom, and how


def sweep_of(top: Path, **plan) -> Path:
    """The baseline is `warm`, which is the last by its name."""
    for label, strength in (("cold", 2.0), ("warm", 1.0)):
        arm(top / label, strength)
    content = {"arms": {"warm": {}, "cold": {}}, **plan}
    (top / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return top


def test_the_baseline_of_a_sweep_is_its_plans(tmp_path, report):
    top = sweep_of(tmp_path / "o")
    text = report("compare", top)
    assert text.startswith("warm: 3 run(s), the baseline") and "cold against warm" in text
    assert "the plan compares with" not in text
    grouped = report("compare", top, "--group-by", "lr")
    assert grouped.startswith("lr=1: 3 run(s), the baseline")
    turned = report("compare", top / "cold", top / "warm")
    assert "note: the plan compares with warm, not with cold" in turned


def test_a_site_says_that_the_baseline_has_no_rows(tmp_path, report):
    top = sweep_of(tmp_path / "o")
    for seed in range(3):
        (top / f"warm/seed_{seed}/test/metrics/predictions.csv").unlink()
    report("site", top, "--output", tmp_path / "site")
    text = (tmp_path / "site/index.html").read_text()
    assert "not compared: its baseline warm has no test rows" in text


def test_a_plan_that_pairs_says_where_it_cannot(tmp_path, report):
    top = sweep_of(tmp_path / "o", paired=True)
    assert "Paired by seed" in report("compare", top)
    shutil.rmtree(top / "cold/seed_2")
    arm(top / "cold", 2.0, seeds=[3])
    text = report("compare", top)
    assert "Not paired by seed as planned: the arms have other seeds." in text
    [found] = compare.build_report([str(top)]).judged
    assert not found.paired_seeds and "Not paired" in found.as_json()["sentence"]


def test_runs_with_other_primary_metrics_say_by_which_they_are_judged(tmp_path, report):
    one = arm(tmp_path / "one", 1.0, metrics={"primary": "accuracy"})
    other = arm(tmp_path / "other", 2.0, metrics={"primary": "log_loss"})
    text = report("compare", one, other)
    assert "differ (accuracy in one, log_loss in other): judged by accuracy" in text
    assert "primary metrics" not in report("compare", one, other, "--metrics", "log_loss")


def test_every_comparison_says_when_its_margin_was_chosen_and_refuses_none(tmp_path, report):
    top = sweep_of(tmp_path / "o", margin=0.01)
    given = ("--margin", "0.2")
    chosen, planned = "0.2 was chosen with the results at hand", "0.01 was in the plan"
    for words in (["compare"], ["compare", "--json"], ["compare", "--html"], ["steps"],
                  ["steps", "--json"], ["effects", "--json"]):  # fmt: skip
        name, *style = words
        assert chosen in " ".join(report(name, top, *style, *given).split()), words
        assert "expected a difference above 0" in report(name, top, *style, "--margin", "-1")
    for name in ("steps", "effects"):
        assert planned in " ".join(report(name, top).split())


def test_unpaired_arms_need_rows_of_their_own_and_each_is_looked_at_for_few_groups(
    tmp_path, report
):
    one = arm(tmp_path / "one", 1.0)
    small = write_run(tmp_path / "small/a", classifier(12, 1.0, 0), split_fingerprint="s2")
    assert "Only 12 rows" in report("compare", one, small.parent, "--anyway")
    for seed, rows in ((1, 90), (2, 80)):
        write_run(small.parent / f"b{seed}", classifier(rows, 1.0, seed), seed=seed)
    text = report("compare", one, small.parent, "--anyway")
    assert "its own runs have different test rows" in text


@pytest.mark.parametrize(
    "words, message",
    [
        ("--rows 500 --correlation 0.5", "needs --paired"),
        ("--rows 500 --metric accuracy", "of the runs of --like"),
        ("--like x --seed-std 0.1", "read from the runs of --like"),
        ("--like x --row-std 0.1", "read from the runs of --like"),
        ("--rows 500 --row-std 0.1 --disagreement 0.2", "give one of the two"),
        ("--like x --accuracy 0.6", "have their own"),
        ("--rows 500 --accuracy 0.6", "that show a --difference"),
    ],
)
def test_an_option_of_power_that_would_count_for_nothing_is_refused(words, message, report):
    assert message in report("power", *words.split())


def test_a_figure_is_better_the_same_way_for_all():
    assert direction("expected_calibration_error") == -1 and direction("f1_a") == 1


def test_a_page_does_not_take_unknown_rows_for_other_ones(tmp_path):
    known = write_run(tmp_path / "a", classifier(60, 1.0, 0))
    older = write_run(tmp_path / "b", classifier(60, 1.0, 1), data_fingerprint=None)
    other = write_run(tmp_path / "c", classifier(60, 1.0, 2), data_fingerprint="d2")
    for paths, differ in (([known, older], False), ([known, other], True)):
        said = [finding.text for finding in several.comparable(list(map(load_run, paths)))]
        assert any("did not have the same data" in text for text in said) == differ


# --------------------------------------------------------------------------- files of others


def test_nothing_is_written_where_it_would_hide_a_packed_folder(tmp_path, report):
    arm(tmp_path / "runs")
    packed.pack(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs")
    before = report("table", tmp_path / "runs")
    run = tmp_path / "runs/seed_0"
    for words in (
        ["card", run],
        ["card", tmp_path / "runs.zip/seed_0"],
        ["site", tmp_path / "runs", "--output", tmp_path / "runs/site"],
    ):
        assert "would lie in a packed folder" in report(*words), words
        assert report("table", tmp_path / "runs") == before
    with pytest.raises(ValueError, match="would lie in a packed folder"):
        page.write_whole(run / "report.html", b"")
    assert "card: " in report("card", run, "--output", tmp_path / "README.md")


def test_what_is_packed_inside_a_folder_is_packed_with_it(tmp_path, report):
    arm(tmp_path / "top/plain")
    arm(tmp_path / "top/inner", 2.0)
    packed.pack(tmp_path / "top/inner")
    shutil.rmtree(tmp_path / "top/inner")
    before = report("table", tmp_path / "top")
    report("pack", tmp_path / "top")
    shutil.rmtree(tmp_path / "top")
    assert report("table", tmp_path / "top") == before and "inner" in before


def test_a_folder_is_packed_from_inside_it(tmp_path, report, monkeypatch):
    arm(tmp_path / "top/plain")
    monkeypatch.chdir(tmp_path / "top")
    assert "packed: " in report("pack", ".")
    assert zipfile.is_zipfile(tmp_path / "top.zip")


def test_what_lies_beside_a_run_is_no_fault_of_it(tmp_path):
    top = tmp_path / "o"
    arm(top / "one", seeds=[0])
    attempt = write_run(top / "attempts/1/one/seed_1", None, seed=1, status="running")
    (top / "claims/one/seed_1").mkdir(parents=True)
    [run] = folder.find_runs(top)
    assert any("left out (sweep.py status)" in note for note in run.notes), attempt
    assert not any("left out" in problem for problem in audit_run(run).problems)


def test_what_cannot_be_read_is_not_said_to_agree(tmp_path):
    run = arm(tmp_path / "o", seeds=[0]) / "seed_0"
    (run / "run.json").write_bytes(b"\xff\xfe")
    audit = audit_run(load_run(run))
    assert "record" not in audit.checked and {"record", "files"} <= audit.open.keys()
    assert "no run.json that can be read" in audit.open["files"]
    assert any("run.json cannot be read" in problem for problem in audit.problems)


def test_weights_are_bundled_of_a_run_that_was_evaluated_and_of_a_suites_tasks(tmp_path, report):
    run = write_run(tmp_path / "run", classifier(60, 1.0, 0))
    write_run(run / "evaluations/rows", classifier(60, 1.0, 0), evaluated={"run": "run"})
    suite = write_run(tmp_path / "suite", None)
    task = write_run(suite / "cola", classifier(60, 1.0, 0))
    for place in (run, task):
        (place / "train/weights/best").mkdir(parents=True)
        (place / "train/weights/best/model.safetensors").write_bytes(bytes(10))
    words = ["--output", tmp_path / "one.zip", "--weights", "best", "--anyway"]
    assert "with best weights" in report("bundle", run, suite, *words)
    names = zipfile.ZipFile(tmp_path / "one.zip").namelist()
    assert sum(name.endswith("best/model.safetensors") for name in names) == 2
    shutil.rmtree(task / "train/weights")
    assert "suite: no train/weights/best to bundle" in report("bundle", run, suite, *words)


def test_the_name_of_a_user_changes_no_setting(tmp_path, report, monkeypatch):
    arm(tmp_path / "o/one", seeds=[0], settings={"note": "of data, by minilm"})
    (tmp_path / "o/sweep.yaml").write_text("arms: {one: {data: /home/alice/more/rows.csv}}\n")
    for name in ("data", "minilm", "alice"):
        monkeypatch.setattr(getpass, "getuser", lambda name=name: name)
        report("bundle", tmp_path / "o/one", "--output", tmp_path / "b.zip", "--anyway")
        config = packed.read_bytes(tmp_path / "b/seed_0/config.yaml").decode()
        assert yaml.safe_load(config)["data"] == "rows.csv", name
        assert yaml.safe_load(config)["model"] == "minilm"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert "bundle: " in report("bundle", tmp_path / "o/one", "--output", tmp_path / "b.zip",
                                "--anyway")  # fmt: skip
    assert bundle.user_name() == ""


# ---------------------------------------------------------------------------------- the card


def text_of(run: Path, *against: Path) -> str:
    return card.card_of(load_run(run), [str(path) for path in against])


def test_several_comparisons_of_a_card_share_the_five_percent(tmp_path):
    others = [arm(tmp_path / f"other_{i}", 1.0, seeds=[i]) / f"seed_{i}" for i in (1, 2, 3)]
    run = arm(tmp_path / "own", 1.5, seeds=[0]) / "seed_0"
    found = compare.build_report([*map(str, others), str(run)]).judged
    assert "corrected for 3 comparisons" in text_of(run, *others)
    alone = compare.build_report([str(others[0]), str(run)]).judged[0]
    assert f"p {compare.show_p(alone.p)}:" in text_of(run, others[0])
    assert len(found) == 3 and "corrected for" not in text_of(run, others[0])


def test_a_card_says_of_each_kind_of_run_what_is_true_of_it(tmp_path):
    intervals = {"accuracy": 0.6, "accuracy_ci95": [0.5, 0.7]}
    rows = classifier(60, 1.0, 0)
    best = write_run(tmp_path / "best", rows, metrics={**intervals, "tested_with": "best"})
    assert "60 test rows. The weights were chosen on validation." in text_of(best)
    assert "the rules of its time found no fault" in text_of(best)  # it has no verdict_rules
    final = write_run(tmp_path / "final", rows, metrics={**intervals, "tested_with": "final"})
    assert "no rows chose them" in text_of(final)
    facts = {"run": "best", "weights": "best", "trained_on": "old.csv", "data": "new.csv"}
    on_others = write_run(tmp_path / "evaluation", rows, metrics=intervals, evaluated=facts,
                          settings={"data": "new.csv"})  # fmt: skip
    said = text_of(on_others)
    assert "from `minilm` on `old.csv`" in said and "same source" not in said
    suite = write_run(tmp_path / "suite", None, metrics={"glue": 0.71, "missing": []})
    assert "| glue | 0.7100 | - |" in text_of(suite)
    half = {**intervals, "f1": 0.5, "f1_ci95": [None, 1]}
    torn = write_run(tmp_path / "torn", rows, metrics=half)
    assert "| accuracy | 0.60 | [0.50, 0.70] |" in text_of(torn) and "f1" not in text_of(torn)
    few = {**intervals, "primary": "log_loss", "log_loss": 0.9}  # in too few groups
    assert "| log_loss | 0.9000 | - |" in text_of(write_run(tmp_path / "few", rows, metrics=few))


def test_a_card_names_no_weights_that_the_run_did_not_start_from(tmp_path, monkeypatch):
    def said(name: str, **facts) -> str:
        return text_of(write_run(tmp_path / name, classifier(60, 1.0, 0), **facts))

    monkeypatch.chdir(tmp_path)
    theirs = {"settings": {"model": "org/model"}, "metrics": {"accuracy": 0.6}}
    assert "base_model: org/model" in said("hub", **theirs)
    own = said("own", **theirs, contents={"model": "0123456789abcdef"})
    assert "base_model" not in own and "from `org/model` on" in own
    (tmp_path / "org/model").mkdir(parents=True)
    assert "base_model" not in said("older", **theirs)
    (tmp_path / "org/model").rmdir()
    drawn = theirs | {"settings": {"model": "org/model", "init": "random"}}
    titles = {"script": "train_headlines.py", "settings": {"model": "org/model"}}
    for text in (said("drawn", **drawn), said("titles", **titles, metrics={"loss": 3.0})):
        assert "from random weights (`org/model`) on" in text and "base_model" not in text
        assert "started from: none, they were drawn at random" in text


def test_steps_name_the_arms_of_the_plan_that_are_none(tmp_path, report):
    top = sweep_of(tmp_path / "o", arms={"warm": {}, "between": {}, "cold": {}})
    assert "note: no run of between has ended: it is no step here" in report("steps", top)


def test_no_power_is_promised_where_no_spread_is_known(tmp_path, report):
    for seed in range(3):
        rows = classifier(60, 1.0, seed, per_group=60)
        write_run(tmp_path / f"seed_{seed}", rows, seed=seed)
    assert "no spread is known" in report("power", "--like", tmp_path)


def test_what_else_differs_is_said_beside_every_verdict(tmp_path, report):
    one, other = arm(tmp_path / "one", 1.0), arm(tmp_path / "other", 2.0, commit="another")
    said = "differ in commit, too, which may change figures"
    assert said in report("effects", one, other)
    assert said in text_of(one / "seed_0", other / "seed_1")
    report("site", tmp_path, "--output", tmp_path / "site")
    assert said in (tmp_path / "site/index.html").read_text()
    assert "The environment differs too (commit)" in report("compare", one, other)


def test_a_copy_beside_the_seeds_is_a_repeat_and_no_other_setting(tmp_path, report):
    one, other = arm(tmp_path / "o/one", 1.0), arm(tmp_path / "o/two", 2.0)
    shutil.copytree(one / "seed_0", one / "again")
    best = ledger.build_ledger([str(tmp_path)]).splits[0].best
    assert best.settings == 2 and best.seeds == 3
    assert "differ in more than the seed" not in report("steps", one, other)
    _, lines = table.build_table(load_runs([str(one)]), ["seeds"])
    assert [line["seeds"].value for line in lines] == ["0, 1, 2"]


def test_figures_that_cannot_be_read_are_not_written_over(tmp_path, report):
    run = arm(tmp_path / "o", seeds=[0]) / "seed_0"
    place = run / "test/metrics/metrics.json"
    for torn in ("", '{"accuracy": 0.6', "[]"):
        place.write_text(torn)
        assert "unchanged (metrics.json" in report("intervals", run)
        assert place.read_text() == torn


def test_a_sweep_among_several_arguments_has_an_arm_for_each_setting(tmp_path, report):
    """Runs of several settings are no seeds of one."""
    top, other = sweep_of(tmp_path / "o"), arm(tmp_path / "single", 1.5)
    text = report("compare", other, top)
    assert text.startswith("single: 3 run(s), the baseline")
    assert "warm against single" in text and "cold against single" in text
    assert text.index("\nwarm") < text.index("\ncold"), "in the order of the plan"


def test_arms_that_do_not_fit_beside_each_other_are_lines(tmp_path, report, monkeypatch):
    for label in "abcdef":
        arm(tmp_path / f"arm_{label}", 1.0 + ord(label) / 100)
    monkeypatch.setenv("COLUMNS", "100")
    lines = report("compare", tmp_path).splitlines()
    table = [line for line in lines if "(3 seeds)" in line]
    assert [line.split()[0] for line in table] == [f"arm_{label}" for label in "abcdef"]
    monkeypatch.setenv("COLUMNS", "400")
    wide = [line for line in report("compare", tmp_path).splitlines() if "(3 seeds)" in line]
    assert len(wide) < len(table) and wide[0].count("(3 seeds)") == 6
