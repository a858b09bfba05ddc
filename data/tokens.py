"""Token ids: encoding texts, keeping them on disk, cutting and padding them.

What somebody wrote is text, also "[SEP]", "</s>" or "<|endoftext|>": the special tokens of a
sequence are those that the code around it sets, and no others.

ids = cached_tokens({"kind": "texts", …}, lambda: encode_texts(tokenizer, texts, …), world)
input_ids = pad([ids[row] for row in rows], width, tokenizer.pad_token_id)
"""

import functools
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import console
from core import IGNORE_INDEX, World
from files import cache_folder, sync


class Ragged:
    """Rows of token ids of different lengths, end to end: ragged[i] is int32 (lengths[i],)."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        self.ids, self.offsets, self.lengths = ids, offsets, np.diff(offsets)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> "Ragged":
        arrays = [np.asarray(row, np.int32) for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), offsets)

    @classmethod
    def load(cls, folder: Path) -> "Ragged":
        """Memory-mapped from a folder of the token cache."""
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        if offsets[-1] == 0:  # a file of zero bytes cannot be mapped
            return cls(np.zeros(0, np.int32), offsets)
        return cls(np.memmap(folder / "ids.bin", dtype=np.int32, mode="r"), offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all ids and where rows begin."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets))
        digest.update(np.ascontiguousarray(self.ids))
        return digest.hexdigest()[:16]

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


def _tokens_are_whole(folder: Path) -> bool:
    try:
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        return (folder / "ids.bin").stat().st_size == 4 * int(offsets[-1])
    except (OSError, ValueError, IndexError, EOFError):
        return False


def cached_tokens(
    key: dict[str, Any], build: Callable[[], Iterable[Sequence[int]]], world: World
) -> Ragged:
    """Rows of token ids from the cache on disk, built once by rank 0 where they are missing.

    key: what the rows depend on (content, tokenizer, length); build: yields them one by one,
    so that memory stays bounded. The folder is ABLATE_CACHE, else cache/ in the project.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "tokens" / digest
    with world.rank_0_first():
        if not _tokens_are_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)  # what a machine that vanished left
            # process ids repeat on machines that share a volume
            beside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
            beside.mkdir(parents=True)
            try:
                lengths = [0]
                with open(beside / "ids.bin", "wb") as file:
                    for row in build():
                        file.write(np.asarray(row, np.int32).tobytes())
                        lengths.append(len(row))
                    sync(file.fileno())  # a name without its bytes would outlive a lost machine
                with open(beside / "offsets.npy", "wb") as file:
                    np.save(file, np.cumsum(lengths, dtype=np.int64))
                    sync(file.fileno())
                (beside / "key.json").write_text(json.dumps(key, indent=1))
                try:
                    beside.rename(folder)
                except OSError:
                    if not _tokens_are_whole(folder):  # not because another process was first
                        raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return Ragged.load(folder)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over the vocabulary, rules and special tokens: equal means equal token ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    special = json.dumps({k: str(v) for k, v in tokenizer.special_tokens_map.items()})
    return hashlib.sha256((rules + special).encode()).hexdigest()[:16]


UNREACHABLE = "\U0010ffff" * 4  # a code point that no text may hold


@functools.lru_cache(maxsize=2)
def text_backend(tokenizer: Any) -> Any:
    """A copy of the tokenizer's rules in which no text has the spelling of a special token.

    Ids are as before. To split special tokens, as transformers can, is not enough: a Unigram model
    (DeBERTa-v3, ALBERT, XLM-RoBERTa) has them among its pieces, with the best score, and a
    vocabulary of whole words among its words. None: for a tokenizer in Python, which has no such
    rules.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    special = {token["content"] for token in rules["added_tokens"] if token["special"]}
    special |= set(tokenizer.all_special_tokens)
    special = {spelling for spelling in special if len(spelling) > 1}  # "\n" has no other spelling

    def renamed(piece: str) -> str:
        return UNREACHABLE + piece if piece in special else piece

    for token in rules["added_tokens"]:
        token["content"] = renamed(token["content"])
    model = rules["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed(piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed(piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        merges = model["merges"]
        model["merges"] = [pair for pair in merges if special.isdisjoint([*pair, "".join(pair)])]
    rules["truncation"] = rules["padding"] = None  # some files bring theirs along
    return Tokenizer.from_str(json.dumps(rules))


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens; those that are written in it are text."""
    backend = text_backend(tokenizer)
    if backend is not None:
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    return tokenizer(list(texts), return_attention_mask=False, verbose=False, **plain)["input_ids"]


def encode_texts(
    tokenizer: Any, texts: Iterable[str], count: int, title: str, quiet: bool = False
) -> Iterator[list[int]]:
    """Token ids of each of `count` texts, as `encode` gives them, with a progress bar.

    1,000 texts at a time are spread over all cores by the tokeniser's own threads.
    """
    from tqdm import tqdm

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = iter(texts)
    plain = not sys.stderr.isatty()
    if plain and not quiet:
        console.say(f"{title} {count:,} texts")
    with tqdm(total=count, desc=title, unit=" texts", disable=quiet or plain) as bar:
        for part in iter(lambda: list(itertools.islice(texts, 1000)), []):
            yield from encode(tokenizer, part)
            bar.update(len(part))


LONGEST_WORD = 1000  # characters


def cut_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts to learn a tokenizer from, in pieces where a word, or a run of spaces, is longer
    than any word: a picture in base64, a page of minified code.

    Learning takes time in proportion to the square of a word's length, and learns nothing there.
    """
    cut = re.compile(rf"\S{{{LONGEST_WORD}}}(?=\S)|\s{{{LONGEST_WORD}}}(?=\s)")
    for text in texts:
        longest = max(map(len, text.split()), default=0)
        start = 0
        if longest > LONGEST_WORD or re.search(rf"\s{{{LONGEST_WORD}}}", text):
            for run in cut.finditer(text):
                yield text[start : run.end()]
                start = run.end()
        yield text[start:]


def ladder_length(longest: int, max_length: int, steps: int | None) -> int:
    """Length to pad to: a multiple of 8, or (steps given) one of that many lengths in total."""
    unit = 8 if steps is None else max(8, 8 * math.ceil(max_length / steps / 8))
    return min(unit * math.ceil(max(longest, 1) / unit), max(max_length, longest))


def added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after one text: [CLS] and [SEP], <s>, nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def fill(lengths: Sequence[int], budget: int) -> list[int]:
    """Tokens for each part: short ones whole, the rest share what is left equally."""
    parts = [0] * len(lengths)
    left = budget
    for place, number in enumerate(sorted(range(len(lengths)), key=lambda i: lengths[i])):
        parts[number] = min(lengths[number], left // (len(lengths) - place))
        left -= parts[number]
    return parts


def keep_ends(ids: Sequence[int], budget: int) -> Sequence[int]:
    """Head and tail of a text that is too long, half of the budget each."""
    if len(ids) <= budget:
        return ids
    tail = budget // 2
    return [*ids[: budget - tail], *ids[len(ids) - tail :]]


def pad(rows: Sequence[Sequence[int]], width: int, value: int) -> np.ndarray:
    """(rows, width) int64: each row from the left, `value` behind it."""
    padded = np.full((len(rows), width), value, np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def target_places(labels: Tensor) -> Tensor:
    """(targets,) where labels (rows, seq) ask for something, of all rows end to end.

    Of a batch that is still on the host: a device would be waited for to say how many they are.
    """
    return (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)


def rows_of_tokens(lengths: Tensor, device: torch.device) -> Tensor:
    """(tokens,) the row of each token, where rows of these lengths, known to the host, stand end to
    end."""
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu())
    return rows.to(device, non_blocking=True)


def segment_separator(tokenizer: Any, model_config: Any) -> int | None:
    """The token after which BERT's second segment begins; None for models that know no segments."""
    kinds = getattr(model_config, "type_vocab_size", 0) or 0
    if kinds < 2 or "token_type_ids" not in tokenizer.model_input_names:
        return None
    return int(tokenizer.sep_token_id)


def pad_sequences(rows: Sequence[Sequence[int]], width: int, value: int) -> dict[str, Tensor]:
    """input_ids, attention_mask (rows, width) of sequences, padded on the right."""
    lengths = np.array([len(row) for row in rows])[:, None]
    mask = (np.arange(width) < lengths).astype(np.int64)
    ids = pad(rows, width, value)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
