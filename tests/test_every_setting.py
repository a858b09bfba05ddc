"""A setting changes the final weights, or is declared not to; tests/long trains with each."""

import importlib

import pytest
from conftest import PROJECT
from settings_values import DECLARED, VALUES
from test_methods import plain, systems, weights_of  # noqa: F401

from settings import FREE_SETTINGS, field_types, parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = [
    ("bert", "limit"),  # both were recorded and not read
    ("bert", "train_frac"),
    ("glue", "train_rows"),
    ("alpaca", "lora_scaling"),
    ("preference", "split"),
    ("gpt2 lm", "train_stride"),
]


def check_setting(name: str, setting: str, systems, plain, out) -> None:  # noqa: F811
    value, words, *needed = VALUES[name][setting]
    systems[name].train(out, *words, f"--{setting}={value}", *needed)
    assert weights_of(out) != weights_of(plain(name, tuple(words)))


@pytest.mark.parametrize("name", list(VALUES))
def test_each_setting_is_tested_or_declared(name, systems):  # noqa: F811
    names = set(field_types(type(systems[name].parse()[0]))) - FREE_SETTINGS
    assert names <= set(VALUES[name]) | set(DECLARED)
    assert set(VALUES[name]) <= names


@pytest.mark.parametrize("name, setting", FEW)
def test_a_setting_changes_the_weights(name, setting, systems, plain, tmp_path):  # noqa: F811
    check_setting(name, setting, systems, plain, tmp_path / "run")


def test_every_config_parses():
    """Each with the script that its comment names: no setting in it would count for nothing."""
    scripts = {
        "preference": "run_5_models",
        "gpt2": "finetune_gpt2",
        "headlines": "train_headlines",
        "alpaca": "alpaca_sft",
        "bert": "pretrain_bert",
    }
    for folder, of_folder in scripts.items():
        for path in sorted((PROJECT / "configs" / folder).rglob("*.yaml")):
            glue = path.name in ("glue.yaml", "superglue.yaml", "sentiment.yaml")
            script = "eval_bert" if glue else of_folder
            module = importlib.import_module(script)
            aliases = getattr(module, "ALIASES", None)
            parse_settings(module.Config, [f"--config={path}"], script, aliases)
