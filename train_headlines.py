"""A small GPT on Hacker News headlines, from nothing: the lowest validation loss in 7 epochs.

    python train_headlines.py                        # without a hub: on snippets of film reviews
    torchrun --nproc_per_node=4 train_headlines.py --out results/headlines/ours
    python train_headlines.py --config configs/headlines/00_baseline.yaml
    python train_headlines.py --data titles.txt --limit 20000     # one title a line
    python sweep.py --config configs/sweeps/headlines_steps.yaml  # one change at a time
    python train_headlines.py evaluate results/headlines/ours --data other_titles.txt
    python train_headlines.py inspect --run_folder results/headlines/ours --batch 0 --position 10
    python train_headlines.py generate --run_folder results/headlines/ours --prompt "Show HN:"
    python train_headlines.py export --run_folder results/headlines/ours --output llama

The default is the best that we know; configs/headlines/ has the way there from the exercise's
baseline, one change a file. Every evaluation gives the figure of the exercise beside the one that
counts, nats per character over the whole validation text (data/titles.py says how they differ).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import core
import runs
from data.titles import OFFICIAL_BLOCK, check_rows
from experiments.experiment import or_embedded
from settings import Optimizer, Schedule, Settings

# What the script does without any settings where there is no hub: minutes on a CPU.
EMBEDDED: dict[str, Any] = {
    "what": "a smaller model on --data reviews",
    "fast": True,
    "data": "reviews",
    "vocab_size": 2048,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "batch": 64,
    "epochs": 3.0,
}


@dataclass
class Config(Settings):
    """Settings of train_headlines.py."""

    # rope_theta: in experiments/headlines.py
    ONLY_WITH = {"r_drop": "dropout"}

    model: str = "headlines"
    """names the folder of the run below results/"""
    data: str = "julien040/hacker-news-posts"
    """hub id of a set with a column of titles, a file with one title a line, or reviews"""
    limit: int | None = 100_000
    """titles at most, after shuffling; null: all"""
    data_seed: int | None = 1337
    """shuffles the titles before the split; null: in the order of the source"""
    val_frac: float = 0.1
    """share of the titles, the last ones, for validation"""
    epochs: float = 7.0
    """passes over the training titles"""
    seed: int = 1337
    """seed of initialisation, data order and dropout"""
    tokenizer: Literal["bpe", "unigram"] = "unigram"
    """trained on the training titles, over bytes: any text comes back exactly"""
    vocab_size: int = 16000
    """tokens at most"""
    prefix_space: bool = True
    """a title's first word is the same token as inside a title"""
    sequences: Literal["windows", "titles"] = "titles"
    """train on windows of --max_length tokens of all titles in a row, or on titles one by one"""
    within_titles: bool = True
    """a token sees its own title alone, also in windows"""
    max_length: int = 128
    """tokens of a window; titles as sequences are never cut"""
    batch: int = 320
    """windows or titles an update over all processes (the global batch)"""
    init: Literal["in_order", "by_name"] = "in_order"
    """parameters drawn one after the other, or by_name, each from the seed and its own name: then
    arms of other architecture share a start, and pairing by seed pays (docs/statistics.md)"""
    n_layer: int = 6
    """layers"""
    n_head: int = 8
    """attention heads"""
    n_embd: int = 512
    """width"""
    positions: Literal["rotary", "learned"] = "rotary"
    """rotary (turned queries and keys) or learned (added to the embeddings)"""
    rope_theta: float = 1000.0
    """base of the rotary wavelengths; Llama's 10,000 is for longer texts"""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """before each branch and at the end"""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """gated, or plain with as many parameters"""
    bias: bool = False
    """biases in linear maps and LayerNorm"""
    qk_norm: bool = True
    """RMSNorm of each head's queries and keys"""
    attention_gate: bool = False
    """sigmoid gate on attention's output (then no export to Llama)"""
    layer_scale: float | None = None
    """learned factor of each branch, begun with this; null: none"""
    scale_residual_init: bool = True
    """begin the last map of each branch smaller by √(2·layers)"""
    dropout: float = 0.1
    """of embeddings and of each branch's output"""
    r_drop: float = 1.0
    """R-Drop's α: draws two passes of different dropout together; 0: one pass, .6 of the cost"""
    optimizer: Optimizer = "muon"
    """muon (for the layers' matrices, adamw for the rest), adamw (fused), lion, sophiag or sgd"""
    lr: float = 2e-3
    """peak learning rate; with muon that of its adamw part"""
    matrix_lr: float = 4e-3
    """muon's peak learning rate"""
    betas: list[float] | None = field(default_factory=lambda: [0.9, 0.95])
    """of the optimizer, with muon of its adamw part; null: the optimizer's usual ones"""
    weight_decay: float = 0.5
    """weight decay (decoupled), none on biases and norms"""
    schedule: Schedule = "wsd"
    """learning rate after the warm-up; wsd: stable, then a straight line to --min_lr"""
    warmup_frac: float = 0.02
    """share of the steps over which the learning rate rises from 0"""
    decay_frac: float = 0.7
    """wsd: share of the steps, the last ones, over which it falls"""
    average_frac: float = 0.0
    """evaluate a moving average of the weights over this share of the steps; 0: the last weights"""
    test_with: Literal["best", "final"] = "final"
    """weights for the last figures; the validation titles then choose nothing"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("val_frac", lambda value: 0 < value < 1, "a share above 0, below 1")
        for name in ("dropout", "average_frac"):
            self._require(name, lambda value: 0 <= value < 1, "a share from 0, below 1")
        self._require("decay_frac", lambda value: 0 <= value <= 1, "a share from 0 to 1")
        self._require("r_drop", lambda value: value >= 0, "0 or more")
        for name in ("matrix_lr", "rope_theta"):
            self._require(name, lambda value: value > 0, "more than 0")
        for name in ("n_layer", "n_head", "n_embd"):
            self._require(name, lambda value: value >= 1, "1 or more")
        if self.sequences == "titles" and not self.within_titles:
            raise ValueError(
                "--sequences titles: a title alone sees no other; leave out --within_titles false, "
                "or use --sequences windows"
            )
        bound = self.positions == "learned" and not self.within_titles
        if bound and self.max_length < OFFICIAL_BLOCK:
            raise ValueError(
                f"--positions learned --max_length {self.max_length}: the official figure reads "
                f"rows of {OFFICIAL_BLOCK} tokens, and no window would teach their last positions; "
                f"use --max_length {OFFICIAL_BLOCK} or more, or --positions rotary"
            )


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = or_embedded(config, given, world, **EMBEDDED)
        check_rows(config.data)
        from experiments.headlines import Headlines  # transformers: seconds, after a wrong file

        with runs.Run(config, world) as run:
            experiment = Headlines(config, world, run.folder)
            state = experiment.build_state(experiment.load_model())
            if config.dry_run:
                run.dry_run(state, lambda: core.train_step(state, experiment.loss_sum))
                return experiment.say_cost(state)
            run.resume(state, experiment)
            while not run.done(state):
                run.after_step(state, core.train_step(state, experiment.loss_sum))
            run.finish(state, experiment)


if __name__ == "__main__":
    from commands import evaluate, inspect, reproduce, titles

    commands = {
        "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig),
        "inspect": (inspect.inspect, inspect.InspectConfig),
        "generate": (titles.generate, titles.GenerateConfig),
        "export": (titles.export, titles.ExportConfig),
        "reproduce": reproduce.command_of(main, Config),
    }
    runs.launch(main, Config, commands)
