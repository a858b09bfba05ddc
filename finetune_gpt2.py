"""Fine-tune GPT-2, DistilGPT2 or another model: classification and language modelling.

    python finetune_gpt2.py                     # without a hub: a tiny GPT-2 on film reviews
    torchrun --nproc_per_node=4 finetune_gpt2.py --task imdb --model gpt2
    python finetune_gpt2.py --task ag_news --model distilgpt2 --data downloads/ag_news
    python finetune_gpt2.py --task wikitext2 --model gpt2 --epochs 3
    python finetune_gpt2.py --task wikitext103 --student_of gpt2 --distill_weight 0.5
    python finetune_gpt2.py --task mails.csv --model results/gpt2/…     # columns text, label
    python finetune_gpt2.py --task reviews_text init=random size=tiny
    python finetune_gpt2.py evaluate RUN --data other_mails.csv
    python finetune_gpt2.py tfidf --task reviews         # a baseline without a network, to compare
    python finetune_gpt2.py attention --run_folder RUN --texts "A dull film." --layers 0,11

--task: imdb, ag_news, reviews (classification); wikitext2, wikitext103, reviews_text (language
modelling); or a file or folder of your own: with labels it is classified, without it is modelled.

First the test rows are scored by the untrained model (baseline/). Phase 1: the blocks are frozen
and the head learns on features that are computed once. Phase 2: everything learns, the lower
blocks more slowly. Then the test, with the weights that were best on validation.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import core
import files
import runs
from experiments.experiment import embedded_precision
from files import PROJECT
from settings import Settings, replace


@dataclass
class Config(Settings):
    """Settings of finetune_gpt2.py."""

    ONLY_WITH = {
        "size": "init=random|by_name",
        "distill_weight": "student_of",
        "temperature": "distill_weight",
    }
    READ_LATER = ("attention_texts", "cache_features")  # a run may go on in phase 2

    task: str = "imdb"
    """imdb, ag_news, reviews, wikitext2, wikitext103, reviews_text, or a file or folder"""
    model: str = "gpt2"
    """gpt2, distilgpt2, any causal model or encoder: a run folder, a local folder, a hub id"""
    weights: Literal["best", "final"] = "best"
    """which weights of a run folder"""
    init: Literal["pretrained", "random", "by_name"] = "pretrained"
    """start from the published weights, or from random ones of the same shape; by_name: random,
    each parameter from the seed and its own name, so that architectures share a start"""
    size: Literal["tiny", "mini", "distilgpt2", "gpt2"] | None = None
    """shape of a random GPT-2, with GPT-2's vocabulary; null: that of --model"""
    student_of: str | None = None
    """train a student instead: every other block of this teacher; null: --model itself"""
    distill_weight: float = 0.0
    """share of the loss that the teacher's probabilities give; 0: labels alone"""
    temperature: float = 2.0
    """softens both probabilities in that share"""
    data: str | None = None
    """file or folder with the rows of --task; null: the hub, or the package of the reviews"""
    val_frac: float = 0.1
    """share of the training rows (by a hash) for validation, where the source has no such part"""
    test_frac: float = 0.1
    """share of the rows for the test, where the source has no such part"""
    lr: float | None = None
    """peak learning rate; null: 2e-5 for classification, 5e-5 for language modelling"""
    lr_factors: list[float] = field(default_factory=lambda: [0.1, 0.5, 1.0])
    """of the lower, middle and upper third of the blocks; embeddings as the lowest, head 1"""
    head_epochs: int | None = None
    """passes of phase 1; null: 1 for classification, 0 for language modelling"""
    head_lr: float | None = None
    """peak learning rate of phase 1; null: --lr"""
    cache_features: bool = True
    """compute what the head reads once in phase 1; false: run the frozen blocks in each step"""
    batch: int | None = None
    """rows an update over all processes; null: 8 for classification, 4 for language modelling,
    twice as many with 6 blocks or fewer"""
    max_length: int | None = None
    """tokens a text or window; null: as many as the model has positions, 1024 at most"""
    crop: bool = True
    """in training, a random stretch of a text that is too long; else its beginning"""
    stride: int | None = None
    """tokens between the windows of an evaluation; null: half of --max_length"""
    train_stride: int | None = None
    """the same for training windows; null: --max_length, so that they do not overlap"""
    detokenize: bool = False
    """write WikiText's words and marks together again, as published figures a word do"""
    label_smoothing: float | None = None
    """share of each target that is spread over all classes (or tokens), in training; null: .1 for
    classification, 0 for language modelling"""
    dropout: float | None = None
    """dropout everywhere; null: the model's own, .1 in the head"""
    warmup_frac: float = 0.1
    """share of the steps of a phase over which the learning rate rises from 0"""
    min_lr: float = 1e-7
    """learning rate at the end of a phase (other groups in proportion)"""
    attention_texts: int = 2
    """test texts whose attention maps are kept for the page; 0: none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("val_frac", "test_frac", "distill_weight"):
            self._require(name, lambda value: 0 <= value < 1, "a share from 0, below 1")
        self._require("dropout", lambda value: 0 <= value < 1, "a share from 0, below 1")
        for name in ("temperature", "head_lr"):
            self._require(name, lambda value: value > 0, "more than 0")
        for name in ("stride", "train_stride"):
            self._require(name, lambda value: value >= 1, "1 or more, or null")
        self._require("attention_texts", lambda value: value >= 0, "0 or more")
        self._require("head_epochs", lambda value: value >= 0, "0 or more, or null")
        if len(self.lr_factors) != 3 or min(self.lr_factors) < 0:
            raise ValueError(f"--lr_factors {self.lr_factors}: expected three numbers, 0 or more")


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        if given or world.from_rank_0(world.rank == 0 and files.hub_answers()):
            fine_tune(config, world)
        else:
            show_embedded(config, world)


def is_language(config: Config) -> bool:
    from data import documents, texts

    if config.data is not None or config.task not in documents.NAMED:
        texts.check_rows(Path(config.data or config.task))
    return documents.models_text(config.task, config.data)


def fine_tune(config: Config, world: core.World) -> runs.Run:
    from experiments import classification, language, phases

    models_text = is_language(config)
    kind = language.LanguageModelling if models_text else classification.Classification
    config = phases.with_recipe(config, models_text)
    with runs.Run(config, world) as run:
        experiment = kind(config, world)
        state = experiment.build_state(experiment.load_model())
        if config.dry_run:
            run.dry_run(state, lambda: core.train_step(state, experiment.loss_sum))
            return run
        run.write_baseline(lambda: experiment.baseline(state))
        run.resume(state, experiment)
        while not run.done(state):
            # phase 1: the head on features that are computed once; phase 2: everything
            begun = experiment.begin_step(state)
            stats = core.train_step(state, experiment.loss_sum) if begun else None
            run.after_step(state, stats)
        run.finish(state, experiment)
    return run


# What the script does without any settings where there is no hub: a language model on the reviews,
# then a classifier that starts from it beside one that starts from random weights. As
# configs/gpt2/reviews_*.yaml, which say why.
EMBEDDED: dict[str, dict] = {
    "language_model": {
        "task": "reviews_text",
        "init": "random",
        "size": "tiny",
        "lr": 4e-3,
        "epochs": 1.0,
        "limit": 2000,
        "max_length": 128,
        "stride": 128,
        "batch": 8,
        "micro_batch": 4,
        "lr_factors": [1.0, 1.0, 1.0],
    },
    "from_language_model": {
        "task": "reviews",
        "lr": 5e-4,
        "head_epochs": 0,
        "limit": 6000,
        "train_frac": 0.25,
        "max_length": 128,
        "batch": 8,
        "lr_factors": [1.0, 1.0, 1.0],
    },
}
# the same but for where it starts, or the comparison would say nothing
EMBEDDED["from_random"] = {**EMBEDDED["from_language_model"], "init": "random"}


def show_embedded(config: Config, world: core.World) -> None:
    """Three runs and their comparison on the same rows; the same command continues them."""
    root = Path(config.out or "results/gpt2_on_reviews")
    world.say(
        "no settings were given and the hub cannot be reached: the embedded default it is, a tiny "
        f"GPT-2 on film reviews, in {root}"
    )
    precision = embedded_precision(config.precision, world)
    config = replace(config, precision=precision)
    for name, settings in EMBEDDED.items():
        if name != "language_model":
            settings = {**settings, "model": str(root / "language_model")}
        world.say(f"---- {name}")
        try:
            run = fine_tune(replace(config, **settings, out=str(root / name)), world)
        except SystemExit as end:
            if end.code:  # else it was finished before
                raise
            continue
        if run.status == "stopped" or config.dry_run:
            return
    if world.rank == 0:
        arms = [str(root / "from_random"), str(root / "from_language_model")]
        report = [sys.executable, str(PROJECT / "report.py"), "compare", *arms]
        subprocess.run(report, check=False)


if __name__ == "__main__":
    from commands import attention, evaluate, reproduce, tfidf

    commands = {
        "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig),
        "attention": (attention.show_attention, attention.Config),
        "tfidf": (tfidf.tfidf, tfidf.Config),
        "reproduce": reproduce.command_of(main, Config),
    }
    runs.launch(main, Config, commands)
