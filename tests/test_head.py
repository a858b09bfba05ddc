"""The pair head and the classifier around it."""

import copy
import math

import pytest
import torch
from torch import nn

import core
from data.style import NAMES, exchanged
from methods.dropout import use_word_dropout
from models import heads, pretrained

HEADS = {
    "concat": core.ConcatHead,
    "symmetric": heads.SymmetricHead,
    "davidson": heads.DavidsonHead,
}


def classifier(folder, head: str = "concat", freeze: str = "none") -> core.PairClassifier:
    encoder = pretrained.load_encoder(str(folder))
    pretrained.freeze(encoder, freeze)
    torch.manual_seed(0)
    return core.PairClassifier(encoder, HEADS[head](encoder.config.hidden_size))


def pairs(rows: int = 5, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of A's sides, then of B's, of different lengths."""
    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(5, 100, (2 * rows, length), generator=draw)
    lengths = torch.randint(3, length + 1, (2 * rows, 1), generator=draw)
    mask = (torch.arange(length) < lengths).long()
    return ids * mask, mask


@pytest.mark.parametrize("rows, hidden, classes", [(1, 8, 3), (7, 16, 2), (0, 8, 3)])
def test_concat_head_gives_a_logit_a_class(rows, hidden, classes):
    head = core.ConcatHead(hidden, classes)
    assert head(torch.randn(rows, hidden), torch.randn(rows, hidden)).shape == (rows, classes)


def test_concat_head_reads_both_sides_in_their_order():
    head = core.ConcatHead(8).eval()
    a, b = torch.randn(2, 4, 8)
    assert not torch.allclose(head(a, b), head(b, a))
    assert not torch.allclose(head(a, b), head(a, b + 1))


@pytest.mark.parametrize("kind", ["symmetric", "davidson"])
@pytest.mark.parametrize("hidden", [1, 7, 32, 384])
@pytest.mark.parametrize("rows", [1, 2, 5, 33, 64])
def test_swapping_the_answers_swaps_the_logits_exactly(hidden, rows, kind):
    torch.manual_seed(hidden * rows)
    head = HEADS[kind](hidden).eval()
    for scale in (30.0, 1e-3, 1.0):
        a, b = scale * torch.randn(2, rows, hidden)
        logits, swapped = head(a, b), head(b, a)
        assert logits.shape == (rows, 3)
        assert torch.equal(swapped, logits[:, [1, 0, 2]])
    assert not torch.equal(logits[:, 0], logits[:, 1])


def test_two_classes_are_three_without_the_tie():
    """With the same weights the logits of A and B are those beside a tie."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 16)
    for kind, left_out in ((heads.SymmetricHead, 1), (core.ConcatHead, 2)):
        three, two = kind(16).eval(), kind(16, classes=2).eval()
        weights = three.state_dict()
        for name in ("out.weight", "out.bias"):
            weights[name] = weights[name][:left_out]
        two.load_state_dict(weights)
        torch.testing.assert_close(two(a, b), three(a, b)[:, :2])


def test_equal_answers_get_equal_logits():
    head = heads.SymmetricHead(16).eval()
    a = torch.randn(9, 16)
    logits = head(a, a)
    assert torch.equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("words", [False, True])
def test_one_pass_equals_two(tiny_bert, head, words):
    model = classifier(tiny_bert, head)
    if words:
        use_word_dropout(model.encoder)
    model.eval()
    ids, mask = pairs(6)
    a, b = (
        model.encoder(input_ids=i, attention_mask=m).last_hidden_state[:, 0]
        for i, m in zip(ids.chunk(2), mask.chunk(2), strict=True)
    )
    torch.testing.assert_close(model(ids, mask), model.head(a, b), rtol=0, atol=1e-5)
    assert model(ids, mask).shape == (6, 3)


def test_rows_do_not_see_each_other_or_padding(tiny_bert):
    model = classifier(tiny_bert).eval()
    ids, mask = pairs(4)
    one = torch.tensor([2, 6])  # the two sides of the third row
    longest = int(mask[one].sum(1).max())
    alone = model(ids[one, :longest], mask[one, :longest])
    torch.testing.assert_close(model(ids, mask)[2:3], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(tiny_bert, head):
    model = classifier(tiny_bert, head).train()
    logits = model(*pairs())
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    zero = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert [name for name in zero if not name.endswith("key.bias")] == []  # softmax ignores it


@pytest.mark.parametrize("words", [False, True])
def test_frozen_parts_stay_in_evaluation_mode(tiny_bert, words):
    model = classifier(tiny_bert, freeze="bottom:1")
    if words:
        use_word_dropout(model.encoder)
    for _ in range(2):
        model.eval()
        assert not any(module.training for module in model.modules())
        core.train_but_frozen(model)
        layers = pretrained.find_layers(model.encoder)
        assert not any(module.training for module in layers[0].modules())
        assert not any(module.training for module in model.encoder.embeddings.modules())
        assert all(module.training for module in layers[1].modules())
        assert all(module.training for module in model.head.modules())
        assert model.training

    def hidden(seed):
        torch.manual_seed(seed)
        ids, mask = pairs()
        return model.encoder(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states

    first, second = hidden(0), hidden(1)
    assert torch.equal(first[1], second[1])  # the frozen layer gives the same each time
    assert not torch.equal(first[2], second[2])


def test_a_frozen_encoder_gives_the_same_each_time(tiny_bert):
    model = classifier(tiny_bert, freeze="all")
    core.train_but_frozen(model)
    sides = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sides.append(torch.stack(model.embed(*pairs())))
    assert torch.equal(*sides)
    assert model.head.training
    assert not torch.equal(model(*pairs()), model(*pairs()))  # the head's dropout


def test_nothing_frozen_trains_everything(tiny_bert):
    model = classifier(tiny_bert).train()
    assert all(module.training for module in model.modules())
    frozen = copy.deepcopy(model)
    pretrained.freeze(frozen.encoder, "none")
    assert all(p.requires_grad for p in frozen.parameters())


def test_davidson_gives_the_probabilities_of_his_equations():
    """Davidson 1970, (2.4) and (2.5), written out for one pair after the other."""
    torch.manual_seed(1)
    head = heads.DavidsonHead(6).eval()
    with torch.no_grad():
        head.threshold.fill_(-0.7)
        a, b = 3 * torch.randn(2, 9, 6)
        p = head(a, b).softmax(dim=-1)
        worths = [head.worth(side).exp() for side in (a, b)]
    nu = math.exp(-0.7)
    for row, (first, second) in enumerate(zip(*worths, strict=True)):
        even = nu * math.sqrt(first * second)
        total = first + second + even
        plain = [float(x / total) for x in (first, second, even)]
        assert p[row].tolist() == pytest.approx(plain, abs=1e-6)
    # a tie is never likelier than between equals, where its odds to a win are ν
    assert p[:, 2].max() <= nu / (2 + nu) + 1e-6
    assert head(a, a).softmax(-1)[0].tolist() == pytest.approx([1 / (2 + nu)] * 2 + [nu / (2 + nu)])


@pytest.mark.parametrize("kind", ["symmetric", "davidson"])
def test_style_in_the_head_keeps_it_symmetric_and_is_read(kind):
    torch.manual_seed(2)
    features = torch.randn(5, len(NAMES))
    scale = heads.style_scale(features.numpy())
    assert torch.equal(exchanged(scale[0][None])[0], scale[0]), "neither side has a mean of its own"
    head = heads.StyleHead(HEADS[kind](8 + heads.STYLE_SIZE), *scale).eval()
    a, b = torch.randn(2, 5, 8)
    logits = head(a, b, features)
    assert torch.equal(head(b, a, exchanged(features)), logits[:, [1, 0, 2]])
    assert not torch.allclose(head(a, b, exchanged(features)), logits)


def test_the_mean_leaves_padding_out(tiny_bert):
    model = heads.MeanPairs(pretrained.load_encoder(str(tiny_bert)).eval(), None)
    ids, mask = pairs()
    with torch.no_grad():
        states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        means = model.first_tokens(ids, mask)
        for row, length in enumerate(mask.sum(dim=1)):
            assert torch.allclose(means[row], states[row, :length].mean(dim=0), atol=1e-6)
