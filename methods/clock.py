"""The budget of a run as a clock that counts work and prices it.

    clock = BudgetClock(6, "rst_hours", RTX_3090, free={"curvature"})
    while not clock.done:
        lr = peak_lr * budget_one_cycle(clock.fraction)
        clock.charge("train", layers=16, sequences=1536)
        clock.settle()

Reference-system time (Kaddour et al. 2023, No Train No Gain, section 2): a run costs the sum
of what it did, each kind of work at the mean time that a fixed machine takes for it. Runs on
different machines then compare, and evaluation, logging or a slow disk cost nothing. Only
counts are kept; what they cost is computed from them, so that a finished run can be priced
anew for any machine.
"""

import bisect
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from files import write_text

KINDS = ("train", "forward", "curvature")  # forward and backward; selection; Hessian estimates
Counts = dict[str, dict[int, int]]  # sequences, by kind of work and number of active layers
Unit = Literal["rst_hours", "hours", "steps", "flops"]


@dataclass(frozen=True)
class Costs:
    """What one sequence costs, in seconds of a machine or in FLOPs, by kind and active layers.

    The share of the optimizer's step and of everything else that belongs to the work is in it.
    """

    unit: Literal["seconds", "flops"]
    machine: str
    """the machine and what it ran, in words"""
    arch: str
    seq_length: int
    """tokens a sequence"""
    per_sequence: Mapping[str, Mapping[int, float]] = field(repr=False)
    """kind → active layers → cost of one sequence"""

    def of(self, kind: str, layers: int) -> float:
        """Cost of one sequence; a number of layers without an entry lies on the line through its
        neighbours. ValueError for an unknown kind, or more layers than the table has."""
        table = self.per_sequence.get(kind, {})
        if layers in table:
            return table[layers]
        depths = sorted(table)
        if len(depths) < 2 or not 0 <= layers < depths[-1]:
            has = f"it has {depths}" if depths else f"it prices {', '.join(self.per_sequence)}"
            raise ValueError(f"the costs of {self.machine} have none of {kind}, {layers}: {has}")
        right = max(1, bisect.bisect(depths, layers))  # below the first entry: the first line
        a, b = depths[right - 1], depths[right]
        slope = (table[b] - table[a]) / (b - a)
        return max(0.0, table[a] + slope * (layers - a))

    def require(self, arch: str, seq_length: int) -> None:
        """ValueError unless this table was made for that architecture and length."""
        if (arch, seq_length) != (self.arch, self.seq_length):
            raise ValueError(
                f"the times of {self.machine} price {self.arch} at length {self.seq_length}, not "
                f"{arch} at {seq_length}: measure the budget in wall-clock hours, steps or FLOPs, "
                "or calibrate a table for it"
            )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = {
            "unit": self.unit,
            "machine": self.machine,
            "arch": self.arch,
            "seq_length": self.seq_length,
            "per_sequence": {kind: dict(table) for kind, table in self.per_sequence.items()},
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Costs":
        """Read what `save` wrote; ValueError says what is wrong with the file."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            tables = {
                kind: {int(layers): float(cost) for layers, cost in table.items()}
                for kind, table in content["per_sequence"].items()
            }
            costs = cls(
                content["unit"],
                str(content["machine"]),
                str(content["arch"]),
                int(content["seq_length"]),
                tables,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a table of costs ({repr(error)[:200]})") from error
        if costs.unit not in ("seconds", "flops"):
            raise ValueError(f"{path}: unit {costs.unit!r}, expected seconds or flops")
        if unknown := tables.keys() - set(KINDS):
            raise ValueError(f"{path}: unknown kind of work {sorted(unknown)}, expected {KINDS}")
        for kind, table in tables.items():
            for layers, cost in table.items():
                if layers < 0 or not (math.isfinite(cost) and cost > 0):
                    raise ValueError(f"{path}: {kind}, {layers} layers: impossible cost {cost}")
        return costs


# Seconds a micro-batch of 128 sequences, forward and backward, by active layers 1 to 16, with the
# optimizer's step of a batch of 1,536 in it (fp16, CUDA 11.7, PyTorch 1.13). Published with .01052
# at 7 layers: a typo, for the row rises by 13.3 ms a layer.
_3090_TRAIN = (
    0.02521,
    0.03837,
    0.05177,
    0.06508,
    0.07847,
    0.09188,
    0.1052,
    0.1186,
    0.1319,
    0.1454,
    0.1589,
    0.1722,
    0.1857,
    0.1988,
    0.2120,
    0.2253,
)
_3090_FORWARD_16 = 0.09285  # the only one published; other depths cost in proportion to training
_train = {depth: seconds / 128 for depth, seconds in enumerate(_3090_TRAIN, start=1)}
_forward = {d: cost * _3090_FORWARD_16 / _3090_TRAIN[15] for d, cost in _train.items()}
RTX_3090 = Costs(
    "seconds",
    "an RTX 3090",
    "bert-c5",
    128,
    {"train": _train, "forward": _forward, "curvature": _train},
)


def forward_flops(
    layers: int,
    hidden: int,
    intermediate: int,
    vocab: int,
    seq_length: int,
    masked_share: float = 0.15,
    gated: bool = True,
) -> float:
    """FLOPs of a forward pass over one sequence, in matrix products (the rest is below 1 %).

    gated: the feed-forward part halves its `intermediate` values by gating. Only the masked
    share of the tokens goes through the head and the decoder.
    """
    # weights that a token is multiplied by: Q, K, V, output; up, down (from half, if gated)
    weights = 4 * hidden**2 + hidden * intermediate * (1.5 if gated else 2)
    # a product and a sum each; scores and weighted values: seq² · hidden products each
    each_layer = 2 * weights * seq_length + 2 * 2 * seq_length**2 * hidden
    head = 2 * (hidden**2 + hidden * vocab) * masked_share * seq_length
    return layers * each_layer + head


def flops_costs(
    arch: str,
    num_layers: int,
    hidden: int,
    intermediate: int,
    vocab: int,
    seq_length: int,
    masked_share: float = 0.15,
    gated: bool = True,
) -> Costs:
    """FLOPs by kind and active layers; the backward pass is twice the forward pass: one product
    for the gradient of the input, one for that of the weights."""
    forward = {
        layers: forward_flops(layers, hidden, intermediate, vocab, seq_length, masked_share, gated)
        for layers in range(num_layers + 1)
    }
    train = {layers: 3 * cost for layers, cost in forward.items()}
    tables = {"train": train, "forward": forward, "curvature": train}
    return Costs("flops", "any machine", arch, seq_length, tables)


def costs_of_rows(
    model: nn.Module, layer_of: Callable[[str], str], tokens: float, pairs: float
) -> Costs:
    """FLOPs of a mean training row in matrix products, for any model of transformers.

    A weight of the layers, the embeddings' maps and the output matrix is used by each token: two
    operations forward, two for its gradient, two for that of its input where something below is
    trained; other weights (heads) by each row once; ALBERT's by each layer that shares them. The
    factors of a LoRA adapter stand beside their map's weight. Attention: 4 · hidden a layer for
    each of `pairs` of tokens (Chowdhery et al. 2022, PaLM, appendix B), twice as many backward
    from the lowest layer on that is trained. tokens, pairs: of a mean row.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    shape = next(module.config for module in model.modules() if hasattr(module, "config"))
    names = {layer_of(name) for name, _ in model.named_parameters()}
    layers = {name: False for name in names if name.startswith("layer_")}  # whether trained below
    times = shape.num_hidden_layers / len(layers) if shape.model_type == "albert" else 1
    forward = backward = 0.0
    trained_below = False
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or weight is None or weight.ndim != 2:
            trained_below |= weight is not None and weight.requires_grad  # norms, too
            continue
        layer = layer_of(f"{name}.weight")
        by_token = layer in layers or layer == "embeddings" or module is output
        each = 2 * (tokens if by_token else 1) * (times if layer in layers else 1)
        adapter = getattr(module, "lora", None)
        # what is multiplied, and whether its input needs a gradient
        products = [(weight, trained_below)]
        if adapter is not None:
            products += [(adapter.A, trained_below), (adapter.B, True)]
        for matrix, input_too in products:
            forward += each * matrix.numel()
            backward += each * matrix.numel() * (matrix.requires_grad + input_too)
            trained_below |= matrix.requires_grad
        if layer in layers:
            layers[layer] = trained_below
    attention = 4 * shape.hidden_size * shape.num_hidden_layers * pairs
    share = sum(layers.values()) / len(layers) if layers else trained_below
    forward, backward = forward + attention, backward + 2 * attention * share
    train = forward + backward
    tables = {"train": {0: train}, "forward": {0: forward}, "curvature": {0: train}}
    return Costs("flops", "any machine", "any", 0, tables)


def price(counts: Mapping[str, Mapping], costs: Costs, free: Collection[str] = ()) -> float:
    """What the counted work costs, in the unit of `costs`, leaving out the free kinds.

    counts: as BudgetClock keeps them; layers may be text, as after a journey through JSON.
    """
    return math.fsum(
        sequences * costs.of(kind, int(layers))
        for kind, by_layers in counts.items()
        if kind not in free
        for layers, sequences in by_layers.items()
    )


class BudgetClock:
    """Time in the unit of a budget, with fraction, done and after_update as core.StepClock has.

    unit: rst_hours (hours of the machine of `costs`), flops (of `costs`), steps (updates), or
    hours by the wall clock, which the caller measures. free: kinds of work that are counted and
    not charged. All ranks must charge the same: the work of the whole global batch, from
    numbers that each rank knows; a measured time must be rank 0's, broadcast by the caller.

    An update is not begun when, at the cost of the last one, it would end after the budget;
    the first one always is.
    ValueError for a budget of 0 or less, an unknown unit or kind, or costs that do not fit.
    """

    def __init__(
        self, budget: float, unit: Unit, costs: Costs | None = None, free: Collection[str] = ()
    ):
        if not budget > 0:
            raise ValueError(f"budget {budget}: expected more than 0")
        needed = {"rst_hours": "seconds", "flops": "flops", "hours": None, "steps": None}
        if unit not in needed:
            raise ValueError(f"budget unit {unit!r}: expected one of {', '.join(needed)}")
        if needed[unit] and (costs is None or costs.unit != needed[unit]):
            raise ValueError(f"a budget in {unit} needs a table of costs in {needed[unit]}")
        for kind in free:
            _check_kind(kind)
        self.budget, self.unit, self.costs, self.free = budget, unit, costs, frozenset(free)
        # known before the run only where time is steps
        self.total_steps = max(1, int(budget)) if unit == "steps" else None
        self.counts: Counts = {}
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self._before_update = 0.0
        self.last_update = 0.0  # what it cost, in the unit of the budget

    def charge(self, kind: str, layers: int, sequences: int) -> None:
        """Count `sequences` that went through that many active layers, summed over ranks."""
        _check_kind(kind)
        by_layers = self.counts.setdefault(kind, {})
        by_layers[layers] = by_layers.get(layers, 0) + sequences

    def measure(self, kind: str, seconds: float) -> None:
        """Add wall-clock seconds of that kind of work: rank 0's, on every rank."""
        _check_kind(kind)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    @property
    def spent(self) -> float:
        """In the unit of the budget."""
        if self.unit == "steps":
            return self.steps
        if self.unit == "hours":
            charged = (s for kind, s in self.seconds.items() if kind not in self.free)
            return math.fsum(charged) / 3600
        cost = price(self.counts, self.costs, self.free)
        return cost / 3600 if self.unit == "rst_hours" else cost

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, at most 1."""
        return min(1.0, self.spent / self.budget)

    @property
    def done(self) -> bool:
        # the margin is for rounding: ten updates fit into the price of ten
        return self.spent + self.last_update > self.budget * (1 + 1e-9) or self.fraction == 1.0

    def after_update(self) -> None:
        """The clock stands still until the update's work is charged and settled."""

    def settle(self) -> None:
        """Call when all work of an update is charged."""
        self.steps += 1
        spent = self.spent
        self.last_update, self._before_update = spent - self._before_update, spent

    def passed_multiple_of(self, amount: float) -> bool:
        """Whether the last update passed a multiple of so much of the budget, or ended it."""
        before = self.spent - self.last_update
        return self.done or self.spent // amount > before // amount

    def state_dict(self) -> dict:
        return {
            "counts": {kind: dict(by_layers) for kind, by_layers in self.counts.items()},
            "seconds": dict(self.seconds),
            "steps": self.steps,
            "before_update": self._before_update,
            "last_update": self.last_update,
        }

    def load_state_dict(self, saved: dict) -> None:
        self.counts = {kind: dict(by_layers) for kind, by_layers in saved["counts"].items()}
        self.seconds = dict(saved["seconds"])
        self.steps = saved["steps"]
        self._before_update, self.last_update = saved["before_update"], saved["last_update"]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kind of work {kind!r}: expected one of {', '.join(KINDS)}")
