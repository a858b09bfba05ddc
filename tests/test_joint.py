"""Both answers in one sequence: what is in it, what reads it, and what towers cannot know."""

import csv
import json
import random
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import WORDS
from settings_values import DROPPING
from test_methods import systems  # noqa: F401
from tiny_models import ARCHITECTURES

import core
import run_5_models
from commands import predict
from data import arena
from data import pairs as pair_data
from data.arena import PairRow
from evaluation.metrics import SWAP, softmax
from experiments.pair_answers import predict_pairs
from models import heads, pairs, pretrained
from reports.folder import load_run
from settings import parse_settings
from sweeps.cost import of_preference

pytestmark = pytest.mark.usefixtures("one_thread")
CLS, SEP = -1, -2


def joined(prompts, a, b, max_length: int, frac: float = 0.4) -> list[int]:
    return pair_data.build_sequence(prompts, a, max_length, frac, CLS, SEP, b)


def shared_slowly(lengths: list[int], room: int) -> list[int]:
    """A token at a time to whoever has the fewest and wants more; the last of equals first."""
    kept = [0] * len(lengths)
    for _ in range(room):
        wanting = [i for i, length in enumerate(lengths) if kept[i] < length]
        if wanting:
            longest = max(wanting, key=lambda i: (-kept[i], lengths[i], i))
            kept[longest] += 1
    return kept


def ends(text: list[int], count: int) -> list[int]:
    head = count - count // 2
    return text if count == len(text) else text[:head] + text[len(text) - (count - head) :]


def test_a_sequence_that_fits_is_whole_and_in_turn():
    prompts, a, b = [[1], [2, 3]], [[4], [5]], [[6, 7], []]
    whole = [CLS, 1, SEP, 4, SEP, 6, 7, SEP, 2, 3, SEP, 5, SEP, SEP]
    assert joined(prompts, a, b, 64) == whole
    assert joined([], a, b, 64) == [CLS, 4, SEP, 6, 7, SEP, 5, SEP, SEP]
    assert joined([[]], [[]], [[]], 8) == [CLS, SEP, SEP, SEP]


def test_what_is_too_long_is_shared_as_a_slow_reference_shares_it():
    draw = random.Random(0)
    for _ in range(400):
        size = lambda: draw.choice((0, 1, 5, 20, 90))  # noqa: E731
        prompt, a, b = ([draw.randrange(9) for _ in range(size())] for _ in range(3))
        most, frac = draw.choice((8, 9, 24, 47, 80)), draw.choice((0.0, 0.2, 0.4, 1.0))
        found = joined([prompt], [a], [b], most, frac)
        room = most - 4
        of_prompt = min(len(prompt), max(int(room * frac), room - len(a) - len(b)))
        of_a, of_b = shared_slowly([len(a), len(b)], room - of_prompt)
        kept = (ends(text, n) for text, n in ((prompt, of_prompt), (a, of_a), (b, of_b)))
        assert found == [CLS, *(token for text in kept for token in (*text, SEP))]
        assert len(found) == min(most, 4 + len(prompt) + len(a) + len(b))
    # a short answer leaves its room to the other
    assert joined([], [[1]], [[2] * 99], 23) == [CLS, 1, SEP, *[2] * 19, SEP]


def test_of_many_turns_the_last_are_kept():
    turns = [[[side, turn] for turn in range(500)] for side in range(3)]
    found = joined(*turns, 96)
    assert len(found) <= 96 and found[-4:] == [SEP, 2, 499, SEP] and found[1:3] == [0, 496]


def test_second_answers_are_segment_1_as_the_tokenizer_has_it(tiny):
    """Of one turn without a prompt those are the types of transformers' own pairs."""
    folder = str(tiny("bert"))
    shape = pretrained.load_config(folder)
    tokenizer = pretrained.load_tokenizer(folder, shape)
    one = PairRow("1", ["why"], ["good story"], ["bad"], None, "g", "")
    two = PairRow("2", ["why", "slow"], ["good", ""], ["bad film", "slow"], None, "g", "")
    joint = pair_data.joint_form(tokenizer, shape, False, both_orders=True)
    rows = list(pair_data.build_sequences([one], tokenizer, 64, False, 0.4, True, joint=True))
    for ids, texts in zip(rows, (("good story", "bad"), ("bad", "good story")), strict=True):
        theirs = tokenizer(*texts)
        assert ids == theirs["input_ids"]
        types = pair_data.segments([np.array(ids)], len(ids) + 2, joint)["token_type_ids"][0]
        assert types.tolist() == [*theirs["token_type_ids"], 0, 0]
    joint = pair_data.joint_form(tokenizer, shape, True, both_orders=True)
    (ids, _) = pair_data.build_sequences([two], tokenizer, 64, True, 0.4, True, joint=True)
    types = pair_data.segments([np.array(ids)], len(ids), joint)["token_type_ids"][0]
    read = "[CLS] why [SEP] good [SEP] bad film [SEP] slow [SEP] [SEP] slow [SEP]"
    assert tokenizer.decode(ids) == read
    pieces = tokenizer.convert_ids_to_tokens(ids)
    segments = [piece for piece, of in zip(pieces, types.tolist(), strict=True) if of]
    assert "".join(segments).replace("#", "") == "badfilm[SEP]slow[SEP]"
    roberta = pretrained.load_config(str(tiny("roberta")))
    tokenizer = pretrained.load_tokenizer(str(tiny("roberta")), roberta)
    joint = pair_data.joint_form(tokenizer, roberta, True, both_orders=True)
    assert joint.separator is None and pair_data.segments([np.array(ids)], 9, joint) == {}


def some_rows(count: int = 6) -> list[PairRow]:
    draw = random.Random(1)
    said = lambda: [" ".join(draw.choices(WORDS, k=draw.randint(1, 30)))]  # noqa: E731
    return [PairRow(str(i), said(), said(), said(), i % 3, str(i), "train") for i in range(count)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_a_plain_pass_row_by_row(architecture, tiny):
    """Each order by itself, without padding or other rows, through transformers' own model."""
    folder = str(tiny(architecture))
    shape = pretrained.load_config(folder)
    tokenizer = pretrained.load_tokenizer(folder, shape)
    attention = "eager" if shape.model_type.startswith("deberta") else "sdpa"
    encoder = pretrained.load_encoder(folder, attention=attention)
    torch.manual_seed(0)
    rows, hidden = some_rows(), shape.hidden_size
    for name, pooling in product(("concat", "symmetric", "davidson"), ("first", "mean")):
        joint = pair_data.joint_form(tokenizer, shape, True, both_orders=name != "concat")
        data = pair_data.unlabelled(rows, tokenizer, 48, True, 0.4, joint, style=False)
        head = pairs.build_head(name, hidden, joint=True)
        model = pairs.build_model(encoder, head, pooling).eval()
        world = core.single_world("cpu")
        state = SimpleNamespace(model=model, world=world, autocast=lambda: torch.inference_mode())
        p, swapped = predict_pairs(state, data, average=False)
        with torch.no_grad():
            for row in range(len(rows)):
                states = []
                for side in (2 * row, 2 * row + 1):
                    ids = torch.tensor(np.array(data.ids[side]))[None]
                    more = pair_data.segments([data.ids[side]], ids.shape[1], joint)
                    found = encoder(input_ids=ids.long(), **more).last_hidden_state[0]
                    states.append(found[0] if pooling == "first" else found.mean(dim=0))
                for answer, (a, b) in ((p, states), (swapped, states[::-1])):
                    logits = head(a[None], b[None])
                    expected = softmax(logits.numpy())[0]
                    np.testing.assert_allclose(answer[row], expected, atol=2e-5)
        if name == "concat":
            batch = data.collate(np.arange(4), 0)  # in training one order alone
            assert len(batch["input_ids"]) == 4
            with torch.no_grad():
                trained = softmax(pairs.pair_logits(model, batch).numpy())
            np.testing.assert_allclose(trained, p[:4], atol=2e-5)
            assert data.tokens[0] == data.ids.lengths[0]
        else:
            assert len(data.collate(np.arange(4), 0)["input_ids"]) == 8


def test_exchanged_rows_have_exchanged_answers_to_the_last_bit(tiny):
    folder = str(tiny("bert"))
    shape = pretrained.load_config(folder)
    tokenizer = pretrained.load_tokenizer(folder, shape)
    rows = some_rows()
    joint = pair_data.joint_form(tokenizer, shape, True, both_orders=True)
    mine, theirs = (
        pair_data.unlabelled(each, tokenizer, 40, True, 0.4, joint, style=True)
        for each in (rows, [arena.exchanged_row(row) for row in rows])
    )
    for row in range(len(rows)):
        assert mine.ids[2 * row].tolist() == theirs.ids[2 * row + 1].tolist()
        assert mine.ids[2 * row + 1].tolist() == theirs.ids[2 * row].tolist()
    scale = heads.style_scale(mine.style)
    for name in ("symmetric", "davidson"):
        head = pairs.build_head(name, shape.hidden_size, style=scale, joint=True)
        model = pairs.build_model(pretrained.load_encoder(folder), head, "mean").eval()
        state = SimpleNamespace(
            model=model, world=core.single_world("cpu"), autocast=lambda: torch.inference_mode()
        )
        p, swapped = predict_pairs(state, mine, average=False)
        assert np.array_equal(p[:, SWAP], swapped)


# ----------------------------------------------------------------------------- whole runs

RUNS = {
    "one order": ["--swap=augment"],
    "both orders": ["--head=symmetric", "--features=true", "--swap=both", "--pooling=mean"],
    "frozen": ["--freeze=all", "--head=davidson", "--prompt=false"],
    "half frozen": ["--freeze=bottom:1", "--swap=tta", "--max_length=12"],
    "R-Drop": ["--r_drop=1", *DROPPING, "--layer_decay=0.5", "--beyond_style=false"],
    "joined": ["--dropout=0", "--join_tokens=400"],
    "selected": ["--selection.name=selective_backprop", "--optimizer=sophiag", "--sophia.rows=6"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_answers_as_it_was_tested(name, systems, tmp_path, monkeypatch):  # noqa: F811
    run = systems["preference"].train(tmp_path / "run", "--form=joint", *RUNS[name])
    monkeypatch.chdir(tmp_path)
    words = dict(word.split("=", 1) for word in systems["preference"].words)
    asked = {"run_folder": "run", "data": words["--data"], "output": "all.csv"}
    predict.predict(predict.PredictConfig(**asked))
    with open("all.csv", newline="") as file:
        answers = {line["id"]: line for line in csv.DictReader(file)}
    with open("run/test/metrics/predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        told = [float(line[f"p_{name}"]) for name in ("A", "B", "tie")]
        given = [float(answers[line["id"]][name]) for name in arena.WINNER_COLUMNS]
        assert given == pytest.approx(told, abs=1e-5)
    worst = (run / "test/analysis/worst_rows.jsonl").read_text()
    assert "A and B, as read" in worst and '"A, as read' not in worst
    facts = json.loads((run / "train/weights/best/preference.json").read_text())
    assert facts["form"] == "joint"
    if "--head" not in str(RUNS[name]):
        assert load_run(run).record["status"] == "finished"


def test_frozen_parts_are_kept_by_form(systems, tmp_path, capsys):  # noqa: F811
    for form, freeze in product(("towers", "joint"), ("all", "bottom:1")):
        words = [f"--form={form}", f"--freeze={freeze}", "--seed=3"]
        run = systems["preference"].train(tmp_path / "kept", *words, "--fresh")
        kept = json.loads((run / "test/metrics/metrics.json").read_text())
        run = systems["preference"].train(
            tmp_path / "not", *words, "--fresh", "--cache_features=false"
        )
        found = json.loads((run / "test/metrics/metrics.json").read_text())
        assert found["log_loss"] == pytest.approx(kept["log_loss"], rel=1e-4)
    assert "computed once" in capsys.readouterr().out


def test_one_order_costs_half_in_a_sweep_plan():
    settings = vars(run_5_models.Config(form="joint", val_frac=0.0, test_frac=0.0)) | {
        "model": "modernbert",
        "max_length": 2048,
    }
    one = of_preference(settings).flops
    both = of_preference(settings | {"head": "symmetric"}).flops
    assert one == pytest.approx(both / 2)


CIRCLE = ("good", "bad", "slow")


def circle(path, count: int = 360):
    """As rock, paper, scissors: no worth of each answer says which of two wins."""
    draw = random.Random(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b", "winner"])
        for number in range(count):
            a, b = draw.sample(range(3), 2)
            winner = "A" if (a - b) % 3 == 1 else "B"
            writer.writerow([number, f"game {number}", CIRCLE[a], CIRCLE[b], winner])
    return path


CIRCLING = [
    "--head=davidson",
    "--pooling=mean",
    "--max_length=24",
    "--epochs=6",
    "--batch=16",
    "--micro_batch=16",
]
CIRCLING += [
    "--lr=1e-2",
    "--warmup_frac=0.1",
    "--dropout=0",
    "--prompt=false",
    "--page=false",
    "--val_frac=0.2",
]
CIRCLING += ["--beyond_style=false", "--machine_log=false", "--device=cpu"]
CIRCLING += ["--eval_every=1000"]


def test_towers_cannot_know_who_wins_in_a_circle_and_one_sequence_can(tiny_bert, tmp_path):
    data, found = circle(tmp_path / "votes.csv"), {}
    for form in ("towers", "joint"):
        words = [f"--model={tiny_bert}", f"--data={data}", *CIRCLING, f"--form={form}"]
        words += [f"--out={tmp_path / form}"]
        run_5_models.main(*parse_settings(run_5_models.Config, words, "run_5_models"))
        found[form] = json.loads((tmp_path / form / "test/metrics/metrics.json").read_text())
    # the best that worths can do is a coin
    assert found["towers"]["log_loss"] > 0.6 and found["towers"]["accuracy"] < 0.85
    assert found["joint"]["log_loss"] < 0.3 and found["joint"]["accuracy"] > 0.95
