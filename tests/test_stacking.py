"""Stacking: when the depth doubles, which layers hold what, and what the optimizer remembers."""

import copy

import pytest
import torch
from torch import nn

from methods.optimizers import Lion, SophiaG
from methods.stacking import Stacking, copy_layers, depth_at


@pytest.mark.parametrize(
    ("fraction", "depth"),
    [(0, 4), (0.1249, 4), (0.125, 8), (0.2999, 8), (0.3, 16), (1, 16)],
)
def test_four_eight_sixteen(fraction, depth):
    assert depth_at(fraction) == depth


def test_other_depths():
    assert [depth_at(x, 12, 3, (0.2, 0.5)) for x in (0, 0.2, 0.5)] == [3, 6, 12]
    assert [depth_at(x, 12, 5, (0.2, 0.5)) for x in (0, 0.2, 0.5)] == [5, 10, 12]
    assert depth_at(0, 7, 7, ()) == 7


def build(kind=torch.optim.AdamW, count: int = 16, **options):
    """Layers of their own weights and an optimizer that has made three steps of the lower 4."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(count))
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    optimizer = kind(layers.parameters(), lr=0.01, **options)
    for _ in range(3):
        step(layers, 4, optimizer)
    return layers, optimizer


def step(layers, active: int, optimizer) -> None:
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 + number) if number < active else None
    optimizer.step()


def values(layer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in layer.parameters()]


def test_new_layers_hold_the_old_ones_tensors():
    layers, optimizer = build()
    before = [values(layer) for layer in layers]
    stacking = Stacking(layers)
    assert not stacking.update(0.1, optimizer) and stacking.active_layers == [0, 1, 2, 3]
    assert stacking.update(0.125, optimizer)
    assert stacking.active_layers == list(range(8))
    for number, layer in enumerate(layers):  # A B C D → A B C D A B C D, the rest as it was
        expected = before[number - 4] if 4 <= number < 8 else before[number]
        for found, tensor in zip(values(layer), expected, strict=True):
            assert torch.equal(found, tensor)
    assert stacking.update(0.3, optimizer) and stacking.depth == 16
    for number, layer in enumerate(layers):
        for found, tensor in zip(values(layer), before[number % 4], strict=True):
            assert torch.equal(found, tensor)
    assert not stacking.update(0.9, optimizer)


def test_layers_do_not_stay_tied():
    layers, optimizer = build()
    copy_layers(layers, 4, 8, optimizer)
    with torch.no_grad():
        layers[0][0].weight += 1
    assert not torch.equal(layers[0][0].weight, layers[4][0].weight)


def test_two_marks_passed_at_once_double_twice():
    layers, optimizer = build()
    bottom = values(layers[0])
    stacking = Stacking(layers)
    assert stacking.update(0.5, optimizer) and stacking.depth == 16
    assert torch.equal(values(layers[12])[0], bottom[0])


def test_the_last_copy_may_be_shorter():
    layers, optimizer = build(count=7)
    before = [values(layer) for layer in layers]
    stacking = Stacking(layers, 4, (0.5,))
    stacking.update(0.5, optimizer)
    assert stacking.depth == 7
    for number, source in ((4, 0), (5, 1), (6, 2)):
        assert torch.equal(values(layers[number])[0], before[source][0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"fused": True}),
        (Lion, {}),
        (SophiaG, {}),
    ],
)
def test_the_optimizer_keeps_the_old_layers_state_and_forgets_the_new_ones(kind, options):
    layers, optimizer = build(kind, **options)
    step(layers, 8, optimizer)  # the upper layers have a state that must go
    old = {p: copy.deepcopy(optimizer.state[p]) for layer in layers[:4] for p in layer.parameters()}
    Stacking(layers).update(0.2, optimizer)
    for layer in layers[4:]:
        assert not any(p in optimizer.state for p in layer.parameters())
    for parameter, state in old.items():
        for name, tensor in state.items():
            assert torch.equal(optimizer.state[parameter][name], tensor)
    step(layers, 8, optimizer)
    assert optimizer.state[layers[7][0].weight].keys() == old[layers[0][0].weight].keys()
    assert not any(p in optimizer.state for layer in layers[8:] for p in layer.parameters())


def test_bias_correction_begins_afresh():
    """Adam's first step of a weight is lr, whatever its gradient; later ones remember."""
    layers, optimizer = build(weight_decay=0.0)
    Stacking(layers).update(0.2, optimizer)
    before = [values(layer)[0] for layer in layers]
    step(layers, 8, optimizer)
    new, old = layers[5][0].weight, layers[1][0].weight
    torch.testing.assert_close(before[5] - new.detach(), torch.full_like(new, 0.01))
    assert (optimizer.state[new]["step"], optimizer.state[old]["step"]) == (1, 4)


def test_layers_that_do_not_run_yet_do_not_move():
    layers, optimizer = build()
    waiting = values(layers[10])
    for _ in range(3):
        step(layers, 4, optimizer)
    for found, tensor in zip(values(layers[10]), waiting, strict=True):
        assert torch.equal(found, tensor)


def test_a_saved_run_neither_copies_again_nor_forgets(tmp_path):
    def go(layers, optimizer, stacking, fractions):
        for fraction in fractions:
            stacking.update(fraction, optimizer)
            step(layers, stacking.depth, optimizer)

    marks = [0.05, 0.13, 0.2, 0.31, 0.5, 0.9]
    layers, optimizer = build()
    go(layers, optimizer, Stacking(layers), marks)
    expected = [values(layer) for layer in layers]

    layers, optimizer = build()
    stacking = Stacking(layers)
    go(layers, optimizer, stacking, marks[:3])
    parts = (layers, optimizer, stacking)
    torch.save([part.state_dict() for part in parts], tmp_path / "state.pt")
    layers, optimizer = build()
    stacking = Stacking(layers)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip((layers, optimizer, stacking), saved, strict=True):
        part.load_state_dict(state)
    assert stacking.depth == 8
    go(layers, optimizer, stacking, marks[3:])
    for layer, tensors in zip(layers, expected, strict=True):
        for found, tensor in zip(values(layer), tensors, strict=True):
            assert torch.equal(found, tensor)


@pytest.mark.parametrize(
    ("initial", "fractions", "message"),
    [
        (0, (0.1, 0.2), "begins with 0 of 16"),
        (17, (), "begins with 17 of 16"),
        (4, (0.3, 0.125), "rise within"),
        (4, (0.3, 1.0), "rise within"),
        (4, (0.0, 0.3), "rise within"),
        (4, (0.125,), "takes 2 doublings, but there are 1"),
        (8, (0.125, 0.3), "takes 1 doublings"),
        (16, (0.5,), "takes 0 doublings"),
    ],
)
def test_impossible_stackings_are_refused(initial, fractions, message):
    with pytest.raises(ValueError, match=message):
        Stacking(nn.ModuleList(nn.Linear(1, 1) for _ in range(16)), initial, fractions)
