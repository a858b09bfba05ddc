"""`evaluate`: on a run's own test rows it says what the run itself said; on others it says so."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from systems import System, build_systems

import report
from commands.evaluate import EvaluateConfig, evaluate
from data import arena, corpora, instructions, layouts, texts, titles
from evaluation.stats import METHOD
from reports.folder import find_runs, load_run
from settings import parse_settings
from sweeps.explain import ask

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(scope="module")
def systems(folder) -> dict[str, System]:
    return build_systems(folder)


def write_csv(path: Path, names: list[str], rows: list) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def pairs_of(path: Path, rows) -> Path:
    names = ["id", *layouts.TEXT_COLUMNS, *layouts.WINNER_COLUMNS]
    lines = []
    for row in rows:
        turns = [json.dumps(side) for side in (row.prompt, row.response_a, row.response_b)]
        lines.append([row.id, *turns, *(int(row.label == k) for k in range(3))])
    return write_csv(path, names, lines)


def value_of(system: System, name: str) -> str:
    (word,) = [word for word in system.words if word.startswith(f"--{name}=")]
    return word.partition("=")[2]


# name → a file with exactly the run's test rows


def test_rows(name: str, system: System, run: Path, folder: Path) -> Path:
    settings = load_run(run).config
    if name == "preference":
        rows, _ = arena.load_arena(settings["data"])
        arena.assign_splits(rows, "prompt", settings["val_frac"], settings["test_frac"])
        return pairs_of(folder / "test.csv", [row for row in rows if row.split == "test"])
    if name == "glue":
        shutil.copy(Path(settings["data"]) / "SST-2/dev.tsv", folder / "other.tsv")
        return folder / "other.tsv"
    if name == "gpt2":
        rows, classes, _ = texts.load_rows(settings["task"], None)
        lines = [(row.text, classes[row.label]) for row in rows if row.split == "test"]
        return write_csv(folder / "test.csv", ["text", "label"], lines)
    if name == "gpt2 lm":
        shutil.copy(Path(settings["data"]) / "wiki.test.tokens", folder / "other.txt")
        return folder / "other.txt"
    if name == "headlines":
        every, _ = titles.load_titles(settings["data"], settings["limit"], settings["data_seed"])
        _, val = titles.split_titles(every, settings["val_frac"])
        (folder / "titles.txt").write_text("\n".join(title.text for title in val))
        return folder / "titles.txt"
    rows, _ = instructions.load_rows(settings["data"], settings["val_frac"], settings["test_frac"])
    lines = [
        dict(zip(("instruction", "input", "output"), row.turns[0], strict=True)) | {"id": row.id}
        for row in rows
        if row.split == "test"
    ]
    (folder / "test.json").write_text(json.dumps(lines))
    return folder / "test.json"


test_rows.__test__ = False
MORE = {
    "preference": ["--swap=both", "--max_length=24", "--prompt_frac=0.2"],
    "alpaca": ["--mask_prompt=true", "--lora_r=2"],
}
OF_TRAINING = {"evaluated_on", "training_flops", "parameters", "best_step", "n_unequal_length"}


@pytest.fixture(scope="module")
def runs(systems, tmp_path_factory):
    """name → a run, trained when it is first asked for"""
    folder, trained = tmp_path_factory.mktemp("runs"), {}

    def run(name: str) -> Path:
        if name not in trained:
            out = folder / name.replace(" ", "_")
            trained[name] = systems[name].train(out, *MORE.get(name, []))
        return trained[name]

    return run


def metrics_of(run: Path) -> dict:
    return json.loads((run / "test/metrics/metrics.json").read_text())


def evaluated(run: Path, data: Path, output: Path, **more) -> dict:
    evaluate(EvaluateConfig(str(run), str(data), str(output), device="cpu", **more))
    return metrics_of(output)


@pytest.mark.parametrize("name", ["preference", "glue", "gpt2", "gpt2 lm", "headlines", "alpaca"])
def test_the_runs_own_test_rows_get_its_own_figures(name, systems, runs, tmp_path, capsys):
    run = runs(name)
    data = test_rows(name, systems[name], run, tmp_path)
    own, found = metrics_of(run), evaluated(run, data, tmp_path / "out")
    for key in own.keys() - OF_TRAINING:
        expected = own[key]
        if isinstance(expected, float) or key.endswith("_ci95"):
            assert found[key] == pytest.approx(expected, rel=1e-5, abs=1e-7), key
        else:
            assert found[key] == expected, key
    said = capsys.readouterr().out
    assert found["interval_method"] == METHOD and "without a model" in said
    # test rows were held out; the figures of headlines are of validation titles
    assert ("leak: " in said) == (name == "headlines")
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["evaluated"]["seen"] == {"train": 0, "val": 0} or name == "headlines"
    assert record["status"] == "finished" and record["script"].startswith(systems[name].script)


def test_a_run_joined_with_its_opponent_is_evaluated_as_it_was_tested(systems, runs, tmp_path):
    """Style in the head, Davidson's ties, mean pooling, and another run beside it."""
    words = ["--features=true", "--head=davidson", "--pooling=mean", *MORE["preference"][:1]]
    joined = systems["preference"].train(
        tmp_path / "joined", *words, f"--blend={runs('preference')}"
    )
    data = test_rows("preference", systems["preference"], joined, tmp_path)
    own, found = metrics_of(joined), evaluated(joined, data, tmp_path / "out")
    for key in ("log_loss", "log_loss_ci95", "accuracy", "flip_consistency", "length_bias"):
        assert found[key] == pytest.approx(own[key], rel=1e-5, abs=1e-7), key


def test_a_pretraining_run_on_its_own_text(systems, runs, tmp_path):
    """Its validation rows are some of the file's, with the same masks and so the same losses."""
    run = runs("bert")
    data = value_of(systems["bert"], "data")
    evaluated(run, Path(data), tmp_path / "out")
    own, found = (
        {row["id"]: float(row["loss_sum"]) for row in csv.DictReader(open(path, newline=""))}
        for path in (each / "test/metrics/predictions.csv" for each in (run, tmp_path / "out"))
    )
    assert len(found) > len(own) > 3
    for row, loss in own.items():
        assert found[row] == pytest.approx(loss, rel=1e-4)
    record = json.loads((tmp_path / "out/run.json").read_text())
    seen = record["evaluated"]["seen"]
    assert seen["train"] == len(list(corpora.open_source(data).documents()))
    assert any(verdict.startswith("leak: ") for verdict in record["verdicts"])


def test_two_runs_on_other_rows_are_compared_row_by_row(systems, runs, tmp_path):
    """Also where they were trained on different rows: then that is a difference between them."""
    rows, _ = arena.load_arena(value_of(systems["preference"], "data"))
    fewer = pairs_of(tmp_path / "fewer.csv", rows[:50])
    words = [f"--data={fewer}", *MORE["preference"]]
    other = systems["preference"].train(tmp_path / "other", *words)
    fresh = [dataclasses.replace(row, prompt=[f"{row.prompt[0]} anew"]) for row in rows[:20]]
    data = pairs_of(tmp_path / "fresh.csv", fresh)
    for run, name in ((runs("preference"), "a"), (other, "b")):
        evaluated(run, data, tmp_path / name)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    said = {}
    for words in (["compare", *folders], ["table", *folders], ["page", folders[0]]):
        said[words[0]] = report.run_command(report.build_parser().parse_args(words))
    assert "unpaired" not in said["compare"] and "trained_on" in said["compare"]
    assert "20" in said["table"] and "still running" not in said["table"]
    page = (tmp_path / "a/report.html").read_text()
    assert f"evaluation of {runs('preference')}"[:90] in page and "metrics.jsonl yet" not in page
    with pytest.raises(ValueError, match="is an evaluation: it was not trained on its rows"):
        ask(folders)


def test_rows_that_were_trained_on_are_said(systems, runs, tmp_path, capsys):
    run = runs("preference")
    rows, _ = arena.load_arena(value_of(systems["preference"], "data"))
    arena.assign_splits(rows, "prompt", 0.1, 0.1)
    parts = {part: [row for row in rows if row.split == part] for part in ("train", "val", "test")}
    data = pairs_of(tmp_path / "x.csv", parts["test"] + parts["train"][:5] + parts["val"][:2])
    evaluated(run, data, tmp_path / "out")
    said = capsys.readouterr().out
    assert "verdict: leak: of " in said
    assert "5 have a prompt that the run was trained on and 2 have a prompt that it was val" in said
    record = load_run(tmp_path / "out").record
    assert record["evaluated"]["seen"] == {"train": 5, "val": 2}


@pytest.mark.parametrize("name, option", [("gpt2 lm", "data"), ("preference", "data")])
def test_without_the_runs_own_rows_there_are_figures_and_a_note(
    name, option, systems, runs, tmp_path, capsys
):
    data = test_rows(name, systems[name], runs(name), tmp_path)
    run = tmp_path / "run"
    shutil.copytree(runs(name), run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(value_of(systems[name], option), "/gone/away"))
    own, found = metrics_of(run), evaluated(run, data, tmp_path / "out")
    assert "whether it was trained on these is not known" in capsys.readouterr().out
    assert load_run(tmp_path / "out").record["evaluated"]["seen"] is None
    main = own["primary"]
    assert found[main] == pytest.approx(own[main], rel=1e-5)
    assert "unigram_entropy" not in found


def test_the_default_folder_lies_in_the_run_and_counts_as_no_run_of_its_own(
    systems, runs, tmp_path
):
    run = tmp_path / "results/run"
    shutil.copytree(runs("gpt2"), run)
    data = test_rows("gpt2", systems["gpt2"], run, tmp_path)
    for _ in range(2):  # the second replaces the first
        evaluate(EvaluateConfig(str(run), str(data), device="cpu"))
    assert metrics_of(run / "evaluations/test")["n"] == metrics_of(run)["n"]
    assert [found.path for found in find_runs(tmp_path / "results")] == [run]
    assert [found.path.name for found in find_runs(run / "evaluations")] == ["test"]


def test_what_cannot_be_evaluated_is_refused(systems, runs, tmp_path):
    run = runs("preference")
    rows, _ = arena.load_arena(value_of(systems["preference"], "data"))
    data = pairs_of(tmp_path / "x.csv", rows[:6])

    def refused(match: str, *words: str, error=ValueError, **more) -> None:
        with pytest.raises(error, match=match):
            evaluate(EvaluateConfig(*map(str, words), device="cpu", **more))

    refused("evaluate RUN --data FILE", "", data)
    refused("evaluate RUN --data FILE", run, "")
    refused("no run folder", tmp_path, data)
    refused("no such file", run, tmp_path / "none.csv", error=FileNotFoundError)
    unlabelled = write_csv(
        tmp_path / "test.csv", ["id", *layouts.TEXT_COLUMNS], [["1", "p", "a", "b"]]
    )
    refused("for predict only", run, unlabelled)
    refused("holds a run: use another --output", run, data, runs("gpt2"))
    (tmp_path / "mine/test").mkdir(parents=True)
    refused("is no run, and holds test", run, data, tmp_path / "mine")
    evaluate(EvaluateConfig(str(run), str(data), str(tmp_path / "out"), device="cpu"))
    refused("is an evaluation itself", tmp_path / "out", data)
    other = runs("gpt2")
    labelled = test_rows("gpt2", systems["gpt2"], other, tmp_path)
    refused("an evaluation of another run", other, labelled, tmp_path / "out")
    wrong = write_csv(tmp_path / "wrong.csv", ["text", "label"], [("a", "maybe"), ("b", "yes")])
    refused("class 'maybe', expected one of no, yes", other, wrong, tmp_path / "new")
    words = [str(other), f"--data={labelled}", f"--output={tmp_path / 'new'}", "--device=cpu"]
    for idle in ("--skip_bad_rows=true", "--minus_one=a"):  # of the systems that know no such rows
        asked, _ = parse_settings(EvaluateConfig, [*words, idle], "evaluate")
        with pytest.raises(ValueError, match="nothing in this run uses it"):
            evaluate(asked)
    words[2] = f"--output={tmp_path / 'good'}"
    evaluate(parse_settings(EvaluateConfig, words, "evaluate")[0])
    none = write_csv(tmp_path / "none.csv", ["text", "label"], [("a", ""), ("b", "yes")])
    refused("expected a label", other, none, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_without_ties_has_no_class_for_them(systems, tmp_path):
    rows, _ = arena.load_arena(value_of(systems["preference"], "data"))
    names = ["prompt", "response_a", "response_b", "winner"]
    lines = [
        (row.prompt[0], row.response_a[0], row.response_b[0], "AB"[row.label])
        for row in rows
        if row.label < 2
    ]
    data = write_csv(tmp_path / "pairs.csv", names, lines)
    run = systems["preference"].train(tmp_path / "run", f"--data={data}")
    with_ties = write_csv(tmp_path / "ties.csv", names, [*lines[:9], ("p", "a", "b", "tie")])
    with pytest.raises(ValueError, match=r"1 of 10 rows are ties \(the first has id 10\)"):
        evaluated(run, with_ties, tmp_path / "out")
    found = evaluated(run, with_ties, tmp_path / "out", skip_bad_rows=True)
    assert found["n"] == 9 and np.shape(found["confusion_matrix"]) == (2, 2)
