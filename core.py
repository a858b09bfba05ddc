"""What all of ablate's training scripts share, in the order in which a run uses it.

device · distributed · data loading · pair head · steps · checkpoints

    with core.distributed(config) as world, runs.Run(config, world) as run:
        experiment = …                                  # data, loss, figures (experiments/)
        state = experiment.build_state(model)           # a State: model, optimizer, loader, clock
        run.resume(state, experiment)
        while not run.done(state):
            stats = core.train_step(state, experiment.loss_sum)    # one update over all ranks
            run.after_step(state, stats)                # log, evaluate, save, signals
        run.finish(state, experiment)

Core knows no experiment and no architecture: it is handed a model, data with `lengths`, `tokens`
and `collate(rows, epoch)`, and a function that returns a sum of losses. Below it are settings.py,
device.py (what the machine offers) and files.py (files that are whole or not there).
"""

import atexit
import contextlib
import dataclasses
import datetime
import gc
import importlib.metadata
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import console

console.doing("loading torch")  # a sign of life: it takes seconds
# Loading makes millions of objects that stay; a collector that looks at them takes a fifteenth of
# the time to the first step: loaded() sets it back. At the end of the process it would look at all
# of them again, for a second or two.
COLLECTOR, WHILE_LOADING = gc.get_threshold(), (10_000_000, 10, 10)
gc.set_threshold(*WHILE_LOADING)
atexit.register(gc.freeze)

import numpy as np
import torch
import torch.distributed as dist

# Its functions take the process group of the moment of import as a default. Imported later (the
# first AdamW does that) they would hold the group, whose threads then outlive Python and abort.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import saving
from collating import Batches
from dealing import cut_micro_batches, deal, join_neighbours, mix_seed
from device import (
    LossScale,
    Machine,
    autocast,
    bound_kernel_caches,
    choose_backend,
    choose_device,
    device_name,
    free_memory,
    ipex_matches,
    is_out_of_memory,
    keep_freed_memory,
    look_at_machine,
    machine_warnings,
    moved_ahead,
    of_workers,
    pins,
    seed_everything,
    sum_dtype,
    to_device,
    update_parameters,
)
from gradients import GradientSums
from sending import filled, outline, send_each
from settings import Settings, seed_of

IGNORE_INDEX = -100
REDUCE_DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # None: the gradients' own
T = TypeVar("T")

MEETING = datetime.timedelta(minutes=10)  # for all processes to start
COLLECTIVE = datetime.timedelta(minutes=30)  # from the first rank in it to the last

# ------------------------------------------------------------------------- distributed


@dataclass
class World:
    """The processes of a run. Every collective is called by all ranks alike."""

    device: torch.device
    machine: Machine
    backend: str = "gloo"
    rank: int = 0
    local_rank: int = 0
    size: int = 1
    sharded: bool = False  # each rank holds a part of the model: all must compute together
    signal: str | None = None  # name of the one that asked to stop, once it has come
    store: Any = None  # where ranks leave each other word; None: collectives alone
    _waits: int = 0  # for rank 0, so far

    def stop_requested(self) -> bool:
        """Whether a signal asked to stop; in a sharded world all ask as often, and agree."""
        stop = self.signal is not None
        return self.any(stop) if self.sharded else stop

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place, of a tensor of any shape on `device`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def gather_rows(self, rows: list) -> list:
        """The rows of all ranks, in rank order, on every rank."""
        if self.size == 1:
            return rows
        parts: list = [None] * self.size
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value (any picklable object) on every rank, however long it takes to have it."""
        if self.size == 1:
            return value
        self._await_rank_0()
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def state_from_rank_0(self, saved: dict | None) -> dict | None:
        """Rank 0's state of a checkpoint on every rank, tensor by tensor: as one pickled object it
        would be in memory several times. The optimizer's are on the device, others on the host."""
        if self.size == 1:
            return saved
        large: list[Tensor] = []
        form = self.from_rank_0(outline(saved, large) if self.rank == 0 else None)
        if self.rank:
            return filled(form, self.device)
        send_each(large, self.device)
        return saved

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def on_rank_0(self, action: Callable[[], object]) -> None:
        """Rank 0 acts, and all ranks raise the error if that went wrong."""
        problem = None
        if self.rank == 0:
            try:
                action()
            except Exception as error:
                problem = error
        problem = self.from_rank_0(problem)
        if problem is not None:
            raise problem

    @contextlib.contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """Rank 0 prepares something on disk, the others then find it there; they fail where it
        fails."""
        if self.rank == 0:
            try:
                yield
            except BaseException:
                self._await_rank_0("failed")
                raise
            self._await_rank_0()
        else:
            self._await_rank_0()
            yield

    def _await_rank_0(self, word: str = "ready") -> None:
        """Through the store, which knows no timeout of collectives, and between whose answers
        signals are heard: rank 0 may read a corpus for an hour."""
        self._waits += 1
        key, pause = f"rank 0, {self._waits}", 0.001
        if self.store is None:
            return self.barrier()
        if self.rank == 0:
            self.store.set(key, word)
        while self.rank and not self.store.check([key]):  # its own wait() warns of each timeout
            time.sleep(pause)
            pause = min(0.2, 2 * pause)
        if self.rank and self.store.get(key) == b"failed":
            raise RuntimeError("rank 0 failed while the others waited for it: see its message")

    def say(self, text: str) -> None:
        """One line on the console, from rank 0, that a progress bar survives."""
        if self.rank == 0:
            console.say(text)


def single_world(asked_device: str) -> World:
    """A world of one on the best device, without a process group."""
    machine = look_at_machine()
    kind = choose_device(asked_device, machine)
    return World(torch.device(kind, 0) if kind in ("cuda", "xpu") else torch.device(kind), machine)


def loaded() -> None:
    """The model is there: what was loaded is set aside, and the collector works as ever."""
    if gc.get_threshold() == WHILE_LOADING:
        gc.freeze()
        gc.set_threshold(*COLLECTOR)


def say_device(world: World, precision: str, attention: str) -> None:
    """What was chosen, in one line."""
    for warning in machine_warnings(world.machine, world.device.type):
        world.say(warning)
    device = f"{world.device.type}, {device_name(world.device)}"
    ipex = f" · ipex {world.machine.ipex}" if ipex_matches(world.machine) else ""
    processes = f"{world.size} processes ({world.backend})" if world.size > 1 else "1 process"
    world.say(
        f"device: {device} · {processes} · {precision} · {attention} attention · "
        f"{torch.get_num_threads()} threads a process · torch {torch.__version__}{ipex}"
    )


@contextlib.contextmanager
def distributed(config: Settings) -> Iterator[World]:
    """The process group of a torchrun launch (or a world of one). After an error it is left as it
    is, for closing it can wait for ranks that wait for this one: the process's end tells them."""
    machine = look_at_machine()
    kind = choose_device(config.device, machine)
    rank, local_rank, size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
    )
    if kind in ("cuda", "xpu"):
        count = getattr(machine, kind)
        if local_rank >= count:
            raise ValueError(f"local rank {local_rank}, but only {count} {kind} device(s) here")
        device = torch.device(kind, local_rank)
        getattr(torch, kind).set_device(device)
    else:
        device = torch.device(kind)
    if kind == "cpu":
        keep_freed_memory()
        bound_kernel_caches()
    if kind == "xpu" and ipex_matches(machine):
        importlib.import_module("intel_extension_for_pytorch")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers reads it for flash-attn 2
        torch.use_deterministic_algorithms(True)
    backend = choose_backend(config.backend, kind, machine)
    if size > 1 and backend == "gloo" and kind in ("xpu", "mps"):
        raise ValueError(
            f"{size} processes on {kind}: gloo does not carry its tensors; start one process, "
            "or use --device cpu" + (" (or a torch with xccl)" if kind == "xpu" else "")
        )
    world = World(device, machine, backend, rank, local_rank, size)
    if size > 1:
        world.store = _meet(rank, size)
        group = dist.PrefixStore("group", world.store)
        options = {"store": group, "rank": rank, "world_size": size, "timeout": COLLECTIVE}
        if kind in ("cuda", "xpu"):
            options["device_id"] = device  # NCCL then connects at once, and reports what fails
        dist.init_process_group(world.backend, **options)
    yield world
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(rank: int, size: int) -> Any:
    """Where the processes of a job find each other.

    torchrun's store outlives a restart (torch 2.13) and still has the addresses of the dead
    processes under the same names. Several machines count their restarts apart: there,
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun gives each restart a store of its own.
    """
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=MEETING))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        restart = "0"
    return dist.PrefixStore(f"restart_{restart}", store)


def broadcast_parameters(model: nn.Module, world: World) -> None:
    """Rank 0's parameters and buffers on all ranks."""
    if world.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


# ------------------------------------------------------------------------ data loading


@dataclass
class Work:
    """One rank's part of a global batch. `micro_batches`: (index in the batch, rows or tensors)."""

    position: int
    epoch: int
    micro_batches: list[tuple[int, Any]]
    examples: int
    tokens: int
    sizes: list[int] = field(default_factory=list)  # rows of every micro-batch, of all ranks

    def pin_memory(self) -> "Work":
        """Called by the DataLoader where device.pins: there a thread has the time."""
        parts = [(i, {k: t.pin_memory() for k, t in b.items()}) for i, b in self.micro_batches]
        return dataclasses.replace(self, micro_batches=parts)


class StepSampler(DistributedSampler):
    """Global batches without padding or repeats, the same at every world size.

    torch's DistributedSampler repeats rows until all ranks have as many. Here the batch at a
    position is drawn from (seed, epoch) alone, sorted by length, cut into micro-batches, and
    only then dealt to ranks by tokens; a rank may get none. Batch number p holds rows
    [p·batch, (p+1)·batch) of the endless sequence of epochs; an epoch's last batch is smaller.
    """

    def __init__(self, data: Any, config: Settings, world: World, micro_batch: int):
        super().__init__(
            data.lengths, world.size, world.rank, shuffle=True, seed=seed_of(config, "order")
        )
        self.lengths, self.tokens = np.asarray(data.lengths), np.asarray(data.tokens)
        self.batch, self.micro_batch = config.batch, micro_batch
        self.group_by_length, self.sharded = config.group_by_length, world.sharded
        self.start = self.join_tokens = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.lengths) / self.batch)

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in training order."""
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.PCG64(mix_seed(self.seed, epoch, 1)))
            rows = generator.permutation(len(self.lengths))
            if self.group_by_length:  # sort inside stretches of 50 batches, shuffle the batches
                stretch = 50 * self.batch
                rows = np.concatenate(
                    [
                        part[np.argsort(-self.lengths[part], kind="stable")]
                        for part in np.split(rows, range(stretch, len(rows), stretch))
                    ]
                )
                full = len(rows) // self.batch * self.batch
                batches = generator.permutation(rows[:full].reshape(-1, self.batch))
                rows = np.concatenate([batches.reshape(-1), rows[full:]])
            self._order = (epoch, rows)
        return self._order[1]

    def global_batch(self, position: int) -> tuple[int, list[np.ndarray]]:
        """(epoch, all micro-batches of the batch): a function of data, seed and position."""
        epoch, step = divmod(position, len(self))
        rows = self.order(epoch)[step * self.batch : (step + 1) * self.batch]
        return epoch, cut_micro_batches(rows, self.lengths, self.micro_batch)

    def __iter__(self) -> Iterator[Work]:
        position = self.start
        while True:
            epoch, parts = self.global_batch(position)
            self.set_epoch(epoch)
            costs = [len(part) * int(self.lengths[part].max()) for part in parts]
            hands = deal(costs, self.num_replicas)
            rows = np.concatenate(parts)
            mine = [(index, parts[index]) for index in hands[self.rank]]
            if self.join_tokens:
                mine = join_neighbours(mine, self.lengths, self.join_tokens)
            if self.sharded:  # without rows, where others have more to do
                blanks = max(map(len, hands)) - len(mine)
                mine += [(len(parts) + number, rows[:0]) for number in range(blanks)]
            yield Work(
                position,
                epoch,
                mine,
                len(rows),
                int(self.tokens[rows].sum()),
                [len(part) for part in parts],
            )
            position += 1


class _Collator:
    """Turns the rows of a Work into tensors, here or in a loader worker."""

    def __init__(self, data: Any):
        self.data = data

    def __getitem__(self, work: Work) -> Work:
        parts = [(index, self.data.collate(rows, work.epoch)) for index, rows in work.micro_batches]
        return dataclasses.replace(work, micro_batches=parts)


class TrainLoader:
    """This rank's work, batch after batch, from any position on.

    data: has `lengths` and `tokens` (rows,) and `collate(rows, epoch) -> dict of tensors`;
    whatever collate draws at random must come from (seed, row, epoch).
    """

    def __init__(self, data: Any, config: Settings, world: World):
        if len(data.lengths) == 0:
            raise ValueError("there are no training rows")
        self.data, self.config, self.world = data, config, world
        self.micro_batch = config.micro_batch or math.ceil(config.batch / 4)
        self.join_tokens = 0  # of neighbouring micro-batches that are computed together
        self.position = 0
        self.waited_seconds = 0.0  # for batches, in this process
        self._batches: Iterator[Work] | None = None
        busy = math.ceil(min(config.batch, len(data.lengths)) / self.micro_batch)
        if busy < world.size:
            world.say(
                f"note: {busy} micro-batches a step for {world.size} processes: "
                f"{world.size - busy} will idle; a smaller --micro_batch gives work to more"
            )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.lengths) / self.config.batch)

    @property
    def total_steps(self) -> int:
        """Of --epochs passes."""
        # rounded first: 1.1 · 10 is 11.000000000000002
        return math.ceil(round(self.config.epochs * self.steps_per_epoch, 6))

    def seek(self, position: int) -> None:
        """Continue with the batch at `position`."""
        self.position, self._batches = position, None

    def next(self) -> Work:
        started = time.perf_counter()
        if self._batches is None:
            sampler = StepSampler(self.data, self.config, self.world, self.micro_batch)
            sampler.start, sampler.join_tokens = self.position, self.join_tokens
            self._batches = iter(
                DataLoader(
                    _Collator(self.data),
                    sampler=sampler,
                    batch_size=None,
                    collate_fn=_identity,
                    pin_memory=pins(self.world.device),
                    **of_workers(self.config.workers),
                    generator=torch.Generator().manual_seed(0),
                )
            )
        work = next(self._batches)
        self.position = work.position + 1
        self.waited_seconds += time.perf_counter() - started
        return work

    def halve(self) -> str:
        """Out of memory: micro-batches of half the size, from the last batch on; says so."""
        if self.join_tokens:
            self.join_tokens = self.join_tokens // 2 if self.join_tokens > 512 else 0
            self.seek(self.position - 1)
            return f"micro-batches of {self.join_tokens or 'no'} tokens together from here on"
        if self.micro_batch == 1:
            raise RuntimeError(
                "out of memory with one row a forward pass: use a smaller --max_length or model"
            )
        self.micro_batch = math.ceil(self.micro_batch / 2)
        self.seek(self.position - 1)
        return (
            f"micro-batches of {self.micro_batch} from here on (the batch stays "
            f"{self.config.batch})"
        )


def _identity(work: Work) -> Work:
    return work


def evaluation_parts(lengths: np.ndarray, rows_each: int, world: World) -> list[np.ndarray]:
    """This rank's rows, batch by batch: every row once over all ranks, the same at any size.

    In a sharded world the ranks get as many batches each, the last ones of some without rows.
    """
    if len(lengths) == 0:
        return []
    lengths = np.asarray(lengths)
    parts = cut_micro_batches(np.arange(len(lengths)), lengths, rows_each)
    costs = [len(part) * int(lengths[part].max()) for part in parts]
    hands = deal(costs, world.size)
    mine = [parts[index] for index in hands[world.rank]]
    if world.sharded:
        mine += [parts[0][:0]] * (max(map(len, hands)) - len(mine))
    return mine


def evaluation_batches(
    data: Any, rows_each: int, world: World, workers: int = 0
) -> Iterator[tuple[np.ndarray, Any]]:
    """The (rows, tensors) of evaluation_parts."""
    parts = evaluation_parts(data.lengths, rows_each, world)
    batches = Batches(data, min(workers, len(parts) // 2), world.device)
    yield from zip(parts, batches.of([(rows, None) for rows in parts]), strict=True)


class Stopped(Exception):
    """A signal asked the run to stop while it evaluated."""


def with_rows_that_fit(state: Any, compute: Callable[[int], T], rows_each: int) -> T:
    """compute(rows of a forward pass) without gradients, this rank's part, which calls no other
    rank; again with half the rows on all ranks where memory ran out on one.

    The halving stays for all evaluations that follow. Raises Stopped on all ranks after a signal.
    """
    world = state.world
    while True:
        halvings = getattr(state, "evaluation_halvings", 0)
        rows = max(1, rows_each >> halvings)
        with out_of_memory_caught(world) as caught:
            result = compute(rows)
        if caught:
            free_memory(world.device)
        flags = torch.tensor([float(bool(caught)), float(world.stop_requested())])
        flags = flags.to(world.device, non_blocking=True)
        out_of_memory, stop = world.sum(flags).tolist()
        if stop:
            raise Stopped
        if not out_of_memory:
            return result
        if rows == 1:
            raise RuntimeError(
                "out of memory in an evaluation, with one row a forward pass: use a smaller "
                "--max_length or model"
            )
        state.evaluation_halvings = halvings + 1
        world.say(f"evaluation: out of memory; {rows // 2} rows a forward pass from here on")


@torch.no_grad()
def evaluate_rows(
    state: "State", data: Any, outputs: Callable[[nn.Module, dict], Tensor], rows_each: int = 64
) -> np.ndarray:
    """`outputs(model, batch)` (rows, …) for every row of `data`, float32, in row order.

    Each row is computed once, on one rank. Raises Stopped on all ranks after a signal.
    """
    world, model = state.world, state.model
    training, workers = model.training, getattr(state, "workers", 0)

    def compute(rows_each: int) -> list[tuple[np.ndarray, np.ndarray]]:
        mine = []
        for rows, batch in evaluation_batches(data, rows_each, world, workers):
            if world.stop_requested():
                break
            with state.autocast():
                values = outputs(model, to_device(batch, world.device))
            mine.append((rows, values.float().cpu().numpy()[: len(rows)]))
        return mine

    model.eval()
    try:
        everything = world.gather_rows(with_rows_that_fit(state, compute, rows_each))
    finally:
        model.train(training)
    rows = np.concatenate([part[0] for part in everything])
    values = np.concatenate([part[1] for part in everything])
    assert np.array_equal(np.sort(rows), np.arange(len(data.lengths))), "a row was missed"
    return values[np.argsort(rows)]


# --------------------------------------------------------------------------- pair head


class ConcatHead(nn.Module):
    """[a; b] → Linear → tanh → dropout → Linear: a, b (batch, hidden) → logits (batch, classes)."""

    def __init__(self, hidden: int, classes: int = 3, dropout: float = 0.1):
        super().__init__()
        self.dense = nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.tanh(self.dense(torch.cat([a, b], dim=-1)))
        return self.out(self.dropout(joined))


class PairClassifier(nn.Module):
    """Both answers through one encoder in one pass; their first tokens joined by a head."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def first_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None, **more: Tensor
    ) -> Tensor:
        """input_ids, attention_mask (sequences, seq) → (sequences, hidden); None: no padding. more:
        token_type_ids."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **more)
        return hidden.last_hidden_state[:, 0]

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, attention_mask (2·batch, seq), the A sides first → a, b (batch, hidden)."""
        a, b = self.first_tokens(input_ids, attention_mask).chunk(2)
        return a, b

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(*self.embed(input_ids, attention_mask))


# ------------------------------------------------------------------------------- steps


class StepClock:
    """Time measured in optimizer updates. Whatever has fraction and done can take its place."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self.steps = 0

    @property
    def fraction(self) -> float:
        return self.steps / max(1, self.total_steps)

    @property
    def done(self) -> bool:
        return self.steps >= self.total_steps

    def after_update(self) -> None:
        self.steps += 1

    def state_dict(self) -> dict:
        return {"steps": self.steps}

    def load_state_dict(self, saved: dict) -> None:
        self.steps = saved["steps"]


def module_of(parameter: str) -> str:
    """The module that a parameter belongs to: dense for head.dense.weight."""
    return parameter.split(".")[-2] if "." in parameter else parameter


@dataclass
class State:
    """All that changes while a run trains, and what a step needs to change it.

    schedule: maps clock.fraction to a factor on each group's peak_lr.
    extras: further parts of the run with state_dict / load_state_dict, by name.
    average: of the weights, updated after each step; its state is kept as extras["average"].
    evaluation_due: asked after each step; None: --eval_every, and the end.
    before_update: called ahead of each step; False where a signal cut it off. charge: called after
    it, for a clock that counts work.
    kept: the part of the model that checkpoints hold, where the rest never changes and is loaded
    anew; None: all of it. layer_of: the name in the log for a parameter's name. in_use: the
    parameters that the next step can move, on all ranks the same; None: all that are trained.
    """

    config: Settings
    world: World
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    clock: Any
    schedule: Callable[[float], float]
    precision: str = "fp32"
    extras: dict[str, Any] = field(default_factory=dict)
    average: Any = None
    evaluation_due: Callable[[], bool] | None = None
    before_update: "Callable[[State], bool] | None" = None
    charge: "Callable[[State, Work], None] | None" = None
    kept: nn.Module | None = None
    layer_of: Callable[[str], str] = module_of
    in_use: Callable[[], Iterable[nn.Parameter]] | None = None
    step: int = 0
    examples: int = 0
    tokens: int = 0
    best: float = math.inf
    last_val_loss: float = math.inf
    best_step: int = 0
    bad_evaluations: int = 0
    evaluation_pending: bool = False
    evaluation_halvings: int = 0  # of the rows of a forward pass, as memory ran out
    seconds: float = 0.0
    skipped_steps: int = 0

    NUMBERS = (
        "step",
        "examples",
        "tokens",
        "best",
        "best_step",
        "last_val_loss",
        "bad_evaluations",
        "evaluation_pending",
        "evaluation_halvings",
        "seconds",
        "skipped_steps",
    )

    LOADER = ("position", "micro_batch", "join_tokens")  # of the loader

    def __post_init__(self) -> None:
        self.kept = self.model if self.kept is None else self.kept
        if self.average is not None:
            self.extras["average"] = self.average
        trained = {id(p): n for n, p in self.model.named_parameters() if p.requires_grad}
        grouped = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        if sorted(grouped) != sorted(trained):
            names = {id(p): name for name, p in self.model.named_parameters()}
            missing = [name for key, name in trained.items() if key not in grouped]
            others = [names.get(key, "not in the model") for key in grouped if key not in trained]
            raise ValueError(
                "every trainable parameter must be in one optimizer group, and no other; "
                f"left out: {missing[:5]}, not trainable: {others[:5]}"
            )
        for number, group in enumerate(self.optimizer.param_groups):
            if not group["params"]:
                raise ValueError(f"optimizer group {group.get('part', number)} has no parameters")
            group.setdefault("peak_lr", group["lr"])
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.layers = {key: self.layer_of(name) for key, name in trained.items()}
        self.sum_dtype = sum_dtype(self.world.device.type, self.world.machine)
        self.gradient_sums = GradientSums(REDUCE_DTYPES[self.config.reduce_dtype])
        self.scaler = LossScale(self.precision == "fp16")

    @property
    def workers(self) -> int:
        return self.config.workers

    def autocast(self) -> Any:
        return autocast(self.world.device, self.precision)

    def collect(self) -> None:
        """All ranks call it before rank 0 writes, which needs a sharded model whole."""

    def host_copies(self) -> list[Tensor]:
        """What of a checkpoint lies on the host already, unchanged until the next collect()."""
        return []

    def share(self) -> None:
        """After rank 0 has read: its weights on all ranks, which all call this."""
        broadcast_parameters(self.model, self.world)

    def after_update(self, work: Work, finite: bool) -> None:
        """Count an update that was made, or skipped as its gradient was not finite."""
        self.skipped_steps = 0 if finite else self.skipped_steps + 1
        self.scaler.update(finite)
        self.optimizer.zero_grad()
        self.step += 1
        self.examples += work.examples
        self.tokens += work.tokens
        self.clock.after_update()
        if self.charge is not None:
            self.charge(self, work)
        if self.average is not None:
            self.average.update(self.clock.fraction)

    def summed_parameters(self) -> Iterable[nn.Parameter]:
        """Those whose gradients are summed over ranks after the next backward passes, in the
        model's order; none in a world of one, and none where FSDP sums."""
        if self.world.size == 1 or self.world.sharded:
            return []
        every = self.model.parameters() if self.in_use is None else self.in_use()
        return [parameter for parameter in every if parameter.requires_grad]

    def averaged(self) -> contextlib.AbstractContextManager:
        """The model computes with the average of its weights inside, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def state_dict(self) -> dict:
        """Everything but the weights, as tensors and plain Python values."""
        return {
            "numbers": {name: getattr(self, name) for name in self.NUMBERS},
            "optimizer": self.optimizer.state_dict(),
            "clock": self.clock.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": {n: getattr(self.loader, n) for n in self.LOADER},
            "extras": {name: part.state_dict() for name, part in self.extras.items()},
        }

    def load_state_dict(self, saved: dict) -> None:
        for name, value in saved["numbers"].items():
            setattr(self, name, value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.clock.load_state_dict(saved["clock"])
        if saved["scaler"]:  # empty where the session before computed in fp32 or bf16
            self.scaler.load_state_dict(saved["scaler"])
        for name in self.LOADER:  # of older runs not all
            setattr(self.loader, name, saved["loader"].get(name, getattr(self.loader, name)))
        self.loader.seek(saved["loader"]["position"])
        for name, part in self.extras.items():
            part.load_state_dict(saved["extras"][name])


LossSum = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, int | Tensor]]
BeforeMicroBatch = Callable[[int, int], None]


def sum_gradients(
    state: State,
    loader: TrainLoader,
    loss_sum: LossSum,
    before_micro_batch: BeforeMicroBatch | None = None,
) -> tuple[Work, float, float, list[nn.Parameter]] | None:
    """The loader's next global batch, backward, gradients summed over ranks.

    Returns (work, loss sum, targets, parameters that have a gradient): the gradients of the loss
    sum times scaler.value / config.batch. None when a signal cut it off; the loader then
    stands before that batch.
    """
    world, batch_size, over_ranks = state.world, state.config.batch, state.gradient_sums
    while True:
        work = loader.next()
        train_but_frozen(state.model)  # behind next(), which may have scored rows
        over_ranks.start(state.summed_parameters())
        # summed where they are computed: reading each one would wait for the device
        sums = torch.zeros(2, dtype=state.sum_dtype, device=world.device)
        out_of_memory = cut_off = False
        batches = moved_ahead([batch for _, batch in work.micro_batches], world.device)
        for number, (index, _) in enumerate(work.micro_batches, start=1):
            if cut_off := world.stop_requested():
                break
            seed_everything(
                mix_seed(seed_of(state.config, "masks"), work.position, index, 2), world.device
            )
            if before_micro_batch is not None:
                before_micro_batch(work.position, index)
            with out_of_memory_caught(world) as caught:
                with state.autocast():
                    loss, targets = loss_sum(state.model, next(batches))
                if number == len(work.micro_batches):
                    over_ranks.begin(loss)
                # dividing by a constant keeps fp16 gradients in range; the sums put it right
                state.scaler.scale(loss / batch_size).backward()
                sums[0] += loss.detach()
                sums[1] += targets
            if out_of_memory := bool(caught):
                loss = batches = None  # they hold the tensors of the failed step
                free_memory(world.device)
                break
        over_ranks.flush(world.device, blank=cut_off or out_of_memory)
        losses, targets, out_of_memory, stop, *present = _agree(state, sums, out_of_memory)
        over_ranks.wait()
        if stop or out_of_memory:
            state.optimizer.zero_grad()
        if stop:
            loader.seek(work.position)
            return None
        if not out_of_memory:
            break
        world.say(f"step {state.step + 1}: out of memory; {loader.halve()}")
    if targets == 0:
        raise ValueError(f"step {state.step + 1}: no row of the batch has a target")
    # a layer that no rank ran keeps no gradient, so that the optimizer leaves it alone
    active = [p for p, ranks in zip(state.parameters, present, strict=True) if ranks]
    for parameter, ranks in zip(state.parameters, present, strict=True):
        if not ranks:
            parameter.grad = None
    return work, losses, targets, active


def train_step(
    state: State, loss_sum: LossSum, before_micro_batch: BeforeMicroBatch | None = None
) -> dict[str, Any] | None:
    """One optimizer update from one global batch; None when a signal cut it off.

    loss_sum(model, batch) returns (sum of the losses of the micro-batch's targets, their number).
    The gradient is that of Σ loss / Σ targets over all micro-batches and ranks: not the mean
    of means, which weighs rows by the company they are in.
    before_micro_batch(position of the global batch, index in it) is called ahead of each.
    """
    config, optimizer, scaler = state.config, state.optimizer, state.scaler
    if state.before_update is not None and not state.before_update(state):
        return None
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * state.schedule(state.clock.fraction)
    summed = sum_gradients(state, state.loader, loss_sum, before_micro_batch)
    if summed is None:
        return None
    work, losses, targets, active = summed
    gradients = [p.grad for p in active]
    scale = config.batch / (targets * scaler.value)  # of Σ loss / Σ targets
    norm, norms = gradient_norms(gradients, [state.layers[id(p)] for p in active], scale)
    finite = math.isfinite(norm) and math.isfinite(losses)  # both of sums: equal on all ranks
    clip = 1.0
    if config.max_grad_norm is not None:
        clip = min(1.0, config.max_grad_norm / (norm + 1e-6))
    if finite:
        torch._foreach_mul_(gradients, scale * clip)
        update_parameters(optimizer, active, state.world.device)
    state.after_update(work, finite)
    return {
        "epoch": state.loader.position / state.loader.steps_per_epoch,
        "train_loss": losses / targets,
        **learning_rates(optimizer),
        "grad_norm": norm,
        "grad_norms": norms,
        "work": work,
    }


def train_but_frozen(module: nn.Module) -> bool | None:
    """Training mode, but evaluation mode for parts without a trained parameter: their
    outputs must not vary. Returns whether a parameter is trained; None where there are none.
    """
    below = [(child, train_but_frozen(child)) for child in module.children()]
    own = [p.requires_grad for p in module._parameters.values() if p is not None]  # noqa: SLF001
    trained = own + [each for _, each in below if each is not None]
    module.training = any(trained) or not trained
    if not module.training:
        for child, each in below:
            if each is None:  # a dropout inside a frozen part
                child.eval()
    return any(trained) if trained else None


@contextlib.contextmanager
def out_of_memory_caught(world: World) -> Iterator[list[type]]:
    """A list that is not empty afterwards if memory ran out inside; other errors pass."""
    caught: list[type] = []
    try:
        yield caught
    except Exception as error:
        if world.sharded or not is_out_of_memory(error):  # the others wait for this rank
            raise
        caught.append(type(error))  # not the error, which holds the failed step's tensors


def _agree(state: State, sums: Tensor, out_of_memory: bool) -> list[float]:
    """[losses, targets, out of memory, stop, for each parameter: has a gradient], over all ranks:
    one vector settles what all of them do next."""
    world = state.world
    flags = [float(out_of_memory), float(world.stop_requested())]
    absent = state.gradient_sums.absent  # for which .grad is the others' sum
    flags += [float(p.grad is not None and id(p) not in absent) for p in state.parameters]
    flags = torch.tensor(flags, dtype=sums.dtype).to(sums.device, non_blocking=True)
    return world.sum(torch.cat([sums, flags])).tolist()


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """lr, and lr_<part> where there are several groups."""
    groups = optimizer.param_groups
    lrs = {f"lr_{group.get('part', i)}": group["lr"] for i, group in enumerate(groups)}
    return {"lr": groups[0]["lr"], **(lrs if len(lrs) > 1 else {})}


def gradient_norms(
    gradients: list[Tensor], layers: list[str], scale: float
) -> tuple[float, dict[str, float]]:
    """L2 norm of all gradients and of each layer's, times scale; one wait for the device."""
    parts = [g.to_local() if is_sharded(g) else g for g in gradients]
    norms = torch.stack(torch._foreach_norm(parts))
    if any(map(is_sharded, gradients)):
        squared = norms.square()
        dist.all_reduce(squared)
        norms = squared.sqrt()
    index = {name: number for number, name in enumerate(dict.fromkeys(layers))}
    places = torch.tensor([index[layer] for layer in layers]).to(norms.device, non_blocking=True)
    squares = norms.new_zeros(len(index)).index_add_(0, places, norms.square())
    total, *each = torch.cat([torch.linalg.vector_norm(norms)[None], squares.sqrt()]).tolist()
    return total * scale, {name: value * scale for name, value in zip(index, each, strict=True)}


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of it alone (torch's DTensor)."""
    return hasattr(tensor, "to_local")


# ------------------------------------------------------------------------- checkpoints


def saved_parts(state: State) -> tuple[dict[str, Tensor], dict]:
    """(weights, everything else) of a checkpoint, for saving.write_files. Rank 0 only.

    They are the state itself: saving.HostCopy takes them before the next step changes them.
    """
    return saving.distinct(state.kept.state_dict()), state.state_dict()


def read_checkpoint(state: State, folder: Path) -> dict:
    """Weights into the model; returns the rest for state.load_state_dict, on the CPU.

    pickle.UnpicklingError where state.pt holds more than tensors and plain values.
    """
    from safetensors.torch import load_model

    # on the CPU: each rank's optimizer moves the values to its own device. First only mapped: what
    # is refused must have changed no weights, and two copies of these would stand beside the rest
    where = {"map_location": "cpu", "weights_only": True}
    torch.load(folder / "state.pt", mmap=True, **where)
    load_model(state.kept, folder / "model.safetensors")
    return torch.load(folder / "state.pt", **where)
