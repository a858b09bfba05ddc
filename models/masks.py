"""What transformers asks of each batch, answered by the host: a GPU would be waited for.

    answer_for(model)                                        # once, on a model that lies on a GPU
    model.base_model(input_ids=…, attention_mask=whole_rows(model))      # padding is on the right

Before each pass transformers looks whether a mask hides a token at all, whether the first or last
token is padding, and whether positions say that rows are packed; each look waits until the device
has done all that was asked of it. Here a mask that is given is used as it is (device.to_device
leaves out one that hides nothing), and a decoder is told that its rows are whole: a mask of four
dimensions goes to every layer unchanged. flash-attn's own path waits in every layer all the same.
"""

from typing import Any

import torch
from torch import Tensor, nn

NAME = "told_"  # in front of the attention that it stands for
WHOLE = torch.zeros(1, 1, 1, 0, dtype=torch.int64)  # on the host, read by nobody


def answer_for(model: nn.Module) -> None:
    """The model may hold models of transformers; those with eager attention are left alone."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME + "sdpa", _attention)
    AttentionMaskInterface.register(NAME + "sdpa", _mask)
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *ids_and_mask: None
        kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if kernel == "sdpa" and hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation(NAME + "sdpa")
    if hasattr(model, "lm_head") or hasattr(model, "score"):  # decoders that we read ourselves
        model.takes_whole_rows = _takes_whole_rows(model)


def whole_rows(model: nn.Module) -> Tensor | None:
    """The mask of a decoder's rows without padding before a token."""
    return WHOLE if getattr(model, "takes_whole_rows", False) else None


def _mask(**asked: Any) -> Tensor | None:
    """transformers' mask for SDPA, which is None only where no mask is given."""
    from transformers.masking_utils import sdpa_mask

    if asked.get("attention_mask") is not None:
        asked |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(**asked)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query, key, value (batch, heads, seq, size) → (batch, seq, heads, size)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.dtype == torch.int64:  # WHOLE
        attention_mask = None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **more)


@torch.no_grad()
def _takes_whole_rows(model: nn.Module) -> bool:
    """Whether a decoder computes the same from WHOLE as from no mask. Not where attention looks
    back a number of tokens only, which no short row shows, or masks are read for positions."""
    config, training = model.config, model.training
    told = config._attn_implementation == NAME + "sdpa"  # noqa: SLF001
    windows = getattr(config, "sliding_window", None) is not None
    if not told or windows or getattr(config, "is_encoder_decoder", False):
        return False
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % config.vocab_size
    model.eval()
    try:
        states = [
            model.base_model(input_ids=ids, **mask, use_cache=False).last_hidden_state.float()
            for mask in ({}, {"attention_mask": WHOLE})
        ]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        model.train(training)
    return torch.allclose(*states, rtol=1e-3, atol=1e-3)
