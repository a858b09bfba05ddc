"""torchrun takes any abbreviation of its own options for itself, also behind the script's name."""

import dataclasses
import inspect
import re

import pytest
from conftest import PROJECT
from torch.distributed.run import get_args_parser

import alpaca_sft
import eval_bert
import finetune_gpt2
import pretrain_bert
import run_1_distilbert
import run_2_appendprompt
import run_5_models
import sweep
import train_headlines
from settings import OLD_NAMES, field_types

SCRIPTS = (
    run_1_distilbert,
    run_2_appendprompt,
    run_5_models,
    pretrain_bert,
    eval_bert,
    finetune_gpt2,
    alpaca_sft,
    train_headlines,
)


def command_settings() -> list[type]:
    """The settings of every command: the dataclasses of commands/ that are called …Config."""
    kinds = []
    for file in sorted((PROJECT / "commands").glob("*.py")):
        module = __import__(f"commands.{file.stem}", fromlist=["commands"])
        kinds += [
            kind
            for name, kind in inspect.getmembers(module, dataclasses.is_dataclass)
            if name.endswith("Config") and kind.__module__ == module.__name__
        ]
    return kinds


KINDS = [script.Config for script in SCRIPTS] + command_settings()


def passed_on(*words: str) -> list[str]:
    """What torchrun hands to the script of `torchrun --nproc_per_node=2 script.py words`."""
    arguments = get_args_parser().parse_args(["--nproc_per_node=2", "script.py", *words])
    return arguments.training_script_args


def test_the_commands_are_all_there():
    names = {kind.__module__.split(".")[1] for kind in command_settings()}
    assert names >= {"attention", "calibrate", "download", "extract", "generate", "inspect"}
    assert names >= {"judge", "merge_export", "opening", "params", "predict", "tfidf", "titles"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_torchrun_passes_every_setting_on(kind):
    for name in [*field_types(kind), "config", "help"]:
        for spelling in {name, name.replace("_", "-")}:
            for words in ([f"--{spelling}", "x"], [f"--{spelling}=x"], [f"--{spelling}"]):
                assert passed_on(*words) == words


@pytest.mark.parametrize("name", OLD_NAMES)
def test_the_old_names_are_the_ones_that_torchrun_takes(name):
    """The test above can fail; and without torchrun they still work."""
    assert any(option.startswith(f"--{name}") for option in options_of_torchrun())
    with pytest.raises((SystemExit, AssertionError)):
        assert passed_on(f"--{name}", "x") == [f"--{name}", "x"]


@pytest.mark.parametrize("name", [*OLD_NAMES, "role", "standalone", "start"])
def test_a_sweep_passes_on_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").touch()
    words = ["script.py", "--processes", "2", "--seeds", "1", "--set", f"{name}=1", "--out", "o"]
    plan = sweep.Plan(sweep.parse_arguments(words))
    command = plan.command(plan.runs(plan.arms[0], {})[0])
    assert passed_on(*command[command.index("script.py") + 1 :]) == [
        f"{name}=1",
        "seed=0",
        "out=o/runs/seed_0",
    ]


def options_of_torchrun() -> list[str]:
    return [option for action in get_args_parser()._actions for option in action.option_strings]


def test_no_document_shows_an_old_name_with_a_script():
    old = "|".join(OLD_NAMES)
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("docs/*.md"), PROJECT / "README.md"]
    files += [*PROJECT.glob("configs/**/*.yaml"), PROJECT / "startup.sh"]
    shown = [
        f"{file.name}: {line}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(rf"\.py\b.*\s--({old})\b", line)
    ]
    assert not shown
