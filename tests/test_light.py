"""run_6_light.py leaves what run 2 leaves; and what docs/lightning.md says of Lightning holds."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import core
import files
import report
import run_6_light
from benchmarks import lightning_twin
from commands.evaluate import EvaluateConfig, evaluate
from evaluation import outcomes
from experiments import experiment, preference
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
LIGHT, OURS = lightning_twin.LIGHT, lightning_twin.OURS


@pytest.fixture(scope="module")
def words(tiny_bert, pair_csv) -> list[str]:
    """Ten steps, two epochs; no dropout, so that only the rows can make a difference."""
    return [
        *(f"--model={tiny_bert}", f"--data={pair_csv}", "--max_length=64", "--epochs=2"),
        *("--lr=1e-3", "--head_lr=1e-2", "--dropout=0", "--page=false"),
    ]


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory) -> dict[str, Path]:
    """A finished run of each script on the same rows."""
    folder = tmp_path_factory.mktemp("light")
    for script in (LIGHT, OURS):
        lightning_twin.train(script, words, folder / script)
    return {script: folder / script for script in (LIGHT, OURS)}


def lines(run: Path, name: str) -> list:
    text = (run / "train/metrics/metrics.jsonl").read_text()
    return [line[name] for line in map(json.loads, text.splitlines()) if name in line]


@pytest.mark.parametrize(
    "given,message",
    [
        (["--micro_batch=4"], "--micro_batch is not in run_6_light.py"),
        (["--machine_log=true"], "--machine_log is not in run_6_light.py"),
        (["--seed_order=1"], "--seed_order is not in run_6_light.py"),
        (["--reduce_dtype=bf16"], "--reduce_dtype is not in run_6_light.py"),
        (["--epochs=0.5"], "Lightning takes whole epochs"),
        (["--batch=33", "--devices=2"], "--batch 33 cannot be dealt to --devices 2"),
    ],
)
def test_what_lightning_has_no_equal_for_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        parse_settings(run_6_light.Config, given)


def test_settings_have_the_words_of_the_other_scripts_and_lightning_s():
    given = ["--epochs", "3", "--batch", "32", "--devices", "2", "--strategy", "ddp"]
    given += ["--accelerator", "gpu"]
    config, _ = parse_settings(run_6_light.Config, given, "", run_6_light.ALIASES)
    assert (config.epochs, config.batch, config.devices, config.strategy) == (3, 32, 2, "ddp")
    assert config.device == "cuda" and config.lr == 1e-5
    with pytest.raises(SystemExit, match="did you mean 'strategy'"):
        parse_settings(run_6_light.Config, ["--stratgy=ddp"])


def test_without_settings_and_hub_it_is_the_embedded_default(monkeypatch, capsys):
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    config, world = run_6_light.Config(), core.single_world("cpu")
    config = experiment.or_embedded(config, False, world, **preference.EMBEDDED)
    assert (config.model, config.data, config.devices) == ("minilm", "reviews", 1)
    assert "embedded default" in capsys.readouterr().out


def test_the_run_folder_is_that_of_run_2(runs):
    rows = {}
    for script, run in runs.items():
        with open(run / "test/metrics/predictions.csv", newline="") as file:
            rows[script] = list(csv.DictReader(file))
    assert list(rows[LIGHT][0]) == list(rows[OURS][0])
    for name in ("id", "group", "label"):
        assert [row[name] for row in rows[LIGHT]] == [row[name] for row in rows[OURS]]
    records = {script: json.loads((run / "run.json").read_text()) for script, run in runs.items()}
    assert records[LIGHT]["status"] == "finished" and records[LIGHT]["script"] == f"{LIGHT}.py"
    for name in ("data_fingerprint", "split_fingerprint", "steps", "total_steps", "precision"):
        assert records[LIGHT][name] == records[OURS][name], name
    metrics = {
        s: json.loads((r / "test/metrics/metrics.json").read_text()) for s, r in runs.items()
    }
    assert metrics[LIGHT].keys() == metrics[OURS].keys()
    assert (runs[LIGHT] / "config.yaml").exists()


def test_the_steps_are_those_of_run_2(runs):
    """As many rows and tokens an epoch, the same learning rates; only the order is another."""
    for name in ("step", "lr"):
        assert lines(runs[LIGHT], name) == pytest.approx(lines(runs[OURS], name))
    for name in ("examples", "tokens", "epoch"):
        assert lines(runs[LIGHT], name)[-1] == lines(runs[OURS], name)[-1]
    assert len(lines(runs[LIGHT], "val_loss")) == len(lines(runs[OURS], "val_loss")) == 2


def test_what_nothing_reads_ends_the_run_as_it_does_run_2(words, tmp_path):
    for script in (LIGHT, OURS):
        with pytest.raises(ValueError, match="--minus_one was given, but nothing in this run uses"):
            lightning_twin.train(script, [*words, "--minus_one=a"], tmp_path / script)


def test_each_process_draws_masks_of_its_own(words, tmp_path, monkeypatch):
    """Lightning seeds all of them alike; the first one's draws stay as they are."""
    _, module = lightning_twin.open_task(words, tmp_path)
    drawn = []
    for rank in range(3):
        monkeypatch.setattr(run_6_light.PairModule, "global_rank", rank)
        torch.manual_seed(0)
        module.on_train_start()
        drawn.append(torch.rand(1).item())
    torch.manual_seed(0)
    assert len(set(drawn)) == 3 and drawn[0] == torch.rand(1).item()


def test_lightning_s_run_has_the_verdicts_of_the_others(words, tmp_path, monkeypatch, capsys):
    """Lightning itself would train on with NaN to the end."""
    loss, steps = run_6_light.PairModule.loss, []

    def spoilt(self, batch, smoothing=0.0):
        value, logits = loss(self, batch, smoothing)
        steps.append(self.training)
        return (value * float("nan") if sum(steps) > 3 else value), logits

    with monkeypatch.context() as patch:
        patch.setattr(run_6_light.PairModule, "loss", spoilt)
        with pytest.raises(outcomes.Diverged, match="validation loss of step 5"):
            lightning_twin.train(LIGHT, words, tmp_path / "a")
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["status"] == "failed" and outcomes.failures(record["verdicts"]) == ["diverged"]
    assert "training loss was" in record["verdicts"][0]
    log = (tmp_path / "a/train/metrics/metrics.jsonl").read_text()
    assert "NaN" not in log and '"train_loss": null' in log
    capsys.readouterr()
    still = [word for word in words if "lr=" not in word]
    lightning_twin.train(LIGHT, [*still, "--lr=1e-12"], tmp_path / "b")
    record = json.loads((tmp_path / "b/run.json").read_text())
    assert outcomes.failures(record["verdicts"]) == ["collapsed"]
    assert "verdict: collapsed: " in capsys.readouterr().err


def test_its_run_is_evaluated_and_answers_like_another(runs, words, tmp_path, capsys):
    data = next(word.partition("=")[2] for word in words if word.startswith("--data="))
    for script, run in runs.items():
        evaluate(EvaluateConfig(str(run), data, str(tmp_path / script), device="cpu"))
        with open(tmp_path / script / "test/metrics/predictions.csv", newline="") as file:
            answers = {line["id"]: line for line in csv.DictReader(file)}
        with open(run / "test/metrics/predictions.csv", newline="") as file:
            for line in csv.DictReader(file):
                for name in ("p_A", "p_B", "p_tie"):
                    found = float(answers[line["id"]][name])
                    assert found == pytest.approx(float(line[name]), abs=1e-5)
    said = capsys.readouterr().out
    assert said.count("that the run was trained on") == 2  # its own rows are known, too
    with pytest.raises(ValueError, match="--form is not in run_6_light.py"):
        parse_settings(run_6_light.Config, ["--form=joint"])


def test_report_compares_both_and_makes_a_page(runs, capsys):
    report.main(["compare", str(runs[LIGHT]), str(runs[OURS])])
    said = capsys.readouterr().out
    assert "log_loss, run_2_appendprompt against run_6_light" in said
    report.main(["page", str(runs[LIGHT])])
    assert (runs[LIGHT] / "report.html").stat().st_size > 10_000


def test_dropout_is_on_in_training_though_lightning_leaves_it_off(words, tmp_path):
    _, module = lightning_twin.open_task(words, tmp_path / "ours")
    assert all(layer.training for layer in module.modules() if isinstance(layer, nn.Dropout))
    said = lightning_twin.dropout_in_training(words, tmp_path / "theirs")
    assert "dropout is on in 1 of " in said and " 1 of 1 " not in said


def test_lightning_repeats_batches_after_a_stop_in_mid_epoch_and_we_do_not(words, tmp_path):
    ours = lightning_twin.stop_and_continue(OURS, words, tmp_path / "ours", after=2)
    assert ours["same_losses"] and ours["same_rows"] and ours["same_predictions"]
    light = lightning_twin.stop_and_continue(LIGHT, words, tmp_path / "light", after=2)
    assert not light["same_losses"] and light["first"] == 1
    assert "steps 3 to 5 ran on the batches of steps 1 to 3" in lightning_twin.describe(light)


def test_a_stateful_loader_mends_the_rows_only_if_the_steps_are_counted_by_hand(words, tmp_path):
    asked, counted, dropout = lightning_twin.mended(words, 10, tmp_path, after=2)
    assert "steps 3 to 5 ran on the batches of steps 1 to 3" in asked
    assert counted.endswith("continued bit for bit, the same test predictions")
    assert "ran on the right rows; losses differ" in dropout


def test_two_processes_validate_a_row_twice(words, runs, tmp_path):
    weights = runs[LIGHT] / "train/weights/last.ckpt"
    found = lightning_twin.validate(words, weights, tmp_path / "val")
    rows, exact = found["rows"], found["core"]
    assert rows % 2 == 1
    for name in ("1 process", "2 processes, each row once, torchmetrics"):
        assert found[name] == pytest.approx(exact, abs=1e-6)
    task, module = lightning_twin.open_task(words, tmp_path / "again")
    module.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    with torch.no_grad():
        first = module.eval().loss(task.val.collate([0], None))[0].item()
    twice = (exact["val_loss"] * rows + first) / (rows + 1)
    assert found["2 processes"]["val_loss"] == pytest.approx(twice, abs=1e-6)
    assert abs(twice - exact["val_loss"]) > 1e-4
    # the mean of 8 and 7 rows is taken as 7
    too_large = exact["val_loss"] * (rows / 2) / (rows // 2)
    assert found["2 processes, each row once"]["val_loss"] == pytest.approx(too_large, abs=1e-5)
