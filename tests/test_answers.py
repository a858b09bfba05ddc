"""Answers and their judge around a run: long rows, interruptions, what has moved since."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_alpaca_sft import LORA, WORLD, run_command, train, words_of
from tiny_instructions import alpaca_rows, build_models, write_rows

from commands import generate
from commands import judge as judging
from models import generation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.json")


@pytest.fixture(scope="module")
def run(models, rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(*words_of(models, rows, "gpt2", "--epochs=0.2", "--sample_tokens=0", f"--out={out}"))
    return out


def test_a_row_that_does_not_fit_is_cut_counted_and_named(run, tmp_path, capsys):
    out = run
    asked = [{"instruction": f"write {n}", "id": f"r{n}"} for n in range(3)]
    asked[1]["input"] = "slow river " * 200
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    words = [f"--model={out}", f"--data={tmp_path / 'asked.json'}", "--max_new_tokens=4"]
    said = run_command(capsys, "generate", *words, f"--output={tmp_path / 'a.jsonl'}")
    assert "1 prompts leave no room for an answer: cut in their middle (r1)" in said
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["r0", "r1", "r2"]
    assert [line.get("cut_tokens", 0) > 100 for line in lines] == [False, True, False]


def test_a_validation_row_that_does_not_fit_ends_no_training(models, tmp_path, capfd):
    given = alpaca_rows(20)
    given[19]["input"] = "quick city " * 300
    given[19]["instruction"] = "mend it all"
    (tmp_path / "rows.json").write_text(json.dumps(given))
    run = train(
        *words_of(models, tmp_path / "rows.json", "llama", "--epochs=1", f"--out={tmp_path / 'o'}")
    )
    assert run.status == "finished"
    assert "1 prompts leave no room for an answer: cut in their middle (mend it all)" in (
        capfd.readouterr().out
    )


def test_answers_that_were_interrupted_continue(run, rows, tmp_path, capsys, monkeypatch):
    out = run
    file = tmp_path / "a.jsonl"
    words = [f"--model={out}", f"--data={rows}", "--max_new_tokens=3", f"--output={file}"]
    words += ["--device=cpu", "--limit=8"]
    run_command(capsys, "generate", *words)
    wanted = file.read_text()
    file.unlink()
    monkeypatch.setattr(generate, "ROWS_EACH", {"cpu": 3})
    answers, calls = generation.generate, []

    def dies(*given):
        calls.append(len(given[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*given)

    monkeypatch.setattr(generation, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        run_command(capsys, "generate", *words)
    (part,) = tmp_path.iterdir()
    part.write_text(part.read_text() + '{"id": "torn')  # as a kill leaves it
    said = run_command(capsys, "generate", *words)
    assert "6 of 8 rows are answered already" in said and calls == [3, 3, 2, 2]
    assert file.read_text() == wanted and list(tmp_path.iterdir()) == [file]


def test_an_adapter_whose_base_moved_is_judged_with_base(models, rows, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(models["gpt2"], base)
    words = words_of({"gpt2": base}, rows, "gpt2", "--epochs=0.2")
    train(*words, *LORA, f"--out={tmp_path / 'run'}")
    config = {"run_folder": str(tmp_path / "run"), "max_new_tokens": 3, "device": "cpu"}
    file = judging.answers_of_run(judging.JudgeConfig(**config), WORLD)
    wanted = file.read_text()
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="say with --base FOLDER"):
        judging.answers_of_run(judging.JudgeConfig(**config), WORLD)
    capsys.readouterr()
    moved = judging.JudgeConfig(**config, base=str(tmp_path / "elsewhere"))
    assert judging.answers_of_run(moved, WORLD) == file and file.read_text() == wanted
    other = judging.JudgeConfig(**config, base=str(tmp_path / "other"))
    shutil.copytree(models["gpt2"], tmp_path / "other")
    saved = load_file(tmp_path / "other/model.safetensors")
    save_file({k: v + 1e-3 for k, v in saved.items()}, tmp_path / "other/model.safetensors")
    assert judging.answers_of_run(other, WORLD) != file
    assert "other weights than the base that the adapter was trained on" in capsys.readouterr().err


def test_the_judge_finds_rows_that_moved_and_refuses_others(run, rows, tmp_path):
    out = run
    copy = tmp_path / "copy.json"
    shutil.copy(rows, copy)
    config = {"run_folder": str(out), "max_new_tokens": 2, "device": "cpu", "limit": 2}
    file = judging.answers_of_run(judging.JudgeConfig(**config, data=str(copy)), WORLD)
    assert judging.answers_of_run(judging.JudgeConfig(**config), WORLD) == file
    copy.write_text(json.dumps(alpaca_rows(61)))
    with pytest.raises(ValueError, match="has other rows than those of the run"):
        judging.answers_of_run(judging.JudgeConfig(**config, data=str(copy)), WORLD)
    with pytest.raises(FileNotFoundError, match="Where the rows are now: --data"):
        judging.answers_of_run(judging.JudgeConfig(**config, data="gone.json"), WORLD)


def test_what_is_saved_gives_no_advice(models, rows, tmp_path):
    advised = tmp_path / "advised"
    shutil.copytree(models["gpt2"], advised)
    advice = {"do_sample": True, "top_p": 0.1, "repetition_penalty": 3.0}
    (advised / "generation_config.json").write_text(json.dumps(advice))
    words = words_of({"gpt2": advised}, rows, "gpt2", "--epochs=0.2", f"--out={tmp_path / 'r'}")
    train(*words)
    for which in ("best", "final"):
        saved = json.loads(
            (tmp_path / f"r/train/weights/{which}/generation_config.json").read_text()
        )
        assert not saved.keys() & advice.keys()
