"""A model that no device has room for is dealt out from the host, where rank 0 has it once."""

import torch
from tiny_models import gpt2_config
from transformers import GPT2LMHeadModel

import core
from device import Machine
from experiments.experiment import place
from methods.sharding import whole_copy


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
