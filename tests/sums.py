"""What processes find when they sum gradients inside the backward pass, beside a plain sum."""

import copy
from types import SimpleNamespace

import forked
import torch
import torch.distributed as dist
from torch import nn

import core
import gradients
from device import Machine

CPU = torch.device("cpu")


def plain_sums(parameters: list[nn.Parameter]) -> list[torch.Tensor | None]:
    """One tensor after the other, after the backward pass; None where no rank has one."""
    found = []
    for parameter in parameters:
        has = torch.tensor([float(parameter.grad is not None)])
        dist.all_reduce(has)
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        total = grad.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        found.append(total if has else None)
    return found


class Blocks(nn.Module):
    """A chain of which a call runs some; the last map is the first one's transpose (tied)."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.first = nn.Linear(12, 20)
        self.blocks = nn.ModuleList(nn.Linear(20, 20) for _ in range(6))
        self.scale = nn.Parameter(torch.ones(20, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor, run: range) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        for number in run:
            x = torch.tanh(self.blocks[number](x)) * self.scale.float()
        return x @ self.first.weight


def inside(rank: int, dtype=None, fails_at: int | None = None) -> SimpleNamespace:
    """Three local micro-batches, other layers on each rank; none on the last of many ranks."""
    torch.manual_seed(0)
    model = Blocks()
    parameters = list(model.parameters())
    local = [] if rank == 3 else [range(3 + rank), range(1), range(2 + rank, 6)]
    inputs = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(rank))
    twin = copy.deepcopy(model)
    for x, run in zip(inputs, local, strict=False):
        twin(x, run).square().sum().backward()
    wanted = plain_sums(list(twin.parameters()))

    sums = gradients.GradientSums(dtype, bucket_bytes=2000)
    sums.start(parameters)
    sums.start(parameters)  # the same ones: no second hook
    send, tries = sums._send, []

    def failing() -> None:
        tries.append(1)
        if len(tries) == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        send()

    sums._send = failing
    for number, (x, run) in enumerate(zip(inputs, local, strict=False)):
        loss = model(x, run).square().sum()
        if number == len(local) - 1:
            sums.begin(loss)
        loss.backward()
    early = len(sums._sent)
    sums.flush(CPU)
    absent = [id(p) in sums.absent for p in parameters]
    sums.wait()
    found = [p.grad for p in parameters]
    return SimpleNamespace(
        found=found, wanted=wanted, early=early, absent=absent, buckets=len(sums.buckets)
    )


def given_up(rank: int) -> list[torch.Tensor | None]:
    """Rank 1 runs out of memory in the middle; all send all, and are ready for the next batch."""
    model = Blocks()
    sums = gradients.GradientSums(bucket_bytes=2000)
    for blank in (rank == 1, False):
        torch.manual_seed(rank)
        model.zero_grad()
        sums.start(list(model.parameters()))
        sums.begin()
        if not blank:
            model(torch.randn(2, 12), range(6)).sum().backward()
        sums.flush(CPU, blank=blank)
        sums.wait()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def dropped(rank: int) -> SimpleNamespace:
    """Blocks that the last micro-batch drops, batch after batch: buckets that are sent inside."""
    torch.manual_seed(0)
    model = Blocks()
    parameters = list(model.parameters())
    sums, early = gradients.GradientSums(bucket_bytes=2000), []
    found: list = []
    wanted: list = []
    for number in range(3):
        inputs = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(9 * number + rank))
        model.zero_grad()
        losses = [model(inputs[0], range(6)), model(inputs[1], range(number))]
        wanted += plain_sums_of(parameters, [loss.square().sum() for loss in losses])
        sums.start(parameters)
        for index, run in enumerate((range(6), range(number))):
            loss = model(inputs[index], run).square().sum()
            if index == 1:
                sums.begin(loss)
            loss.backward()
        early.append(len(sums._sent))
        sums.flush(CPU)
        sums.wait()
        found += [parameter.grad for parameter in parameters]
    return SimpleNamespace(early=early, buckets=len(sums.buckets), found=found, wanted=wanted)


def plain_sums_of(parameters: list[nn.Parameter], losses: list) -> list[torch.Tensor | None]:
    for loss in losses:
        loss.backward()
    wanted = plain_sums(parameters)
    for parameter in parameters:
        parameter.grad = None
    return wanted


def shapes(rank: int) -> tuple[list, list]:
    """Of every kind, one laid out as its transpose, one that a rank lacks."""
    parameters = [
        nn.Parameter(torch.zeros(shape))
        for shape in [(3,), (40, 30), (1,), (7, 5), (0,), (200,), (2, 3, 4)]
    ]
    for number, parameter in enumerate(parameters):
        if not (number == 3 and rank == 0):
            own = torch.Generator().manual_seed(10 * number + rank)
            parameter.grad = torch.randn(parameter.shape, generator=own)
    parameters[1].grad = parameters[1].grad.t().contiguous().t()
    wanted = plain_sums(parameters)
    sums = gradients.GradientSums(bucket_bytes=1000)
    sums.start(parameters)
    sums.flush(CPU)
    sums.wait()
    return [p.grad for p in parameters], wanted


def dtypes_of(rank: int) -> list:
    """With bf16: no rank has another sum than the others."""
    found = inside(rank, torch.bfloat16).found
    world = core.World(CPU, Machine(), "gloo", rank, rank, dist.get_world_size())
    return world.gather_rows([found])


def processes(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=size)
    found = {
        "inside": inside(rank),
        "memory": inside(rank, fails_at=2 if rank == 0 else None),
        "bf16": inside(rank, torch.bfloat16),
        "bf16 of all": dtypes_of(rank),
        "dropped": dropped(rank),
        "given up": given_up(rank),
        "shapes": shapes(rank),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def found_by(size: int, folder: str) -> list[dict]:
    """By rank."""
    forked.spawn(processes, (size, folder), nprocs=size)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]
