"""A small GPT with one switch for each change that has been tried on short texts.

    model = build_gpt(seed=0, vocab_size=16000, within_titles=True, eos_token_id=0)
    outputs = model(input_ids, shift_labels=targets)        # (batch, seq) each
    outputs.loss_sum.backward()                             # over outputs.num_targets tokens

The defaults are Llama's choices (rotary positions, RMSNorm, SwiGLU, no biases, tied embeddings), so
that what was trained opens in transformers as LlamaForCausalLM (`to_transformers`); with
positions="learned", norm="layernorm", mlp="gelu", bias=True it is GPT-2's network. The weights have
Llama's names. Importing this module registers the architecture with transformers, so that
AutoModelForCausalLM and AutoModel open what was saved.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from core import IGNORE_INDEX
from data.tokens import target_places
from models.decoding import Chooser, Decoding
from models.starts import draw_by_name

# ----------------------------------------------------------------------- configuration


class SmallGPTConfig(PreTrainedConfig):
    """Sizes and switches. ValueError for a combination that is no network.

    within_titles: a token sees its own title alone. A title begins at each <eos> of the input
    (config.eos_token_id), which is what the one before it ended with.
    """

    model_type = "small-gpt"
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }

    vocab_size: int = 16000
    n_layer: int = 6
    n_head: int = 8
    n_embd: int = 512
    n_inner: int | None = None  # None: 4·n_embd; swiglu: 8/3 of it, up to a multiple of 8
    n_positions: int = 128  # rotary positions are not bound by it
    positions: str = "rotary"  # rotary (Su et al. 2021) | learned
    rope_theta: float = 10_000.0
    norm: str = "rmsnorm"  # rmsnorm (Zhang & Sennrich 2019) | layernorm
    norm_eps: float = 1e-5
    mlp: str = "swiglu"  # swiglu (Shazeer 2020) | gelu
    bias: bool = False  # of linear maps and of LayerNorm
    qk_norm: bool = False  # RMSNorm of each head's query and key (Henry et al. 2020)
    attention_gate: bool = False  # sigmoid gate on attention's output (Qiu et al. 2025)
    layer_scale: float | None = None  # first factor of each branch (Touvron et al. 2021); None: off
    within_titles: bool = False
    tie_word_embeddings: bool = True
    dropout: float = 0.0  # of embeddings and of each branch's output
    attention_dropout: float = 0.0  # of attention weights; SDPA is fast only without
    initializer_range: float = 0.02
    scale_residual_init: bool = False  # last map of each branch by 1/√(2·n_layer) (GPT-2)
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name, choices in (
            ("positions", ("rotary", "learned")),
            ("norm", ("rmsnorm", "layernorm")),
            ("mlp", ("swiglu", "gelu")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)}: expected {' or '.join(choices)}")
        if self.n_embd % self.n_head or (self.positions == "rotary" and self.head_size % 2):
            raise ValueError(
                f"n_embd {self.n_embd}: expected n_head ({self.n_head}) times a whole number, "
                "which rotary positions need to be even"
            )
        if self.within_titles and self.eos_token_id is None:
            raise ValueError("within_titles needs eos_token_id, which begins a title")
        if self.n_inner is None:  # three matrices of 8/3 have as many parameters as two of 4
            wide = 4 * self.n_embd
            self.n_inner = 8 * math.ceil(wide * 2 / 24) if self.mlp == "swiglu" else wide
        super().__post_init__(**kwargs)

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


def parameter_count(config: SmallGPTConfig) -> int:
    """The model's parameters, a tied head counted once."""
    width, inner = config.n_embd, config.n_inner
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    per_layer = _matrix_elements(config) + 2 * norm
    if config.bias:
        maps = 4 + config.attention_gate  # to width; then those of the MLP
        per_layer += (maps + 1) * width + inner * (2 if config.mlp == "swiglu" else 1)
    per_layer += 2 * config.head_size * config.qk_norm
    per_layer += 2 * width * (config.layer_scale is not None)
    embeddings = config.vocab_size * (1 if config.tie_word_embeddings else 2)
    embeddings += config.n_positions * (config.positions == "learned")
    return embeddings * width + config.n_layer * per_layer + norm


def forward_flops(config: SmallGPTConfig, tokens: int, pairs: int, targets: int) -> int:
    """Floating-point operations of the products of one forward pass, two a multiply-add.

    tokens go through the layers, `pairs` of query and key are compared (causal_pairs), logits are
    computed at `targets`. A training step takes three times as many: each product of the forward
    pass has two in the backward pass. Norms, positions and softmax are left out (below 1 %).
    """
    products = config.n_layer * _matrix_elements(config) * tokens
    products += 2 * config.n_layer * config.n_embd * pairs
    return 2 * (products + config.vocab_size * config.n_embd * targets)


def causal_pairs(lengths: Iterable[int]) -> int:
    """Pairs (query, key) in sequences of these lengths: a token sees itself and those before."""
    return sum(length * (length + 1) // 2 for length in lengths)


def _matrix_elements(config: SmallGPTConfig) -> int:
    """Elements of one layer's matrices."""
    attention = (4 + config.attention_gate) * config.n_embd**2
    return attention + (3 if config.mlp == "swiglu" else 2) * config.n_embd * config.n_inner


# ------------------------------------------------------------------------- positions


def rotary_tables(positions: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """positions (batch, seq) → cos, sin (batch, seq, 1, size), float32, for heads of `size`.

    Columns i and i + size/2 turn together by position · theta^(−2i/size) (Su et al. 2021,
    RoFormer, in the order of columns that Llama has).
    """
    columns = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None, None].float() / theta ** (columns / size)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, seq, heads, size), turned by the tables of rotary_tables."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


@dataclass(frozen=True)
class Segments:
    """The segments of packed rows, each as a row of its own: what attention works on.

    Everything but attention treats tokens one by one and stays packed. A block mask would compare
    all tokens of a row; here a segment is compared with itself alone, however long the packed row.

    rows (segments, longest): a token's number in the flattened batch; 0 behind a segment's end,
    where a causal query does not look. is_token (segments, longest): False behind a segment's end.
    places (batch·seq,): a token's number in the flattened rows. positions (batch, seq): from 0 in
    each segment.
    """

    rows: Tensor
    is_token: Tensor
    places: Tensor
    positions: Tensor

    def repeat(self, copies: int) -> "Segments":
        """Of as many copies of the batch, one below the other."""
        tokens, rows = self.places.numel(), self.is_token.numel()
        shift = torch.arange(copies, device=self.rows.device)[:, None, None]
        return Segments(
            rows=((self.rows + shift * tokens) * self.is_token).flatten(0, 1),
            is_token=self.is_token.repeat(copies, 1),
            places=(self.places + shift[:, 0] * rows).flatten(),
            positions=self.positions.repeat(copies, 1),
        )

    def unpack(self, x: Tensor) -> Tensor:
        """(batch, seq, …) → (segments, longest, …), whose gradient must be 0 where no token is."""
        rows = _take(x.flatten(0, 1), self.rows.flatten(), self.places, None)
        return rows.unflatten(0, self.rows.shape)

    def pack(self, x: Tensor) -> Tensor:
        """(segments, longest, …) → (batch, seq, …)."""
        is_token = self.is_token.flatten()
        tokens = _take(x.flatten(0, 1), self.places, self.rows.flatten(), is_token)
        return tokens.unflatten(0, self.positions.shape)


@torch.library.custom_op("ablate::take", mutates_args=())
def _take(x: Tensor, index: Tensor, inverse: Tensor, mask: Tensor | None) -> Tensor:
    """x (n, …) → x[index] (m, …), whose gradient is gradient[inverse], 0 where `mask` is False.

    index_select's own gradient is summed up number by number, for indices that may repeat; here
    those that do have none (what is behind a segment's end). And an operator of its own:
    torch.compile would fuse it with its neighbours, and then also reads number by number. On a CPU
    the two took a sixth of a training step.
    """
    return x.index_select(0, index)


@_take.register_fake
def _(x: Tensor, index: Tensor, inverse: Tensor, mask: Tensor | None) -> Tensor:
    return x.new_empty(index.shape[0], *x.shape[1:])


def _save_indices(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _take_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    index, inverse, mask = ctx.saved_tensors
    gradient = _take(gradient, inverse, index, None)
    if mask is not None:
        gradient = gradient * mask.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1))
    return gradient, None, None, None


_take.register_autograd(_take_back, setup_context=_save_indices)


def find_titles(input_ids: Tensor, eos: int) -> Segments:
    """Titles as segments: each begins at an <eos>."""
    return find_segments((input_ids == eos).cumsum(1))


def find_segments(segment_ids: Tensor) -> Segments:
    """segment_ids (batch, seq): a segment is a stretch of equal ids within a row."""
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    number = begins.flatten().cumsum(0) - 1
    tokens = torch.arange(segment_ids.numel(), device=segment_ids.device)
    positions = tokens - starts[number]
    longest = int(positions.max()) + 1
    places = number * longest + positions
    rows = tokens.new_zeros(len(starts) * longest).index_copy_(0, places, tokens)
    return Segments(
        rows=rows.view(-1, longest),
        is_token=torch.zeros_like(rows, dtype=torch.bool)
        .index_fill_(0, places, True)
        .view(-1, longest),
        places=places,
        positions=positions.view_as(segment_ids),
    )


# ----------------------------------------------------------------------------- network


class KeyValueCache:
    """Keys and values of the tokens so far, for generation: (batch, heads, seq, size) a layer."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add to a layer's keys and values; returns all of them."""
        if layer in self.layers:
            old_key, old_value = self.layers[layer]
            key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
        self.layers[layer] = (key, value)
        return key, value


class RMSNorm(nn.RMSNorm):
    """torch's, which is slower and warns where input and weight differ in type (autocast)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class LastLinear(nn.Linear):
    """The last map of a branch. A class of its own, because transformers asks an architecture
    from elsewhere to initialise only modules that hold parameters themselves."""


def _norm(config: SmallGPTConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(config.n_embd, eps=config.norm_eps)


class Attention(nn.Module):
    is_causal = True

    def __init__(self, config: SmallGPTConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        width, bias = config.n_embd, config.bias
        self.q_proj = nn.Linear(width, width, bias)
        self.k_proj = nn.Linear(width, width, bias)
        self.v_proj = nn.Linear(width, width, bias)
        self.o_proj = LastLinear(width, width, bias)
        self.gate_proj = nn.Linear(width, width, bias) if config.attention_gate else None
        head_norms = [None, None]
        if config.qk_norm:
            head_norms = [RMSNorm(config.head_size, eps=config.norm_eps) for _ in range(2)]
        self.q_norm, self.k_norm = head_norms

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        segments: Segments | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """hidden (batch, seq, n_embd); rotation as from rotary_tables."""
        heads = (self.config.n_head, self.config.head_size)
        query, key, value = (
            project(hidden).unflatten(-1, heads)  # (batch, seq, heads, size)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if segments is not None:
            query, key, value = (segments.unpack(x) for x in (query, key, value))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        dropout = self.config.attention_dropout if self.training else 0.0
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, sdpa_attention_forward
        )
        mixed, _ = attend(self, query, key, value, None, dropout=dropout)
        mixed = mixed.flatten(2)
        if segments is not None:
            mixed = segments.pack(mixed)
        if self.gate_proj is not None:
            mixed = mixed * torch.sigmoid(self.gate_proj(hidden))
        return self.o_proj(mixed)


class FeedForward(nn.Module):
    def __init__(self, config: SmallGPTConfig):
        super().__init__()
        width, inner, bias = config.n_embd, config.n_inner, config.bias
        self.gate_proj = nn.Linear(width, inner, bias) if config.mlp == "swiglu" else None
        self.up_proj = nn.Linear(width, inner, bias)
        self.down_proj = LastLinear(inner, width, bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(hidden)))
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """h += Attention(norm(h)); h += FeedForward(norm(h))."""

    def __init__(self, config: SmallGPTConfig, layer: int):
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = _norm(config)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        scales = [None, None]
        if config.layer_scale is not None:
            scales = [nn.Parameter(torch.empty(config.n_embd)) for _ in range(2)]
        self.attention_scale, self.mlp_scale = scales

    def forward(self, hidden: Tensor, *context: Any) -> Tensor:
        branch = self.self_attn(self.input_layernorm(hidden), *context)
        if self.attention_scale is not None:
            branch = branch * self.attention_scale
        hidden = hidden + self.dropout(branch)
        branch = self.mlp(self.post_attention_layernorm(hidden))
        if self.mlp_scale is not None:
            branch = branch * self.mlp_scale
        return hidden + self.dropout(branch)


class SmallGPTPreTrainedModel(PreTrainedModel):
    config_class = SmallGPTConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SmallGPTConfig):
        super().__init__(config)
        if config._attn_implementation == "eager":
            raise ValueError(f"{config.model_type} has no eager attention: use sdpa")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # N(0, initializer_range), biases 0, norms 1 and 0
        if isinstance(module, LastLinear) and self.config.scale_residual_init:
            spread = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
            init.normal_(module.weight, mean=0.0, std=spread)
        if isinstance(module, Layer) and self.config.layer_scale is not None:
            init.constant_(module.attention_scale, self.config.layer_scale)
            init.constant_(module.mlp_scale, self.config.layer_scale)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.embed_tokens

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        self.base_model.embed_tokens = embedding


class SmallGPTModel(SmallGPTPreTrainedModel):
    """The network without its head."""

    def __init__(self, config: SmallGPTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.n_positions, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.n_layer))
        self.norm = _norm(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        segments: Segments | None = None,
    ) -> BaseModelOutput:
        """input_ids (batch, seq) → last_hidden_state (batch, seq, n_embd).

        segment_ids (batch, seq): of packed rows, in which a token sees its own segment; None: the
        titles if config.within_titles, else the whole row. segments: the same, found already: on a
        device that takes waiting. attention_mask may be zero at the end
        of rows (no token looks there). cache: of the tokens before these, which it then holds,
        too; without segments, and after its first use for one token at a time.
        """
        config = self.config
        if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("padding before a text: pad at the end of rows")
        if segments is None and segment_ids is None and config.within_titles and cache is None:
            segments = find_titles(input_ids, config.eos_token_id)
        if segment_ids is not None:
            segments = find_segments(segment_ids)
        if segments is not None:
            positions, longest = segments.positions, segments.rows.shape[1]
        else:
            first = 0 if cache is None else cache.length
            longest = first + input_ids.shape[1]
            positions = torch.arange(first, longest, device=input_ids.device)[None]
        hidden = self.embed_tokens(input_ids)
        rotation = None
        if self.embed_positions is None:
            rotation = rotary_tables(positions, config.head_size, config.rope_theta)
        else:
            if longest > config.n_positions:
                raise ValueError(f"{longest} tokens: the model has {config.n_positions} positions")
            hidden = hidden + self.embed_positions(positions)
        hidden = self.dropout(hidden)
        for layer in self.layers:
            hidden = layer(hidden, rotation, segments, cache)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


@dataclass
class CausalLMLosses(ModelOutput):
    """Outputs of the model.

    With labels: `loss_sum` and `num_targets`, to be summed over micro-batches, `loss` their
    ratio, and without gradient `losses` (targets,) in reading order. No logits: they are never
    all in memory. Without labels: `logits` (batch, seq, vocab).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    loss_sum: Tensor | None = None
    num_targets: int | None = None
    losses: Tensor | None = None


class SmallGPTForCausalLM(SmallGPTPreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SmallGPTConfig):
        super().__init__(config)
        self.model = SmallGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> CausalLMLosses:
        """input_ids (batch, seq), and the rest as SmallGPTModel takes it.

        shift_labels (batch, seq): what comes after each token; labels (batch, seq), as
        transformers has them: the token itself, for the one before it to predict. Both are
        IGNORE_INDEX where nothing is to be predicted. ValueError for labels with segment_ids: the
        end of a segment would have the start of the next to predict.
        """
        if labels is not None:
            if segment_ids is not None:
                raise ValueError("segment_ids need shift_labels: what comes after each token")
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        hidden = self.model(input_ids, segment_ids, attention_mask).last_hidden_state
        if shift_labels is None:
            return CausalLMLosses(logits=self.lm_head(hidden))
        hidden, targets = at_targets(hidden, shift_labels)
        loss_sum, losses = head_losses(hidden, self.lm_head.weight, targets)
        return CausalLMLosses(
            loss=loss_sum / len(targets),
            loss_sum=loss_sum,
            num_targets=len(targets),
            losses=losses,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        decoding: Decoding,
        keys: Sequence[int] | None = None,
    ) -> Tensor:
        """Continue prompts (batch, seq) of one length → (batch, seq + at most max_new_tokens).

        keys: what the draws of each row depend on, see Chooser; None: its place in the batch. A row
        that reaches <eos> is filled up with it. ValueError for more than one title in a prompt
        where attention stays within titles.
        """
        eos = self.config.eos_token_id
        choose = Chooser(decoding, range(len(input_ids)) if keys is None else keys)
        if self.config.within_titles and (input_ids[:, 1:] == eos).any():
            raise ValueError("give the last title of a prompt alone: the model sees no other")
        training = self.training
        self.eval()
        cache, fresh = KeyValueCache(), input_ids
        ended = torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
        for _ in range(decoding.max_new_tokens):
            hidden = self.model(fresh, cache=cache).last_hidden_state[:, -1]
            fresh = choose(input_ids, self.lm_head(hidden))[:, None]
            if eos is not None:
                fresh = fresh.masked_fill(ended, eos)
                ended = ended | (fresh == eos)
            input_ids = torch.cat([input_ids, fresh], dim=1)
            if ended.all():
                break
        self.train(training)
        return input_ids


# ------------------------------------------------------------------------------ losses


def at_targets(
    hidden: Tensor, labels: Tensor, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """hidden (batch, seq, n), labels (batch, seq) → (targets, n), (targets,): the labelled ones, or
    those at places (targets,)."""
    places = target_places(labels) if places is None else places
    return hidden.flatten(0, 1).index_select(0, places), labels.flatten()[places]


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (rows, vocab), labels (rows,) → nats (rows,)."""
    return F.cross_entropy(logits, labels, reduction="none")


LossesOf = Callable[[Tensor, Tensor], Tensor]


def losses_and_gradient(
    losses_of: LossesOf, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """(losses (rows,), gradient of their sum, as logits) of logits that losses_of takes in float32.

    What head_losses does with its logits; torch.compile makes one pass over them of it.
    """

    def summed(logits: Tensor) -> tuple[Tensor, Tensor]:
        losses = losses_of(logits.float(), labels)
        return losses.sum(), losses

    gradient, losses = torch.func.grad(summed, has_aux=True)(logits)
    return losses, gradient


def head_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    losses_of: LossesOf = cross_entropies,
    rows_each: int | None = None,
    differentiate: Callable[..., tuple[Tensor, Tensor]] = losses_and_gradient,
) -> tuple[Tensor, Tensor]:
    """(Σ losses, losses (targets,) without gradient) of the logits hidden @ weight.T.

    hidden (targets, n) or (copies, targets, n), weight (vocab, n), labels (targets,).
    losses_of(logits, labels) returns one loss a target from float32 logits (rows, vocab) or
    (copies, rows, vocab): by default the cross-entropy; with two copies that differ in their
    dropout, the loss of R-Drop (Liang et al. 2021).

    `rows_each` targets at a time (None: of 4 million logits, at least 64) are taken through the
    head, forward and backward at once, so that memory for logits does not grow with the targets,
    and nothing is computed twice. differentiate: losses_and_gradient, or the same compiled.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    copies = len(hidden) if hidden.ndim == 3 else 1
    rows_each = rows_each or max(64, 2**22 // (copies * len(weight)))
    return _HeadLosses.apply(hidden, weight, labels, losses_of, rows_each, differentiate, wanted)


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        losses_of: LossesOf,
        rows_each: int,
        differentiate: Callable[..., tuple[Tensor, Tensor]],
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        device, dtype = hidden.device.type, weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        hidden_gradient = torch.empty_like(hidden) if wanted else None
        weight_gradient = torch.zeros_like(weight) if wanted else None
        losses = hidden.new_empty(len(labels), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(labels), rows_each):
                part = slice(start, start + rows_each)
                inputs = hidden[..., part, :].to(dtype)
                logits = inputs @ matrix.T
                if not wanted:
                    losses[part] = losses_of(logits.float(), labels[part])
                    continue
                losses[part], gradient = differentiate(losses_of, logits, labels[part])
                hidden_gradient[..., part, :] = gradient @ matrix
                _add_product(weight_gradient, gradient.flatten(0, -2), inputs.flatten(0, -2))
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor, of_losses: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * of_sum, weight_gradient * of_sum, None, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right; in place where the types agree, which saves a matrix."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


# ----------------------------------------------------------------- building and leaving


def build_gpt(seed: int, by_name: bool = False, **settings: Any) -> SmallGPTForCausalLM:
    """A new model; settings are those of SmallGPTConfig. TypeError for a name it does not have.

    by_name: each parameter starts from the seed and its name (`starts`).
    """
    defaults = SmallGPTConfig()
    for name in settings:
        if not hasattr(defaults, name):
            raise TypeError(f"{name}: SmallGPTConfig has no such setting")
    torch.manual_seed(seed)
    model = SmallGPTForCausalLM(SmallGPTConfig(**settings))
    if by_name:
        draw_by_name(model, seed)
    return model


def to_transformers(model: SmallGPTForCausalLM) -> PreTrainedModel:
    """The same network and weights as transformers' LlamaForCausalLM, with qk_norm as its
    Qwen3ForCausalLM: equal logits, for one title at a time where attention stays within titles.

    ValueError names what neither has.
    """
    config = model.config
    strange = [
        f"{name}={getattr(config, name)}"
        for name, needed in (
            ("positions", "rotary"),
            ("norm", "rmsnorm"),
            ("mlp", "swiglu"),
            ("bias", False),
            ("attention_gate", False),
            ("layer_scale", None),
        )
        if getattr(config, name) != needed
    ]
    if strange:
        raise ValueError(f"transformers' Llama has no {', '.join(strange)}")
    config_class, model_class = LlamaConfig, LlamaForCausalLM
    if config.qk_norm:
        config_class, model_class = Qwen3Config, Qwen3ForCausalLM
    target = config_class(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_head,
        head_dim=config.head_size,
        max_position_embeddings=config.n_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.norm_eps,
        attention_dropout=config.attention_dropout,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )
    exported = model_class(target)
    exported.load_state_dict(model.state_dict())
    return exported.eval()


AutoConfig.register(SmallGPTConfig.model_type, SmallGPTConfig, exist_ok=True)
AutoModel.register(SmallGPTConfig, SmallGPTModel, exist_ok=True)
AutoModelForCausalLM.register(SmallGPTConfig, SmallGPTForCausalLM, exist_ok=True)
