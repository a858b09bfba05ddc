"""What fine-tuning of GPT-2 has in common over its tasks: model, groups, phases, weights.

finetune_gpt2.py shows the loop; classification.py and language.py have the rows and figures.
"""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import core
from data.rows import choose_rows, count_splits
from device import compile_model
from experiments.experiment import Result, place
from experiments.training import Training, build_state, schedule_of
from methods.dropout import set_dropout
from methods.optimizers import parameter_groups
from models import attention, causal, generation, pretrained
from settings import refuse, replace, seed_of, told


def with_recipe(config: Any, is_language: bool) -> Any:
    """The settings of a run, nothing left open. What is null follows the published recipes."""
    if config.student_of is not None and (config.init != "pretrained" or config.size is not None):
        raise ValueError("--student_of copies a teacher's blocks: leave out --init and --size")
    if config.distill_weight and config.r_drop:
        raise ValueError("--r_drop and --distill_weight both say what to be close to: one of them")
    if is_language and config.head_epochs:
        raise ValueError(
            "--head_epochs: a language model's head is tied to its embeddings, so that frozen "
            "blocks would not give the same twice; use 0"
        )
    source = config.student_of or config.size or config.model
    if source != config.model:
        other = "--student_of" if config.student_of else "--size"
        refuse(config, ("model",), f"{other} {source} says which model", told(config))
    if source != config.size:
        pretrained.check_model(source)
    shape = causal.load_config(pretrained.weights_folder(source, config.weights), config.init)
    layers = shape.num_hidden_layers
    small = (layers + 1) // 2 <= 6 if config.student_of else layers <= 6  # DistilGPT2 has 6
    recipe = {
        "lr": 5e-5 if is_language else 2e-5,
        "batch": (8 if small else 4) if is_language else (16 if small else 8),
        "max_length": min(1024, pretrained.max_positions(shape) or 1024),
        "head_epochs": 0 if is_language or config.budget else 1,
        "label_smoothing": 0.0 if is_language else 0.1,
    }
    if config.student_of is not None:  # names the run folder
        recipe["model"] = f"student_of_{Path(config.student_of).name}"
    chosen = {k: v for k, v in recipe.items() if getattr(config, k) is None or k == "model"}
    config = replace(config, **chosen)
    if is_language:
        stride = config.stride or max(1, config.max_length // 2)
        train_stride = config.train_stride or config.max_length
        if max(stride, train_stride) > config.max_length:
            raise ValueError(
                f"--stride {stride}, --train_stride {train_stride}: above --max_length "
                f"{config.max_length} some tokens would never be in a window"
            )
        config = replace(config, stride=stride, train_stride=train_stride)
        refuse(config, ("crop",), "windows of a language model leave nothing out")
    else:
        names = ("stride", "train_stride", "detokenize")
        refuse(config, names, "it is for language modelling, and --task is classification")
    if not config.head_epochs:
        names = ("head_lr", "cache_features")
        refuse(config, names, "it is for phase 1, and --head_epochs is 0")
    elif config.budget is not None:
        raise ValueError("--budget is for one phase: use --head_epochs 0")
    elif config.selection.name != "uniform":
        raise ValueError("--selection.name chooses by losses of the whole model: --head_epochs 0")
    return config


class Phases(Training):
    """The experiment around the script's loop; a task adds rows, loss and figures."""

    classes: Sequence[str] | None = None  # None: language modelling
    # makes the training data what the head alone reads; with_recipe allows no phase 1 elsewhere
    begin_phase_1: Callable[[core.State], None]

    def __init__(self, config: Any, world: core.World):
        self.config, self.world = config, world
        rows, self.facts = self.load_rows()  # before what is slow to import
        wanted = config.student_of or config.size or config.model
        self.source = pretrained.weights_folder(wanted, config.weights)
        self.model_config = causal.load_config(self.source, config.init)
        self.precision, self.attention = pretrained.choose_kernels(config, world, self.model_config)
        self.tokenizer = causal.load_tokenizer(
            self.source, config.init, self.model_config, world.say
        )
        self.teacher: nn.Module | None = None
        self.phase, self.entered = 2, 0  # entered: the phase that the model is prepared for
        self.load_data(rows)

    @abc.abstractmethod
    def load_rows(self) -> tuple[list, dict[str, Any]]:
        """The rows to use, and facts about them for the record."""

    @abc.abstractmethod
    def load_data(self, rows: list) -> None:
        """The rows of all parts, as tokens."""

    @abc.abstractmethod
    def baseline(self, state: core.State) -> Result:
        """The test figures of the untrained model; nothing is chosen by them.

        A classifier's head is fresh, a language model as it was loaded.
        """

    @abc.abstractmethod
    def some_texts(self, count: int) -> list[str]:
        """The first texts of the test part."""

    def choose_rows(self, rows: list, fingerprint: str) -> tuple[list, dict[str, Any]]:
        """The rows to use, and facts about them for the record."""
        config = self.config
        rows, facts = choose_rows(rows, fingerprint, config.limit, config.train_frac)
        sizes = count_splits(rows, config.task)
        self.world.say(f"data: {config.task} from {config.data or 'its own source'}: {sizes}")
        return rows, facts

    # -- model

    def load_model(self) -> nn.Module:
        """The model to train; with --student_of it is made from a teacher, which may then teach."""
        config = self.config
        model = causal.load_model(
            self.source,
            self.model_config,
            self.classes,
            config.init,
            self.attention,
            core.mix_seed(seed_of(config, "init"), 4),
            self.tokenizer,
            self.world.say,
        )
        if config.student_of is not None:
            teacher, model = model, causal.build_student(model)
            if config.distill_weight:
                if self.classes is not None:
                    self.check_teacher()
                self.teacher = teacher.requires_grad_(False).eval().to(self.world.device)
            sizes = [sum(p.numel() for p in m.parameters()) for m in (teacher, model)]
            self.world.say(f"student: {sizes[1]:,} of the teacher's {sizes[0]:,} parameters")
        if config.dropout is not None:
            set_dropout(model, config.dropout)
        return model

    def check_teacher(self) -> None:
        """ValueError unless the teacher's own head answers with the same classes."""
        teacher_classes = [
            self.model_config.id2label[k] for k in sorted(self.model_config.id2label)
        ]
        kinds = self.model_config.architectures or []
        if not any("Classification" in kind for kind in kinds) or teacher_classes != list(
            self.classes
        ):
            raise ValueError(
                f"--distill_weight: {self.config.student_of} is no classifier of "
                f"{', '.join(self.classes[:8])}; fine-tune the teacher first and name its run"
            )

    @property
    def head_dropout(self) -> float:
        return 0.1 if self.config.dropout is None else self.config.dropout

    def build_state(self, model: nn.Module) -> core.State:
        """Optimizer, loader and the schedules of both phases, on the device.

        Phase 1 is the first --head_epochs passes; the optimizer is one for both, so that the
        head's moments carry over.
        """
        config, world = self.config, self.world
        place(model, world)
        if config.compile:
            compile_model(model if causal.is_encoder(model.config) else model.base_model)
        rates = causal.rates_by_depth(config.lr, config.lr_factors)
        groups = parameter_groups(causal.parts_of(model), rates, config.weight_decay)
        passes = replace(config, epochs=config.epochs + config.head_epochs)
        loader = core.TrainLoader(self.train, passes, world)
        self.steps_per_epoch = loader.steps_per_epoch
        self.phase_2_step = config.head_epochs * loader.steps_per_epoch
        schedule = self.build_schedule(loader.total_steps) if self.phase_2_step else None
        state = build_state(self, model, groups, loader=loader, schedule=schedule)
        self.peaks = [group["peak_lr"] for group in state.optimizer.param_groups]
        return state

    def build_schedule(self, total: int) -> Callable[[float], float]:
        """Each phase warms up and decays over its own steps."""
        first = self.phase_2_step
        of_phase_1 = schedule_of(self.config, first)
        of_phase_2 = schedule_of(self.config, total - first)

        def factor(fraction: float) -> float:
            step = round(fraction * total)
            if step < first:
                return of_phase_1(step / first)
            return of_phase_2((step - first) / (total - first))

        return factor

    # -- phases

    @property
    def learning(self) -> int:
        """The blocks begin to learn in phase 2."""
        return 1 if self.phase == 1 else self.depth

    def begin_step(self, state: core.State) -> bool:
        """Freeze or free what the phase of the next step says; False after a signal."""
        self.phase = 1 if state.loader.position < self.phase_2_step else 2
        if self.entered == self.phase:
            return True
        if self.phase == 1:
            try:
                self.begin_phase_1(state)
            except core.Stopped:
                return False
        elif self.phase_2_step and self.entered == 1:
            self.world.say(f"step {state.step + 1}: phase 2, all of the model learns")
        model, head_lr = state.model, self.config.head_lr or self.config.lr
        model.requires_grad_(self.phase == 2)
        if self.phase == 1:
            for parameter in causal.head_parameters(model):
                parameter.requires_grad_(True)
        for group, peak in zip(state.optimizer.param_groups, self.peaks, strict=True):
            in_phase_1 = head_lr if group["part"] == "head" else 0.0
            group["peak_lr"] = in_phase_1 if self.phase == 1 else peak
        self.entered = self.phase
        return True

    # -- attention maps

    def attention_maps(self, state: core.State) -> dict[str, str]:
        """Attention maps of a few test texts, as a file for the page. Not having them stops
        nothing."""
        if self.world.rank != 0 or not self.config.attention_texts:
            return {}
        model = state.model
        layers = attention.some_layers(model.config.num_hidden_layers)
        try:
            maps = [
                (text, *attention.attention_maps(model, self.tokenizer, text, layers))
                for text in self.some_texts(self.config.attention_texts)
            ]
        except (ValueError, AttributeError) as error:
            self.world.say(f"note: no attention maps ({error})")
            return {}
        return {"analysis/attention.jsonl": attention.maps_text(maps)}

    # -- weights

    def export(self, state: core.State, folder: Path) -> None:
        """A folder for AutoModelForSequenceClassification or AutoModelForCausalLM."""
        generation.own_decoding(state.model, self.tokenizer)
        pretrained.save_weights(state.model, folder, self.tokenizer)

    def restore(self, state: core.State, folder: Path) -> None:
        pretrained.restore_weights(state.model, folder)
