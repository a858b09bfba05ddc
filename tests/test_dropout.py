"""Dropout from 16-bit words drops as often as it should, independently, and repeatably."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import bert_config
from torch import nn
from transformers.integrations import sdpa_attention

from methods.dropout import (
    ATTENTION,
    WordDropout,
    keep_mask,
    sdpa_word_dropout,
    set_dropout,
    use_word_dropout,
    word_dropout,
)


def mask_of(count: int, p: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return keep_mask(torch.empty(count), p)[0]


@pytest.mark.parametrize("p", [1 / 65536, 0.01, 0.1, 0.25, 0.5, 0.9])
def test_rate_of_dropping(p):
    count = 4_000_000
    dropped = count - int(mask_of(count, p).sum())
    rate = keep_mask(torch.empty(1), p)[1]
    assert rate == pytest.approx(p, abs=0.5 / 65536)
    assert abs(dropped - count * rate) < 5 * math.sqrt(count * rate * (1 - rate))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_of_the_four_words_drops_at_the_rate(p):
    kept = mask_of(4_000_000, p).view(-1, 4).double().mean(0)
    rate = round(65536 * p) / 65536
    assert (kept - (1 - rate)).abs().max() < 5 * math.sqrt(rate * (1 - rate) / 1e6)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_neighbours_in_one_random_number_are_independent(p):
    keep = mask_of(4_000_000, p).view(-1, 4).long()
    found = torch.bincount(keep @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    rate = round(65536 * p) / 65536
    expected = torch.tensor(
        [
            math.prod(1 - rate if kept else rate for kept in pattern)
            for pattern in itertools.product((0, 1), repeat=4)
        ],
        dtype=torch.float64,
    ) * len(keep)
    chi_square = ((found - expected) ** 2 / expected).sum()
    assert chi_square < 50  # 15 degrees of freedom: exceeded once in 80,000 draws


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 8, 64, 768])
def test_elements_at_a_distance_are_uncorrelated(distance):
    keep = mask_of(2_000_000, 0.1).double() - 0.9
    correlation = (keep[:-distance] * keep[distance:]).mean() / 0.09
    assert abs(correlation) < 5 / math.sqrt(2_000_000)


def test_dropout_is_unbiased():
    for p in (0.1, 0.5):
        torch.manual_seed(0)
        out = word_dropout(torch.ones(4_000_000), p)
        rate = round(65536 * p) / 65536
        kept = out[out != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
        assert abs(out.double().mean() - 1) < 5 * math.sqrt(rate / (1 - rate) / 4e6)


def test_the_gradient_passes_where_the_value_did():
    x = torch.ones(7, 13, requires_grad=True)
    torch.manual_seed(0)
    out = word_dropout(x, 0.4)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert 0 < (out == 0).sum() < out.numel()


def test_the_seed_decides_the_mask():
    assert torch.equal(mask_of(999, 0.5, seed=3), mask_of(999, 0.5, seed=3))
    assert not torch.equal(mask_of(999, 0.5, seed=3), mask_of(999, 0.5, seed=4))
    torch.manual_seed(3)
    first, second = (keep_mask(torch.empty(999), 0.5)[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 5), (0,), (), (4, 0, 2)])
def test_any_shape(shape):
    x = torch.randn(shape)
    keep, _ = keep_mask(x, 0.5)
    assert keep.shape == x.shape and keep.dtype == torch.bool
    out = word_dropout(x, 0.5)
    assert out.shape == x.shape
    assert ((out == 0) | torch.isclose(out, 2 * x)).all()


def test_a_view_that_is_not_contiguous():
    x = torch.randn(6, 4).t()
    out = word_dropout(x, 0.5)
    assert ((out == 0) | torch.isclose(out, 2 * x)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_stays(dtype):
    assert word_dropout(torch.ones(9, dtype=dtype), 0.1).dtype == dtype


def test_nothing_is_dropped_or_drawn_without_need():
    x = torch.randn(10)
    state = torch.get_rng_state()
    assert word_dropout(x, 0.0) is x
    assert word_dropout(x, 0.5, training=False) is x
    layer = WordDropout(0.5).eval()
    assert layer(x) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(layer.train()(x), x)


class Attention(nn.Module):
    is_causal = False


def heads(batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn(batch, 2, 6, 8) for _ in range(3))


def masks() -> dict[str, torch.Tensor | None]:
    """The last two keys of the second row are padding, as a bool mask and as an added one."""
    keep = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    keep[1, :, :, 4:] = False
    added = torch.zeros(2, 1, 6, 6).masked_fill(~keep, torch.finfo(torch.float32).min)
    return {"none": None, "bool": keep, "added": added}


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_without_dropout_is_sdpa(kind):
    q, k, v = heads()
    mask = masks()[kind]
    out, weights = sdpa_word_dropout(Attention(), q, k, v, mask, dropout=0.0)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    assert weights is None
    # the same through the path that draws masks: a rate that rounds to none
    written_out, _ = sdpa_word_dropout(Attention(), q, k, v, mask, dropout=1e-9)
    torch.testing.assert_close(written_out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_written_out_in_16_bits_is_near_sdpa_in_32(kind, causal, monkeypatch):
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", None)  # is not called
    module, mask = Attention(), masks()[kind]
    wanted, found = (
        [x.to(dtype).requires_grad_() for x in heads()] for dtype in (torch.float, torch.bfloat16)
    )
    seen = torch.ones(6, 6, dtype=torch.bool).tril() if causal and mask is None else mask
    expected = F.scaled_dot_product_attention(*wanted, attn_mask=seen).transpose(1, 2)
    out, _ = sdpa_word_dropout(module, *found, mask, is_causal=causal)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0.03)
    toward = torch.randn(out.shape)
    gradients = (
        torch.autograd.grad(made, of, toward.to(made.dtype))
        for made, of in ((expected, wanted), (out, found))
    )
    for right, near in zip(*gradients, strict=True):
        torch.testing.assert_close(near.float(), right, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "words",
    [{}, {"keys": 257}, {"groups": 1}, {"position_bias": torch.zeros(1)}, {"softcap": 9.0}],
    ids=str,
)
def test_what_is_not_written_out_goes_to_sdpa(words, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        sdpa_attention, "sdpa_attention_forward", lambda *x, **more: seen.update(more) or (x[1], 0)
    )
    more = dict(words)
    keys, groups = more.pop("keys", 6), more.pop("groups", 2)
    q = torch.randn(1, 2, 6, 8, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, groups, keys, 8, dtype=torch.bfloat16)
    q.requires_grad_(bool(words))  # without a backward pass SDPA is fast enough
    out, _ = sdpa_word_dropout(Attention(), q, k, v, None, **more)
    assert out is q and more.items() <= seen.items()


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
def test_a_query_that_sees_nothing_spoils_nothing(lowest):
    q, k, v = (x.requires_grad_() for x in heads())
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, 2] = lowest
    out, _ = sdpa_word_dropout(Attention(), q, k, v, mask, dropout=1e-9)
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert out.isfinite().all() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("scaling", [None, 0.1])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_with_dropout_is_right_on_average(kind, scaling):
    q, k, v = heads()
    mask, draws = masks()[kind], 4000
    many = [x.repeat_interleave(draws, 0) for x in (q, k, v)]
    many_mask = None if mask is None else mask.repeat_interleave(draws, 0)
    torch.manual_seed(0)
    out, _ = sdpa_word_dropout(Attention(), *many, many_mask, dropout=0.2, scaling=scaling)
    out = out.view(2, draws, 6, 2, 8)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    error = (out.mean(1) - exact.transpose(1, 2)).abs()
    assert (out.std(1) > 0.01).all()
    assert (error < 5 * out.std(1) / math.sqrt(draws)).all()


def test_causal_attention_stays_causal():
    q, k, v = heads()
    changed = [torch.cat([x[:, :, :-1], torch.randn(2, 2, 1, 8)], 2) for x in (k, v)]
    outs = []
    for keys, values in ((k, v), changed):
        torch.manual_seed(0)
        out = sdpa_word_dropout(Attention(), q, keys, values, None, 0.2, is_causal=True)[0]
        outs.append(out[:, :-1])
    assert torch.equal(*outs)


def test_a_module_that_does_not_say_is_treated_alike_with_and_without_dropout():
    q, k, v = heads()
    outs = [sdpa_word_dropout(nn.Module(), q, k, v, None, p)[0] for p in (0.0, 1e-9)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)


def small_bert(**options):
    from transformers import BertModel

    torch.manual_seed(0)
    config = bert_config(
        vocab_size=60,
        intermediate_size=48,
        max_position_embeddings=32,
        attn_implementation="sdpa",
        **options,
    )
    return BertModel(config, add_pooling_layer=False)


def padded_batch(filler: int) -> dict[str, torch.Tensor]:
    """Rows of 9 and 5 tokens; `filler` stands where the second row is padded."""
    torch.manual_seed(7)
    input_ids = torch.randint(1, 50, (2, 9))
    input_ids[1, 5:] = filler
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


def real_tokens(model, filler: int, seed: int = 0) -> torch.Tensor:
    batch = padded_batch(filler)
    torch.manual_seed(seed)
    hidden = model(**batch).last_hidden_state
    return hidden[batch["attention_mask"].bool()]


@pytest.mark.parametrize("training", [False, True])
def test_padding_is_still_ignored(training):
    model = small_bert()
    use_word_dropout(model)
    model.train(training)
    torch.testing.assert_close(real_tokens(model, 3), real_tokens(model, 55), rtol=0, atol=1e-6)
    assert torch.equal(real_tokens(model, 3, seed=0), real_tokens(model, 3, seed=1)) != training


def test_evaluation_is_that_of_the_original_model():
    model = small_bert().eval()
    original = copy.deepcopy(model)
    use_word_dropout(model)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(real_tokens(model, 0), real_tokens(original, 0))
    assert model.state_dict().keys() == original.state_dict().keys()


def test_no_dropout_of_torchs_is_left():
    model = small_bert(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    before = [m.p for m in model.modules() if type(m) is nn.Dropout]
    use_word_dropout(model)
    assert not any(type(module) is nn.Dropout for module in model.modules())
    assert [m.p for m in model.modules() if type(m) is WordDropout] == before
    assert model.config._attn_implementation == ATTENTION


def test_attention_weights_are_dropped_in_training():
    model = small_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    use_word_dropout(model)
    model.train()
    assert not torch.equal(real_tokens(model, 0, seed=0), real_tokens(model, 0, seed=1))
    assert torch.equal(real_tokens(model, 0, seed=0), real_tokens(model, 0, seed=0))


def test_training_is_right_on_average():
    """The mean over draws of one attention layer's output is what torch's own dropout gives."""
    means = []
    for words in (False, True):
        model = small_bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        if words:
            use_word_dropout(model)
        model.train()
        batch = {name: x.repeat(2000, 1) for name, x in padded_batch(0).items()}
        torch.manual_seed(0)
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state.view(2000, 2, 9, 32)
        means.append((hidden.mean(0), hidden.var(0) / 2000))
    (a, a_error), (b, b_error) = means
    keep = padded_batch(0)["attention_mask"].bool()
    z = ((a - b) / (a_error + b_error).sqrt())[keep]
    assert z.abs().max() < 5
    assert abs(float(z.std()) - 1) < 0.2


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2}
RATES = {  # where each family holds its rates: modules, floats of layers, its configuration
    "gpt2": {"n_positions": 32},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "attention_dropout": 0.1},
    "bloom": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "falcon": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "starcoder2": {
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "residual_dropout": 0.1,
        "embedding_dropout": 0.1,
    },
    "gpt_bigcode": {"n_positions": 32},
    "xglm": {"ffn_dim": 32, "activation_dropout": 0.1, "layerdrop": 0.0},
    "budget-bert": {"intermediate_size": 32},
}


def tiny_of(kind: str, **changes) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    from models import bert  # noqa: F401, registers our architecture

    sizes = {"vocab_size": 50, "hidden_size": 16, **SMALL, **RATES[kind], **changes}
    return AutoModel.from_config(AutoConfig.for_model(kind, **sizes))


def two_passes(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.arange(1, 9)[None]
    return [model.train()(input_ids=ids).last_hidden_state for _ in range(2)]


@pytest.mark.parametrize("kind", RATES)
def test_no_dropout_is_none_in_any_architecture(kind):
    model = tiny_of(kind)
    assert not torch.equal(*two_passes(model))
    set_dropout(model, 0.0)
    assert torch.equal(*two_passes(model))
    set_dropout(model, 0.5)  # also where a rate was 0, which JSON may have as a whole number
    assert not torch.equal(*two_passes(model))


def test_what_draws_numbers_in_a_way_unknown_is_refused():
    model = tiny_of("xglm", layerdrop=0.5)
    state = torch.default_generator.get_state()
    with pytest.raises(ValueError, match="--dropout 0: xglm draws numbers in training all the"):
        set_dropout(model, 0.0)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_frozen_embeddings_do_not_vary_where_the_model_itself_drops_them():
    from models import causal

    model = tiny_of("starcoder2")
    model.embed_tokens.requires_grad_(False)
    causal.still_embeddings(model)
    assert model.embedding_dropout == 0
    assert model.layers[0].mlp.residual_dropout == 0.1
