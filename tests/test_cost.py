"""What a sweep would cost: the products that torch counts, published minutes, every sweep file."""

import functools
import importlib

import pytest
import torch
from conftest import PROJECT

import sweep
from benchmarks._peak import flop_counter
from methods.clock import costs_of_rows
from models import lora, pretrained
from settings import as_dict, flatten, parse_settings
from sweeps import cost
from sweeps import plan as plans

# of rows that come with a package, or from a user's file
OWN_FILES = {"bert_methods", "frozen", "sentiment", "headlines_all_titles", "headlines_side"}
OWN_FILES |= {"headlines_steps"}
SWEEPS = sorted((PROJECT / "configs/sweeps").glob("*.yaml"))
SWEEPS = [path for path in SWEEPS if path.stem not in OWN_FILES]
LENGTH, ROWS = 32, 2


def settings_of(script: str, words: list[str]) -> dict:
    module = importlib.import_module(script.removesuffix(".py"))
    aliases = getattr(module, "ALIASES", None)
    return flatten(as_dict(parse_settings(module.Config, words, script, aliases)[0]))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_published_table_says_what_it_costs(path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    plan = plans.Plan(plans.parse_arguments([f"--config={path}", "--dry_run"]))
    for arm in plan.arms[:1]:
        settings = settings_of(arm.script, plans.words_of(plan.runs(arm, {})[0]))
        found = cost.cost_of(arm.script, settings)
        hours = found.hours(cost.GPUS["A100"], settings["precision"])
        assert 1e-5 < hours < 24, (arm.label, hours)  # reviews_opponent is for two cores


@pytest.mark.parametrize("name, minutes", [("run_5", 12.8), ("run_4", 21.5), ("run_3", 34.0)])
def test_estimates_are_of_the_size_of_published_minutes(name, minutes):
    """On an A100, about 12,000 Alpaca rows: what a row is long is not known, so a factor of 2.5."""
    words = [f"--config={PROJECT / f'configs/alpaca/{name}.yaml'}"]
    found = cost.cost_of("alpaca_sft.py", settings_of("alpaca_sft.py", words))
    hours = found.hours(cost.GPUS["A100"], "fp32")
    assert minutes / 2.5 < 60 * hours < minutes * 2.5


# ------------------------------------------------------------------------- torch's counter


def counted(model: torch.nn.Module, backward: bool = True) -> float:
    """FLOPs a token, the output matrix included."""
    ids = torch.randint(0, 90, (ROWS, LENGTH))
    with flop_counter() as counter:
        output = model(input_ids=ids)
        values = output.logits if hasattr(output, "logits") else output.last_hidden_state
        if backward:
            values.float().sum().backward()
    return counter.get_total_flops() / (ROWS * LENGTH)


def gpt2(layers: int = 3) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": layers, "n_head": 4, "n_embd": 64, "vocab_size": 500, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager"))


SHAPE = cost.Shape(3, 64, 256, 500)  # all pairs, as eager attention computes them
ALPACA = {"size": None, "limit": None, "val_frac": 0.0, "test_frac": 0.0, "max_length": LENGTH}
ALPACA |= {"epochs": 1, "baseline": False, "eval_batches": None, "eval_every": None, "batch": 4}
ALPACA |= {"lora_r": None, "lora_layers": "all", "lora_head": True, "freeze": "none"}


def alpaca(monkeypatch, **settings) -> float:
    """FLOPs a token of a training run without any evaluation."""
    monkeypatch.setitem(cost.SHAPES, "tiny", SHAPE)
    monkeypatch.setitem(cost.DATA, "rows", cost.Rows(1000, LENGTH))
    found = cost.cost_of("alpaca_sft.py", ALPACA | {"model": "tiny", "data": "rows"} | settings)
    return found.flops / (1000 * LENGTH)


def test_full_tuning_is_what_torch_counts(monkeypatch):
    assert alpaca(monkeypatch) == pytest.approx(counted(gpt2()), rel=0.02)


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_lora_is_what_torch_counts(layers, monkeypatch):
    model = gpt2()
    config = lora.LoraConfig(4, 4.0, "alpha/r", 0.0, "separate", layers, True)
    lora.add_lora(model, config, 0)
    expected = alpaca(monkeypatch, lora_r=4, lora_layers=layers)
    assert expected == pytest.approx(counted(model.train()), rel=0.04)


def test_frozen_blocks_are_what_torch_counts(monkeypatch):
    model = gpt2()
    pretrained.freeze(model, "bottom:2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    expected = alpaca(monkeypatch, freeze="bottom:2")
    assert expected == pytest.approx(counted(model), rel=0.02)


def test_an_encoder_is_what_torch_counts():
    from transformers import BertConfig, BertModel

    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
    config = BertConfig(**sizes, intermediate_size=256, vocab_size=500, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False)
    assert 3 * SHAPE.layers * SHAPE.block(LENGTH) == pytest.approx(counted(model), rel=0.02)


def encoder(kind: str) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
    sizes |= {"intermediate_size": 256, "vocab_size": 500, "embedding_size": 32}
    config = AutoConfig.for_model(kind, **sizes)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


def adapted(layers: str) -> torch.nn.Module:
    model = gpt2()
    lora.add_lora(model, lora.LoraConfig(4, 4.0, "alpha/r", 0.0, "fused", layers, True), 0)
    return model.train()


def frozen_below() -> torch.nn.Module:
    model = gpt2()
    pretrained.freeze(model, "bottom:2")
    return model


@pytest.mark.parametrize(
    "model",
    [
        gpt2,
        functools.partial(adapted, "all"),
        functools.partial(adapted, "last:1"),
        frozen_below,
        functools.partial(encoder, "bert"),
        functools.partial(encoder, "albert"),
    ],
    ids=["gpt2", "lora", "lora of one layer", "frozen below", "bert", "albert"],
)
def test_a_budget_in_flops_buys_what_torch_counts(model):
    """Without the row that a classifier's head reads once, less than .1 %."""
    model = model()
    costs = costs_of_rows(model, pretrained.layer_of, LENGTH, LENGTH**2)
    assert costs.of("train", 0) / LENGTH == pytest.approx(counted(model), rel=1e-3)
    assert costs.of("forward", 0) / LENGTH == pytest.approx(counted(model, False), rel=1e-3)


def test_the_registrys_shapes_are_their_configs():
    from transformers import BertConfig, DistilBertConfig, GPT2Config

    for name, config in (
        ("bert", BertConfig()),
        ("distilbert", DistilBertConfig()),
        ("gpt2", GPT2Config()),
    ):
        shape = cost.SHAPES[name]
        assert (shape.layers, shape.width) == (config.num_hidden_layers, config.hidden_size)
        assert shape.vocab == config.vocab_size
    assert set(pretrained.REGISTRY) <= set(cost.SHAPES)


# ---------------------------------------------------------------------------- the command


def test_a_dry_run_names_hours_and_what_it_does_not_know(tmp_path, capsys, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 50)
    (tmp_path / "s.yaml").write_text(
        f"script: alpaca_sft.py\ndata: {tmp_path / 'rows.jsonl'}\nseeds: 2\n"
        "arms: {gpt2: {model: gpt2}, other: {model: somebody/model}}\n"
    )
    config = f"--config={tmp_path / 's.yaml'}"
    settings = lambda plan: {  # noqa: E731 - the script's own, without a process for it
        arm.label: settings_of(arm.script, plans.words_of(plan.runs(arm, {})[0]))
        for arm in plan.arms
    }
    monkeypatch.setattr(sweep, "check_settings", settings)
    assert sweep.main([config, "--dry_run", "--gpu", "a100"]) == 0
    said = capsys.readouterr().out
    assert "a run on one A100" in said and "1 arms are not in it" in said
    assert "model somebody/model: its shape is not known here" in said
    wrong = {"is for --dry_run": ["--gpu=A100"], "expected one of": ["--dry_run", "--gpu=P"]}
    for problem, words in wrong.items():
        with pytest.raises(SystemExit, match=problem):
            plans.parse_arguments([config, *words])
