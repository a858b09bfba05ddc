"""Which of two answers would a person prefer? What the preference scripts share.

A script chooses the encoder, may fix whether the prompt is read, and shows its own loop.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import core
from data import arena, reviews
from data import pairs as pair_data
from data.arena import PairRow
from data.pairs import PairData
from data.rows import choose_rows, contrary_labels, count_splits, fingerprint
from data.style import NAMES, style_features
from device import compile_model, pins, rows_in_parts, to_device
from evaluation import metrics
from evaluation.blending import blend
from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
from evaluation.outcomes import Answers
from experiments.experiment import (
    LastEvaluation,
    Result,
    answers_key,
    place,
)
from experiments.pair_answers import (  # noqa: F401 - some are for evaluate
    calibrated_metrics,
    compare_answers,
    fitted_temperature,
    pair_metrics,
    predict_pairs,
    prediction_line,
    probe,
    style_answers,
    test_result,
)
from experiments.saved_pairs import (
    open_run,
    other_run,
    partner_facts,
    require_finished,
    require_partners,
)
from experiments.training import Targets, Training, build_state
from files import content_digest, read_json, read_yaml
from methods import feature_cache
from methods.dropout import set_dropout
from methods.frozen_parts import BATCHES, KEPT, RUNS, Times, time_both
from methods.optimizers import parameter_groups
from models import pairs, pretrained
from models.heads import style_scale
from settings import Settings, current_names, seed_of

HUB_DATA = "lmarena-ai/arena-human-preference-55k"


@dataclass
class Config(Settings):
    """Settings of the preference scripts."""

    ONLY_WITH = {"prompt_frac": "prompt", "distill_weight": "teacher", "temperature": "teacher"}
    READ_LATER = ("beyond_style",)

    data: str = HUB_DATA
    """arena CSV, JSONL or parquet file, hub id, or one of: reviews, reviews_control"""
    minus_one: Literal["a", "b"] | None = None
    """who wins where a winner is -1 (1: the other, 0: a tie); null: such numbers are refused"""
    extra_train: str | None = None
    """file of further training rows, all of them, in any layout; winner_… columns may hold
    probabilities. Those with a prompt of validation or test are left out"""
    split: Literal["prompt", "row"] = "prompt"
    """what lies in one part only: all rows of a prompt, or (leaks; for old arms) each row"""
    val_frac: float = 0.1
    """share of the prompts (or rows) for validation"""
    test_frac: float = 0.1
    """share of the prompts (or rows) for the test"""
    prompt: bool = True
    """put the prompt in front of each answer; false: judge from the answers alone"""
    prompt_frac: float = 0.4
    """share of the tokens that the prompt may keep when prompt and answers do not all fit"""
    form: Literal["towers", "joint"] = "towers"
    """towers: a sequence for each answer; joint: prompt, A and B in one, of --max_length"""
    head: Literal["concat", "symmetric", "davidson"] = "concat"
    """concat; or exact under swaps: symmetric, davidson (worth of answers, threshold of ties)"""
    pooling: Literal["first", "mean"] = "first"
    """embedding of a sequence: its first token's state, or the mean of all"""
    features: bool = False
    """the head reads length, layout and other style, too"""
    swap: Literal["none", "augment", "tta", "both"] = "none"
    """augment: swap A and B at random in training; tta: average both orders in the test"""
    teacher: str | None = None
    """finished run whose answers on the training rows are learned from, beside their labels"""
    distill_weight: float = 0.5
    """share of the loss that the teacher's probabilities give; 1: they alone"""
    temperature: float = 2.0
    """softens both probabilities in that share"""
    labels: Literal["true", "shuffled"] = "true"
    """shuffled: the control that must stay at chance"""
    lr: float = 1e-5
    """peak learning rate of the encoder"""
    head_lr: float | None = None
    """peak learning rate of the head; null: --lr"""
    blend: str | None = None
    """finished run on the same split: the test is of both runs' answers joined, by weights fitted
    on validation"""
    beyond_style: bool = True
    """say in the test what the answers add to style alone, fitted on the same training rows"""
    dropout: float | None = None
    """dropout everywhere; null: the model's own, .1 in the head"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be used, listing them in bad_rows.csv"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_frac", "test_frac", "prompt_frac", "distill_weight"):
            self._require(name, lambda value: 0 <= value <= 1, "a share from 0 to 1")
        self._require("dropout", lambda value: 0 <= value < 1, "a share from 0, below 1")
        for name in ("head_lr", "temperature"):
            self._require(name, lambda value: value > 0, "more than 0")
        if self.teacher is not None and self.labels == "shuffled":
            raise ValueError("--labels shuffled: a teacher knows the labels; leave out --teacher")


# What a script without any settings does where there is no hub: the configuration of the demo.
EMBEDDED: dict[str, Any] = {
    "what": "MiniLM on --data reviews",
    "model": "minilm",
    "data": "reviews",
    "max_length": 96,
    "batch": 32,
    "epochs": 1.0,
    "lr": 1e-4,
    "head_lr": 1e-3,
    "dropout": 0.0,
}


def load_rows(
    config: Config, world: core.World, folder: Path | None
) -> tuple[list[PairRow], dict[str, Any]]:
    """Read, repair, split and subset; also returns facts for the record, among them the classes,
    two where there are no ties. The leak check runs at every load. Rows that --skip_bad_rows
    leaves out are listed in the folder."""
    if config.data in ("reviews", "reviews_control"):
        rows, repairs = reviews.load_review_pairs(
            control=config.data == "reviews_control",
            val_frac=config.val_frac,
            test_frac=config.test_frac,
        )
        world.say(reviews.NOTICE)
        classes, leaks = CLASSES, 0
    else:
        writes = world.rank == 0 and folder is not None
        pairs = arena.read_pairs(
            config.data,
            skip_bad_rows=config.skip_bad_rows,
            bad_rows_file=folder / "bad_rows.csv" if writes else None,
            minus_one=lambda: config.minus_one,
        )
        rows, repairs = pairs.rows, pairs.repairs
        classes = CLASSES if pairs.ties else CLASSES[: metrics.TIE]
        world.say(pairs.reading)
        arena.assign_splits(rows, config.split, config.val_frac, config.test_frac)
        leaks = arena.check_leaks(rows, config.split)
    every = rows
    rows, facts = choose_rows(
        rows, arena.data_fingerprint(rows), config.limit, config.train_frac, key=arena.by_content
    )
    own = len(rows)
    if config.extra_train:
        extra, ties = load_extra(config, world, folder, every, facts)
        rows, classes = [*rows, *extra], CLASSES if ties else classes
    contrary = contrary_labels(map(arena.comparison, rows))
    if config.labels == "shuffled":
        rows = arena.shuffle_labels(rows, config.seed)
        world.say("labels are shuffled inside each part: nothing can be learned from them")
    sizes = count_splits(rows[:own], config.data).replace("val ", "validation ")
    world.say(f"data: {own:,} rows of {config.data}: {sizes}; {shares_of(rows[:own], classes)}")
    if extra := rows[own:]:
        world.say(
            f"extra training rows: {len(extra):,} of {config.extra_train}; "
            f"{shares_of(extra, classes)}"
        )
    for line in contrary:
        world.say(line)
    for line in arena.said_repairs(repairs):
        world.say(line)
    if leaks:
        world.say(f"warning: --split row: {leaks} prompts occur in more than one part (a leak)")
    return rows, {**facts, "repairs": repairs, "classes": list(classes)}


def shares_of(rows: Sequence[PairRow], classes: Sequence[str]) -> str:
    """ "A 40.0%, B 35.0%, tie 25.0%" """
    shares = Counter(row.label for row in rows)
    return ", ".join(f"{n} {shares[i] / len(rows):.1%}" for i, n in enumerate(classes))


def load_extra(
    config: Config,
    world: core.World,
    folder: Path | None,
    known: Sequence[PairRow],
    facts: dict[str, Any],
) -> tuple[list[PairRow], bool]:
    """The rows of --extra_train, without those whose prompt is one of validation or test among the
    known rows, whatever --limit leaves of them; and whether there are ties. Adds to the facts."""
    writes = world.rank == 0 and folder is not None
    pairs = arena.read_pairs(
        config.extra_train,
        soft_labels=True,
        skip_bad_rows=config.skip_bad_rows,
        bad_rows_file=folder / "extra_bad_rows.csv" if writes else None,
        minus_one=lambda: config.minus_one,
    )
    for line in (pairs.reading, *arena.said_repairs(pairs.repairs)):
        world.say(f"{config.extra_train}: {line}")
    rows, left_out = arena.extra_rows(pairs.rows, known)
    if left_out:
        world.say(
            f"{left_out:,} of {len(pairs.rows):,} extra rows have a prompt of validation or test: "
            "left out"
        )
    if not rows:
        raise ValueError(f"{config.extra_train}: no row is left to train on")
    soft = sum(row.soft is not None for row in rows)
    if soft:
        world.say(f"{soft:,} of {len(rows):,} extra rows have probabilities for their label")
    facts["extra_train"] = {
        "fingerprint": arena.data_fingerprint(rows),
        "rows": len(rows),
        "left_out": left_out,
        "soft": soft,
        "repairs": pairs.repairs,
    }
    ties = any(row.label == metrics.TIE or (row.soft and row.soft[metrics.TIE]) for row in rows)
    return rows, ties


class Preference(Training):
    """The experiment around a script's loop: its data, its loss, its evaluation."""

    def __init__(self, config: Config, world: core.World, folder: Path | None):
        """folder: of the run, for the list of bad rows."""
        self.config, self.world = config, world
        # before the model, whose imports are slow: a wrong name or row is said at once
        pretrained.check_model(config.model)
        self.rows, self.facts = load_rows(config, world, folder)
        self.classes = tuple(self.facts["classes"])
        self.folder = folder
        self.other = None if config.blend is None else other_run(config.blend, self.facts)
        taught = config.teacher is not None and self.check_teacher()
        model_config = pretrained.load_config(config.model)
        self.precision, self.attention = pretrained.choose_kernels(config, world, model_config)
        self.tokenizer = pretrained.load_tokenizer(config.model, model_config, say=world.say)
        shape = (config.max_length, config.prompt, config.prompt_frac)
        joint = config.form == "joint"
        self.ids = pair_data.cached_sequences(self.rows, self.tokenizer, *shape, world, joint)
        self.joint = None
        if joint:
            both = config.head != "concat"
            self.joint = pair_data.joint_form(self.tokenizer, model_config, config.prompt, both)
        labels = np.array([row.label for row in self.rows])
        split = np.array([row.split for row in self.rows])
        soft = pair_data.soft_labels(self.rows, len(self.classes))

        def part(name: str, swap_seed: int | None = None) -> PairData:
            return PairData(
                self.ids,
                np.flatnonzero(split == name),
                labels,
                self.tokenizer.pad_token_id,
                config.max_length,
                config.length_steps,
                swap_seed,
                soft if name == "train" else None,
                self.joint,
            )

        augment = config.swap in ("augment", "both")
        self.train = part("train", seed_of(config, "masks") if augment else None)
        self.val, self.test_data = part("val"), part("test")
        if config.features:
            style = style_features(self.rows)
            for data in (self.train, self.val, self.test_data):
                data.style = style
        if taught:
            self.train.teacher = self.teacher_answers()
        self.latest = LastEvaluation()

    def load_encoder(self, init: str = "pretrained") -> nn.Module:
        config, seed = self.config, seed_of(self.config, "init")
        encoder = pretrained.load_encoder(
            config.model, init, self.attention, seed, self.tokenizer, self.world.say
        )
        pretrained.check_padding(encoder, self.tokenizer.pad_token_id, self.world.say)
        if config.dropout is not None:
            set_dropout(encoder, config.dropout)
        if config.pooling == "first":
            pretrained.read_first_token_alone(encoder)
        return encoder

    def build_state(self, encoder: nn.Module) -> core.State:
        """Encoder and head, optimizer, loader and schedule, on the device."""
        config = self.config
        torch.manual_seed(core.mix_seed(seed_of(config, "init"), 4))
        style = self.train.style
        scale = None if style is None else style_scale(style[self.train.index])
        hidden, classes = encoder.config.hidden_size, len(self.classes)
        joint = self.joint is not None
        head = pairs.build_head(config.head, hidden, config.dropout, classes, scale, joint)
        model = place(pairs.build_model(encoder, head, config.pooling), self.world)
        if config.compile:
            compile_model(model.encoder)
        groups = parameter_groups(
            {"encoder": encoder.parameters(), "head": head.parameters()},
            {"encoder": config.lr, "head": config.lr if config.head_lr is None else config.head_lr},
            config.weight_decay,
        )
        return build_state(self, model, groups)

    # -- a teacher

    def check_teacher(self) -> bool:
        """ValueError unless it is finished and has seen no row of validation or test: what it knows
        of them would come back in its answers. Says how many training rows it has seen."""
        run = Path(self.config.teacher)
        require_finished("--teacher", run, self.classes)
        require_partners(run)
        seen = prompts_seen(run, self.world)
        held_out = {row.group for row in self.rows if row.split != "train"}
        if leaked := len(held_out & seen):
            raise ValueError(
                f"--teacher {run}: it was trained on {leaked:,} of the {len(held_out):,} prompts "
                "of validation and test here, and would tell of their labels. Use one of this split"
            )
        groups = [row.group for row in self.rows if row.split == "train"]
        own = sum(group in seen for group in groups)
        if own:
            self.world.say(
                f"note: the teacher was trained on the prompts of {own:,} of {len(groups):,} "
                "training rows: its answers there are surer than they would be on new ones"
            )
        self.facts["teacher"] = {"digest": content_digest(run), "trained_on": own}
        return True

    def teacher_answers(self) -> np.ndarray:
        """(training rows, classes) log p, the mean of both orders; kept in the cache."""
        config, world, classes = self.config, self.world, len(self.classes)
        rows = [self.rows[i] for i in self.train.index]
        tested = read_json(Path(config.teacher) / "test/metrics/metrics.json")
        key = {
            "kind": "answers of a teacher, version 1",
            "run": content_digest(Path(config.teacher)),
            "tested": {name: tested.get(name) for name in ("tested_with", "blend")},
            "rows": fingerprint([arena.row_hash(row)] for row in rows),
        }

        def build() -> np.ndarray:
            world.say(f"teacher: answering {len(rows):,} training rows")
            answer = open_run(config.teacher, world, tested.get("tested_with", "best"))
            if answer.classes != classes:
                raise ValueError(f"--teacher {config.teacher}: it was trained on other classes")
            p = metrics.average_swapped(*answer.both_orders(rows))
            return np.log(np.maximum(p, 1e-30)).astype(np.float32)

        return feature_cache.cached_features(key, build, world)[0]

    # -- frozen parts

    def keep_frozen(
        self, state: core.State, forced: bool | None = True, before: str | None = None
    ) -> None:
        """Compute the outputs of the encoder's frozen part once, for all parts and later runs.

        Of a wholly frozen encoder that is the embedding of each sequence, in fp32; of frozen lower
        layers the states that the first trained layer reads, in the run's precision. Where nothing
        is forced a GPU shows which is faster, to keep them or to run the layers in each step.
        before: what an earlier session of the run did, which stays. Says in a line what it did, or
        why the frozen part runs in each step; facts["frozen_part"] has it. Before the first step.
        """
        encoder, ids, say = state.model.encoder, self.ids, self.world.say
        hidden = encoder.config.hidden_size
        self.facts["frozen_part"] = RUNS
        if before == RUNS:
            return say("frozen part: runs in each step, as it did when the run began")
        if pretrained.is_frozen(encoder):
            shape, dtype = (len(ids), hidden), np.float32
        else:
            if why := self._why_no_states(encoder):
                return say(f"note: the frozen part runs in each step: {why}")
            shape = (len(ids.ids), hidden)
            dtype = {"bf16": np.int16, "fp16": np.float16, "fp32": np.float32}[self.precision]
            # a CPU reads a layer's states a hundred times as fast as it computes them
            if forced is None and before is None and pins(self.world.device):
                alone = self.world.rank == 0
                times = self.world.from_rank_0(self._time_frozen(state, dtype) if alone else None)
                if times is not None:
                    self.facts["frozen_part_seconds"] = dataclasses.asdict(times)
                    if times.faster == RUNS:
                        return say(f"frozen part: runs in each step, which is faster ({times})")
                    say(f"frozen part: its outputs are kept, which is faster ({times})")
        key = {
            "kind": "frozen encoder, version 2",
            "rows": shape[0],
            "tokens": ids.fingerprint(),
            "max_length": self.config.max_length,
            **answers_key(self, encoder, frozen=True),
        }
        if self.config.pooling != "first":
            key["pooling"] = self.config.pooling
        if self.joint:
            key["segments"] = [self.joint.texts, self.joint.separator]
        values, was_there = feature_cache.kept_rows(
            key, shape, dtype, lambda: self._frozen_outputs(state), self.world
        )
        if values is None:
            return
        for data in (self.train, self.val, self.test_data):
            data.embeddings, data.states = (
                (values, None) if pretrained.is_frozen(encoder) else (None, values)
            )
        self.facts["frozen_part"] = KEPT
        how = "from the cache" if was_there else "computed once"
        say(f"frozen part: outputs for {len(ids):,} sequences, {how}")

    @torch.no_grad()
    def _time_frozen(self, state: core.State, dtype: type[np.number]) -> Times | None:
        """Of a few batches: seconds to read their states, and to compute them; None where the disk
        takes nothing, which keeping them will say."""
        ids, encoder, device = self.ids, state.model.encoder, self.world.device
        data = pair_data.SequenceData(
            ids, self.tokenizer.pad_token_id, self.config.max_length, self.config.length_steps
        )
        draw, count = np.random.default_rng(0), min(2 * state.loader.micro_batch, len(ids))
        numbers = [draw.choice(len(ids), count, replace=False) for _ in range(BATCHES)]
        batches = [data.collate(rows, None) for rows in numbers]
        encoder.eval()

        def run(number: int) -> Tensor:
            with state.autocast():
                return pretrained.border_states(encoder, **to_device(batches[number], device))

        def read(number: int) -> Tensor:
            length = batches[number]["input_ids"].shape[1]
            padded = pair_data.pad_states(states, ids.offsets, numbers[number], length)
            return to_device({"states": padded}, device)["states"]

        shape = (len(ids.ids), encoder.config.hidden_size)
        parts = [(ids.offsets[row], ids.offsets[row + 1]) for rows in numbers for row in rows]
        try:
            with feature_cache.scratch(shape, dtype, parts) as states:
                return time_both(read, run, device)
        except OSError:
            return None

    def _why_no_states(self, encoder: nn.Module) -> str:
        if self.config.compile:
            return "it is compiled together with the layers above it"
        layers = pretrained.find_layers(encoder)
        frozen = pretrained.count_frozen_layers(encoder)
        return pretrained.why_no_border(encoder.config, frozen, len(layers))

    @torch.no_grad()
    def _frozen_outputs(self, state: core.State) -> Iterator[tuple[int, np.ndarray]]:
        """This rank's (number of the sequence, embedding) or (place of its tokens, states)."""
        config, ids, world, encoder = self.config, self.ids, self.world, state.model.encoder
        whole = pretrained.is_frozen(encoder)
        pad = self.tokenizer.pad_token_id
        steps = config.length_steps
        data = pair_data.SequenceData(ids, pad, config.max_length, steps, self.joint)
        world.say(f"frozen part: running once over {len(ids):,} sequences")
        encoder.eval()

        def compute(batch: dict[str, Tensor]) -> np.ndarray:
            batch = to_device(batch, world.device)
            with state.autocast():
                if whole:
                    return state.model.first_tokens(**batch)[:, None].float().cpu().numpy()
                values = pretrained.border_states(encoder, **batch)
            if self.precision == "bf16":
                values = values.bfloat16().view(torch.int16)
            return values.cpu().numpy()

        each = max(1, 16384 // config.max_length)
        for part, made in core.evaluation_batches(data, each, world, config.workers):
            halves = rows_in_parts(
                lambda rows, part=part, made=made: compute(
                    made if rows is part else data.collate(rows, None)
                ),
                part,
                world.device,
            )
            for rows, values in halves:
                for row, value in zip(rows, values, strict=True):
                    yield (row, value) if whole else (ids.offsets[row], value[: ids.lengths[row]])

    # -- loss and figures

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy summed over the rows of a micro-batch, and their number."""
        return self.loss_of_targets(model, batch)

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        logits = pairs.pair_logits(model, batch)
        return Targets(logits, batch["labels"], teacher=batch.get("teacher"))

    def probabilities(self, state: core.State, data: PairData) -> tuple[np.ndarray, np.ndarray]:
        """p(A, B) and p(B, A), each (rows, classes); with --swap tta both are the average."""
        return predict_pairs(state, data, self.config.swap in ("tta", "both"))

    def evaluate(self, state: core.State) -> dict[str, float]:
        """Validation metrics."""
        p, swapped = self.probabilities(state, self.val)
        self.latest.keep(state, p)
        labels = self.val.labels[self.val.index]
        figures = metrics.classification_metrics(
            p, labels, range(len(labels)), self.classes, intervals=False
        )
        flips = p.argmax(axis=1) == metrics.swap_classes(swapped).argmax(axis=1)
        self.evidence = self.answers(p)
        return {
            "val_loss": figures["log_loss"],
            "val_accuracy": figures["accuracy"],
            "val_flip_consistency": float(flips.mean()),
        }

    def test(self, state: core.State) -> Result:
        """Test metrics and rows; the temperature, and what the run is judged by, are of
        validation."""
        own_val = self.latest.of_tested_weights(
            state, lambda: self.probabilities(state, self.val)[0]
        )
        own, own_swapped = self.probabilities(state, self.test_data)
        val, test = ([self.rows[i] for i in data.index] for data in (self.val, self.test_data))
        p_val, p, swapped, more = own_val, own, own_swapped, {}
        if self.other is not None:
            p_val, p, swapped, more = self.blended(own_val, own, own_swapped, val, test)
        result = test_result(test, p, swapped, val, p_val)
        result.metrics.update(more)
        if self.config.beyond_style:
            train = [row for row in self.rows if row.split == "train"]
            style = style_answers(train, val, test, len(self.classes), self.world)
            if style is not None:
                found = compare_answers(style, val, own_val, test, own)
                found |= {"probes": probe(self.answer_of(state), test, own, own_swapped)}
                result.metrics["beyond_style"] = found
        return result._replace(read=self.read)

    def answer_of(self, state: core.State) -> Callable:
        """Both orders of other rows, as `probabilities` has those of the run's own."""
        config = self.config

        def answer(rows: list[PairRow]) -> tuple[np.ndarray, np.ndarray]:
            shape = (config.max_length, config.prompt, config.prompt_frac)
            data = pair_data.unlabelled(
                rows, self.tokenizer, *shape, self.joint, config.features, config.length_steps
            )
            return self.probabilities(state, data)

        return answer

    def blended(
        self,
        p_val: np.ndarray,
        p: np.ndarray,
        swapped: np.ndarray,
        val: list[PairRow],
        test: list[PairRow],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """p of validation, of the test and of the swapped test, joined with --blend's run; and what
        the weights are."""
        answer = open_run(self.other, self.world)
        others_val, (others, others_swapped) = answer(val), answer.both_orders(test)
        if others.shape[1] != p.shape[1]:
            raise ValueError(f"--blend {self.other}: it was trained on other classes")
        found = compare_answers(np.concatenate([others_val, others]), val, p_val, test, p)
        weights = [found["weights"][name] for name in ("model", "style")]
        pairs_of = (p_val, others_val), (p, others), (swapped, others_swapped)
        joined = [blend(pair, weights) for pair in pairs_of]
        facts = partner_facts(self.folder, self.other) | {"weights": weights}
        facts |= {"log_loss_of_run": found["log_loss_style"]}
        named = ("log_loss_alone", "gain", "gain_ci95")
        return *joined, {"blend": facts | {name: found[name] for name in named if name in found}}

    def read(self, row: int) -> dict[str, str]:
        """The tokens of a test row, as text."""
        first = 2 * self.test_data.index[row]
        sides = [("A, as read", first), ("B, as read", first + 1)]
        if self.joint:
            sides = [("A and B, as read", first)]
        return {name: self.tokenizer.decode(self.test_data.ids[side]) for name, side in sides}

    def answers(self, p: np.ndarray) -> Answers:
        """Those on the validation rows, p (rows, classes)."""
        groups = [self.rows[i].group for i in self.val.index]
        return Answers(p, self.val.labels[self.val.index], self.classes, groups)

    # -- weights

    def export(self, state: core.State, folder: Path) -> None:
        config = self.config
        facts = {
            "head": config.head,
            "form": config.form,
            "pooling": config.pooling,
            "style_columns": list(NAMES) if config.features else None,
            "classes": list(self.classes),
            "with_prompt": config.prompt,
            "swap": config.swap,
            "max_length": config.max_length,
            "prompt_frac": config.prompt_frac,
            "precision": self.precision,
        }
        pairs.save_model(state.model, self.tokenizer, facts, folder)

    def restore(self, state: core.State, folder: Path) -> None:
        pairs.restore_model(state.model, folder)


def as_recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run: what is newer than the run stood at its default, and -1 meant A."""
    return vars(Config()) | {"minus_one": "a"} | settings


def prompts_seen(run: Path, world: core.World) -> set[str]:
    """Groups of the rows that a run was trained on, by itself or through a teacher, or a partner
    that it is joined with. ValueError where they cannot be read."""
    try:
        recorded = current_names(read_yaml(run / "config.yaml"))
        settings = SimpleNamespace(**as_recorded(recorded))
        rows, _ = load_rows(settings, dataclasses.replace(world, rank=1, size=1), None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{run}: what it was trained on cannot be read: {error}") from None
    seen = {row.group for row in rows if row.split == "train"}
    for other in (settings.teacher, settings.blend):
        seen |= prompts_seen(Path(other), world) if other else set()
    return seen
