"""Frozen parts run once, padding and what nobody reads not at all, and nothing else changes."""

import csv
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, LAYERS
from transformers import AutoModel

import core
import run_5_models
from device import Machine, autocast
from experiments import preference
from files import DiskFull
from methods import feature_cache, frozen_parts
from methods.dropout import use_word_dropout
from models import pairs, pretrained
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERED = [name for name in ARCHITECTURES if name != "albert"]


def build_pair_model(folder: Path, freeze: str) -> core.PairClassifier:
    kind = pretrained.load_config(str(folder)).model_type
    attention = "eager" if kind.startswith("deberta") else "sdpa"
    encoder = pretrained.load_encoder(str(folder), attention=attention)
    pretrained.freeze(encoder, freeze)
    model = core.PairClassifier(encoder, core.ConcatHead(encoder.config.hidden_size))
    use_word_dropout(model.encoder)
    core.train_but_frozen(model)
    return model


def padded_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (4, 24), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(24) < torch.tensor([24, 9, 17, 3])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    "architecture,precision",
    # transformers' first DeBERTa cannot take bf16 on a CPU, whatever runs of it
    [(name, p) for name in LAYERED for p in ("fp32", "bf16") if (name, p) != ("deberta", "bf16")],
)
def test_layers_above_the_border_give_the_same_from_kept_states(architecture, precision, tiny):
    """Outputs, gradients, dropout masks; whatever lies at padding; no layer below is called."""
    model, batch = build_pair_model(tiny(architecture), "bottom:2"), padded_batch()
    encoder, found = model.encoder, []
    names = list(encoder.state_dict())
    with torch.no_grad():
        kept = pretrained.border_states(encoder, **batch)
    assert kept.dtype == torch.float32
    kept[batch["attention_mask"] == 0] = 0
    for below in (True, False):
        torch.manual_seed(3)
        encoder.zero_grad()
        with autocast(torch.device("cpu"), precision):
            if below:
                with torch.no_grad():
                    exact = pretrained.border_states(encoder, **batch)
                logits = model(**batch)
            else:
                calls = [
                    layer.register_forward_pre_hook(lambda *call: pytest.fail("a frozen layer ran"))
                    for layer in pretrained.find_layers(encoder)[:2]
                ]
                states = exact if precision == "bf16" else kept
                with pretrained.from_border(encoder, states):
                    logits = model(**batch)
                for call in calls:
                    call.remove()
        logits.square().sum().backward()
        gradients = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        found.append((logits.detach(), torch.cat(gradients)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)
    assert found[0][1].abs().max() > 0 and list(encoder.state_dict()) == names
    assert len(pretrained.find_layers(encoder)) == LAYERS


def test_an_error_above_the_border_leaves_the_encoder_whole(tiny):
    """Out of memory, say: the step is done again with smaller micro-batches."""
    model, batch = build_pair_model(tiny("bert"), "bottom:2").eval(), padded_batch()
    before = model(**batch)
    with pytest.raises(RuntimeError, match="out of memory"):
        with pretrained.from_border(model.encoder, torch.zeros(4, 24, 32)):
            raise RuntimeError("out of memory")
    assert torch.equal(model(**batch), before)


@pytest.mark.parametrize(
    "kind,kernel,frozen,why",
    [
        ("bert", 0, 2, ""),
        ("modernbert", 0, 3, ""),
        ("deberta-v2", 0, 1, ""),
        ("deberta-v2", 3, 1, "convolution"),
        ("bert", 0, 0, "0 of 4 layers are frozen"),
        ("modernbert", 0, 4, "4 of 4 layers are frozen"),
        ("gpt2", 0, 2, "gpt2 is not known"),
    ],
)
def test_where_states_cannot_be_handed_in_the_reason_is_said(kind, kernel, frozen, why):
    config = SimpleNamespace(model_type=kind, conv_kernel_size=kernel)
    said = pretrained.why_no_border(config, frozen, 4)
    assert why in said and bool(said) == bool(why)


# -------------------------------------------------------------------------------- runs


@pytest.fixture
def cache(tmp_path, monkeypatch, cache_folder):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/features"


def train(folder: Path, *words: object) -> Path:
    settings = ["--max_length=48", "--batch=24", "--epochs=1", "--eval_every=4", "--lr=1e-3"]
    settings += ["--page=false", "--machine_log=false"]
    config, _ = parse_settings(
        run_5_models.Config, [*settings, f"--out={folder}", *map(str, words)], "run_5_models.py"
    )
    run_5_models.main(config, True)
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "test/metrics/metrics.json").read_text())


def lines_of(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock or the machine gives."""
    timed = ("second", "machine", "memory")
    lines = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in lines]


def assert_same_bits(folder: Path, other: Path) -> None:
    assert metrics_of(folder) == metrics_of(other) and lines_of(folder) == lines_of(other)
    for name in ("test/metrics/predictions.csv", "train/weights/final/model.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def assert_close_runs(folder: Path, other: Path, tolerance: float) -> None:
    """Each loss, norm and test prediction; not accuracy: one row moves it by .06."""
    for line, there in zip(lines_of(folder), lines_of(other), strict=True):
        assert line.keys() == there.keys()
        for name in ("train_loss", "grad_norm", "val_loss"):
            if name in line:
                assert line[name] == pytest.approx(there[name], abs=tolerance), (name, line["step"])
    tables = []
    for run in (folder, other):
        with open(run / "test/metrics/predictions.csv", newline="") as file:
            tables.append(
                [[float(row[f"p_{k}"]) for k in ("A", "B", "tie")] for row in csv.DictReader(file)]
            )
    assert np.abs(np.array(tables[0]) - np.array(tables[1])).max() < tolerance
    assert np.ptp(np.array(tables[0]), axis=0).max() > 0.01  # the answers depend on the row


@pytest.mark.parametrize(
    "words,tolerance",
    [
        (("--freeze=all",), 1e-5),
        (("--freeze=all", "--swap=both", "--head=symmetric", "--precision=bf16"), 2e-2),
        (("--freeze=bottom:2", "--swap=augment"), 1e-4),
        (("--freeze=bottom:3", "--precision=bf16", "--swap=tta"), 2e-2),
    ],
    ids=["all", "all both symmetric bf16", "bottom augment", "bottom bf16 tta"],
)
def test_a_run_is_the_same_with_the_cache_off_and_again(
    words, tolerance, tiny, pair_csv, cache, tmp_path, capsys
):
    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", *words)
    each = train(tmp_path / "each", *common, "--cache_features=false")
    assert not cache.exists()
    first = train(tmp_path / "first", *common)
    assert "sequences, computed once" in capsys.readouterr().out and len(list(cache.iterdir())) == 1
    again = train(tmp_path / "again", *common)
    assert "sequences, from the cache" in capsys.readouterr().out
    assert_close_runs(first, each, tolerance)
    assert_same_bits(first, again)
    opened = AutoModel.from_pretrained(first / "train/weights/best", add_pooling_layer=False)
    published = load_file(tiny("bert") / "model.safetensors")
    assert torch.equal(
        opened.encoder.layer[0].output.dense.weight,
        published["encoder.layer.0.output.dense.weight"],
    )


def test_other_layers_lengths_and_precisions_have_features_of_their_own(
    tiny, pair_csv, cache, tmp_path
):
    common = (f"--model={tiny('distilbert')}", f"--data={pair_csv}", "--epochs=0.1")
    common += ("--warmup_frac=0",)
    seen = 0
    for number, words in enumerate(
        (
            ("--freeze=all",),
            ("--freeze=all", "--seed=4", "--head=symmetric", "--label_smoothing=.1", "--dropout=0"),
            ("--freeze=all", "--max_length=40"),
            ("--freeze=all", "--precision=bf16"),
            ("--freeze=all", "--init=random"),
            ("--freeze=bottom:1",),
            ("--freeze=bottom:2",),
        )
    ):
        train(tmp_path / str(number), *common, *words)
        seen += number != 1  # the head and the order of rows are nothing to the encoder
        assert len(list(cache.iterdir())) == seen, words


@pytest.mark.parametrize("freeze", ["all", "bottom:2"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(freeze, tiny, pair_csv, cache, tmp_path):
    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", f"--freeze={freeze}")
    whole = train(tmp_path / "whole", *common)
    parts = train(tmp_path / "parts", *common, "--stop_after=3")
    for folder in cache.iterdir():  # a new machine has none: they are computed again
        (folder / "manifest.json").unlink()
    assert_same_bits(train(parts, *common), whole)


def test_frozen_layers_drop_nothing_where_rows_are_scored(
    tiny, pair_csv, cache, tmp_path, monkeypatch
):
    """Batch selection evaluates the model ahead of some steps; dropout is .1."""
    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", "--freeze=bottom:1")
    common += ("--selection.name=selective_backprop", "--cache_features=false")
    modes, original = [], preference.Preference.loss_sum

    def loss_sum(self, model, batch):
        layers = pretrained.find_layers(model.encoder)
        modes.append((model.encoder.embeddings.training, layers[0].training, layers[1].training))
        return original(self, model, batch)

    monkeypatch.setattr(preference.Preference, "loss_sum", loss_sum)
    train(tmp_path / "run", *common, "--stop_after=4")
    assert len(modes) >= 4 and set(modes) == {(False, False, True)}


def test_what_would_not_fit_on_the_disk_runs_in_each_step(
    tiny, pair_csv, cache, tmp_path, capsys, monkeypatch
):
    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", "--freeze=bottom:2")
    each = train(tmp_path / "each", *common, "--cache_features=false")
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 1000)
    tight = train(tmp_path / "tight", *common)
    assert "has room for 0.0" in capsys.readouterr().out and not cache.exists()
    assert_same_bits(tight, each)


def test_a_disk_that_fails_costs_the_cache_and_not_the_run(
    tiny, pair_csv, cache, tmp_path, capsys, monkeypatch
):
    def full(*arguments, **facts):
        raise DiskFull("disk full")

    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", "--freeze=all", "--epochs=0.2")
    each = train(tmp_path / "each", *common, "--cache_features=false")
    monkeypatch.setattr(feature_cache, "write_folder", full)
    assert_same_bits(train(tmp_path / "full", *common), each)
    assert "nothing is kept (disk full)" in capsys.readouterr().out
    assert list(cache.iterdir()) == []  # not even the unfinished one


class TwoRanks(core.World):
    """A rank of two that are threads of this process."""

    shared: list
    meeting: threading.Barrier

    def gather_rows(self, rows: list) -> list:
        self.shared[self.rank] = rows
        self.meeting.wait(10)
        everything = [row for part in self.shared for row in part]
        self.meeting.wait(10)
        return everything

    def any(self, flag: bool) -> bool:
        return any(self.gather_rows([flag]))

    def from_rank_0(self, value):
        return self.gather_rows([value])[0]

    def barrier(self) -> None:
        self.meeting.wait(10)


@pytest.mark.parametrize("fails", [False, True])
def test_two_ranks_fill_one_file_or_give_up_together(fails, cache, capsys):
    """Rows in any order, each by one rank; where one cannot write, neither waits for the other."""
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    cuts = [(start, values[start : start + 5]) for start in range(0, 50, 5)]
    TwoRanks.shared, TwoRanks.meeting = [None, None], threading.Barrier(2)

    def fill(rank: int) -> tuple:
        def build():
            if fails and rank == 1:
                raise OSError("no space left on device")
            yield from cuts[rank::2][::-1]

        world = TwoRanks(torch.device("cpu"), Machine(), rank=rank, size=2)
        return feature_cache.kept_rows({"a": 1}, values.shape, np.float16, build, world)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(fill, range(2)))
        again = list(pool.map(fill, range(2)))
    for (found, was_there), (later, is_there) in zip(results, again, strict=True):
        if fails:
            assert found is None and later is None
        else:
            assert np.array_equal(found, values) and np.array_equal(later, values)
            assert (was_there, is_there) == (False, True) and isinstance(later, np.memmap)
    assert ("nothing is kept (no space left" in capsys.readouterr().out) == fails
    assert len(list(cache.iterdir())) == 1 - fails


def test_two_ranks_of_other_devices_have_one_folder(cache):
    """A key names the device, and two cards of one machine may be of two kinds."""
    TwoRanks.shared, TwoRanks.meeting = [None, None], threading.Barrier(2)
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

    def fill(rank: int) -> np.ndarray:
        world = TwoRanks(torch.device("cpu"), Machine(), rank=rank, size=2)
        key, rows = {"device": f"card {rank}"}, iter([(2 * rank, values[2 * rank : 2 * rank + 2])])
        kept, _ = feature_cache.kept_rows(key, values.shape, np.float32, lambda: rows, world)
        assert np.array_equal(kept, values)
        return feature_cache.cached_features(key | {"whole": 1}, lambda: values, world)[0]

    with ThreadPoolExecutor(2) as pool:
        assert all(np.array_equal(found, values) for found in pool.map(fill, range(2)))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("freeze", ["none", "bottom:2"])
def test_groups_of_like_length_give_what_one_pass_gives(architecture, freeze, tiny, monkeypatch):
    """Embeddings and gradients of both sides, each row in its place, as without any shortening."""
    if architecture == "albert":
        freeze = "none"  # its layers are one
    batch, head = padded_batch(), torch.nn.Linear(2, 1)
    weights = head.weight.new_tensor([1.0, -2.0])[:, None]
    found, passes = [], []
    for shorter in (False, True):
        monkeypatch.setattr(pairs, "LEAST_TOKENS", 12 if shorter else 10**6)
        model = build_pair_model(tiny(architecture), freeze).eval()
        if shorter:
            pretrained.read_first_token_alone(model.encoder)
        seen: list[tuple] = []
        model.encoder.register_forward_pre_hook(
            lambda _, __, inputs, seen=seen: seen.append(tuple(inputs["input_ids"].shape)),
            with_kwargs=True,
        )
        a, b = pairs.embed_pairs(model, batch)
        ((a * weights).sum() + (b**2).sum()).backward()
        grads = {n: p.grad for n, p in model.encoder.named_parameters() if p.grad is not None}
        found.append((a.detach(), b.detach(), grads))
        passes.append(seen)
    assert passes == [[(4, 24)], [(1, 3), (1, 9), (1, 17), (1, 24)]]
    (a, b, grads), (short_a, short_b, short_grads) = found
    torch.testing.assert_close((short_a, short_b), (a, b), atol=1e-5, rtol=1e-4)
    assert grads.keys() == short_grads.keys()
    torch.testing.assert_close(short_grads, grads, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"albert", "modernbert"}))
def test_the_last_layer_computes_the_token_that_is_read(architecture, tiny):
    model = build_pair_model(tiny(architecture), "none").eval()
    whole = model.encoder(**padded_batch()).last_hidden_state
    pretrained.read_first_token_alone(model.encoder)
    alone = model.encoder(**padded_batch()).last_hidden_state
    assert whole.shape[1] == 24 and alone.shape[1] == 1
    torch.testing.assert_close(alone, whole[:, :1], atol=1e-5, rtol=1e-4)


def test_groups_are_as_many_as_have_enough_tokens():
    lengths = torch.tensor([50, 400, 60, 300, 70, 20])
    assert [g.tolist() for g in pairs.length_groups(lengths)] == [[5, 0, 2], [4, 3, 1]]
    assert [g.tolist() for g in pairs.length_groups(lengths // 10)] == [[5, 0, 2, 4, 3, 1]]
    assert len(pairs.length_groups(lengths * 100)) == 4


# ------------------------------------------------------------------ kept or run, as measured


@pytest.fixture
def measured(monkeypatch):
    """measured(times): as a GPU would be asked, and what it would find; how often it was asked."""
    asked = []

    def as_if(kept: float, runs: float) -> list:
        def time_both(read, run, device):
            for number in range(2):
                states = run(number)
                assert read(number).shape == states.shape
            asked.append(device)
            return frozen_parts.Times(kept, runs)

        monkeypatch.setattr(preference, "pins", lambda device: True)
        monkeypatch.setattr(preference, "time_both", time_both)
        return asked

    return as_if


def frozen_part_of(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["frozen_part"]


def test_what_is_measured_faster_is_done_and_stays_when_the_run_goes_on(
    tiny, pair_csv, cache, tmp_path, capsys, measured
):
    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", "--freeze=bottom:2")
    common += ("--epochs=0.3",)
    runs = train(tmp_path / "runs", *common, "--cache_features=false")
    kept = train(tmp_path / "kept", *common, "--cache_features=true")
    for name, times, whole in (("runs", (2, 1), runs), ("kept", (1, 2), kept)):
        asked = measured(*times)
        asked.clear()
        folder = train(tmp_path / f"cut {name}", *common, "--stop_after=1")
        assert frozen_part_of(folder) == name and len(asked) == 1
        said = capsys.readouterr().out
        assert "which is faster (" in said and "ms to read them" in said
        measured(*reversed(times))
        assert_same_bits(train(folder, *common), whole)
        assert frozen_part_of(folder) == name and len(asked) == 1  # not asked again
    assert "runs in each step" not in capsys.readouterr().out


def test_an_older_run_goes_on_with_what_it_keeps(tiny, pair_csv, cache, tmp_path, measured):
    """It recorded `true`, which was the default, and nothing in run.json."""
    common = (f"--model={tiny('bert')}", f"--data={pair_csv}", "--freeze=bottom:2")
    common += ("--epochs=0.3",)
    whole = train(tmp_path / "whole", *common, "--cache_features=true")
    folder = train(tmp_path / "older", *common, "--cache_features=true", "--stop_after=1")
    record = json.loads((folder / "run.json").read_text())
    del record["frozen_part"]
    (folder / "run.json").write_text(json.dumps(record))
    asked = measured(2, 1)
    assert_same_bits(train(folder, *common), whole)
    assert not asked and frozen_part_of(folder) == "kept"


def test_times_are_medians_by_turns():
    order = []
    times = frozen_parts.time_both(
        lambda k: order.append(("read", k)),
        lambda k: (order.append(("run", k)), time.sleep(0.002)),
        torch.device("cpu"),
    )
    assert order[:3] == [("read", 0), ("run", 0), ("read", 1)]
    assert times.faster == "kept" and times.runs >= 0.002
    assert frozen_parts.Times(2.0, 1.0).faster == "runs"
