"""Attention maps: what the models themselves computed, of any of them, and on a page."""

import json

import pytest
import torch
from conftest import WORDS
from test_page import METRICS, page_of, training_lines, write_run
from tiny_models import build_tiny_gpt2, build_tiny_llama

from commands import attention as command
from models import attention, causal
from settings import parse_settings

TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_bert):
    root = tmp_path_factory.mktemp("models")
    return {
        "gpt2": build_tiny_gpt2(root / "gpt2", TEXTS, layers=4),
        "llama": build_tiny_llama(root / "llama", TEXTS),
        "bert": tiny_bert,
    }


def show(*words: str) -> None:
    command.show_attention(parse_settings(command.Config, words, "attention")[0])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_maps_are_the_models_weights(name, models):
    folder = str(models[name])
    classes = ("a", "b") if name == "bert" else None
    model = causal.load_model(folder, causal.load_config(folder), classes)
    assert model.config._attn_implementation == "sdpa"
    model.train()
    tokenizer, text = causal.load_tokenizer(folder), " ".join(WORDS[:9])
    tokens, maps = attention.attention_maps(model, tokenizer, text, [1], heads=[1, 0])
    _, (mean,) = attention.attention_maps(model, tokenizer, text, [1])
    assert model.training and model.config._attn_implementation == "sdpa"  # as it was
    size = len(tokens)
    for each in (*maps, mean):
        assert each.weights.shape == (size, size)
        assert torch.allclose(each.weights.sum(dim=1), torch.ones(size), atol=1e-5)
        upper = each.weights.triu(1).abs().sum()
        assert (upper > 0.1) if name == "bert" else (upper == 0)  # a decoder reads no future
    assert [each.head for each in maps] == [1, 0] and mean.head is None
    assert torch.allclose((maps[0].weights + maps[1].weights) / 2, mean.weights, atol=1e-6) or (
        model.config.num_attention_heads > 2
    )
    assert "".join(tokens).replace(" ", "").endswith(text.replace(" ", "")) or name == "bert"
    with pytest.raises(ValueError, match="no layer 9: the model has layers 0 to"):
        attention.attention_maps(model, tokenizer, text, [9])


def test_weights_make_the_output_that_sdpa_makes(models):
    """Layer 0 of GPT-2 by hand: softmax(q k / sqrt(d)) under the causal mask."""
    folder = str(models["gpt2"])
    model = causal.load_model(folder, causal.load_config(folder)).eval()
    tokenizer, text = causal.load_tokenizer(folder), " ".join(WORDS[:9])
    _, (first,) = attention.attention_maps(model, tokenizer, text, [0], heads=[0])
    ids = torch.tensor([tokenizer(text)["input_ids"]])[:, : len(first.weights)]
    base, block = model.transformer, model.transformer.h[0]
    states = base.wte(ids) + base.wpe(torch.arange(ids.shape[1]))
    query, key, _ = block.attn.c_attn(block.ln_1(states)).chunk(3, dim=-1)
    d = model.config.n_embd // model.config.n_head
    scores = query[0, :, :d] @ key[0, :, :d].T / d**0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    assert torch.allclose(first.weights, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_command_writes_the_maps_of_a_folder(name, models, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n")
    words = [f"--run={models[name]}", f"--texts={tmp_path / 'texts.txt'}", "--tokens=6"]
    show(*words, "--layers=all", "--heads=0,1", f"--out={tmp_path / 'maps.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "maps.jsonl").read_text().splitlines()]
    layers = causal.load_config(str(models[name])).num_hidden_layers
    assert [row["text"] for row in rows] == TEXTS[:2]
    assert f"{4 * layers} maps" in capsys.readouterr().out
    for row in rows:
        assert len(row["tokens"]) == 6
        assert [(m["layer"], m["head"]) for m in row["maps"]] == [
            (layer, head) for layer in range(layers) for head in (0, 1)
        ]
        assert sum(row["maps"][0]["weights"][-1]) == pytest.approx(1, abs=1e-3)


def test_a_run_gets_a_page_with_them(tmp_path):
    maps = [{"layer": 0, "head": None, "weights": [[1, 0], [0.25, 0.75]]}]
    maps.append({"layer": 3, "head": 2, "weights": [[1, 0], [0.5, 0.5]]})
    folder = write_run(tmp_path / "r", training_lines(5), METRICS)
    lines = [{"text": "a b", "tokens": ["<a>", " b"], "maps": maps}, {"tokens": ["x"], "maps": [1]}]
    path = folder / "test/analysis/attention.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder)
    assert "Text 1, layer 0, mean of the heads" in page.text
    assert "Text 1, layer 3, head 2" in page.text
    assert "text 2 of attention.jsonl is not drawn" in page.text
    assert any("b reads b 75%" in value for _, name, value in page.attributes if value)


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--texts=x"], "needs --run_folder"),
        (["--run={gpt2}", "--texts=x"], "is no run folder: name a file"),
        (["--run={gpt2}", "--texts=x", "--out={out}", "--heads=9"], "there is no head 9"),
        (["--run={gpt2}", "--texts=x", "--out={out}", "--layers=top"], "expected numbers"),
    ],
)
def test_what_is_wrong_is_said(words, problem, models, tmp_path):
    places = {"gpt2": models["gpt2"], "out": tmp_path / "maps.jsonl"}
    with pytest.raises(ValueError, match=problem):
        show(*(word.format(**places) for word in words))
