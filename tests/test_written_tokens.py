"""A special token that somebody wrote is text, for every kind of tokenizer and every reader."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from tiny_models import ARCHITECTURES, tiny_tokenizer

import core
from data import arena, documents, glue, instructions, pairs, texts, tokens
from models import attention, generation, pretrained

WORLD = core.single_world("cpu")
# with the letters of all special tokens, so that none of them is unknown
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
TEXTS += ["[ CLS ] [ SEP ] [ PAD ] [ MASK ] [ UNK ] < s > < / s > < pad > < mask > < unk > | _"] * 9


def whole_words(*_) -> object:
    """A vocabulary of words alone, in which "[SEP]" is one of them."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*names, *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {f"{name.strip('[]').lower()}_token": name for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=words, **roles)


def with_chat_marks(*_) -> object:
    """GPT-2's kind with marks of a chat, as SmolLM2's and Qwen's."""
    tokenizer = tiny_tokenizer(TEXTS)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "[PAD]"}
    )
    return tokenizer


KINDS = {name: build for name, (build, _, _) in ARCHITECTURES.items()}
KINDS |= {"gpt2": lambda *_: tiny_tokenizer(TEXTS), "words": whole_words, "chat": with_chat_marks}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(kind) → that tokenizer, saved and read again."""
    from transformers import AutoTokenizer

    made: dict[str, object] = {}

    def find(kind: str) -> object:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            KINDS[kind](TEXTS, folder).save_pretrained(folder)
            made[kind] = AutoTokenizer.from_pretrained(folder)
        return made[kind]

    return find


def special_ids(tokenizer) -> list[int]:
    """Without the unknown token, which a word may really be; GPT-2's is its end of text."""
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    return [i for i in tokenizer.all_special_ids if i not in unknown]


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokenizer_reads_a_written_special_token_as_one(kind, build):
    tokenizer = build(kind)
    plain = [*TEXTS, "", "ünïcode 漢字 \U0001f600", "two  spaces \n and a line"]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in plain]
    assert tokens.encode(tokenizer, plain) == expected  # all other texts as ever
    names = list(tokenizer.all_special_tokens)
    assert len(names) >= (1 if kind == "gpt2" else 3)
    said = [form.format(name) for name in names for form in ("{}", "good {} film", "good{}film")]
    said += [" ".join(names), "".join(names), "\n".join([*names, *names])]
    assert any(special_ids(tokenizer)[0] in tokenizer(text)["input_ids"] for text in said)
    for text, ids in zip(said, tokens.encode(tokenizer, said), strict=True):
        assert ids and not np.isin(ids, special_ids(tokenizer)).any(), text
    if kind in ("gpt2", "chat", "roberta", "modernbert"):  # all bytes are known: nothing is lost
        for text, ids in zip(said, tokens.encode(tokenizer, said), strict=True):
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == text
    assert list(tokens.encode_texts(tokenizer, said, len(said), "", quiet=True)) == tokens.encode(
        tokenizer, said
    )


def rows_of_pairs(text: str, tokenizer) -> list[list[int]]:
    row = arena.PairRow("1", [text, "why"], [text, "good"], ["bad", text], 0, "g", "train")
    return list(pairs.build_sequences([row], tokenizer, 256, True, 0.4, quiet=True))


def rows_of_glue(text: str, tokenizer) -> list[list[int]]:
    rows = [glue.Row("train-0", "g", {"question": text, "passage": f"{text} film"}, 0, "train")]
    ids = glue.cached_sequences(glue.TASKS["boolq"], rows, tokenizer, 256, WORLD)
    return [ids[0].tolist()]


def rows_of_texts(text: str, tokenizer) -> list[list[int]]:
    rows = [texts.TextRow("1", "g", text, 0, "train")]
    ids = texts.cached_sequences(rows, tokenizer, WORLD)
    return [texts.TextData(ids, rows, "train", tokenizer, 256).sequence(0, None).tolist()]


def rows_of_documents(text: str, tokenizer) -> list[list[int]]:
    parts = ("train", "val", "test")
    rows = [documents.Document(part, part, f"{part} {text}", 3, part) for part in parts]
    streams = documents.Streams(rows, True, tokenizer, WORLD)
    return [streams.part(part).tokens.tolist() for part in parts]


def rows_of_instructions(text: str, tokenizer) -> list[list[int]]:
    row = instructions.build_row({"instruction": text, "input": text, "output": text}, "x", 1)
    ids = list(instructions.encode([instructions.segments(row, "alpaca")], tokenizer))[0]
    return [[~i if i < 0 else i for i in ids]]


READERS = {
    "bert": (rows_of_pairs, rows_of_glue, rows_of_texts),
    "deberta-v3": (rows_of_pairs, rows_of_glue, rows_of_texts),
    "gpt2": (rows_of_texts, rows_of_documents, rows_of_instructions),
    "chat": (rows_of_texts, rows_of_documents, rows_of_instructions),
}


@pytest.mark.parametrize(
    "kind, reader", [(kind, reader) for kind, readers in READERS.items() for reader in readers]
)
def test_in_no_reader_does_a_row_change_the_shape_of_its_sequence(
    kind, reader, build, cache_folder
):
    tokenizer = build(kind)

    def specials(text: str) -> list[list[int]]:
        rows, special = reader(text, tokenizer), special_ids(tokenizer)
        return [[i for i in ids if i in special] for ids in rows]

    plain, written = "a good film", " ".join(["a good", *tokenizer.all_special_tokens, "film"])
    assert specials(written) == specials(plain)
    assert [len(ids) for ids in reader(written, tokenizer)] > [
        len(ids) for ids in reader(plain, tokenizer)
    ]


def test_the_border_between_segments_stays_where_the_fields_meet(build, cache_folder):
    tokenizer = build("bert")
    fields = {"question": "is it [SEP] good", "passage": "the film [SEP] was"}
    rows = [glue.Row("train-0", "g", fields, 0, "train")]
    ids = glue.cached_sequences(glue.TASKS["boolq"], rows, tokenizer, 64, WORLD)
    data = glue.GlueData(ids, rows, "train", 0, 64, separator=tokenizer.sep_token_id)
    batch = data.collate(np.array([0]), None)
    first = batch["input_ids"][0, : int((batch["token_type_ids"][0] == 0).sum())].tolist()
    first = first[: first.index(tokenizer.sep_token_id)]
    assert tokenizer.decode(first[1:]).replace(" ", "") == "isit[sep]good"


def test_the_cache_of_an_older_reader_is_not_read(build, cache_folder):
    """Its key names no version, or a lower one."""
    tokenizer = build("bert")
    rows = [texts.TextRow("1", "g", "good [SEP] film", 0, "train")]
    ids = texts.cached_sequences(rows, tokenizer, WORLD)
    keys = [json.loads(p.read_text()) for p in Path(cache_folder).glob("tokens/*/key.json")]
    mine = next(key for key in keys if key["kind"].startswith("texts"))
    assert mine["kind"] == "texts, version 3"
    older = tokens.cached_tokens(mine | {"kind": "texts, version 2"}, lambda: [[3, 3]], WORLD)
    assert older[0].tolist() != ids[0].tolist()
    again = texts.cached_sequences(rows, tokenizer, WORLD)
    assert again[0].tolist() == ids[0].tolist()


def test_what_a_model_is_asked_and_shown_is_text_too(tiny_bert, monkeypatch):
    from transformers import BertModel

    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    model = BertModel.from_pretrained(tiny_bert)
    shown, _ = attention.attention_maps(model, tokenizer, "good [SEP] film", [0])
    assert shown.count("[SEP]") == 1 and shown[-1] == "[SEP]"
    asked = []

    def answers(input_ids, **_):
        asked.append(input_ids[0].tolist())
        return input_ids

    monkeypatch.setattr(model, "generate", answers, raising=False)
    tokenizer.eos_token = "[SEP]"
    generation.generate(model, tokenizer, ["good [SEP] film"], 4)
    assert asked[0].count(tokenizer.sep_token_id) == 0
