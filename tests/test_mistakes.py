"""Mistakes of a newcomer: each ends at once, in one line that says what to do."""

import ast
import importlib
import os
import re
from collections import Counter

import pytest
from conftest import PROJECT
from run_folders import write_run

import report as report_script
import run_5_models
from commands import attention, calibrate, download, features, inspect, params, predict
from data.records import read_records
from data.rows import count_splits
from data.titles import load_titles
from experiments import instructions, phases, pretraining
from experiments.saved_pairs import whole_weights
from files import appending, read_yaml, require_writable, write_folder
from models.pretrained import check_model, load_config
from reports import steps
from reports.folder import load_run
from reports.ledger import looking_runs
from runs.launch import check_output
from settings import SOURCES, Section, parse_settings
from sweeps.plan import Plan, parse_arguments


def parse(*words: str, kind=run_5_models.Config):
    """As runs.launch does it."""
    return parse_settings(kind, [*words], "run.py", None, SOURCES)[0]


# ---- settings ----


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: 1.0e-3\nbatch: 8\nlr: 2.0e-3\n", "'lr' stands there twice, in lines 1 and 3"),
        ("a: {lr: 1, lr: 2}\n", "'lr' stands there twice, in lines 1 and 1"),
        ("arms:\n  a: {lr: 1}\n  a: {lr: 2}\n", "'a' stands there twice, in lines 2 and 3"),
    ],
)
def test_a_name_that_stands_twice_in_a_file_is_refused(tmp_path, text, problem):
    """YAML would take the last."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_yaml(tmp_path / "a.yaml")


def test_what_a_merged_part_overrides_stands_there_once(tmp_path):
    text = "base: &base {lr: 1}\na: &a\n  <<: *base\n  lr: 2\nb:\n  <<: *a\n  lr: 3\n"
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml")["b"] == {"lr": 3}


def test_a_section_is_written_in_one_way(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("selection.name: uniform\nselection: {name: selective_backprop}\n")
    with pytest.raises(SystemExit, match="a.yaml: selection.name stands there twice"):
        parse("--config", str(path))
    with pytest.raises(SystemExit, match="selection.name stands there twice"):
        Plan(parse_arguments(["run_5_models.py", "--config", str(path)]))


def test_two_files_are_not_taken_for_the_last_one():
    with pytest.raises(SystemExit, match="--data is given twice, a.csv and b.csv: which?"):
        parse("--data", "a.csv", "--data=b.csv")
    with pytest.raises(SystemExit, match="--run_folder is given twice, runs/a and b.csv"):
        from commands.evaluate import EvaluateConfig

        parse("runs/a", "b.csv", kind=EvaluateConfig)
    assert parse("--data", "a.csv", "data=a.csv").data == "a.csv"
    assert parse("lr=1e-3", "--lr=2e-3").lr == 2e-3  # else the later one wins


@pytest.mark.parametrize("name", ["data", "out", "limit", "model", "teacher"])
def test_a_variable_that_is_not_set_is_noticed(name):
    with pytest.raises(SystemExit, match=f"--{name} is empty: is a variable unset"):
        parse(f"--{name}=")
    assert parse(f"--{name}=null") is not None if name in ("out", "limit", "teacher") else True


def test_an_empty_answer_is_an_answer():
    words = ["--prompt=", "--response_a=", "--response_b=b"]
    assert parse(*words, kind=predict.PredictConfig).response_a == ""


def test_a_mistyped_name_is_said_with_its_file(tmp_path):
    (tmp_path / "a.yaml").write_text("lrr: 1\n")
    with pytest.raises(SystemExit, match="a.yaml: unknown setting lrr: did you mean 'lr'"):
        parse("--config", str(tmp_path / "a.yaml"))


def commands_of(script: str) -> list[type]:
    """The settings of a script's commands, as its last lines have them."""
    tree = ast.parse((PROJECT / script).read_text())
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found = []
    for node in names:
        if isinstance(node.value, ast.Name) and node.attr.endswith("Config"):
            module = (PROJECT / "commands" / f"{node.value.id}.py").is_file() and node.value.id
            if module:
                found.append(getattr(importlib.import_module(f"commands.{module}"), node.attr))
    return found


SCRIPTS = ("run_5_models", "pretrain_bert", "finetune_gpt2", "train_headlines", "alpaca_sft")


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_command_refuses_what_would_change_nothing(script):
    found = commands_of(f"{script}.py")
    assert len(found) >= 2
    assert all(issubclass(kind, Section) for kind in found)


@pytest.mark.parametrize(
    ("kind", "words", "problem"),
    [
        (predict.PredictConfig, ["--data=a.csv", "--prompt=x"], "with --data null"),
        (predict.PredictConfig, ["--response_a=x", "--output=a.csv"], "with --data"),
        (download.DownloadConfig, ["c4-subset", "--data=mp"], "with --what il_losses"),
        (inspect.InspectConfig, ["--samples=0", "--temperature=2"], "with --samples"),
        (params.ParamsConfig, ["--lora_layers=last:2"], "with --lora_r"),
    ],
)
def test_a_setting_of_a_command_that_cannot_count_is_refused(kind, words, problem):
    with pytest.raises(SystemExit, match=f"would change nothing: it counts {problem}"):
        parse(*words, kind=kind)


@pytest.mark.parametrize("script", ["finetune_gpt2", "alpaca_sft"])
def test_a_model_beside_a_size_is_refused_and_goes_on_from_a_file(script, tmp_path):
    kind = importlib.import_module(script).Config
    words = ["--init=random", "--size=tiny"]
    recipe = instructions.with_recipe
    if script == "finetune_gpt2":
        recipe = lambda config: phases.with_recipe(config, False)  # noqa: E731
    with pytest.raises(ValueError, match="--model gpt2 would change nothing: --size tiny"):
        recipe(parse("--model=gpt2", *words, kind=kind))
    (tmp_path / "a.yaml").write_text("model: other\ninit: random\nsize: tiny\n")
    assert recipe(parse("--config", str(tmp_path / "a.yaml"), kind=kind)).model == "other"


# ---- files and folders ----


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file is a file: name a folder"):
        require_writable(file, folder=True)
    with pytest.raises(OSError, match="is a folder: name a file"):
        require_writable(tmp_path, folder=False)
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        require_writable(file / "a" / "b")
    require_writable(tmp_path / "new" / "run", folder=True)
    require_writable(os.devnull, folder=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission to write in"):
        require_writable(tmp_path / "new")


def test_scripts_and_commands_ask_before_they_begin(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="name a folder"):
        check_output(parse(f"--out={file}"))
    with pytest.raises(OSError, match="name a file"):
        check_output(parse(f"--out={tmp_path}", kind=attention.Config))
    with pytest.raises(OSError, match="is no folder"):
        words = ["--data=a.csv", f"--output={file}/a.csv"]
        check_output(parse(*words, kind=predict.PredictConfig))
    check_output(parse(kind=predict.PredictConfig))


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "models--x/snapshots/1").mkdir(parents=True)
    (tmp_path / "models--x/snapshots/1/config.json").write_text("{}")
    for look in (check_model, load_config):
        with pytest.raises(ValueError, match="file: a file; expected the folder of a model"):
            look(str(tmp_path / "file"))
        with pytest.raises(ValueError, match="did you mean .*models--x/snapshots/1?"):
            look(str(tmp_path / "models--x"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "electra").mkdir()
    check_model("electra")  # of the hub, whatever is called so here


def test_a_run_of_another_script_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"script": "finetune_gpt2.py"}')
    write_folder(tmp_path / "train/weights/best", lambda beside: None)
    with pytest.raises(ValueError, match="is no preference run, but one of finetune_gpt2.py"):
        whole_weights(tmp_path)
    with pytest.raises(ValueError, match="manifest.json is missing"):
        whole_weights(tmp_path / "nowhere")


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("title\n")
    with pytest.raises(ValueError, match="a.csv: it holds no titles"):
        load_titles(str(tmp_path / "a.csv"))
    with pytest.raises(FileNotFoundError, match="a folder: name a file in it"):
        load_titles(str(tmp_path))
    with pytest.raises(ValueError, match="a.csv: it holds no rows"):
        count_splits([], "a.csv")


@pytest.mark.parametrize("word", ["seed=-1", "seed=4294967296", "seed_init=-1", "seed_masks=-3"])
def test_a_seed_that_some_generator_would_not_take_is_refused_at_once(word):
    """scikit-learn's refuse it after the training, torch's wrap it or overflow."""
    with pytest.raises(SystemExit, match=f"--{word.replace('=', ' ')}: expected a whole number"):
        parse(f"--{word}")
    assert parse("--seed=4294967295").seed == 2**32 - 1


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (inspect.InspectConfig, "samples=-1"),
        (attention.Config, "tokens=0"),
        (calibrate.CalibrateConfig, "repeats=0"),
        (pretraining.Config, "max_length=1"),
        (features.Config, "seed=-1"),
    ],
)
def test_numbers_that_are_too_small_are_refused(kind, word):
    with pytest.raises(SystemExit, match=f"--{word.replace('=', ' ')}: expected"):
        parse(f"--{word}", kind=kind)


# ---- reports and sweeps ----


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["table", ""], "an argument is empty: is a variable unset"),
        (["pack", ""], "an argument is empty"),
        (["site", "here", "--output="], "--output is empty"),
        (["comapre", "a", "b"], "did you mean compare"),
        (["power", "--difference=2%"], "'2%' is no number"),
        (["power", "--difference=.02", "--rows=1k"], "'1k' is no whole number"),
        (["compare", "a", "b", "--metrics=x", "--metrics=y"], "--metrics is given twice"),
        (["page"], "report.py page: the following arguments are required: runs"),
        (["compare", "runs", "runs", "--html", "--json"], "not allowed with argument --html"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_line(words, problem, capsys):
    with pytest.raises(SystemExit) as ended:
        report_script.main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and problem in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--seeds=3", "--seeds=5"], "--seeds is given twice, 3 and 5"),
        (["--out="], "--out is empty"),
        (["--jobs=two"], "'two' is no whole number"),
    ],
)
def test_a_sweep_says_so_too(words, problem, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["run_5_models.py", *words])
    assert problem in capsys.readouterr().err
    assert parse_arguments(["run_5_models.py", "--set", "lr=1", "--set", "batch=2"]).fixed


def test_a_folder_that_is_not_there_is_guessed(tmp_path):
    runs = tmp_path / "results"
    write_run(runs / "minilm", None)
    (tmp_path / "a.csv").write_text("")
    for path, problem in (
        (runs / "minlm/seed_0", f"no such folder: did you mean {runs / 'minilm'}?"),
        (tmp_path / "a.csv", "a file, expected the folder of a run or of runs"),
    ):
        for read in (load_run, lambda path: looking_runs([path]), steps._steps_in):
            with pytest.raises(ValueError, match=re.escape(f"{path}: {problem}")):
                read(str(path))


def test_no_report_writes_over_a_file_of_another_kind(tmp_path, report):
    write_run(tmp_path / "run", None)
    rows = tmp_path / "rows.csv"
    for command in ("page", "card"):
        rows.write_text("text,label\n")
        assert "is there and no ." in report(command, tmp_path / "run", "--output", rows)
    with pytest.raises(ValueError, match="no file of JSON lines: nothing is added to it"):
        with appending(rows):
            pass
    assert rows.read_text() == "text,label\n"
    with pytest.raises(OSError, match="is the file of --data, too"):
        words = [
            "--run_folder=r",
            f"--data={rows}",
            f"--output={tmp_path / 'x' / '..' / 'rows.csv'}",
        ]
        (tmp_path / "x").mkdir()
        check_output(parse(*words, kind=predict.PredictConfig))


def test_a_reason_of_many_lines_is_shown_in_one(tmp_path):
    reason = "ValueError: in a worker.\nTraceback:\n  File x\nValueError: what it was"
    write_run(tmp_path / "run", None, status="failed", exit_reason=reason)
    (note,) = [each for each in load_run(tmp_path / "run").notes if "failed" in each]
    assert note.endswith("in a worker. … ValueError: what it was") and "\n" not in note


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["statu", "results"], "no such script: statu: did you mean status?"),
        (["run_5_model.py"], "did you mean run_5_models.py?"),
        (["README.md"], "README.md: expected a script"),
        (["run_5_models.py", "lr=1"], "settings of the script go after --set"),
    ],
)
def test_a_sweep_of_no_script_is_refused(words, problem):
    with pytest.raises(SystemExit, match=re.escape(problem)):
        Plan(parse_arguments(words))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "git lfs pull"),
        ("<!DOCTYPE html>\n<html><body>Log in, please</body></html>\n", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_what_a_download_left_in_place_of_a_file_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: .*{problem}"):
        list(read_records(tmp_path / name, Counter()))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: null\n", "a.yaml: --lr null: it has to have a value"),
        ("data:\n", "a.yaml: --data null: it has to have a value"),
        ("data: ''\n", "a.yaml: data is empty"),
        ("seed: 010\n", "010 is another number in YAML"),
        ("lr: 1:30\n", "1:30 is another number in YAML"),
        ("log: tensorboard\ntrackers: wandb\n", "log and trackers are one setting"),
    ],
)
def test_a_value_that_means_something_else_in_yaml_is_refused(tmp_path, text, problem):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit, match=problem):
        parse("--config", str(tmp_path / "a.yaml"))


def test_a_number_is_read_as_it_is_written(tmp_path):
    for word in ("seed=010", "lr=1:30", "batch=-07"):
        with pytest.raises(SystemExit, match="expected a number as it is written"):
            parse(word)
    with pytest.raises(SystemExit, match="--batch None: expected a whole number"):
        parse("batch=null")
    (tmp_path / "a.yaml").write_text("data: 2026-11-29\nlimit: null\nlr: 0.5\n")
    config = parse("--config", str(tmp_path / "a.yaml"), "max_grad_norm=null", "seed=0")
    assert (config.data, config.limit, config.max_grad_norm, config.lr) == (
        "2026-11-29",
        None,
        None,
        0.5,
    )
