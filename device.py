"""What a machine offers, and what a run chooses of it: device, back end, precision, kernels.

    machine = look_at_machine()
    kind = choose_device("auto", machine)                           # cuda, xpu, mps or cpu
    precision = choose_precision("auto", kind, machine, kernels)    # bf16, fp16 or fp32

Choices are pure functions of what was asked for, of a Machine and of the model's Kernels, so that
they are tested without the machine.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


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
    flash_attn_error: str = ""  # of a package that is installed and does not work
    cuda_problem: str = ""  # why an NVIDIA card that is there is not used
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
        xpu_bf16=bool(xpu) and torch.xpu.is_bf16_supported(including_emulation=False),
        xpu_fp64=not xpu or bool(torch.xpu.get_device_properties(0).has_fp64),
        mps=torch.backends.mps.is_available(),
        flash_attn=bool(cuda) and importlib.util.find_spec("flash_attn") is not None,
        flash_attn_error=try_flash_attention() if cuda else "",
        cuda_problem="" if cuda else find_cuda_problem(),
        ipex=ipex,
        torch=torch.__version__,
        has_xccl=getattr(dist, "is_xccl_available", lambda: False)(),
        cpu_bf16=any(map(torch.cpu.get_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16"))),
    )


def try_flash_attention() -> str:
    """The error of flash-attn on a few tokens, built for another torch for instance; "" where it
    works, is not installed, or the card is too old for it."""
    too_old = torch.cuda.get_device_capability(0) < (8, 0)
    if too_old or importlib.util.find_spec("flash_attn") is None:
        return ""
    try:
        from flash_attn import flash_attn_func

        tokens = torch.ones(1, 8, 2, 64, device="cuda", dtype=torch.float16)
        mean = flash_attn_func(tokens, tokens, tokens).float().mean().item()
        return "" if abs(mean - 1) < 1e-2 else f"a mean of ones is {mean:.3f}"
    except Exception as error:  # of any kind: undefined symbols, illegal instructions' codes
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else "?"


def find_cuda_problem() -> str:
    """Why torch sees no NVIDIA card although the driver of one is loaded; "" where there is none
    or it is hidden on purpose."""
    driver = Path("/proc/driver/nvidia/version")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not driver.exists():
        return ""
    if torch.version.cuda is None:
        return f"this torch {torch.__version__} is built without CUDA"
    version = re.search(r"Kernel Module\D*([\d.]+)", driver.read_text())
    return (
        f"torch {torch.__version__} wants a driver for CUDA {torch.version.cuda}, and this one "
        f"({version[1] if version else 'of an unknown version'}) shows it no card: too old?"
    )


def machine_warnings(machine: Machine, device: str) -> list[str]:
    """What is there and not used, for a user who would wonder why it is slow."""
    warnings = []
    if device == "cuda" and machine.flash_attn_error:
        warnings.append(
            f"warning: flash-attn is installed, but fails ({machine.flash_attn_error}): SDPA"
        )
    if device == "cpu" and machine.cuda_problem:
        warnings.append(
            f"WARNING: on the CPU, though there is an NVIDIA card: {machine.cuda_problem}"
        )
    return warnings


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


@dataclass(frozen=True)
class Kernels:
    """What a kind of model can be computed with; models/ says it of each architecture."""

    name: str = "this model"
    fp16: bool = True  # False: its numbers overflow in it
    attention: tuple[str, ...] = ("flash_attention_2", "sdpa", "eager")


ALL_KERNELS = Kernels()


def choose_precision(
    asked: str, device: str, machine: Machine, kernels: Kernels = ALL_KERNELS
) -> str:
    """bf16 | fp16 | fp32. ValueError for fp16 on a model that overflows in it."""
    if asked == "fp16" and not kernels.fp16:
        raise ValueError(
            f"--precision fp16: {kernels.name}'s attention overflows in it: use bf16 or fp32"
        )
    if asked != "auto":
        return asked
    if device == "cuda":
        half = "bf16" if machine.cuda_capability >= (8, 0) else "fp16"
    elif device == "xpu":
        half = "bf16" if machine.xpu_bf16 else "fp16"
    else:  # a CPU repeats bit for bit in fp32; MPS autocast is young: ask for it by name
        return "fp32"
    return "fp32" if half == "fp16" and not kernels.fp16 else half


def choose_attention(
    asked: str, device: str, precision: str, machine: Machine, kernels: Kernels = ALL_KERNELS
) -> str:
    """flash_attention_2 | sdpa | eager. ValueError for one that the model or machine lacks."""
    flash = device == "cuda" and machine.flash_attn and machine.cuda_capability >= (8, 0)
    if asked == "flash_attention_2" and flash and machine.flash_attn_error:
        raise ValueError(
            f"--attention flash_attention_2: flash-attn is installed, but fails here "
            f"({machine.flash_attn_error}); install one that is built for torch {machine.torch}, "
            "or use --attention sdpa"
        )
    flash = flash and not machine.flash_attn_error
    flash = flash and precision in ("bf16", "fp16") and "flash_attention_2" in kernels.attention
    if asked == "flash_attention_2" and not flash and len(kernels.attention) > 1:
        raise ValueError(
            "--attention flash_attention_2 needs the flash-attn package, a CUDA device of "
            "capability 8.0 or more, and bf16 or fp16; SDPA works everywhere"
        )
    if asked != "auto" and asked not in kernels.attention:
        able = " and ".join(kernels.attention)
        raise ValueError(f"--attention {asked}: {kernels.name} has {able} attention only")
    if asked != "auto":
        return asked
    if flash:
        return "flash_attention_2"
    return "sdpa" if "sdpa" in kernels.attention else "eager"


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


class LossScale:
    """fp16's factor on the loss, which keeps small gradients above 0: halved after an overflow,
    doubled after 2,000 clean steps (Micikevicius et al. 2018, section 3.2).

    torch's GradScaler holds it on the device, must wait to read it, and takes float64 to undo it,
    which Arc's A-series lacks (pytorch issue 147731); this number stays on the host. Its saved
    state has the same form.
    """

    FACTORS = {"growth_factor": 2.0, "backoff_factor": 0.5}

    def __init__(self, enabled: bool, init_scale: float = 2.0**16, growth_interval: int = 2000):
        self.enabled, self.growth_interval = enabled, growth_interval
        self.value = init_scale if enabled else 1.0
        self.clean_steps = 0

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss.float() * self.value if self.enabled else loss

    def update(self, finite: bool) -> None:
        """After a step."""
        if not self.enabled:
            return
        self.clean_steps = self.clean_steps + 1 if finite else 0
        if not finite:
            self.value *= self.FACTORS["backoff_factor"]
        if self.clean_steps == self.growth_interval:
            self.value, self.clean_steps = self.value * self.FACTORS["growth_factor"], 0

    def state_dict(self) -> dict[str, float]:
        if not self.enabled:
            return {}
        growth = {"growth_interval": self.growth_interval, "_growth_tracker": self.clean_steps}
        return {"scale": self.value, **self.FACTORS, **growth}

    def load_state_dict(self, saved: dict[str, float]) -> None:
        if self.enabled:
            self.value, self.clean_steps = saved["scale"], saved["_growth_tracker"]
            self.growth_interval = saved["growth_interval"]


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
    signs = ("out of memory", "can't allocate memory", "alloc_failed", "out_of_device_memory")
    # cuBLAS makes its handle in the first product, Level Zero names no memory
    signs += ("out_of_host_memory", "cublas_status_not_initialized", "error_out_of_resources")
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in signs)


def free_memory(device: torch.device) -> None:
    """Hand what torch keeps for later back to the device."""
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).empty_cache()


def again_with_freed_memory(
    action: Callable[[], object], device: torch.device, undo: Callable[[], None] | None = None
) -> None:
    """The action; where memory runs out, once more after what torch keeps for later was freed.

    undo: called in between, of what the action had begun.
    """
    try:
        action()
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory(device)  # behind the handler: the error holds the tensors of what failed
    if undo is not None:
        undo()
    action()


def rows_in_parts(
    compute: Callable[[np.ndarray], T], rows: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, T]]:
    """(rows, compute(rows)), in halves where memory runs out; compute calls no other rank."""
    waiting = [rows]
    while waiting:
        rows = waiting.pop()
        try:
            values = compute(rows)
        except Exception as error:
            if len(rows) < 2 or not is_out_of_memory(error):
                raise
        else:
            yield rows, values
            continue
        free_memory(device)
        half = len(rows) // 2
        waiting += [rows[half:], rows[:half]]


def update_parameters(
    optimizer: torch.optim.Optimizer, active: Sequence[nn.Parameter], device: torch.device
) -> None:
    """optimizer.step(). Moments that are not there yet are made group by group: one for which
    memory runs out, before anything of it was changed, is tried again with freed memory.

    active: the parameters that have a gradient. Fewer rows would not help here, as nothing of the
    micro-batches is in memory any more.
    """
    if len(active) <= len(optimizer.state):
        optimizer.step()
        return
    groups, there = optimizer.param_groups, set(optimizer.state)
    try:
        for group in groups:
            optimizer.param_groups, parameters = [group], group["params"]
            versions = [p._version for p in parameters]

            def forget(parameters: Any = parameters, versions: list[int] = versions) -> None:
                if there & set(parameters) or versions != [p._version for p in parameters]:
                    raise RuntimeError("out of memory in the midst of the optimizer's update")
                for parameter in parameters:
                    optimizer.state.pop(parameter, None)

            again_with_freed_memory(optimizer.step, device, forget)
    finally:
        optimizer.param_groups = groups


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch's tensors on the device, sent from pinned memory, for which nobody waits.

    What the host has to know stays there: tensors named …_lengths, from which shapes come. An
    attention_mask that hides nothing is None: to ask the device for that would be to wait for it.
    """
    if device.type == "cpu":
        return batch
    moved = dict(batch)
    for name, tensor in batch.items():
        if name == "attention_mask" and bool(tensor.all()):
            moved[name] = None
        elif not name.endswith("_lengths"):
            moved[name] = pinned(tensor, device).to(device, non_blocking=True)
    return moved


def pins(device: torch.device) -> bool:
    """Whether copies from pinned memory run beside the host and the device's own work."""
    return device.type in ("cuda", "xpu")


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor if not pins(device) or tensor.is_pinned() else tensor.pin_memory()


def moved_ahead(batches: Sequence[Any], device: torch.device) -> Iterator[Any]:
    """to_device of each; where that is possible the next one's copy runs on a stream of its own
    while the one before computes."""
    if not pins(device):
        yield from (to_device(batch, device) for batch in batches)
        return
    kind = getattr(torch, device.type)
    copying, sent = kind.Stream(), []
    for batch in [*batches, None]:
        if batch is not None:
            with kind.stream(copying):
                sent.append((to_device(batch, device), copying.record_event()))
        if len(sent) == 2 or (sent and batch is None):
            ready, event = sent.pop(0)
            computing = kind.current_stream()
            computing.wait_event(event)
            for tensor in ready.values():
                if tensor is not None and tensor.device.type == device.type:
                    tensor.record_stream(computing)  # its memory was the other stream's
            yield ready


def available_memory(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """Bytes of the host's memory that this process may still take: of what the machine has free,
    and of what its container or batch job is allowed (Linux's control groups, versions 1 and 2),
    where files in memory count as free, for they go when it is wanted."""
    import psutil

    free: list[float] = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, names = groups, ("memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                root = groups / "memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            else:
                continue
            inner = root / path.lstrip("/")  # in a container a name of the host's, not to be found
            above = [each for each in (inner, *inner.parents) if each.is_relative_to(root)]
            free += [_left_in(group, *names) for group in above]
    return int(max(0, min(free)))


def _left_in(group: Path, limit: str, used: str, prefix: str) -> float:
    """Bytes that a control group may still take; inf where it has no limit."""
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = sum(int(facts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    except (OSError, ValueError):  # "max"
        return float("inf")
    return most - now + files


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: of the device, or of this process on a CPU."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_note(device: torch.device, size: int, most: int, unit: str = "rows") -> str:
    """What a GPU's memory would still take after some steps in micro-batches of `size` rows, or
    joined ones of so many tokens, in words; "" where it is well used, and elsewhere. most: of a
    step of this rank."""
    if device.type not in ("cuda", "xpu") or not (peak := peak_memory(device)):
        return ""
    kind = getattr(torch, device.type)
    kept, total = kind.memory_allocated(device), kind.get_device_properties(device).total_memory
    return room_left(peak, kept, total, size, most, unit)


def room_left(peak: int, kept: int, total: int, size: int, most: int, unit: str = "rows") -> str:
    """peak: bytes at most; kept: between steps. What grows with the size is the difference; a tenth
    of the memory is left to other things."""
    fits = min(most, int((0.9 * total - kept) / max(1, (peak - kept) / size)))
    if fits < 2 * size:
        return ""
    used = f"{peak / 1e9:.1f} of {total / 1e9:.0f} GB used"
    if unit == "tokens":
        return f"{used}: {fits:,} tokens together would fit in place of {size:,} (--join_tokens)"
    return (
        f"{used}: micro-batches of {fits} rows would fit in place of {size}, which is faster "
        "(--micro_batch; with dropout its masks are others)"
    )


def of_workers(count: int) -> dict[str, Any]:
    """Arguments of a DataLoader for so many worker processes; 0: none, the rows are read here.

    On Linux they begin as copies of this process, which then share its memory maps: Python 3.14
    would start them anew, and send each of them all tokens. ValueError where the system allows
    too few open files.
    """
    import resource

    if count == 0:
        return {"num_workers": 0}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 10240 if hard == resource.RLIM_INFINITY else min(hard, 10240)
    if soft != resource.RLIM_INFINITY and soft < allowed:  # macOS begins with 256
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    folder = next((each for each in ("/proc/self/fd", "/dev/fd") if os.path.isdir(each)), None)
    used = len(os.listdir(folder)) if folder else 0
    needed = used + 5 * count + 64  # pipes and a handle for each, and the tensors that they send
    if soft != resource.RLIM_INFINITY and needed > soft:
        raise ValueError(
            f"{count} loader workers need about {needed} open files, and this system allows "
            f"{soft}: ulimit -n {max(4096, needed)}, or fewer --workers"
        )
    context = "fork" if sys.platform == "linux" else None
    return {
        "num_workers": count,
        "worker_init_fn": ignore_signals,
        "multiprocessing_context": context,
    }


def ignore_signals(worker: int) -> None:
    """The training process decides when to stop; its loader workers end with it.

    SIGTERM is left alone: Python ends its children by it when it exits, and waits for them.
    torchrun sends its SIGTERM to the process group, which a worker therefore leaves.
    """
    os.setpgrp()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
