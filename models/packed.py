"""Rows end to end in one sequence, without padding, each attending to itself alone.

    use_packing(model, longest=1024)          # once, on a causal model of transformers
    hidden = last_hidden(model, batch)        # of rows with row_lengths, or as causal's

All that works on tokens one by one (norms, linear maps, the loss) sees no padding; attention is
computed row by row, so that nothing of one row can reach another. Positions start anew with each
row. Krell et al. 2021, Efficient Sequence Packing without Cross-contamination.

How many tokens each row has travels to the attention as a whole-number tensor (1, 1, 1, rows) in
place of a mask: transformers hands a mask of four dimensions to every layer unchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models import causal

NAME = "packed_"  # in front of the attention that each row is given to


def _attention(inner: str) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def packed(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **more: Any,
    ) -> tuple[Tensor, None]:
        """query, key, value (1, heads, seq, size) → (1, seq, heads, size)."""
        within = ALL_ATTENTION_FUNCTIONS[inner]
        if attention_mask is None or attention_mask.dtype != torch.int64:
            return within(module, query, key, value, attention_mask, **more)
        sizes = attention_mask.flatten().tolist()
        if not sizes:  # masks.WHOLE
            return within(module, query, key, value, None, **more)
        parts = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
        rows = [within(module, *part, None, **more)[0] for part in zip(*parts, strict=True)]
        return torch.cat(rows, dim=1), None

    return packed


def use_packing(model: nn.Module, longest: int) -> None:
    """Let the model take packed rows of up to `longest` tokens; others as before.

    ValueError for a model that would compute something else than with padding.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    inner, kind = model.config._attn_implementation, model.config.model_type  # noqa: SLF001
    if inner == "eager":
        raise ValueError("--packing needs a causal kernel: --attention auto, or --packing false")
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window < longest:
        raise ValueError(f"--packing: {kind} attends to {window} tokens back: use --packing false")
    masks = ALL_MASK_ATTENTION_FUNCTIONS
    AttentionMaskInterface.register(NAME + inner, masks[inner if inner in masks else "sdpa"])
    AttentionInterface.register(NAME + inner, _attention(inner))
    model.set_attn_implementation(NAME + inner)
    if not _is_exact(model):
        raise ValueError(f"{kind} computes something else with packed rows: use --packing false")


@torch.no_grad()
def _is_exact(model: nn.Module) -> bool:
    """Whether two packed rows have the states that each has alone."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = (torch.arange(12, device=device) % 11 + 1)[None]
    sizes = torch.tensor([5, 7])
    places = torch.cat([torch.arange(size, device=device) for size in sizes.tolist()])[None]
    batch = {"input_ids": ids, "row_lengths": sizes, "position_ids": places}
    packed = last_hidden(model, batch)
    alone = [causal.last_hidden(model, {"input_ids": part}) for part in ids.split([5, 7], dim=1)]
    model.train(training)
    return torch.allclose(packed, torch.cat(alone, dim=1), rtol=1e-3, atol=1e-3)


def last_hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(rows, seq, hidden), or (1, all tokens, hidden) of packed rows."""
    if "row_lengths" not in batch:
        return causal.last_hidden(model, batch)
    sizes = batch["row_lengths"]  # on the host, or every layer would wait for the device
    return model.base_model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=sizes.view(1, 1, 1, -1),
        use_cache=False,
    ).last_hidden_state
