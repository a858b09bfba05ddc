"""One optimizer update: what it computes, alone and over two processes."""

import copy
import dataclasses
import math
import pickle
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import core
from device import LossScale, Machine
from methods import optimizers
from methods.schedules import warmup_then_decay
from settings import Settings

CPU = core.World(torch.device("cpu"), Machine())


@pytest.fixture(autouse=True)
def one_thread():
    """As in the two processes: two threads would sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Rows:
    """Five noisy numbers to predict from eight; a row has between one and five targets."""

    def __init__(self, count: int = 70):
        draw = np.random.default_rng(1)
        self.x = draw.normal(size=(count, 8)).astype(np.float32)
        self.y = draw.normal(size=(count, 5)).astype(np.float32)
        self.tokens = self.lengths = draw.integers(1, 6, count)

    def collate(self, rows, epoch):
        mask = np.arange(5) < self.lengths[rows, None]
        named = {"x": self.x[rows], "y": self.y[rows], "mask": mask.astype(np.float32)}
        return {name: torch.from_numpy(values) for name, values in named.items()}


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))


def squares(model, batch):
    """Squared errors summed over the targets, and how many there are."""
    errors = (model(batch["x"]).float() - batch["y"]) ** 2 * batch["mask"]
    return errors.sum(), int(batch["mask"].sum())


def build(world=CPU, dropout=0.0, precision="fp32", make=None, schedule=None, **settings):
    """A State around a small net, the same each time."""
    given = {"batch": 16, "micro_batch": 4, "lr": 1e-2, "weight_decay": 0.1, **settings}
    config = Settings(**given)
    torch.manual_seed(0)
    model = make() if make else Net(dropout)
    groups = optimizers.parameter_groups(
        {"net": model.parameters()}, {"net": config.lr}, config.weight_decay
    )
    return core.State(
        config=config,
        world=world,
        model=model,
        optimizer=optimizers.build_optimizer(config.optimizer, groups, config.lr),
        loader=core.TrainLoader(Rows(), config, world),
        clock=core.StepClock(20),
        schedule=schedule or (lambda fraction: 1.0),
        precision=precision,
    )


def weights(state) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in state.model.parameters()])


def figures(stats) -> dict:
    """What a step returns, with the sizes of its batch in place of the batch."""
    work = stats["work"]
    return stats | {"work": (work.position, work.epoch, work.examples, work.tokens)}


def global_batch(state, position: int) -> dict[str, torch.Tensor]:
    sampler = core.StepSampler(state.loader.data, state.config, CPU, state.config.batch)
    return state.loader.data.collate(np.concatenate(sampler.global_batch(position)[1]), 0)


@pytest.mark.parametrize("max_grad_norm", [None, 0.1, 100.0])
def test_twenty_steps_equal_a_plain_loop(max_grad_norm):
    state = build(
        max_grad_norm=max_grad_norm,
        schedule=lambda fraction: warmup_then_decay(fraction, "linear", 0.1),
    )
    model = copy.deepcopy(state.model)
    vectors = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim == 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, fused=False, foreach=False)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_then_decay(step / 20, "linear", 0.1)
    )
    for position in range(20):
        stats = core.train_step(state, squares)
        loss, targets = squares(model, global_batch(state, position))
        (loss / targets).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        assert stats["lr"] == pytest.approx(decay.get_last_lr()[0], abs=1e-15)
        decay.step()
        assert stats["train_loss"] == pytest.approx(loss.item() / targets, rel=1e-6)
        assert stats["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        plain = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        torch.testing.assert_close(weights(state), plain, rtol=0, atol=1e-6)
    assert (state.step, state.loader.position, state.clock.done) == (20, 20, True)
    assert state.examples == 4 * 70  # four epochs of 16 + 16 + 16 + 16 + 6


def gradients_of_one_step(state, loss_sum=squares):
    """What train_step leaves for the optimizer."""
    seen = {}

    def note(*_):
        for name, parameter in state.model.named_parameters():
            seen[name] = None if parameter.grad is None else parameter.grad.clone()

    state.optimizer.register_step_pre_hook(note)
    core.train_step(state, loss_sum)
    return seen


def test_uneven_targets_get_the_exact_gradient_and_not_a_mean_of_means():
    state = build(max_grad_norm=None, micro_batch=3)
    model, means = copy.deepcopy(state.model), copy.deepcopy(state.model)
    found = gradients_of_one_step(state)
    loss, targets = squares(model, global_batch(state, 0))
    (loss / targets).backward()
    work = core.TrainLoader(Rows(), state.config, CPU).next()
    for _, batch in work.micro_batches:
        loss, targets = squares(means, batch)
        (loss / targets / len(work.micro_batches)).backward()
    exact = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    wrong = torch.cat([p.grad.reshape(-1) for p in means.parameters()])
    ours = torch.cat([gradient.reshape(-1) for gradient in found.values()])
    assert (ours - exact).norm() < 1e-6 * exact.norm()
    assert (wrong - exact).norm() > 0.02 * exact.norm()


def test_a_batch_without_targets_is_an_error():
    with pytest.raises(ValueError, match="step 1: no row"):
        core.train_step(build(), lambda model, batch: (squares(model, batch)[0], 0))


def test_an_unused_parameter_is_left_alone():
    state = build(make=lambda: nn.ModuleDict({"used": Net(), "unused": nn.Linear(2, 2)}))
    before = state.model["unused"].weight.clone()
    seen = gradients_of_one_step(state, lambda model, batch: squares(model["used"], batch))
    assert seen["unused.weight"] is None  # weight decay alone would move it
    assert torch.equal(state.model["unused"].weight, before)
    assert all(p.grad is None for p in state.model.parameters())


def test_frozen_parts_evaluate_whatever_the_loader_did_with_the_model():
    """Batch selection evaluates it, in next(), and leaves it in training mode."""
    model = nn.ModuleDict({"frozen": Net(dropout=0.5).requires_grad_(False), "net": Net(0.5)})
    state, modes = build(make=lambda: model), set()
    loader_next = state.loader.next

    def scoring_next() -> core.Work:
        state.model.eval()
        work = loader_next()
        state.model.train()
        return work

    def loss(model, batch):
        modes.add((model["frozen"].dropout.training, model["net"].dropout.training))
        return squares(model["net"], batch)

    state.loader.next = scoring_next
    core.train_step(state, loss)
    assert modes == {(False, True)}


def test_a_stop_cuts_the_step_off_and_can_be_repeated():
    world = dataclasses.replace(CPU)
    state, straight = build(world, dropout=0.3), build(dropout=0.3)
    before = weights(state)
    calls = []

    def counted(model, batch):
        calls.append(1)
        if len(calls) == 2:
            world.signal = "SIGTERM"
        return squares(model, batch)

    assert core.train_step(state, counted) is None
    assert len(calls) == 2
    assert (state.step, state.loader.position) == (0, 0)
    assert torch.equal(weights(state), before)
    world.signal = None
    ours, theirs = core.train_step(state, squares), core.train_step(straight, squares)
    assert figures(ours) == figures(theirs)
    assert torch.equal(weights(state), weights(straight))


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"),
    "xpu": RuntimeError("XPU out of memory, please use `empty_cache`"),
    "level_zero": RuntimeError("error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("where", [*OUT_OF_MEMORY, "backward"])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(where, capsys):
    state, small = build(dropout=0.3, micro_batch=8), build(dropout=0.3, micro_batch=4)
    calls = []

    def fails_once(model, batch):
        calls.append(len(batch["x"]))
        loss, targets = squares(model, batch)
        if calls == [8, 8]:  # the first micro-batch's gradient is there already
            if where != "backward":
                raise OUT_OF_MEMORY[where]
            loss = _FailsBackward.apply(loss)
        return loss, targets

    for _ in range(5):
        ours, theirs = core.train_step(state, fails_once), core.train_step(small, squares)
        assert figures(ours) == figures(theirs)
    assert calls[:6] == [8, 8, 4, 4, 4, 4]
    assert state.loader.micro_batch == 4
    assert torch.equal(weights(state), weights(small))
    assert "step 1: out of memory; micro-batches of 4" in capsys.readouterr().out


def test_out_of_memory_with_one_row_says_what_to_do():
    def fails(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    state = build()
    with pytest.raises(RuntimeError, match="out of memory.*--max_length"):
        core.train_step(state, fails)
    assert state.loader.micro_batch == 1


def test_other_errors_are_not_taken_for_out_of_memory():
    def fails(model, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        core.train_step(build(), fails)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_moves_nothing(what):
    state = build()
    core.train_step(state, squares)
    before = weights(state)
    moments = copy.deepcopy(state.optimizer.state_dict()["state"])

    def infinite(model, batch):
        loss, targets = squares(model, batch)
        if what == "loss":
            return loss + math.inf, targets  # its gradient is finite
        return loss + 0 * torch.sqrt(0 * model.last.bias).sum(), targets

    for skipped in (1, 2):
        core.train_step(state, infinite)
        assert state.skipped_steps == skipped
    assert torch.equal(weights(state), before)
    for key, saved in state.optimizer.state_dict()["state"].items():
        for name, value in saved.items():
            assert torch.equal(value, moments[key][name])
    assert (state.step, state.loader.position) == (3, 3)
    core.train_step(state, squares)
    assert state.skipped_steps == 0
    assert not torch.equal(weights(state), before)


def fp16_state(**options):
    state = build(precision="fp16")
    state.scaler = LossScale(True, **options)
    return state


def test_the_loss_scale_follows_torchs_own():
    options = {"init_scale": 2.0**10, "growth_interval": 3}
    state = fp16_state(**options)
    theirs = torch.amp.GradScaler("cpu", **options)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    overflows = [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    scales = []
    for position, overflow in enumerate(overflows):
        factor = math.inf if overflow else 1.0

        def scaled_squares(model, batch, factor=factor):
            loss, targets = squares(model, batch)
            return loss * factor, targets

        before = weights(state)
        core.train_step(state, scaled_squares)
        assert torch.equal(weights(state), before) == bool(overflow)
        loss, _ = scaled_squares(model, global_batch(state, position))
        theirs.scale(loss / 16).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert state.scaler.value == theirs.get_scale()
        assert state.scaler.state_dict() == theirs.state_dict()
        scales.append(state.scaler.value / 2**10)
    assert scales[:6] == [1, 1, 2, 1, 1, 1]
    assert max(scales) > 1 and min(scales) < 1


@pytest.mark.parametrize(("before", "now"), [("fp32", "fp16"), ("fp16", "bf16")])
def test_a_run_goes_on_in_another_precision(before, now):
    """From an A100 or a CPU to a T4, and back."""
    saved = build(precision=before).state_dict()
    state = build(precision=now)
    state.load_state_dict(saved)
    assert state.scaler.enabled == (now == "fp16")


def test_a_real_fp16_overflow_is_skipped_and_the_scale_falls_until_it_fits():
    state = fp16_state(init_scale=2.0**24)
    before = weights(state)
    core.train_step(state, squares)
    assert torch.equal(weights(state), before)
    assert state.scaler.value == 2.0**23
    while state.skipped_steps:
        core.train_step(state, squares)
    assert state.scaler.value < 2.0**23
    assert not torch.equal(weights(state), before)


@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_the_loss_scale_leaves_the_update_as_it_is(scale):
    state, reference = fp16_state(init_scale=scale), build()
    stats, expected = core.train_step(state, squares), core.train_step(reference, squares)
    assert stats["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-3)
    assert stats["train_loss"] == pytest.approx(expected["train_loss"], rel=5e-3)


def test_the_loss_scale_is_saved():
    state, other = fp16_state(growth_interval=2), build(precision="fp16")
    for _ in range(3):
        core.train_step(state, squares)
    other.load_state_dict(state.state_dict())
    assert other.scaler.state_dict() == state.scaler.state_dict()
    assert other.loader.position == 3


def recording(draws: dict, state):
    """A loss that notes the first random numbers of each micro-batch."""

    def loss_sum(model, batch):
        key = state.loader.position - 1, tuple(batch["x"][:, 0].tolist())
        draws[key] = torch.rand(3).tolist()
        return squares(model, batch)

    return loss_sum


def test_random_numbers_depend_on_seed_position_and_index_alone():
    def draws_of(start=0, **settings):
        draws, state = {}, build(**settings)
        state.loader.seek(start)
        for _ in range(7 - start):
            torch.rand(start + 5)  # what was drawn before does not matter
            core.train_step(state, recording(draws, state))
        return draws

    draws = draws_of()
    assert draws_of() == draws
    assert len({tuple(numbers) for numbers in draws.values()}) == len(draws)
    resumed = draws_of(start=4)
    assert resumed == {key: value for key, value in draws.items() if key[0] >= 4}
    others = {tuple(numbers) for numbers in draws_of(seed=1).values()}
    assert others.isdisjoint(tuple(numbers) for numbers in draws.values())


@pytest.mark.parametrize("total, warmup", [(50, 7), (50, 0), (37, 3), (1000, 60), (10, 9), (7, 1)])
@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
def test_schedules_equal_those_of_transformers(shape, total, warmup):
    import transformers

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if shape == "constant":
        theirs = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        make = getattr(transformers, f"get_{shape}_schedule_with_warmup")
        theirs = make(optimizer, warmup, total)
    clock = core.StepClock(total)
    for step in range(total + 1):
        ours = warmup_then_decay(clock.fraction, shape, warmup / total)
        assert ours == pytest.approx(theirs.lr_lambdas[0](step), abs=1e-12), step
        assert clock.done == (step == total)
        clock.after_update()


def test_schedules_end_at_the_minimum():
    for shape in ("linear", "cosine"):
        values = [warmup_then_decay(step / 100, shape, 0.1, 0.2) for step in range(101)]
        assert values[0] == 0 and max(values) == values[10] == 1
        assert values[-1] == pytest.approx(0.2)
        assert values[10:] == sorted(values[10:], reverse=True)
        assert warmup_then_decay(1.3, shape, 0.1, 0.2) == pytest.approx(0.2)


def test_each_trainable_parameter_is_in_one_group(tiny_bert):
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    head = core.ConcatHead(32)
    encoder.embeddings.requires_grad_(False)
    model = core.PairClassifier(encoder, head)
    lrs = {"encoder": 1e-5, "head": 1e-3}
    parts = {"encoder": encoder.parameters(), "head": head.parameters()}
    groups = optimizers.parameter_groups(parts, lrs, 0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    parts = [(group["part"], group["weight_decay"]) for group in groups]
    assert parts == [("encoder", 0.01), ("encoder", 0.0), ("head", 0.01), ("head", 0.0)]
    for group in groups:
        assert all((p.ndim < 2) == (group["weight_decay"] == 0) for p in group["params"])
        assert group["lr"] == lrs[group["part"]]


def state_with(model, groups):
    state = build()
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    return core.State(
        config=state.config,
        world=CPU,
        model=model,
        optimizer=optimizer,
        loader=state.loader,
        clock=state.clock,
        schedule=state.schedule,
    )


def test_a_parameter_that_no_group_trains_is_named():
    model = Net()
    rest = [p for name, p in model.named_parameters() if name != "norm.bias"]
    with pytest.raises(ValueError, match="norm.bias"):
        state_with(model, [{"params": rest}])


def test_an_empty_group_is_named():
    model = Net()
    groups = [{"params": list(model.parameters())}, {"params": [], "part": "heads"}]
    with pytest.raises(ValueError, match="heads has no parameters"):
        state_with(model, groups)


def test_a_frozen_parameter_in_a_group_is_named():
    model = Net()
    model.norm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="norm.weight"):
        state_with(model, [{"params": list(model.parameters())}])


def test_weight_decay_moves_matrices_only():
    state = build(lr=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    core.train_step(state, lambda model, batch: (0 * squares(model, batch)[0], 1))
    for name, parameter in state.model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_groups_keep_their_ratio_of_learning_rates():
    model = Net()
    body = nn.ModuleList([model.first, model.norm])
    parts = {"body": body.parameters(), "last": model.last.parameters()}
    groups = optimizers.parameter_groups(parts, {"body": 1e-4, "last": 1e-2}, 0.0)
    state = state_with(model, groups)
    state.schedule = lambda fraction: 0.5
    stats = core.train_step(state, squares)
    assert (stats["lr_body"], stats["lr_last"]) == (5e-5, 5e-3)
    assert [group["lr"] for group in state.optimizer.param_groups] == [5e-5, 5e-5, 5e-3, 5e-3]


class Parts(nn.Module):
    """One part always used, one only in the shortest rows' micro-batch, one never."""

    def __init__(self):
        super().__init__()
        self.always, self.seldom, self.never = Net(0.2), nn.Linear(8, 5), nn.Linear(8, 5)


def parts_loss(model, batch):
    short = batch["mask"].sum(1).max() < 3

    def predict(x):
        return model.always(x) + (model.seldom(x) if short else 0)

    return squares(predict, batch)


def step_five(world) -> SimpleNamespace:
    """Five steps with dropout, a part that few micro-batches use, and notes of all draws."""
    state = build(world, make=Parts, max_grad_norm=0.5)
    never, draws = state.model.never.weight.clone(), {}

    def loss_sum(model, batch):
        key = (state.step, *batch["x"][:, 0].tolist())
        draws[key] = torch.rand(1).item()
        return parts_loss(model, batch)

    first = gradients_of_one_step(state, loss_sum)
    stats = [core.train_step(state, loss_sum) for _ in range(4)]
    return SimpleNamespace(
        gradients=first,
        weights=weights(state),
        losses=[line["train_loss"] for line in stats],
        counts=(state.examples, state.tokens),
        draws=dict(sorted(world.gather_rows(list(draws.items())))),
        never_moved=torch.equal(state.model.never.weight, never),
        never_in_optimizer=state.model.never.weight in state.optimizer.state,
        seldom_in_optimizer=state.model.seldom.weight in state.optimizer.state,
    )


def step_idle(world) -> SimpleNamespace:
    """One micro-batch a step: at two processes one of them has nothing to do."""
    state = build(world, batch=4, micro_batch=4, dropout=0.2)
    calls = []

    def counted(model, batch):
        calls.append(1)
        return squares(model, batch)

    losses = [core.train_step(state, counted)["train_loss"] for _ in range(3)]
    everyone = world.gather_rows([len(calls)])
    return SimpleNamespace(weights=weights(state), losses=losses, calls=everyone)


def step_out_of_memory(world, failing_rank: int, micro_batch: int) -> SimpleNamespace:
    """Out of memory on one rank only."""
    state = build(world, micro_batch=micro_batch, dropout=0.2)

    def fails(model, batch):
        if world.rank == failing_rank and len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return squares(model, batch)

    for _ in range(3):
        core.train_step(state, fails)
    sizes = world.gather_rows([state.loader.micro_batch])
    return SimpleNamespace(weights=weights(state), sizes=sizes)


def step_infinite(world) -> SimpleNamespace:
    """An infinite loss in one micro-batch, that is on one rank, with fp16's scale."""
    state = build(world, precision="fp16", micro_batch=8)
    before = weights(state)

    def infinite(model, batch):
        loss, targets = squares(model, batch)
        return loss * (math.inf if world.rank == world.size - 1 else 1.0), targets

    core.train_step(state, infinite)
    after = world.gather_rows([(state.skipped_steps, state.scaler.value)])
    return SimpleNamespace(moved=not torch.equal(weights(state), before), after=after)


def step_stopped(world) -> SimpleNamespace:
    """A signal that only the last rank has seen."""
    last = world.rank == world.size - 1
    world = dataclasses.replace(world, signal="SIGTERM" if last else None)
    state = build(world)
    stats = core.train_step(state, squares)
    return SimpleNamespace(all=world.gather_rows([(stats, state.loader.position, state.step)]))


def collectives(world) -> SimpleNamespace:
    model = nn.BatchNorm1d(3)
    nn.init.constant_(model.weight, world.rank + 1.0)
    model.running_mean.fill_(world.rank + 1.0)
    core.broadcast_parameters(model, world)
    return SimpleNamespace(
        sum=world.sum(torch.tensor([1.0, float(world.rank)])).tolist(),
        any=(world.any(world.rank == 1), world.any(False)),
        rows=world.gather_rows([world.rank] * (world.rank + 1)),
        from_rank_0=world.from_rank_0({"rank": world.rank}),
        broadcast=(model.weight.tolist(), model.running_mean.tolist()),
        evaluated=evaluated_rows(world),
    )


def resumed(world) -> SimpleNamespace:
    """A state of some megabytes that rank 0 has read, and the largest object that was pickled."""
    sizes, send = [], dist.broadcast_object_list

    def watched(box, **more):
        send(box, **more)
        sizes.append(len(pickle.dumps(box)))

    saved = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(700, 700)}}},
        "extras": {"average": [torch.randn(2000), {"weights": torch.arange(5000)}], "name": "x"},
    }
    dist.broadcast_object_list = watched
    try:
        got = world.state_from_rank_0(saved if world.rank == 0 else None)
        none = world.state_from_rank_0(None)
    finally:
        dist.broadcast_object_list = send
    return SimpleNamespace(saved=got, none=none, largest=max(sizes))


def evaluated_rows(world) -> np.ndarray:
    state = build(world)
    return core.evaluate_rows(state, Rows(), lambda model, batch: batch["x"], rows_each=8)


def two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = core.World(torch.device("cpu"), Machine(), "gloo", rank, rank, 2)
    found = {
        "five": step_five(world),
        "idle": step_idle(world),
        "out_of_memory": step_out_of_memory(world, failing_rank=1, micro_batch=4),
        "infinite": step_infinite(world),
        "stopped": step_stopped(world),
        "collectives": collectives(world),
        "resumed": resumed(world),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What two gloo processes found, by rank."""
    folder = str(tmp_path_factory.mktemp("two"))
    forked.spawn(two_processes, (folder,), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]


def test_a_state_travels_tensor_by_tensor(two):
    first, second = (rank["resumed"] for rank in two)
    assert first.none is None and second.none is None
    assert max(first.largest, second.largest) < 10_000  # of 2 MB
    one, other = (found.saved["optimizer"]["state"][0] for found in (first, second))
    assert torch.equal(one["exp_avg"], other["exp_avg"]) and other["step"] == 3
    (values, inner), name = second.saved["extras"]["average"], second.saved["extras"]["name"]
    assert torch.equal(values, first.saved["extras"]["average"][0]) and name == "x"
    assert torch.equal(inner["weights"], torch.arange(5000))


def test_two_processes_take_the_steps_of_one(two):
    alone = step_five(CPU)
    for rank in two:
        found = rank["five"]
        for name, gradient in alone.gradients.items():
            if gradient is None:
                assert found.gradients[name] is None
            else:
                assert (found.gradients[name] - gradient).norm() <= 1e-6 * gradient.norm()
        assert found.losses == pytest.approx(alone.losses, rel=1e-5)
        torch.testing.assert_close(found.weights, alone.weights, rtol=1e-5, atol=1e-5)
        assert found.counts == alone.counts
        assert found.draws == alone.draws  # the same masks
    assert torch.equal(two[0]["five"].weights, two[1]["five"].weights)


def test_a_part_that_no_rank_used_is_left_alone(two):
    for found in (step_five(CPU), two[0]["five"], two[1]["five"]):
        assert found.never_moved and not found.never_in_optimizer
        assert found.seldom_in_optimizer  # one rank's gradient is everyone's


def test_an_idle_rank_joins_and_adds_nothing(two):
    alone = step_idle(CPU)
    assert alone.calls == [3]
    for rank in two:
        assert rank["idle"].calls == [3, 0]
        assert rank["idle"].losses == alone.losses
        assert torch.equal(rank["idle"].weights, alone.weights)


def test_out_of_memory_on_one_rank_halves_on_all(two):
    alone = step_out_of_memory(CPU, failing_rank=9, micro_batch=2)
    for rank in two:
        assert rank["out_of_memory"].sizes == [2, 2]
        torch.testing.assert_close(
            rank["out_of_memory"].weights, alone.weights, rtol=1e-5, atol=1e-5
        )


def test_an_infinite_loss_on_one_rank_skips_the_step_on_all(two):
    for rank in two:
        assert not rank["infinite"].moved
        assert rank["infinite"].after == [(1, 2.0**15), (1, 2.0**15)]


def test_a_signal_on_one_rank_stops_all(two):
    for rank in two:
        assert rank["stopped"].all == [(None, 0, 0), (None, 0, 0)]


def test_collectives_give_all_ranks_the_same(two):
    alone = collectives(CPU)
    for rank in two:
        found = rank["collectives"]
        assert found.sum == [2.0, 1.0]
        assert found.any == (True, False)
        assert found.rows == [0, 1, 1]
        assert found.from_rank_0 == {"rank": 0}
        assert found.broadcast == ([1.0] * 3, [1.0] * 3)
        assert np.array_equal(found.evaluated, alone.evaluated)
    assert np.array_equal(alone.evaluated, Rows().x)
