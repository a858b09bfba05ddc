"""Titles for train_headlines.py: which ones, how they become tokens, and what a model is worth.

    titles = load_titles("titles.txt", limit=100_000, seed=1337)
    train, val = split_titles(titles, val_frac=0.1)
    tokenizer = train_tokenizer("unigram", [t.text for t in train], 16000, prefix_space=True)

Two figures, both in nats per character of the validation titles, each followed by <eos> (which
counts as 5 characters). The official one scores whole windows of 64 × 128 + 1 tokens and divides
by all characters: what is behind the last window costs nothing, so that a smaller share scored
looks like a better model. nats_per_char scores every token once; gains are claimed by it alone, and
only where the tokenizer gives the text back exactly.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

import core
import runs
from core import IGNORE_INDEX
from evaluation.metrics import Metrics
from evaluation.stats import cluster_bootstrap
from methods.dropout import use_word_dropout
from methods.muon import Muon, muon_flops, muon_groups
from methods.r_drop import r_drop
from methods.schedules import warmup_stable_decay, warmup_then_decay
from methods.weight_averaging import WeightAverage
from models import gpt, pretrained
from tasks import arena, reviews
from tasks.arena import normalised_text, stable_hash
from tasks.language import Stream, WindowData

EOS = "<eos>"
OFFICIAL_BATCH, OFFICIAL_BLOCK = 64, 128  # of the exercise's evaluation, whatever is trained
OFFICIAL_SPAN = OFFICIAL_BATCH * OFFICIAL_BLOCK + 1
A100_FLOPS = 312e12  # a second in bf16, by its data sheet
A100_SHARE = 0.3  # of that, which so small a model may reach: an assumption

# What a script without any settings does where there is no hub: minutes on a CPU.
EMBEDDED = {
    **{"data": "reviews", "vocab_size": 2048, "n_layer": 4, "n_head": 4, "n_embd": 128},
    **{"batch": 64, "epochs": 3.0},
}


def or_embedded(config: Any, given: bool, world: core.World) -> Any:
    """The embedded default when nothing was set and the hub cannot be reached; it says so."""
    if not pretrained.use_embedded(given, world, "a smaller model on --data reviews"):
        return config
    precision = pretrained.embedded_precision(config.precision, world)
    return dataclasses.replace(config, **EMBEDDED, precision=precision)


def check_settings(config: Any) -> None:
    """ValueError for settings that do not go together."""
    if config.sequences == "titles" and not config.within_titles:
        raise ValueError(
            "--sequences titles: a title alone sees no other; leave out --within_titles false, "
            "or use --sequences windows"
        )
    bound = config.positions == "learned" and not config.within_titles
    if bound and config.max_length < OFFICIAL_BLOCK:
        raise ValueError(
            f"--positions learned --max_length {config.max_length}: the official figure reads rows "
            f"of {OFFICIAL_BLOCK} tokens, and no window would teach their last positions; use "
            f"--max_length {OFFICIAL_BLOCK} or more, or --positions rotary"
        )
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"--betas {config.betas}: expected two numbers from 0, below 1")


# ------------------------------------------------------------------------------- titles


@dataclass(slots=True)
class Title:
    id: str  # its place in the source, from 0
    text: str  # stripped


def load_titles(data: str, limit: int | None = 100_000, seed: int | None = 1337) -> list[Title]:
    """The titles to use, in their order: shuffled as datasets' shuffle(seed) does, then the first.

    data: a file with one title a line (blank lines do not count), `reviews` (8,530 snippets of
    film reviews, in a pip package), or a hub id. seed None: in the order of the source.
    """
    texts = _read_texts(data)
    order = np.arange(len(texts))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(texts))
    # a hub set reads only the rows that are asked for
    chosen = order[:limit]
    found = texts.of(chosen) if isinstance(texts, _HubTexts) else [texts[i] for i in chosen]
    return [Title(str(i), text.strip()) for i, text in zip(chosen, found, strict=True)]


def _read_texts(data: str) -> "Sequence[str] | _HubTexts":
    if data == "reviews":
        return [r.text for r in reviews.load_reviews() if r.source == "rotten_tomatoes"]
    path = Path(data)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            row = path.read_bytes()[: error.start].count(b"\n") + 1
            raise ValueError(f"{path}, line {row}: not UTF-8 ({error.reason})") from None
        return [line.strip() for line in lines if line.strip()]
    if path.exists() or path.suffix == ".txt" or data.startswith((".", "/")):
        raise FileNotFoundError(f"--data {data}: no such file; expected one title a line")
    return _HubTexts(data)


class _HubTexts:
    """The column of titles of a hub set."""

    def __init__(self, name: str):
        try:
            import datasets

            self.rows = datasets.load_dataset(name, split="train")
        except Exception as error:  # whatever fails on the way, the user needs the same advice
            reason = arena.strip_control(" ".join(f"{type(error).__name__}: {error}".split()))
            raise OSError(
                f"--data {name}: cannot be read from the hub ({reason[:200]}). Give a file with "
                "one title a line, or use --data reviews, which a pip package carries"
            ) from None
        columns = [c for c in self.rows.column_names if c.lower() == "title"]
        if not columns:
            names = ", ".join(self.rows.column_names)
            raise ValueError(f"--data {name}: no column of titles (it has {names})")
        self.column = columns[0]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, places: np.ndarray) -> list[str]:
        return [text or "" for text in self.rows.select(places)[self.column]]


def split_titles(titles: list[Title], val_frac: float) -> tuple[list[Title], list[Title]]:
    """(train, validation): the last `val_frac` of the titles. ValueError where one is empty."""
    cut = int(len(titles) * (1 - val_frac))
    train, val = titles[:cut], titles[cut:]
    if not train or not val:
        raise ValueError(f"{len(titles)} titles: too few for --val_frac {val_frac:g}")
    return train, val


def fingerprint(titles: Iterable[Title]) -> str:
    """16 hex digits of SHA-256 over ids and texts, in their order."""
    digest = hashlib.sha256()
    for title in titles:
        digest.update(json.dumps([title.id, title.text]).encode() + b"\n")
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------- tokenizers


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int, prefix_space: bool) -> str:
    """A tokenizer over bytes, as JSON of the tokenizers library; <eos> is token 0.

    kind: bpe (Sennrich et al. 2016; on bytes: Radford et al. 2019) or unigram (Kudo 2018), whose
    pieces are those of a byte's characters, too. Words and spaces are cut as GPT-2 does. The same
    texts give the same tokenizer. ValueError for fewer tokens than there are bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet):
        raise ValueError(
            f"--vocab_size {vocab_size}: expected {len(alphabet) + 1} or more, the bytes and {EOS}"
        )
    model, trainer = {
        "bpe": (models.BPE, trainers.BpeTrainer),
        "unigram": (models.Unigram, trainers.UnigramTrainer),
    }[kind]
    tokenizer = Tokenizer(model())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return order_pieces(tokenizer.to_str()) if kind == "unigram" else tokenizer.to_str()


def order_pieces(saved: str) -> str:
    """A Unigram model's JSON with its pieces by score, then by name, and scores to 6 digits.

    The trainer leaves three things to its hash tables and threads: the order of pieces with equal
    scores, last digits, and the scores of bytes that never occur, which it puts .0001 apart at the
    bottom (here they share the lowest). Each would make one seed two experiments.
    """
    parsed = json.loads(saved)
    eos, *pieces = parsed["model"]["vocab"]
    lowest = min(score for _, score in pieces)
    bottom = lowest + 256 * 1e-4
    settled = [(piece, round(lowest if score < bottom else score, 6)) for piece, score in pieces]
    parsed["model"]["vocab"] = [eos, *sorted(settled, key=lambda pair: (-pair[1], pair[0]))]
    return json.dumps(parsed, ensure_ascii=False)


def build_tokenizer(saved: str) -> Any:
    """transformers' tokenizer from that JSON. An <eos> that stands in a title stays text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(saved),
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_or_train_tokenizer(config: Any, titles: Sequence[Title], folder: Path | None) -> str:
    """The run's own tokenizer, the cached one of the same titles and settings, or a new one.

    A run keeps what it began with: another version of the library may learn other pieces.
    """
    own = None if folder is None else folder / "train/tokenizer.json"
    if own is not None and own.exists():
        return own.read_text(encoding="utf-8")
    key = ["ordered", config.tokenizer, config.vocab_size, config.prefix_space, fingerprint(titles)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    cached = core.cache_folder() / "tokenizers" / f"{digest}.json"
    if not cached.exists():
        texts = [title.text for title in titles]
        made = train_tokenizer(config.tokenizer, texts, config.vocab_size, config.prefix_space)
        core.write_text(cached, made)
    saved = cached.read_text(encoding="utf-8")
    if own is not None:
        core.write_text(own, saved)
    return saved


def decode_title(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a title's tokens without <eos>; the space that prefix_space adds is dropped."""
    text = tokenizer.decode(ids)
    added = getattr(tokenizer.backend_tokenizer.pre_tokenizer, "add_prefix_space", False)
    return text.removeprefix(" ") if added else text


def is_exact(tokenizer: Any, titles: Sequence[Title], rows: core.Ragged) -> bool:
    """Whether decoding gives each title back, letter by letter."""
    return all(
        decode_title(tokenizer, ids.tolist()) == title.text
        for title, ids in zip(titles, rows, strict=True)
    )


# -------------------------------------------------------------------------------- rows


class TitleData:
    """Titles one by one: [<eos>, tokens] predicts [tokens, <eos>]; never cut, never padded.

    A micro-batch is one packed row, in which the model parts titles at each <eos>.
    """

    def __init__(self, rows: core.Ragged, eos: int):
        self.rows, self.eos = rows, eos
        self.lengths = np.asarray(rows.lengths) + 1
        self.tokens = self.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels (1, tokens): labels come after inputs; title_lengths (rows,)."""
        eos = np.array([self.eos], np.int32)
        ids = np.concatenate([part for row in rows for part in (eos, self.rows[row])] + [eos])
        ids = torch.from_numpy(ids.astype(np.int64))[None]
        lengths = torch.from_numpy(self.lengths[rows])
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "title_lengths": lengths}


class OfficialWindows:
    """The rows of the exercise's evaluation: 64 × 128 tokens of each whole window of the text.

    tokens: of all titles, each followed by <eos>. Windows do not overlap; the first token of each
    is context only.
    """

    def __init__(self, tokens: np.ndarray):
        self.stream = tokens
        windows = len(tokens) // OFFICIAL_SPAN
        firsts = np.arange(windows)[:, None] * OFFICIAL_SPAN
        self.starts = (firsts + np.arange(OFFICIAL_BATCH) * OFFICIAL_BLOCK).reshape(-1)
        self.lengths = np.full(len(self.starts), OFFICIAL_BLOCK)
        self.tokens = self.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels (rows, 128)."""
        places = self.starts[rows][:, None] + np.arange(OFFICIAL_BLOCK + 1)
        ids = torch.from_numpy(self.stream[places].astype(np.int64))
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    def losses_of_tokens(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """values (rows, 128) → (tokens,) nats, 0 where not scored; (tokens,) whether scored."""
        losses, scored = np.zeros(len(self.stream)), np.zeros(len(self.stream))
        if len(self.starts):
            places = self.starts[:, None] + np.arange(1, OFFICIAL_BLOCK + 1)
            losses[places], scored[places] = values, 1.0
        return losses, scored


def build_stream(rows: core.Ragged, eos: int) -> Stream:
    """<eos>, then each title's tokens and <eos>. offsets: of each title behind the first <eos>."""
    end = np.array([eos], np.int32)
    parts = [end] + [part for row in rows for part in (row, end)]
    return Stream(np.concatenate(parts), np.concatenate([[0], np.cumsum(rows.lengths + 1)]), [])


def validation_windows(stream: Stream, length: int, eos: int) -> WindowData:
    """Windows that overlap by half: a token is scored once, with length / 2 tokens before it."""
    return WindowData(stream, length, max(1, length // 2), eos)


def stretches(tokens: np.ndarray, eos: int, data: WindowData, within_titles: bool) -> np.ndarray:
    """Lengths of what attention sees as one in windows: whole windows, or the titles in them."""
    if not within_titles:
        return data.lengths
    begins = np.union1d(data.starts, np.flatnonzero(tokens[:-1] == eos))
    return np.diff(np.append(begins, len(tokens) - 1))


# ------------------------------------------------------------------------------- figures

COLUMNS = ("loss", "official_loss", "official_tokens", "tokens", "characters", "bytes")


def title_sizes(titles: Sequence[Title]) -> np.ndarray:
    """(titles, 2): characters and bytes of each with its <eos>."""
    sizes = [(len(t.text) + len(EOS), len(t.text.encode()) + len(EOS)) for t in titles]
    return np.array(sizes, np.float64)


def headline_metrics(
    sums: np.ndarray, groups: Sequence[str], exact: bool, intervals: bool = True
) -> Metrics:
    """The figures of `sums` (titles, COLUMNS); whole groups of titles are resampled.

    nats_per_char · bits_per_byte · nats_per_token · official_nats_per_char, which is absent where
    the text has no whole window · share_scored, of the tokens, by the official one ·
    tokenizer_exact.
    """
    total = sums.sum(axis=0)
    found: Metrics = {"n": len(sums), "num_targets": int(total[3]), "num_chars": int(total[4])}

    def figures(s: np.ndarray) -> np.ndarray:
        loss, official, _, tokens, characters, size = (s[..., k] for k in range(6))
        values = [official / characters, loss / characters, loss / size / math.log(2)]
        return np.stack([*values, loss / tokens], axis=-1)

    names = ["official_nats_per_char", "nats_per_char", "bits_per_byte", "nats_per_token"]
    found |= {name: float(v) for name, v in zip(names, figures(total), strict=True)}
    if intervals and len(set(groups)) > 1:
        low, high = cluster_bootstrap(sums, groups, figures)
        found |= {f"{n}_ci95": [float(low[k]), float(high[k])] for k, n in enumerate(names)}
    found |= {"share_scored": float(total[2] / total[3]), "tokenizer_exact": exact}
    if not total[2]:
        found = {k: v for k, v in found.items() if not k.startswith("official_")}
    return found


# ---------------------------------------------------------------------------------- task


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Nats of each label (rows, seq), 0 where nothing is predicted."""
    labels = batch["labels"]
    losses = model(batch["input_ids"], shift_labels=labels).losses
    values = torch.zeros(labels.shape, dtype=losses.dtype, device=labels.device)
    return values.masked_scatter(labels != IGNORE_INDEX, losses)


def title_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Nats of each title (rows,) of a batch of TitleData."""
    lengths = batch["title_lengths"]
    losses = model(batch["input_ids"], shift_labels=batch["labels"]).losses
    title = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return torch.zeros(len(lengths), device=losses.device).index_add_(0, title, losses)


class Headlines:
    """The experiment around the script's loop."""

    def __init__(self, config: Any, world: core.World, run: runs.Run):
        self.config, self.world, self.run = config, world, run
        self.average: WeightAverage | None = None
        self.passes, self.losses_of = 1, gpt.cross_entropies
        if config.r_drop and config.dropout:  # two passes without dropout would be one twice
            self.passes, self.losses_of = 2, functools.partial(r_drop, alpha=config.r_drop)
        self.differentiate = gpt.losses_and_gradient
        pretrained.quiet_transformers()
        device, machine = world.device.type, world.machine
        self.precision = core.choose_precision(config.precision, device, machine, "small-gpt")
        attention = core.choose_attention(
            config.attention, device, self.precision, machine, "small-gpt"
        )
        core.say_device(world, self.precision, attention)
        self.load_data()

    # -- data

    def load_data(self) -> None:
        config, world = self.config, self.world
        titles = load_titles(config.data, config.limit, config.data_seed)
        train, self.titles = split_titles(titles, config.val_frac)
        self.run.record(
            data_fingerprint=fingerprint(titles), split_fingerprint=fingerprint(self.titles)
        )
        train = train[: max(1, round(len(train) * config.train_frac))]
        folder = None if config.dry_run else self.run.folder
        saved = load_or_train_tokenizer(config, train, folder) if world.rank == 0 else None
        self.tokenizer = build_tokenizer(world.from_rank_0(saved))
        self.eos = self.tokenizer.eos_token_id
        rows, self.val_rows = (self.encode(part, "tokenising") for part in (train, self.titles))
        self.exact = is_exact(self.tokenizer, self.titles, self.val_rows)
        self.groups = [stable_hash("title", normalised_text([t.text])) for t in self.titles]
        self.sizes = title_sizes(self.titles)
        self.train_stream, self.val_stream = (
            build_stream(r, self.eos) for r in (rows, self.val_rows)
        )
        if config.sequences == "titles":
            self.train: Any = TitleData(rows, self.eos)
        else:
            length = config.max_length
            self.train = WindowData(self.train_stream, length, length, self.eos, once=False)
        self.official = OfficialWindows(self.val_stream.tokens[1:])
        known = {t.text for t in train}
        again = sum(t.text in known for t in self.titles)
        a_token = self.sizes[:, 0].sum() / len(self.official.stream)
        world.say(
            f"data: {len(train):,} titles of {config.data}, validation {len(self.titles):,} "
            f"({again} of them are in training, too) · {len(self.tokenizer):,} tokens of "
            f"{config.tokenizer}, which gives the validation titles back "
            f"{'exactly' if self.exact else 'WITH CHANGES: nothing can be claimed'} · "
            f"{a_token:.2f} characters a token"
        )

    def encode(self, titles: Sequence[Title], what: str) -> core.Ragged:
        texts = (title.text for title in titles)
        return core.Ragged.from_rows(
            core.encode_texts(self.tokenizer, texts, len(titles), what, quiet=True)
        )

    # -- model

    def build_state(self) -> core.State:
        """Model, optimizer, loader and the average of the weights, on the device."""
        config, world = self.config, self.world
        model = self.build_model().to(world.device)
        if world.device.type == "cpu":
            use_word_dropout(model)
        if config.compile:
            if config.within_titles:  # no two micro-batches of titles have one shape
                for layer in model.model.layers:
                    core.compile_model(layer, dynamic=True)
            else:
                core.compile_model(model.model)
            self.differentiate = torch.compile(gpt.losses_and_gradient, dynamic=True)
        loader = core.TrainLoader(self.train, config, world)
        extras = {}
        if config.average_frac:
            self.average = WeightAverage(model, max(1, config.average_frac * loader.total_steps))
            extras["average"] = self.average
        self.state = core.State(
            config=config,
            world=world,
            model=model,
            optimizer=build_optimizer(model, config),
            loader=loader,
            clock=core.StepClock(loader.total_steps),
            schedule=lambda fraction: learning_rate_factor(config, fraction),
            export=self.export,
            restore=self.restore,
            precision=self.precision,
            extras=extras,
            charge=self.after_update,
        )
        self.run.record(
            parameters=gpt.parameter_count(model.config), training_flops=self.training_flops()
        )
        return self.state

    def build_model(self) -> gpt.SmallGPTForCausalLM:
        config = self.config
        names = ("n_layer", "n_head", "n_embd", "positions", "rope_theta", "norm", "mlp", "bias")
        names += ("qk_norm", "attention_gate", "layer_scale", "within_titles")
        names += ("scale_residual_init", "dropout")
        longest = int(self.train.lengths.max())
        if config.within_titles:  # a validation title is read as a whole, with its <eos>
            longest = max(longest, int(self.val_rows.lengths.max()) + 1)
        return gpt.build_gpt(
            core.mix_seed(config.seed, 4),
            vocab_size=len(self.tokenizer),
            n_positions=max(config.max_length, longest),
            eos_token_id=self.eos,
            bos_token_id=self.eos,
            **{name: getattr(config, name) for name in names},
        )

    def after_update(self, work: core.Work) -> None:
        if self.average is not None:
            self.average.update()

    # -- cost

    def training_flops(self) -> int:
        """Of all products of the run: forward and backward, R-Drop's second pass, Muon's."""
        config, model = self.config, self.state.model
        lengths = self.train.lengths
        if config.sequences == "windows":
            lengths = stretches(
                self.train_stream.tokens, self.eos, self.train, config.within_titles
            )
        tokens = int(self.train.lengths.sum())
        forward = gpt.forward_flops(
            model.config, tokens, gpt.causal_pairs(map(int, lengths)), tokens
        )
        loader = self.state.loader
        each_step = 0
        for group in self.state.optimizer.param_groups:
            if group.get("method") == "muon":
                each_step += muon_flops(tuple(p.shape) for p in group["params"])
        epochs = loader.total_steps / loader.steps_per_epoch
        return round(3 * self.passes * forward * epochs) + each_step * loader.total_steps

    def say_cost(self) -> None:
        flops = self.training_flops()
        self.world.say(
            f"{flops:.3g} FLOPs of matrix products in {self.config.epochs:g} epochs; estimate for "
            f"one A100 at {A100_SHARE:.0%} of its 312 bf16 TFLOP/s, not measured: "
            f"{flops / A100_FLOPS / A100_SHARE:.0f} s"
        )

    # -- training

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats) summed over the labels, or R-Drop's loss; their number."""
        # with R-Drop once more, with another mask of dropout
        hidden = model.model(batch["input_ids"].repeat(self.passes, 1)).last_hidden_state
        copies = [gpt.at_targets(part, batch["labels"]) for part in hidden.chunk(self.passes)]
        states, targets = torch.stack([states for states, _ in copies]), copies[0][1]
        loss, _ = gpt.head_losses(
            states.squeeze(0),  # one copy is none
            model.lm_head.weight,
            targets,
            self.losses_of,
            differentiate=self.differentiate,
        )
        return loss, len(targets)

    # -- figures

    def averaged(self) -> contextlib.AbstractContextManager:
        """The model computes with the average of its weights inside, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def sums(self) -> np.ndarray:
        """(titles, COLUMNS) of the validation titles, on all ranks."""
        offsets = self.val_stream.offsets[:-1]
        rows_each = max(1, 8192 // self.config.max_length)
        if self.config.within_titles:
            data = TitleData(self.val_rows, self.eos)
            losses = core.evaluate_rows(self.state, data, title_losses, 4 * rows_each)
            losses = losses.astype(np.float64)
        else:
            data = validation_windows(self.val_stream, self.config.max_length, self.eos)

            def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
                found = token_losses(model, batch)
                return nn.functional.pad(found, (0, data.length - found.shape[1]))

            values = core.evaluate_rows(self.state, data, outputs, rows_each)
            losses = np.add.reduceat(data.losses_of_tokens(values)[1:], offsets)
        values = np.zeros((0, OFFICIAL_BLOCK))
        if len(self.official.starts):
            values = core.evaluate_rows(self.state, self.official, token_losses, OFFICIAL_BATCH)
        official, scored = (
            np.add.reduceat(each, offsets) for each in self.official.losses_of_tokens(values)
        )
        tokens = np.asarray(self.val_rows.lengths, np.float64) + 1
        return np.column_stack([losses, official, scored, tokens, self.sizes])

    def evaluate(self) -> dict[str, float]:
        """All figures, without intervals; val_loss is nats a token, as the training loss is (to
        which R-Drop adds how far its two passes are apart)."""
        with self.averaged():
            sums = self.sums()
        found = headline_metrics(sums, self.groups, self.exact, intervals=False)
        figures = {f"val_{k}": float(v) for k, v in found.items() if not isinstance(v, int)}
        return {
            **{"val_loss": figures.pop("val_nats_per_token"), **figures},
            "val_tokenizer_exact": float(self.exact),
        }

    def test(self) -> tuple[Metrics, list[dict]]:
        """The last figures, on the validation titles, of weights that were saved.

        What was saved is the average already. With --test_with final nothing was chosen by them.
        """
        sums = self.sums()
        if not np.isfinite(sums).all():
            raise ValueError("a loss is NaN or infinite: a lower --lr, or --precision fp32")
        found = headline_metrics(sums, self.groups, self.exact)
        counts = np.bincount(self.val_stream.tokens[1:])
        entropy = float(scipy.stats.entropy(counts))  # of a model that knows frequencies alone
        if entropy - found["nats_per_token"] < 0.1:
            self.run.verdict(
                f"collapsed: {found['nats_per_token']:.4f} nats a token are no better than the "
                f"{entropy:.4f} of token frequencies: a higher --lr or more --epochs"
            )
        found |= {
            **{"unigram_entropy": entropy, "evaluated_on": "validation"},
            **{"training_flops": self.training_flops()},
            **{"parameters": gpt.parameter_count(self.state.model.config)},
        }
        rows = [
            {
                **{"id": title.id, "group": group, "loss_sum": float(row[0])},
                **{"num_targets": int(row[3]), "num_chars": int(row[4])},
                "text": {"title": title.text},
            }
            for title, group, row in zip(self.titles, self.groups, sums, strict=True)
        ]
        return found, rows

    # -- weights

    def export(self, folder: Path) -> None:
        """A folder for AutoModelForCausalLM (with models.gpt imported), of the averaged weights."""
        with self.averaged():
            self.state.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        pretrained.restore_weights(self.state.model, folder)


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Muon for the layers' matrices and AdamW for the rest, fused AdamW, or SGD."""
    betas = tuple(config.betas)
    if config.optimizer == "muon":
        groups = muon_groups(
            model, model.model.layers, config.matrix_lr, config.lr, config.weight_decay
        )
        return Muon(groups, betas=betas)
    groups = core.parameter_groups({"gpt": model}, {"gpt": config.lr}, config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=1e-8, fused=True)


def learning_rate_factor(config: Any, fraction: float) -> float:
    """Factor on the peak learning rates when this share of the steps is over."""
    low = config.min_lr / config.lr
    if config.schedule == "wsd":
        return warmup_stable_decay(fraction, config.warmup_frac, config.decay_frac, low)
    return warmup_then_decay(fraction, config.schedule, config.warmup_frac, low)
