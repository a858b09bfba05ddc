"""report.py audit: honest runs pass, and what was changed is named."""

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from systems import build_systems

import report
from files import read_json
from reports import packed
from reports.audit import audit_run
from reports.folder import load_run
from seal import amend, digest_of

pytestmark = pytest.mark.usefixtures("one_thread")
MORE = ["--epochs=2", "--schedule=linear", "--warmup_frac=0.25", "--keep_every=1", "--save_every=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of each system, and a second one of the first with another seed."""
    folder = tmp_path_factory.mktemp("audited")
    systems = build_systems(folder)
    made = {name: system.train(folder / "runs" / name, *MORE) for name, system in systems.items()}
    made["another"] = systems["preference"].train(folder / "runs/another", *MORE, "--seed=5")
    return made


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content, indent=1))


def edit_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def without_seal(run: Path) -> Path:
    """As runs were before they hashed their files."""
    edit_json(run / "run.json", lambda record: [record.pop(name) for name in ("files", "digest")])
    return run


FIGURES, ROWS = "test/metrics/metrics.json", "test/metrics/predictions.csv"
LOG, RECORD = "train/metrics/metrics.jsonl", "run.json"


def plant(kind: str, run: Path, other: Path, draw: random.Random) -> list[str]:
    """Change something in a run; any of these words names it."""
    figures = read_json(run / FIGURES)
    several = "accuracy", "log_loss", "f1_macro", "loss", "nats_per_char", "nats_per_token"
    known = [name for name in several if name in figures]
    name = draw.choice(known)
    if kind == "figure":
        edit_json(run / FIGURES, lambda m: m.update({name: m[name] * 0.9 + 0.01}))
        return [f"test: {name} is"]
    if kind == "interval":
        name = draw.choice([each for each in known if f"{each}_ci95" in figures])
        ends = [end + 0.02 for end in figures[f"{name}_ci95"]]
        edit_json(run / FIGURES, lambda m: m.update({f"{name}_ci95": ends}))
        return [f"test: {name}_ci95 is"]
    if kind == "rows":
        edit_json(run / FIGURES, lambda m: m.update({"n": m["n"] + 1}))
        return ["test: n is"]
    if kind == "predictions of another run":
        shutil.copy(other / ROWS, run / ROWS)
        return ["which is another run's"]
    if kind == "a row":

        def change(lines: list[str]) -> list[str]:
            place = draw.randrange(1, len(lines))
            return lines[:place] + lines[place + 1 :]

        edit_lines(run / ROWS, change)
        return ["predictions.csv gives", "predictions.csv, which"]
    if kind == "missing steps":
        steps = [draw.randint(2, 4)]
        edit_lines(
            run / LOG,
            lambda lines: [
                line
                for line in lines
                if "train_loss" not in line or json.loads(line)["step"] not in steps
            ],
        )
        return [f"step {steps[0]} is missing"]
    if kind == "learning rate":
        step = draw.randint(2, 4)

        def change(lines: list[str]) -> list[str]:
            rows = [json.loads(line) for line in lines]
            for row in rows:
                if row["step"] == step and "lr" in row:
                    row["lr"] *= 2
            return [json.dumps(row) for row in rows]

        edit_lines(run / LOG, change)
        return [f"learning rate of step {step}"]
    if kind == "checkpoint of another commit":
        place = draw.choice([*(run / "train/weights").glob("*/manifest.json")])
        edit_json(place, lambda manifest: manifest.update(commit="0" * 40))
        return [f"train/weights/{place.parent.name} was written by commit 000000000000"]
    if kind == "weights":
        place = draw.choice([*(run / "train/weights").glob("*/*.safetensors")])
        content = bytearray(place.read_bytes())
        content[draw.randrange(len(content))] ^= 1
        place.write_bytes(content)
        return [f"train/weights/{place.parent.name}: {place.name} has another hash"]
    if kind == "setting":
        settings = yaml.safe_load((run / "config.yaml").read_text())
        name, value = draw.choice([("lr", 0.5), ("batch", 7), ("seed", 99)])
        (run / "config.yaml").write_text(yaml.safe_dump(settings | {name: value}))
        named = {"lr": "peak 0.5", "batch": "a batch of 7", "seed": "99 in config.yaml"}
        return [named[name]]
    if kind == "split":
        edit_json(run / RECORD, lambda record: record.update(split_fingerprint="0" * 16))
        return ["split_fingerprint is 0000000000000000 in run.json"]
    assert kind == "verdict"
    planted = "loss spike: once at step 2, 9.000 where the steps before had 1.000 on average"
    edit_json(run / RECORD, lambda record: record["verdicts"].append(planted))
    return ["a verdict that nothing supports"]


KINDS = (
    *("figure", "interval", "rows", "predictions of another run", "a row", "missing steps"),
    *("learning rate", "checkpoint of another commit", "weights", "setting", "split", "verdict"),
)


def test_runs_of_each_system_agree_with_themselves(runs):
    for name, folder in runs.items():
        audit = audit_run(load_run(folder))
        assert not audit.problems, (name, audit.problems)
        areas = {"files", "record", "log", "weights", "test figures", "learning rates"}
        assert audit.checked.keys() >= areas, (name, audit.open)
        assert ("data" in audit.checked) == (name not in ("glue", "bert")), (name, audit.open)


def test_a_baselines_figures_of_validation_are_not_held_against_its_test_rows(runs, tmp_path):
    """As alpaca_sft.py writes them: they are of other rows than its predictions.csv."""
    run = without_seal(shutil.copytree(runs["alpaca"], tmp_path / "run"))
    shutil.copytree(run / "test/metrics", run / "baseline/metrics", dirs_exist_ok=True)
    baseline = run / "baseline/metrics/metrics.json"
    edit_json(baseline, lambda m: m.update(val_loss=m["loss"] + 1, val_perplexity=2.0))
    assert not audit_run(load_run(run)).problems
    edit_json(baseline, lambda m: m.update(loss=m["loss"] + 1))
    assert any("baseline: loss is" in each for each in audit_run(load_run(run)).problems)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_changed_is_named(kind, sealed, runs, tmp_path):
    draw = random.Random(f"{kind}{sealed}")
    run = tmp_path / "copy"
    shutil.copytree(runs["preference"], run)
    words = plant(kind, run, runs["another"], draw)
    if not sealed:
        without_seal(run)
    problems = audit_run(load_run(run)).problems
    assert any(word in problem for word in words for problem in problems), (words, problems)
    if sealed and kind not in ("weights", "checkpoint of another commit"):
        assert any("was changed after" in problem for problem in problems), problems


def test_a_log_line_that_no_rule_holds_is_named_by_its_hash(runs, tmp_path):
    shutil.copytree(runs["alpaca"], tmp_path / "copy")
    edit_lines(
        tmp_path / "copy" / LOG, lambda lines: [lines[0].replace("loss", "loss ")] + lines[1:]
    )
    problems = audit_run(load_run(tmp_path / "copy")).problems
    assert f"{LOG} was changed after the run had ended" in problems
    (tmp_path / "copy" / LOG).unlink()
    assert f"{LOG} is not there any more" in audit_run(load_run(tmp_path / "copy")).problems


def test_a_run_that_was_continued_otherwise_is_honest(runs, tmp_path):
    """With other free settings, and from an earlier checkpoint than before."""
    shutil.copytree(runs["gpt2"], tmp_path / "copy")

    def continued(record: dict) -> None:
        record["command"] = ["finetune_gpt2.py", "--workers=2", "--save_every", "7"]
        first = record["sessions"][0]
        record["sessions"] = [first, first | {"from_step": 4}, first | {"from_step": 2}]
        record["digest"] = digest_of(record)

    edit_json(tmp_path / "copy" / RECORD, continued)
    assert not audit_run(load_run(tmp_path / "copy")).problems


def test_a_packed_run_is_read_as_its_folder_is(runs, tmp_path):
    shutil.copytree(runs["headlines"], tmp_path / "runs/one")
    packed.pack(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs")
    audit = audit_run(load_run(tmp_path / "runs/one"))
    assert not audit.problems and {"files", "log", "test figures"} <= audit.checked.keys()
    assert audit.open["weights"] == "none lie here"


def test_a_command_that_adds_a_figure_keeps_the_seal_and_does_not_mend_a_broken_one(runs, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(runs["gpt2"], run)
    figures = read_json(run / FIGURES)
    amend(run, FIGURES, json.dumps(figures | {"judge": 50.0}))
    assert not audit_run(load_run(run)).problems
    (run / FIGURES).write_text(json.dumps(figures | {"accuracy": 1.5}))
    amend(run, FIGURES, json.dumps(figures | {"accuracy": 1.5, "judge": 50.0}))
    problems = audit_run(load_run(run)).problems
    assert f"{FIGURES} was changed after the run had ended" in problems
    assert any("accuracy is 1.5 in metrics.json" in problem for problem in problems)


def test_rows_that_changed_since_are_named(runs, tmp_path):
    """A record that is made anew fits its digest; the rows do not fit the record."""
    run = tmp_path / "copy"
    shutil.copytree(runs["headlines"], run)

    def other(record: dict) -> None:
        record["data_fingerprint"] = "f" * 16
        record["digest"] = digest_of(record)

    edit_json(run / RECORD, other)
    (problem,) = audit_run(load_run(run)).problems
    assert "data_fingerprint is ffffffffffffffff in run.json" in problem


def test_the_command_prints_a_table_of_many_and_exits_by_what_it_found(runs, tmp_path, capsys):
    shutil.copytree(runs["gpt2"], tmp_path / "good")
    shutil.copytree(runs["gpt2"], tmp_path / "bad")
    plant("figure", tmp_path / "bad", runs["gpt2"], random.Random(0))
    with pytest.raises(SystemExit) as ended:
        report.main(["audit", str(tmp_path)])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "2 runs, 1 with problems" in said
    with pytest.raises(SystemExit) as ended:
        report.main(["audit", str(tmp_path / "good"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code and found["runs"][0]["problems"] == []


def test_the_published_runs_agree_with_themselves():
    for run in ("bert/tiny", "gpt2/wikitext2/tiny", "alpaca/lora"):
        audit = audit_run(load_run(Path("docs/results") / run))
        assert not audit.problems, (run, audit.problems)


def test_the_tasks_of_a_suite_are_looked_at_and_bundled_with_it(runs, tmp_path, capsys):
    shutil.copytree(runs["glue"], tmp_path / "suite")
    (task,) = (path.parent for path in (tmp_path / "suite").rglob("run.json") if path.parent.name)
    shutil.copytree(task, tmp_path / "suite/other_task")
    report.main(["bundle", str(tmp_path / "suite"), "--output", str(tmp_path / "one.zip")])
    with pytest.raises(SystemExit) as ended:
        report.main(["audit", str(tmp_path / "one.zip")])
    said = capsys.readouterr().out
    assert not ended.value.code and "2 runs, none with problems" in said, said
    plant("figure", tmp_path / "suite/other_task", tmp_path, random.Random(0))
    with pytest.raises(SystemExit) as ended:
        report.main(["audit", str(tmp_path / "suite")])
    assert ended.value.code == 1 and "other_task: test: " in capsys.readouterr().out


# ----------------------------------------------------------------------------------- bundle


def test_a_bundle_is_checked_and_compared_as_the_folders_are(runs, tmp_path, monkeypatch, capsys):
    folder, moved = tmp_path / "home/alice/project", tmp_path / "elsewhere"
    for name in ("preference", "another"):
        shutil.copytree(runs[name], folder / "arms" / name / "seed_0")
    monkeypatch.setenv("HOME", str(tmp_path / "home/alice"))
    monkeypatch.setenv("LOGNAME", "alice")
    for name in ("one.zip", "two.zip"):
        report.main(["bundle", str(folder / "arms"), "--output", str(tmp_path / name)])
    first, second = (tmp_path / name for name in ("one.zip", "two.zip"))
    moved.mkdir()
    shutil.copy(first, moved / "one.zip")
    capsys.readouterr()

    monkeypatch.chdir(moved)
    with pytest.raises(SystemExit) as ended:
        report.main(["audit", "one.zip"])
    assert not ended.value.code, capsys.readouterr().out
    arms = ["arms/preference", "arms/another"]
    capsys.readouterr()
    report.main(["compare", "--json", *(f"one.zip/{arm.partition('/')[2]}" for arm in arms)])
    here = json.loads(capsys.readouterr().out)
    report.main(["compare", "--json", *(str(folder / arm) for arm in arms)])
    there = json.loads(capsys.readouterr().out)
    assert [c["difference"] for c in here["comparisons"]] == [
        c["difference"] for c in there["comparisons"]
    ]

    shutil.copy(second, moved / "copy.zip")
    packages = [zipfile.ZipFile(path) for path in (first, second)]
    texts = [
        {name.partition("/")[2]: each.read(name) for name in each.namelist()} for each in packages
    ]
    same = {name: text for name, text in texts[0].items() if name != "README.md"}
    assert same == {name: text for name, text in texts[1].items() if name != "README.md"}
    for name, text in texts[0].items():
        private = (str(tmp_path).encode(), b"alice", str(Path.cwd()).encode())
        assert not any(each in text for each in private), name
    readme = texts[0]["README.md"].decode()
    assert "report.py audit one.zip" in readme and "report.py compare" in readme
    assert "git checkout" in readme and "pip install -r versions.txt" in readme


def test_a_bundle_made_twice_has_the_same_bytes_and_its_weights_are_checked(runs, tmp_path):
    output = tmp_path / "one.zip"
    words = ["bundle", str(runs["gpt2"]), "--output", str(output), "--weights", "final"]
    report.main(words)
    first = output.read_bytes()
    report.main(words)
    assert output.read_bytes() == first
    audit = audit_run(load_run(tmp_path / "one" / runs["gpt2"].name))
    assert not audit.problems and audit.checked["weights"].startswith("1 folder")


def test_a_run_that_does_not_fit_is_bundled_when_asked_for_alone(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["gpt2"], run)
    plant("figure", run, run, random.Random(0))
    words = ["bundle", str(run), "--output", str(tmp_path / "one.zip")]
    with pytest.raises(SystemExit, match="was changed after the run had ended"):
        report.main(words)
    report.main([*words, "--anyway"])
    problems = audit_run(load_run(tmp_path / "one/run")).problems
    assert f"{FIGURES} was changed after the run had ended" in problems


# ------------------------------------------------------------------------------------- card


def test_a_card_is_read_by_the_hubs_own_library_and_lies_beside_the_weights(runs, tmp_path):
    from huggingface_hub import ModelCard

    from files import damage

    for name in ("preference", "headlines", "alpaca"):
        run = tmp_path / name
        shutil.copytree(runs[name], run)
        against = [str(runs["another"])] if name == "preference" else []
        report.main(["card", str(run), *(["--against", *against] if against else [])])
        final = run / "train/weights/final"
        assert damage(final) is None
        card = ModelCard.load(final / "README.md")
        figures = read_json(run / FIGURES)
        found = {result.metric_name: result for result in card.data.eval_results}
        primary = figures["primary"]
        first = card.data.eval_results[0]
        assert first.metric_name == primary
        assert first.metric_value == pytest.approx(figures[primary], abs=1e-6)
        assert first.metric_args["ci95"] == pytest.approx(figures[f"{primary}_ci95"], abs=1e-6)
        assert f"{figures['n']} rows" in first.dataset_split
        assert len({(r.metric_value, *r.metric_args["ci95"]) for r in found.values()}) == len(found)
        text = (final / "README.md").read_text()
        assert str(tmp_path) not in text and read_json(run / RECORD)["data_fingerprint"] in text
        assert not audit_run(load_run(run)).problems
        if against:
            assert "log_loss, preference against another" in text
