"""Every choice by device is a function of what the machine offers; fakes stand for machines."""

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import core
import device as devices
import eval_bert
from device import (
    Machine,
    autocast,
    bound_kernel_caches,
    choose_attention,
    choose_backend,
    choose_device,
    choose_precision,
    device_name,
    ipex_matches,
    look_at_machine,
    machine_warnings,
    memory_note,
    room_left,
    sum_dtype,
)
from experiments import experiment, pretraining
from methods import optimizers
from models import pretrained
from models.pretrained import KERNELS
from settings import Settings, parse_settings

CPU = Machine()
MAC = Machine(mps=True)
T4 = Machine(cuda=1, cuda_capability=(7, 5), flash_attn=True)
A100 = Machine(cuda=2, cuda_capability=(8, 0), flash_attn=True)
H100_PLAIN = Machine(cuda=8, cuda_capability=(9, 0))
ARC = Machine(xpu=1, has_xccl=True)
ARC_NO_XCCL = Machine(xpu=1)
OLD_XPU = Machine(xpu=1, xpu_bf16=False, has_xccl=True)


@pytest.mark.parametrize(
    "machine, device, backend, precision, attention",
    [
        (CPU, "cpu", "gloo", "fp32", "sdpa"),
        (MAC, "mps", "gloo", "fp32", "sdpa"),
        (T4, "cuda", "nccl", "fp16", "sdpa"),
        (A100, "cuda", "nccl", "bf16", "flash_attention_2"),
        (H100_PLAIN, "cuda", "nccl", "bf16", "sdpa"),
        (ARC, "xpu", "xccl", "bf16", "sdpa"),
        (ARC_NO_XCCL, "xpu", "gloo", "bf16", "sdpa"),
        (OLD_XPU, "xpu", "xccl", "fp16", "sdpa"),
    ],
)
def test_auto_takes_the_best_that_is_there(machine, device, backend, precision, attention):
    assert choose_device("auto", machine) == device
    assert choose_backend("auto", device, machine) == backend
    assert choose_precision("auto", device, machine) == precision
    assert choose_attention("auto", device, precision, machine) == attention


def test_auto_prefers_cuda_then_xpu_then_mps():
    everything = Machine(cuda=1, xpu=1, mps=True)
    assert choose_device("auto", everything) == "cuda"
    assert choose_device("auto", Machine(xpu=1, mps=True)) == "xpu"


def test_what_was_asked_for_is_taken():
    assert choose_device("cpu", A100) == "cpu"
    assert choose_backend("gloo", "cuda", A100) == "gloo"
    assert choose_precision("fp32", "cuda", A100) == "fp32"
    assert choose_precision("bf16", "cpu", CPU) == "bf16"
    assert choose_attention("eager", "cuda", "bf16", A100) == "eager"
    assert choose_attention("sdpa", "cuda", "bf16", A100) == "sdpa"


@pytest.mark.parametrize(
    "script, words, device, precision",
    [
        ("pretrain_bert", "name=b budget=24 seed=0", "cuda", "fp16"),
        ("pretrain_bert", "name=b train.stacking.enabled=True", "xpu", "fp16"),
        ("pretrain_bert", "name=b impl.mixed_precision_target_dtype=bfloat16", "cuda", "bf16"),
        ("pretrain_bert", "precision=bf16 name=b", "cuda", "bf16"),
        ("pretrain_bert", "name=b precision=auto", "cuda", "auto"),
        ("pretrain_bert", "--config configs/bert/c4/lion.yaml name=b", "cuda", "bf16"),
        ("pretrain_bert", "name=b budget=24", "cpu", "auto"),  # on which nothing was published
        ("pretrain_bert", "optimizer=lion --out results/b", "cuda", "auto"),  # no word of theirs
        ("eval_bert", "eval=GLUE_sane name=b impl.microbatch_size=16", "cuda", "fp16"),
        ("eval_bert", "name=b impl.mixed_precision_target_dtype=bfloat16", "cuda", "bf16"),
        ("eval_bert", "--model results/bert/b --suite glue", "cuda", "auto"),
    ],
)
def test_published_words_without_one_for_bfloat16_mean_fp16(script, words, device, precision):
    module = importlib.import_module(script)
    aliases = eval_bert.ALIASES if script == "eval_bert" else pretraining.ALIASES
    config, _ = parse_settings(module.Config, words.split(), script, aliases)
    world = core.World(torch.device(device), Machine())
    assert experiment.as_published(config, world).precision == precision


@pytest.mark.parametrize(
    "name, said",
    [
        ("elektra", "did you mean electra?"),
        ("deberta-v2", "did you mean deberta-v3?"),
        ("gpt-2", "did you mean gpt2?"),
        ("minlm", "did you mean minilm?"),
        ("results/bert/none", "no such folder"),
        ("./none", "no such folder"),
        ("/none/at/all", "no such folder"),
    ],
)
def test_names_of_models_that_are_surely_none_are_refused_at_once(name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        pretrained.check_model(name)


@pytest.mark.parametrize(
    "name",
    [
        *(*pretrained.SHORT_NAMES, *pretrained.REGISTRY.values()),
        *("bert-base-cased", "bert-large-cased", "roberta-large", "albert-xlarge-v2", "xlnet-base"),
        *("distilbert-base-cased", "distilroberta-base", "camembert-base", "owner/elektra"),
    ],
)
def test_other_names_may_be_ids_of_the_hub(name):
    pretrained.check_model(name)


def test_sophia_in_published_words_has_to_say_bfloat16():
    words = ["name=b", "train/optim=sophiag", "train.optim.rho=.01"]
    config, _ = parse_settings(pretraining.Config, words, "pretrain_bert", pretraining.ALIASES)
    world = core.World(torch.device("cuda"), Machine())
    with pytest.raises(ValueError, match="use --precision bf16 .*without a word on it"):
        experiment.as_published(config, world)


@pytest.mark.parametrize("asked", ["cuda", "xpu", "mps"])
def test_a_device_that_is_missing_is_named_with_those_that_are_there(asked):
    with pytest.raises(ValueError, match=f"--device {asked}.*it has cpu"):
        choose_device(asked, CPU)


@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2"])
def test_deberta_never_gets_fp16(model_type):
    assert choose_precision("auto", "cuda", T4, KERNELS[model_type]) == "fp32"
    assert choose_precision("auto", "xpu", OLD_XPU, KERNELS[model_type]) == "fp32"
    assert choose_precision("auto", "cuda", A100, KERNELS[model_type]) == "bf16"
    for device, machine in (("cuda", T4), ("cuda", A100), ("cpu", CPU)):
        with pytest.raises(ValueError, match="--precision fp16.*bf16 or fp32"):
            choose_precision("fp16", device, machine, KERNELS[model_type])


def test_an_xpu_without_float64_sums_in_float32():
    """Arc's A-series."""
    alchemist = Machine(xpu=1, xpu_fp64=False, xpu_bf16=False)
    assert sum_dtype("xpu", alchemist) == sum_dtype("mps", CPU) == torch.float32
    for device, machine in (("xpu", ARC), ("cuda", A100), ("cpu", CPU), ("cpu", alchemist)):
        assert sum_dtype(device, machine) == torch.float64
    assert choose_precision("auto", "xpu", alchemist) == "fp16"


@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2"])
def test_deberta_has_eager_attention_only(model_type):
    assert choose_attention("auto", "cuda", "bf16", A100, KERNELS[model_type]) == "eager"
    with pytest.raises(ValueError, match="--attention sdpa.*eager"):
        choose_attention("sdpa", "cuda", "bf16", A100, KERNELS[model_type])


@pytest.mark.parametrize(
    "machine, device, precision",
    [
        (H100_PLAIN, "cuda", "bf16"),  # the package is missing
        (T4, "cuda", "fp16"),  # too old
        (A100, "cuda", "fp32"),  # it has no fp32 kernel
        (A100, "cpu", "bf16"),
    ],
)
def test_flash_attention_where_it_cannot_run_is_refused(machine, device, precision):
    assert choose_attention("auto", device, precision, machine) == "sdpa"
    with pytest.raises(ValueError, match="flash-attn package.*SDPA works"):
        choose_attention("flash_attention_2", device, precision, machine)


@pytest.mark.parametrize(
    "ipex, version, fits",
    [
        ("2.8.10+xpu", "2.8.0+xpu", True),
        ("2.8.10+xpu", "2.9.0+xpu", False),
        ("2.1.0", "2.13.0", False),
        ("2.13.0", "2.1.0", False),
        (None, "2.8.0", False),
    ],
)
def test_ipex_fits_the_same_minor_version_of_torch(ipex, version, fits):
    assert ipex_matches(Machine(xpu=1, ipex=ipex, torch=version)) is fits


def test_autocast_changes_products_and_not_parameters():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for precision, dtype in kinds.items():
        with autocast(torch.device("cpu"), precision):
            assert layer(x).dtype == dtype
        assert layer.weight.dtype == torch.float32


def test_a_device_has_a_name(monkeypatch):
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "get_device_name", lambda device: f"{device}!")
        assert device_name(torch.device(kind, 1)) == f"{kind}:1!"
    assert torch.backends.cpu.get_cpu_capability() in device_name(torch.device("cpu"))
    able = {"cpu_name": "Some CPU", "amx_bf16": True, "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert device_name(torch.device("cpu")) == "Some CPU (AVX512, amx_bf16)"


def test_choices_are_said_in_one_line(capsys):
    world = core.World(torch.device("cpu"), Machine(torch="2.8.0", ipex="2.8.10"))
    core.say_device(world, "fp32", "sdpa")
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for part in ("cpu", "1 process", "fp32", "sdpa", "threads", "torch", "ipex 2.8.10"):
        assert part in said
    world.rank = 1
    core.say_device(world, "fp32", "sdpa")
    assert capsys.readouterr().out == ""


def test_this_machine_can_be_looked_at():
    machine = look_at_machine()
    assert machine.torch == torch.__version__
    assert core.single_world("cpu").device.type == "cpu"


def test_more_processes_than_devices_is_an_error(monkeypatch):
    monkeypatch.setattr(core, "look_at_machine", lambda: H100_PLAIN)
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(ValueError, match="local rank 8.*only 8 cuda"):
        with core.distributed(Settings()):
            pass


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_group_is_closed_unless_the_block_fails(monkeypatch, fails):
    """Closing it would wait for ranks that wait for this one."""
    settings = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(core, "_meet", lambda rank, size: torch.distributed.HashStore())
    monkeypatch.setattr(core.dist, "init_process_group", lambda *a, **k: calls.append(a[0]))
    monkeypatch.setattr(core.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(core.dist, "destroy_process_group", lambda: calls.append("closed"))
    with pytest.raises(KeyError) if fails else contextlib.nullcontext():
        with core.distributed(Settings(device="cpu")) as world:
            assert (world.rank, world.size, world.backend) == (0, 2, "gloo")
            if fails:
                raise KeyError
    assert calls == ["gloo"] if fails else ["gloo", "closed"]


def test_kernel_caches_are_bound_unless_the_user_says_how(monkeypatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    bound_kernel_caches()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "128"
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"


# --------------------------------------------------------------- what is there, but broken


def test_a_broken_flash_attn_is_said_and_not_used():
    """Installed for another torch, as it usually happens."""
    machine = dataclasses.replace(A100, flash_attn_error="ImportError: undefined symbol")
    assert choose_attention("auto", "cuda", "bf16", machine) == "sdpa"
    with pytest.raises(ValueError, match="undefined symbol.*built for torch 2.13.0"):
        choose_attention("flash_attention_2", "cuda", "bf16", machine)
    (warning,) = machine_warnings(machine, "cuda")
    assert "undefined symbol" in warning and machine_warnings(A100, "cuda") == []
    assert machine_warnings(machine, "cpu") == []


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ImportError('undefined symbol: _ZN3c10')", "ImportError: undefined symbol"),
        ("def flash_attn_func(q, k, v): raise RuntimeError('no kernel image')", "no kernel image"),
        ("def flash_attn_func(q, k, v): return 0 * v", "a mean of ones is 0.000"),
        ("def flash_attn_func(q, k, v): return v", ""),
    ],
)
def test_flash_attn_is_tried_once(tmp_path, monkeypatch, code, error):
    (tmp_path / "flash_attn.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device, **more: ones(*size, **more))
    found = devices.try_flash_attention()
    assert error in found and bool(found) == bool(error)
    sys.modules.pop("flash_attn", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert devices.try_flash_attention() == ""


def test_a_driver_that_is_too_old_is_said_loudly(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    version = tmp_path / "version"
    monkeypatch.setattr(devices, "Path", lambda _: version)
    assert devices.find_cuda_problem() == ""
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    problem = devices.find_cuda_problem()
    assert "CUDA 13.0" in problem and "470.57.02" in problem
    (warning,) = machine_warnings(Machine(cuda_problem=problem), "cpu")
    assert warning.startswith("WARNING: on the CPU") and "470.57.02" in warning
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in devices.find_cuda_problem()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.find_cuda_problem() == ""


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_texts_of_memory_that_ran_out(text):
    assert devices.is_out_of_memory(RuntimeError(text))
    assert not devices.is_out_of_memory(ValueError(text))


def test_what_is_left_of_a_gpus_memory_is_said():
    gb = 10**9
    text = room_left(peak=8 * gb, kept=2 * gb, total=16 * gb, size=4, most=64)
    assert "8.0 of 16 GB used: micro-batches of 8 rows would fit in place of 4" in text
    assert room_left(peak=14 * gb, kept=2 * gb, total=16 * gb, size=4, most=64) == ""
    assert "of 6 rows" in room_left(gb, gb // 2, 16 * gb, size=2, most=6)  # the whole batch
    joined = room_left(8 * gb, 2 * gb, 16 * gb, 16_384, 10**6, "tokens")
    assert joined.endswith("33,860 tokens together would fit in place of 16,384 (--join_tokens)")
    assert room_left(8 * gb, 2 * gb, 16 * gb, 16_384, 30_000, "tokens") == ""  # all of a step
    assert memory_note(torch.device("cpu"), 4, 64) == ""


def test_emulated_bf16_of_an_xpu_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.xpu, "get_device_properties", lambda _: SimpleNamespace(has_fp64=False)
    )
    monkeypatch.setattr(
        torch.xpu, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    machine = look_at_machine()
    assert (machine.xpu, machine.xpu_bf16, machine.xpu_fp64) == (1, False, False)
    assert choose_precision("auto", "xpu", machine) == "fp16"


def test_labels_of_gumbel_numbers_have_the_softmax_frequencies():
    """Which sophiag --deterministic draws with on a GPU."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(40_000, 4)
    drawn = optimizers.gumbel_labels(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, logits[0].softmax(-1), atol=0.01)


def test_memory_is_what_the_container_or_the_job_may_still_take(tmp_path):
    """Of the machine's own, which psutil knows alone, a group may be allowed a small part."""

    def group(folder, limit: str, used: str, stat: str, most: object, now: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{now}\n")
        (folder / "memory.stat").write_text(stat)

    def left(text: str) -> int:
        (tmp_path / "own").write_text(text)
        return devices.available_memory(tmp_path, tmp_path / "own")

    second = ("memory.max", "memory.current", "anon 5\nactive_file 100\ninactive_file 20\n")
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file 7\n")
    everything = left("")
    assert everything > 1000
    group(tmp_path / "job", *second, 1000, 400)
    group(tmp_path / "job/step", *second, "max", 300)
    assert left("0::/job/step\n") == 1000 - 400 + 120  # the limit is its parent's
    group(tmp_path / "job/step", *second, 500, 900)
    assert left("0::/job/step\n") == 0
    assert left("0::/none\n") > 1000
    group(tmp_path, *second, 800, 100)  # of a container, which sees its own group as the root
    assert left("0::/\n") == left("0::/docker/1f\n") == 800 - 100 + 120
    group(tmp_path / "memory/user", *first, 900, 300)
    assert left("9:cpu:/user\n4:memory:/user\n") == 900 - 300 + 7
    group(tmp_path / "memory/user", *first, 2**63 - 4096, 300)
    assert left("4:memory:/user\n") > 1000
