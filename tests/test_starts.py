"""init: by_name: what two architectures share starts the same."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from models import bert, causal, gpt, starts


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


SMALL = {"vocab_size": 60, "n_embd": 16, "n_head": 2, "n_positions": 16}


def test_a_change_of_one_module_leaves_the_start_of_the_others_alone():
    base = parameters(gpt.build_gpt(3, True, n_layer=2, **SMALL))
    changed = parameters(gpt.build_gpt(3, True, n_layer=3, qk_norm=True, mlp="gelu", **SMALL))
    shared = [name for name in base if name in changed and base[name].shape == changed[name].shape]
    assert len(shared) > 10 and "model.layers.1.self_attn.q_proj.weight" in shared
    assert all(torch.equal(base[name], changed[name]) for name in shared)
    in_order = [parameters(gpt.build_gpt(3, n_layer=n, **SMALL)) for n in (2, 3)]
    assert not torch.equal(*(each["model.layers.1.self_attn.q_proj.weight"] for each in in_order))


def test_the_seed_and_the_name_decide_and_nothing_else():
    first, again, other = (parameters(bert.build_masked_lm("bert-tiny", 60, s, 16, True))
                           for s in (0, 0, 1))  # fmt: skip
    drawn = [name for name in first if first[name].std() > 0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in drawn)
    same_shape = [name for name in drawn if first[name].shape == first[drawn[-1]].shape]
    values = [first[name].flatten()[0].item() for name in same_shape]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("build", [
    lambda by_name: gpt.build_gpt(0, by_name, n_layer=4, scale_residual_init=True,
                                  **SMALL | {"n_embd": 64}),
    lambda by_name: bert.build_masked_lm("hf-bert-mini", 300, 0, 32, by_name),
    lambda by_name: hub_gpt2(by_name),
])  # fmt: skip
def test_the_distribution_of_each_parameter_is_the_models_own(build):
    """Also where an outer module draws what is inside it, as GPT-2's blocks do."""
    plain, by_name = parameters(build(False)), parameters(build(True))
    assert plain.keys() == by_name.keys()
    for name, tensor in plain.items():
        assert by_name[name].std().item() == pytest.approx(tensor.std().item(), rel=0.12), name
        assert by_name[name].mean().item() == pytest.approx(tensor.mean().item(), abs=0.01), name


def hub_gpt2(by_name: bool) -> nn.Module:
    torch.manual_seed(0)
    shape = {"n_layer": 4, "n_embd": 64, "n_head": 2, "vocab_size": 200, "n_positions": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(GPT2Config(**shape, **ends))
    if by_name:
        starts.draw_by_name(model, 0)
    return model


def test_tied_weights_are_drawn_once_and_stay_tied():
    model = hub_gpt2(True)
    assert model.lm_head.weight is model.transformer.wte.weight
    torch.manual_seed(starts.mix_seed(0, starts.zlib.crc32(b"transformer.wte")))
    expected = nn.init.normal_(torch.empty(200, 64), std=0.02)
    assert torch.equal(model.transformer.wte.weight.detach(), expected)


def test_a_size_may_be_drawn_by_name_and_other_starts_are_what_they_were():
    config = causal.load_config("tiny", "by_name")
    one, two = (causal.load_model("tiny", config, None, "by_name", seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    torch.manual_seed(5)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    random = causal.load_model("tiny", config, None, "random", seed=5)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), random.parameters(), strict=True)
    )
