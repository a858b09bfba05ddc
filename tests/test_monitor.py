"""What a run logs beside its losses, where copies of the log go, and its page at the end."""

import csv
import gc
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PROJECT

import core
import run_2_appendprompt
from evaluation import monitor
from models import pretrained
from runs import results
from settings import parse_settings


@pytest.fixture
def train(tiny_bert, pair_csv, cache_folder, tmp_path):
    """Four steps of run 2 in this process; gives the run folder."""

    def run(*settings: str, out: str = "run") -> Path:
        words = [
            *("--model", str(tiny_bert), "--data", str(pair_csv), "--max_length", "32"),
            *("--batch", "40", "--lr", "1e-3", "--out", str(tmp_path / out), *settings),
        ]
        if "--page=true" not in words:
            words.append("--page=false")
        run_2_appendprompt.main(*parse_settings(run_2_appendprompt.Config, words))
        return tmp_path / out

    return run


def lines_of(folder: Path) -> list[dict]:
    return [
        json.loads(x) for x in (folder / "train/metrics/metrics.jsonl").read_text().splitlines()
    ]


# ------------------------------------------------------------------------ gradient norms


def test_layer_norms_are_those_of_the_layers_parameters():
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4), torch.randn(5), torch.randn(2, 2)]
    total, each = core.gradient_norms(gradients, ["layer_0", "head", "layer_0"], scale=0.5)
    both = torch.cat([gradients[0].flatten(), gradients[2].flatten()])
    assert each["layer_0"] == pytest.approx(0.5 * float(both.norm()))
    assert each["head"] == pytest.approx(0.5 * float(gradients[1].norm()))
    assert total == pytest.approx(0.5 * float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.encoder.layer.11.output.dense.weight", "layer_11"),
        ("encoder.embeddings.LayerNorm.bias", "embeddings"),
        ("transformer.h.0.attn.c_attn.weight", "layer_0"),
        ("transformer.wte.weight", "embeddings"),
        ("transformer.ln_f.weight", "ln_f"),
        ("lm_head.weight", "lm_head"),
        ("gpt_neox.embed_in.weight", "embeddings"),
        ("embed_out.weight", "embed_out"),
        ("model.layer_norm.weight", "norm"),
        ("head.dense.weight", "head"),
        ("head.0.weight", "head"),
    ],
)
def test_layers_are_found_by_name(name, layer):
    assert pretrained.layer_of(name) == layer


def test_each_step_logs_its_layers_and_memory(train):
    steps = [line for line in lines_of(train("--epochs", "1")) if "train_loss" in line]
    assert len(steps) == 4
    for line in steps:
        assert list(line["grad_norms"]) == ["embeddings", "layer_0", "layer_1", "head"]
        squares = sum(norm**2 for norm in line["grad_norms"].values())
        assert math.sqrt(squares) == pytest.approx(line["grad_norm"], rel=1e-5)
        assert line["peak_memory_bytes"] > 10**8


# ------------------------------------------------------------------------------- machine


class FakeGpu:
    """torch.cuda as far as the monitor looks; without the driver's package it raises."""

    def __init__(self, percent=None):
        self.percent, self.asked = percent, 0

    def utilization(self):
        self.asked += 1
        if self.percent is None:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return self.percent

    def memory_allocated(self):
        return 5 << 30


def monitor_of(gpu=None, percents=(0.0, 50.0, 100.0), used=(0.0, 3.0, 3.5)):
    percents, used = iter(percents), iter(used)
    found = monitor.Monitor(torch.device("cpu"), 1.0, lambda: next(percents), lambda: next(used), 2)
    found.gpu = gpu
    return found


def test_shares_are_of_the_time_since_the_last_sample():
    watched = monitor_of()
    assert watched.sample(10.0, 0.0, 0.0) == {}  # where it begins
    watched.add(checkpoint_bytes=7, checkpoint_seconds=0.25)
    assert watched.sample(10.9, 0.9, 0.0) == {}  # too early
    watched.add(checkpoint_bytes=3)
    line = watched.sample(12.0, 1.6, 0.4)
    assert line.pop("memory_bytes") > 10**7
    assert line == {
        **{"cpu_share": 0.5, "process_share": 0.75, "data_share": 0.25},
        **{"checkpoint_bytes": 10, "checkpoint_seconds": 0.25},
    }
    line = watched.sample(13.0, 2.6, 0.4)
    assert (line["cpu_share"], line["process_share"], line["data_share"]) == (1.0, 0.25, 0.0)
    assert "checkpoint_bytes" not in line  # each is said once


def test_a_gpu_that_tells_nothing_is_asked_once():
    gpu = FakeGpu()
    watched = monitor_of(gpu)
    for second in range(3):
        line = watched.sample(second, second, 0.0)
    assert line["device_memory_bytes"] == 5 << 30 and "device_share" not in line
    assert gpu.asked == 1
    watched = monitor_of(FakeGpu(87))
    watched.sample(0.0, 0.0, 0.0)
    assert watched.sample(1.0, 1.0, 0.0)["device_share"] == 0.87


def test_devices_without_a_figure_have_none():
    class Apple:
        def current_allocated_memory(self):
            return 3

    assert monitor.device_memory(Apple()) == 3
    assert monitor.device_share(Apple()) is None
    assert monitor.gpu_of(torch.device("cpu")) is None
    assert monitor.gpu_of(torch.device("xpu")) is torch.xpu


def test_a_run_logs_its_machine_or_does_not(train, monkeypatch):
    _, *others = monitor.Monitor.__init__.__defaults__
    monkeypatch.setattr(monitor.Monitor.__init__, "__defaults__", (0.0, *others))
    folder = train("--epochs", "1", "--eval_every", "2")
    first, *rest = (line.get("machine") for line in lines_of(folder) if "train_loss" in line)
    assert first is None
    for found in rest:
        assert 0 <= found["cpu_share"] <= 1 and 0 <= found["data_share"] <= 1
        assert found["process_share"] > 0 and found["memory_bytes"] > 10**8
    # the evaluation and the checkpoints of step 2 are said with step 3
    assert "checkpoint_bytes" not in rest[0] and rest[1]["evaluation_seconds"] > 0
    weights = (folder / "train/weights/step_00000002").iterdir()
    assert rest[1]["checkpoint_bytes"] > sum(file.stat().st_size for file in weights)
    record = json.loads((folder / "run.json").read_text())
    assert record["checkpoint_bytes"] > rest[1]["checkpoint_bytes"]  # all of them, the last, too
    assert 0 < record["checkpoint_seconds"] and 0 < record["evaluation_seconds"]

    without = train("--epochs", "1", "--machine_log=false", out="without")
    assert not any("machine" in line for line in lines_of(without))
    assert "checkpoint_bytes" not in json.loads((without / "run.json").read_text())


# ------------------------------------------------------------------------------ trackers


def test_tensorboard_has_what_the_log_has(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train("--epochs", "1", "--trackers", "tensorboard", "--stop_after", "2")
    folder = train("--epochs", "1", "--trackers", "tensorboard")  # continued
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    lines = lines_of(folder)
    for name in ("train_loss", "lr", "val_loss"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in expected]
    assert len(events.Scalars("grad_norms/layer_0")) == 4


def test_wandb_offline_keeps_a_run(train, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train("--epochs", "1", "--trackers", "wandb")
    (record,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert b"train_loss" in record.read_bytes()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(train, monkeypatch, capsys):
    class Failing:
        name = "tensorboard"

        def __init__(self, *arguments):
            self.closed = False

        def log(self, line):
            if line["step"] == 2:
                raise ConnectionError("the server is gone")

        def close(self):
            raise ConnectionError("gone")

    monkeypatch.setitem(monitor.TRACKERS, "tensorboard", Failing)
    folder = train("--epochs", "1", "--trackers", "tensorboard")
    assert capsys.readouterr().out.count("no more logging to tensorboard: the server is gone") == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_unknown_and_missing_trackers_are_refused(train, monkeypatch):
    with pytest.raises(ValueError, match="expected tensorboard, wandb"):
        train("--trackers", "tensorbord")
    monkeypatch.setattr(monitor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        train("--trackers", "wandb", out="other")
    assert monitor.check_trackers(None) == []


# ---------------------------------------------------------------- worst rows and the page


def test_the_rows_that_went_most_wrong_keep_their_text(train):
    folder = train("--epochs", "1")
    with open(folder / "test/metrics/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "text" not in rows[0]
    losses = {row["id"]: -math.log(float(row[f"p_{row['label']}"])) for row in rows}
    expected = sorted(losses, key=losses.__getitem__, reverse=True)[:20]
    text = (folder / "test/analysis/worst_rows.jsonl").read_text()
    worst = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in worst] == expected
    assert worst[0]["loss"] == pytest.approx(losses[worst[0]["id"]])
    assert set(worst[0]["text"]) == {"prompt", "response A", "response B"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for row in worst:  # no word of a text stands in it that the model could not see
        read = row["read"]["A, as read"], row["read"]["B, as read"]
        assert all(0 < len(text.split()) <= config["max_length"] for text in read)
        assert row["text"]["response A"].split()[0].lower()[:3] in read[0]


def test_row_losses_of_every_kind():
    assert results.row_loss({"loss_sum": 6.0, "num_targets": 3}) == 2.0
    assert results.row_loss({"label": 4.5, "prediction": "3.0"}) == 1.5
    assert results.row_loss({"label": "A", "p_A": 0.0}) == pytest.approx(36.04, abs=0.01)
    long = {"label": "A", "p_A": 0.5, "text": {"prompt": "x" * 5000}}
    assert len(results.worst_rows([long])[0]["text"]["prompt"]) == 2000
    assert results.worst_rows([{"label": "A", "p_A": 0.5}]) == []


def test_a_finished_run_has_its_page(train, capsys):
    folder = train("--epochs", "1", "--page=true")
    assert f"page: {folder / 'report.html'}" in capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert list((folder / "train/analysis").glob("*.png"))


def test_the_collector_works_again_once_all_is_loaded(train):
    gc.set_threshold(*core.WHILE_LOADING)
    train("--epochs", "1")
    assert gc.get_threshold() == core.COLLECTOR


def test_a_page_that_cannot_be_made_is_a_warning(train, monkeypatch, capsys):
    monkeypatch.setattr("runs.run.PROJECT", Path("/nowhere"))
    folder = train("--epochs", "1", "--page=true")
    assert "warning: no page" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_report_imports_no_training_code():
    code = (
        "import sys, report, reports.compare, reports.table, reports.power, reports.page, "
        "reports.watch; print(sorted({'torch', 'transformers', 'core'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
