"""Settings: YAML, then flags and key=value; what is unknown or mistyped is refused."""

import dataclasses
import os
import sys
from dataclasses import dataclass, field

import pytest
import torch
import yaml

import core
import run_5_models
import runs
import settings
from device import Machine
from settings import FREE_SETTINGS, Settings, flatten, parse_settings

Config = run_5_models.Config


def parse(*words: str, kind=Config):
    return parse_settings(kind, [str(word) for word in words], "run.py")


def refusal(*words: str) -> str:
    """The message with which these words are refused."""
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert isinstance(caught.value.code, str)
    return caught.value.code


@pytest.fixture
def file(tmp_path):
    """Write a YAML file; returns its path."""

    def write(text: str, name: str = "given.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_no_words_give_the_defaults():
    assert parse() == (Config(), False)


def test_flags_override_yaml_and_yaml_the_defaults(file):
    path = file("lr: 3e-4\nbatch: 8\nepochs: 1\nmodel: electra\n")
    config, given = parse("--batch", "16", "--config", path, "epochs=2.5")
    assert given
    assert (config.lr, config.batch, config.epochs, config.model) == (3e-4, 16, 2.5, "electra")
    assert config.seed == Config().seed


def test_the_later_word_wins(file):
    assert parse("lr=1e-3", "--lr", "2e-3", "lr=3e-3")[0].lr == 3e-3
    assert parse("lr=1e-3", "--lr=2e-3")[0].lr == 2e-3
    first, second = file("lr: 1e-3\nbatch: 4\n"), file("lr: 2e-3\n", "second.yaml")
    config = parse("--config", first, f"config={second}")[0]
    assert (config.lr, config.batch) == (2e-3, 4)


@pytest.mark.parametrize(
    "words", [["--micro-batch", "4"], ["--micro_batch=4"], ["micro-batch=4"], ["micro_batch=4"]]
)
def test_hyphens_are_underscores(words):
    assert parse(*words)[0].micro_batch == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--deterministic"],
        ["--deterministic", "--batch", "8"],
        ["--deterministic", "true", "--batch", "8"],
        ["--deterministic=true", "batch=8"],
        ["--deterministic", "batch=8"],
        ["batch=8", "deterministic=true"],
    ],
)
def test_a_boolean_needs_no_value(words):
    config = parse(*words)[0]
    assert config.deterministic is True
    assert config.batch == (8 if len(words) > 1 else Config().batch)


def test_a_boolean_can_be_switched_off(file):
    path = file("deterministic: true\n")
    assert parse("--config", path)[0].deterministic is True
    assert parse("--config", path, "--deterministic", "false")[0].deterministic is False


def test_values_keep_their_type():
    config, _ = parse("--model", "123", "--epochs", "2", "out=null", "max_grad_norm=null")
    assert (config.model, config.epochs, config.out) == ("123", 2.0, None)
    assert type(config.epochs) is float and config.max_grad_norm is None
    assert parse("data=a=b", "labels=true", "--dropout", "0")[0].data == "a=b"


@pytest.mark.parametrize("word", ["--modle=bert", "--modle", "modle=bert"])
def test_an_unknown_setting_is_refused_with_the_nearest_name(word):
    message = refusal(word)
    assert "modle" in message and "did you mean 'model'?" in message
    assert "did you mean 'warmup_frac'?" in refusal("--warmup-frc", "0.1")


def test_an_unknown_yaml_key_is_refused_with_the_nearest_name(file):
    path = file("lr: 1e-3\nbacth: 8\n")
    message = refusal("--config", path)
    assert path in message and "bacth" in message and "did you mean 'batch'?" in message


@pytest.mark.parametrize("key", ["1", "yes", "null", "2.5"])
def test_a_yaml_key_that_is_no_text_is_refused(file, key):
    assert "unknown" in refusal("--config", file(f"{key}: 8\n"))


def test_a_setting_that_resembles_nothing_points_to_help():
    assert "--help" in refusal("zzzzqq=3")


def test_words_that_are_no_settings_are_refused():
    assert "'train'" in refusal("train")
    assert "--epochs needs a value" in refusal("--epochs")
    assert "--epochs needs a value" in refusal("--epochs", "--batch", "8")
    assert "--config needs a value" in refusal("--config")


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", "three"),
        ("batch", "2.5"),
        ("micro_batch", "some"),
        ("schedule", "linaer"),
        ("device", "gpu"),
        ("deterministic", "perhaps"),
        ("train_frac", "half"),
        ("head", "average"),
    ],
)
def test_a_wrong_type_names_the_field_and_the_value(file, field, value):
    for words in ([f"--{field}", value], [f"{field}={value}"]):
        message = refusal(*words)
        assert field in message and value in message
    assert field in refusal("--config", file(f"{field}: {value}\n"))


def test_a_file_that_cannot_be_read_is_named(file):
    assert "/no/such.yaml" in refusal("--config", "/no/such.yaml")
    assert "given.yaml" in refusal("--config", file("lr: [1\n"))
    assert "found list" in refusal("--config", file("- lr\n"))


def test_an_empty_file_sets_nothing(file):
    assert parse("--config", file("# nothing yet\n"))[0] == Config()


def test_given_is_false_for_free_settings_alone():
    words = {"out": "x", "device": "cpu", "backend": "gloo", "workers": "2", "save_every": "5"}
    words |= {"keep_every": "5", "stop_after": "1", "trackers": "wandb"}
    words |= {"page": "false", "machine_log": "false"}
    for name, value in words.items():
        assert parse(f"--{name}", value)[1] is False
    assert parse("--dry-run", "--fresh")[1] is False
    assert {*words, "dry_run", "fresh"} == FREE_SETTINGS


def test_given_is_true_for_any_other_setting(file):
    defaults = flatten(dataclasses.asdict(Config()))
    # what counts with another setting alone is refused without it
    for name in defaults.keys() - FREE_SETTINGS - settings.conditions(Config).keys():
        value = "null" if defaults[name] is None else defaults[name]
        assert parse("--workers", "1", f"{name}={value}")[1] is True, name
    assert parse("--config", file("lr: 1e-3\n"))[1] is True


def test_the_config_of_a_run_read_back_is_the_same(tmp_path):
    settings = {
        **{"model": "123", "data": "weird: #name\u00e9", "lr": 1e-5, "epochs": 0.1, "seed": 3},
        **{"labels": "true", "freeze": "none", "micro_batch": 7, "max_grad_norm": None},
        **{"swap": "none", "compile": True, "head_lr": 0.001, "patience": 2, "device": "cpu"},
    }
    config = Config(**settings, out=str(tmp_path / "run"))
    world = core.World(torch.device("cpu"), Machine())
    with runs.Run(config, world) as run:
        path = run.folder / "config.yaml"
    again, given = parse("--config", path)
    assert given
    assert again == dataclasses.replace(config, out=None)
    named = yaml.safe_load(path.read_text()).keys()
    assert named >= {f.name for f in dataclasses.fields(Config)} - FREE_SETTINGS


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch executed"]',
        "!!python/object/new:os.system [touch executed]",
        "!!python/name:os.system",
        "!env HOME",
        "{class_path: os.system, init_args: {command: touch executed}}",
        "{class_path: subprocess.Popen, init_args: {args: [touch, executed]}}",
    ],
)
@pytest.mark.parametrize("field", ["model", "lr", "micro_batch", "schedule"])
def test_yaml_executes_nothing(file, tmp_path, monkeypatch, field, value):
    monkeypatch.chdir(tmp_path)
    refusal("--config", file(f"{field}: {value}\n"))
    assert os.listdir(tmp_path) == ["given.yaml"]


def test_a_class_path_on_the_command_line_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = '{"class_path": "os.system", "init_args": {"command": "touch executed"}}'
    assert parse("--model", value)[0].model == value
    refusal("--lr", value)
    assert os.listdir(tmp_path) == []


@dataclass
class Depth:
    """A section of settings."""

    enabled: bool = False
    """off, or on"""
    fractions: list[float] = field(default_factory=lambda: [0.125, 0.3])
    """where"""


@dataclass
class Nested(Settings):
    """A script with a section."""

    stacking: Depth = field(default_factory=Depth)
    """layers are added"""


def test_sections_are_set_by_dotted_names_and_nested_yaml(file):
    path = file("stacking:\n  fractions: [0.1, 0.5]\n")
    words = ["--config", path, "stacking.enabled=True", "--lr", "1e-3"]
    config, given = parse_settings(Nested, words, "nested.py")
    assert given and config.stacking == Depth(True, [0.1, 0.5]) and config.lr == 1e-3
    assert parse_settings(Nested, ["--stacking.enabled"], "nested.py")[0].stacking.enabled is True
    with pytest.raises(SystemExit, match="did you mean 'stacking.enabled'"):
        parse_settings(Nested, ["stacking.enable=True"], "nested.py")
    with pytest.raises(SystemExit, match="did you mean 'stacking.fractions'"):
        parse_settings(Nested, ["--config", file("stacking: {fraction: 1}")], "nested.py")


def test_published_names_are_accepted_beside_ours():
    aliases = {
        "train/optim": "optimizer",
        "train.fixed_depth": lambda value: {
            "stacking.enabled": "false" if value.lower() == "true" else "true"
        },
    }
    words = ["train/optim=sgd", "train.fixed_depth=False"]
    config, given = parse_settings(Nested, words, "nested.py", aliases)
    assert given and config.optimizer == "sgd" and config.stacking.enabled


@pytest.mark.parametrize("word, hint", [("inspekt", "did you mean"), ("x", "expected inspect")])
def test_a_mistyped_command_is_named(word, hint, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", word, "--run", "r"])
    with pytest.raises(SystemExit, match=f"script.py: '{word}' is no command: {hint}"):
        runs.launch(lambda *_: None, Settings, {"inspect": (print, Settings)})


def test_a_value_out_of_its_range_is_refused_with_the_file_that_it_stands_in(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("batch: -1\nlr: 1e-3\n")
    with pytest.raises(ValueError, match=r"mine.yaml: --batch -1: expected 1 or more"):
        parse_settings(Settings, [f"--config={path}"], "script.py")
    with pytest.raises(ValueError, match=r"^--batch 0: expected 1 or more"):
        parse_settings(Settings, [f"--config={path}", "--batch=0"], "script.py")


@pytest.mark.parametrize(
    "words, name",
    [
        ("--init=random --size=tiny", "gpt2-tiny"),
        ("--init=random --size=distilgpt2", "distilgpt2"),
        ("--student_of=gpt2-large", "gpt2-large"),
        ("--model=results/a/run", "results/a/run"),
    ],
)
def test_a_run_is_called_by_the_model_that_it_trains(words, name):
    import finetune_gpt2

    config, _ = parse_settings(finetune_gpt2.Config, ["--task=x", *words.split()], "x")
    assert settings.model_name(settings.as_dict(config)) == name
