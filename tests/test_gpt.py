"""The small GPT: its sizes, its switches, what it shares with transformers' models, its losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import gpt2_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from core import IGNORE_INDEX
from methods.dropout import use_word_dropout
from methods.r_drop import r_drop
from models import gpt, pretrained
from models.decoding import Decoding

EOS = 3
TINY = {
    "vocab_size": 61,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "n_positions": 24,
    "eos_token_id": EOS,
}
# the exercise's baseline, but for its sizes
BASELINE = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True}
SWITCHES = [
    {},
    BASELINE,
    {"qk_norm": True, "tie_word_embeddings": False},
    {"norm": "layernorm", "positions": "learned", "attention_gate": True},
    {
        "bias": True,
        "attention_gate": True,
        "layer_scale": 0.3,
        "qk_norm": True,
        "scale_residual_init": True,
    },
]


def build(seed: int = 0, **settings) -> gpt.SmallGPTForCausalLM:
    """A tiny model in evaluation mode; its weights, also of norms and biases, tell places apart."""
    model = gpt.build_gpt(seed, **{**TINY, **settings}).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.15 if parameter.ndim == 2 else 0.2
            parameter += spread * torch.randn(parameter.shape, generator=draw)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Ids without <eos>."""
    return torch.randint(EOS + 1, 61, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-5, msg=name)


# ------------------------------------------------------------------------ sizes, start


def test_the_baseline_has_the_published_number_of_parameters():
    config = gpt.SmallGPTConfig(**BASELINE)
    with torch.device("meta"):
        model = gpt.SmallGPTForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == 27_172_864
    assert gpt.parameter_count(config) == 27_172_864


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_formula_counts_every_parameter_and_each_gets_a_gradient(switches):
    model = build(**switches)
    assert sum(p.numel() for p in model.parameters()) == gpt.parameter_count(model.config)
    ids = tokens(2, 24)  # as many as there are positions
    model(ids, shift_labels=ids).loss_sum.backward()
    assert len(gradients(model)) == len(list(model.parameters()))
    layers = {pretrained.layer_of(name) for name, _ in model.named_parameters()}
    assert layers <= {"embeddings", "layer_0", "layer_1", "norm", "lm_head"}


def test_swiglu_has_as_many_parameters_as_gelu():
    for width in (64, 448, 512):
        sizes = {"n_embd": width, "n_head": 8}
        gated, plain = (
            gpt.parameter_count(gpt.SmallGPTConfig(mlp=mlp, **sizes)) for mlp in ("swiglu", "gelu")
        )
        assert gated == pytest.approx(plain, rel=0.01)


def test_the_first_loss_is_the_published_one():
    model = gpt.build_gpt(seed=0, **BASELINE)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 16000, (1, 129), generator=draw).repeat(2, 1)
    # ln 16,000 + .02² · 512 / 2: the last norm leaves states of length √512
    loss = model(ids[:, :-1], shift_labels=ids[:, 1:]).loss.item()
    assert loss == pytest.approx(9.77, abs=0.05)


def test_weights_begin_as_said():
    sizes = {**TINY, "n_embd": 128, "n_layer": 8, "bias": True, "layer_scale": 0.1}
    model = gpt.build_gpt(seed=0, scale_residual_init=True, qk_norm=True, **sizes)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.05), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        elif name.endswith("_scale"):
            assert (parameter == 0.1).all(), name
        else:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
    plain = gpt.build_gpt(seed=0, **TINY).model.layers[0].mlp.down_proj.weight
    assert plain.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(plain, gpt.build_gpt(seed=0, **TINY).model.layers[0].mlp.down_proj.weight)
    assert not torch.equal(
        plain, gpt.build_gpt(seed=1, **TINY).model.layers[0].mlp.down_proj.weight
    )


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_flops_are_those_that_torch_counts(switches):
    model = build(**switches)
    rows, length = 3, 20
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens(rows, length))
    # written out, attention compares every pair
    every = rows * length**2
    expected = gpt.forward_flops(model.config, rows * length, every, targets=rows * length)
    assert counter.get_total_flops() == expected


def test_pairs_of_a_title_are_those_of_its_triangle():
    assert gpt.causal_pairs([1, 4]) == 1 + (1 + 2 + 3 + 4)


# ------------------------------------------------------------------------ transformers


def test_rotary_positions_equal_those_of_transformers_llama():
    config = build(n_embd=64, rope_theta=700.0)
    llama = gpt.to_transformers(config).config
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 0, 1, 100]])
    query, key = torch.randn(2, 5, 2, 32), torch.randn(2, 5, 2, 32)
    cos, sin = LlamaRotaryEmbedding(llama)(query, positions)
    expected = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    tables = gpt.rotary_tables(positions, size=32, theta=700.0)
    torch.testing.assert_close(gpt.rotate(query, *tables), expected[0])
    torch.testing.assert_close(gpt.rotate(key, *tables), expected[1])


@pytest.mark.parametrize("switches", [{}, {"qk_norm": True}, {"tie_word_embeddings": False}])
def test_the_llama_style_opens_in_transformers_with_equal_logits(switches, tmp_path):
    model = build(rope_theta=1000.0, norm_eps=1e-3, **switches)
    gpt.to_transformers(model).save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.config.model_type == ("qwen3" if "qk_norm" in switches else "llama")
    ids = tokens(3, 20)
    torch.testing.assert_close(opened(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    labels = ids.masked_fill(ids % 5 == 0, IGNORE_INDEX)
    theirs, ours = opened(ids, labels=labels).loss, model(ids, labels=labels)
    torch.testing.assert_close(theirs, ours.loss)
    assert ours.num_targets == (labels[:, 1:] != IGNORE_INDEX).sum()


@pytest.mark.parametrize("switches", [{"mlp": "gelu"}, {"bias": True}, {"layer_scale": 1.0}])
def test_what_llama_does_not_have_is_named(switches):
    with pytest.raises(ValueError, match=f"no {next(iter(switches))}="):
        gpt.to_transformers(build(**switches))


def test_the_baseline_is_the_network_of_transformers_gpt2():
    model = build(**BASELINE)
    theirs = GPT2LMHeadModel(
        gpt2_config(vocab_size=61, n_positions=24, activation_function="gelu")
    ).eval()
    weights = {}
    names = {
        "model.embed_tokens": ["wte"],
        "model.embed_positions": ["wpe"],
        "model.norm": ["ln_f"],
        "input_layernorm": ["ln_1"],
        "post_attention_layernorm": ["ln_2"],
        "self_attn.o_proj": ["attn.c_proj"],
        "mlp.up_proj": ["mlp.c_fc"],
        "mlp.down_proj": ["mlp.c_proj"],
    }
    ours = model.state_dict()
    for name, (other,) in names.items():
        layers = [""] if name.startswith("model.") else [f"model.layers.{n}." for n in range(2)]
        for prefix in layers:
            for kind in ("weight", "bias"):
                if f"{prefix}{name}.{kind}" in ours:
                    tensor = ours[f"{prefix}{name}.{kind}"]
                    turned = tensor.T if "_proj" in name and kind == "weight" else tensor
                    place = prefix.replace("model.layers", "h")
                    weights[f"transformer.{place}{other}.{kind}"] = turned
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [ours[f"model.layers.{layer}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            joined = torch.cat(parts)
            turned = joined.T if kind == "weight" else joined
            weights[f"transformer.h.{layer}.attn.c_attn.{kind}"] = turned
    weights["lm_head.weight"] = ours["lm_head.weight"]
    theirs.load_state_dict(weights)
    ids = tokens(2, 24)
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_saved_model_opens_again(switches, tmp_path):
    model = build(**switches, within_titles=True)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(opened) is gpt.SmallGPTForCausalLM
    assert opened.config.within_titles and opened.config.n_inner == model.config.n_inner
    ids = tokens(2, 9)
    ids[:, 4] = EOS
    assert torch.equal(opened(ids).logits, model(ids).logits)
    states = AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state
    assert torch.equal(model.lm_head(states), model(ids).logits)


# ----------------------------------------------------------------- attention in titles


def titles(*lengths: int) -> list[torch.Tensor]:
    """Rows that begin with <eos>, as a title's input does."""
    rows = [tokens(1, length, seed=number) for number, length in enumerate(lengths)]
    return [torch.cat([torch.tensor([[EOS]]), row[:, 1:]], dim=1) for row in rows]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("packed_rows", [1, 2])
def test_attention_within_titles_equals_separate_sequences(switches, packed_rows):
    model = build(**switches, within_titles=True)
    rows = titles(5, 1, 14, 7, 11, 2)  # two rows of 20, or one of 40
    packed = torch.cat(rows, dim=1).view(packed_rows, -1)
    after = tokens(*packed.shape, seed=9)
    alone = torch.cat([model(row).logits[0] for row in rows])
    torch.testing.assert_close(model(packed).logits.flatten(0, 1), alone, rtol=1e-4, atol=1e-5)

    start = 0
    for row in rows:
        end = start + row.shape[1]
        model(row, shift_labels=after.view(1, -1)[:, start:end]).loss_sum.backward()
        start = end
    expected = gradients(model)
    found = model(packed, shift_labels=after)
    found.loss_sum.backward()
    assert found.num_targets == 40
    assert_same(gradients(model), expected)


def test_a_title_does_not_see_the_one_before_it_unless_it_is_meant_to():
    ids = torch.cat(titles(6, 6), dim=1)
    changed = ids.clone()
    changed[0, 2] = 50
    for within in (True, False):
        model = build(within_titles=within)
        seen = (model(ids).logits - model(changed).logits).abs().amax(-1)[0] > 1e-6
        assert seen[2:6].all() and not seen[:2].any()
        assert seen[6:].any() == (not within)


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_half_precision_is_near_single_within_titles_and_without(switches, words):
    for within in (True, False):
        model = build(**switches, within_titles=within)
        if words:  # attention as it is trained on a CPU
            use_word_dropout(model)
        ids = torch.cat(titles(9, 4, 7), dim=1)
        model(ids, shift_labels=ids).loss_sum.backward()
        wanted = gradients(model)
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, shift_labels=ids).loss_sum.backward()
        found = gradients(model)
        off = sum((found[n] - wanted[n]).square().sum() for n in wanted)
        assert 0 < off < 0.05**2 * sum(g.square().sum() for g in wanted.values())
        logits = model.bfloat16()(ids).logits
        assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_segment_ids_part_a_row_as_titles_do():
    ids = torch.cat(titles(5, 8, 3), dim=1)
    segment_ids = torch.tensor([[7] * 5 + [2] * 8 + [7] * 3])  # stretches, whatever the number
    free, bound = build(), build(within_titles=True)
    expected = bound(ids).logits
    torch.testing.assert_close(free(ids, segment_ids=segment_ids).logits, expected)
    whole = torch.zeros_like(ids)
    torch.testing.assert_close(bound(ids, segment_ids=whole).logits, free(ids).logits)
    with pytest.raises(ValueError, match="shift_labels"):
        free(ids, labels=ids, segment_ids=segment_ids)


def test_padding_at_the_end_changes_nothing_and_in_front_is_refused():
    model = build()
    ids, mask = tokens(2, 10), torch.ones(2, 10, dtype=torch.long)
    padded, mask[1, 6:] = ids.clone(), 0
    padded[1, 6:] = 0
    found = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(found[1, :6], model(ids[1:, :6]).logits[0])
    with pytest.raises(ValueError, match="at the end"):
        model(ids, attention_mask=mask.flip(1))


def test_more_tokens_than_learned_positions_are_refused_but_not_longer_packed_rows():
    model = build(**BASELINE, within_titles=True)
    model(torch.cat(titles(20, 20), dim=1))
    with pytest.raises(ValueError, match="25 tokens: the model has 24"):
        model(tokens(1, 25))
    build()(tokens(1, 25))  # rotary


# ------------------------------------------------------------------- the other switches


def test_the_gate_of_a_zero_matrix_halves_attention():
    gated, plain = build(attention_gate=True), build()
    plain.load_state_dict({n: t for n, t in gated.state_dict().items() if "attn.gate" not in n})
    with torch.no_grad():
        for layer, other in zip(gated.model.layers, plain.model.layers, strict=True):
            layer.self_attn.gate_proj.weight.zero_()
            other.self_attn.o_proj.weight *= 0.5
    ids = tokens(2, 8)
    torch.testing.assert_close(gated(ids).logits, plain(ids).logits)


def test_layer_scale_multiplies_each_branch():
    scaled, plain = build(layer_scale=1.0), build()
    plain.load_state_dict({n: t for n, t in scaled.state_dict().items() if "_scale" not in n})
    with torch.no_grad():
        for layer, other in zip(scaled.model.layers, plain.model.layers, strict=True):
            other.self_attn.o_proj.weight *= layer.attention_scale[:, None]
            other.mlp.down_proj.weight *= layer.mlp_scale[:, None]
    ids = tokens(2, 8)
    torch.testing.assert_close(scaled(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_dropout_drops_in_training_alone_and_stays_causal(words, within):
    model = build(dropout=0.2, attention_dropout=0.4, within_titles=within)
    if words:
        use_word_dropout(model)
    ids = torch.cat(titles(9, 9), dim=1)
    changed = ids.clone()
    changed[0, 5:] = 40

    def logits(inputs: torch.Tensor, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(inputs).logits

    assert torch.equal(logits(ids, 0), logits(ids, 1))
    model.train()
    first = logits(ids, 0)
    assert torch.equal(first, logits(ids, 0)) and not torch.allclose(first, logits(ids, 1))
    if not within:  # there other titles draw other masks
        torch.testing.assert_close(first[:, :5], logits(changed, 0)[:, :5])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"mlp": "relu"}, "mlp relu: expected swiglu or gelu"),
        ({"n_head": 3}, "n_embd 32"),
        ({"n_head": 32}, "even"),
        ({"within_titles": True, "eos_token_id": None}, "eos_token_id"),
    ],
)
def test_what_is_no_network_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        gpt.build_gpt(0, **{**TINY, **settings})
    with pytest.raises(TypeError, match="n_embed"):
        gpt.build_gpt(0, n_embed=32)


# ------------------------------------------------------------------------------ losses


def head(targets: int = 37, copies: int = 0, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    shape = (copies, targets, 16) if copies else (targets, 16)
    hidden = torch.randn(shape, generator=draw).requires_grad_()
    weight = torch.randn(61, 16, generator=draw).requires_grad_()
    return hidden, weight, torch.randint(0, 61, (targets,), generator=draw)


@pytest.mark.parametrize("rows_each", [1, 10, 37, 256])
@pytest.mark.parametrize("copies", [0, 2])
def test_losses_by_parts_equal_those_of_all_logits_at_once(rows_each, copies):
    hidden, weight, labels = head(copies=copies)
    losses_of = r_drop if copies else gpt.cross_entropies
    expected = losses_of(hidden @ weight.T, labels)
    wanted = torch.autograd.grad(0.3 * expected.sum(), (hidden, weight))
    largest = []

    def watched(logits, labels):
        largest.append(logits.shape[-2])
        return losses_of(logits, labels)

    loss_sum, losses = gpt.head_losses(hidden, weight, labels, watched, rows_each)
    found = torch.autograd.grad(0.3 * loss_sum, (hidden, weight))
    assert max(largest) <= rows_each and sum(largest) == 37
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(loss_sum, expected.sum())
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)
    assert not losses.requires_grad


def test_nothing_is_differentiated_where_no_gradient_is_asked_for():
    hidden, weight, labels = head()

    def watched(logits, labels):
        assert not logits.requires_grad
        return gpt.cross_entropies(logits, labels)

    with torch.no_grad():
        loss_sum, _ = gpt.head_losses(hidden, weight, labels, watched)
    assert not loss_sum.requires_grad
    assert not gpt.head_losses(hidden.detach(), weight.detach(), labels)[0].requires_grad


def test_in_half_precision_losses_by_parts_are_near_those_in_single():
    hidden, weight, labels = head()
    wanted = torch.autograd.grad(gpt.head_losses(hidden, weight, labels)[0], (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum, losses = gpt.head_losses(hidden, weight, labels, rows_each=8)
    assert losses.dtype == torch.float32
    found = torch.autograd.grad(loss_sum, (hidden, weight))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("tied", [True, False])
def test_the_losses_of_a_model_are_those_of_its_logits(tied):
    model = build(tie_word_embeddings=tied)
    ids, after = tokens(3, 20), tokens(3, 20, seed=2)
    after[0, :7] = IGNORE_INDEX
    after[2] = IGNORE_INDEX
    logits = model(ids).logits
    expected = F.cross_entropy(logits.transpose(1, 2), after, reduction="none")
    expected.sum().backward()
    wanted = gradients(model)
    found = model(ids, shift_labels=after)
    assert found.logits is None and found.num_targets == 33
    torch.testing.assert_close(found.losses, expected[after != IGNORE_INDEX])
    torch.testing.assert_close(found.loss, found.loss_sum / 33)
    found.loss_sum.backward()
    assert_same(gradients(model), wanted)


def test_a_title_is_learned_by_heart():
    model = gpt.build_gpt(0, **{**TINY, "within_titles": True, "qk_norm": True})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.cat(titles(8, 6, 9), dim=1)
    after = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
    for _ in range(80):
        found = model(ids, shift_labels=after)
        (found.loss_sum / found.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    # three titles begin alike: the first token of one is known to log 3
    assert found.loss.item() == pytest.approx(3 * math.log(3) / 23, abs=0.03)


# -------------------------------------------------------------------------- generation


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("within", [False, True])
def test_greedy_generation_with_a_cache_equals_rereading_everything(switches, within):
    model = build(**switches, within_titles=within)
    model.config.eos_token_id = EOS if within else None
    prompt = tokens(3, 4)
    found = model.train().generate(prompt, Decoding(max_new_tokens=12))
    assert model.training
    model.eval()
    ids, ended = prompt, torch.zeros(3, dtype=torch.bool)
    for _ in range(found.shape[1] - 4):
        best = model(ids).logits[:, -1].argmax(-1).masked_fill(ended, EOS)
        ended |= (best == EOS) & within
        ids = torch.cat([ids, best[:, None]], dim=1)
    assert torch.equal(found, ids)
    assert found.shape[1] == 16 or ended.all()


def test_a_row_that_reaches_eos_is_filled_with_it():
    model = build()
    with torch.no_grad():
        model.model.embed_tokens.weight[EOS] *= 12
    prompt = tokens(8, 3)
    found = model.generate(prompt, Decoding(max_new_tokens=20, temperature=1.0))
    for row in found[:, 3:].tolist():
        if EOS in row:
            assert set(row[row.index(EOS) :]) == {EOS}
    assert (found[:, 3:] == EOS).any() and torch.equal(found[:, :3], prompt)
    with pytest.raises(ValueError, match="last title"):
        build(within_titles=True).generate(torch.cat(titles(3, 4), dim=1), Decoding())
