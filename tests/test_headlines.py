"""train_headlines.py: titles, tokenizers, both figures by hand, training, resuming, commands."""

import copy
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import PROJECT, WORDS, run_script

import core
import files
import runs
import train_headlines
from commands import inspect
from commands import titles as title_commands
from data import titles
from experiments import headlines, next_tokens
from methods.averaging import WeightAverage
from methods.r_drop import r_drop
from methods.schedules import warmup_stable_decay
from models import gpt, pretrained
from models.decoding import Decoding
from settings import as_dict, parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = ["--page=false", "--device=cpu", "--precision=fp32"]
SMALL = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--vocab_size=300", "--max_length=24"]
SMALL += ["--batch=16", "--lr=1e-2"]
WINDOWS = ["--sequences=windows", "--within_titles=false"]
CONFIGS = sorted((PROJECT / "configs/headlines").glob("*.yaml"))
ODD = [
    "a",
    "“Q” & <eos> – 100 % 日本語 🙂",
    "tab\tand  two spaces",
    "é ́ \u200b​",
    "\x00\x7f",
    "<eos>",
]


@pytest.fixture(scope="module")
def titles_file(tmp_path_factory) -> Path:
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) + f" {i}" for i in range(400)]
    path = tmp_path_factory.mktemp("data") / "titles.txt"
    path.write_text("\n".join([*lines[:200], "", "  ", *lines[200:], *ODD]) + "\n")
    return path


def parse(*words: str) -> train_headlines.Config:
    others = ("--optimizer=", "--config=")  # which say their own
    muon = len(words) > 1 and not any(word.startswith(others) for word in words)
    words = [*(["--matrix_lr=1e-2"] if muon else []), *words, *QUIET]
    return parse_settings(train_headlines.Config, words, "train_headlines.py")[0]


def train(source: Path, *words: str) -> None:
    train_headlines.main(parse(f"--data={source}", *SMALL, *words), given=True)


def task_of(source: Path, *words: str) -> tuple[headlines.Headlines, core.State]:
    """A task and the state of an untrained model, which nothing has written."""
    config = parse(f"--data={source}", *SMALL, "--dry_run", *words)
    world = core.single_world("cpu")
    task = headlines.Headlines(config, world, runs.Run(config, world).folder)
    return task, task.build_state(task.load_model())


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "test/metrics/metrics.json").read_text())


def lines_of(folder: Path, key: str = "train_loss") -> list[dict]:
    text = (folder / "train/metrics/metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if key in line]


# ------------------------------------------------------------------------------- titles


def test_titles_are_shuffled_as_the_hub_set_is(titles_file):
    datasets = pytest.importorskip("datasets")
    text = titles_file.read_text().replace("\0", "")  # which is removed, and counted
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    rows = datasets.Dataset.from_dict({"Title": lines}).shuffle(seed=1337).select(range(100))
    found, _ = titles.load_titles(str(titles_file), limit=100, seed=1337)
    assert [t.text for t in found] == rows["Title"]
    assert [lines[int(t.id)] for t in found] == rows["Title"]
    unshuffled, _ = titles.load_titles(str(titles_file), None, None)
    assert [t.text for t in unshuffled] == lines and unshuffled[1].id == "1"


def test_a_hub_set_is_read_by_its_column_of_titles(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"id": range(9), "Title": [f" t{i} " for i in range(9)]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    found, _ = titles.load_titles("some/set", 5, 1337)
    assert [t.text for t in found] == [
        t.strip() for t in rows.shuffle(seed=1337).select(range(5))["Title"]
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows.select_columns("id"))
    with pytest.raises(ValueError, match="no column of titles"):
        titles.load_titles("some/set")


def test_the_last_titles_are_for_validation():
    every = [titles.Title(str(i), "x") for i in range(100_000)]
    train_part, val = titles.split_titles(every, 0.1)
    assert (len(train_part), len(val), val[0].id) == (90_000, 10_000, "90000")
    with pytest.raises(ValueError, match="too few"):
        titles.split_titles(every[:1], 0.1)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="one title a line"):
        titles.load_titles(str(tmp_path / "none.txt"))
    (tmp_path / "table.csv").write_text("id,name\n1,fine\n")
    with pytest.raises(ValueError, match="row 1.*: no field title or .*it has id, name"):
        titles.load_titles(str(tmp_path / "table.csv"))


def test_a_column_of_titles_is_read_as_lines_are(tmp_path):
    (tmp_path / "lines.txt").write_text("a film\n\nthe plot\n")
    (tmp_path / "table.csv").write_text("id,title\n1,a film\n2,\n3,the plot\n")
    each = [titles.load_titles(str(tmp_path / n))[0] for n in ("lines.txt", "table.csv")]
    assert each[0] == each[1] and {t.text for t in each[0]} == {"a film", "the plot"}


# --------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix_space", [False, True])
def test_any_text_comes_back_exactly(kind, prefix_space, tmp_path):
    from transformers import AutoTokenizer

    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    saved = titles.train_tokenizer(kind, texts, 320, prefix_space)
    tokenizer = titles.build_tokenizer(saved)
    assert tokenizer.eos_token_id == 0 and 257 < len(tokenizer) <= 320
    tokenizer.save_pretrained(tmp_path)
    draw = random.Random(1)
    noise = ["".join(chr(draw.randrange(1, 0xD7FF)) for _ in range(9)).strip() for _ in range(50)]
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text in [*ODD, *noise, *texts]:
            ids = each(text, add_special_tokens=False)["input_ids"]
            assert titles.decode_title(each, ids) == text
            assert each.eos_token_id not in ids  # the words "<eos>" end no title
    with pytest.raises(ValueError, match="expected 257 or more"):
        titles.train_tokenizer(kind, texts, 256, True)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_texts_give_the_same_tokenizer(kind):
    """The library's Unigram alone orders equal pieces by its hash table: trainings of it differ."""
    texts = [f"{WORDS[i % len(WORDS)]} {i % 50} {WORDS[i % 7]}" for i in range(300)]
    first, again = (titles.train_tokenizer(kind, texts, 320, True) for _ in range(2))
    assert first == again
    if kind == "unigram":
        scores = [score for _, score in json.loads(first)["model"]["vocab"][1:]]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) > 20
        shuffled = json.loads(first)
        random.Random(0).shuffle(rest := shuffled["model"]["vocab"][1:])
        shuffled["model"]["vocab"][1:] = rest
        ordered = json.loads(titles.order_pieces(json.dumps(shuffled)))
        assert ordered == json.loads(first)


def test_the_tokenizer_sees_training_titles_alone(titles_file):
    seen = []
    original = titles.train_tokenizer

    def watched(kind, texts, *settings):
        seen.extend(texts)
        return original(kind, texts, *settings)

    patch = pytest.MonkeyPatch()
    patch.setattr(titles, "train_tokenizer", watched)
    patch.setattr(titles, "cache_folder", lambda: titles_file.parent / "own_cache")
    task, _ = task_of(titles_file, "--train_frac=0.5")
    patch.undo()
    every = [t.text for t in titles.load_titles(str(titles_file))[0]]
    count = len(every) - len(task.titles)
    assert seen == every[: round(count / 2)] and len(task.titles) == 41


# ------------------------------------------------------------------- figures, by hand


@pytest.fixture(scope="module")
def long_file(tmp_path_factory) -> Path:
    """Enough for one window of 64 × 128 + 1 tokens, and a tail."""
    draw = random.Random(2)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 7))) + f" {i}" for i in range(1300)]
    path = tmp_path_factory.mktemp("data") / "long.txt"
    path.write_text("\n".join([*lines, "“é” <eos>"]))
    return path


@pytest.mark.parametrize("within", [True, False])
def test_both_figures_equal_those_by_hand(within, long_file):
    words = [] if within else [*WINDOWS, "--max_length=128", "--positions=learned"]
    task, state = task_of(long_file, "--val_frac=0.6", "--data_seed=null", *words)
    model = state.model.eval()
    text = "".join(t.text + "<eos>" for t in task.titles)
    ids = []
    for title in task.titles:
        ids += [*task.tokenizer(title.text, add_special_tokens=False)["input_ids"], 0]

    def losses(inputs, targets) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor(inputs)).logits
        return F.cross_entropy(logits.transpose(1, 2), torch.tensor(targets), reduction="none")

    official, scored = 0.0, 0
    for start in range(0, len(ids) - 8192, 8193):
        window = ids[start : start + 8193]
        rows = [window[r * 128 : r * 128 + 129] for r in range(64)]
        official += losses([r[:-1] for r in rows], [r[1:] for r in rows]).sum().item()
        scored += 8192
    assert 0 < scored < len(ids)

    everything, stream = 0.0, [0, *ids]
    if within:
        start = 0
        for end, token in enumerate(ids):
            if token == 0:
                everything += losses([[0, *ids[start:end]]], [ids[start : end + 1]]).sum().item()
                start = end + 1
    else:  # each token once, with at least 64 before it where there are as many
        for start in range(0, len(ids), 64):
            first, end = max(0, start - 64), min(start + 64, len(ids))
            values = losses([stream[first:end]], [stream[first + 1 : end + 1]])
            everything += values[0, start - first :].sum().item()

    found = headlines.headline_metrics(task.sums(state), task.groups, task.exact)
    assert found["official_nats_per_char"] == pytest.approx(official / len(text), rel=1e-5)
    assert found["nats_per_char"] == pytest.approx(everything / len(text), rel=1e-5)
    assert found["share_scored"] == pytest.approx(scored / len(ids))
    assert found["nats_per_token"] == pytest.approx(everything / len(ids), rel=1e-5)
    bits = everything / math.log(2) / len(text.encode())
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found["tokenizer_exact"] is True
    for name in ("official_nats_per_char", "nats_per_char", "bits_per_byte", "nats_per_token"):
        low, high = found[f"{name}_ci95"]
        assert low < found[name] < high


def test_there_are_as_many_positions_as_are_read(titles_file):
    for words, longest in (
        (["--max_length=24"], None),
        ([*WINDOWS, "--max_length=130"], 130),
        (["--sequences=windows", "--max_length=24"], None),
    ):
        task, state = task_of(titles_file, "--positions=learned", *words)
        wanted = longest or max(24, *task.train.lengths, *(task.val_rows.lengths + 1))
        assert state.model.config.n_positions == wanted
    with pytest.raises(ValueError, match="the official figure reads rows of 128 tokens"):
        parse("--positions=learned", *WINDOWS, "--max_length=127")


def test_a_text_without_a_whole_window_has_no_official_figure(titles_file):
    task, state = task_of(titles_file)
    assert task.evaluate(state)["val_share_scored"] == 0
    assert not [k for k in task.evaluate(state) if "official" in k]
    assert len(titles.OfficialWindows(np.zeros(8192)).starts) == 0
    assert len(titles.OfficialWindows(np.zeros(8193)).starts) == 64


def test_a_tokenizer_that_loses_letters_is_said(titles_file):
    task, _ = task_of(titles_file)
    rows = copy.deepcopy(task.val_rows)
    assert titles.is_exact(task.tokenizer, task.titles, rows)
    rows.ids[3] += 1
    assert not titles.is_exact(task.tokenizer, task.titles, rows)


# ------------------------------------------------------------------------------ methods


def test_r_drop_is_equation_4_of_its_paper():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 13, generator=draw)
    labels = torch.randint(0, 13, (7,), generator=draw)
    p, q = logits.softmax(-1)
    kl = F.kl_div(q.log(), p, reduction="none") + F.kl_div(p.log(), q, reduction="none")
    cross = sum(F.cross_entropy(part, labels, reduction="none") for part in logits)
    for alpha in (0.0, 1.0, 5.0):
        expected = (cross + alpha / 2 * kl.sum(-1)) / 2
        torch.testing.assert_close(r_drop(logits, labels, alpha), expected)
    with pytest.raises(ValueError, match="2 passes"):
        r_drop(logits[:1], labels)


@pytest.mark.parametrize("words", [[], [*WINDOWS, "--batch=4"]])
def test_r_drop_trains_on_two_passes(words, titles_file):
    task, state = task_of(titles_file, "--r_drop=2.0", "--dropout=0.3", *words)
    batch = task.train.collate(np.arange(4), 0)
    model = state.model.train()
    torch.manual_seed(0)
    loss, targets = task.loss_sum(model, batch)
    assert targets == (batch["labels"] != core.IGNORE_INDEX).sum()
    torch.manual_seed(0)
    logits = model.lm_head(model.model(batch["input_ids"].repeat(2, 1)).last_hidden_state)
    keep = batch["labels"].flatten() != core.IGNORE_INDEX
    both = torch.stack([part.flatten(0, 1)[keep] for part in logits.chunk(2)])
    expected = r_drop(both, batch["labels"].flatten()[keep], 2.0).sum()
    torch.testing.assert_close(loss, expected)
    assert (both[0] - both[1]).abs().max() > 1e-3  # other masks


def test_an_average_of_the_weights_is_what_it_says():
    model = torch.nn.Linear(2, 1)
    average, history = WeightAverage(model, steps=4), []
    with average.applied():
        pass  # before the first update there is nothing to apply
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(float(step**2))
        average.update()
        history.append(float(step**2))
        if step == 2:  # as a run that was stopped
            saved = copy.deepcopy(average.state_dict())
            average = WeightAverage(model, steps=4)
            average.load_state_dict(saved)
    weights = 0.75 ** np.arange(5, -1, -1)
    expected = float((weights * history).sum() / weights.sum())
    with average.applied():
        assert model.weight[0, 0].item() == pytest.approx(expected)
    assert model.weight[0, 0].item() == 25.0
    with pytest.raises(ValueError, match="1 or more"):
        WeightAverage(model, steps=0.5)


def test_warm_up_stable_decay():
    def factor(fraction: float) -> float:
        return warmup_stable_decay(fraction, 0.1, 0.4, 0.25)

    assert [factor(x) for x in (0, 0.05, 0.1, 0.35, 0.6)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert factor(0.8) == pytest.approx(0.625) and factor(1) == pytest.approx(0.25)
    assert warmup_stable_decay(1.0, 0.0, 0.0) == 1.0


# ----------------------------------------------------------------------------- training

EVERYTHING = ["--average_frac=0.3", "--r_drop=1.0", "--dropout=0.2", "--epochs=0.7"]
ONE_PASS = [*WINDOWS, "--optimizer=adamw", "--r_drop=0"]


def test_a_run_has_what_the_contract_says(titles_file, tmp_path):
    from transformers import AutoModelForCausalLM

    train(titles_file, "--epochs=4", "--eval_every=20", f"--out={tmp_path}")
    found = metrics_of(tmp_path)
    lines = lines_of(tmp_path, "val_loss")
    losses = [line["val_nats_per_char"] for line in lines]
    assert found["nats_per_char"] == pytest.approx(losses[-1]) and losses[-1] < 0.8 * losses[0]
    assert found["nats_per_token"] == pytest.approx(lines[-1]["val_loss"])
    assert found["tested_with"] == "final" and found["tokenizer_exact"] is True
    rows = (tmp_path / "test/metrics/predictions.csv").read_text().splitlines()
    assert rows[0] == "id,group,loss_sum,num_targets,num_chars" and len(rows) == 42
    cells = np.array([row.split(",")[2:] for row in rows[1:]], float).sum(axis=0)
    assert cells[0] / cells[2] == pytest.approx(found["nats_per_char"])
    assert cells[0] / cells[1] == pytest.approx(found["nats_per_token"])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["training_flops"] == found["training_flops"] > 0
    assert record["parameters"] == found["parameters"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "train/weights/final")
    assert type(model) is gpt.SmallGPTForCausalLM
    assert sum(p.numel() for p in model.parameters()) == found["parameters"]
    best, step = (
        tmp_path / "train/weights" / n for n in ("best", f"step_{found['best_step']:08d}")
    )
    assert (best / "model.safetensors").samefile(step / "model.safetensors")  # written once


@pytest.mark.parametrize("words", [[], ONE_PASS], ids=["titles", "windows"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(words, titles_file, tmp_path):
    words = [*EVERYTHING, *words]
    train(titles_file, *words, f"--out={tmp_path / 'whole'}")
    train(titles_file, *words, f"--out={tmp_path / 'parts'}", "--stop_after=5")
    assert json.loads((tmp_path / "parts/run.json").read_text())["status"] == "stopped"
    train(titles_file, *words, f"--out={tmp_path / 'parts'}")
    for file in ("test/metrics/predictions.csv", "train/weights/final/model.safetensors"):
        whole, cut = (tmp_path / name / file for name in ("whole", "parts"))
        assert whole.read_bytes() == cut.read_bytes(), file
    assert len(lines_of(tmp_path / "parts")) == len(lines_of(tmp_path / "whole")) > 5


def test_averaged_weights_are_evaluated_and_kept(titles_file, tmp_path):
    words = ["--epochs=1", "--schedule=constant"]
    train(titles_file, *words, f"--out={tmp_path / 'last'}")
    train(titles_file, *words, "--average_frac=0.5", f"--out={tmp_path / 'average'}")
    last, average = (
        pretrained.read_weights(tmp_path / name / "train/weights/final")
        for name in ("last", "average")
    )
    # training goes on from the weights themselves
    ours, theirs = (lines_of(tmp_path / name)[-1] for name in ("last", "average"))
    assert ours["train_loss"] == theirs["train_loss"]
    assert any(not torch.equal(last[name], average[name]) for name in last)
    found = metrics_of(tmp_path / "average")["nats_per_char"]
    assert found != metrics_of(tmp_path / "last")["nats_per_char"]
    evaluated = lines_of(tmp_path / "average", "val_loss")[-1]["val_nats_per_char"]
    assert evaluated == pytest.approx(found, rel=1e-6)


def test_the_best_of_averaged_weights_are_tested_where_they_are_asked_for(titles_file, tmp_path):
    """A rate that rises without end: an evaluation in the middle is the best one."""
    words = ["--epochs=3", "--average_frac=0.1", "--schedule=constant", "--warmup_frac=0.99"]
    words += ["--optimizer=adamw", "--lr=3", "--eval_every=6", "--test_with=best"]
    train(titles_file, *words, f"--out={tmp_path}")
    found = metrics_of(tmp_path)
    evaluated = {line["step"]: line["val_nats_per_char"] for line in lines_of(tmp_path, "val_loss")}
    step, last = found["best_step"], max(evaluated)
    assert step < last and abs(evaluated[step] - evaluated[last]) > 1e-3
    assert found["tested_with"] == "best"
    assert found["nats_per_char"] == pytest.approx(evaluated[step], rel=1e-6)


def test_two_processes_equal_one(titles_file, tmp_path):
    words = [f"--data={titles_file}", *SMALL, "--matrix_lr=1e-2", *EVERYTHING, *QUIET]
    train_headlines.main(parse(*words, f"--out={tmp_path / 'one'}"), given=True)
    run_script("train_headlines.py", *words, f"--out={tmp_path / 'two'}", processes=2)
    ours, theirs = lines_of(tmp_path / "two"), lines_of(tmp_path / "one")
    assert len(ours) == len(theirs)
    for line, other in zip(ours, theirs, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    assert metrics_of(tmp_path / "two")["nats_per_char"] == pytest.approx(
        metrics_of(tmp_path / "one")["nats_per_char"], rel=1e-4
    )


@pytest.mark.parametrize("words", [[], WINDOWS, ["--sequences=windows"]], ids=str)
def test_flops_are_those_of_the_rows(words, titles_file):
    once = ["--optimizer=adamw", "--r_drop=0", *words]
    task, state = task_of(titles_file, "--epochs=2", *once)
    pairs = tokens = 0
    for row in range(len(task.train.lengths)):
        ids = task.train.collate(np.array([row]), 0)["input_ids"][0, : task.train.lengths[row]]
        number = (ids == 0).cumsum(0) if task.config.within_titles else torch.zeros_like(ids)
        lengths = torch.unique_consecutive(number, return_counts=True)[1].tolist()
        pairs, tokens = pairs + gpt.causal_pairs(lengths), tokens + len(ids)
    forward = gpt.forward_flops(state.model.config, tokens, pairs, tokens)
    flops = task.training_flops(state)
    assert flops == 2 * 3 * forward
    twice, state = task_of(titles_file, "--epochs=2", *once, "--r_drop=1")
    assert twice.training_flops(state) == 2 * flops  # two passes
    dry = [word for word in once if word != "--r_drop=0"]  # whose default is 1
    same, state = task_of(titles_file, "--epochs=2", *dry, "--dropout=0")
    assert same.training_flops(state) == flops  # nothing could differ in a second pass
    muon, state = task_of(titles_file, *once, "--optimizer=muon")
    assert muon.training_flops(state) > 3.5 * flops  # 7 epochs


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--within_titles=false"], "--sequences titles: a title alone"),
        (["--betas=[0.9]"], "two numbers"),
        (["--val_frac=1"], "below 1"),
    ],
)
def test_settings_that_do_not_go_together(words, problem):
    with pytest.raises((ValueError, SystemExit), match=problem):
        parse(*words)


def test_without_settings_or_hub_the_reviews_are_trained_on(titles_file, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    small = {"data": str(titles_file), "vocab_size": 300, "n_layer": 1, "n_embd": 32, "epochs": 0.4}
    monkeypatch.setattr(train_headlines, "EMBEDDED", train_headlines.EMBEDDED | small)
    train_headlines.main(parse(f"--out={tmp_path}"), given=False)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["n_embd"] == 32
    assert metrics_of(tmp_path)["n"] == 41


def test_wavelengths_beside_learned_positions_are_refused(titles_file, tmp_path):
    words = [f"--data={titles_file}", "--positions=learned", f"--out={tmp_path}"]
    with pytest.raises(ValueError, match="rope_theta 500.* would change nothing"):
        train_headlines.main(parse(*words, "--rope_theta=500"), given=True)
    config = parse(*words, "--rope_theta=10000.0")  # as published commands say
    assert headlines.Headlines(config, core.single_world("cpu"), None).config is config


# ------------------------------------------------------------------------------ configs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_two_steps(path, titles_file, tmp_path, monkeypatch):
    given = yaml.safe_load(path.read_text()) or {}
    given.pop("published", None)
    defaults = train_headlines.Config()
    assert given.pop("precision") == "fp32" and given.pop("max_grad_norm") == 1.0  # pinned
    for name, value in given.items():
        assert getattr(defaults, name) != value, f"{path.name}: {name} is the default"
    assert f"train_headlines.py --config configs/headlines/{path.name}" in path.read_text()
    small = [f"--data={titles_file}", *SMALL[:4], "--batch=8"]
    train_headlines.main(
        parse(f"--config={path}", *small, f"--out={tmp_path}", "--stop_after=2"), given=True
    )
    assert len(lines_of(tmp_path)) == 2


def test_each_config_changes_one_thing():
    """The names of the settings that differ from the config before are said in its first line."""
    steps = [path for path in CONFIGS if path.stem[:2].isdigit()]
    assert [int(path.stem[:2]) for path in steps] == list(range(len(steps))) and len(steps) > 9
    before = None
    for path in steps:
        settings = as_dict(parse(f"--config={path}"))
        settings.pop("eval_every")  # with --test_with final it changes nothing
        if before is not None:
            changed = {name for name in settings if settings[name] != before[name]}
            named = path.read_text().splitlines()[0].partition("(")[2].partition(")")[0]
            assert changed == set(named.split(", ")), path.name
        before = settings
    defaults = as_dict(parse())
    assert before | {"eval_every": None} == defaults, "the last step is the default"


# ----------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def finished(long_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(long_file, "--val_frac=0.6", "--epochs=1", f"--out={folder}")
    return folder


def run_command(name: str, *words: str) -> None:
    action, kind = {
        "inspect": (inspect.inspect, inspect.InspectConfig),
        "generate": (title_commands.generate, title_commands.GenerateConfig),
        "export": (title_commands.export, title_commands.ExportConfig),
    }[name]
    action(parse_settings(kind, words, name)[0])


def test_inspect_tells_what_the_model_expects(finished, capsys):
    run_command("inspect", f"--run={finished}", "--row=1", "--samples=3")
    out = capsys.readouterr().out
    for name in ("next_tokens.png", "frequencies.png"):
        assert (finished / "inspect" / name).read_bytes().startswith(b"\x89PNG")
    found = json.loads((finished / "inspect/inspect.json").read_text())
    assert (finished / "inspect/inspect.txt").read_text() in out
    assert "batch 0, row 1, position 10" in out and len(found["samples"]) == 3

    opened = title_commands.open_titles(str(finished), "final", "cpu")
    every, _ = titles.load_titles(opened.config.data, seed=1337)
    held_out = titles.split_titles(every, 0.6)[1]
    ids = []
    for title in held_out:
        ids += [*opened.tokenizer(title.text, add_special_tokens=False)["input_ids"], 0]
    row = ids[128:][:11]
    with torch.no_grad():
        shares = opened.model(torch.tensor([row])).logits[0, -1].softmax(-1)
    best = shares.topk(10).values.tolist()
    assert [t["probability"] for t in found["place"]["likeliest"]] == pytest.approx(best, rel=1e-4)
    assert found["place"]["next_probability"] == pytest.approx(shares[ids[139]].item(), rel=1e-4)
    eos = found["frequencies"]["eos"]
    assert eos["data"] == pytest.approx(len(held_out) / len(ids)) and eos["token"] == "<eos>"
    assert found["frequencies"]["tokens"] == len(ids)
    expected = 0.0  # each title alone behind an <eos>, as the run's evaluation reads it
    for title in held_out:
        row = [0, *opened.tokenizer(title.text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            expected += opened.model(torch.tensor([row])).logits[0].softmax(-1)[:, 0].sum().item()
    assert eos["model"] == pytest.approx(expected / len(ids), rel=1e-4)
    for words in (["--batch=9"], ["--position=128"], ["--row=-1"]):
        with pytest.raises(ValueError, match="the validation titles have 0 to"):
            run_command("inspect", f"--run={finished}", *words)
    last = len(ids) // titles.OFFICIAL_SPAN  # a batch that the text does not fill
    run_command("inspect", f"--run={finished}", f"--batch={last}", "--position=0")
    assert f"batch {last}, row 0, position 0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the validation titles end before"):
        run_command("inspect", f"--run={finished}", f"--batch={last}", "--row=63", "--position=127")


def test_inspect_reads_the_titles_of_the_run_and_no_others(titles_file, tmp_path):
    here, there = tmp_path / "here.txt", tmp_path / "there.txt"
    here.write_bytes(titles_file.read_bytes())
    run = tmp_path / "run"
    train(here, "--epochs=0.1", f"--out={run}")
    here.rename(there)
    with pytest.raises(FileNotFoundError, match="here.txt"):
        run_command("inspect", f"--run={run}")
    run_command("inspect", f"--run={run}", f"--data={there}", "--samples=1")
    there.write_text(there.read_text() + "one more title\n")
    with pytest.raises(ValueError, match="has other validation titles .* --data names the file"):
        run_command("inspect", f"--run={run}", f"--data={there}")


def test_expected_frequencies_add_up_in_windows_too(titles_file, tmp_path):
    train(titles_file, *WINDOWS, "--epochs=0.2", f"--out={tmp_path}")
    opened = title_commands.open_titles(str(tmp_path), "final", "cpu")
    task, _ = task_of(titles_file)
    found = inspect.token_frequencies(opened, task.val_rows)
    assert found["tokens"] == len(task.val_stream.tokens) - 1
    assert found["eos"]["data"] == pytest.approx(len(task.titles) / found["tokens"])
    expected = torch.zeros(opened.model.config.vocab_size)
    data = titles.validation_windows(task.val_stream, 24, 0)
    for number in range(len(data.lengths)):
        batch = data.collate(np.array([number]), None)
        with torch.no_grad():
            shares = opened.model(batch["input_ids"]).logits.softmax(-1)
        expected += shares[batch["labels"] != core.IGNORE_INDEX].sum(0)
    expected = (expected / found["tokens"]).tolist()
    names = {next_tokens.token_text(opened.tokenizer, i): p for i, p in enumerate(expected)}
    for token in found["commonest"]:
        assert token["model"] == pytest.approx(names[token["token"]], rel=1e-4)


def test_titles_are_written(finished, capsys):
    run_command("generate", f"--run={finished}", "--prompt=the film", "--count=4", "--top_k=5")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("the film") for line in lines)
    run_command("generate", f"--run={finished}", "--count=2", "--temperature=0")
    assert len(set(capsys.readouterr().out.splitlines())) == 1


def test_the_first_titles_do_not_depend_on_how_many_are_asked_for(finished, capsys):
    drawn = []
    for words in (["--count=2"], ["--count=5"], ["--count=5", "--seed=1"]):
        run_command("generate", f"--run_folder={finished}", "--max_new_tokens=9", *words)
        drawn.append(capsys.readouterr().out.splitlines())
    assert drawn[0] == drawn[1][:2] and drawn[1] != drawn[2] and len(set(drawn[1])) == 5


def test_a_prompt_without_positions_is_cut(finished, capsys):
    opened = title_commands.open_titles(str(finished), "final", "cpu")
    opened.model.config.positions, opened.model.config.n_positions = "learned", 24
    written = title_commands.write_titles(opened, "the film " * 40, 2, Decoding(max_new_tokens=6))
    assert len(written) == 2 and written[0] == written[1]
    assert "leave no room for an answer: cut in their middle" in capsys.readouterr().err


def test_the_default_opens_in_transformers(finished, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_command("export", f"--run={finished}", f"--output={tmp_path / 'out'}")
    with pytest.raises(ValueError, match="exists already: name a new folder"):
        run_command("export", f"--run={finished}", f"--output={tmp_path / 'out'}")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__module__.startswith("transformers.")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    opened = title_commands.open_titles(str(finished), "final", "cpu")
    ids = torch.tensor([[0, *tokenizer("a good film", add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, opened.model(ids).logits)


def test_a_run_of_another_script_is_refused(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run of train_headlines.py"):
        run_command("generate", f"--run={tmp_path}")
    (tmp_path / "run.json").write_text(json.dumps({"script": "pretrain_bert.py"}))
    with pytest.raises(ValueError, match="a run of pretrain_bert.py"):
        run_command("generate", f"--run={tmp_path}")
    with pytest.raises(ValueError, match="--output FOLDER"):
        run_command("export", f"--run={finished}")
