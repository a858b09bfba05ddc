"""Muon for the matrices inside a network and AdamW for all else, as one optimizer.

    groups = parameter_groups({"gpt": model.parameters()}, {"gpt": 1e-3}, weight_decay=0.1)
    optimizer = Muon(split_for_muon(groups, layers, ratio=2))

Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks
(kellerjordan.github.io/posts/muon): a matrix moves by its momentum with all singular values made
about 1, found by five Newton-Schulz iterations. Liu et al. 2025, Muon is Scalable for LLM Training
(arXiv 2502.16982): scaled by 0.2·√(longer side), such a move is as large as one of AdamW, so that
AdamW's learning rates and weight decay carry over.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at 0; settles between about 0.7 and 1.2, not at 1
TINY = 1e-7


def orthogonalize(
    matrices: Tensor, iterations: int = 5, dtype: torch.dtype | None = None
) -> Tensor:
    """(…, rows, columns) = U·S·Vᵀ → about U·Vᵀ, computed in `dtype` (None: the matrices' own).

    Newton-Schulz: X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from X = matrix / its Frobenius norm.
    Singular values s go to a·s + b·s³ + c·s⁵ each time, singular vectors stay.
    """
    a, b, c = COEFFICIENTS
    x = matrices.reshape(-1, *matrices.shape[-2:]).to(dtype or matrices.dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller of the two products with itself
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=TINY)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


def muon_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
    dtype: torch.dtype | None = None,
) -> None:
    """One step of Muon on matrices, in place on parameters and momenta.

    m ← μ·m + g,  p ← p·(1 − lr·wd) − lr·0.2·√max(rows, columns)·orthogonalize(g + μ·m)
    (Jordan's, with Nesterov's momentum; Liu et al. 2025, equation 4, for the scale.)
    """
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, gradients)
    directions = torch._foreach_add(gradients, momenta, alpha=momentum)
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    by_shape: dict[torch.Size, list[int]] = {}
    for number, parameter in enumerate(parameters):
        by_shape.setdefault(parameter.shape, []).append(number)
    for shape, numbers in by_shape.items():
        # together: 128 × 128 alone takes four times as long in calls as in products
        moves = orthogonalize(torch.stack([directions[n] for n in numbers]), dtype=dtype)
        alpha = -lr * 0.2 * math.sqrt(max(shape))
        moves = list(moves.to(parameters[0].dtype))
        torch._foreach_add_([parameters[n] for n in numbers], moves, alpha=alpha)


def muon_flops(shapes: Iterable[tuple[int, int]], iterations: int = 5) -> int:
    """Floating-point operations of orthogonalizing matrices of these shapes, two a multiply-add.

    An iteration on (n, m), n ≤ m, multiplies n·m·n, n·n·n and n·n·m.
    """
    return sum(iterations * 2 * min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes)


def split_for_muon(groups: list[dict], layers: Mapping[int, str], ratio: float = 1.0) -> list[dict]:
    """Each group cut in two: matrices inside the layers, for Muon at `ratio` times the group's
    learning rate, and the rest, for AdamW.

    layers: id of a parameter → its layer, layer_3 inside one. Embeddings and head go to AdamW, as
    Jordan advises: their rows are looked up one by one. ValueError where no such matrix is trained.
    """
    alone = len({group["part"] for group in groups}) == 1
    split = []
    for group in groups:
        inside = {id(p) for p in group["params"] if p.ndim == 2 and layers[id(p)][:6] == "layer_"}
        part = group["part"]
        rest = ("embeddings" if group["params"][0].ndim >= 2 else "vectors") if alone else part
        for method, name, lr, wanted in (
            ("muon", "matrices" if alone else f"{part}_matrices", ratio * group["lr"], True),
            ("adamw", rest, group["lr"], False),
        ):
            chosen = [p for p in group["params"] if (id(p) in inside) == wanted]
            if chosen:
                facts = {"params": chosen, "lr": lr, "method": method, "part": name}
                split.append({**group, **facts})
    if not any(group["method"] == "muon" for group in split):
        raise ValueError(
            "--optimizer muon moves the matrices inside layers, and none of them is trained here: "
            "use adamw"
        )
    return split


class Muon(torch.optim.Optimizer):
    """Muon in groups with method="muon" (matrices only), AdamW in those with method="adamw".

    dtype: of the Newton-Schulz iterations; None: the parameters' own. bfloat16, the source's
    choice, is several times faster where there are instructions for it. A parameter without a
    gradient is left alone. ValueError for another method, a Muon group with anything but
    matrices, a negative lr or weight decay, or momentum or betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = torch.bfloat16,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "method": "muon"})
        self.dtype = dtype
        for group in self.param_groups:
            _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update = self._muon if group["method"] == "muon" else self._adamw
                update(group, parameters, [p.grad for p in parameters])
        return loss

    def _muon(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        momenta = self._state_of(parameters, "momentum")
        muon_update(
            parameters,
            gradients,
            momenta,
            group["lr"],
            group["momentum"],
            group["weight_decay"],
            self.dtype,
        )

    def _adamw(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """torch's own AdamW (Loshchilov & Hutter 2019), fused."""
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        adamw(
            parameters,
            gradients,
            self._state_of(parameters, "exp_avg"),
            self._state_of(parameters, "exp_avg_sq"),
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state_of(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """The named state of each parameter, zeros where it is new."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


def _check(group: dict) -> None:
    if group["method"] not in ("muon", "adamw"):
        raise ValueError(f"method {group['method']}: expected muon or adamw")
    if group["method"] == "muon" and any(p.ndim != 2 for p in group["params"]):
        raise ValueError("Muon orthogonalizes matrices: give vectors to a group of adamw")
    if group["lr"] < 0 or group["weight_decay"] < 0:
        raise ValueError(
            f"lr {group['lr']}, weight_decay {group['weight_decay']}: expected 0 or more"
        )
    if not all(0 <= beta < 1 for beta in (group["momentum"], *group["betas"])):
        raise ValueError(
            f"momentum {group['momentum']}, betas {group['betas']}: expected numbers in [0, 1)"
        )
