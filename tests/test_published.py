"""Published figures: data of the configs, their intervals, ours against them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_folders import classifier, write_run
from scipy import stats as scipy_stats

import run_2_appendprompt
import sweep
from benchmarks import published as published_page
from evaluation import published, stats
from evaluation.published import Figure, Ours, against
from files import PROJECT
from reports import compare, one_run, table
from reports.folder import load_run, load_runs
from reports.published import sentences
from settings import parse_settings, pop_published, published_run
from sweeps.plan import words_of

FOLDERS = ("preference", "alpaca", "gpt2", "headlines", "bert")
CONFIGS = sorted(p for f in FOLDERS for p in (PROJECT / "configs" / f).rglob("*.yaml"))
NUMBER_IN_WORDS = re.compile(r"([Bb]efore|[Pp]ublished)[^#\n]{0,40}[: ]~?\d+(\.\d| %)")
PLAUSIBLE = {  # lowest and highest that such a figure can be
    "accuracy": (0.3, 1.0),
    "glue": (0.3, 1.0),
    "superglue": (0.3, 1.0),
    "val_loss": (1.0, 10.0),
    "judge": (0.0, 100.0),
    "perplexity": (10.0, 100.0),
    "baseline_perplexity": (10.0, 100.0),
    "baseline_perplexity_per_word": (10.0, 100.0),
    "nats_per_char": (0.5, 3.0),
    "official_nats_per_char": (0.5, 3.0),
}


def reference_of(path):
    return pop_published(yaml.safe_load(path.read_text()), str(path))


# ------------------------------------------------------------------------------ the data


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_config_publishes_is_data(path):
    comments = "\n".join(re.findall("#.*", path.read_text()))
    assert not NUMBER_IN_WORDS.search(comments), "a comment has what `published:` is for"
    for figure in published.published_figures(reference := reference_of(path)):
        low, high = PLAUSIBLE[figure.metric]
        assert low <= figure.value <= (figure.high or figure.value) <= high
        assert figure.rows is None or 10 <= figure.rows <= 100_000
        assert figure.collapsed == (figure.value < 0.36 and figure.metric == "accuracy")
        assert reference["unknown"], "nobody knows all of a published run"


def test_every_run_that_is_repeated_has_its_figures():
    there = {p.relative_to(PROJECT / "configs").as_posix() for p in CONFIGS if reference_of(p)}
    numbers = (*range(1, 7), *range(10, 20))
    assert {f"alpaca/run_{number}.yaml" for number in numbers} < there
    encoders = ("bert", "bert-large", "roberta", "electra", "deberta", "albert", "run_2_b32")
    others = ("run_1_128", "run_1_512", "run_2_b2", "random", "frozen", "bottom")
    assert {f"preference/{name}.yaml" for name in (*encoders, *others)} < there
    assert {"bert/glue.yaml", "bert/superglue.yaml", "headlines/00_baseline.yaml"} < there
    arms = re.compile(r"arm_|_split|run_5_|run_12_|run_15_|_scaled")
    assert not [name for name in there if arms.search(name)]  # which were never published


def parse(tmp_path, text, *words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return parse_settings(run_2_appendprompt.Config, [f"--config={path}", *words], "run_2")[0]


FIGURES = "  figures:\n    - {metric: accuracy, value: 0.473, rows: 5750}\n"
REFERENCE = "batch: 16\npublished:\n  table: t\n  name: n\n" + FIGURES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (REFERENCE + "  minuts: 3.0\n", "did you mean 'minutes'"),
        (REFERENCE.replace("value", "valu"), "did you mean 'value'"),
        (REFERENCE.replace("  name: n\n", ""), "name is missing"),
        (REFERENCE.replace("0.473", "47.3 %"), "value: '47.3 %' is no float"),
        (REFERENCE + "  unknown: precision\n", "is no list"),
        (REFERENCE.replace("rows: 5750", "rows: true"), "rows: True is no int"),
        (REFERENCE.replace(FIGURES, "  figures: []\n"), "figures is missing"),
        ("published: 47.3\n", "expected 'name: value' lines"),
        ("published:\n  table: t\n  name: n\n  figures: [47.3]\n", "figure 1: expected"),
    ],
)
def test_what_is_no_reference_is_refused(tmp_path, text, words):
    with pytest.raises(SystemExit, match=re.escape(words)):
        parse(tmp_path, text)


def test_a_changed_setting_is_a_difference_from_the_published_run(tmp_path):
    kept = parse(tmp_path, REFERENCE, "--batch=16", "--seed=3", f"--out={tmp_path}")
    assert published_run(kept)["changed"] == {}
    config = parse(tmp_path, REFERENCE, "--batch=8", "--max_length=128")
    assert published_run(config)["changed"] == {"batch": [16, 8], "max_length": [512, 128]}
    assert "published" not in vars(config) and config.batch == 8
    assert published_run(parse(tmp_path, "batch: 16\n")) == {}


def test_a_sweep_hands_on_the_file(tmp_path, monkeypatch):
    """An arm of a published config carries its figures, and what the arm changed of it."""
    config = tmp_path / "config.yaml"
    config.write_text(REFERENCE)
    monkeypatch.chdir(tmp_path)
    arm = {"config": "config.yaml", "lr": 1e-3}
    Path("s.yaml").write_text(
        yaml.safe_dump({"script": "run_2_appendprompt.py", "arms": {"a": arm}})
    )
    for name in ("s.yaml", "again.yaml"):
        plan = sweep.Plan(sweep.parse_arguments(["--config", name, "--out", "o"]))
        words = words_of(plan.runs(plan.arms[0], {})[0])
        run, _ = parse_settings(run_2_appendprompt.Config, words, "run_2")
        assert published_run(run)["changed"] == {"lr": [1e-5, 1e-3]}
        assert published_run(run)["name"] == "n" and run.batch == 16
        Path("again.yaml").write_text(yaml.safe_dump(plan.as_sweep_file()))
    config.write_text("batch: 16\n")
    with pytest.raises(SystemExit, match="repeats no published run"):
        parse_settings(run_2_appendprompt.Config, words, "run_2")


# ----------------------------------------------------------------------------- intervals


def test_the_interval_of_a_share_is_scipys():
    figure = Figure("accuracy", 2720 / 5750, rows=5750)
    theirs = scipy_stats.binomtest(2720, 5750).proportion_ci(method="wilson")
    np.testing.assert_allclose(figure.interval, theirs, rtol=1e-12)


def test_without_rows_or_spread_there_is_no_interval():
    for figure in (
        Figure("accuracy", 0.9394, high=0.9458, rows=25_000),
        Figure("accuracy", 0.9514),
        Figure("val_loss", 1.519, rows=10),
    ):
        assert figure.why_none and math.isnan(figure.interval[0])


def test_the_sentence():
    figure = Figure("accuracy", 0.473, rows=5700, approximate=True, constant=0.349)
    assert against(figure, Ours(0.481, 0.469, 0.494)).sentence == (
        "accuracy: published 47.3 % [46.0, 48.6] on about 5,700 rows; yours 48.1 [46.9, 49.4]: "
        "not separable from it."
    )
    above = against(figure, Ours(0.521, 0.508, 0.534))
    assert above.verdict == "above it" and "by 4.8 points [3.0, 6.6]" in above.sentence
    assert against(figure, Ours(0.4, 0.39, 0.41)).verdict == "below it"
    assert "yours has no interval" in against(figure, Ours(0.5)).sentence


def test_a_collapse_is_said():
    figure = Figure("accuracy", 0.351, rows=5750, constant=0.349)
    assert "a collapse" in against(figure, Ours(0.48, 0.47, 0.49)).sentence
    assert not Figure("accuracy", 0.45, rows=5750, constant=0.349).collapsed


def test_a_figure_without_an_interval_is_judged_only_where_ours_reaches_it():
    ranged = Figure("accuracy", 0.9394, high=0.9458)
    assert against(ranged, Ours(0.948, 0.945, 0.951)).verdict == "not separable from it"
    assert "a range was published" in against(ranged, Ours(0.96, 0.957, 0.963)).verdict
    loss = Figure("val_loss", 1.519, rows=10)
    assert "not judged" in against(loss, Ours(1.519)).verdict  # ours has no interval either


def test_false_calls_are_five_in_a_hundred():
    """Two samples of one truth: theirs of 5,750 rows, ours of 3,000."""
    rng = np.random.default_rng(0)
    calls = []
    for _ in range(2000):
        theirs = Figure("accuracy", rng.binomial(5750, 0.48) / 5750, rows=5750)
        hits = rng.binomial(3000, 0.48)
        low, high = scipy_stats.binomtest(hits, 3000).proportion_ci(method="wilson")
        calls.append(against(theirs, Ours(hits / 3000, low, high)).verdict[:3] != "not")
    assert 0.035 < np.mean(calls) < 0.065


def test_seeds_count_on_both_sides():
    rows = (0.47, 0.49)
    one = published.over_seeds([0.48, 0.48, 0.48], rows, rows)
    spread = published.over_seeds([0.46, 0.48, 0.50], rows, rows)
    assert one.error == pytest.approx(0.02 / 2 / published.Z)
    assert spread.error**2 == pytest.approx(one.error**2 + 0.02**2 * 4 / 3)


def test_false_calls_stay_five_in_a_hundred_where_three_seeds_make_the_spread():
    """Seeds that spread three times as far as rows do, theirs one of them: by the normal quantile
    twelve in a hundred were called."""
    rng = np.random.default_rng(0)
    calls = []
    for _ in range(1500):
        theirs, *ours = (rng.binomial(5750, 0.48 + 0.02 * rng.normal()) / 5750 for _ in range(4))
        rows = stats.wilson_interval(round(5750 * ours[0]), 5750)
        found = published.over_seeds(ours, rows, stats.mean_interval(ours)[1:])
        calls.append(against(Figure("accuracy", theirs, rows=5750), found).verdict[:3] != "not")
    assert np.mean(calls) < 0.06


def test_pairs_are_corrected():
    figures = [Figure("accuracy", value, rows=5750) for value in (0.473, 0.486, 0.493, 0.351)]
    found = {(pair.lower, pair.higher): pair for pair in published.pairs(figures)}
    assert len(found) == 6
    pair = found[0, 2]
    table = [[2720, 3030], [2835, 2915]]
    theirs = scipy_stats.chi2_contingency(table, correction=False).pvalue
    assert pair.p == pytest.approx(theirs, rel=0.05) and pair.p < 0.05 < pair.corrected
    assert found[3, 0].corrected < 1e-6


# ------------------------------------------------------------------------------- reports

PUBLISHED = {
    "table": "preference",
    "name": "run 2",
    "figures": [{"metric": "accuracy", "value": 0.473, "rows": 5750, "approximate": True}],
    "differs": {"head": "tied"},
    "unknown": ["split", "precision"],
    "changed": {"lr": [1e-5, 1e-4]},
}


def write(folder, value=0.48, interval=(0.45, 0.51), seed=0, **facts):
    metrics = {"accuracy": value, "accuracy_ci95": list(interval), "n": 300}
    rows = classifier(300, 1.0, seed)
    return str(write_run(folder, rows, seed, metrics=metrics, **{"published": PUBLISHED} | facts))


def test_table_has_the_column_where_a_run_repeats_a_published_one(tmp_path):
    runs = load_runs(
        [write(tmp_path / "a"), write(tmp_path / "b", settings={"lr": 1}, published={})]
    )
    columns, lines = table.build_table(runs)
    assert [line["published"].value for line in lines] == [
        "accuracy 47.3 % [46.0, 48.6] on about 5,750 rows",
        None,
    ]
    assert "published" not in table.build_table(runs[1:])[0]
    assert not [name for name in table.figures_of(runs[0]) if name.startswith("published")]


def test_compare_and_page_say_it_and_what_differs(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", 0.6, (0.57, 0.63), seed=1)
    said = sentences(load_runs([second]))
    assert said[0].endswith(
        "yours 60.0 [57.0, 63.0]: above it by 12.7 points [9.4, 16.0], one seed against one."
    )
    assert said[1] == (
        "Differs from the published run: head (tied); lr (1e-05 in its config, 0.0001 here); "
        "and what is not known of it: split, precision."
    )
    text = compare.report([first, second])
    assert "a, accuracy: published 47.3 %" in text and "not separable from it." in text
    assert len(compare.build_report([first, second]).as_json()["published"]) == 4
    page = [finding.text for finding in one_run.learned(load_run(second))]
    assert said[0] in page and said[1] in page


def test_seeds_are_one_figure(tmp_path):
    runs = [write(tmp_path / f"seed_{k}", 0.47 + k / 100, seed=k) for k in range(3)]
    (said, _) = sentences(load_runs(runs), "arm")
    assert said.startswith("arm, accuracy") and "(3 seeds): not separable from it." in said
    write(tmp_path / "seed_3", seed=3, published=PUBLISHED | {"name": "another"})
    assert not sentences(load_runs([*runs, str(tmp_path / "seed_3")]))


@pytest.mark.parametrize(
    "damaged",
    [
        *(None, [], "47.3", {"figures": {}}, {"figures": [3, {}, {"metric": "accuracy"}]}),
        {"figures": [{"metric": "accuracy", "value": "47.3 %"}]},
        {"figures": [{"metric": "accuracy", "value": 47.3, "rows": 5750}]},
        {"figures": [{"metric": "accuracy", "value": 0.4, "rows": -1}]},
        PUBLISHED | {"figures": [{"metric": "nothing of ours", "value": 1.0}]},
    ],
)
def test_what_is_no_reference_in_a_record_is_not_said(tmp_path, damaged):
    run = load_run(write(tmp_path / "a", published=damaged))
    assert sentences([run]) == [] and "accuracy" not in (table.published_text(run) or "")
    assert sentences([load_run(write(tmp_path / "b", published=PUBLISHED | {"differs": 3}))])


def test_the_page_is_what_its_command_makes():
    assert published_page.PAGE.read_text() == published_page.page(), published_page.__doc__


def test_the_page_says_what_the_tables_cannot_carry():
    lines = published_page.read_tables()["preference"]
    lines.sort(key=lambda line: -line.figure.value)
    said = "\n".join(published_page.conclusions("accuracy", lines))
    (row,) = re.findall(r"^\| 48.6 roberta .*", said, re.M)
    assert "47.3 run_2_b32" in row.split("|")[4] and "35.1 deberta" in row.split("|")[2]
    assert re.search(r"Collapsed.*35\.1 %.*deberta", said, re.S)
    judged = [x for x in published_page.read_tables()["alpaca"] if x.figure.metric == "judge"]
    assert "measured twice" in "\n".join(published_page.conclusions("judge", judged))


def test_a_page_of_several_runs_has_the_sentence_of_each_arm(tmp_path):
    from reports.several import page_of_runs

    runs = load_runs([write(tmp_path / f"arm/seed_{n}", 0.48 + n / 100, seed=n) for n in range(3)])
    other = load_run(write(tmp_path / "plain/seed_0", published={}, settings={"lr": 1}))
    said = [block.text for block in page_of_runs([*runs, other]).blocks if block.kind == "finding"]
    (line,) = [text for text in said if "published 47.3 %" in text]
    assert line.startswith("arm, accuracy: published") and "(3 seeds)" in line


def test_a_table_has_sizes_where_lines_differ_and_figures_of_one_split_together(tmp_path):
    facts = {"parameters": 354_823_168, "trained_parameters": 7_898_384}
    runs = []
    for name, trained, more in (("a", 7_898_384, {}), ("b", 354_823_168, {})):
        run = Path(write(tmp_path / name, settings={"lora_r": 16 if name == "a" else None}))
        record = json.loads((run / "run.json").read_text())
        record |= facts | {"trained_parameters": trained} | more
        (run / "run.json").write_text(json.dumps(record))
        metrics = {"n": 9, "loss": 2.0, "perplexity": 7.4, "response_loss": 1.5}
        metrics |= {
            "response_perplexity": 4.5,
            "trained_on": "response",
            "primary": "response_loss",
        }
        (run / "test/metrics/metrics.json").write_text(json.dumps(metrics))
        runs.append(load_run(run))
    columns, lines = table.build_table(runs)
    assert "trained_parameters" in columns and "parameters" not in columns
    at = columns.index("loss")
    wanted = ["loss", "perplexity", "response_loss", "response_perplexity"]
    assert columns[at : at + 4] == wanted
    assert lines[1]["trained_parameters"].text() == "354823168"
    _, (line, _) = table.build_table(runs, ["parameters", "parameters_mb"])
    assert line["parameters"].text() == "354823168"
    assert line["parameters_mb"].value == pytest.approx(354_823_168 * 4 / 2**20)
