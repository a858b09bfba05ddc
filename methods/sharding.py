"""Training a model that is too large for one device: PyTorch's FSDP2 around core's steps.

    whole = whole_copy(model) if world.rank == 0 else None        # on the CPU, as the model is
    shard(model, layers, world)                                   # each rank keeps its part
    state = ShardedState(whole=whole, model=model, …)

Every rank holds a part of each parameter, its gradient and its optimizer state; a block is put
together while it computes (Zhao et al. 2023, PyTorch FSDP; Rajbhandari et al. 2020, ZeRO, stage 3).
Rank 0 keeps a whole copy in its host's memory, from which checkpoints are written as those of an
unsharded run are.

With --precision bf16 the matrices of blocks are put together in bf16, which halves what is sent;
embeddings, norms and head stay fp32, as in an unsharded run. Gradients are added up on each rank,
in fp32, and summed over ranks once a step.

All ranks must compute the same number of times, so that core deals micro-batches without rows where
ranks have less to do, a signal is noticed by all at once, and memory that runs out ends the run.
"""

import copy
import functools
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import core
from gradients import GradientSums


def shard(
    model: nn.Module,
    layers: Iterable[nn.Module],
    world: core.World,
    precision: str = "fp32",
    reduce_dtype: torch.dtype | None = None,
) -> None:
    """Split the parameters over the ranks, in place. The model lies on the CPU: each of the layers,
    its blocks, is moved to the device, cut up and freed before the next one, and later put together
    by itself.

    precision: bf16 puts the blocks together in it. reduce_dtype: in which gradients are summed;
    None: fp32. Afterwards what reads parameters outside the model's own forward goes through
    `inside`.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    mesh = dist.device_mesh.init_device_mesh(world.device.type, (world.size,))
    half = torch.bfloat16 if precision == "bf16" else None  # fp16 would overflow as it is added up
    # autocast chooses what is computed in which precision, as in an unsharded run
    policy = functools.partial(
        MixedPrecisionPolicy, reduce_dtype=reduce_dtype or torch.float32, cast_forward_inputs=False
    )
    for layer in layers:
        parts = [part for part in layer.children() if any(p.ndim > 1 for p in part.parameters())]
        fully_shard(parts or layer, mesh=mesh, mp_policy=policy(param_dtype=half))
    fully_shard(model, mesh=mesh, mp_policy=policy())
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)  # core divides by the number of targets
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    model.computed = types.MethodType(lambda self, function, *rest: function(self, *rest), model)
    register_fsdp_forward_method(model, "computed")


def whole_copy(model: nn.Module) -> nn.Module:
    """A copy of a model on the CPU that takes no memory: its parameters are views of the model's,
    which are left to it when the model is sharded."""
    shared: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, shared)


def inside(model: nn.Module, function: Callable, *arguments: Any) -> Any:
    """function(model, *arguments); a sharded model's own parameters are put together inside."""
    if hasattr(model, "computed"):
        return model.computed(function, *arguments)
    return function(model, *arguments)


class ShardedSums(GradientSums):
    """Sums that FSDP takes inside this rank's last backward pass of a step, of what the passes
    before have left whole on each device; each: inside every one, which leaves only parts there."""

    def __init__(self, model: nn.Module, each: bool = False):
        super().__init__()
        self.model, self.each = model, each

    def start(self, parameters: Sequence[nn.Parameter]) -> None:
        super().start([])
        self._sum(self.each)

    def begin(self, loss: Tensor | None = None) -> None:
        self._sum(True)

    def _sum(self, now: bool) -> None:
        self.model.set_requires_gradient_sync(now)
        self.model.set_is_last_backward(now)


@dataclass
class ShardedState(core.State):
    """A State whose checkpoints hold whole tensors, gathered to rank 0 and dealt out again."""

    whole: nn.Module | None = None  # rank 0's copy, of the same names

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gradient_sums = ShardedSums(self.model, self.config.shard_reduce == "micro_batch")
        self._optimizer: dict[int, dict[str, Tensor]] = {}  # rank 0: by number of the parameter

    def collect(self) -> None:
        copies = dict(self.whole.named_parameters()) if self.whole is not None else {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                tensor = _gathered(parameter.detach())
                if name in copies:
                    copies[name].data.copy_(tensor)
        self._optimizer = {}
        for number, parameter in enumerate(self.parameters):
            moments = self.optimizer.state.get(parameter, {})
            gathered = {name: _gathered(value) for name, value in moments.items()}
            if self.whole is not None:
                self._optimizer[number] = {k: v.cpu().clone() for k, v in gathered.items()}

    def host_copies(self) -> list[Tensor]:
        moments = [tensor for state in self._optimizer.values() for tensor in state.values()]
        return [*self.kept.state_dict().values(), *moments] if self.whole is not None else []

    def state_dict(self) -> dict:
        saved = super().state_dict()
        filled = {number: state for number, state in self._optimizer.items() if state}
        return saved | {"optimizer": saved["optimizer"] | {"state": filled}}

    def load_state_dict(self, saved: dict) -> None:
        """The optimizer's tensors stay with rank 0 until share()."""
        if self.whole is not None:
            self._optimizer = saved["optimizer"]["state"]
            saved["optimizer"] = saved["optimizer"] | {"state": {}}
        super().load_state_dict(saved)

    @torch.no_grad()
    def share(self) -> None:
        copies = dict(self.whole.named_parameters()) if self.whole is not None else {}
        for name, parameter in self.model.named_parameters():
            _deal(parameter, copies.get(name))
        # of the parameters that have moments: one that never had a gradient has none
        names = {number: sorted(state) for number, state in self._optimizer.items()}
        for number, keys in self.world.from_rank_0(names).items():
            parameter, state = self.parameters[number], {}
            for key in keys:
                tensor = self._optimizer[number][key] if self.whole is not None else None
                if key == "step":
                    # AdamW is fused, and counts on the device
                    state[key] = self.world.from_rank_0(tensor).to(self.world.device)
                else:
                    state[key] = torch.zeros_like(parameter)
                    _deal(state[key], tensor)
            self.optimizer.state[parameter] = state
        self._optimizer = {}


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if core.is_sharded(tensor) else tensor


def _deal(target: Tensor, source: Tensor | None) -> None:
    """Rank 0's whole tensor into the parts of `target`; elsewhere source is None."""
    from torch.distributed.tensor import distribute_tensor

    if not core.is_sharded(target):
        whole = torch.empty_like(target) if source is None else source.to(target)
        dist.broadcast(whole, src=0)
        return target.copy_(whole)
    local = target.to_local()
    if source is None:
        whole = torch.empty(target.shape, dtype=local.dtype, device=local.device)
    else:
        whole = source.to(local)
    local.copy_(distribute_tensor(whole, target.device_mesh, target.placements).to_local())
