"""Sums of gradients over processes, begun while the backward pass still runs.

    sums.start(parameters)         # a global batch: hooks say when a gradient is complete
    sums.begin(loss)               # this rank's last backward pass comes
    loss.backward()                # full buckets leave while it goes on
    sums.flush(device)             # the rest, zeros for what is absent
    …                              # meanwhile: agree on sums.absent, signals, memory
    sums.wait()                    # .grad now holds the sums

The idea and the order of buckets are those of PyTorch's own wrapper (Li et al. 2020, "PyTorch
Distributed", section 3.2): gradients come from the last layer to the first, so buckets are filled
in the reverse order of the parameters. Every rank sends every bucket once, in the same order, come
what may: a rank without rows, without memory or with a signal sends zeros, and all agree afterwards
what to do with the sums. Nothing else may be sent between begin() and the last bucket.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device import again_with_freed_memory, free_memory, is_out_of_memory

BUCKET_BYTES = 8 << 20
FIRST_BYTES = 1 << 20  # of the first bucket, for which the wire waits


def cut_buckets(
    parameters: Iterable[nn.Parameter],
    bucket_bytes: int = BUCKET_BYTES,
    first_bytes: int = FIRST_BYTES,
) -> list[list[nn.Parameter]]:
    """Parameters from the last to the first, in buckets of one dtype: the first of about so many
    bytes, each next one twice as large, up to bucket_bytes; a larger parameter is a bucket of its
    own."""
    buckets: list[list[nn.Parameter]] = []
    used = 0
    for parameter in reversed(list(parameters)):
        size = parameter.numel() * parameter.element_size()
        most = min(bucket_bytes, first_bytes << max(0, len(buckets) - 1))
        fits = buckets and used + size <= most and buckets[-1][0].dtype == parameter.dtype
        if not fits:
            buckets.append([])
            used = 0
        buckets[-1].append(parameter)
        used += size
    return buckets


class GradientSums:
    """Sums over ranks of all gradients, in buckets of a fixed layout; without parameters nothing.

    dtype: in which they are sent; None: their own. bfloat16 halves the bytes, and rounds.
    absent: ids of the parameters for which this rank had no gradient and sent zeros.
    """

    def __init__(self, dtype: torch.dtype | None = None, bucket_bytes: int = BUCKET_BYTES):
        self.dtype, self.bucket_bytes = dtype, bucket_bytes
        self.buckets: list[list[nn.Parameter]] = []
        self.absent: set[int] = set()
        self._bucket_of: dict[int, int] = {}
        self._waiting: list[int] = []  # of each bucket: gradients that are not complete yet
        self._is_last = False  # the backward pass that runs
        self._looks = False  # whether to look for what a backward pass will not reach
        self._unreached: set[int] = set()
        self._sent: list[tuple[dist.Work, list[nn.Parameter], Tensor]] = []
        self._watched: list[RemovableHandle] = []

    def start(self, parameters: Sequence[nn.Parameter]) -> None:
        """A global batch begins. parameters: whose gradients are summed, in the model's order, the
        same on all ranks."""
        self.absent, self._sent, self._is_last = set(), [], False
        if [id(p) for bucket in reversed(self.buckets) for p in reversed(bucket)] == [
            id(p) for p in parameters
        ]:
            return
        self.buckets, self._looks = cut_buckets(parameters, self.bucket_bytes), False
        self._bucket_of = {id(p): i for i, bucket in enumerate(self.buckets) for p in bucket}
        for handle in self._watched:
            handle.remove()
        self._watched = [p.register_post_accumulate_grad_hook(self._complete) for p in parameters]

    def begin(self, loss: Tensor | None = None) -> None:
        """The next backward pass, that of the loss, is this rank's last one: gradients are complete
        in it. What it will not reach (layers that were dropped) is complete already, and is looked
        for once it has held buckets back."""
        self._waiting = [len(bucket) for bucket in self.buckets]
        self._is_last, self._unreached = True, set()
        if loss is None or not self._looks:
            return
        self._unreached = self._bucket_of.keys() - reached_by(loss)
        for key in self._unreached:
            self._waiting[self._bucket_of[key]] -= 1
        self._send_complete()

    def _complete(self, parameter: nn.Parameter) -> None:
        if not self._is_last:
            return
        if id(parameter) in self._unreached:
            raise RuntimeError("a gradient came of which the graph of the loss knew nothing")
        self._waiting[self._bucket_of[id(parameter)]] -= 1
        self._send_complete()

    def _send_complete(self) -> None:
        """Begin the sums of the next buckets that are complete."""
        try:
            while len(self._sent) < len(self.buckets) and not self._waiting[len(self._sent)]:
                self._send()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._is_last = False  # the rest when the backward pass has freed its memory

    def _send(self) -> None:
        """Begin the next bucket's sum."""
        bucket = self.buckets[len(self._sent)]
        self.absent |= {id(p) for p in bucket if p.grad is None}
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        dtype = self.dtype or bucket[0].dtype
        if len(bucket) == 1 and gradients[0].is_contiguous() and gradients[0].dtype == dtype:
            flat = gradients[0].view(-1)  # a large matrix needs no copy
        else:
            flat = torch.cat([gradient.reshape(-1).to(dtype) for gradient in gradients])
        views = [part.view_as(p) for part, p in zip(_parts(flat, bucket), bucket, strict=True)]
        for parameter, gradient, view in zip(bucket, gradients, views, strict=True):
            # where nothing was rounded the gradient is a part of what is sent: no second copy
            parameter.grad = view if view.dtype == gradient.dtype else gradient
        self._sent.append((dist.all_reduce(flat, async_op=True), bucket, flat))

    def flush(self, device: torch.device, blank: bool = False) -> None:
        """Begin all sums that have not begun. blank: of zeros, for what this rank has computed is
        not to be used; the gradients are given up, as memory may have run out."""
        self._looks |= self._is_last and not blank and len(self._sent) < len(self.buckets)
        self._is_last = False
        if not blank:
            while len(self._sent) < len(self.buckets):
                again_with_freed_memory(self._send, device)
            return
        rest = self.buckets[len(self._sent) :]
        for bucket in rest:
            for parameter in bucket:
                parameter.grad = None
        free_memory(device)
        for bucket in rest:
            count = sum(parameter.numel() for parameter in bucket)
            flat = torch.zeros(count, dtype=self.dtype or bucket[0].dtype, device=device)
            dist.all_reduce(flat)  # one after the other, in the memory of the largest

    def wait(self) -> None:
        """Until all sums are there, in .grad."""
        for work, bucket, flat in self._sent:
            work.wait()
            if self.dtype is not None and self.dtype != bucket[0].dtype:
                parts = [p.view_as(q) for p, q in zip(_parts(flat, bucket), bucket, strict=True)]
                torch._foreach_copy_([parameter.grad for parameter in bucket], parts)
        self._sent = []


def reached_by(loss: Tensor) -> set[int]:
    """The ids of the parameters in whose gradients a backward pass from the loss ends."""
    found, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [parent for parent, _ in node.next_functions]
    return found


def _parts(flat: Tensor, bucket: list[nn.Parameter]) -> tuple[Tensor, ...]:
    return flat.split([parameter.numel() for parameter in bucket])
