"""The BERT that is pretrained on a budget: Cramming's crammed-bert-c5, and smaller ones like it.

    model = build_masked_lm("bert-c5", vocab_size=32768, seed=0)
    outputs = masked_lm_losses(model, batch, active_layers=[0, 1, 2, 3])
    outputs.loss_sum.backward()                                 # over outputs.num_targets tokens

Geiping & Goldstein 2023, Cramming: Training a Language Model on a Single GPU in One Day: pre-norm
layers without biases, a gated feed-forward part, sinusoidal positions with one learned scale (the
small ones: relative), and predictions at masked positions only. Importing this module registers
the architecture with transformers, so that its AutoModel, AutoModelForMaskedLM and
AutoModelForSequenceClassification open what was saved; `hf-bert` is transformers' own BERT behind
the same two functions.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from core import IGNORE_INDEX
from data.tokens import target_places
from models.pretrained import find_layers, read_weights, save_weights
from models.starts import draw_by_name

# Heads of 64 each. c5 is the published size; the others have its shape, and depths that halve, with
# three changes that let them learn within minutes. Weights begin at .02 · √(768 / width): states of
# c5's scale. A bias of attention for each distance replaces the sinusoids, from which narrow models
# are slow to find their neighbours (the tiny one learned little but frequencies from its first
# million masked tokens). And their classifiers read the mean of all tokens, for no prediction ever
# trained the last state of the first.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert-tiny": {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "initializer_range": 0.049,
        "positions": "relative",
        "pooling": "mean",
    },
    "bert-mini": {
        "num_hidden_layers": 8,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "initializer_range": 0.035,
        "positions": "relative",
        "pooling": "mean",
    },
    "bert-small": {
        "num_hidden_layers": 12,
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "initializer_range": 0.028,
        "positions": "relative",
        "pooling": "mean",
    },
    "bert-c5": {
        "num_hidden_layers": 16,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
# transformers' own BERT: BERT-base, and one of MiniLM's size for comparisons on a CPU.
HF_ARCHITECTURES: dict[str, dict[str, int]] = {
    "hf-bert": {},
    "hf-bert-mini": {
        "num_hidden_layers": 6,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}


class BudgetBertConfig(PreTrainedConfig):
    """The defaults are those of bert-c5."""

    model_type = "budget-bert"

    vocab_size: int = 32768
    hidden_size: int = 768
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    intermediate_size: int = 3072  # halved by the gate
    max_position_embeddings: int = 128
    positions: str = "sinusoidal"  # or relative
    mlm_dropout_prob: float = 0.0  # pretraining goes without; a single pass does not overfit
    hidden_dropout_prob: float = 0.1  # fine-tuning
    attention_probs_dropout_prob: float = 0.1  # fine-tuning
    classifier_hidden_size: int = 1024
    pooling: str = "first"  # what the classifier reads: the first token, or the mean of all
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True


@dataclass
class MaskedLMLosses(ModelOutput):
    """Outputs of a masked language model.

    With labels: `logits` (targets, vocab) at the masked positions alone, in reading order;
    `loss` their mean cross-entropy; `loss_sum` and `num_targets` to be summed over
    micro-batches; and without gradient, for batch selection, `sequence_loss_sums` and
    `sequence_num_targets` (batch,). Without labels: `logits` (batch, seq, vocab).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    loss_sum: Tensor | None = None
    num_targets: int | None = None
    sequence_loss_sums: Tensor | None = None
    sequence_num_targets: Tensor | None = None


def sinusoids(length: int, hidden: int, device: torch.device) -> Tensor:
    """Fixed positions (length, hidden): sines in even, cosines in odd columns, wavelengths 2π to
    10,000·2π (Vaswani et al. 2017, section 3.5)."""
    places = torch.arange(length, device=device, dtype=torch.float32)
    rates = 10_000 ** (-torch.arange(0, hidden, 2, device=device, dtype=torch.float32) / hidden)
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).view(length, hidden)


class Embeddings(nn.Module):
    def __init__(self, config: BudgetBertConfig, dropout: float):
        super().__init__()
        self.max_length = config.max_position_embeddings
        self.words = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_scale = None
        if config.positions == "sinusoidal":
            self.position_scale = nn.Parameter(torch.full((1,), config.hidden_size**-0.5))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, seq) → (batch, seq, hidden)."""
        length = input_ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"sequences of {length} tokens: the model takes {self.max_length}")
        words = self.words(input_ids)
        if self.position_scale is None:
            return self.dropout(self.norm(words))
        # computed each time: a stored table is not a weight, and from_pretrained would empty it
        positions = sinusoids(length, words.shape[-1], words.device)
        return self.dropout(self.norm(words + self.position_scale * positions))


class Attention(nn.Module):
    """Attention of all tokens to all, with a learned bias for each head and distance if the
    positions are relative (Raffel et al. 2020, section 2.1; no buckets, for the rows are short)."""

    is_causal = False

    def __init__(self, config: BudgetBertConfig, dropout: float):
        super().__init__()
        self.config, self.dropout = config, dropout
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.distance_bias = None
        if config.positions == "relative":
            distances = 2 * config.max_position_embeddings - 1
            self.distance_bias = nn.Parameter(torch.zeros(self.heads, distances))

    def biases(self, seq: int, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores (1 or batch, heads, seq, seq): -inf for what is not seen."""
        places = torch.arange(seq, device=self.distance_bias.device)
        distance = places - places[:, None] + (self.distance_bias.shape[1] - 1) // 2
        biases = self.distance_bias[:, distance][None].to(dtype)
        return biases if visible is None else biases.masked_fill(~visible, -math.inf)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """hidden (batch, seq, hidden); visible as from visible_tokens."""
        batch, seq, size = hidden.shape
        qkv = self.qkv(hidden).view(batch, seq, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (batch, heads, seq, 64) each
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, sdpa_attention_forward
        )
        if self.distance_bias is not None:
            visible = self.biases(seq, visible, query.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed, _ = attend(self, query, key, value, visible, dropout=dropout, is_causal=False)
        return self.out(mixed.reshape(batch, seq, size))


class FeedForward(nn.Module):
    def __init__(self, config: BudgetBertConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size // 2, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        values, gate = self.up(hidden).chunk(2, dim=-1)
        return self.down(values * F.gelu(gate))


class Layer(nn.Module):
    """h += Attention(norm(h)); h += FeedForward(norm(h))."""

    def __init__(self, config: BudgetBertConfig, hidden_dropout: float, attention_dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, attention_dropout)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(hidden_dropout)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden), visible))
        return hidden + self.dropout(self.feed_forward(self.norm2(hidden)))


def visible_tokens(attention_mask: Tensor | None, segment_ids: Tensor | None) -> Tensor | None:
    """The mask of attention, True where a token is seen; None: every token sees every token.

    attention_mask (batch, seq): 0 for padding → (batch, 1, 1, seq). segment_ids (batch, seq): of
    packed rows, in which a token sees its own segment (padding is one of its own)
    → (batch, 1, seq, seq). ValueError for both.
    """
    if attention_mask is not None and segment_ids is not None:
        raise ValueError("give segment_ids or attention_mask: padding is a segment of its own")
    if segment_ids is not None:
        return (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()


class BudgetBertPreTrainedModel(PreTrainedModel):
    config_class = BudgetBertConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: BudgetBertConfig):
        super().__init__(config)
        if config.positions not in ("sinusoidal", "relative"):
            raise ValueError(f"positions {config.positions}: expected sinusoidal or relative")
        if config.pooling not in ("first", "mean"):
            raise ValueError(f"pooling {config.pooling}: expected first or mean")
        if config._attn_implementation == "eager":
            raise ValueError(f"{config.model_type} has no eager attention: use sdpa")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # N(0, initializer_range), norms 1 and 0, padding 0
        if isinstance(module, Embeddings) and module.position_scale is not None:
            init.constant_(module.position_scale, self.config.hidden_size**-0.5)
        if isinstance(module, Attention) and module.distance_bias is not None:
            init.zeros_(module.distance_bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.embeddings.words

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        self.base_model.embeddings.words = embedding


class BudgetBertModel(BudgetBertPreTrainedModel):
    """The encoder. dropout: of hidden states and of attention weights; None: the config's."""

    def __init__(self, config: BudgetBertConfig, dropout: float | None = None):
        super().__init__(config)
        hidden = config.hidden_dropout_prob if dropout is None else dropout
        attention = config.attention_probs_dropout_prob if dropout is None else dropout
        self.embeddings = Embeddings(config, hidden)
        self.layers = nn.ModuleList(
            Layer(config, hidden, attention) for _ in range(config.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        active_layers: Sequence[int] | None = None,
    ) -> BaseModelOutput:
        """input_ids (batch, seq) → last_hidden_state (batch, seq, hidden).

        active_layers: the layers to run, in that order; None: all, [] none. token_type_ids are
        not used: many tokenizers give them unasked, and this model has no such embeddings.
        """
        visible = visible_tokens(attention_mask, segment_ids)
        hidden = self.embeddings(input_ids)
        order = range(len(self.layers)) if active_layers is None else active_layers
        for number in order:
            hidden = self.layers[number](hidden, visible)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden))


class BudgetBertForMaskedLM(BudgetBertPreTrainedModel):
    """The encoder, a linear map, and the word embeddings as decoder (no bias)."""

    def __init__(self, config: BudgetBertConfig):
        super().__init__(config)
        self.encoder = BudgetBertModel(config, config.mlm_dropout_prob)
        self.head = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    def predict(self, hidden: Tensor) -> Tensor:
        """(…, hidden) → logits (…, vocab)."""
        return F.linear(self.head(hidden), self.encoder.embeddings.words.weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        active_layers: Sequence[int] | None = None,
        places: Tensor | None = None,
    ) -> MaskedLMLosses:
        """As BudgetBertModel; labels (batch, seq): IGNORE_INDEX where nothing is predicted; places
        (targets,): where something is, of data.tokens.target_places, for a device would wait."""
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids, segment_ids, active_layers
        ).last_hidden_state
        if labels is None:
            return MaskedLMLosses(logits=self.predict(hidden))
        return losses_at_targets(hidden, labels, self.predict, places)


class BudgetBertForSequenceClassification(BudgetBertPreTrainedModel):
    """The first token's state, or the mean of all tokens' → Linear → tanh → dropout → Linear.
    One label: regression."""

    def __init__(self, config: BudgetBertConfig):
        super().__init__(config)
        self.encoder = BudgetBertModel(config)
        self.pooler = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.classifier_hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """input_ids (batch, seq) → logits (batch, num_labels); labels (batch,)."""
        hidden = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        state = hidden[:, 0]
        if self.config.pooling == "mean":
            seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            seen = seen[..., None].to(hidden.dtype)
            state = (hidden * seen).sum(1) / seen.sum(1)
        pooled = self.dropout(torch.tanh(self.pooler(state)))
        logits = self.classifier(pooled)
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def losses_at_targets(
    hidden: Tensor,
    labels: Tensor,
    predict: Callable[[Tensor], Tensor],
    places: Tensor | None = None,
) -> MaskedLMLosses:
    """hidden (batch, seq, hidden), labels (batch, seq) → losses at the labelled positions, or at
    places (targets,).

    predict maps (targets, hidden) to logits: with 15 % of the tokens masked that is a seventh
    of the largest product of a small BERT.
    """
    places = target_places(labels) if places is None else places
    logits = predict(hidden.flatten(0, 1)[places])
    losses = F.cross_entropy(logits.float(), labels.flatten()[places], reduction="none")
    loss_sum = losses.sum()
    sums = torch.zeros(len(labels), device=losses.device)
    return MaskedLMLosses(
        loss=loss_sum / len(places),
        logits=logits,
        loss_sum=loss_sum,
        num_targets=len(places),
        sequence_loss_sums=sums.index_add_(0, places // labels.shape[1], losses.detach()),
        sequence_num_targets=(labels != IGNORE_INDEX).sum(dim=1),
    )


def masked_lm_losses(
    model: nn.Module, batch: dict[str, Tensor], active_layers: Sequence[int] | None = None
) -> MaskedLMLosses:
    """Losses of either architecture on a batch of input_ids and labels (batch, seq).

    The batch may have attention_mask or segment_ids, and places of the labels. For core.train_step:
    loss_sum, num_targets.
    """
    if not isinstance(model, BertForMaskedLM):
        return model(**batch, active_layers=active_layers)
    mask = batch.get("attention_mask")
    if "segment_ids" in batch:  # transformers takes a mask with four dimensions unchanged
        mask = visible_tokens(mask, batch["segment_ids"])
    with _only(model.bert.encoder, active_layers):
        hidden = model.bert(batch["input_ids"], attention_mask=mask).last_hidden_state
    return losses_at_targets(hidden, batch["labels"], model.cls, batch.get("places"))


@contextlib.contextmanager
def _only(encoder: Any, active_layers: Sequence[int] | None) -> Iterator[None]:
    """transformers' BERT with these layers alone."""
    layers = encoder.layer
    if active_layers is not None:
        encoder.layer = nn.ModuleList(layers[number] for number in active_layers)
    try:
        yield
    finally:
        encoder.layer = layers


def build_masked_lm(
    arch: str,
    vocab_size: int,
    seed: int,
    max_length: int = 128,
    by_name: bool = False,
    **changes: Any,
) -> nn.Module:
    """A new model: one of ARCHITECTURES, or of HF_ARCHITECTURES (with transformers' dropout), with
    `changes` to its configuration. by_name: each parameter starts from the seed and its name
    (`starts`). ValueError for another name."""
    names = [*ARCHITECTURES, *HF_ARCHITECTURES]
    if arch not in names:
        raise ValueError(f"arch {arch}: expected one of {', '.join(names)}")
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": max_length}
    torch.manual_seed(seed)
    if arch in HF_ARCHITECTURES:
        shape = {**HF_ARCHITECTURES[arch], **sizes, "attn_implementation": "sdpa", **changes}
        model: PreTrainedModel = BertForMaskedLM(BertConfig(**shape))
    else:
        shape = {**ARCHITECTURES[arch], **sizes, **changes}
        model = BudgetBertForMaskedLM(BudgetBertConfig(**shape))
    if by_name:
        draw_by_name(model, seed)
    return model


def save_model(model: PreTrainedModel, folder: Path, depth: int | None = None) -> None:
    """Weights and config.json for from_pretrained, of the first `depth` layers; None: all.

    While a stacked model grows, its upper layers hold nothing yet: what is saved must not
    run them.
    """
    total = model.config.num_hidden_layers
    depth = total if depth is None else depth
    above = {id(tensor) for layer in find_layers(model)[depth:] for tensor in layer.parameters()}
    weights = {n: t for n, t in model.state_dict(keep_vars=True).items() if id(t) not in above}
    try:
        model.config.num_hidden_layers = depth
        save_weights(model, folder, state_dict={n: t.detach() for n, t in weights.items()})
    finally:
        model.config.num_hidden_layers = total


def load_weights(model: PreTrainedModel, folder: Path) -> int:
    """Read what save_model wrote back into a model of full depth; returns the depth saved.

    ValueError if the folder holds another model's weights.
    """
    saved = read_weights(Path(folder))
    depth = json.loads((Path(folder) / "config.json").read_text())["num_hidden_layers"]
    above = {id(t) for layer in find_layers(model)[depth:] for t in layer.parameters()}
    own = model.state_dict(keep_vars=True)
    tied = {id(own[name]) for name in saved if name in own}  # a tied weight is saved once
    missing = [n for n, t in own.items() if id(t) not in above | tied]
    if missing or not saved.keys() <= own.keys():
        odd = [*missing, *(saved.keys() - own.keys())]
        raise ValueError(f"{folder} does not hold this model's weights: see {odd[0]}")
    model.load_state_dict(saved, strict=False)
    return depth


AutoConfig.register(BudgetBertConfig.model_type, BudgetBertConfig, exist_ok=True)
AutoModel.register(BudgetBertConfig, BudgetBertModel, exist_ok=True)
AutoModelForMaskedLM.register(BudgetBertConfig, BudgetBertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    BudgetBertConfig, BudgetBertForSequenceClassification, exist_ok=True
)
