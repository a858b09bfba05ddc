"""One factory of optimizers; Lion and Sophia-G, with the updates as pure functions over tensors.

    groups = parameter_groups({"bert": model.parameters()}, {"bert": 7e-4}, weight_decay=0.01)
    optimizer = build_optimizer("lion", groups, lr=7e-4)

Lion and Sophia-G decay weights as AdamW does (p ← p·(1 − lr·weight_decay), with the group's own
lr), keep no step count and leave a parameter without a gradient alone: it is neither decayed nor
moved.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.muon import Muon

BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99), "sophiag": (0.965, 0.99), "muon": (0.9, 0.95)}
EPSILON = 1e-15  # keeps a curvature of zero from dividing by zero: such a coordinate is clipped


def parameter_groups(
    parts: Mapping[str, Iterable[nn.Parameter]], lrs: Mapping[str, float], weight_decay: float
) -> list[dict]:
    """Two optimizer groups a part (decayed; biases and norms not), each with a name, none empty.

    A vector is a bias or a norm's weight: they set scales, which decay would only distort. A table
    of biases (by distance in bert-tiny, by head in XLNet) is a matrix here, and decays. Parameters
    that are not trained are left out.
    """
    groups = []
    for part, parameters in parts.items():
        trained = [p for p in parameters if p.requires_grad]
        for decay, chosen in (
            (weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if chosen:
                groups.append(
                    {"params": chosen, "lr": lrs[part], "weight_decay": decay, "part": part}
                )
    return groups


def decay_by_depth(groups: list[dict], layers: Mapping[int, str], decay: float) -> list[dict]:
    """Each group cut by layer, with learning rates that fall by `decay` from layer to layer.

    layers: id of a parameter → its layer, as models.pretrained.layer_of names it. The head keeps
    its rate, the top layer has decay times that, the embeddings, below n layers, decay^(n + 1)
    times (Howard & Ruder 2018, ULMFiT, section 3.2; the form of Clark et al. 2020, ELECTRA).
    ValueError where nothing below the head is trained.
    """
    if decay == 1:
        return groups
    count = 1 + max((int(n[6:]) for n in layers.values() if n.startswith("layer_")), default=-1)

    def below_head(layer: str) -> int:
        if layer.startswith("layer_"):
            return count - int(layer[6:])
        return count + 1 if layer == "embeddings" else 0

    cut = []
    for group in groups:
        by_layer: dict[str, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            layer = layers[id(parameter)]
            by_layer.setdefault(layer if below_head(layer) else "", []).append(parameter)
        for layer, chosen in by_layer.items():
            rate = group["lr"] * decay ** below_head(layer)
            part = f"{group['part']}_{layer}" if layer else group["part"]
            cut.append({**group, "params": chosen, "lr": rate, "part": part})
    if not any(below_head(layers[id(p)]) for group in groups for p in group["params"]):
        raise ValueError(f"--layer_decay {decay:g}: nothing below the head is trained here")
    return cut


def build_optimizer(
    name: str,
    groups: list[dict],
    lr: float,
    betas: Sequence[float] | None = None,
    eps: float = 1e-8,
    rho: float = 0.04,
    momentum: float = 0.0,
) -> torch.optim.Optimizer:
    """adamw (Loshchilov & Hutter 2019; fused), sgd, lion, sophiag or muon, over groups.

    groups: of parameter_groups, for muon of muon.split_for_muon. betas: None for those of BETAS;
    eps: of adamw; rho: of sophiag; momentum: of sgd.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    betas = tuple(betas or BETAS[name])
    if name == "lion":
        return Lion(groups, lr, betas)
    if name == "sophiag":
        return SophiaG(groups, lr, betas, rho)
    if name == "muon":
        return Muon(groups, betas=betas, eps=eps)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def lion_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One step of Lion, in place on parameters and momenta (Chen et al. 2023, algorithm 2).

    p ← p·(1 − lr·wd) − lr·sign(β1·m + (1 − β1)·g),  then m ← β2·m + (1 − β2)·g
    """
    beta1, beta2 = betas
    directions = torch._foreach_mul(momenta, beta1)
    torch._foreach_add_(directions, gradients, alpha=1 - beta1)
    torch._foreach_sign_(directions)
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_add_(parameters, directions, alpha=-lr)
    torch._foreach_mul_(momenta, beta2)
    torch._foreach_add_(momenta, gradients, alpha=1 - beta2)


def sophia_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    hessians: Sequence[Tensor],
    lr: float,
    beta1: float,
    rho: float,
    weight_decay: float,
) -> None:
    """One step of Sophia, in place on parameters and momenta (Liu et al. 2023, algorithm 3).

    m ← β1·m + (1 − β1)·g,  then p ← p·(1 − lr·wd) − lr·clip(m / (ρ·h + 1e-15), −1, 1)
    """
    torch._foreach_mul_(momenta, beta1)
    torch._foreach_add_(momenta, gradients, alpha=1 - beta1)
    limits = torch._foreach_mul(hessians, rho)
    torch._foreach_add_(limits, EPSILON)
    moves = torch._foreach_div(momenta, limits)
    torch._foreach_clamp_min_(moves, -1.0)
    torch._foreach_clamp_max_(moves, 1.0)
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_add_(parameters, moves, alpha=-lr)


def sophia_hessian(
    hessians: Sequence[Tensor], gradients: Sequence[Tensor], bs: int, beta2: float
) -> None:
    """h ← β2·h + (1 − β2)·bs·ĝ², in place: the Gauss-Newton-Bartlett estimate (algorithm 2).

    ĝ is the mean gradient over bs targets against labels sampled from the model. With bs in
    here, h does not depend on how many targets it was estimated from. Implementations that
    keep ĝ² alone and divide by ρ·bs·h take the same step.
    """
    torch._foreach_mul_(hessians, beta2)
    torch._foreach_addcmul_(hessians, gradients, gradients, value=(1 - beta2) * bs)


def sample_labels(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One class for each row of logits (targets, vocab), drawn from its softmax → (targets,).

    One uniform number a row finds its place in the cumulated probabilities: torch.multinomial
    would draw a number for every entry of the vocabulary. A GPU cumulates in an order of its own,
    which --deterministic forbids: there every entry draws one (Gumbel 1954: the largest sum of
    logit and number wins).
    """
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        return gumbel_labels(logits, generator)
    cumulated = logits.detach().float().softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    places = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
    return places.squeeze(1).clamp_(max=logits.shape[-1] - 1)


def gumbel_labels(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """As sample_labels, with a number for each entry."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    smallest = torch.finfo(uniform.dtype).tiny
    gumbel = -(-uniform.clamp_(min=smallest).log()).clamp_(min=smallest).log()
    return (logits.detach().float() + gumbel).argmax(-1)


def sampled_label_loss_sum(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Σ cross-entropy of logits (targets, vocab) against labels drawn from their own softmax.

    Its backward pass gives SophiaG.update_hessian the gradients it needs.
    """
    return F.cross_entropy(logits.float(), sample_labels(logits, generator), reduction="sum")


def sampled_score_loss_sum(scores: Tensor) -> Tensor:
    """As sampled_label_loss_sum for scores (targets, 1): the squared error against draws from the
    normal distribution of variance 1/2 whose negative log-likelihood that error is."""
    drawn = scores.detach() + 0.5**0.5 * torch.randn_like(scores)
    return F.mse_loss(scores.float(), drawn.float(), reduction="sum")


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms).

    Every coordinate moves by lr exactly, so take an lr 3 to 10 times below AdamW's and a
    weight decay as many times above, as the paper advises.
    ValueError for a negative lr or weight decay, or betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        _check(lr, betas, weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = _evaluate(closure)
        for group, parameters in _with_gradients(self):
            lion_update(
                parameters,
                [p.grad for p in parameters],
                _state_of(self, parameters, "momentum"),
                group["lr"],
                group["betas"],
                group["weight_decay"],
            )
        return loss


class SophiaG(torch.optim.Optimizer):
    """Sophia with the Gauss-Newton-Bartlett estimate (Liu et al. 2023).

    The caller, before the first step and every few (10) steps from then on, and after new
    layers have come in:
      1. runs the model on rows of their own and calls backward on sampled_label_loss_sum of
         the logits at the targets: real vocabulary logits, not hidden states;
      2. sums the gradients over micro-batches and ranks and divides them by the number of
         targets: the mean gradient, unclipped, in no scaled precision (fp16 underflows here);
      3. calls update_hessian(that number) and zero_grad().
    Until its first update_hessian a parameter's curvature is 0, and every step of it is
    clipped: it then moves by the sign of its momentum.

    rho: the share of the curvature's reciprocal that a step may use; larger clips less.
    ValueError for a negative lr or weight decay, betas outside [0, 1), or rho ≤ 0.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.01,
    ):
        _check(lr, betas, weight_decay)
        if rho <= 0:
            raise ValueError(f"rho {rho}: expected more than 0")
        defaults = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def update_hessian(self, bs: int) -> None:
        """Take the gradients in .grad, a mean over `bs` targets with sampled labels, into h."""
        if bs < 1:
            raise ValueError(f"the curvature was estimated from {bs} targets: expected 1 or more")
        for group, parameters in _with_gradients(self):
            hessians = _state_of(self, parameters, "hessian_ema")
            sophia_hessian(hessians, [p.grad for p in parameters], bs, group["betas"][1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = _evaluate(closure)
        for group, parameters in _with_gradients(self):
            sophia_update(
                parameters,
                [p.grad for p in parameters],
                _state_of(self, parameters, "momentum"),
                _state_of(self, parameters, "hessian_ema"),
                group["lr"],
                group["betas"][0],
                group["rho"],
                group["weight_decay"],
            )
        return loss

    @torch.no_grad()
    def clip_fraction(self) -> float:
        """Share of the coordinates whose last step was clipped, that is moved by all of lr.

        From the state alone, so that a step costs nothing for it: ask before update_hessian.
        nan before the first step.
        """
        clipped, total = 0, 0
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "momentum" in state:
                    limit = group["rho"] * state["hessian_ema"] + EPSILON
                    clipped += int((state["momentum"].abs() >= limit).sum())
                    total += parameter.numel()
        return clipped / total if total else float("nan")


def _with_gradients(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict, list[Tensor]]]:
    """Each group with those of its parameters that have a gradient, if there are any."""
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p.grad is not None]
        if parameters:
            yield group, parameters


def _state_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], name: str
) -> list[Tensor]:
    """The named state of each parameter, zeros where it is new."""
    states = [optimizer.state[parameter] for parameter in parameters]
    for state, parameter in zip(states, parameters, strict=True):
        if name not in state:
            state[name] = torch.zeros_like(parameter)
    return [state[name] for state in states]


def _evaluate(closure: Callable[[], Tensor] | None) -> Tensor | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _check(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    if lr < 0 or weight_decay < 0:
        raise ValueError(f"lr {lr}, weight_decay {weight_decay}: expected 0 or more")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas {betas}: expected numbers in [0, 1)")
