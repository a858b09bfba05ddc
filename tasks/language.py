"""Text for language modelling: WikiText, the embedded reviews, or files of your own.

    documents, notes = load_documents("wikitext2", "downloads/wikitext2", 0.1, 0.1)
    streams = Streams(documents, tokenizer, world)
    train = WindowData(streams.part("train"), length=1024, stride=1024, pad=50256)
    test = WindowData(streams.part("test"), length=1024, stride=512, pad=50256)

A part is one stream of tokens, document after document. A window reads up to `length` tokens and
predicts the one after each; windows that overlap predict only what no earlier one did, so every
token is scored exactly once, with at least length − stride + 1 tokens before it where there are
as many.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import core
from core import IGNORE_INDEX
from evaluation.metrics import Metrics
from evaluation.stats import cluster_bootstrap
from models import causal
from tasks import arena, corpora, reviews, texts, tuning
from tasks.arena import normalised_text, split_of, stable_hash

WIKITEXT = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
PARTS = {"train": ("train",), "val": ("valid", "validation", "val"), "test": ("test",)}
HEADING = re.compile(r"^ = [^=].* = \s*$")  # of an article; sections have more signs


@dataclass(slots=True)
class Document:
    id: str
    group: str
    text: str
    num_words: int  # of the original text; WikiText counts the end of a line as one
    split: str  # train | val | test


# ---------------------------------------------------------------------------- documents


def load_documents(
    task: str,
    data: str | None,
    val_frac: float = 0.1,
    test_frac: float = 0.1,
    detokenize: bool = False,
) -> tuple[list[Document], bool, list[str]]:
    """Documents, whether a separator stands between them, and lines that the user should see.

    task: wikitext2, wikitext103, reviews_text, or text, JSONL or parquet files of your own. data:
    a folder with WikiText's files (train.txt, wiki.valid.tokens …); None: the hub. WikiText is
    one text without separators, as published figures have it.
    """
    if task in WIKITEXT:
        parts = _read_wikitext_hub(task) if data is None else _read_wikitext(Path(data))
        return _articles(parts, val_frac, detokenize)
    if task == "reviews_text":
        found = [(r.id, r.text) for r in reviews.load_reviews() if r.source == "imdb"]
        notes = [texts.REVIEWS_NOTICE]
    else:
        found, notes = list(corpora.open_source(data or task).documents()), []
    documents, seen = [], set()
    for name, text in found:
        group = stable_hash("text", normalised_text([text]))  # as in texts.py: the same parts
        if text.strip() and group not in seen:
            seen.add(group)
            split = split_of(group, val_frac, test_frac)
            documents.append(Document(name, group, text, len(text.split()), split))
    return documents, True, notes


def _read_wikitext_hub(task: str) -> dict[str, list[str]]:
    """Lines of each part, joined by one more line end, as in transformers' own example."""
    name, subset = WIKITEXT[task]
    try:
        import datasets

        splits = {"train": "train", "val": "validation", "test": "test"}
        loaded = {k: datasets.load_dataset(name, subset, split=v) for k, v in splits.items()}
    except Exception as error:  # whatever fails on the way, the user needs the same advice
        reason = arena.strip_control(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        raise OSError(
            f"{task}: {name} could not be read from the hub ({reason}). Give a folder with its "
            "files as --data, or use --task reviews_text, which a pip package carries"
        ) from None
    return {part: [f"{line}\n\n" for line in rows["text"]] for part, rows in loaded.items()}


def _read_wikitext(folder: Path) -> dict[str, list[str]]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; expected train.txt, valid.txt, test.txt"
        )
    parts = {}
    for part, stems in PARTS.items():
        names = [f"{p}{s}{e}" for p in ("", "wiki.") for s in stems for e in (".txt", ".raw")]
        names += [f"wiki.{stem}.tokens" for stem in stems]
        there = [folder / name for name in names if (folder / name).is_file()]
        if there:
            text = there[0].read_text(encoding="utf-8", errors="replace")
            parts[part] = text.splitlines(keepends=True)
    if "test" not in parts or len(parts) < 2:
        raise ValueError(
            f"{folder}: expected test.txt and train.txt or valid.txt (or wiki.test.tokens …)"
        )
    return parts


def _articles(
    parts: dict[str, list[str]], val_frac: float, detokenize: bool
) -> tuple[list[Document], bool, list[str]]:
    """Articles by their headings. Where a part is missing, validation and training share the
    other one by a hash of the article."""
    documents, notes = [], []
    alone = next((part for part in ("train", "val") if len(parts) == 2 and part in parts), None)
    if alone:
        notes.append(f"there is no other part: {alone} is split into train and validation by us")
    for part, lines in parts.items():
        first = next((i for i, line in enumerate(lines) if line.strip()), 0)
        starts = [i for i, line in enumerate(lines) if HEADING.match(line)]
        starts = [0, *(start for start in starts if start > first)]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
            text = "".join(lines[start:end])
            if not text:
                continue
            split = part
            if part == alone:
                split = split_of(stable_hash("text", normalised_text([text])), val_frac, 0.0)
            words = len(text.split()) + end - start
            shown = join_words(text) if detokenize else text
            name = f"{part}-{number}"
            documents.append(Document(name, name, shown, words, split))
    return documents, False, notes


# WikiText writes words, marks and numbers apart; these undo it. Longest first where one is a part
# of another.
JOINED = [
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in (":", ";", ".", "!", "?", ",")),
    *((" 's", "'s"), (" n't", "n't"), ("s '", "s'"), (" 're", "'re"), (" 've", "'ve")),
    *((" 'll", "'ll"), (" 'd ", "'d "), (" 'm ", "'m ")),
]
QUOTED = [(r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]")]
QUOTED += [(r'"\s*([^"\n]*?)\s*"', r'"\1"'), (r"(?<=\s)'\s*([^'\n]*?)\s*'(?=\s)", r"'\1'")]


def join_words(text: str) -> str:
    """WikiText's words as they were written, nearly: the detokenised form of published figures.

    After Radford et al. 2019, section 3.1, whose own rules were not published.
    """
    for apart, together in JOINED:
        text = text.replace(apart, together)
    for apart, together in QUOTED:
        text = re.sub(apart, together, text)
    return re.sub(r" +\n", "\n", text).replace(" N ", " 1 ")


# ------------------------------------------------------------------------------ streams


@dataclass
class Stream:
    """One part: its tokens, and where its documents begin and end in them.

    It begins with a separator, or with a document's token where the tokenizer has none.
    """

    tokens: np.ndarray
    offsets: np.ndarray  # (documents + 1,)
    documents: list[Document]


class Streams:
    """The parts of all documents, each a contiguous stretch of one cached array."""

    def __init__(
        self, documents: Sequence[Document], separated: bool, tokenizer: Any, world: core.World
    ):
        order = ("train", "val", "test")
        self.documents = sorted(documents, key=lambda d: order.index(d.split))
        separator = tokenizer.eos_token_id
        if separator is None:
            separator = tokenizer.bos_token_id
        content = hashlib.sha256()
        for document in self.documents:
            content.update(json.dumps([document.text, document.split]).encode() + b"\n")
        key = {
            **{"kind": "documents, version 1", "content": content.hexdigest()},
            **{"tokenizer": core.tokenizer_fingerprint(tokenizer), "separated": separated},
            "separator": separator,
        }

        def build() -> Iterator[list[int]]:
            all_texts, count = (d.text for d in self.documents), len(self.documents)
            found = core.encode_texts(tokenizer, all_texts, count, "tokenising", world.rank != 0)
            last = None
            for document, ids in zip(self.documents, found, strict=True):
                begins = separated or document.split != last
                last = document.split
                yield [separator, *ids] if begins and separator is not None else ids

        self.ids = core.cached_tokens(key, build, world)

    def part(self, split: str) -> Stream:
        numbers = [i for i, document in enumerate(self.documents) if document.split == split]
        first, end = numbers[0], numbers[-1] + 1
        offsets = np.asarray(self.ids.offsets[first : end + 1])
        tokens = self.ids.ids[offsets[0] : offsets[-1]]
        return Stream(tokens, offsets - offsets[0], self.documents[first:end])


class WindowData:
    """Windows of a stream as a data set for core's loaders.

    Window k reads tokens [k·stride, k·stride + length) and predicts the token after each; with
    `once` it predicts only those that no earlier window did. The first token of the stream is
    context only.
    """

    def __init__(
        self,
        stream: Stream,
        length: int,
        stride: int,
        pad: int,
        once: bool = True,
        ladder: int | None = None,
    ):
        if not 1 <= stride <= length:
            raise ValueError(f"stride {stride}: expected 1 to the length of a window, {length}")
        self.stream, self.length, self.pad, self.ladder = stream, length, pad, ladder
        targets = len(stream.tokens) - 1
        if targets < 1:
            raise ValueError("a stream of one token has nothing to predict")
        # the last window is the first that reaches the end
        count = 1 + max(0, math.ceil((targets - length) / stride))
        self.starts = np.arange(count, dtype=np.int64) * stride
        self.lengths = np.minimum(length, targets - self.starts)
        self.tokens = self.lengths
        ends = self.starts + self.lengths  # targets of window k are at starts + 1 … ends
        self.scored_from = np.concatenate([[0], ends[:-1]]) if once else self.starts

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels (rows, seq): labels[:, i] is the token after input_ids[:, i]."""
        longest = int(self.lengths[rows].max())
        width = core.ladder_length(longest, self.length, self.ladder)
        input_ids = np.full((len(rows), width), self.pad, np.int64)
        labels = np.full((len(rows), width), IGNORE_INDEX, np.int64)
        for line, row in enumerate(rows):
            start, size = self.starts[row], self.lengths[row]
            skipped = self.scored_from[row] - start
            input_ids[line, :size] = self.stream.tokens[start : start + size]
            labels[line, skipped:size] = self.stream.tokens[start + 1 + skipped : start + 1 + size]
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}

    def losses_of_tokens(self, values: np.ndarray) -> np.ndarray:
        """(tokens,) float64 from what the windows gave, (windows, length); 0 for the first."""
        found = np.zeros(len(self.stream.tokens))
        for row, (start, size) in enumerate(zip(self.starts, self.lengths, strict=True)):
            skipped = self.scored_from[row] - start
            found[start + 1 + skipped : start + 1 + size] = values[row, skipped:size]
        return found


def document_sums(stream: Stream, losses: np.ndarray) -> np.ndarray:
    """(documents, 4): loss sum in nats, scored tokens, characters and words of each."""
    sums = np.add.reduceat(losses, stream.offsets[:-1])
    counts = np.diff(stream.offsets).astype(np.float64)
    counts[0] -= 1  # the first token of the stream
    sizes = [(len(d.text), d.num_words) for d in stream.documents]
    return np.column_stack([sums, counts, np.array(sizes, np.float64)])


def data_fingerprint(documents: Iterable[Document]) -> str:
    """16 hex digits of SHA-256 over ids and texts, in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.id, document.text]).encode() + b"\n")
    return digest.hexdigest()[:16]


def unigram_entropy(seen: np.ndarray, asked: np.ndarray, vocab_size: int) -> float:
    """Nats a token of `asked` for an answer by token frequency alone: the cross-entropy with the
    shares that tokens have in `seen`, one added to each count (Laplace)."""
    counts, wanted = (np.bincount(tokens, minlength=vocab_size) for tokens in (seen, asked))
    shares = (counts + 1) / (counts.sum() + vocab_size)
    return float(-(wanted * np.log(shares)).sum() / wanted.sum())


def language_metrics(sums: np.ndarray, groups: Sequence[str], intervals: bool = True) -> Metrics:
    """Figures of `document_sums`, whole documents resampled for each interval.

    loss (nats a token of the model's own vocabulary), perplexity = exp(loss), and what compares
    between vocabularies: perplexity_per_word, nats_per_char.
    """
    total = sums.sum(axis=0)
    found: Metrics = {
        **{"n": len(sums), "num_targets": int(total[1])},
        **{"num_chars": int(total[2]), "num_words": int(total[3])},
    }

    def figures(s: np.ndarray) -> np.ndarray:
        a_token, a_char, a_word = (s[..., 0] / s[..., k] for k in (1, 2, 3))
        return np.stack([a_token, np.exp(a_token), np.exp(a_word), a_char], axis=-1)

    names = ("loss", "perplexity", "perplexity_per_word", "nats_per_char")
    with np.errstate(over="ignore"):
        found |= {name: float(v) for name, v in zip(names, figures(total), strict=True)}
        if intervals and len(set(groups)) > 1:
            low, high = cluster_bootstrap(sums, groups, figures)
            found |= {
                f"{name}_ci95": [float(low[k]), float(high[k])] for k, name in enumerate(names)
            }
    return {name: value for name, value in found.items() if np.all(np.isfinite(value))}


# --------------------------------------------------------------------------------- task


class LanguageModelling(tuning.Tuning):
    """Causal language modelling around a script's loop."""

    def load_data(self) -> None:
        config, world = self.config, self.world
        documents, separated, notes = load_documents(
            config.task, config.data, config.val_frac, config.test_frac, config.detokenize
        )
        documents = self.choose_rows(documents, data_fingerprint(documents))
        for line in notes:
            world.say(line)
        streams = Streams(documents, separated, self.tokenizer, world)
        pad, ladder = self.tokenizer.pad_token_id, 8 if config.compile else None

        def part(split: str, stride: int, once: bool = True) -> WindowData:
            return WindowData(streams.part(split), config.max_length, stride, pad, once, ladder)

        self.train = part("train", config.train_stride, once=False)
        self.val, self.test_data = part("val", config.stride), part("test", config.stride)
        sizes = (f"{len(d.stream.tokens):,}" for d in (self.train, self.val, self.test_data))
        world.say("tokens: train {}, validation {}, test {}".format(*sizes))

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy (nats) summed over the tokens that are predicted; their number."""
        config, labels = self.config, batch["labels"]
        hidden, theirs = causal.last_hidden(model, batch), None
        if self.teacher is not None:
            with torch.no_grad():
                theirs = causal.last_hidden(self.teacher, batch)
        loss = causal.lm_loss_sum(
            model, hidden, labels, self.teacher, theirs, config.temperature, config.distill_weight
        )
        return loss, (labels != IGNORE_INDEX).sum()

    def sums(self, data: WindowData) -> np.ndarray:
        """`document_sums` of a part, on all ranks."""

        def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            losses = causal.token_losses(model, causal.last_hidden(model, batch), batch["labels"])
            return nn.functional.pad(losses, (0, data.length - losses.shape[1]))

        values = core.evaluate_rows(self.state, data, outputs, self.rows_each(data.length))
        return document_sums(data.stream, data.losses_of_tokens(values))

    def evaluate(self) -> dict[str, float]:
        """Loss (nats) and perplexity a token of the validation documents."""
        loss, targets = self.sums(self.val).sum(axis=0)[:2]
        perplexity = math.exp(min(loss / targets, 700))
        return {"val_loss": float(loss / targets), "val_perplexity": perplexity}

    def measure(self) -> tuple[Metrics, list[dict]]:
        """Metrics and predictions of the test documents."""
        config, documents = self.config, self.test_data.stream.documents
        sums = self.sums(self.test_data)
        if not np.isfinite(sums).all():
            raise ValueError("a test loss is NaN or infinite: a lower --lr, or --precision fp32")
        found = language_metrics(sums, [document.group for document in documents])
        found |= {
            "unigram_entropy": unigram_entropy(
                self.train.stream.tokens, self.test_data.stream.tokens[1:], len(self.tokenizer)
            ),
            **{"window": config.max_length, "stride": config.stride},
            **{"detokenized": config.detokenize, "token": "BPE token of the model's vocabulary"},
        }
        rows = [
            {
                **{"id": document.id, "group": document.group, "loss_sum": float(loss)},
                **{"num_targets": int(targets), "num_chars": int(chars)},
                "text": {"text": document.text},
            }
            for document, (loss, targets, chars, _) in zip(documents, sums, strict=True)
        ]
        return found, rows

    def test(self) -> tuple[Metrics, list[dict]]:
        self.write_attention()
        return self.measure()
