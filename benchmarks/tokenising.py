"""Tokenising 100,000 texts to disk: ours beside datasets.map with the same tokenizer.

python bench.py tokenising --repeats 3
python bench.py tokenising --peer processes --repeats 3

Film reviews with a number in front of each, so that no two are equal; MiniLM's tokenizer, nothing
cut off. The peer is map(batched=True), alone or with a process a core (num_proc). Both end with
ids on disk and must have as many.
"""

import argparse
import contextlib
import itertools
import os
import sys
import time
from pathlib import Path

PEERS = {
    "threads": "datasets.map, batched",
    "processes": "datasets.map, batched, num_proc",
}
WHAT, RATE, CHECK, TOLERANCE = "tokenising", "texts_per_second", "tokens", 0.5
COUNTED = False


def known_texts(arguments: argparse.Namespace) -> list[str]:
    """The film reviews, or the lines of --data."""
    from data.reviews import load_reviews

    if arguments.data == "hub":
        return [review.text for review in load_reviews()]
    return Path(arguments.data).read_text(encoding="utf-8").splitlines()


def numbered_texts(arguments: argparse.Namespace) -> list[str]:
    """100,000 different texts, 200 with --quick."""
    known = itertools.cycle(known_texts(arguments))
    return [f"{i} {next(known)}" for i in range(200 if arguments.quick else 100_000)]


def ours(arguments: argparse.Namespace) -> dict:
    import core
    from data.tokens import cached_tokens, encode_texts
    from models import pretrained

    os.environ["ABLATE_CACHE"] = str(arguments.folder)
    tokenizer, texts = pretrained.load_tokenizer(arguments.model), numbered_texts(arguments)
    world = core.single_world("cpu")
    started = time.perf_counter()

    def build():
        return encode_texts(tokenizer, texts, len(texts), "tokenising", quiet=True)

    ids = cached_tokens({"kind": "benchmark"}, build, world)
    seconds = time.perf_counter() - started
    return {"texts_per_second": len(texts) / seconds, "tokens": len(ids.ids)}


def peer(arguments: argparse.Namespace) -> dict:
    os.environ["HF_DATASETS_CACHE"] = str(arguments.folder)
    import datasets

    from models import pretrained

    tokenizer, texts = pretrained.load_tokenizer(arguments.model), numbered_texts(arguments)
    # on disk, as map keeps in memory what comes from memory
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(arguments.folder / "texts")
    rows = datasets.load_from_disk(arguments.folder / "texts")
    started = time.perf_counter()

    def encode(batch):
        return tokenizer(
            batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False
        )

    processes = arguments.threads if arguments.peer == "processes" else None
    with contextlib.redirect_stdout(sys.stderr):
        encoded = rows.map(encode, batched=True, num_proc=processes, remove_columns=["text"])
    seconds = time.perf_counter() - started
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(encoded.data.column("input_ids"))
    tokens = pyarrow.compute.sum(lengths).as_py()
    return {"texts_per_second": len(texts) / seconds, "tokens": tokens}
