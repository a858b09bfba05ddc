"""A model that no device has room for is dealt out from the host, where rank 0 has it once."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from test_sampler import Rows
from tiny_models import gpt2_config
from transformers import GPT2LMHeadModel

import core
from device import Machine
from experiments.experiment import place
from methods.optimizers import build_optimizer, parameter_groups
from methods.sharding import ShardedState, whole_copy
from settings import Settings


def test_the_whole_copy_takes_no_memory_and_keeps_the_values():
    model = GPT2LMHeadModel(gpt2_config())
    model.transformer.wte.requires_grad_(False)
    whole = whole_copy(model)
    names = dict(model.named_parameters())
    for name, parameter in whole.named_parameters():
        assert parameter.data_ptr() == names[name].data_ptr() and parameter is not names[name]
        assert parameter.requires_grad == names[name].requires_grad
    assert whole.lm_head.weight is whole.transformer.wte.weight  # tied, as in the model
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for parameter in model.parameters():  # as FSDP moves and cuts them
        parameter.data = torch.zeros(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())


def test_what_is_to_be_sharded_waits_on_the_host():
    """meta: a device with no memory at all."""
    for sharded, kind in ((True, "cpu"), (False, "meta")):
        world = core.World(torch.device("meta"), Machine(), size=2, sharded=sharded)
        model = place(GPT2LMHeadModel(gpt2_config()), world)
        assert {parameter.device.type for parameter in model.parameters()} == {kind}


@dataclass
class Config(Settings):
    shard_reduce: str = "step"


@pytest.fixture
def group() -> Iterator[None]:
    """Of this process alone: what is sent comes back."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_parameter_without_moments_leaves_those_of_others_in_their_place(group):
    """The third of four matrices never had a gradient; in a world of one, without FSDP."""
    model = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(4))
    model.set_requires_gradient_sync = model.set_is_last_backward = lambda now: None
    config, world = Config(batch=4), core.World(torch.device("cpu"), Machine())
    groups = parameter_groups({"model": model.parameters()}, {"model": 1e-3}, 0.0)
    state = ShardedState(
        config=config,
        world=world,
        model=model,
        whole=whole_copy(model),
        optimizer=build_optimizer("adamw", groups, 1e-3),
        loader=core.TrainLoader(Rows(8), config, world),
        clock=core.StepClock(4),
        schedule=lambda fraction: 1.0,
    )
    for layer in (model[0], model[1], model[3]):
        layer.weight.grad = torch.full((2, 2), 1.0 + layer.weight[0, 0].item())
    state.optimizer.step()
    moments = {n: dict(state.optimizer.state[p]) for n, p in enumerate(model.parameters())}
    state.collect()
    saved = state.state_dict()
    state.load_state_dict(saved)
    state.share()
    for number, parameter in enumerate(model.parameters()):
        found = state.optimizer.state[parameter]
        assert found.keys() == moments[number].keys(), number
        assert all(torch.equal(found[name], moments[number][name]) for name in found)
