"""Lion and Sophia-G take the steps of plain references, and of the package lion-pytorch."""

import copy
import io
import math

import lion_pytorch
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import core
from device import Machine
from methods.optimizers import (
    Lion,
    SophiaG,
    parameter_groups,
    sample_labels,
    sampled_label_loss_sum,
)
from settings import Settings

CPU = core.World(torch.device("cpu"), Machine())


def build_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 4))


def groups_of(model: nn.Module) -> list[dict]:
    """As the scripts build them: two parts with their own learning rates, vectors undecayed."""
    parts = {"body": model[:3].parameters(), "head": model[3].parameters()}
    groups = parameter_groups(parts, {"body": 3e-3, "head": 1e-2}, weight_decay=0.1)
    for group in groups:
        group["peak_lr"] = group["lr"]
    return groups


def set_gradients(model: nn.Module, step: int) -> None:
    """Noisy ones of very different sizes; now and then the first layer is not run."""
    draw = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(model.parameters()):
        noise = torch.randn(parameter.shape, generator=draw) + 0.3
        scales = 10 ** (4 * torch.rand(parameter.shape, generator=draw) - 3)
        gradient = (noise * scales).to(parameter.dtype)
        parameter.grad = None if number < 2 and step % 7 == 3 else gradient


def schedule(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (1 - step / 120)


def lion_reference(p: float, g: float, m: float, lr: float, wd: float) -> tuple[float, float]:
    c = 0.9 * m + (1 - 0.9) * g
    sign = (c > 0) - (c < 0)
    return p - lr * (sign + wd * p), 0.99 * m + (1 - 0.99) * g


def sophia_reference(
    p: float, g: float, m: float, h: float, lr: float, wd: float, rho: float, bs: int
) -> tuple[float, float]:
    """With bs beside rho, as published: h is then an average of bare squares."""
    m = 0.965 * m + (1 - 0.965) * g
    sign = (m > 0) - (m < 0)
    p = p - lr * wd * p
    return p - lr * sign * min(abs(m) / (rho * bs * h + 1e-15), 1.0), m


def numbers(tensor: torch.Tensor) -> list[float]:
    return tensor.detach().reshape(-1).tolist()


def test_lion_equals_a_plain_loop_over_numbers_for_100_steps():
    model = build_net().double()
    optimizer = Lion(groups_of(model))
    plain = {p: [(x, 0.0) for x in numbers(p)] for p in model.parameters()}
    for step in range(100):
        set_gradients(model, step)
        schedule(optimizer, step)
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    plain[p] = [
                        lion_reference(x, g, m, group["lr"], group["weight_decay"])
                        for (x, m), g in zip(plain[p], numbers(p.grad), strict=True)
                    ]
        optimizer.step()
        for p, values in plain.items():
            assert numbers(p) == pytest.approx([x for x, _ in values], rel=1e-10)


def test_lion_equals_the_package_bit_for_bit():
    ours, theirs = build_net(), build_net()
    optimizers = [Lion(groups_of(ours)), lion_pytorch.Lion(groups_of(theirs))]
    for step in range(100):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(model, step)
            schedule(optimizer, step)
            optimizer.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("rho", [0.01, 0.04, 1.0])
def test_sophia_equals_a_plain_loop_over_numbers_for_100_steps(rho):
    model, bs = build_net().double(), 37
    optimizer = SophiaG(groups_of(model), rho=rho)
    plain = {p: [(x, 0.0) for x in numbers(p)] for p in model.parameters()}
    squares = {p: [0.0] * p.numel() for p in model.parameters()}
    shares = []

    for step in range(100):
        if step % 10 == 0:
            set_gradients(model, 1000 + step)
            optimizer.update_hessian(bs)
            for p, old in squares.items():
                if p.grad is not None:
                    squares[p] = [
                        0.99 * h + (1 - 0.99) * g * g
                        for h, g in zip(old, numbers(p.grad), strict=True)
                    ]
        set_gradients(model, step)
        schedule(optimizer, step)
        clipped = 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    plain[p] = [
                        sophia_reference(x, g, m, h, group["lr"], group["weight_decay"], rho, bs)
                        for (x, m), g, h in zip(plain[p], numbers(p.grad), squares[p], strict=True)
                    ]
                clipped += sum(
                    abs(m) >= rho * bs * h + 1e-15
                    for (_, m), h in zip(plain[p], squares[p], strict=True)
                )
        optimizer.step()
        for p, values in plain.items():
            assert numbers(p) == pytest.approx([x for x, _ in values], rel=1e-10)
        shares.append(optimizer.clip_fraction())
        assert shares[-1] == clipped / sum(p.numel() for p in model.parameters())
    assert 0 < min(shares) or rho == 1.0
    assert max(shares) < 1 or rho == 0.01


def test_sophia_steps_do_not_depend_on_how_many_targets_made_the_estimate():
    """A mean gradient over four times the targets is half as large: h stays the same."""
    models = [build_net(), build_net()]
    for model, bs, factor in zip(models, (100, 400), (1.0, 0.5), strict=True):
        optimizer = SophiaG(groups_of(model))
        set_gradients(model, 1)
        for parameter in model.parameters():
            parameter.grad *= factor
        optimizer.update_hessian(bs)
        set_gradients(model, 2)
        optimizer.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)


def test_without_curvature_sophia_moves_by_the_sign():
    model = build_net()
    before = copy.deepcopy(model)
    optimizer = SophiaG(model.parameters(), lr=0.01, weight_decay=0.0)
    assert math.isnan(optimizer.clip_fraction())
    set_gradients(model, 0)
    optimizer.step()
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.01 * p.grad.sign())
    assert optimizer.clip_fraction() == 1.0


@pytest.mark.parametrize("kind", [Lion, SophiaG])
def test_a_parameter_without_gradient_is_left_alone(kind):
    model = build_net()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.5)
    unused = model[0].weight
    before = unused.detach().clone()
    for step in range(3):
        set_gradients(model, step)
        unused.grad = None
        if kind is SophiaG:
            optimizer.update_hessian(10)
        optimizer.step()
    assert torch.equal(unused, before) and unused not in optimizer.state
    assert model[3].weight in optimizer.state


@pytest.mark.parametrize("kind", [Lion, SophiaG])
def test_a_saved_optimizer_continues_bit_for_bit(kind):
    def run(model, optimizer, steps):
        for step in steps:
            if kind is SophiaG and step % 4 == 0:
                set_gradients(model, 100 + step)
                optimizer.update_hessian(50)
            set_gradients(model, step)
            schedule(optimizer, step)
            optimizer.step()

    whole = build_net()
    run(whole, kind(groups_of(whole)), range(20))
    model = build_net()
    optimizer = kind(groups_of(model))
    run(model, optimizer, range(9))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = kind(groups_of(model))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert [group["part"] for group in again.param_groups] == ["body", "body", "head", "head"]
    run(model, again, range(9, 20))
    for p, q in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


class Rows:
    lengths = tokens = [1] * 40
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    y = torch.randn(40, 4, generator=torch.Generator().manual_seed(4))

    def collate(self, rows, epoch):
        return {"x": self.x[rows], "y": self.y[rows]}


@pytest.mark.parametrize("kind", [Lion, SophiaG])
def test_they_serve_cores_train_step(kind):
    config = Settings(batch=8, micro_batch=4, max_grad_norm=0.5)
    model = build_net()
    state = core.State(
        config=config,
        world=CPU,
        model=model,
        optimizer=kind(groups_of(model)),
        loader=core.TrainLoader(Rows(), config, CPU),
        clock=core.StepClock(60),
        schedule=lambda fraction: 1 - fraction,
    )

    def loss_sum(model, batch):
        return F.mse_loss(model(batch["x"]), batch["y"], reduction="sum"), batch["y"].numel()

    losses = [core.train_step(state, loss_sum)["train_loss"] for _ in range(60)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_a_closure_is_evaluated_with_gradients():
    model = build_net()

    def closure():
        loss = model(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    for kind in (Lion, SophiaG):
        assert kind(model.parameters()).step(closure).requires_grad


def test_labels_are_drawn_from_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0, -math.inf, 2.0], [3.0, 0.0, 0.0, 0.0, -math.inf]])
    draw = torch.Generator().manual_seed(0)
    labels = sample_labels(logits.repeat_interleave(100_000, 0), draw).view(2, -1)
    for row, probabilities in zip(labels, logits.softmax(-1), strict=True):
        found = torch.bincount(row, minlength=5) / 100_000
        assert (found - probabilities).abs().max() < 5 * 0.5 / math.sqrt(100_000)
        assert (found[probabilities == 0] == 0).all()


def test_the_sampled_loss_gives_the_gauss_newton_diagonal_on_average():
    """bs·ĝ² over one batch has the diagonal of the mean softmax Hessian as its expectation."""
    torch.manual_seed(0)
    targets, vocab = 6, 5
    x, weight = torch.randn(targets, 3), torch.randn(3, vocab)
    probabilities = (x @ weight).softmax(-1)
    exact = torch.einsum("ti,tv->iv", x**2, probabilities * (1 - probabilities)) / targets
    total = torch.zeros_like(weight)
    draw = torch.Generator().manual_seed(1)
    for _ in range(4000):
        leaf = weight.clone().requires_grad_()
        (sampled_label_loss_sum(x @ leaf, draw) / targets).backward()
        total += targets * leaf.grad**2
    torch.testing.assert_close(total / 4000, exact, rtol=0.15, atol=0.01)


def test_no_targets_give_a_loss_of_zero():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = sampled_label_loss_sum(logits)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Lion, {"lr": -1.0}),
        (Lion, {"betas": (0.9, 1.0)}),
        (SophiaG, {"weight_decay": -0.1}),
        (SophiaG, {"rho": 0.0}),
    ],
)
def test_impossible_settings_are_refused(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(build_net().parameters(), **options)


def test_a_curvature_from_no_targets_is_refused():
    with pytest.raises(ValueError, match="0 targets"):
        SophiaG(build_net().parameters()).update_hessian(0)
