"""Which of two answers would a person prefer? Rows, tokens, model, metrics and predictions.

What the preference scripts share. A script chooses the encoder and whether the prompt is
read, and shows its own loop.
"""

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import core
import runs
from evaluation import metrics
from methods import feature_cache
from methods.dropout import use_word_dropout
from methods.schedules import schedule_for
from models import pretrained
from settings import Settings
from tasks import arena, reviews

HUB_DATA = "lmarena-ai/arena-human-preference-55k"
CLASSES = metrics.PREFERENCE_CLASSES
LEAST_TOKENS = 400  # of a pass through the encoder on a CPU


@dataclass
class Config(Settings):
    """Settings of the preference scripts."""

    data: str = HUB_DATA
    """arena CSV, JSONL or parquet file, hub id, or one of: reviews, reviews_control"""
    split: Literal["prompt", "row"] = "prompt"
    """what lies in one part only: all rows of a prompt, or (leaks; for old arms) each row"""
    val_frac: float = 0.1
    """share of the prompts (or rows) for validation"""
    test_frac: float = 0.1
    """share of the prompts (or rows) for the test"""
    prompt_frac: float = 0.4
    """share of the tokens that the prompt may keep when prompt and answer do not both fit"""
    head: Literal["concat", "symmetric"] = "concat"
    """joins the two first tokens; symmetric: swapping A and B swaps the answer exactly"""
    swap: Literal["none", "augment", "tta", "both"] = "none"
    """augment: swap A and B at random in training; tta: average both orders in the test"""
    labels: Literal["true", "shuffled"] = "true"
    """shuffled: the control that must stay at chance"""
    lr: float = 1e-5
    """peak learning rate of the encoder"""
    head_lr: float | None = None
    """peak learning rate of the head; null: --lr"""
    dropout: float | None = None
    """dropout everywhere; null: the model's own, .1 in the head"""
    label_smoothing: float = 0.0
    """of the training loss only"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be used, listing them in bad_rows.csv"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_frac", "test_frac", "prompt_frac", "label_smoothing"):
            self._require(name, lambda value: 0 <= value <= 1, "a share from 0 to 1")
        self._require("dropout", lambda value: 0 <= value < 1, "a share from 0, below 1")
        self._require("head_lr", lambda value: value > 0, "more than 0")


# What a script without any settings does where there is no hub: the configuration of the demo.
EMBEDDED = {
    **{"model": "minilm", "data": "reviews", "max_length": 96, "batch": 32, "epochs": 1.0},
    **{"lr": 1e-4, "head_lr": 1e-3, "dropout": 0.0},
}


def or_embedded(config: Config, given: bool, world: core.World) -> Config:
    """The embedded default when nothing was set and the hub cannot be reached; it says so."""
    if not pretrained.use_embedded(given, world, "MiniLM on --data reviews"):
        return config
    return dataclasses.replace(config, **EMBEDDED)


# -------------------------------------------------------------------------------- rows


def load_rows(config: Config, world: core.World, run: runs.Run) -> list[arena.PairRow]:
    """Read, repair, split and subset; the leak check runs at every load."""
    if config.data in ("reviews", "reviews_control"):
        rows, repairs = reviews.load_review_pairs(
            control=config.data == "reviews_control",
            val_frac=config.val_frac,
            test_frac=config.test_frac,
        )
        world.say(reviews.NOTICE)
        leaks = 0
    else:
        writes = world.rank == 0 and not config.dry_run
        bad_rows = run.folder / "bad_rows.csv" if writes else None
        rows, repairs = arena.load_arena(
            config.data, skip_bad_rows=config.skip_bad_rows, bad_rows_file=bad_rows
        )
        arena.assign_splits(rows, config.split, config.val_frac, config.test_frac)
        leaks = arena.check_leaks(rows, config.split)
    run.record(data_fingerprint=arena.data_fingerprint(rows))
    rows = arena.subset(rows, config.limit)
    # before --train_frac, which takes training rows away and moves none: runs stay comparable
    run.record(split_fingerprint=arena.split_fingerprint(rows), repairs=repairs)
    rows = arena.subset(rows, train_frac=config.train_frac)
    if config.labels == "shuffled":
        rows = arena.shuffle_labels(rows, config.seed)
        world.say("labels are shuffled inside each part: nothing can be learned from them")
    count = Counter(row.split for row in rows)
    shares = Counter(row.label for row in rows)
    for name in ("train", "val", "test"):
        if not count[name]:
            raise ValueError(f"{config.data}: no {name} rows among {len(rows)}: use more rows")
    world.say(
        f"data: {len(rows):,} rows of {config.data}: train {count['train']:,}, validation "
        f"{count['val']:,}, test {count['test']:,}; "
        + ", ".join(f"{n} {shares[i] / len(rows):.1%}" for i, n in enumerate(CLASSES))
    )
    if repairs:
        world.say("repaired: " + ", ".join(f"{n} {name}" for name, n in sorted(repairs.items())))
    if leaks:
        world.say(f"warning: --split row: {leaks} prompts occur in more than one part (a leak)")
    return rows


# ------------------------------------------------------------------------------ tokens


def fill(lengths: Sequence[int], budget: int) -> list[int]:
    """Tokens for each part: short ones whole, the rest share what is left equally."""
    parts = [0] * len(lengths)
    left = budget
    for place, number in enumerate(sorted(range(len(lengths)), key=lambda i: lengths[i])):
        parts[number] = min(lengths[number], left // (len(lengths) - place))
        left -= parts[number]
    return parts


def share_budget(prompt: int, response: int, budget: int, prompt_frac: float) -> tuple[int, int]:
    """Tokens of (prompt, response) that fit into `budget`.

    What one does not need the other gets; if both are long the prompt keeps `prompt_frac`.
    """
    if prompt + response <= budget:
        return prompt, response
    kept = min(prompt, max(int(budget * prompt_frac), budget - response))
    return kept, min(response, budget - kept)


def keep_ends(ids: Sequence[int], budget: int) -> Sequence[int]:
    """Head and tail of a text that is too long, half of the budget each."""
    if len(ids) <= budget:
        return ids
    tail = budget // 2
    return [*ids[: budget - tail], *ids[len(ids) - tail :]]


def build_sequence(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    max_length: int,
    prompt_frac: float,
    cls: int,
    sep: int,
) -> list[int]:
    """[cls] prompt [sep] response [sep] …, turn after turn, at most max_length tokens.

    prompts may be empty (responses alone). Of a very long conversation the last turns are
    kept, so that each has at least about 16 tokens.
    """
    turns = max(1, max_length // 16)
    prompts, responses = prompts[-turns:], responses[-turns:]
    budget = max_length - 1 - len(prompts) - len(responses)
    prompt, response = share_budget(
        sum(map(len, prompts)), sum(map(len, responses)), budget, prompt_frac
    )
    kept_prompts = fill([len(p) for p in prompts], prompt)
    kept_responses = fill([len(r) for r in responses], response)
    ids = [cls]
    for turn, text in enumerate(responses):
        if prompts:
            ids += [*keep_ends(prompts[turn], kept_prompts[turn]), sep]
        ids += [*keep_ends(text, kept_responses[turn]), sep]
    return ids


def texts_of(rows: Sequence[arena.PairRow], with_prompt: bool) -> Iterator[str]:
    """The texts of the rows in the order in which they are tokenised."""
    for row in rows:
        yield from (row.prompt if with_prompt else [])
        yield from row.response_a
        yield from row.response_b


def build_sequences(
    rows: Sequence[arena.PairRow],
    tokenizer: Any,
    max_length: int,
    with_prompt: bool,
    prompt_frac: float,
    quiet: bool = False,
) -> Iterator[list[int]]:
    """Two sequences a row, one at a time: number 2i is A's side, 2i + 1 is B's."""
    count = sum(1 for _ in texts_of(rows, with_prompt))
    ids = core.encode_texts(tokenizer, texts_of(rows, with_prompt), count, "tokenising", quiet)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for row in rows:
        prompts = [next(ids) for _ in row.prompt] if with_prompt else []
        for side in (row.response_a, row.response_b):
            responses = [next(ids) for _ in side]
            yield build_sequence(prompts, responses, max_length, prompt_frac, cls, sep)


def cached_sequences(
    rows: Sequence[arena.PairRow],
    tokenizer: Any,
    max_length: int,
    with_prompt: bool,
    prompt_frac: float,
    world: core.World,
) -> core.Ragged:
    """build_sequences through the cache on disk, keyed by content, tokenizer and length."""
    if max_length < 8:
        raise ValueError(f"--max_length {max_length}: 8 tokens at least")
    content = hashlib.sha256()
    for row in rows:
        content.update(len(row.prompt).to_bytes(8, "little"))
        for text in texts_of([row], with_prompt):
            encoded = text.encode()
            content.update(len(encoded).to_bytes(8, "little") + encoded)
    key = {
        **{"kind": "preference pairs, version 1", "content": content.hexdigest()},
        **{"tokenizer": core.tokenizer_fingerprint(tokenizer), "max_length": max_length},
        **{"with_prompt": with_prompt, "prompt_frac": prompt_frac if with_prompt else None},
    }

    def build() -> Iterator[list[int]]:
        quiet = world.rank != 0
        return build_sequences(rows, tokenizer, max_length, with_prompt, prompt_frac, quiet)

    return core.cached_tokens(key, build, world)


class PairData:
    """Rows `index` of the token cache as a data set for core's loaders."""

    def __init__(
        self,
        ids: core.Ragged,
        index: np.ndarray,
        labels: np.ndarray,
        pad: int,
        max_length: int,
        ladder: int | None = None,
        swap_seed: int | None = None,
    ):
        self.ids, self.index, self.labels, self.pad = ids, index, labels, pad
        self.max_length, self.ladder, self.swap_seed = max_length, ladder, swap_seed
        # what a frozen part gives: (sequences, hidden) or (tokens of ids, hidden), bf16 as int16
        self.embeddings: np.ndarray | None = None
        self.states: np.ndarray | None = None
        sides = ids.lengths.reshape(-1, 2)[index]
        self.lengths, self.tokens = sides.max(axis=1), sides.sum(axis=1)

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (2·rows, seq), the A sides first; labels (rows,).

        Where they are kept, also states (2·rows, seq, hidden), or only embeddings (2·rows, hidden).
        """
        numbers = self.index[rows]
        labels = self.labels[numbers]
        first = np.zeros(len(rows), np.int64)  # which side stands first
        if self.swap_seed is not None and epoch is not None:
            first[:] = [core.mix_seed(self.swap_seed, int(n), epoch, 3) & 1 for n in numbers]
            exchanged = np.array(metrics.SWAP)[labels]
            labels = np.where(first == 1, exchanged, labels)
        sides = np.concatenate([2 * numbers + first, 2 * numbers + 1 - first])
        batch = {"labels": torch.from_numpy(labels)}
        if self.embeddings is not None:
            return batch | {"embeddings": torch.from_numpy(self.embeddings[sides])}
        width = core.ladder_length(self.ids.lengths[sides].max(), self.max_length, self.ladder)
        batch |= pad_sequences(self.ids, sides, width, self.pad)
        if self.states is not None:
            batch["states"] = pad_states(self.states, self.ids.offsets, sides, width)
        return batch


def pad_sequences(ids: core.Ragged, numbers: np.ndarray, width: int, pad: int) -> dict[str, Tensor]:
    """input_ids, attention_mask (sequences, width)."""
    input_ids = np.full((len(numbers), width), pad, np.int64)
    mask = np.zeros((len(numbers), width), np.int64)
    for row, number in enumerate(numbers):
        side = ids[number]
        input_ids[row, : len(side)] = side
        mask[row, : len(side)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}


def pad_states(states: np.ndarray, offsets: np.ndarray, numbers: np.ndarray, width: int) -> Tensor:
    """The states of each sequence's tokens (sequences, width, hidden), zero at padding."""
    padded = np.zeros((len(numbers), width, states.shape[1]), states.dtype)
    for row, number in enumerate(numbers):
        start, end = offsets[number], offsets[number + 1]
        padded[row, : end - start] = states[start:end]
    tensor = torch.from_numpy(padded)
    return tensor.view(torch.bfloat16) if padded.dtype == np.int16 else tensor


class SequenceData:
    """The sequences of the token cache one by one, for what does not depend on the pair."""

    def __init__(self, ids: core.Ragged, pad: int, max_length: int, ladder: int | None):
        self.ids, self.pad, self.max_length, self.ladder = ids, pad, max_length, ladder
        self.lengths = self.tokens = ids.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (rows, seq)."""
        width = core.ladder_length(self.lengths[rows].max(), self.max_length, self.ladder)
        return pad_sequences(self.ids, rows, width, self.pad)


# ------------------------------------------------------------------------------- model


def build_head(config: Config, hidden: int) -> nn.Module:
    dropout = 0.1 if config.dropout is None else config.dropout
    kind = {"concat": core.ConcatHead, "symmetric": core.SymmetricHead}[config.head]
    return kind(hidden, dropout=dropout)


def set_dropout(model: nn.Module, p: float) -> None:
    """Every dropout of a model from transformers, also those that are attributes of attention."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name in ("attention_dropout", "dropout_prob", "attention_dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p)


def length_groups(lengths: Tensor) -> list[Tensor]:
    """Numbers of the sequences that a CPU takes through the encoder together, by length.

    The fewer differ in length, the less is padding; groups below LEAST_TOKENS would make the
    products too small. lengths (sequences,).
    """
    groups = min(len(lengths), int(lengths.sum()) // LEAST_TOKENS, 4)
    return list(lengths.argsort(stable=True).tensor_split(max(1, groups)))


def embed_pairs(model: core.PairClassifier, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """a, b (rows, hidden): as they are kept, from kept states on, or from all layers."""
    if "embeddings" in batch:
        return batch["embeddings"].chunk(2)
    names = ("input_ids", "attention_mask", "states")
    inputs = {name: batch[name] for name in names if name in batch}
    mask = inputs["attention_mask"]
    if mask.device.type != "cpu" or core.is_compiled(model.encoder):
        return first_tokens(model, **inputs).chunk(2)
    lengths = mask.sum(dim=1)
    groups = length_groups(lengths)
    found = [
        first_tokens(model, **{name: x[rows, : lengths[rows].max()] for name, x in inputs.items()})
        for rows in groups
    ]
    places = torch.cat(groups).argsort()
    return torch.cat(found)[places].chunk(2)


def first_tokens(
    model: core.PairClassifier,
    input_ids: Tensor,
    attention_mask: Tensor,
    states: Tensor | None = None,
) -> Tensor:
    """input_ids, attention_mask (sequences, seq), states (sequences, seq, hidden) where a frozen
    part's are kept → (sequences, hidden)."""
    if states is None:
        return model.first_tokens(input_ids, attention_mask)
    with pretrained.from_border(model.encoder, states):
        return model.first_tokens(input_ids, attention_mask)


def pair_outputs(model: core.PairClassifier, batch: dict[str, Tensor]) -> Tensor:
    """Logits of (A, B) and of (B, A), (rows, 6); the second order costs the head alone again."""
    a, b = embed_pairs(model, batch)
    return torch.cat([model.head(a, b), model.head(b, a)], dim=-1)


def architecture_of(config: Any) -> dict[str, Any]:
    """What of transformers' configuration, and of its version, the outputs depend on."""
    said = {"_name_or_path", "name_or_path", "architectures", "dtype", "torch_dtype"}
    return {name: value for name, value in config.to_dict().items() if name not in said}


def softmax(logits: np.ndarray) -> np.ndarray:
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def save_model(model: core.PairClassifier, tokenizer: Any, facts: dict, folder: Path) -> None:
    """An encoder folder that AutoModel.from_pretrained opens, the head and our facts beside it."""
    from safetensors.torch import save_file

    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.head.state_dict().items()}
    save_file(weights, folder / "head.safetensors")
    core.write_text(folder / "preference.json", json.dumps(facts, indent=1))


def restore_model(model: core.PairClassifier, folder: Path) -> None:
    """Read weights that save_model wrote into a model of the same shape."""
    from safetensors.torch import load_file

    model.encoder.load_state_dict(pretrained.read_weights(folder), strict=True)
    model.head.load_state_dict(load_file(folder / "head.safetensors"))


# -------------------------------------------------------------------------------- task


class Preference:
    """The experiment around a script's loop: its data, its loss, its evaluation."""

    def __init__(self, config: Config, world: core.World, run: runs.Run, with_prompt: bool):
        self.config, self.world, self.run, self.with_prompt = config, world, run, with_prompt
        model_config = pretrained.load_config(config.model)
        self.precision, self.attention = pretrained.choose_kernels(config, world, model_config)
        self.tokenizer = pretrained.load_tokenizer(config.model)
        self.rows = load_rows(config, world, run)
        self.ids = cached_sequences(
            self.rows, self.tokenizer, config.max_length, with_prompt, config.prompt_frac, world
        )
        labels = np.array([row.label for row in self.rows])
        split = np.array([row.split for row in self.rows])

        def part(name: str, swap_seed: int | None = None) -> PairData:
            return PairData(
                self.ids,
                np.flatnonzero(split == name),
                labels,
                self.tokenizer.pad_token_id,
                config.max_length,
                8 if config.compile else None,
                swap_seed,
            )

        augment = config.swap in ("augment", "both")
        self.train = part("train", config.seed if augment else None)
        self.val, self.test_data = part("val"), part("test")
        self.latest: tuple[int, np.ndarray | None] = (-1, None)  # of the last evaluation

    def load_encoder(self, init: str = "pretrained") -> nn.Module:
        config = self.config
        encoder = pretrained.load_encoder(config.model, init, self.attention, config.seed)
        encoder.resize_token_embeddings(
            max(len(self.tokenizer), encoder.get_input_embeddings().num_embeddings)
        )
        if config.dropout is not None:
            set_dropout(encoder, config.dropout)
        pretrained.read_first_token_alone(encoder)
        return encoder

    def build_state(self, encoder: nn.Module) -> core.State:
        """Model, optimizer, loader and schedule, on the device."""
        config, world = self.config, self.world
        torch.manual_seed(core.mix_seed(config.seed, 4))
        head = build_head(config, encoder.config.hidden_size)
        model = core.PairClassifier(encoder, head).to(world.device)
        if world.device.type == "cpu":
            use_word_dropout(model.encoder)
            use_word_dropout(model.head)
        if config.compile:
            core.compile_model(model.encoder)
        groups = core.parameter_groups(
            {"encoder": encoder, "head": head},
            {"encoder": config.lr, "head": config.lr if config.head_lr is None else config.head_lr},
            config.weight_decay,
        )
        loader = core.TrainLoader(self.train, config, world)
        facts = {
            **{"head": config.head, "with_prompt": self.with_prompt, "swap": config.swap},
            **{"max_length": config.max_length, "prompt_frac": config.prompt_frac},
            "precision": self.precision,
        }
        self.state = core.State(
            config=config,
            world=world,
            model=model,
            optimizer=core.build_optimizer(groups, config, world),
            loader=loader,
            clock=core.StepClock(loader.total_steps),
            schedule=schedule_for(config, loader.total_steps),
            export=lambda folder: save_model(model, self.tokenizer, facts, folder),
            restore=lambda folder: restore_model(model, folder),
            precision=self.precision,
        )
        return self.state

    def keep_frozen(self) -> None:
        """Compute what the frozen part of the encoder gives once, for all parts and later runs.

        Of a wholly frozen encoder that is the embedding of each sequence, in fp32; of frozen lower
        layers the states that the first trained layer reads, in the run's precision. Says in a
        line what it did, or why the frozen part runs in each step. Before the first step.
        """
        encoder, ids, say = self.state.model.encoder, self.ids, self.world.say
        hidden = encoder.config.hidden_size
        if pretrained.is_frozen(encoder):
            shape, dtype = (len(ids), hidden), np.float32
        else:
            if why := self._why_no_states(encoder):
                return say(f"note: the frozen part runs in each step: {why}")
            shape = (len(ids.ids), hidden)
            dtype = {"bf16": np.int16, "fp16": np.float16, "fp32": np.float32}[self.precision]
        key = {
            **{"kind": "frozen encoder, version 2", "rows": shape[0], "precision": self.precision},
            **{"weights": feature_cache.fingerprint(encoder, frozen=True)},
            **{"config": architecture_of(encoder.config), "attention": self.attention},
            **{"tokens": ids.fingerprint(), "max_length": self.config.max_length},
            # what else changes the rounding
            **{"device": core.device_name(self.world.device), "compile": self.config.compile},
            "torch": torch.__version__,
        }
        values, found = feature_cache.kept_rows(key, shape, dtype, self._frozen_outputs, self.world)
        if values is None:
            return
        for data in (self.train, self.val, self.test_data):
            data.embeddings, data.states = (
                (values, None) if pretrained.is_frozen(encoder) else (None, values)
            )
        how = "from the cache" if found else "computed once"
        say(f"frozen part: what it gives for {len(ids):,} sequences, {how}")

    def _why_no_states(self, encoder: nn.Module) -> str:
        if self.config.compile:
            return "it is compiled together with the layers above it"
        layers = pretrained.find_layers(encoder)
        frozen = pretrained.count_frozen_layers(encoder)
        return pretrained.why_no_border(encoder.config, frozen, len(layers))

    @torch.no_grad()
    def _frozen_outputs(self) -> Iterator[tuple[int, np.ndarray]]:
        """This rank's (number of the sequence, embedding) or (place of its tokens, states)."""
        config, ids, world, encoder = self.config, self.ids, self.world, self.state.model.encoder
        whole = pretrained.is_frozen(encoder)
        ladder = 8 if config.compile else None
        data = SequenceData(ids, self.tokenizer.pad_token_id, config.max_length, ladder)
        world.say(f"frozen part: running once over {len(ids):,} sequences")
        encoder.eval()
        for rows, batch in core.evaluation_batches(data, max(1, 16384 // config.max_length), world):
            with self.state.autocast():
                batch = core.to_device(batch, world.device)
                if whole:
                    values = encoder(**batch).last_hidden_state[:, :1].float()
                else:
                    values = pretrained.border_states(encoder, **batch)
            if not whole and self.precision == "bf16":
                values = values.bfloat16().view(torch.int16)
            for row, value in zip(rows, values.cpu().numpy(), strict=True):
                yield (row, value) if whole else (ids.offsets[row], value[: ids.lengths[row]])

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy summed over the rows of a micro-batch, and their number."""
        logits = model.head(*embed_pairs(model, batch))
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(
            logits.float(), batch["labels"], reduction="sum", label_smoothing=smoothing
        )
        return loss, len(batch["labels"])

    def probabilities(self, data: PairData) -> tuple[np.ndarray, np.ndarray]:
        """p(A, B) and p(B, A), each (rows, 3); with --swap tta both are the average."""
        return predict_pairs(self.state, data, self.config.swap in ("tta", "both"))

    def evaluate(self) -> dict[str, float]:
        """Validation metrics; warns of a collapse from the end of the first epoch on."""
        p, swapped = self.probabilities(self.val)
        self.latest = (self.state.step, p)
        labels = self.val.labels[self.val.index]
        found = metrics.classification_metrics(
            p, labels, range(len(labels)), CLASSES, intervals=False
        )
        flips = p.argmax(axis=1) == swapped[:, metrics.SWAP].argmax(axis=1)
        if self.state.step >= self.state.loader.steps_per_epoch:
            if verdict := metrics.collapse_verdict(p, labels, class_names=CLASSES):
                self.world.say(f"warning: {verdict}")
        return {
            "val_loss": found["log_loss"],
            "val_accuracy": found["accuracy"],
            "val_flip_consistency": float(flips.mean()),
        }

    def test(self) -> tuple[dict, list[dict]]:
        """Test metrics and rows; temperature and the collapse verdict come from validation."""
        step, p_val = self.latest
        if step != self.state.best_step or self.config.test_with == "final":
            p_val, _ = self.probabilities(self.val)
        val_labels = self.val.labels[self.val.index]
        if verdict := metrics.collapse_verdict(p_val, val_labels, class_names=CLASSES):
            self.run.verdict(verdict)
        p, swapped = self.probabilities(self.test_data)
        rows = [self.rows[i] for i in self.test_data.index]
        labels, groups = np.array([row.label for row in rows]), [row.group for row in rows]
        result = metrics.preference_metrics(
            p,
            swapped,
            labels,
            groups,
            np.array([sum(map(len, row.response_a)) for row in rows]),
            np.array([sum(map(len, row.response_b)) for row in rows]),
        )
        tiny = np.finfo(np.float64).tiny
        temperature = metrics.fit_temperature(np.log(np.maximum(p_val, tiny)), val_labels)
        calibrated = metrics.apply_temperature(np.log(np.maximum(p, tiny)), temperature)
        after = metrics.classification_metrics(calibrated, labels, groups, CLASSES)
        result["temperature"] = temperature
        for name in ("log_loss", "log_loss_ci95", "expected_calibration_error"):
            base, _, suffix = name.partition("_ci95")
            if name in after:
                result[f"{base}_calibrated{'_ci95' if name != base else suffix}"] = after[name]
        predictions = [
            {
                "id": row.id,
                "group": row.group,
                "label": CLASSES[row.label],
                "prediction": CLASSES[int(p[i].argmax())],
                **{f"p_{name}": float(p[i, k]) for k, name in enumerate(CLASSES)},
                "text": {
                    "prompt": "\n\n".join(row.prompt),
                    "response A": "\n\n".join(row.response_a),
                    "response B": "\n\n".join(row.response_b),
                },
            }
            for i, row in enumerate(rows)
        ]
        return result, predictions


def predict_pairs(state: Any, data: PairData, average: bool) -> tuple[np.ndarray, np.ndarray]:
    """p(A, B) and p(B, A) (rows, 3) of every row, on all ranks."""
    values = core.evaluate_rows(state, data, pair_outputs, max(1, 8192 // data.max_length))
    p, swapped = softmax(values[:, :3]), softmax(values[:, 3:])
    if average:
        p = metrics.average_swapped(p, swapped)
        swapped = p[:, metrics.SWAP]
    return p, swapped


# ----------------------------------------------------------------------------- predict


@dataclass
class PredictConfig:
    """Settings of `predict`: a saved run answers new rows."""

    run: str = ""
    """run folder (or a folder of saved weights)"""
    data: str | None = None
    """CSV, JSONL or parquet of rows; winners are not needed"""
    output: str = "submission.csv"
    """where the probabilities for --data go"""
    prompt: str | None = None
    """one prompt, with --response_a and --response_b; without --data or these, a JSON object
    a line is read from standard input"""
    response_a: str | None = None
    """one answer A"""
    response_b: str | None = None
    """one answer B"""
    weights: Literal["best", "final"] = "best"
    """which weights of the run"""
    calibrated: bool = False
    """divide the logits by the temperature that the run fitted on validation"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be read, listing them beside --output"""


class Predictor:
    """A saved run, opened again."""

    def __init__(self, config: PredictConfig):
        if not config.run:
            raise ValueError("predict needs --run FOLDER")
        folder = Path(config.run)
        if (folder / "train/weights").is_dir():
            folder = folder / "train/weights" / config.weights
        if problem := core.damage(folder):
            raise ValueError(f"{folder} is no whole folder of saved weights ({problem})")
        self.facts = json.loads((folder / "preference.json").read_text())
        self.world = core.single_world(config.device)
        known = pretrained.load_config(str(folder))
        machine, kind = self.world.machine, known.model_type
        device = self.world.device.type
        asked = self.facts.get("precision", "auto")  # the run's own, for the run's own answers
        self.precision = core.choose_precision(asked, device, machine, kind)
        asked = "auto" if pretrained.knows_sdpa(known) else "eager"
        attention = core.choose_attention(asked, device, self.precision, machine, kind)
        self.tokenizer = pretrained.load_tokenizer(str(folder))
        encoder = pretrained.load_encoder(str(folder), attention=attention)
        pretrained.read_first_token_alone(encoder)
        head = build_head(Config(head=self.facts["head"]), encoder.config.hidden_size)
        self.model = core.PairClassifier(encoder, head)
        restore_model(self.model, folder)
        self.model.to(self.world.device).eval()
        self.temperature = 1.0
        if config.calibrated:
            saved = json.loads((Path(config.run) / "test/metrics/metrics.json").read_text())
            if saved["tested_with"] != config.weights:
                raise ValueError(
                    f"--calibrated: the temperature is that of the {saved['tested_with']} weights, "
                    f"not of the {config.weights} ones (--weights)"
                )
            self.temperature = saved["temperature"]

    def __call__(self, rows: Sequence[arena.PairRow]) -> np.ndarray:
        """Probabilities (rows, 3) of A, B, tie."""
        facts, tokenizer = self.facts, self.tokenizer
        shape = (facts["max_length"], facts["with_prompt"], facts["prompt_frac"])
        quiet = len(rows) == 1  # answers to JSON lines stand alone on standard output
        ids = core.Ragged.from_rows(build_sequences(rows, tokenizer, *shape, quiet))
        count = len(rows)
        data = PairData(
            ids, np.arange(count), np.zeros(count, int), tokenizer.pad_token_id, facts["max_length"]
        )
        p, _ = predict_pairs(self, data, facts["swap"] in ("tta", "both"))
        if self.temperature == 1.0:
            return p
        return metrics.apply_temperature(np.log(np.maximum(p, 1e-300)), self.temperature)

    def autocast(self) -> Any:
        return core.autocast(self.world.device, self.precision)

    def stop_requested(self) -> bool:
        return False


def predict(config: PredictConfig) -> None:
    """submission.csv from rows without winners, one pair from the command line, or JSON lines."""
    predictor = Predictor(config)
    if config.data is not None:
        rows, _ = arena.load_arena(
            config.data,
            require_labels=False,
            skip_bad_rows=config.skip_bad_rows,
            bad_rows_file=Path(config.output).with_suffix(".bad_rows.csv"),
        )
        arena.write_submission(config.output, [row.id for row in rows], predictor(rows))
        print(f"{len(rows):,} rows: {config.output}")
        return
    if config.response_a is not None and config.response_b is not None:
        record = {"prompt": config.prompt or "", "response_a": config.response_a}
        lines = [json.dumps(record | {"response_b": config.response_b})]
    elif config.response_a is None and config.response_b is None and config.prompt is None:
        lines = sys.stdin
    else:
        raise ValueError("predict: give --response_a and --response_b (and --prompt), or --data")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = arena.read_json_row(line, f"standard input, line {number}")
            p = predictor([row])[0]
            answer = {f"p_{name}": round(float(p[k]), 6) for k, name in enumerate(CLASSES)}
            print(json.dumps({"prediction": CLASSES[int(p.argmax())], **answer}), flush=True)
