"""LoRA moves only its own parameters, merges exactly, counts right, and speaks PEFT's format."""

import copy
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from files import write_folder
from methods import optimizers
from models.lora import (
    LoraConfig,
    adapter_weights,
    adapters,
    add_lora,
    count_parameters,
    load_adapter,
    merge,
    save_adapter,
)

VOCABULARY = 101
CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        **{"bos_token_id": 0, "eos_token_id": 0},
    ),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ),
}
CONFIGS["llama_tied"] = copy.deepcopy(CONFIGS["llama"])
CONFIGS["llama_tied"].tie_word_embeddings = True
PAGE = {  # L, d of the published GPT-2s; totals tied, totals untied, MB of those in fp32
    "gpt2": (12, 768, 124_439_808, None, None),
    "gpt2-medium": (24, 1024, 354_823_168, 406_286_336, 1549.86),
    "gpt2-large": (36, 1280, 774_030_080, 838_359_040, 3198.09),
    "gpt2-xl": (48, 1600, 1_557_611_200, 1_638_022_400, 6248.56),
}
KINDS = {
    "separate": LoraConfig(r=3, alpha=6),
    "fused": LoraConfig(r=3, alpha=6, qkv="fused"),
    "no head": LoraConfig(r=4, alpha=2, head=False),
    "last layer": LoraConfig(r=3, alpha=6, layers="last:1"),
    "last layer, no head, fused": LoraConfig(r=3, layers="last:1", head=False, qkv="fused"),
    "unscaled": LoraConfig(r=2, alpha=3, scaling="none"),
    "rslora": LoraConfig(r=3, alpha=2, scaling="rslora", dropout=0.1),
}


def build(kind: str, lora: LoraConfig | None = None, trained: bool = True) -> nn.Module:
    """A base of 2 layers × 32 with weights large enough to see; trained: B is not zero."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind])).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    if lora is not None:
        add_lora(model, lora, seed=2)
        model.eval()
        for module in adapters(model).values() if trained else ():
            module.lora.B.data.normal_(std=0.1)
    return model


def tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens()).logits


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if ".lora." not in n}


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def train(model: nn.Module, steps: int) -> None:
    groups = optimizers.parameter_groups({"lora": model.parameters()}, {"lora": 1e-2}, 0.1)
    optimizer = torch.optim.AdamW(groups)
    for _ in range(steps):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# ----------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_starts_at_the_base(kind):
    base = build(kind)
    model = build(kind, LoraConfig(), trained=False)
    assert_same(base_tensors(model), base_tensors(base))
    assert torch.equal(logits(model), logits(base))


@pytest.mark.parametrize("kind", CONFIGS)
def test_steps_move_every_adapter_and_nothing_of_the_base(kind):
    model = build(kind, LoraConfig(r=4), trained=False)
    base, before = base_tensors(model), copy.deepcopy(model.state_dict())
    train(model, steps=2)  # B is zero at first, so A gets its first gradient at the second step
    assert_same(base_tensors(model), base)
    for name, module in adapters(model).items():
        assert not torch.equal(module.lora.A, before[f"{name}.lora.A"]), name
        assert not torch.equal(module.lora.B, before[f"{name}.lora.B"]), name
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n in model.state_dict() if ".lora." in n}


def test_the_start_is_uniform_within_one_over_the_root_of_in_and_repeats():
    first, second, other = (build("gpt2") for _ in range(3))
    for model, seed in ((first, 5), (second, 5), (other, 6)):
        add_lora(model, LoraConfig(r=64), seed)
    A = first.transformer.h[0].attn.c_attn.lora.A  # (3 · 64, 32)
    limit = 1 / math.sqrt(32)
    assert A.abs().max() <= limit
    assert A.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    assert torch.equal(A, second.transformer.h[0].attn.c_attn.lora.A)
    assert not torch.equal(A, other.transformer.h[0].attn.c_attn.lora.A)


def test_scalings():
    assert LoraConfig(r=64, alpha=64, scaling="none").scale == 64
    assert LoraConfig(r=16, alpha=32, scaling="alpha/r").scale == 2
    assert LoraConfig(r=16, alpha=32, scaling="rslora").scale == 8


def test_separate_q_k_v_are_three_adapters_side_by_side():
    model = build("gpt2", LoraConfig(r=4, alpha=6))
    c_attn = model.transformer.h[1].attn.c_attn
    x = torch.randn(2, 5, 32)
    A, B = c_attn.lora.A.split(4), c_attn.lora.B.split(32)
    weight = c_attn.weight.T.split(32)  # Conv1D: (in, out)
    bias = c_attn.bias.split(32)
    for part, found in enumerate(c_attn(x).split(32, dim=-1)):
        expected = F.linear(x, weight[part] + 6 / 4 * B[part] @ A[part], bias[part])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_layers_and_head_are_chosen():
    def adapted(kind: str, **choice) -> set[str]:
        return set(adapters(build(kind, LoraConfig(r=2, **choice))))

    maps = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    bottom, top = ({f"transformer.h.{layer}.{name}" for name in maps} for layer in (0, 1))
    assert adapted("gpt2") == bottom | top | {"lm_head"}
    assert adapted("gpt2", head=False) == bottom | top
    assert adapted("gpt2", layers="last:1") == top | {"lm_head"}
    assert adapted("gpt2", layers="last:2", head=False) == bottom | top
    names = [f"self_attn.{x}_proj" for x in "qkvo"]
    names += [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert adapted("llama", layers="last:1", head=False) == {f"model.layers.1.{n}" for n in names}


def test_dropout_acts_in_training_alone_and_on_the_adapter_alone():
    lora = LoraConfig(r=2, dropout=0.5)
    model, base = build("gpt2", lora), build("gpt2")
    assert torch.equal(logits(model), logits(model))
    for module in adapters(model).values():
        module.lora.B.data.zero_()
    model.train()
    assert torch.equal(logits(model), logits(base))
    for module in adapters(model).values():
        module.lora.B.data.normal_(std=0.1)
    torch.manual_seed(0)
    first, second = logits(model), logits(model)
    torch.manual_seed(0)
    assert torch.equal(first, logits(model)) and not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_half_precision(kind):
    model = build(kind, LoraConfig(r=4))
    exact = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = logits(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    half = logits(model)
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert (found.float() - exact).norm() < 0.02 * exact.norm()
    train(model, steps=1)
    assert all(module.lora.A.dtype == torch.float32 for module in adapters(model).values())


def test_a_copy_is_a_model_of_its_own():
    model = build("gpt2", LoraConfig(r=2))
    other = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(other), before)
    merge(other)
    assert adapters(model) and not adapters(other)
    assert torch.equal(logits(model), before)


def test_wrong_choices_are_refused():
    for choice in ({"r": 0}, {"dropout": 1.0}, {"scaling": "alpha"}, {"qkv": "split"}):
        with pytest.raises(ValueError, match=f"--lora_{next(iter(choice))}"):
            LoraConfig(**choice)
    for layers in ("last", "last:0", "last:3", "bottom:1", "all:1", "last:-1"):
        with pytest.raises(ValueError, match="k from 1 to 2"):
            add_lora(build("gpt2"), LoraConfig(layers=layers))
    with pytest.raises(ValueError, match="already"):
        add_lora(build("gpt2", LoraConfig()), LoraConfig())


# ------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_weights_are_base_plus_scaled_product(kind, lora):
    model = build(kind, lora)
    before, expected = logits(model), base_tensors(model)
    for name, module in adapters(model).items():
        A, B = module.lora.A.double(), module.lora.B.double()
        parts = A.shape[0] // lora.r
        blocks = zip(B.chunk(parts), A.chunk(parts), strict=True)
        delta = lora.scale * torch.cat([b @ a for b, a in blocks])
        delta = delta if isinstance(module, nn.Linear) else delta.T  # Conv1D: (in, out)
        expected[f"{name}.weight"] = expected[f"{name}.weight"].double() + delta
    merge(model)
    merged = model.state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    once = base_tensors(model)
    merge(model)
    assert_same(base_tensors(model), once)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merged_model_is_saved_and_opened_with_its_own_head(kind, tmp_path):
    model = build(kind, LoraConfig(r=4))
    embedding = model.get_input_embeddings().weight.clone()
    before = logits(model)
    merge(model)
    model.tie_weights()  # as transformers does when it resizes a vocabulary
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not opened.config.tie_word_embeddings
    assert torch.equal(logits(opened), logits(model))
    torch.testing.assert_close(logits(opened), before, atol=1e-5, rtol=1e-5)


def test_a_model_without_an_adapted_head_stays_tied(tmp_path):
    model = build("gpt2", LoraConfig(r=4, head=False))
    merge(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert opened.config.tie_word_embeddings and torch.equal(logits(opened), logits(model))


# ------------------------------------------------------------------------------- counts


def gpt2_of(name: str) -> GPT2Config:
    layers, width = PAGE[name][:2]
    return GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)


@pytest.mark.parametrize("name", PAGE)
def test_counts_are_those_published(name):
    _, _, tied, untied, megabytes = PAGE[name]
    counts = count_parameters(gpt2_of(name))
    assert counts.tied == tied and counts.lora == {} and counts.trainable == 0
    if untied is not None:
        assert counts.untied == untied
        assert counts.untied * 4 / 2**20 == pytest.approx(megabytes, abs=0.005)


@pytest.mark.parametrize(
    "name, lora, expected",
    [
        ("gpt2-medium", LoraConfig(r=16), 7_898_384),
        ("gpt2-medium", LoraConfig(r=32), 15_796_768),
        ("gpt2-medium", LoraConfig(r=64), 31_593_536),
        ("gpt2-large", LoraConfig(r=16), 14_095_632),
        ("gpt2-medium", LoraConfig(r=16, qkv="fused", head=False), 6_291_456),
    ],
)
def test_lora_counts_are_those_published(name, lora, expected):
    counts = count_parameters(gpt2_of(name), lora)
    layers, d = PAGE[name][:2]
    each = lora.r * d * (18 if lora.qkv == "separate" else 16)
    head = {"lm_head": lora.r * (d + 50257)} if lora.head else {}
    assert counts.lora == {f"layer_{layer}": each for layer in range(layers)} | head
    assert counts.trainable == expected
    assert counts.tied == PAGE[name][2]  # the base, without the adapters


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_counts_are_those_of_the_model_that_is_built(kind, lora):
    model = build(kind, lora)
    counts = count_parameters(CONFIGS[kind], lora)
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert base == (counts.untied if kind == "llama" else counts.tied)
    assert counts.untied - counts.tied == 32 * VOCABULARY


# ------------------------------------------------------------------------ PEFT's format


@pytest.fixture
def peft():
    with warnings.catch_warnings():  # of the tied head, and that fan_in_fan_out is not for it
        warnings.simplefilter("ignore")
        yield pytest.importorskip("peft")


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_computes_what_we_do(kind, lora, peft, tmp_path):
    model = build(kind, lora)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(kind), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(build(kind))).abs().max() > 0.01
    adapted = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules()
               if isinstance(m, peft.tuners.lora.LoraLayer)}  # fmt: skip
    assert adapted == set(adapters(model))


PEFT_CHOICES = {
    "gpt2, fused": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2, head": ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    "gpt2, patterns": (
        "gpt2",
        {
            **{"target_modules": r".*\.(c_attn|mlp\.c_proj)", "use_rslora": True},
            **{"rank_pattern": {"c_attn": 5}, "alpha_pattern": {r"h\.1\.mlp\.c_proj": 7}},
        },
    ),
    "gpt2, a layer": ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [1]}),
    "llama": ("llama", {"target_modules": "all-linear", "lora_dropout": 0.1}),
    "llama, head": ("llama", {"target_modules": ["q_proj", "v_proj", "lm_head"]}),
    "llama, tied head": ("llama_tied", {"target_modules": ["down_proj", "lm_head"]}),
}


@pytest.mark.parametrize("choice", PEFT_CHOICES)
def test_we_compute_what_peft_does(choice, peft, tmp_path):
    kind, settings = PEFT_CHOICES[choice]
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(build(kind), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    model = build(kind)
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-5, rtol=1e-5)
    again = tmp_path / "again"  # and what we then write is read again, by both
    again.mkdir()
    save_adapter(model, again)
    for opened in (build(kind), peft.PeftModel.from_pretrained(build(kind), again).eval()):
        if not isinstance(opened, peft.PeftModel):
            load_adapter(opened, again)
        torch.testing.assert_close(logits(opened), logits(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_checkpoint_holds_the_adapter_alone_and_comes_back_bit_for_bit(kind, lora, tmp_path):
    model = build(kind, lora)
    folder = tmp_path / "step_00000001"
    write_folder(folder, lambda beside: save_adapter(model, beside), step=1)
    files = {path.name for path in folder.iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}
    saved = load_file(folder / "adapter_model.safetensors")
    sides = {f"base_model.model.{n}.lora_{x}.weight" for n in adapters(model) for x in "AB"}
    assert saved.keys() == sides

    resumed = build(kind, lora, trained=False)
    parameters = [p for p in resumed.parameters() if p.requires_grad]
    load_adapter(resumed, folder)
    assert_same(resumed.state_dict(), model.state_dict())
    kept = [p for p in resumed.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(parameters, kept, strict=True))  # the optimizer has them
    assert torch.equal(logits(resumed), logits(model))

    bare = build(kind)
    load_adapter(bare, folder)
    torch.testing.assert_close(logits(bare), logits(model), atol=1e-6, rtol=1e-5)


def test_a_sharded_models_whole_tensors_are_what_is_saved(tmp_path):
    model = build("gpt2", LoraConfig(r=2))
    whole = {n: t + 1 for n, t in model.state_dict().items() if ".lora." in n}
    save_adapter(model, tmp_path, whole)
    assert_same(adapter_weights(model, tmp_path), whole)


def test_the_configuration_is_short_and_exact(tmp_path):
    save_adapter(build("gpt2", LoraConfig(r=4, alpha=8, scaling="rslora")), tmp_path)
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert facts["target_modules"] == ["c_attn", "c_fc", "c_proj", "lm_head"]
    assert (facts["r"], facts["lora_alpha"], facts["use_rslora"]) == (4, 16, False)
    assert (facts["rank_pattern"], facts["alpha_pattern"]) == ({"c_attn": 12}, {"c_attn": 48})
    assert facts["fan_in_fan_out"] is True and facts["task_type"] == "CAUSAL_LM"
    save_adapter(build("llama", LoraConfig(r=4, layers="last:1", head=False)), tmp_path)
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(facts["target_modules"]) == 7 and facts["rank_pattern"] == {}
    assert all(name.startswith("model.layers.1.") for name in facts["target_modules"])
    assert facts["fan_in_fan_out"] is False


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    save_adapter(build("gpt2", LoraConfig(r=4, alpha=8, qkv="fused")), tmp_path)
    for lora, words in (
        (LoraConfig(r=4, alpha=8), "--lora_r and --lora_qkv"),
        (LoraConfig(r=8, alpha=16, qkv="fused"), "rank 4 for .*, this model 8"),
        (LoraConfig(r=4, alpha=4, qkv="fused"), "scales .* by 2, this model by 1"),
        (LoraConfig(r=4, alpha=8, qkv="fused", head=False), "adapts lm_head"),
    ):
        with pytest.raises(ValueError, match=words):
            load_adapter(build("gpt2", lora), tmp_path)
    with pytest.raises(ValueError, match="no LoRA weight of a map of this model"):
        load_adapter(build("llama"), tmp_path)
    save_adapter(build("gpt2", LoraConfig(r=4, head=False, layers="last:1")), tmp_path)
    with pytest.raises(ValueError, match="does not adapt lm_head"):
        load_adapter(build("gpt2", LoraConfig(r=4, layers="last:1")), tmp_path)
    with pytest.raises(ValueError, match="no LoRA adapter"):
        save_adapter(build("gpt2"), tmp_path)


def test_a_fused_adapter_that_mixes_q_k_v_is_not_split(tmp_path):
    model = build("gpt2", LoraConfig(r=12, alpha=12, qkv="fused", head=False))
    for name, module in adapters(model).items():
        if not name.endswith("c_attn"):
            module.lora.A.data, module.lora.B.data = module.lora.A[:4], module.lora.B[:, :4]
            module.lora.A.data, module.lora.B.data = module.lora.A.clone(), module.lora.B.clone()
    save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="mixes q, k and v"):
        load_adapter(build("gpt2", LoraConfig(r=4, alpha=4, head=False)), tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_other_kinds_of_adapters_are_refused(change, words, tmp_path):
    save_adapter(build("gpt2", LoraConfig(r=2)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = build("gpt2")
    with pytest.raises(ValueError, match=words):
        load_adapter(model, tmp_path)
    assert not adapters(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("transformer.h.0.attn.c_attn.lora_magnitude_vector.weight", torch.ones(96), "no LoRA"),
        ("transformer.h.0.attn.c_attn.bias", torch.ones(96), "no LoRA weight"),
        ("lm_head.base_layer.weight", torch.ones(VOCABULARY, 32), "no LoRA weight"),
        ("transformer.h.0.attn.c_attn.lora_A.weight", torch.ones(6, 31), "another base"),
        ("transformer.h.0.attn.c_attn.lora_A.weight", None, "half of the adapter"),
    ],
)
def test_tensors_that_are_not_plain_lora_are_refused(key, value, words, tmp_path):
    save_adapter(build("gpt2", LoraConfig(r=2)), Path(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path) | {f"base_model.model.{key}": value}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    with pytest.raises(ValueError, match=words):
        load_adapter(build("gpt2"), tmp_path)
