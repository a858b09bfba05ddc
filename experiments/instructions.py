"""Instruction tuning around the loop of alpaca_sft.py: model, rows, figures, samples, weights."""

import contextlib
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import core
from core import IGNORE_INDEX
from data import instructions
from data.instructions import InstructionData
from data.records import strip_control
from data.rows import choose_rows, count_splits
from data.tokens import rows_of_tokens
from device import compile_model
from evaluation.metrics import Metrics
from evaluation.outcomes import TokenLoss, require_finite, unigram_loss
from experiments.experiment import Result, place, rows_each
from experiments.language import language_metrics
from experiments.training import Targets, Training, build_state
from files import content_digest, write_text
from methods import sharding
from methods.dropout import set_dropout
from methods.optimizers import parameter_groups
from models import causal, generation, lora, packed, pretrained
from models.decoding import Decoding
from settings import refuse, replace, seed_of, told

# Asked before and after every run, beside a few of the validation rows.
FIXED = (
    ("Give three tips for staying healthy.", ""),
    ("What is the capital of France?", ""),
    ("Rewrite the sentence in the passive voice.", "The chef cooks the meal every day."),
    ("Classify the animal as a mammal, a bird or a fish.", "Penguin"),
)
SAMPLES = 4  # validation rows beside them
TRAIN_SAMPLE = 200  # training rows, at most, that an evaluation scores as well
EVALUATIONS = 10  # an epoch
KINDS = ("all", "response")  # of labels, in the order of instructions.row_sums


def load_probes(file: str | None) -> list[instructions.Row]:
    """The rows of --samples, or FIXED; ValueError (file, row, field)."""
    if file is not None:
        return instructions.load_rows(file, 0.0, 0.0, answered=False)[0]
    asked = [{"instruction": instruction, "input": text} for instruction, text in FIXED]
    return [instructions.build_row(row, "", n, answered=False) for n, row in enumerate(asked)]


def find_weights(name: str, which: str) -> tuple[str, Path | None]:
    """(base model, folder of an adapter or None) of a run folder, a local folder or a hub id."""
    folder = pretrained.weights_folder(name, which)
    facts = Path(folder) / lora.CONFIG
    if not facts.is_file():
        return folder, None
    base = json.loads(facts.read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{facts} does not name the base model: give it as --base")
    return base, Path(folder)


def weights_digest(name: str) -> list[str] | None:
    """Digests of a model's files of weights, by which a base is known wherever it lies; None for
    a hub id."""
    files = [p for p in sorted(Path(name).glob("*")) if p.suffix in (".safetensors", ".bin")]
    return [content_digest(file) for file in files] or None


def with_recipe(config: Any) -> Any:
    """The settings of a run, nothing left open; ValueError for those that do not go together."""
    if config.lora_r is not None and config.init != "pretrained":
        raise ValueError("--lora_r keeps the base unchanged, so it needs one: --init pretrained")
    if config.size is None:
        pretrained.check_model(config.model)
    else:
        refuse(config, ("model",), f"--size {config.size} says which model", told(config))
    base, adapter = find_weights(config.model, config.weights)
    if adapter is not None:
        raise ValueError(
            f"{config.model} is a LoRA adapter; to go on from it, merge it first: "
            f"alpaca_sft.py merge --model {config.model} --output FOLDER"
        )
    if config.shard and config.compile:
        raise ValueError("--shard and --compile do not go together")
    if config.packing and config.compile:
        raise ValueError("--compile needs a few fixed lengths: use --packing false")
    shape = causal.load_config(config.size or base, config.init)
    length = min(1024, pretrained.max_positions(shape) or 1024)
    recipe = {"max_length": length, "packing": not config.compile}
    if config.lora_r is not None:
        recipe["lora_alpha"] = float(config.lora_r)
    return replace(
        config, **{name: value for name, value in recipe.items() if getattr(config, name) is None}
    )


def row_sums(losses: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(rows, 4): loss sum in nats and number of all labels, then of those in responses.

    losses: of each label, in the shape of batch["labels"].
    """
    there = batch["labels"] != IGNORE_INDEX
    response = there & batch["is_response"]
    values = torch.stack([losses, there, losses * response, response], dim=-1)
    if "row_lengths" not in batch:
        return values.sum(dim=1)
    sizes = batch["row_lengths"]
    row = rows_of_tokens(sizes, values.device)
    return values.new_zeros(len(sizes), 4).index_add_(0, row, values[0])


class InstructionTuning(Training):
    """The experiment around the script's loop."""

    def __init__(self, config: Any, world: core.World):
        self.config, self.world = config, world
        rows, self.facts = self.load_rows()  # before what is slow to import
        self.probes = load_probes(config.samples)
        self.source = config.size or find_weights(config.model, config.weights)[0]
        self.model_config = causal.load_config(self.source, config.init)
        self.precision, self.attention = pretrained.choose_kernels(config, world, self.model_config)
        self.tokenizer = causal.load_tokenizer(
            self.source, config.init, self.model_config, world.say
        )
        world.sharded = config.shard and world.size > 1
        self.whole: nn.Module | None = None  # of a sharded model, on rank 0
        self.load_data(rows)

    # -- rows

    def load_rows(self) -> tuple[list[instructions.Row], dict[str, Any]]:
        """The rows to use, and facts about them for the record."""
        config = self.config
        rows, notes = instructions.load_rows(config.data, config.val_frac, config.test_frac)
        rows, facts = choose_rows(
            rows, instructions.data_fingerprint(rows), config.limit, config.train_frac
        )
        sizes = count_splits(rows, "instructions")
        for line in (f"data: instructions from {config.data}: {sizes}", *notes):
            self.world.say(line)
        return rows, facts

    def load_data(self, rows: list[instructions.Row]) -> None:
        """The rows of all parts, as tokens."""
        config, world = self.config, self.world
        ids = instructions.cached_sequences(rows, self.tokenizer, config.template, world)

        def part(split: str, count: int | None = None) -> InstructionData:
            return InstructionData(
                ids,
                rows,
                split,
                self.tokenizer.pad_token_id,
                config.max_length,
                packing=config.packing,
                ladder=config.length_steps,
                count=count,
                answered=config.mask_prompt and split == "train",
            )

        few = None if config.eval_batches is None else config.eval_batches * config.batch
        self.train, self.val, self.test_data = part("train"), part("val", few), part("test")
        self.train_sample = part("train", min(TRAIN_SAMPLE, len(self.val.rows)))
        if config.mask_prompt:
            self.check_responses()
        if cut := self.train.cut + self.val.cut + self.test_data.cut:
            world.say(f"{cut:,} rows are longer than --max_length {config.max_length}: cut there")

    def check_responses(self) -> None:
        """ValueError where no row is left to train on, or none to choose the weights by."""
        inside = f"inside --max_length {self.config.max_length}"
        if self.train.left_out:
            self.world.say(
                f"{self.train.left_out:,} training rows have no token of a response {inside}: "
                "left out"
            )
        held_out = any(map(self.val.has_response, self.val.index))
        for name, there in (("training", len(self.train.rows)), ("validation", held_out)):
            if not there:
                raise ValueError(
                    f"--mask_prompt: no {name} row has a token of a response {inside}: raise it"
                )

    # -- model

    def load_model(self) -> nn.Module:
        """The model to train, with its adapters or its frozen part."""
        config, seed = self.config, core.mix_seed(seed_of(self.config, "init"), 4)
        model = causal.load_model(
            self.source,
            self.model_config,
            None,
            config.init,
            self.attention,
            seed,
            self.tokenizer,
            self.world.say,
        )
        if Path(self.source).is_dir():
            model.name_or_path = str(Path(self.source).resolve())
        if config.dropout is not None:
            set_dropout(model, config.dropout)
        if config.untie_head:
            causal.untie_head(model)
        if config.lora() is not None:
            lora.add_lora(model, config.lora(), seed)
        elif config.freeze != "none":
            pretrained.freeze(model, config.freeze)
            for parameter in causal.parts_of(model)["head"]:  # what comes after the blocks
                parameter.requires_grad_(True)
        causal.still_embeddings(model)
        return model

    def build_state(self, model: nn.Module) -> core.State:
        """Optimizer, loader and schedule, on the device."""
        config, world = self.config, self.world
        if world.sharded and world.rank == 0:
            self.whole = sharding.whole_copy(model)
        place(model, world)
        if config.packing:
            packed.use_packing(model, config.max_length)
        if config.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            compile_model(model.base_model)
        kind = core.State
        if world.sharded:
            reduce_dtype = core.REDUCE_DTYPES[config.reduce_dtype]
            layers = pretrained.find_layers(model)
            sharding.shard(model, layers, world, self.precision, reduce_dtype)
            kind = functools.partial(sharding.ShardedState, whole=self.whole)
        # what checkpoints are written from
        adapted = lora.adapters(self.whole or model)
        kept = nn.ModuleList(m.lora for m in adapted.values()) if adapted else self.whole
        groups = parameter_groups(
            {"model": model.parameters()}, {"model": config.lr}, config.weight_decay
        )
        state = build_state(self, model, groups, kind=kind, kept=kept)
        if config.eval_every is None:
            every = math.ceil(state.loader.steps_per_epoch / EVALUATIONS)
            state.evaluation_due = lambda: state.clock.done or state.step % every == 0
        if adapted:
            trained = sum(parameter.numel() for parameter in state.parameters)
            world.say(f"LoRA: {trained:,} parameters in {len(adapted)} adapters")
        return state

    # -- what a step does

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats) summed over the labels that are trained on; their number."""
        if self.needs_targets():
            return self.loss_of_targets(model, batch)
        places = self.trained_places(batch)

        def loss(model: nn.Module) -> Tensor:
            hidden = packed.last_hidden(model, batch)
            return causal.lm_loss_sum(model, hidden, batch["labels"], places=places)

        return sharding.inside(model, loss), len(places)

    def trained_places(self, batch: dict[str, Tensor]) -> Tensor:
        """(targets,) of the labels that are trained on."""
        return batch["response_places" if self.config.mask_prompt else "places"]

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        places, hidden = self.trained_places(batch), packed.last_hidden(model, batch)
        logits, targets, rows = causal.logits_at_targets(model, hidden, batch["labels"], places)
        if "row_lengths" in batch:
            rows = rows_of_tokens(batch["row_lengths"], logits.device)[places]
        return Targets(logits, targets, rows)

    # -- figures

    def sums(self, state: core.State, data: InstructionData) -> np.ndarray:
        """`row_sums` of all rows, on all ranks."""

        def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            hidden = packed.last_hidden(model, batch)
            return causal.token_losses(model, hidden, batch["labels"], batch["places"])

        def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return row_sums(sharding.inside(model, losses, batch), batch)

        values = core.evaluate_rows(state, data, outputs, rows_each(data.max_length))
        return values.astype(np.float64)

    def evaluate(self, state: core.State) -> dict[str, float]:
        """Loss and perplexity of validation and of some training rows, over all tokens and over
        those of the responses if there are any; val_loss is over the tokens that are trained on."""
        figures: dict[str, float] = {}
        for part, data in (("val", self.val), ("train_sample", self.train_sample)):
            totals = self.sums(state, data).sum(axis=0).reshape(2, 2)
            for kind, (loss_sum, targets) in zip(KINDS, totals, strict=True):
                if targets == 0:  # all rows end before their response
                    continue
                loss = float(loss_sum / targets)
                figures[f"{part}_{kind}_loss"] = loss
                figures[f"{part}_{kind}_perplexity"] = math.exp(min(loss, 700))
        trained = KINDS[self.config.mask_prompt]
        chosen = {name: figures[f"val_{trained}_{name}"] for name in ("loss", "perplexity")}
        return {f"val_{name}": value for name, value in chosen.items()} | figures

    def measure(self, state: core.State) -> Result:
        """Metrics and predictions of the test rows."""
        data, template = self.test_data, self.config.template
        values = self.sums(state, data)
        require_finite(values, "a test loss")
        parts = [instructions.segments(row, template) for row in data.rows]
        sizes = self.text_sizes(parts)
        trained_on = KINDS[self.config.mask_prompt]
        figures = response_metrics(values, sizes, [row.group for row in data.rows], trained_on)
        figures |= {"trained_on": trained_on, "template": template}
        lines = [
            {
                "id": row.id,
                "group": row.group,
                "loss_sum": float(v[0]),
                "num_targets": int(v[1]),
                "num_chars": int(size[0]),
                "response_loss_sum": float(v[2]),
                "response_num_targets": int(v[3]),
                "response_num_chars": int(size[2]),
                "text": {
                    "prompt": "".join(text for text, _ in part[:-1]),
                    "response": part[-1][0],
                },
            }
            for row, part, v, size in zip(data.rows, parts, values, sizes, strict=True)
        ]

        def read(row: int) -> dict[str, str]:
            ids = data.ids[data.index[row]][: data.max_length + 1]
            return {"as read": self.tokenizer.decode(np.where(ids < 0, ~ids, ids))}

        return Result(figures, lines, self.add_frequencies(figures), read=read)

    def add_frequencies(self, figures: Metrics) -> TokenLoss | None:
        """Beside the loss of the test tokens that are trained on, what the frequencies of the
        training tokens give on them; None where a test row has none of them."""
        only = self.config.mask_prompt
        prefix = "response_" * only
        if f"{prefix}loss" not in figures:
            return None
        size = len(self.tokenizer)
        seen, asked = (
            data.label_counts(size, only_responses=only) for data in (self.train, self.test_data)
        )
        figures[f"{prefix}unigram_entropy"] = unigram_loss(seen, asked)
        words = "training responses' tokens" if only else "training tokens"
        return TokenLoss(figures[f"{prefix}loss"], figures[f"{prefix}unigram_entropy"], words)

    def text_sizes(self, parts: list[list[tuple[str, bool]]]) -> np.ndarray:
        """(test rows, 3): characters and words of each, and the characters of its responses, of
        what is left of those that are cut."""
        data = self.test_data
        sizes = np.array(
            [
                [
                    sum(len(text) for text, _ in row),
                    sum(len(text.split()) for text, _ in row),
                    sum(len(text) for text, is_response in row if is_response),
                ]
                for row in parts
            ]
        )
        for row in np.flatnonzero(data.ids.lengths[data.index] - 1 > data.max_length):
            ids = data.ids[data.index[row]][: data.max_length + 1]
            text = self.tokenizer.decode(np.where(ids < 0, ~ids, ids))
            response = self.tokenizer.decode(~ids[ids < 0])
            sizes[row] = len(text), len(text.split()), len(response)
        return sizes

    def baseline(self, state: core.State) -> Result:
        """Test and validation figures and the samples of the untrained model; nothing is chosen by
        them."""
        result = Result({}, [])
        if self.config.baseline:
            result = self.measure(state)
            result.metrics.update(self.evaluate(state))
        return result._replace(files=self.samples(state))

    def test(self, state: core.State) -> Result:
        return self.measure(state)._replace(files=self.samples(state))

    def samples(self, state: core.State) -> dict[str, str]:
        """Answers to the probes and to a few validation rows, as a file for the page."""
        lines = self.answers(state) if self.config.sample_tokens else []
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return {"analysis/samples.jsonl": text} if lines else {}

    def asked_during(self, state: core.State) -> list[dict[str, Any]]:
        """The same at an evaluation, where --samples names what is asked."""
        return self.answers(state) if self.config.samples and self.config.sample_tokens else []

    def answers(self, state: core.State) -> list[dict[str, Any]]:
        config = self.config
        questions = []
        for row in [*self.probes, *self.val.rows[:SAMPLES]]:
            instruction, text, response = row.turns[-1]
            prompt = instructions.prompt_of(row, config.template)
            questions.append((instruction, text, prompt, response or None))
        # every rank writes the same text: they would only wait otherwise
        prompts = [prompt for _, _, prompt, _ in questions]
        decoding = Decoding(max_new_tokens=config.sample_tokens)
        # in fp32, but where a sharded model's blocks are put together in less
        with state.autocast() if self.world.sharded else contextlib.nullcontext():
            answers = generation.generate(state.model, self.tokenizer, prompts, decoding)
        if cut := [i for (i, *_), answer in zip(questions, answers, strict=True) if answer.cut]:
            self.world.say(generation.said_of_cut([strip_control(name)[:40] for name in cut]))
        return [
            {"instruction": i, "input": text, "response": answer.text, "reference": reference}
            for (i, text, _, reference), answer in zip(questions, answers, strict=True)
        ]

    # -- weights

    def export(self, state: core.State, folder: Path) -> None:
        """The adapter in PEFT's format, or a folder for AutoModelForCausalLM."""
        model = self.whole or state.model
        if lora.adapters(model):
            lora.save_adapter(model, folder)
        else:
            generation.own_decoding(model, self.tokenizer)
            pretrained.save_weights(model, folder)
        self.tokenizer.save_pretrained(folder)
        facts = {"template": self.config.template, "max_length": self.config.max_length}
        if lora.adapters(model):
            facts["base"] = weights_digest(self.source)
        write_text(folder / "instructions.json", json.dumps(facts))

    def restore(self, state: core.State, folder: Path) -> None:
        model = self.whole or state.model
        if lora.adapters(model):
            lora.load_adapter(model, folder)
        else:
            pretrained.restore_weights(model, folder)


def response_metrics(
    values: np.ndarray, sizes: np.ndarray, groups: list[str], trained_on: str = "all"
) -> Metrics:
    """Figures of `row_sums` (rows, 4) and text sizes (rows, 3): of all tokens, and of responses.

    The primary one is that of what is `trained_on`, of KINDS.
    """
    figures = language_metrics(np.column_stack([values[:, :2], sizes[:, :2]]), groups)
    answered = values[:, 3] > 0  # of a long prompt nothing may be left for the response
    # words of responses are not counted: without their number there is no figure a word
    none = np.zeros(int(answered.sum()))
    chosen = np.column_stack([values[answered, 2:], sizes[answered, 2], none])
    if len(chosen):
        own_groups = [group for group, has in zip(groups, answered, strict=True) if has]
        response = language_metrics(chosen, own_groups)
        for name in ("loss", "perplexity", "nats_per_char"):
            for key in (name, f"{name}_ci95"):
                if key in response:
                    figures[f"response_{key}"] = response[key]
        figures["response_num_targets"] = response["num_targets"]
        for name, problem in response.get("no_interval", {}).items():
            figures.setdefault("no_interval", {})[f"response_{name}"] = problem
        if trained_on == "response":
            figures |= {name: response[name] for name in ("groups", "effective_groups")}
            figures["primary"] = "response_loss"
    return figures
