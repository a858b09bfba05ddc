"""A GPU that is not there, so that what one would refuse or wait for shows on any machine.

    python tests/stand_in.py SEEN.json run_2_appendprompt.py --data=reviews …

runs a script on tensors that say cuda:0, hold real values and compute on the CPU. Operands on two
devices raise, as does what needs the host's memory; what would make the host wait for the device is
counted by place, apart for each training step. STAND_IN=xpu: an Intel GPU without float64, as Arc's
A-series. Nothing is learned of speed, of flash-attn or of torch.compile.
"""

import collections
import contextlib
import ctypes
import functools
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PROJECT = Path(__file__).resolve().parent.parent
KIND = os.environ.get("STAND_IN", "cuda")
DEVICE = torch.device(KIND, 0)
BELOW = torch.device("maia", 0)  # what C++ sees: a device that this torch knows and asks nothing of

# The device must answer with a value, or with a shape that depends on values.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "is_nonzero"}
WAITING |= {"_unique2", "unique_dim", "unique_consecutive", "allclose"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Seen:
    """What happened so far."""

    def __init__(self) -> None:
        self.waits: collections.Counter[str] = collections.Counter()
        self.steps: list[dict[str, int]] = []  # the waits of each training step
        self.evaluations = 0
        self.unpinned = 0  # copies to the device from memory that is not pinned
        self.streams = 0  # copies on a stream of their own

    def wait(self, what: str) -> None:
        self.waits[f"{what} · {place()}"] += 1


seen = Seen()
has_fp64 = KIND == "cuda"
pinned: "collections.OrderedDict[int, torch.Tensor]" = collections.OrderedDict()


def place() -> str:
    """The nearest two lines of the project, and that of transformers if it stands below."""
    own, library = [], ""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path == Path(__file__):
            continue
        if "site-packages" in path.parts:
            if "transformers" in path.parts and not own:
                library = library or f"{path.name} {frame.name} < "
        elif path.is_relative_to(PROJECT) and ".venv" not in path.parts:
            own.append(f"{path.name}:{frame.lineno} {frame.name}")
    return library + " < ".join(own[:2])


class Remote(torch.Tensor):
    """A tensor on the device; `host` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "Remote":
        if host.dtype == torch.float64 and not has_fp64:
            raise RuntimeError(f"Required aspect fp64 is not supported on the device · {place()}")
        facts = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        facts |= {"dtype": host.dtype, "layout": host.layout, "device": BELOW}
        remote = torch.Tensor._make_wrapper_subclass(cls, host.size(), **facts)
        remote.host = host
        return remote

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def __tensor_flatten__(self):
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Remote(inner["host"])

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: KIND == "cuda")
    is_xpu = property(lambda self: KIND == "xpu")

    def tolist(self):
        return self.detach().to("cpu").tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy · {place()}")

    __array__ = numpy

    def __repr__(self):
        return f"Remote({self.host!r})"


def mapped(values: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The values with every tensor in them changed; torch's tree_map takes far longer."""
    if isinstance(values, torch.Tensor):
        return change(values)
    if isinstance(values, (list, tuple)) and not hasattr(values, "_fields"):
        return type(values)([mapped(value, change) for value in values])
    if isinstance(values, dict):
        return {name: mapped(value, change) for name, value in values.items()}
    return values


def compute(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operator: devices checked, waits counted, computed on the CPU."""
    remote: list[Remote] = []
    hosts: list[torch.Tensor] = []

    def local(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, Remote):
            remote.append(tensor)
            return tensor.host
        hosts.append(tensor)
        return tensor

    arguments, options = mapped(args, local), mapped(kwargs, local)
    wanted = kwargs.get("device")
    to = None if wanted is None else torch.device(wanted).type
    to = KIND if to == BELOW.type else to
    if not remote and to != KIND:
        return func(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    check(name, args, kwargs, remote, hosts, to)
    if to == KIND:
        options["device"] = torch.device("cpu")
        options.pop("pin_memory", None)
    with torch._C._DisableTorchDispatch():
        result = func(*arguments, **options)
    if name == "copy_":
        return args[0]
    if name == "_to_copy" and to == "cpu":
        return result
    known = {id(tensor.host): tensor for tensor in remote}  # what was changed in place

    def back(value: torch.Tensor) -> torch.Tensor:
        if isinstance(value, Remote):
            return value
        return known[id(value)] if id(value) in known else Remote(value)

    return mapped(result, back)


def check(name: str, args: tuple, kwargs: dict, remote: list, hosts: list, to: str | None) -> None:
    """RuntimeError where a GPU would raise; waits noted."""
    many = [tensor for tensor in hosts if tensor.dim() > 0]  # a single number may come along
    if name == "_to_copy":
        if remote and to == "cpu":
            seen.wait("read")
        elif hosts and to == KIND and not kwargs.get("non_blocking"):
            seen.wait("blocking copy")
        elif hosts and to == KIND:
            seen.unpinned += id(hosts[0]) not in pinned
        return
    if name == "copy_":
        if hosts and not (isinstance(args[0], Remote) and args[1].dim() == 0):
            seen.wait("blocking copy" if isinstance(args[0], Remote) else "read")
        return
    generator = kwargs.get("generator")
    if generator is not None and generator not in generators:
        raise RuntimeError(f"Expected a '{KIND}' device type for generator · {place()}")
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], Remote) or any(isinstance(i, torch.Tensor) for i in many):
            raise RuntimeError(f"indices or values on another device: {name} · {place()}")
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            seen.wait(f"{name} by a mask")
    elif many:
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} · {place()}")
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        seen.wait(name)


class Device(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


generators: list[Any] = []


class Stream:
    """Everything is computed at once: there is nothing to order."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def record_event(self) -> None:
        return None

    def wait_event(self, event: None) -> None:
        seen.streams += 1

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def let_autograd_pass() -> None:
    """The guard of the meta device, which does nothing, for the one that C++ sees."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * 32).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    kinds = torch._C._autograd.DeviceType
    guards[int(kinds.MAIA)] = guards[int(kinds.Meta)]
    torch.autograd.set_multithreading_enabled(False)
    torch._C._set_only_lift_cpu_tensors(True)


def install() -> None:
    """From here on torch says that there is a GPU. There is no way back: for a process of its
    own."""
    import safetensors.torch
    import transformers.modeling_utils
    import transformers.utils.import_utils

    import saving

    let_autograd_pass()
    gpu = getattr(torch, KIND)
    facts = SimpleNamespace(
        major=8, minor=6, name="stand-in", multi_processor_count=84, total_memory=48 << 30
    )
    facts.has_fp64 = has_fp64
    answers = {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": (8, 6),
        "get_device_name": "stand-in",
        "get_device_properties": facts,
        "current_device": 0,
        "is_bf16_supported": True,
        "is_initialized": True,
        "memory_allocated": 2 << 30,
        "max_memory_allocated": 4 << 30,
        "mem_get_info": (40 << 30, 48 << 30),
    }
    for name, answer in answers.items():
        setattr(gpu, name, lambda *args, _answer=answer, **kwargs: _answer)
    for name in ("_lazy_init", "set_device", "empty_cache", "reset_peak_memory_stats"):
        setattr(gpu, name, lambda *args, **kwargs: None)
    gpu.synchronize = lambda *args: seen.wait("synchronize")
    gpu.manual_seed = gpu.manual_seed_all = torch.default_generator.manual_seed
    gpu._is_in_bad_fork = gpu.is_current_stream_capturing = lambda: False
    gpu.default_generators = (torch.default_generator,)
    gpu.Stream = Stream
    gpu.stream = lambda stream: contextlib.nullcontext()
    gpu.current_stream = lambda *args: Stream()
    below = lambda kind: BELOW.type if str(kind).startswith(KIND) else kind  # noqa: E731

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any):
            super().__init__(below(device_type), *args, **kwargs)

    torch.autocast = torch.amp.autocast = Autocast
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    torch.is_autocast_enabled = lambda *kind: enabled(*map(below, kind))
    torch.get_autocast_dtype = lambda kind: dtype(below(kind))
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_stream = lambda *args: Stream()
    torch.accelerator.current_accelerator = lambda *args, **kwargs: torch.device(KIND)
    Remote.record_stream = lambda self, stream: None
    for name, function in vars(transformers.utils.import_utils).items():
        if name.startswith("is_") and hasattr(function, "cache_clear"):
            function.cache_clear()

    def pin_memory(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        copy = tensor.clone()
        pinned[id(copy)] = copy
        while len(pinned) > 4000:
            pinned.popitem(last=False)
        return copy

    torch.Tensor.pin_memory = pin_memory
    torch.Tensor.is_pinned = lambda tensor, *args: id(tensor) in pinned

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            made = super().__new__(cls)
            if torch.device(device).type == KIND:
                generators.append(made)
            return made

    torch.Generator = Generator

    def of_host(values: Any) -> Any:
        return mapped(values, lambda x: x.detach().host if isinstance(x, Remote) else x)

    # what a checkpoint takes to the host is told apart by its place in memory
    take, distinct = saving.HostCopy.take, saving.distinct
    saving.HostCopy.take = lambda self, tree, *more: take(self, of_host(tree), *more)
    saving.HostCopy.has_room = lambda self, *tree: True
    saving.distinct = lambda weights: distinct(of_host(weights))
    save, save_file = torch.save, safetensors.torch.save_file
    torch.save = lambda values, *args, **kwargs: save(of_host(values), *args, **kwargs)

    def write(tensors: dict, path: Any, metadata: Any = None) -> None:
        save_file({n: t.contiguous().clone() for n, t in of_host(tensors).items()}, path, metadata)

    def write_model(model: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        named, tensors = model.state_dict(keep_vars=True), {}
        for name, tensor in named.items():
            if not any(tensor is other for other in tensors.values()):
                tensors[name] = tensor
        write(tensors, path)

    safetensors.torch.save_file, safetensors.torch.save_model = write, write_model
    for module in list(sys.modules.values()):  # that have it by name
        if getattr(module, "save_file", None) is save_file:
            module.save_file = write
    safetensors.torch.load_model = lambda model, path: model.load_state_dict(
        safetensors.torch.load_file(path), strict=False
    )

    def save_pretrained(self: Any, folder: Any, state_dict: Any = None, **kwargs: Any) -> None:
        os.makedirs(folder, exist_ok=True)
        tied = set(self.all_tied_weights_keys or {})
        tensors = self.state_dict() if state_dict is None else state_dict
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        kept = {name: tensor for name, tensor in tensors.items() if name not in tied}
        write(kept, Path(folder) / "model.safetensors", {"format": "pt"})

    transformers.modeling_utils.PreTrainedModel.save_pretrained = save_pretrained


def watch_steps() -> None:
    """Note the waits of each training step, and count evaluations."""
    import core

    step, evaluate = core.train_step, core.evaluate_rows

    def train_step(*args: Any, **kwargs: Any) -> Any:
        before = seen.waits.copy()
        result = step(*args, **kwargs)
        seen.steps.append(dict(seen.waits - before))
        return result

    def evaluate_rows(*args: Any, **kwargs: Any) -> Any:
        seen.evaluations += 1
        return evaluate(*args, **kwargs)

    core.train_step, core.evaluate_rows = train_step, evaluate_rows


def observed(action: Callable[[], None]) -> dict[str, Any]:
    """What was seen while it ran; "error": what it raised."""
    vars(seen).update(vars(Seen()))
    error = ""
    try:
        action()
    except (Exception, SystemExit) as problem:
        error = "" if problem.args in ((), (0,)) else "".join(traceback.format_exception(problem))
    return {"error": error, **vars(seen)}


def refusals() -> dict[str, str]:
    """What a GPU refuses, and the error: "" where the stand-in let it pass."""
    here, there = torch.ones(3), torch.ones(3, device=DEVICE)
    attempts: dict[str, Callable[[], Any]] = {
        "two devices in a sum": lambda: here + there,
        "two devices in a product": lambda: torch.ones(3, 3) @ there,
        "an index of the host's values": lambda: here[torch.zeros(1, dtype=int, device=DEVICE)],
        "the memory of the device": lambda: there.numpy(),
        "a generator of the host": lambda: torch.rand(
            3, device=DEVICE, generator=torch.Generator()
        ),
    }
    if not has_fp64:
        attempts["float64"] = lambda: there.double()
    errors = {name: observed(attempt)["error"] for name, attempt in attempts.items()}
    assert (there + 1).tolist() == [2, 2, 2] and observed(there.tolist)["waits"]
    return errors


def start(script: str, words: list[str]) -> None:
    """A script as from the command line."""
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def run_systems(out: Path, folder: Path, runs: dict[str, list[str]]) -> None:
    """A run of each name, [system of systems.py, words…] or [script.py, words…]: what was seen of
    all, as JSON. RUNS in a word is the folder of the runs before it."""
    from systems import build_systems

    os.environ["ABLATE_CACHE"] = str(folder / "cache")
    systems = build_systems(folder)
    install()
    watch_steps()
    results: dict[str, Any] = {}
    with Device():
        results["refused"] = refusals()
        for name, (system, *words) in runs.items():
            words = [word.replace("RUNS", str(folder / "runs")) for word in words]
            if system.endswith(".py"):
                results[name] = observed(functools.partial(start, system, words))
                continue
            words = [f"--device={KIND}", "--precision=bf16", *words]  # the last one counts
            action = functools.partial(systems[system].train, folder / "runs" / name, *words)
            results[name] = observed(action)
    out.write_text(json.dumps(results, indent=1))


def run_script(out: Path, script: str, words: list[str]) -> None:
    install()
    watch_steps()
    with Device():
        result = observed(functools.partial(start, script, words))
    out.write_text(json.dumps(result, indent=1))
    print(result["error"], end="")


if __name__ == "__main__":
    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    sys.modules["stand_in"] = sys.modules["__main__"]
    where, *given = sys.argv[1:]
    if given[0].endswith(".py"):
        run_script(Path(where), given[0], given[1:])
    else:
        run_systems(Path(where), Path(given[0]), json.loads(Path(given[1]).read_text()))
