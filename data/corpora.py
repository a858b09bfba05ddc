"""Text for masked language modelling: sources, tokenizer, packed shards, splits, masks.

    corpus = load_corpus("reviews", world, vocab_size=32768, seq_length=128)
    parts = split_corpus(corpus, fraction=0.005, seed=0, truncate_to=10_000)
    train = MlmData(corpus, parts.train, seed=config.seed)
    batch = train.collate(rows, epoch)      # input_ids, labels, positions, ids

Documents are tokenised once, each followed by the separator, concatenated and cut into sequences
of `seq_length` tokens, without padding. Each sequence begins with the classifier token, never
masked, so that what fine-tuning reads there has been trained (the published C4 subset, packed
elsewhere, has none). The sequences lie in memory-mapped shards that all processes share. A
sequence's id is its number in the shards.

Whole documents are packed in groups of about 64 sequences, and a split takes whole groups. So no
document is in two parts, and a sequence has the same content and id whatever the split: one set of
shards, and one table of irreducible losses, serve every fraction and seed. The price is the tail
of each group, less than one sequence in 64.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import math
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import claims
import console
import files
from core import IGNORE_INDEX, World
from data.records import (
    COMPRESSED,
    KINDS,
    PARTS,
    TEXT_FIELDS,
    BadRow,
    files_below,
    kind_of,
    load_hub,
    part_of,
    read_records,
    said,
    text_lines,
    text_of,
)
from data.rows import split_of, stable_hash
from data.tokens import cut_words, target_places, text_backend, tokenizer_fingerprint
from device import of_workers
from files import cache_folder, disk_error, walk, write_folder, write_text

BLOCK_CHARACTERS = 4 << 20  # documents of one shard: the unit of work and of what a kill can cost
GROUP_SEQUENCES = 64
SAMPLE_CHARACTERS = 200_000_000  # that the tokenizer is trained on, at most
LONGEST_DOCUMENT = 1 << 20  # characters; a longer stretch of a text file is cut
LAYOUT = 2  # of the shards: to be raised when the same documents would be packed otherwise

# ----------------------------------------------------------------------------- sources

Documents = Iterator[tuple[str, str]]  # (id, text)

# Hub id, configuration, revision, documents at most (None: all), entries joined to one document.
# C4 and MiniPile are published in random order. BookCorpus is one sentence an entry; its revision
# is the hub's own parquet copy, for `datasets` no longer runs the script in its main branch. The
# Wikipedia dump of 2022 that was used for the published runs needs such a script, too.
HUB = {
    "c4-subset": [("allenai/c4", "en", None, 25_000_000, 1)],
    "minipile": [("JeanKaddour/minipile", None, None, None, 1)],
    "bookcorpus-wikipedia": [
        ("bookcorpus/bookcorpus", None, "refs/convert/parquet", None, 16),
        ("wikimedia/wikipedia", "20231101.en", None, None, 1),
    ],
}
ALIASES = {"bookcorpus-wikitext": "bookcorpus-wikipedia", "c4-subset-random": "c4-subset"}
TEXT_KINDS = (".txt", *KINDS)


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order, in parts that can be read again.

    identity: what tells this source from others without reading it: names, sizes and times of
    files, or hub ids. tokenised: a folder of sequences that were packed elsewhere, instead.
    splits: train, val, test, as far as names of files say so.
    """

    name: str
    identity: list
    parts: Sequence[Callable[[], Documents]] = ()
    tokenised: Path | None = None
    repairs: Counter[str] = field(default_factory=Counter)  # counted while it is read
    splits: Sequence[str] = ()

    def documents(self) -> Documents:
        for part in self.parts:
            yield from part()

    def sample(self, characters: int) -> Iterator[str]:
        """Texts with about so many characters in total, equal shares from each part's beginning."""
        for part in self.parts:
            left = characters // len(self.parts)
            for _, text in part():
                yield text
                left -= len(text)
                if left <= 0:
                    break


def open_source(data: str) -> Source:
    """The source that `data` names: reviews, c4-subset, minipile, bookcorpus-wikitext or a path.

    A path is a file or a folder of .txt (blank lines end a document, as in BERT's own input), or
    of .jsonl, .json, .csv, .tsv or .parquet, whose field `text` (or another of TEXT_FIELDS) holds
    the documents; all but the last plain or .gz, .zst, .bz2; or a folder of packed sequences as
    the published C4 subset is one. Reads no document yet.

    Raises FileNotFoundError for an unknown name or missing path, ValueError for other files.
    """
    name = ALIASES.get(data, data)
    repairs: Counter[str] = Counter()
    if name == "reviews":
        from data import reviews

        path = reviews.find_package_csv()
        identity = ["reviews without the sentiment test rows", path.stat().st_size]
        return Source(name, [identity], [_read_reviews])
    if name in HUB:
        downloaded = cache_folder() / "downloads" / name
        if downloaded.is_dir():
            return open_source(str(downloaded))
        parts = [functools.partial(_read_hub, *entry) for entry in HUB[name]]
        return Source(name, [list(entry) for entry in HUB[name]], parts)
    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(
            f"{data}: no such file or folder, nor one of reviews, {', '.join([*HUB, *ALIASES])}. "
            "Without a network: --data reviews, or a local .txt, .jsonl or .parquet file."
        )
    states = sorted(p for p in walk(path) if p.name == "state.json") if path.is_dir() else []
    packed = [state for state in states if (state.parent / "tokenizer").is_dir()]
    if packed:
        arrows = sorted(packed[0].parent.glob("*.arrow"))
        return Source(path.name, _file_facts(arrows, path), tokenised=packed[0].parent)
    paths = files_below(path, TEXT_KINDS, repairs) if path.is_dir() else [path]
    if not paths or not all(kind_of(each, TEXT_KINDS) for each in paths):
        raise ValueError(
            f"{data}: expected {', '.join(TEXT_KINDS)} files (all but parquet plain or "
            f"{', '.join(COMPRESSED)}), or a folder of such."
        )
    root = path if path.is_dir() else path.parent
    parts = [functools.partial(read_documents, each, root, repairs) for each in paths]
    there = {found[0] for each in paths if (found := part_of(each, root))}
    identity = [*_file_facts(paths, root), "text"]
    return Source(
        path.name, identity, parts, repairs=repairs, splits=[s for s in PARTS if s in there]
    )


def _file_facts(files: Sequence[Path], root: Path) -> list:
    facts = []
    for file in files:
        stat = file.stat()
        facts.append([str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns])
    return facts


def _read_reviews() -> Documents:
    from data.reviews import load_reviews

    for review in load_reviews():
        part = split_of(review.key, val_frac=0, test_frac=0.5)
        # the rows that eval_bert.py tests sentiment on stay unseen, though they have no labels here
        if not (review.source == "rotten_tomatoes" and part == "test"):
            yield review.id, review.text


def _read_hub(
    hub_id: str, config: str | None, revision: str | None, limit: int | None, joined: int
) -> Documents:
    advice = "Use --data reviews, or a local folder of .txt, .jsonl or .parquet files."
    if not files.hub_answers():
        raise OSError(f"{hub_id}: the hub cannot be reached. {advice}")
    options = {"split": "train", "revision": revision, "streaming": True}
    stream = load_hub(hub_id, config, advice=advice, **options)
    texts = (entry["text"] for entry in stream)
    for number in itertools.count() if limit is None else range(limit):
        entries = list(itertools.islice(texts, joined))
        if not entries:
            return
        yield f"{hub_id}:{number}", "\n".join(entries)


def read_documents(path: Path, root: Path, repairs: Counter) -> Documents:
    """Documents of one file; ids are the path below `root` and the document's number."""
    is_text = kind_of(path, TEXT_KINDS) == ".txt"
    texts = _read_text(path, repairs) if is_text else _read_fields(path, repairs)
    name = path.relative_to(root).as_posix()
    for number, text in enumerate(texts):
        yield f"{name}:{number}", text


def _read_text(path: Path, repairs: Counter) -> Iterator[str]:
    parts, size = [], 0
    for line in text_lines(path, repairs):
        if line.strip():
            parts.append(line)
            size += len(line)
        if parts and (not line.strip() or size >= LONGEST_DOCUMENT):
            yield "".join(parts)
            parts, size = [], 0
    if parts:
        yield "".join(parts)


def _read_fields(path: Path, repairs: Counter) -> Iterator[str]:
    for place, record in read_records(path, repairs, columns=TEXT_FIELDS):
        if isinstance(record, BadRow):
            raise ValueError(f"{place}: {record}")
        yield text_of(record, TEXT_FIELDS, place) or ""


# --------------------------------------------------------------------------- tokenizer

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")  # ids 0 to 6


def train_tokenizer(texts: Iterator[str], vocab_size: int, max_length: int) -> Any:
    """A WordPiece tokenizer in transformers' form, the same vocabulary for the same texts.

    Quotes are made plain, accents and case dropped, white space collapsed, all that is not ASCII
    deleted; words and runs of punctuation are cut apart. One text is `<cls> A <sep>`, two are
    `<cls> A <sep> B <sep>`.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(quotes, '"') for quotes in ("``", "''")),
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(r"[^\S ]+| {2,}"), " "),
            normalizers.Replace(Regex(r"[^\x20-\x7e]+"), ""),
        ]
    )
    learner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.Whitespace()
    # The trainer numbers pieces as its hash table happens to give them, and breaks ties between
    # merges by those numbers: two trainings differ. With the alphabet named first they agree.
    alphabet = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    first = [*SPECIAL_TOKENS, *alphabet, *(f"##{letter}" for letter in alphabet)]
    if vocab_size < len(first):
        raise ValueError(f"vocab_size {vocab_size}: expected at least {len(first)}")
    learner.train_from_iterator(
        cut_words(texts),
        trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False),
    )
    # a tokenizer of its own, for in the learner the whole alphabet counts as special
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B <sep>",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("<cls>", "<sep>")],
    )
    names = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in zip(names, SPECIAL_TOKENS, strict=True)},
    )


def load_corpus_tokenizer(folder: str | os.PathLike) -> Any:
    """A tokenizer that can pack and mask; ValueError if it is a slow one or lacks a token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"{folder}: not a tokenizer of the tokenizers library")
    for name in ("pad", "sep", "mask"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise ValueError(f"{folder}: its tokenizer has no {name} token")
    return tokenizer


# ----------------------------------------------------------------------------- packing


def load_corpus(
    data: str,
    world: World,
    *,
    tokenizer: str | None = None,
    vocab_size: int = 32768,
    seq_length: int = 128,
    workers: int | None = None,
    build: bool = True,
) -> "Corpus":
    """The packed sequences of a source, made by rank 0 where they are not there yet.

    tokenizer: a folder; None trains a WordPiece of `vocab_size` on the source. workers: processes
    that tokenise (None: one a core; 0: this one, with the tokenizers library's own threads); the
    shards are the same for any number. After a kill the source is read again from its beginning,
    but shards that were finished are kept.

    Memory: about 2·workers blocks of 4 M characters, and the tokenizer's table of distinct words.
    """
    source = open_source(data)
    if source.tokenised:
        world.say(f"{data}: sequences that were packed elsewhere, in {source.tokenised}")
        tokenizer = str(source.tokenised / "tokenizer")
    if len(source.splits) > 1:
        world.say(
            f"warning: {data} has {', '.join(source.splits)}, and all of them are read: name the "
            "training file alone if a later test on the others is to be one of unseen text"
        )
    key = {"layout": LAYOUT, "source": source.identity, "seq_length": seq_length}
    key |= {"block": BLOCK_CHARACTERS, "group": GROUP_SEQUENCES}
    if tokenizer is None:
        key |= {"vocab_size": vocab_size, "sample": SAMPLE_CHARACTERS}
    else:
        own = tokenizer_fingerprint(load_corpus_tokenizer(tokenizer))
        key |= {"tokenizer": own, "special": "text"}  # before, pieces of some could be special
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "corpora" / digest
    if not build and not folder.is_dir():
        raise FileNotFoundError(f"{data}: its packed sequences are no longer in {folder}")
    with world.rank_0_first():
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with open(folder.with_name(f"{digest}.lock"), "w") as lock:
                with contextlib.suppress(OSError):  # a volume without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making them: wait for it
                claim = folder.with_name(f"{digest}.claim")  # or another machine
                with claims.turn(claim, folder.is_dir, world.say) as mine:
                    if mine:
                        _build(source, folder, tokenizer, vocab_size, seq_length, workers, world)
    return Corpus(folder)


def _build(
    source: Source,
    folder: Path,
    tokenizer_folder: str | None,
    vocab_size: int,
    seq_length: int,
    workers: int | None,
    world: World,
) -> None:
    building = folder.with_name(f"{folder.name}.building")
    building.mkdir(exist_ok=True)
    if not (building / "tokenizer").is_dir():

        def fill(beside: Path) -> None:
            if tokenizer_folder is not None:
                load_corpus_tokenizer(tokenizer_folder).save_pretrained(beside)
                return
            world.say(f"{source.name}: training a tokenizer of {vocab_size:,} pieces")
            texts = source.sample(SAMPLE_CHARACTERS)
            train_tokenizer(texts, vocab_size, seq_length).save_pretrained(beside)

        write_folder(building / "tokenizer", fill)
    tokenizer = load_corpus_tokenizer(building / "tokenizer")
    packer = _Packer(building, tokenizer, seq_length)
    shards = _pack(source, packer, workers)
    groups = np.array([rows for shard in shards for rows in shard["groups"]], np.int32)
    if groups.sum() == 0:
        raise ValueError(f"{source.name}: less text than one sequence of {seq_length} tokens")
    np.save(building / "groups.npy", groups)
    content = [seq_length, tokenizer_fingerprint(tokenizer)]
    content += [[shard["groups"], shard["sha256"]] for shard in shards]
    facts = {
        "source": source.name,
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24],
        "seq_length": seq_length,
        "vocab_size": len(tokenizer),
        "mask_id": tokenizer.mask_token_id,
        "special_ids": sorted(tokenizer.all_special_ids),
        "dtype": packer.dtype.name,
        "documents": sum(shard["documents"] for shard in shards),
        "sequences": int(groups.sum()),
        "tokenised_elsewhere": source.tokenised is not None,
        "repairs": dict(source.repairs),
        "files": {
            f"{number:05d}.bin": {"bytes": shard["bytes"], "sha256": shard["sha256"]}
            for number, shard in enumerate(shards)
        },
    }
    write_text(building / "manifest.json", json.dumps(facts, indent=1))
    building.rename(folder)
    for number in range(len(shards)):
        (folder / f"{number:05d}.json").unlink()
    for line in said(source.repairs):
        world.say(f"{source.name}: {line}")
    world.say(
        f"{source.name}: {facts['sequences']:,} sequences of {seq_length} tokens from "
        f"{facts['documents']:,} documents in {folder}"
    )


def _pack(source: Source, packer: "_Packer", workers: int | None) -> list[dict]:
    """Write the shards that are missing; return what is in each."""
    from tqdm import tqdm

    blocks = 0

    def missing() -> Iterator[tuple[int, Any]]:
        nonlocal blocks
        for number, block in enumerate(_blocks(source)):
            blocks = number + 1
            if packer.facts(number) is None:
                yield number, block

    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        workers = workers if workers > 1 else 0
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers == 0 else "false"
    # The blocks go to the workers in place of row numbers. A DataLoader keeps their order, holds
    # two a worker ahead, and notices a worker, or a parent, that was killed.
    loader = DataLoader(
        packer,
        sampler=missing(),
        batch_size=None,
        **of_workers(workers),
        generator=torch.Generator().manual_seed(0),
    )
    plain = not sys.stderr.isatty()
    if plain:
        console.say(f"{source.name}: tokenising")
    with tqdm(desc="tokenising", unit=" tokens", unit_scale=True, disable=plain) as bar:
        for number in loader:
            bar.update(sum(packer.facts(number)["groups"]) * packer.seq_length)
    return [packer.facts(number) for number in range(blocks)]


def _blocks(source: Source) -> Iterator[Any]:
    """What goes into one shard: documents of 4 M characters, or sequences packed elsewhere."""
    if source.tokenised:
        import datasets

        rows = datasets.load_from_disk(str(source.tokenised)).select_columns("input_ids")
        for batch in rows.with_format("numpy").iter(batch_size=BLOCK_CHARACTERS // 128):
            yield batch["input_ids"]
        return
    documents, size = [], 0
    for document in source.documents():
        documents.append(document)
        size += len(document[1])
        if size >= BLOCK_CHARACTERS:
            yield documents
            documents, size = [], 0
    if documents:
        yield documents


class _Packer:
    """Turns a block into a shard on disk, here or in a worker process."""

    def __init__(self, folder: Path, tokenizer: Any, seq_length: int):
        self.folder, self.seq_length = folder, seq_length
        self.separator = tokenizer.sep_token_id
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        first = tokenizer.cls_token_id  # some tokenizers have none
        self.first = np.array([] if first is None else [first], self.dtype)
        self.text_length = seq_length - len(self.first)
        tokenizer.backend_tokenizer.no_truncation()  # also in the fingerprint
        tokenizer.backend_tokenizer.no_padding()
        self.backend = text_backend(tokenizer)  # a "<mask>" that somebody wrote is text

    def facts(self, number: int) -> dict | None:
        """What is in a finished shard; written after it, so a torn shard has none."""
        try:
            return json.loads((self.folder / f"{number:05d}.json").read_text())
        except FileNotFoundError:
            return None

    def __getitem__(self, numbered_block: tuple[int, Any]) -> int:
        number, block = numbered_block
        if isinstance(block, np.ndarray):
            if block.ndim != 2 or block.shape[1] != self.seq_length:
                raise ValueError(
                    f"the packed sequences have the shape {block.shape[1:]}, expected "
                    f"({self.seq_length},): seq_length must be theirs"
                )
            groups = np.array_split(block, math.ceil(len(block) / GROUP_SEQUENCES))
        else:
            groups = list(self._groups(block))
        rows = np.concatenate([np.zeros((0, self.seq_length), self.dtype), *groups])
        content = rows.astype(self.dtype).tobytes()
        path = self.folder / f"{number:05d}.bin"
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                files.sync(file.fileno())
            beside.rename(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise disk_error(error, path) from error
        facts = {
            "documents": len(block),
            "groups": [len(group) for group in groups],
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        write_text(path.with_suffix(".json"), json.dumps(facts), shared=True)
        return number

    def _groups(self, documents: list[tuple[str, str]]) -> Iterator[np.ndarray]:
        """Sequences (n, seq_length) of whole documents, which stand in the order of a hash."""
        documents = sorted(documents, key=lambda document: stable_hash("order", document[0]))
        stream: list[np.ndarray] = []
        held = 0
        for ids in self._encode([text for _, text in documents]):
            stream.append(ids)
            held += len(ids)
            if held >= GROUP_SEQUENCES * self.text_length:
                yield self._cut(stream)
                stream, held = [], 0
        if held >= self.text_length:
            yield self._cut(stream)

    def _encode(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Token ids of each text that has any, and the separator."""
        for start in range(0, len(texts), 256):
            part = texts[start : start + 256]
            for encoding in self.backend.encode_batch_fast(part, add_special_tokens=False):
                ids = encoding.ids  # a list made anew at every look
                if ids:
                    yield np.array([*ids, self.separator], self.dtype)

    def _cut(self, stream: list[np.ndarray]) -> np.ndarray:
        flat = np.concatenate(stream)
        rows = flat[: len(flat) // self.text_length * self.text_length]
        rows = rows.reshape(-1, self.text_length)
        return np.concatenate([np.tile(self.first, (len(rows), 1)), rows], axis=1)


class Corpus:
    """Packed sequences on disk: corpus.rows(ids) returns their tokens.

    fingerprint: of the tokens, the tokenizer and seq_length, the same on every machine.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.source, self.fingerprint = self.manifest["source"], self.manifest["fingerprint"]
        self.seq_length, self.vocab_size = self.manifest["seq_length"], self.manifest["vocab_size"]
        self.mask_id = self.manifest["mask_id"]
        self.is_special = np.zeros(self.vocab_size, bool)  # ids that are never masked
        self.is_special[self.manifest["special_ids"]] = True
        self.groups = np.load(self.folder / "groups.npy")  # sequences of each group of documents
        dtype = np.dtype(self.manifest["dtype"])
        self.shards = []
        for name, fact in self.manifest["files"].items():
            size = (self.folder / name).stat().st_size
            if size != fact["bytes"]:
                raise ValueError(
                    f"{self.folder / name} has {size:,} bytes, expected {fact['bytes']:,}: "
                    f"delete {self.folder} to have it made again"
                )
            flat = np.memmap(self.folder / name, dtype, mode="r") if size else np.zeros(0, dtype)
            self.shards.append(np.asarray(flat).reshape(-1, self.seq_length))
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        self.starts = np.concatenate([[0], self.ends[:-1]])

    def __reduce__(self) -> tuple:
        return Corpus, (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return int(self.ends[-1])

    def group_of(self, ids: np.ndarray) -> np.ndarray:
        """The group of documents that each of the sequences `ids` (n,) lies in."""
        ends = np.cumsum(self.groups, dtype=np.int64)
        return np.searchsorted(ends, ids.astype(np.int64), side="right")

    @functools.cached_property
    def tokenizer(self) -> Any:
        return load_corpus_tokenizer(self.folder / "tokenizer")

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Tokens (n, seq_length), uint16 or uint32, of the sequences `ids` (n,)."""
        shard = np.searchsorted(self.ends, ids, side="right")
        places = zip(shard.tolist(), (ids - self.starts[shard]).tolist(), strict=True)
        tokens = np.empty((len(ids), self.seq_length), self.shards[0].dtype)
        for row, (number, inside) in enumerate(places):
            tokens[row] = self.shards[number][inside]
        return tokens


# ------------------------------------------------------------------------------ splits


@dataclass(frozen=True)
class Split:
    """Ids of the sequences of each part, in a random order, so that a first part is a sample.

    train: for the run. validation: for every run on this corpus and seed, also for the model of
    the irreducible losses. il_train: held out, for training that model.
    """

    train: np.ndarray
    validation: np.ndarray
    il_train: np.ndarray
    fingerprint: str


def split_corpus(
    corpus: Corpus, fraction: float = 0.005, seed: int = 0, truncate_to: int | None = 10_000
) -> Split:
    """Hold out `fraction` of the sequences, whole groups of documents in an order set by `seed`.

    The first `truncate_to` held out are the validation part (None: all), those of the groups after
    it are il_train. The order does not depend on the fraction: the holdout of .005 is the
    beginning of that of .2, and both validate on the same sequences if .005 has enough.

    The published C4 subset has lost its documents; it is split in the order of the published
    irreducible losses: their number k belongs to the sequence train[k].
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_set.fraction {fraction}: expected a share from 0 up to 1")
    if truncate_to is not None and truncate_to < 1:
        raise ValueError(f"validation_set.truncate_to {truncate_to}: expected 1 or more, or null")
    total = len(corpus)
    dtype = np.uint32 if total < 1 << 32 else np.int64
    if corpus.manifest["tokenised_elsewhere"]:
        # what `Dataset.train_test_split(shuffle=True, seed=seed)` did
        ids = np.random.default_rng(seed).permutation(total).astype(dtype)
        held_out = int(total * fraction)
        validation_end = il_start = min(held_out, truncate_to or held_out)
    else:
        order = np.argsort(mix_seeds(seed, np.arange(len(corpus.groups)), 3), kind="stable")
        sizes = corpus.groups[order].astype(np.int64)
        ends = np.cumsum(sizes)
        starts = (np.cumsum(corpus.groups, dtype=np.int64) - corpus.groups)[order]
        ids = np.repeat((starts - ends + sizes).astype(dtype), sizes)  # wraps, and wraps back
        ids += np.arange(total, dtype=dtype)
        groups = np.searchsorted(ends, fraction * total)  # of which the last is not whole inside
        groups = int(groups) + (fraction > 0)
        held_out = int(ends[groups - 1]) if groups else 0
        validation_end = min(held_out, truncate_to or held_out)
        il_start = held_out
        if 0 < validation_end:
            il_start = int(ends[np.searchsorted(ends, validation_end)])
    if held_out == total or (fraction > 0 and held_out == 0):
        raise ValueError(
            f"{corpus.source}: {total:,} sequences in {len(corpus.groups)} groups of documents "
            f"cannot be split with validation_set.fraction {fraction}: use a larger corpus or "
            "another fraction"
        )
    key = [corpus.fingerprint, fraction, seed, truncate_to]
    return Split(
        ids[held_out:],
        ids[:validation_end],
        ids[il_start:held_out],
        hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24],
    )


# ------------------------------------------------------------------------------- masks

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _scramble(state: np.ndarray) -> np.ndarray:
    """The last stage of SplitMix64 on uint64 of any shape, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
    return state


def mix_seeds(*parts: int | np.ndarray) -> np.ndarray:
    """core.mix_seed for arrays (n,) of whole numbers, or for numbers beside them: uint64 (n,)."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _scramble((state ^ np.atleast_1d(part).astype(np.uint64)) + _GOLDEN)
    return state >> np.uint64(1)


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden (Devlin et al. 2019, 3.1).

    Each sequence has the same number of masked tokens, as in BERT's own data and in Cramming's:
    losses of single sequences are comparable, none is without a target, and the shape is fixed.
    """

    fraction: float = 0.15  # of seq_length, rounded: 19 of 128
    replaced: float = 0.8  # share of these that the mask token replaces
    random: float = 0.1  # share that a token drawn from the whole vocabulary replaces

    def draw(
        self, tokens: np.ndarray, ids: np.ndarray, seed: int, epoch: int, corpus: Corpus
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens (n, seq), ids (n,) → input_ids (n, seq), labels (n, seq), positions (n, k).

        A function of (seed, id, epoch) and the tokens: SplitMix64 with the position as its
        counter. positions: the k masked places, ascending; labels are IGNORE_INDEX elsewhere.
        """
        length = tokens.shape[1]
        count = max(1, round(self.fraction * length))
        key = mix_seeds(seed, ids, epoch)[:, None]
        words = _scramble(key + _GOLDEN * np.arange(1, length + count + 1, dtype=np.uint64))
        # the places with the smallest words, special tokens last; the low bits say which place
        place = np.uint64(0xFFFF)
        ranks = (words[:, :length] & ~place) | np.arange(length, dtype=np.uint64)
        ranks |= corpus.is_special[tokens] * ~place
        positions = np.partition(ranks, count - 1, axis=1)[:, :count] & place
        positions = np.sort(positions.astype(np.int64), axis=1)

        original = np.take_along_axis(tokens, positions, axis=1).astype(np.int64)
        words = words[:, length:]
        kind = (words >> np.uint64(40)) / float(1 << 24)  # uniform in [0, 1)
        low = words & np.uint64(0xFFFFFFFF)
        anything = ((low * np.uint64(corpus.vocab_size)) >> np.uint64(32)).astype(np.int64)
        hidden = np.where(kind < self.replaced + self.random, anything, original)
        hidden[kind < self.replaced] = corpus.mask_id
        special = corpus.is_special[original]  # a sequence with fewer than k others
        input_ids = tokens.astype(np.int64)
        np.put_along_axis(input_ids, positions, np.where(special, original, hidden), axis=1)
        labels = np.full(tokens.shape, IGNORE_INDEX, np.int64)
        np.put_along_axis(labels, positions, np.where(special, IGNORE_INDEX, original), axis=1)
        return input_ids, labels, positions


class MlmData:
    """One part of a corpus, with masks: what core.TrainLoader and evaluation_batches ask for.

    ids: of the part's sequences, (rows,). seed: of the training masks. Evaluation (epoch None)
    has masks of its own, the same for every seed, method and time.
    """

    def __init__(
        self, corpus: Corpus, ids: np.ndarray, seed: int = 0, masking: Masking | None = None
    ):
        if corpus.seq_length > 1 << 16:
            raise ValueError(f"seq_length {corpus.seq_length}: expected at most 65,536")
        self.corpus, self.ids, self.seed = corpus, ids, seed
        self.masking = masking or Masking()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens of each sequence, all seq_length; the view takes no memory."""
        return np.broadcast_to(np.int64(self.corpus.seq_length), (len(self.ids),))

    tokens = lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """Rows of this part → input_ids, labels (rows, seq), places (targets,), ids (rows,).

        All int64. labels hold the original token where one is masked, else IGNORE_INDEX.
        """
        ids = self.ids[rows].astype(np.int64)
        seed, epoch = (0, -1) if epoch is None else (self.seed, epoch)
        tokens = self.corpus.rows(ids)
        input_ids, labels, _ = self.masking.draw(tokens, ids, seed, epoch, self.corpus)
        arrays = {"input_ids": input_ids, "labels": labels, "ids": ids}
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return batch | {"places": target_places(batch["labels"])}
