"""Sharded gradients on two processes: summed once a step, in the dtype that is asked for."""

import collections
import copy
from types import SimpleNamespace

import forked
import pytest
import torch
import torch.distributed as dist
from tiny_models import gpt2_config
from transformers import GPT2LMHeadModel

import core
from device import Machine, autocast
from methods import sharding

CPU = torch.device("cpu")
MODES = {  # (precision, dtype of the sums, whether each micro-batch is summed)
    "fp32": ("fp32", None, False),
    "bf16": ("bf16", None, False),
    "bf16 sums": ("bf16", torch.bfloat16, False),
    "each": ("fp32", None, True),
}
MICRO_BATCHES = 3


def loss_of(model: torch.nn.Module, ids: torch.Tensor, precision: str) -> torch.Tensor:
    with autocast(CPU, precision):
        return model(input_ids=ids, labels=ids).loss


def summed(rank: int, world: core.World, mode: tuple) -> SimpleNamespace:
    """The gradients of a step, those of whole models beside, and what was sent."""
    precision, reduce_dtype, each = mode
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config()).eval()
    whole, sent = copy.deepcopy(model), collections.Counter()
    batches = torch.randint(5, 40, (2, MICRO_BATCHES, 2, 9))[rank]
    losses = [loss_of(whole, ids, precision) for ids in batches]
    sum(losses).backward()
    for parameter in whole.parameters():
        dist.all_reduce(parameter.grad)

    sharding.shard(model, model.transformer.h, world, precision, reduce_dtype)
    sums = sharding.ShardedSums(model, each)
    scatter, block = dist.reduce_scatter_single, model.transformer.h[0]

    def counted(*given, **more):
        sent["sums", more["input"].dtype] += 1
        return scatter(*given, **more)

    computed = {}

    def look(*given):
        computed.update(matrix=block.attn.c_attn.weight.dtype, norm=block.ln_1.weight.dtype)

    block.attn.c_attn.register_forward_hook(look)
    dist.reduce_scatter_single = counted
    try:
        sums.start([])
        found = []
        for number, ids in enumerate(batches, start=1):
            loss = loss_of(model, ids, precision)
            if number == MICRO_BATCHES:
                sums.begin(loss)
            loss.backward()
            found.append(float(loss))
    finally:
        dist.reduce_scatter_single = scatter
    norm, _ = core.gradient_norms([p.grad for p in model.parameters()], ["all"] * 28, 1.0)
    return SimpleNamespace(
        losses=(found, [float(loss) for loss in losses]),
        gradients=[p.grad.full_tensor() for p in model.parameters()],
        whole=[p.grad for p in whole.parameters()],
        norm=norm,
        sent=dict(sent),
        computed=computed,
        groups=1 + len(model.transformer.h),
    )


def processes(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    world = core.World(CPU, Machine(), "gloo", rank, rank, size, sharded=True)
    torch.save(
        {name: summed(rank, world, mode) for name, mode in MODES.items()}, f"{folder}/{rank}"
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> dict:
    folder = str(tmp_path_factory.mktemp("sharding"))
    forked.spawn(processes, (2, folder), nprocs=2)
    return torch.load(f"{folder}/0", weights_only=False)


@pytest.mark.parametrize("name", MODES)
def test_a_step_sums_once_and_in_the_dtype_that_was_asked_for(first, name):
    run, (_, reduce_dtype, each) = first[name], MODES[name]
    times = MICRO_BATCHES if each else 1
    assert run.sent == {("sums", reduce_dtype or torch.float32): times * run.groups}


def test_matrices_of_blocks_are_put_together_in_bf16_and_norms_in_fp32(first):
    for name, (precision, _, _) in MODES.items():
        half = torch.bfloat16 if precision == "bf16" else torch.float32
        assert first[name].computed == {"matrix": half, "norm": torch.float32}


@pytest.mark.parametrize("name", MODES)
def test_the_sums_are_those_of_whole_models(first, name):
    run, (precision, _, _) = first[name], MODES[name]
    far = 1e-5 if precision == "fp32" else 3e-2
    assert run.losses[0] == pytest.approx(run.losses[1], rel=far)
    for found, wanted in zip(run.gradients, run.whole, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() <= far * wanted.norm() + 1e-6
    whole = torch.nn.utils.get_total_norm(run.whole)
    assert run.norm == pytest.approx(float(whole), rel=far)
