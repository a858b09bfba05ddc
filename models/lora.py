"""LoRA: low-rank updates beside the frozen linear maps of a causal language model.

    add_lora(model, LoraConfig(r=16, alpha=16), seed=0)       # freezes everything else
    groups = core.parameter_groups({"lora": model}, {"lora": 5e-5}, weight_decay=0.1)
    save_adapter(model, folder)                               # PEFT's two files, not the base
    load_adapter(model, folder)                               # also PEFT's, also to a bare base
    merge(model)                                              # an ordinary model again
    count_parameters(config, LoraConfig(r=16)).trainable      # no weights, no hub

Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, eq. 3: a frozen W (out, in)
becomes W + s · B A, A (r, in) drawn Kaiming-uniform with a = √5, which is U(±1/√in), and B (out, r)
zero, so that training starts at the base model. s is alpha / r there, alpha / √r in Kalajdzievski
2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA.

An adapter is a submodule `lora` of the map it adapts, added to its output by a forward hook: names
and tensors of the base stay as they were. What multiplies by a map's `weight` itself, instead of
calling the map, does not see the adapter; `module.lora.delta()` is what it then has to add.
"""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.pretrained import find_layers, layer_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
PREFIX = "base_model.model."  # of every tensor in PEFT's file


@dataclass(frozen=True)
class LoraConfig:
    """Which maps are adapted, and how."""

    r: int = 16
    alpha: float = 16.0
    scaling: Literal["none", "alpha/r", "rslora"] = "alpha/r"  # s: alpha, alpha / r, alpha / √r
    dropout: float = 0.0  # of an adapter's input; 0 = never
    qkv: Literal["separate", "fused"] = "separate"  # of GPT-2's c_attn: three As or one
    layers: str = "all"  # all, or last:k
    head: bool = True  # the output head as well

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"--lora_r {self.r}: expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--lora_dropout {self.dropout}: expected 0 or more, below 1")
        for name, value, choices in (
            ("scaling", self.scaling, ("none", "alpha/r", "rslora")),
            ("qkv", self.qkv, ("separate", "fused")),
        ):
            if value not in choices:
                raise ValueError(f"--lora_{name} {value}: expected {' or '.join(choices)}")

    @property
    def scale(self) -> float:
        """s in W + s · B A."""
        return {
            "none": self.alpha,
            "alpha/r": self.alpha / self.r,
            "rslora": self.alpha / math.sqrt(self.r),
        }[self.scaling]


class Adapter(nn.Module):
    """s · B A x of one linear map, in fp32 whatever the base is in.

    parts > 1: the map's outputs are that many maps side by side (q, k, v), and each has its own A
    and B of rank r. A (parts · r, in) and B (out, r) hold them one below the other, so the whole
    is one update of rank parts · r whose B is block-diagonal. Dropout draws one mask for all.
    """

    def __init__(
        self, in_features: int, out_features: int, r: int, scale: float, dropout: float, parts: int
    ):
        super().__init__()
        self.scale, self.parts = scale, parts
        self.A = nn.Parameter(torch.zeros(parts * r, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, r))
        self.dropout = nn.Dropout(dropout)

    def wide_B(self) -> Tensor:
        """B as (out, parts · r), zero outside its diagonal blocks."""
        return _widen(self.B, self.parts)

    def delta(self) -> Tensor:
        """s · B A, (out, in)."""
        return self.scale * (self.wide_B() @ self.A)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """low (…, parts · r) and up (out, parts · r), whose low @ up.T is s · B A x.

        For the head's chunked loss, which never has all rows of the output at a time.
        """
        return self._low(x), self.scale * self.wide_B()

    def _low(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)  # from a base in half precision
        return F.linear(self.dropout(x), self.A)  # (…, parts · r)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """x (…, in), output (…, out) of the base → output + s · B A x."""
        low = self._low(x).to(output.dtype)
        up = self.wide_B().to(output.dtype)
        rows = output.reshape(-1, output.shape[-1])
        # one new tensor as large as the output (the head's is tokens × vocabulary), not three
        summed = torch.addmm(rows, low.reshape(len(rows), -1), up.T, alpha=self.scale)
        return summed.view_as(output)


def _widen(B: Tensor, parts: int) -> Tensor:
    return B if parts == 1 else torch.block_diag(*B.chunk(parts))


def _add_update(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return module.lora(inputs[0], output)


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # GPT-2's: its weight is (in, out)

    return isinstance(module, (nn.Linear, Conv1D))


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear map."""
    shape = module.weight.shape
    return (shape[1], shape[0]) if isinstance(module, nn.Linear) else (shape[0], shape[1])


def _attach(
    module: nn.Module, r: int, scale: float, dropout: float = 0.0, parts: int = 1
) -> Adapter:
    adapter = Adapter(*_sizes(module), r, scale, dropout, parts).to(module.weight.device)
    module.lora = adapter.train(module.training)
    adapter.hook = module.register_forward_hook(_add_update)
    return adapter


def _targets(model: nn.Module, lora: LoraConfig) -> dict[str, nn.Module]:
    """The maps that `lora` names, by name, bottom first."""
    layers = find_layers(model)
    match = re.fullmatch(r"all|last:(\d+)", lora.layers)
    k = int(match[1] or len(layers)) if match else 0
    if not 1 <= k <= len(layers):
        raise ValueError(
            f"--lora_layers {lora.layers}: expected all, or last:k with k from 1 to {len(layers)}"
        )
    inside = {id(module) for layer in layers[-k:] for module in layer.modules()}
    if lora.head:
        inside.add(id(model.get_output_embeddings()))
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and _is_linear(module)
    }


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted maps of a model, by name; each has its Adapter as `.lora`."""
    modules = model.named_modules()
    return {name: m for name, m in modules if isinstance(getattr(m, "lora", None), Adapter)}


def add_lora(model: nn.Module, lora: LoraConfig, seed: int = 0) -> None:
    """Freeze a causal language model and adapt its linear maps, with A drawn from `seed`.

    Every nn.Linear and Conv1D of the chosen layers, and the head. Separate q, k, v: GPT-2's
    c_attn is split in three; models with q_proj, k_proj, v_proj have them apart anyway; other
    fused projections (GPT-NeoX, Phi-3) are not split. ValueError if the model is adapted already.
    """
    if adapters(model):
        raise ValueError("the model has LoRA adapters already: merge them first")
    targets = _targets(model, lora)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in targets.items():
        inputs, outputs = _sizes(module)
        is_qkv = name.endswith(".c_attn") and outputs == 3 * inputs
        is_gpt2 = not isinstance(module, nn.Linear)  # others lay q, k and v out head by head
        parts = 3 if is_qkv and is_gpt2 and lora.qkv == "separate" else 1
        adapter = _attach(module, lora.r, lora.scale, lora.dropout, parts)
        A = torch.empty(adapter.A.shape)  # on the CPU: the same numbers on any device
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        adapter.A.data.copy_(A)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W ← W + s · B A in place; the adapters go. A model without adapters stays unchanged.

    A head that shares the embedding's matrix gets its own (tie_word_embeddings=False), for the
    embedding has no adapter. All parameters stay frozen.
    """
    for module in adapters(model).values():
        shared = model.get_input_embeddings().weight
        if module.weight is shared:
            module.weight = nn.Parameter(shared.clone(), requires_grad=False)
            model.config.tie_word_embeddings = False
        delta = module.lora.delta()
        if not isinstance(module, nn.Linear):
            delta = delta.T
        module.weight.copy_(module.weight.float() + delta)
        module.lora.hook.remove()
        del module.lora


# ------------------------------------------------------------------------ PEFT's format


def save_adapter(
    model: nn.Module, folder: Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write the adapters, and nothing of the base, as PEFT's two files into an existing folder.

    A split adapter is written as what it is, one of rank parts · r with a block-diagonal B, and
    every scaling as alpha / r: alpha = s · rank, which readers that know no other get right too.
    state_dict: whole tensors by name, where the model's own are sharded.
    """
    adapted = adapters(model)
    if not adapted:
        raise ValueError("the model has no LoRA adapter to save")
    state_dict = model.state_dict() if state_dict is None else state_dict
    tensors, kinds = {}, {}
    for name, module in adapted.items():
        adapter = module.lora
        A, B = state_dict[f"{name}.lora.A"], state_dict[f"{name}.lora.B"]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = _widen(B, adapter.parts).contiguous()
        alpha = round(adapter.scale * len(A), 9)
        kinds[name] = (len(A), int(alpha) if alpha == int(alpha) else alpha)
    usual = Counter(kinds.values()).most_common(1)[0][0]
    others = {
        last_names: kind
        for kind in set(kinds.values()) - {usual}
        for last_names in _shorten({n for n, k in kinds.items() if k == kind}, adapted)
    }
    facts = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path or None,
        "r": usual[0],
        "lora_alpha": usual[1],
        "rank_pattern": {names: rank for names, (rank, _) in others.items()},
        "alpha_pattern": {names: alpha for names, (_, alpha) in others.items()},
        "use_rslora": False,
        "lora_dropout": max(module.lora.dropout.p for module in adapted.values()),
        "target_modules": _shorten(adapted, dict(model.named_modules())),
        "fan_in_fan_out": any(not isinstance(m, nn.Linear) for m in adapted.values()),
        "modules_to_save": None,
        "bias": "none",
        "inference_mode": True,
    }
    save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    (Path(folder) / CONFIG).write_text(json.dumps(facts, indent=1) + "\n")


def _shorten(names: Collection[str], among: Collection[str]) -> list[str]:
    """The last parts of dotted names if those mean the same ones among all, else the names."""
    last = {name.rpartition(".")[2] for name in names}
    meant = {name for name in among if name.rpartition(".")[2] in last}
    return sorted(last) if meant == set(names) else sorted(names)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Make the model compute what the adapter in `folder`, ours or PEFT's, says.

    A model with adapters keeps its parameters, which get the values (bit for bit, where
    save_adapter wrote them); a bare one is frozen and gets the adapters as PEFT would build them.
    ValueError where it does not fit, or is of a kind that is not plain LoRA.
    """
    if not adapters(model):
        saved, dropout = _read(model, Path(folder))
        model.requires_grad_(False)
        for name, (A, _, scale) in saved.items():
            _attach(model.get_submodule(name), len(A), scale, dropout)
    model.load_state_dict(adapter_weights(model, folder), strict=False)


def adapter_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """What `folder` holds, under the names and in the shapes of the adapters of this model.

    For load_adapter, and for a sharded model, whose script hands it to torch's
    set_model_state_dict. ValueError as there.
    """
    saved, _ = _read(model, Path(folder))
    adapted = adapters(model)
    if odd := sorted(saved.keys() ^ adapted.keys()):
        side = "does not adapt" if odd[0] in adapted else "adapts"
        raise ValueError(
            f"{folder} {side} {odd[0]}, unlike this model ({len(odd)} such): "
            "choose the layers and the head as they were"
        )
    weights = {}
    for name, (A, B, scale) in saved.items():
        adapter = adapted[name].lora
        if not math.isclose(scale, adapter.scale, rel_tol=1e-6):
            raise ValueError(
                f"{folder} scales {name} by {scale:g}, this model by {adapter.scale:g}: "
                "set --lora_alpha and --lora_scaling as they were"
            )
        blocks = B
        if adapter.parts > 1 and A.shape == adapter.A.shape:
            r = adapter.B.shape[1]
            rows = B.chunk(adapter.parts)
            blocks = torch.cat([b[:, i * r : (i + 1) * r] for i, b in enumerate(rows)])
            if not torch.equal(_widen(blocks, adapter.parts), B):
                raise ValueError(f"{folder} mixes q, k and v in {name}: use --lora_qkv fused")
        if (A.shape, blocks.shape) != (adapter.A.shape, adapter.B.shape):
            raise ValueError(
                f"{folder} has rank {len(A)} for {name}, this model {len(adapter.A)}: "
                "set --lora_r and --lora_qkv as they were"
            )
        weights |= {f"{name}.lora.A": A, f"{name}.lora.B": blocks}
    return weights


def _read(model: nn.Module, folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor, float]], float]:
    """(A, B, s) by the name of the map, and the dropout, of a folder in PEFT's format."""
    facts = json.loads((folder / CONFIG).read_text())
    _refuse_other_kinds(facts, folder)
    tensors = load_file(folder / WEIGHTS)
    maps = {name: module for name, module in model.named_modules() if _is_linear(module)}
    own = None
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, side = key.removeprefix(PREFIX).rpartition(".lora_")
        if name in maps and side in ("A.weight", "B.weight"):
            saved.setdefault(name, {})[side[0]] = tensor
            continue
        # PEFT adds the embeddings to an adapter of the head: harmless if they are the base's
        own = model.state_dict() if own is None else own
        base = own.get(key.removeprefix(PREFIX).replace(".base_layer.", "."))
        if base is None or not torch.equal(base.cpu(), tensor.to(base.dtype)):
            raise ValueError(f"{folder / WEIGHTS}: {key} is no LoRA weight of a map of this model")
    factors = {}
    for name, pair in saved.items():
        inputs, outputs = _sizes(maps[name])
        if pair.keys() != {"A", "B"}:
            raise ValueError(f"{folder / WEIGHTS}: half of the adapter of {name} is missing")
        A, B = pair["A"], pair["B"]
        if A.shape != (B.shape[1], inputs) or len(B) != outputs:
            raise ValueError(
                f"{folder / WEIGHTS}: A {tuple(A.shape)} and B {tuple(B.shape)} do not fit "
                f"{name}, which maps {inputs} to {outputs}: another base model?"
            )
        patterns = facts.get("alpha_pattern") or {}
        matching = (a for p, a in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", name))
        alpha = next(matching, facts["lora_alpha"])
        rank = math.sqrt(len(A)) if facts.get("use_rslora") else len(A)
        factors[name] = (A, B, alpha / rank)
    if not factors:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights")
    return factors, facts.get("lora_dropout") or 0.0


def _refuse_other_kinds(facts: dict, folder: Path) -> None:
    """ValueError for what changes the function without a tensor of its own, or the base's weights.

    The rest (DoRA's magnitudes, biases, modules_to_save) shows in the tensors' names.
    """
    start = str(facts.get("init_lora_weights", True)).lower()
    odd = next((k for k in ("use_qalora", "layer_replication", "use_bdlora") if facts.get(k)), None)
    if facts.get("peft_type") != "LORA":
        odd = f"peft_type {facts.get('peft_type')}"
    elif facts.get("alora_invocation_tokens"):
        odd = "alora_invocation_tokens"
    elif start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        odd = f"init_lora_weights {start}, which changes the base"
    if odd:
        raise ValueError(f"{folder / CONFIG}: {odd}; only plain LoRA is read")


# ------------------------------------------------------------------------------- counts


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters; tied: with the embedding's matrix as output head."""

    tied: int
    untied: int
    lora: dict[str, int]  # by layer: layer_0, …, lm_head

    @property
    def trainable(self) -> int:
        """LoRA's parameters, all layers together."""
        return sum(self.lora.values())


def count_parameters(config: Any, lora: LoraConfig | None = None) -> Counts:
    """Of a causal language model, from transformers' configuration alone.

    The model is built without memory for its weights, so this is the model that would be trained.
    For GPT-2 with L layers of width d, a vocabulary V and 1,024 positions: untied
    2Vd + 1024d + L(12d² + 13d) + 2d; LoRA on everything, q, k, v separate, r(18Ld + d + V),
    fused r(16Ld + d + V).
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # building changes it
    total = sum(parameter.numel() for parameter in model.parameters())  # a shared one once
    head = model.get_output_embeddings().weight
    tied = total if head is model.get_input_embeddings().weight else total - head.numel()
    counts: Counter[str] = Counter()
    if lora is not None:
        add_lora(model, lora)
        for name, module in adapters(model).items():
            sizes = (parameter.numel() for parameter in module.lora.parameters())
            counts[layer_of(f"{name}.weight")] += sum(sizes)
    return Counts(tied=tied, untied=tied + head.numel(), lora=dict(counts))
