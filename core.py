"""What all of ablate's training scripts share, in the order in which a run uses it.

device · distributed · data loading · pair head · steps · checkpoints

    with core.distributed(config) as world, runs.Run(config, world) as run:
        state = core.State(...)                     # model, optimizer, loader, schedule
        run.resume(state, evaluate)
        while not run.done(state):
            stats = core.train_step(state, loss_sum)    # one optimizer update over all ranks
            run.after_step(state, stats)                # log, evaluate, save, signals
        run.finish(state, test)

Core knows no task and no architecture: a script hands it a model, a data set with
`lengths`, `tokens` and `collate(rows, epoch)`, and a function that gives a sum of losses.
settings.py is below this file, the run folder (runs.py) above it.
"""

import contextlib
import ctypes
import dataclasses
import datetime
import errno
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# Its functions take the process group of the moment of import as a default. Imported later (the
# first AdamW does that) they would hold the group, whose threads then outlive Python and abort.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from settings import Settings

PROJECT = Path(__file__).resolve().parent
IGNORE_INDEX = -100

# ------------------------------------------------------------------------------ device


@dataclass(frozen=True)
class Machine:
    """What a machine offers. Tests build fakes; `look_at_machine` fills it in."""

    cuda: int = 0
    cuda_capability: tuple[int, int] = (0, 0)
    xpu: int = 0
    xpu_bf16: bool = True
    xpu_fp64: bool = True  # Arc A-series has none
    mps: bool = False
    flash_attn: bool = False
    ipex: str | None = None
    torch: str = "2.13.0"
    has_xccl: bool = False
    cpu_bf16: bool = False  # instructions for it; without them bf16 crawls


def look_at_machine() -> Machine:
    """Ask torch and the installed packages. With a GPU in it, torch initialises its driver."""
    cuda = torch.cuda.device_count()
    xpu = torch.xpu.device_count() if hasattr(torch, "xpu") else 0
    ipex = None
    if xpu and importlib.util.find_spec("intel_extension_for_pytorch"):
        ipex = importlib.metadata.version("intel_extension_for_pytorch")
    return Machine(
        cuda=cuda,
        cuda_capability=torch.cuda.get_device_capability(0) if cuda else (0, 0),
        xpu=xpu,
        xpu_bf16=bool(xpu) and torch.xpu.is_bf16_supported(),
        xpu_fp64=not xpu or bool(torch.xpu.get_device_properties(0).has_fp64),
        mps=torch.backends.mps.is_available(),
        flash_attn=importlib.util.find_spec("flash_attn") is not None,
        ipex=ipex,
        torch=torch.__version__,
        has_xccl=getattr(dist, "is_xccl_available", lambda: False)(),
        cpu_bf16=any(map(torch.cpu.get_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16"))),
    )


def device_name(device: torch.device) -> str:
    """Which one it is: a GPU's name; of a CPU also the instructions, which change the rounding."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_name(device)
    able = torch.cpu.get_capabilities()
    instructions = [name for name in ("avx512_bf16", "amx_bf16") if able.get(name)]
    instructions.insert(0, torch.backends.cpu.get_cpu_capability())
    return f"{able.get('cpu_name') or platform.processor()} ({', '.join(instructions)})"


def choose_device(asked: str, machine: Machine) -> str:
    """Device type: what was asked for if it is there (ValueError if not), else the best."""
    there = {"cuda": machine.cuda, "xpu": machine.xpu, "mps": machine.mps, "cpu": True}
    if asked == "auto":
        return next(name for name in ("cuda", "xpu", "mps", "cpu") if there[name])
    if not there[asked]:
        have = ", ".join(name for name in there if there[name])
        raise ValueError(f"--device {asked}: torch {machine.torch} sees none here (it has {have})")
    return asked


def choose_backend(asked: str, device: str, machine: Machine) -> str:
    """Back end of torch.distributed: nccl for CUDA, xccl for XPU, gloo for the rest."""
    if asked != "auto":
        if asked != "gloo" and asked != {"cuda": "nccl", "xpu": "xccl"}.get(device):
            raise ValueError(f"--backend {asked} does not serve {device}: use auto or gloo")
        return asked
    return {"cuda": "nccl", "xpu": "xccl" if machine.has_xccl else "gloo"}.get(device, "gloo")


def choose_precision(asked: str, device: str, machine: Machine, model_type: str = "") -> str:
    """bf16 | fp16 | fp32. DeBERTa's attention overflows in fp16, so it never gets it."""
    if "deberta" in model_type and asked == "fp16":
        raise ValueError("--precision fp16: DeBERTa's attention overflows in it: use bf16 or fp32")
    if asked != "auto":
        return asked
    if device == "cuda":
        half = "bf16" if machine.cuda_capability >= (8, 0) else "fp16"
    elif device == "xpu":
        half = "bf16" if machine.xpu_bf16 else "fp16" if machine.xpu_fp64 else "fp32"
    else:  # a CPU repeats bit for bit in fp32; MPS autocast is young: ask for it by name
        return "fp32"
    return "fp32" if half == "fp16" and "deberta" in model_type else half


def choose_attention(
    asked: str, device: str, precision: str, machine: Machine, model_type: str = ""
) -> str:
    """flash_attention_2 | sdpa | eager. Both DeBERTas have eager attention only."""
    if model_type in ("deberta", "deberta-v2"):
        if asked not in ("auto", "eager"):
            raise ValueError(f"--attention {asked}: {model_type} has eager attention only")
        return "eager"
    able = device == "cuda" and machine.flash_attn and machine.cuda_capability >= (8, 0)
    able = able and model_type not in ("budget-bert", "small-gpt")  # ours know SDPA only
    able = able and precision in ("bf16", "fp16")
    if asked == "flash_attention_2" and not able:
        raise ValueError(
            "--attention flash_attention_2 needs the flash-attn package, a CUDA device of "
            "capability 8.0 or more, and bf16 or fp16; SDPA works everywhere"
        )
    if asked != "auto":
        return asked
    return "flash_attention_2" if able else "sdpa"


def sum_dtype(device: str, machine: Machine) -> torch.dtype:
    """Of sums over many losses: float64 where the device has it."""
    has_fp64 = device != "mps" and (device != "xpu" or machine.xpu_fp64)
    return torch.float64 if has_fp64 else torch.float32


def ipex_matches(machine: Machine) -> bool:
    """intel-extension-for-pytorch fits only the torch of the same major.minor version."""
    return machine.ipex is not None and machine.ipex.split(".")[:2] == machine.torch.split(".")[:2]


def autocast(device: torch.device, precision: str) -> Any:
    """The context of a forward pass; parameters stay fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of handing them back to the system.

    Each step allocates the same activations; fresh pages for them cost a small BERT on two
    cores 10-20 % of its time. Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep up to 2 GiB at the top of the heap


def bound_kernel_caches() -> None:
    """Keep the CPU's kernels of 128 shapes instead of 1,024, before the first one is made.

    In 16 bits oneDNN makes a kernel for each shape of a product, and torch keeps what belongs to
    it in a cache of its own. Where no two batches have one shape they are of no use again: a GPT of
    1.3 M parameters on titles grew from 1 to 6 GiB, and is no faster for it.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "128")


def compile_model(model: nn.Module, dynamic: bool = False) -> None:
    """torch.compile in place (names in the state dict stay); lengths come from a ladder of 8.

    A micro-batch has one of two row counts (the last may be smaller), training and evaluation
    differ, and so does evaluation's row count: 48 shapes at most, then torch goes on eagerly.
    dynamic: once for all shapes, where there are more of them.
    """
    torch._dynamo.config.recompile_limit = 48
    model.compile(dynamic=dynamic)


def is_compiled(model: nn.Module) -> bool:
    return model._compiled_call_impl is not None


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

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place, of a tensor of any shape on `device`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all."""
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def gather_rows(self, rows: list) -> list:
        """The rows of all ranks, in rank order, on every rank."""
        if self.size == 1:
            return rows
        parts: list = [None] * self.size
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value (any picklable object) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """Rank 0 prepares something on disk, the others then find it there."""
        if self.rank != 0:
            self.barrier()
        yield
        if self.rank == 0:
            self.barrier()

    def say(self, text: str) -> None:
        """One line on the console, from rank 0, that a progress bar survives."""
        if self.rank == 0:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def single_world(asked_device: str) -> World:
    """A world of one on the best device, without a process group."""
    machine = look_at_machine()
    return World(torch.device(choose_device(asked_device, machine)), machine)


def say_device(world: World, precision: str, attention: str) -> None:
    """What was chosen, in one line."""
    device = f"{world.device.type}, {device_name(world.device)}"
    ipex = f" · ipex {world.machine.ipex}" if ipex_matches(world.machine) else ""
    processes = f"{world.size} processes ({world.backend})" if world.size > 1 else "1 process"
    world.say(
        f"device: {device} · {processes} · {precision} · {attention} attention · "
        f"{torch.get_num_threads()} threads a process · torch {torch.__version__}{ipex}"
    )


@contextlib.contextmanager
def distributed(config: Settings) -> Iterator[World]:
    """The process group of a torchrun launch (or a world of one), closed however the block ends."""
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
    try:
        if size > 1:
            # rank 0 may tokenise a large corpus while the others wait
            timeout = datetime.timedelta(hours=2)
            store = _store_of_this_restart(timeout)
            known = {} if store is None else {"store": store, "rank": rank, "world_size": size}
            dist.init_process_group(world.backend, timeout=timeout, **known)
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store_of_this_restart(timeout: datetime.timedelta) -> Any:
    """Where the processes of a job that torchrun restarted find each other; None: the default.

    torchrun's store outlives a restart (torch 2.13) and still has the addresses of the dead
    processes under the same names. Several machines count their restarts apart: there,
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun gives each restart a store of its own.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    return dist.PrefixStore(f"restart_{restart}", store)


def broadcast_parameters(model: nn.Module, world: World) -> None:
    """Rank 0's parameters and buffers on all ranks."""
    if world.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def all_reduce_gradients(
    parameters: Sequence[nn.Parameter], world: World, bucket_bytes: int = 32 << 20
) -> None:
    """Sum gradients over ranks, in buckets of about `bucket_bytes`; FSDP has done it for its own.

    A rank without a gradient (it had no micro-batch) adds zero. Call only with parameters
    that have a gradient on at least one rank: all ranks must name the same ones.
    """
    if world.size == 1 or world.sharded:
        return
    buckets: list[list[nn.Parameter]] = [[]]
    used = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        size = parameter.grad.numel() * parameter.grad.element_size()
        if buckets[-1] and used + size > bucket_bytes:
            buckets.append([])
            used = 0
        buckets[-1].append(parameter)
        used += size
    for bucket in buckets:
        if len(bucket) == 1 and bucket[0].grad.is_contiguous():
            dist.all_reduce(bucket[0].grad)  # a large matrix is its own bucket: no copy
            continue
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in bucket])
        dist.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in bucket])
        torch._foreach_copy_(
            [parameter.grad for parameter in bucket],
            [part.view_as(p) for part, p in zip(parts, bucket, strict=True)],
        )


# ------------------------------------------------------------------------ data loading


def mix_seed(*parts: int) -> int:
    """A 63-bit seed from whole numbers, by SplitMix64 (Steele, Lea, Flood 2014).

    Fixed arithmetic, so that it is the same in every process and every version of Python.
    """
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Ragged:
    """Rows of token ids of different lengths, end to end: ragged[i] is int32 (lengths[i],)."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        self.ids, self.offsets, self.lengths = ids, offsets, np.diff(offsets)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> "Ragged":
        arrays = [np.asarray(row, np.int32) for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), offsets)

    @classmethod
    def load(cls, folder: Path) -> "Ragged":
        """Memory-mapped from a folder of the token cache."""
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        if offsets[-1] == 0:  # a file of zero bytes cannot be mapped
            return cls(np.zeros(0, np.int32), offsets)
        return cls(np.memmap(folder / "ids.bin", dtype=np.int32, mode="r"), offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all ids and where rows begin."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets))
        digest.update(np.ascontiguousarray(self.ids))
        return digest.hexdigest()[:16]

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


def cache_folder() -> Path:
    """Where all that can be made again is kept: ABLATE_CACHE, else cache/ in the project."""
    return Path(os.environ.get("ABLATE_CACHE") or PROJECT / "cache")


def _tokens_are_whole(folder: Path) -> bool:
    try:
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        return (folder / "ids.bin").stat().st_size == 4 * int(offsets[-1])
    except (OSError, ValueError, IndexError, EOFError):
        return False


def cached_tokens(
    key: dict[str, Any], build: Callable[[], Iterable[Sequence[int]]], world: World
) -> Ragged:
    """Rows of token ids from the cache on disk, built once by rank 0 where they are missing.

    key: what the rows depend on (content, tokenizer, length); build: gives them one by one,
    so that memory stays bounded. The folder is ABLATE_CACHE, else cache/ in the project.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "tokens" / digest
    with world.rank_0_first():
        if not _tokens_are_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)  # what a machine that vanished left
            # process ids repeat on machines that share a volume
            beside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
            beside.mkdir(parents=True)
            try:
                lengths = [0]
                with open(beside / "ids.bin", "wb") as file:
                    for row in build():
                        file.write(np.asarray(row, np.int32).tobytes())
                        lengths.append(len(row))
                    os.fsync(file.fileno())  # a name without its bytes would outlive a lost machine
                with open(beside / "offsets.npy", "wb") as file:
                    np.save(file, np.cumsum(lengths, dtype=np.int64))
                    os.fsync(file.fileno())
                (beside / "key.json").write_text(json.dumps(key, indent=1))
                try:
                    beside.rename(folder)
                except OSError:
                    if not _tokens_are_whole(folder):  # not because another process was first
                        raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return Ragged.load(folder)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over the vocabulary, rules and special tokens: equal means equal token ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    special = json.dumps({k: str(v) for k, v in tokenizer.special_tokens_map.items()})
    return hashlib.sha256((rules + special).encode()).hexdigest()[:16]


def encode_texts(
    tokenizer: Any, texts: Iterable[str], count: int, title: str, quiet: bool = False
) -> Iterator[list[int]]:
    """Token ids of each of `count` texts, without special tokens, with a progress bar.

    1,000 texts at a time are spread over all cores by the tokeniser's own threads.
    """
    from tqdm import tqdm

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = iter(texts)
    plain = not sys.stderr.isatty()
    if plain and not quiet:
        print(f"{title} {count:,} texts", flush=True)
    with tqdm(total=count, desc=title, unit=" texts", disable=quiet or plain) as bar:
        for part in iter(lambda: list(itertools.islice(texts, 1000)), []):
            encoded = tokenizer(
                part, add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            yield from encoded["input_ids"]
            bar.update(len(part))


def ladder_length(longest: int, max_length: int, steps: int | None) -> int:
    """Length to pad to: a multiple of 8, or (steps given) one of that many lengths in all."""
    unit = 8 if steps is None else max(8, 8 * math.ceil(max_length / steps / 8))
    return min(unit * math.ceil(max(longest, 1) / unit), max(max_length, longest))


def cut_micro_batches(rows: np.ndarray, lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows sorted by length (longest first, ties by row number), cut into parts of `size`."""
    order = np.lexsort((rows, -lengths[rows]))
    return [rows[order[start : start + size]] for start in range(0, len(rows), size)]


def deal(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Item numbers for each worker: largest first, each to the least loaded one."""
    hands: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = load.index(min(load))
        hands[least].append(item)
        load[least] += costs[item]
    return [sorted(hand) for hand in hands]


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
        """Called by the DataLoader on CUDA: copies from pinned memory do not wait."""
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
        super().__init__(data.lengths, world.size, world.rank, shuffle=True, seed=config.seed)
        self.lengths, self.tokens = np.asarray(data.lengths), np.asarray(data.tokens)
        self.batch, self.micro_batch = config.batch, micro_batch
        self.group_by_length, self.sharded = config.group_by_length, world.sharded
        self.start = 0
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
            sampler.start = self.position
            self._batches = iter(
                DataLoader(
                    _Collator(self.data),
                    sampler=sampler,
                    batch_size=None,
                    collate_fn=_as_it_is,
                    num_workers=self.config.workers,
                    pin_memory=self.world.device.type == "cuda",
                    worker_init_fn=ignore_signals,
                    generator=torch.Generator().manual_seed(0),
                )
            )
        work = next(self._batches)
        self.position = work.position + 1
        self.waited_seconds += time.perf_counter() - started
        return work

    def halve(self) -> None:
        """Out of memory: micro-batches of half the size, from the last batch given on."""
        if self.micro_batch == 1:
            raise RuntimeError(
                "out of memory with one row a forward pass: use a smaller --max_length or model"
            )
        self.micro_batch = math.ceil(self.micro_batch / 2)
        self.seek(self.position - 1)


def _as_it_is(work: Work) -> Work:
    return work


def ignore_signals(worker: int) -> None:
    """The training process decides when to stop; its loader workers end with it.

    SIGTERM stays as it is: Python ends its children by it when it exits, and waits for them.
    torchrun sends its SIGTERM to the process group, which a worker therefore leaves.
    """
    os.setpgrp()
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)


def evaluation_batches(data: Any, rows_each: int, world: World) -> Iterator[tuple[np.ndarray, Any]]:
    """This rank's (rows, tensors): every row once over all ranks, batches the same at any size.

    In a sharded world the ranks get as many batches each, the last ones of some without rows.
    """
    if len(data.lengths) == 0:
        return
    lengths = np.asarray(data.lengths)
    parts = cut_micro_batches(np.arange(len(lengths)), lengths, rows_each)
    costs = [len(part) * int(lengths[part].max()) for part in parts]
    hands = deal(costs, world.size)
    mine = [parts[index] for index in hands[world.rank]]
    if world.sharded:
        mine += [parts[0][:0]] * (max(map(len, hands)) - len(mine))
    for rows in mine:
        yield rows, data.collate(rows, None)


class Stopped(Exception):
    """A signal asked the run to stop while it evaluated."""


@torch.no_grad()
def evaluate_rows(
    state: "State", data: Any, outputs: Callable[[nn.Module, dict], Tensor], rows_each: int = 64
) -> np.ndarray:
    """`outputs(model, batch)` (rows, …) for every row of `data`, float32, in row order.

    Each row is computed once, on one rank. Raises Stopped on all ranks after a signal.
    """
    world, model = state.world, state.model
    training = model.training
    model.eval()
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, batch in evaluation_batches(data, rows_each, world):
        if state.stop_requested():
            break
        with state.autocast():
            values = outputs(model, to_device(batch, world.device))
        mine.append((rows, values.float().cpu().numpy()[: len(rows)]))
    model.train(training)
    if world.any(state.stop_requested()):
        raise Stopped
    everything = world.gather_rows(mine)
    rows = np.concatenate([part[0] for part in everything])
    values = np.concatenate([part[1] for part in everything])
    assert np.array_equal(np.sort(rows), np.arange(len(data.lengths))), "a row was missed"
    return values[np.argsort(rows)]


def to_device(batch: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return batch
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


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


class SymmetricHead(nn.Module):
    """Logits (batch, 3) of A, B, tie; exchanging a and b exchanges the first two exactly.

    A network f gives (win, tie) for an ordered pair: A = win(a, b), B = win(b, a),
    tie = tie(a, b) + tie(b, a). Both orders go through f in calls of the same shape, so
    that not even rounding depends on which answer stood first. f reads
    [a; b; a − b; a · b], as sentence-pair classifiers do (Conneau et al. 2017, section 3).
    """

    def __init__(self, hidden: int, dropout: float = 0.1):
        super().__init__()
        self.dense = nn.Linear(4 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 2)

    def _ordered(self, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.tanh(self.dense(torch.cat([a, b, a - b, a * b], dim=-1)))
        return self.out(self.dropout(joined))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        ab, ba = self._ordered(a, b), self._ordered(b, a)
        return torch.stack([ab[:, 0], ba[:, 0], ab[:, 1] + ba[:, 1]], dim=-1)


class PairClassifier(nn.Module):
    """Both answers through one encoder in one pass; their first tokens joined by a head."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def first_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask (sequences, seq) → (sequences, hidden)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return hidden.last_hidden_state[:, 0]

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, attention_mask (2·batch, seq), the A sides first → a, b (batch, hidden)."""
        a, b = self.first_tokens(input_ids, attention_mask).chunk(2)
        return a, b

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(*self.embed(input_ids, attention_mask))

    def train(self, mode: bool = True) -> "PairClassifier":
        """Parts that are frozen stay in evaluation mode: what they give must not vary."""
        self.training = mode
        self.head.train(mode)
        train_but_frozen(self.encoder, mode)
        return self


def train_but_frozen(module: nn.Module, mode: bool) -> None:
    """module.train(mode), except that parts without a trained parameter go to evaluation mode."""
    trained = [p.requires_grad for p in module.parameters()]
    if trained and not any(trained):
        if module.training:  # else all below it are in evaluation mode, too
            module.eval()
        return
    module.training = mode
    for child in module.children():
        train_but_frozen(child, mode)


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


@dataclass
class State:
    """All that changes while a run trains, and what a step needs to change it.

    schedule: maps clock.fraction to a factor on each group's peak_lr. export(folder) writes
    weights that others can open, restore(folder) reads them back (rank 0 calls both).
    extras: further parts of the run with state_dict / load_state_dict, by name.
    charge(work) is called after each update, before clock.after_update(). under_way: position
    of the global batch and index of the micro-batch that loss_sum is called for. kept: the part of
    the model that checkpoints hold, where the rest never changes and is loaded anew.
    """

    config: Settings
    world: World
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    clock: Any
    schedule: Callable[[float], float]
    export: Callable[[Path], None]
    restore: Callable[[Path], None]
    precision: str = "fp32"
    extras: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    examples: int = 0
    tokens: int = 0
    best: float = math.inf
    last_val_loss: float = math.inf
    best_step: int = 0
    bad_evaluations: int = 0
    evaluation_pending: bool = False
    seconds: float = 0.0
    skipped_steps: int = 0
    stop_requested: Callable[[], bool] = lambda: False
    charge: Callable[[Work], None] = lambda work: None
    evaluation_due: Callable[[], bool] | None = None  # None: --eval_every, and the end
    under_way: tuple[int, int] = (0, 0)
    kept: nn.Module | None = None  # None: all of the model

    NUMBERS = (
        *("step", "examples", "tokens", "best", "best_step", "last_val_loss"),
        *("bad_evaluations", "evaluation_pending", "seconds", "skipped_steps"),
    )

    def __post_init__(self) -> None:
        self.kept = self.model if self.kept is None else self.kept
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
        self.layer_of = {key: layer_of(name) for key, name in trained.items()}
        enabled = self.precision == "fp16"
        if enabled and self.world.device.type == "xpu" and not self.world.machine.xpu_fp64:
            raise ValueError("--precision fp16: training in it needs float64, which this XPU lacks")
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=enabled)

    def autocast(self) -> Any:
        return autocast(self.world.device, self.precision)

    def collect(self) -> None:
        """All ranks call it before rank 0 writes, which needs a sharded model whole."""

    def share(self) -> None:
        """After rank 0 has read: its weights on all ranks, which all call this."""
        broadcast_parameters(self.model, self.world)

    def state_dict(self) -> dict:
        """Everything but the weights, as tensors and plain Python values."""
        return {
            "numbers": {name: getattr(self, name) for name in self.NUMBERS},
            "optimizer": self.optimizer.state_dict(),
            "clock": self.clock.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": {"position": self.loader.position, "micro_batch": self.loader.micro_batch},
            "extras": {name: part.state_dict() for name, part in self.extras.items()},
        }

    def load_state_dict(self, saved: dict) -> None:
        for name, value in saved["numbers"].items():
            setattr(self, name, value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.clock.load_state_dict(saved["clock"])
        if saved["scaler"]:  # empty where the session before computed in fp32 or bf16
            self.scaler.load_state_dict(saved["scaler"])
        self.loader.micro_batch = saved["loader"]["micro_batch"]
        self.loader.seek(saved["loader"]["position"])
        for name, part in self.extras.items():
            part.load_state_dict(saved["extras"][name])


def parameter_groups(
    named: dict[str, nn.Module], lrs: dict[str, float], weight_decay: float
) -> list[dict]:
    """Two optimizer groups a part (decayed; biases and norms not), each with a name, none empty.

    A vector is a bias or a norm's weight: they set scales, which decay would only distort.
    """
    groups = []
    for part, module in named.items():
        trained = [p for p in module.parameters() if p.requires_grad]
        for decay, chosen in (
            (weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if chosen:
                groups.append(
                    {"params": chosen, "lr": lrs[part], "weight_decay": decay, "part": part}
                )
    return groups


def build_optimizer(groups: list[dict], config: Settings, world: World) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused where torch has it, or SGD."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed the generators that masks come from. torch.manual_seed would cost 1 ms a call."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "xpu":
        torch.xpu.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and XPU have a class for it; a CPU, cuBLAS and Level Zero say so in a text."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("out of memory", "can't allocate memory", "out_of_device_memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in signs)


LossSum = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, int | Tensor]]


def train_step(state: State, loss_sum: LossSum) -> dict[str, float] | None:
    """One optimizer update from one global batch; None when a signal cut it off.

    loss_sum(model, batch) gives (sum of the losses of the micro-batch's targets, their number).
    The gradient is that of Σ loss / Σ targets over all micro-batches and ranks: not the mean
    of means, which weighs rows by the company they are in.
    """
    world, optimizer = state.world, state.optimizer
    state.model.train()
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * state.schedule(state.clock.fraction)
    summed = sum_gradients(state, state.loader, loss_sum)
    if summed is None:
        return None
    work, losses, targets, active = summed
    # backward ran on scale · losses / batch
    scale = state.config.batch / (targets * state.scaler.get_scale())
    gradients = [p.grad for p in active]
    norm, layer_norms = gradient_norms(gradients, [state.layer_of[id(p)] for p in active], scale)
    finite = not world.any(not (math.isfinite(norm) and math.isfinite(losses)))
    if finite:
        limit = state.config.max_grad_norm
        clip = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        torch._foreach_mul_(gradients, scale * clip)
        optimizer.step()
        state.skipped_steps = 0
    else:
        state.skipped_steps += 1
    _update_loss_scale(state, finite)
    optimizer.zero_grad()
    state.step += 1
    state.charge(work)
    state.clock.after_update()
    state.examples += work.examples
    state.tokens += work.tokens
    lrs = {f"lr_{g.get('part', i)}": g["lr"] for i, g in enumerate(optimizer.param_groups)}
    return {
        "epoch": state.loader.position / state.loader.steps_per_epoch,
        "train_loss": losses / targets,
        "lr": optimizer.param_groups[0]["lr"],
        **(lrs if len(lrs) > 1 else {}),
        "grad_norm": norm,
        "grad_norms": layer_norms,
        "examples_in_step": work.examples,
        "tokens_in_step": work.tokens,
    }


def sum_gradients(
    state: State, loader: TrainLoader, loss_sum: LossSum
) -> tuple[Work, float, float, list[nn.Parameter]] | None:
    """The loader's next global batch, backward, gradients summed over ranks.

    Returns (work, loss sum, targets, parameters that have a gradient). The gradients are those
    of the loss sum times scaler.get_scale() / config.batch. None when a signal cut it off: the
    loader then stands before that batch.
    """
    world, optimizer = state.world, state.optimizer
    while True:
        work = loader.next()
        totals, present = _accumulate(state, work, loss_sum)
        agreed = world.sum(torch.cat([totals, present])).tolist()
        losses, targets, out_of_memory, stop = agreed[:4]
        if out_of_memory or stop:
            optimizer.zero_grad()
        if stop:
            loader.seek(work.position)
            return None
        if not out_of_memory:
            break
        loader.halve()
        world.say(
            f"step {state.step + 1}: out of memory; micro-batches of {loader.micro_batch} "
            f"from here on (the batch stays {loader.config.batch})"
        )
    if targets == 0:
        raise ValueError(f"step {state.step + 1}: no row of the batch has a target")
    # a layer that no rank ran keeps no gradient, so that the optimizer leaves it alone
    active = [p for p, n in zip(state.parameters, agreed[4:], strict=True) if n]
    all_reduce_gradients(active, world)
    return work, losses, targets, active


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to, from its name.

    layer_3 for encoder.layer.3.output.dense.weight; embeddings; head; else its own module.
    """
    parts = parameter.split(".")
    number = next((part for part in parts if part.isdigit()), None)
    if parts[0] == "head" or len(parts) == 1:
        return parts[0]
    if number is not None:
        return f"layer_{number}"
    return "embeddings" if re.search(r"embed|wte|wpe", parameter) else parts[-2]


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
    names = list(dict.fromkeys(layers))
    places = torch.tensor([names.index(layer) for layer in layers], device=norms.device)
    squares = norms.new_zeros(len(names)).index_add_(0, places, norms.square())
    total, *each = torch.cat([torch.linalg.vector_norm(norms)[None], squares.sqrt()]).tolist()
    return total * scale, {name: value * scale for name, value in zip(names, each, strict=True)}


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of it alone (torch's DTensor)."""
    return hasattr(tensor, "to_local")


def _accumulate(state: State, work: Work, loss_sum: LossSum) -> tuple[Tensor, Tensor]:
    """Backward over this rank's micro-batches.

    Returns [loss sum, targets, out of memory, stop] and, for each parameter, whether it has a
    gradient: one vector over ranks settles what all ranks do next.
    """
    world, config = state.world, state.config
    # summed where they are computed: reading each one would wait for the device
    losses = torch.zeros(2, dtype=sum_dtype(world.device.type, world.machine)).to(world.device)
    out_of_memory = False
    for index, batch in work.micro_batches:
        if state.stop_requested():
            break
        seed_everything(mix_seed(config.seed, work.position, index, 2), world.device)
        state.under_way = (work.position, index)
        try:
            with state.autocast():
                loss, targets = loss_sum(state.model, to_device(batch, world.device))
            # dividing by a constant keeps fp16 gradients in range; the sums put it right
            state.scaler.scale(loss / config.batch).backward()
        except Exception as error:
            if world.sharded or not is_out_of_memory(error):  # the others wait for this rank
                raise
            out_of_memory = True
        if out_of_memory:  # outside the handler, which holds the failed step's tensors
            loss = None  # as this does
            if world.device.type in ("cuda", "xpu"):
                getattr(torch, world.device.type).empty_cache()
            break
        losses[0] += loss.detach()
        losses[1] += targets
    flags = torch.tensor([float(out_of_memory), float(state.stop_requested())])
    present = torch.tensor([float(p.grad is not None) for p in state.parameters])
    return torch.cat([losses, flags.to(losses)]), present.to(losses)


def _update_loss_scale(state: State, finite: bool) -> None:
    """Halve after an overflow, double after 2,000 clean steps (Micikevicius et al. 2018, 3.2)."""
    scaler = state.scaler
    if not scaler.is_enabled():
        return
    saved = scaler.state_dict()
    tracker = saved["_growth_tracker"] + 1 if finite else 0
    scale = saved["scale"] if finite else saved["scale"] * saved["backoff_factor"]
    if tracker == saved["growth_interval"]:
        scale, tracker = scale * saved["growth_factor"], 0
    scaler.load_state_dict(saved | {"scale": scale, "_growth_tracker": tracker})


# ---------------------------------------------------------------- checkpoints and runs


class DiskFull(RuntimeError):
    """There was no room for a file of the run; what was written before is whole."""


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to disk, rename: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: Exception, path: Path) -> Exception:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and torch.save hide the number of the error in a text of their own
    signs = ("no space left", "quota exceeded", "inline_container", "failed writing file")
    if not full and not any(sign in str(error).lower() for sign in signs):
        return error
    free = shutil.disk_usage(path.parent).free / 1e6
    return DiskFull(
        f"disk full while writing {path} ({free:.0f} MB free). Earlier checkpoints are whole: "
        "make room and run the same command again"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(folder: Path, fill: Callable[[Path], None], **facts: Any) -> None:
    """Let `fill` write files into a folder beside, hash them in manifest.json, rename."""
    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        fill(beside)
        files = {}
        for path in sorted(p for p in beside.rglob("*") if p.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(beside))] = {
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
        write_text(beside / "manifest.json", json.dumps({**facts, "files": files}, indent=1))
        if folder.exists():  # renamed away first: a rename cannot replace a full folder
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        beside.rename(folder)
        descriptor = os.open(folder.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise disk_error(error, folder) from error
    shutil.rmtree(folder.with_name(f"{folder.name}.old"), ignore_errors=True)


def damage(folder: Path) -> str | None:
    """None when every file is as the manifest says, else the first thing that is not."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, fact in files.items():
            if (folder / name).stat().st_size != fact["bytes"]:
                return f"{name} has another size"
            if _sha256(folder / name) != fact["sha256"]:
                return f"{name} has another hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: of the device, or of this process on a CPU."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
