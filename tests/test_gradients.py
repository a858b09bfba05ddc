"""Gradients that are summed inside the backward pass are those of a plain sum after it."""

import pytest
import torch
from sums import Blocks, found_by
from torch import nn

import gradients


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    return found_by(2, str(tmp_path_factory.mktemp("sums")))


@pytest.mark.parametrize("case", ["inside", "memory", "dropped"])
def test_two_ranks_have_the_plain_sum_bit_for_bit(two, case):
    """Accumulation, layers that run on one rank alone, tied weights, two dtypes; and with memory
    that runs out as a bucket is made."""
    for rank in two:
        one = rank[case]
        for found, wanted in zip(one.found, one.wanted, strict=True):
            assert torch.equal(found, torch.zeros_like(found) if wanted is None else wanted)
    if case == "dropped":
        return
    # what no rank has, both call absent: nothing is to be moved by it
    both = [a and b for a, b in zip(*(rank[case].absent for rank in two), strict=True)]
    assert both == [wanted is None for wanted in two[0][case].wanted] and any(both)


def test_buckets_leave_while_the_backward_pass_goes_on(two):
    """Rank 1 runs the last blocks in its last pass; a rank that lacks them has to wait."""
    assert two[1]["inside"].buckets > 4
    assert 0 < two[1]["inside"].early < two[1]["inside"].buckets


def test_dropped_layers_hold_buckets_back_once_and_not_again(two):
    """Where the last micro-batch does not reach a layer, its gradients are complete before."""
    for rank in two:
        first, second, third = rank["dropped"].early
        assert first < second <= third and third >= rank["dropped"].buckets - 1  # `unused` is first


def test_bf16_is_the_sum_of_rounded_gradients_the_same_on_all_ranks(two):
    exact, rounded = two[0]["inside"], two[0]["bf16"]
    for found, wanted in zip(rounded.found, exact.found, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    assert any(not torch.equal(*pair) for pair in zip(rounded.found, exact.found, strict=True))
    first, second = two[0]["bf16 of all"]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_rank_that_gives_up_leaves_the_others_in_step(two):
    for a, b in zip(two[0]["given up"], two[1]["given up"], strict=True):
        assert torch.equal(a, b)
    assert any(gradient.any() for gradient in two[0]["given up"])


def test_all_shapes_are_summed(two):
    for rank in two:
        found, wanted = rank["shapes"]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_buckets_are_cut_from_the_last_parameter_on_by_size_and_dtype():
    model = Blocks()
    buckets = gradients.cut_buckets(model.parameters(), 2000)
    assert [id(p) for bucket in buckets for p in bucket] == [
        id(p) for p in reversed(list(model.parameters()))
    ]
    assert all(len({p.dtype for p in bucket}) == 1 for bucket in buckets)
    sizes = [sum(p.numel() * p.element_size() for p in bucket) for bucket in buckets]
    assert all(n <= 2000 or len(b) == 1 for n, b in zip(sizes, buckets, strict=True))
    small = gradients.cut_buckets([nn.Parameter(torch.zeros(10)) for _ in range(20)], 320, 40)
    assert [len(bucket) for bucket in small] == [1, 2, 4, 8, 5]  # the first leaves early
    assert gradients.cut_buckets([]) == []


def test_a_gradient_that_the_graph_hides_is_an_error():
    """A backward pass inside a backward pass, as of torch's older checkpointing."""
    from torch.utils.checkpoint import checkpoint

    model, sums = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), gradients.GradientSums()
    sums.start(list(model.parameters()))
    sums._looks, sums._send = True, lambda: sums._sent.append(None)
    x = torch.ones(1, 2, requires_grad=True)
    loss = model[1](checkpoint(model[0], x, use_reentrant=True)).sum()
    sums.begin(loss)
    with pytest.raises(RuntimeError, match="the graph of the loss knew nothing"):
        loss.backward()


def test_other_parameters_get_other_buckets_and_no_hook_stays_behind():
    """A phase that trains another part of the model, a stacked model that grows."""
    model, sums = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), gradients.GradientSums()
    sums.start(list(model.parameters()))
    assert len(sums._watched) == 4
    sums.start(list(model[1].parameters()))
    assert len(sums._watched) == 2 and sum(map(len, sums.buckets)) == 2
    assert [bool(p._post_accumulate_grad_hooks) for p in model.parameters()] == [
        *(False, False, True, True)
    ]
    sums.start([])
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    sums.flush(torch.device("cpu"))
    sums.wait()
