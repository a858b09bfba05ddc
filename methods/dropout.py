"""Dropout on a CPU whose masks come from 16-bit random words, and attention that uses it.

torch draws a Bernoulli mask one number at a time, which took a quarter of a training step of
a small BERT. Here one 64-bit random number decides for four elements: an element is dropped
if its 16-bit word is below round(65536·p), so p = 0.1 is 6554/65536 = 0.100006, and the rest
is scaled by 1/(1 − that). The words come from torch's own generator and follow its seed.

    use_word_dropout(model)     # model on a CPU, from transformers or with nn.Dropout modules
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = "sdpa_word_dropout"


@torch.library.custom_op(
    "ablate::keep_elements", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _keep_elements(x: Tensor, dropped: int) -> Tensor:
    """An operator of its own, which torch.compile calls unchanged. It takes x for its place among
    the draws: compiled code may call what does not depend on each other in any order."""
    count = x.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= dropped - 32768).view(x.shape)


@_keep_elements.register_fake
def _(x: Tensor, dropped: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bool)


def keep_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """(bool tensor as x, True where kept; the rate of dropping that 16 bits can give)."""
    dropped = round(65536 * p)
    return _keep_elements(x, dropped), dropped / 65536


class _WordDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        keep, rate = keep_mask(x, p)
        scaled = keep.to(x.dtype).mul_(1 / (1 - rate))  # a float mask multiplies faster than a bool
        ctx.save_for_backward(scaled)
        return x * scaled

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def word_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout for a CPU tensor of any shape, 0 ≤ p < 1."""
    return _WordDropout.apply(x, p) if training and p > 0 else x


class WordDropout(nn.Module):
    """nn.Dropout with masks from 16-bit words."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return word_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def sdpa_word_dropout(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **other: object,
) -> tuple[Tensor, None]:
    """Attention for transformers' AttentionInterface: q, k, v (batch, heads, seq, size).

    torch's SDPA, or the scores written out where its CPU kernels are slow: with dropout it would
    draw masks one number at a time, and in 16 bits up to 256 keys its backward pass takes several
    times as long as the products that it is made of (without one SDPA is kept, which rounds less).
    A query that may see no key has the mean of all values. Returns (batch, seq, heads, size).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = (is_causal if is_causal is not None else getattr(module, "is_causal", True)) and (
        attention_mask is None and query.shape[2] > 1
    )
    short = query.dtype.itemsize == 2 and key.shape[2] <= 256
    # where a frozen part is, the same with gradients and without: its outputs are kept
    slow = dropout > 0 or (short and query.requires_grad)
    slow = slow and other.get("position_bias") is None and other.get("softcap") is None
    if not slow or key.shape[1] != query.shape[1] or (causal and key.shape[2] != query.shape[2]):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **other
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))  # (batch, heads, seq, seq)
    if causal:
        # in float32: compiled code with 64-bit integers takes several times as long
        place = torch.arange(query.shape[2], dtype=torch.float32, device=scores.device)
        later = place > place[:, None]
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask.clamp(min=torch.finfo(scores.dtype).min)
    weights = word_dropout(F.softmax(scores, dim=-1).to(value.dtype), dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def use_word_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout of a CPU model, and SDPA attention by sdpa_word_dropout.

    The model may hold models of transformers.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, WordDropout(child.p).train(child.training))
    for module in model.modules():
        kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if kernel == "sdpa" and hasattr(module, "set_attn_implementation"):
            from transformers import AttentionInterface, AttentionMaskInterface
            from transformers.masking_utils import sdpa_mask

            AttentionInterface.register(ATTENTION, sdpa_word_dropout)
            # without a mask function of the same name padding would silently be attended to
            AttentionMaskInterface.register(ATTENTION, sdpa_mask)
            module.set_attn_implementation(ATTENTION)


RATE = re.compile("dropout|pdrop")  # in the name of an attribute that is a number
# that read their configuration in each pass, which then says what they were trained with
READ_THEIR_CONFIG = ("blt", "falcon", "gpt_neo", "gptj", "small-gpt")


def rates_of(model: nn.Module) -> dict[tuple[int, str], tuple[Any, str]]:
    """Every rate of dropout as (its owner, name of the attribute): of modules, of layers that call
    dropout as a function, and of configurations where those are read in each pass."""
    owners: list[Any] = list(model.modules())
    owners += [
        module.config
        for module in model.modules()
        if getattr(getattr(module, "config", None), "model_type", None) in READ_THEIR_CONFIG
    ]
    return {
        (id(owner), name): (owner, name)
        for owner in owners
        for name, value in vars(owner).items()
        if (name == "p" if isinstance(owner, (nn.Dropout, WordDropout)) else RATE.search(name))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def set_dropout(model: nn.Module, p: float) -> None:
    """Every dropout of a model from transformers, also those that are attributes of layers.

    ValueError where such a model draws numbers in training although p is 0.
    """
    for owner, name in rates_of(model).values():
        setattr(owner, name, p)
    if p == 0 and hasattr(model, "base_model") and _draws(model):
        raise ValueError(
            f"--dropout 0: {model.config.model_type} draws numbers in training all the same, in a "
            "way that is not known here; --dropout null leaves it unchanged"
        )


@torch.no_grad()
def _draws(model: nn.Module) -> bool:
    """Whether a pass of eight tokens in training takes random numbers; of a model on the host."""
    training, before = model.training, torch.default_generator.get_state()
    model.train()
    try:
        ids = torch.arange(1, 9)[None] % model.config.vocab_size
        model.base_model(input_ids=ids)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # asks for more than tokens
    finally:
        model.train(training)
        after = torch.default_generator.get_state()
        torch.default_generator.set_state(before)
    return not torch.equal(before, after)
