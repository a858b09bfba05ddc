"""What checkpoints cost in memory, beside the state itself: at a save, and when a run goes on.

python -m pytest -x -s tests/long/test_checkpoint_memory.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PROJECT = Path(__file__).resolve().parents[2]
WIDTH, LAYERS = 1024, 16  # 17 M parameters: 201 MB with the two moments of AdamW


def measured(action: str, folder: Path, size: int = 1) -> list[dict]:
    """What each of so many new processes says that runs this file."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, action, str(folder), str(rank), str(size)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [json.loads(process.communicate(timeout=900)[0]) for process in processes]


@pytest.mark.parametrize("size", [1, 2])
def test_memory_of_saving_and_of_going_on(tmp_path, size):
    [save] = measured("save", tmp_path)
    print(f"\nsaving: {save}")
    assert save["state"] > 200e6
    assert save["first"] < 1.1 * save["state"]  # one copy, and what writing takes
    assert save["later"] < 0.05 * save["state"]
    for read in measured("resume", tmp_path, size):
        print(f"going on, {size} processes: {read}")
        assert read["sum"] == save["sum"]
        assert read["peak"] < 1.3 * save["state"]


# ----------------------------------------------------------------- in a process of its own


def memory(name: str) -> int:
    """VmRSS or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return 1024 * int(line.split()[1])


def build(world):
    import torch

    import core
    from settings import Settings

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = SimpleNamespace(position=0, micro_batch=1, join_tokens=0, seek=lambda position: None)
    clock = core.StepClock(1)
    return core.State(Settings(), world, model, optimizer, loader, clock, lambda fraction: 1.0)


def total(state) -> float:
    moments = [v for each in state.optimizer.state.values() for v in each.values()]
    return sum(t.double().sum().item() for t in [*state.model.parameters(), *moments])


def save(folder: Path) -> dict:
    import torch

    import core
    from device import Machine
    from runs.checkpoints import Checkpoints

    world = core.World(torch.device("cpu"), Machine())
    state = build(world)
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad()
    checkpoints = Checkpoints(folder, world, None, lambda **amounts: None, lambda: None)
    peaks = []
    for step in range(1, 5):
        state.step, before = step, memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        checkpoints.save(state, lambda: None, lambda: None)
        checkpoints.settle()
        peaks.append(memory("VmHWM") - before)
    held = 3 * 4 * sum(p.numel() for p in state.parameters)
    return {"state": held, "first": peaks[0], "later": max(peaks[1:]), "sum": total(state)}


def resume(folder: Path, rank: int, size: int) -> dict:
    """As runs.Run.resume does."""
    import torch
    import torch.distributed as dist

    import core
    from device import Machine
    from runs.checkpoints import Checkpoints

    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
    world = core.World(torch.device("cpu"), Machine(), "gloo", rank, rank, size)
    torch.optim.AdamW([torch.zeros(1)])  # what it imports is not the state's
    before, saved = memory("VmRSS"), None
    Path("/proc/self/clear_refs").write_text("5")
    state = build(world)
    checkpoints = Checkpoints(folder, world, None, lambda **amounts: None, lambda: None)
    if rank == 0:
        saved = checkpoints.load_newest(state)
        state.load_state_dict(saved)
    saved = world.state_from_rank_0(saved)
    if rank:
        state.load_state_dict(saved)
    saved = None
    state.share()
    peak = memory("VmHWM") - before
    return {"peak": peak, "sum": total(state)}


def main(action: str, folder: str, rank: str, size: str) -> None:
    import device

    device.keep_freed_memory()  # as core.distributed does on a CPU
    found = save(Path(folder)) if action == "save" else resume(Path(folder), int(rank), int(size))
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
