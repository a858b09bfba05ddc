"""--help: six groups, examples that a reader can type, every setting explained."""

import contextlib
import importlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PROJECT, run_script

import run_5_models
from experiments import pretraining
from settings import Settings, field_types, parse_settings
from usage import GROUPS, explanations, help_text

SCRIPTS = (
    *("run_1_distilbert", "run_2_appendprompt", "run_5_models", "run_6_light", "pretrain_bert"),
    *("eval_bert", "finetune_gpt2", "train_headlines", "alpaca_sft"),
)


def module_and_settings(name: str):
    module = importlib.import_module(name)
    return module, module.Config


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_on_a_page_and_names_every_setting(name, monkeypatch):
    module, kind = module_and_settings(name)
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text(kind, f"{name}.py", module.__doc__, ["predict"])
    assert len(text.splitlines()) <= 100
    assert "\nsettings\n" not in text  # each has its group
    wide = [line for line in text.splitlines()[:-1] if len(line) > 80]
    assert all(re.match("  (python|torchrun) ", line) for line in wide)  # to be typed as they are
    for setting in field_types(kind):
        assert re.search(rf"[ -]{re.escape(setting)}[\s,]", text), setting
    assert not re.search(
        r"Union|Optional|Literal|NoneType|<class|\bint\b|\bfloat\b|True|False", text
    )
    assert text.index("commands:") < text.index("examples") < text.index("\ndata\n")
    assert text.count(f"{name}.py ") >= 3


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_all_explains_every_setting(name):
    module, kind = module_and_settings(name)
    text = help_text(kind, f"{name}.py", module.__doc__, everything=True)
    for setting in field_types(kind):
        entry = re.search(rf"^  --{re.escape(setting)}\b(.*?)(?=^  --|^\w|\Z)", text, re.M | re.S)
        assert entry, setting
        words = entry[1].split()
        assert len(" ".join(words)) > 11 or "layers" in words, setting
    assert "also:" not in text


def test_each_setting_is_in_one_group():
    grouped = [name for pair in GROUPS.values() for name in " ".join(pair).split()]
    used = {name for script in SCRIPTS for name in field_types(module_and_settings(script)[1])}
    assert sorted(grouped) == sorted(used)


def test_a_setting_without_words_is_noticed():
    """The tests above can fail."""

    @dataclass
    class Silent(Settings):
        unexplained: int = 3

    assert explanations(Silent)["unexplained"] == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_can_be_typed(name):
    module, kind = module_and_settings(name)
    aliases = getattr(module, "ALIASES", pretraining.ALIASES)
    examples = help_text(kind, f"{name}.py", module.__doc__).partition("\n\ndata\n")[0]
    commands = [line for line in examples.splitlines() if re.match("  (python|torchrun) ", line)]
    assert 1 <= len(commands) <= 3
    for line in commands:
        words = shlex.split(line)
        own = words[[w.endswith(".py") for w in words].index(True) + 1 :]
        if not own or re.fullmatch("--.*|.*=.*", own[0]):  # else a command of the script
            parse_settings(kind, own, name, aliases)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--help", "all"], ["-h"], ["predict", "--help"]],
    ids=" ".join,
)
def test_the_script_prints_it(words):
    said = run_script("run_5_models.py", *words).stdout
    assert ("predict" in said.splitlines()[0]) == (words[0] == "predict")
    assert ("--head_lr" in said) == (words[0] != "predict")
    assert ("--sophia.rho" in said) == ("all" in words)


def test_on_a_terminal_the_first_word_comes_before_torch(tmp_path):
    """And an error of the command line ends it; a pipe or a log sees no such line."""
    command = [sys.executable, str(PROJECT / "run_5_models.py"), "--model", "elektra"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=theirs) as run:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    assert run.returncode == 1 and said.startswith(b"\rloading torch ...")
    assert said.index(b"loading torch") < said.index(b"did you mean electra?")
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "loading" not in piped.stdout + piped.stderr and piped.stderr.startswith(
        "error: --model"
    )


def test_settings_are_read_before_transformers_is_imported():
    """It takes twice as long as torch: a mistyped setting is not to wait for it."""
    commands = [path.stem for path in sorted((PROJECT / "commands").glob("[a-z]*.py"))]
    names = [name for name in SCRIPTS if name != "run_6_light"]  # which is Lightning's
    code = f"import sys, {', '.join(names)}; from commands import {', '.join(commands)}\n"
    code += "print('transformers.modeling_utils' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_wrong_files_are_refused_before_transformers_is_imported(tmp_path):
    """A file that is not there, one with other columns, and a model that no one knows."""
    (tmp_path / "wrong.csv").write_text("foo,bar\n1,2\n3,4\n")
    code = """
import contextlib, importlib, io, sys
from settings import parse_settings
for script, *words in json.loads(sys.argv[1]):
    module, said = importlib.import_module(script), io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            words = [*words, f"--out={sys.argv[2]}/{script}", "--fresh"]
            module.main(parse_settings(module.Config, words, script)[0], True)
        print(script, words, "was not refused")
    except (ValueError, OSError, SystemExit) as error:
        if "transformers.modeling_utils" in sys.modules:
            sys.exit(f"{script} {words}: only after transformers, {error}")
        print(error)
"""
    starts = [
        (script, f"--{'task' if script == 'finetune_gpt2' else 'data'}={tmp_path / name}")
        for script in SCRIPTS
        if script not in ("run_6_light", "eval_bert")
        for name in ("wrong.csv", "missing.csv")
    ]
    starts += [("eval_bert", f"--data={tmp_path / 'missing'}"), ("pretrain_bert", "--model=berts")]
    done = subprocess.run(
        [sys.executable, "-c", f"import json{code}", json.dumps(starts), str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(said) == len(starts) and not any("was not refused" in line for line in said), said
    for (_, word), line in zip(starts, said, strict=True):
        name = Path(word.partition("=")[2]).name
        assert name in line and ("foo" in line or "no such" in line or "expected one of" in line)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("schedule=cosin", "expected one of linear, cosine, .*: did you mean cosine"),
        ("batch=1.5", "expected a whole number$"),
        ("max_grad_norm=much", "expected a number, or null$"),
        ("betas=1", r"expected numbers in brackets, as \[a,b\], or null$"),
        ("selection.name=best", "expected one of uniform, selective_backprop, rho_loss$"),
        ("compile=maybe", "expected true or false$"),
    ],
)
def test_values_of_a_wrong_type_are_refused_in_plain_words(word, expected):
    with pytest.raises(SystemExit, match=expected) as refused:
        parse_settings(run_5_models.Config, [f"--{word}"], "run_5_models.py")
    assert f"--{word.replace('=', ' ')}: " in str(refused.value)
