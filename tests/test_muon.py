"""Muon against slow references, and AdamW's part of it against torch's."""

import math

import pytest
import torch

import core
from methods.muon import COEFFICIENTS, Muon, muon_flops, muon_update, orthogonalize, split_for_muon
from methods.optimizers import parameter_groups
from models import gpt, pretrained
from settings import Settings

SHAPES = [(6, 4), (4, 6), (5, 5)]


def matrices(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw, dtype=dtype) for shape in SHAPES]


def orthogonal_reference(matrix: torch.Tensor) -> torch.Tensor:
    """The iterations as a function of each singular value."""
    a, b, c = COEFFICIENTS
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = [float(value / s.square().sum().sqrt()) for value in s]
    for _ in range(5):
        values = [a * x + b * x**3 + c * x**5 for x in values]
    return u @ torch.diag(torch.tensor(values, dtype=matrix.dtype)) @ vt


def muon_reference(p, g, m, lr, momentum, wd):
    """One matrix, element by element but for the orthogonalization."""
    m, direction, moved = m.clone(), m.clone(), p.clone()
    rows, columns = p.shape
    for i in range(rows):
        for j in range(columns):
            m[i, j] = momentum * m[i, j] + g[i, j]
            direction[i, j] = g[i, j] + momentum * m[i, j]
    step = orthogonal_reference(direction)
    for i in range(rows):
        for j in range(columns):
            moved[i, j] = p[i, j] - lr * wd * p[i, j]
            moved[i, j] -= lr * 0.2 * math.sqrt(max(rows, columns)) * step[i, j]
    return moved, m


def test_the_iterations_change_singular_values_alone():
    for matrix in matrices(0):
        expected = orthogonal_reference(matrix)
        torch.testing.assert_close(orthogonalize(matrix), expected)
        torch.testing.assert_close(orthogonalize(50 * matrix), expected)


def test_singular_values_end_near_1():
    draw = torch.Generator().manual_seed(0)
    for shape in ((96, 40), (40, 96), (64, 64)):
        matrix = torch.randn(shape, generator=draw)
        for dtype in (None, torch.bfloat16):
            s = torch.linalg.svdvals(orthogonalize(matrix, dtype=dtype).float())
            assert 0.6 < s.quantile(0.05) and s.max() < 1.3


def test_nothing_moves_without_a_direction():
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_updates_equal_a_slow_reference_for_100_steps():
    parameters, momenta = matrices(1), [torch.zeros_like(p) for p in matrices(1)]
    slow = [(p.clone(), torch.zeros_like(p)) for p in parameters]
    for step in range(100):
        gradients, lr = matrices(step + 2), 0.02 * (1 + step % 7)
        muon_update(parameters, gradients, momenta, lr, momentum=0.95, weight_decay=0.1)
        slow = [
            muon_reference(p, g, m, lr, 0.95, 0.1)
            for (p, m), g in zip(slow, gradients, strict=True)
        ]
        for fast, (expected, _) in zip(parameters, slow, strict=True):
            torch.testing.assert_close(fast, expected, rtol=1e-7, atol=1e-8)


def two_kinds(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Embedding(5, 8))


def groups_of(model: torch.nn.Module) -> list[dict]:
    layers = {id(p): "layer_0" for p in model[0].parameters()}
    layers |= {id(p): "head" for p in model[1].parameters()}
    groups = parameter_groups({"all": model.parameters()}, {"all": 0.003}, weight_decay=0.1)
    return split_for_muon(groups, layers, ratio=0.01 / 0.003)


def set_gradients(model: torch.nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def test_the_optimizer_equals_torchs_muon_and_its_adamw():
    ours, theirs = two_kinds(), two_kinds()
    optimizer = Muon(groups_of(ours), betas=(0.9, 0.95))
    matrix, vector, rows = theirs[0].weight, theirs[0].bias, theirs[1].weight
    muon = torch.optim.Muon(
        [matrix], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": [rows], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95), fused=True)
    for step in range(100):
        for each in (optimizer, muon, adamw):
            for group in each.param_groups:
                group["lr"] *= 0.99
        for model in (ours, theirs):
            set_gradients(model, step)
        optimizer.step()
        muon.step()
        adamw.step()
    assert torch.equal(ours[1].weight, rows) and torch.equal(ours[0].bias, vector)
    # theirs keeps a mean of gradients, which rounds differently in bfloat16
    way = matrix - two_kinds()[0].weight
    assert (ours[0].weight - matrix).norm() < 0.02 * way.norm()


def test_a_parameter_without_a_gradient_is_left_alone():
    model = two_kinds()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Muon(groups_of(model))
    set_gradients(model, 0)
    model[0].weight.grad = model[1].weight.grad = None
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"0.bias"}


def test_state_continues_where_it_was_saved(tmp_path):
    straight, broken = two_kinds(), two_kinds()
    optimizers = [Muon(groups_of(model)) for model in (straight, broken)]
    for step in range(8):
        if step == 4:
            torch.save(optimizers[1].state_dict(), tmp_path / "state.pt")
            optimizers[1] = Muon(groups_of(broken))
            optimizers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for model, optimizer in zip((straight, broken), optimizers, strict=True):
            set_gradients(model, step)
            optimizer.step()
    for one, other in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tied", [True, False])
def test_the_groups_of_a_gpt_hold_every_parameter_once(tied):
    sizes = {"vocab_size": 61, "n_layer": 2, "n_head": 2, "n_embd": 32, "qk_norm": True}
    model = gpt.build_gpt(0, tie_word_embeddings=tied, **sizes)
    layers = {id(p): pretrained.layer_of(name) for name, p in model.named_parameters()}
    groups = parameter_groups({"gpt": model.parameters()}, {"gpt": 0.003}, weight_decay=0.1)
    groups = split_for_muon(groups, layers, ratio=3)
    parts = {group["part"]: group for group in groups}
    assert len(parts["matrices"]["params"]) == 2 * 7
    assert all(p.ndim == 2 for p in parts["matrices"]["params"])
    assert len(parts["embeddings"]["params"]) == (1 if tied else 2)
    assert parts["vectors"]["weight_decay"] == 0
    world = core.single_world("cpu")
    core.State(  # which checks it
        config=Settings(),
        world=world,
        model=model,
        optimizer=Muon(groups),
        loader=None,
        clock=core.StepClock(1),
        schedule=lambda fraction: 1.0,
    )


def test_a_quadratic_comes_down():
    torch.manual_seed(0)
    matrix, target = torch.zeros(12, 8, requires_grad=True), torch.randn(12, 8)
    optimizer = Muon([matrix], lr=0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        optimizer.zero_grad()
        (matrix - target).square().sum().backward()
        optimizer.step()
    assert (matrix - target).norm() < 0.05 * target.norm()


def test_flops_are_those_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        for shape in ((24, 64), (64, 24), (32, 32)):
            orthogonalize(torch.randn(shape))
    assert counter.get_total_flops() == muon_flops([(24, 64), (64, 24), (32, 32)])


@pytest.mark.parametrize(
    "group, words",
    [
        ({"method": "sgd"}, "expected muon or adamw"),
        ({"lr": -1.0}, "lr -1.0"),
        ({"momentum": 1.0}, "momentum 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(group, words):
    with pytest.raises(ValueError, match=words):
        Muon([{"params": [torch.zeros(2, 2)], **group}])
    with pytest.raises(ValueError, match="adamw"):
        Muon([torch.zeros(2)])
