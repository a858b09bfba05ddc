"""The BERT of the budget: its shape, its losses, its masks, and that it opens elsewhere."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
)

import core
from methods.dropout import ATTENTION, use_word_dropout
from models import bert
from models.pretrained import find_layers, freeze, load_encoder

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
ARCHS = ["bert-tiny", "hf-bert"]


def build(arch: str = "bert-tiny", layers: int = 4, seed: int = 0, **changes):
    """A small model in evaluation mode, its weights larger than at the start of a training."""
    changes = {**SMALL, "num_hidden_layers": layers, **changes}
    model = bert.build_masked_lm(arch, 90, seed, 24, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 5
    return model


def sample_batch(rows: int = 3, length: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(7, 90, (rows, length), generator=draw)
    masked = torch.rand(rows, length, generator=draw) < 0.3
    masked[:, 2] = True
    return {"input_ids": input_ids, "labels": input_ids.masked_fill(~masked, core.IGNORE_INDEX)}


def test_bert_c5_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = bert.BudgetBertForMaskedLM(bert.BudgetBertConfig())
        named = bert.build_masked_lm("bert-c5", 32768, seed=0)
    layer = sum(p.numel() for p in model.encoder.layers[0].parameters())
    assert (layer, len(model.encoder.layers)) == (5_901_312, 16)
    for built in (model, named):
        assert sum(p.numel() for p in built.parameters()) == 120_179_713
    vectors = {name for name, p in model.named_parameters() if p.ndim < 2}
    assert all("norm" in name or name.endswith("position_scale") for name in vectors)


@pytest.mark.parametrize("arch", [*bert.ARCHITECTURES, "hf-bert"])
def test_all_sizes_have_heads_of_64_and_depths_that_halve(arch):
    with torch.device("meta"):
        config = bert.build_masked_lm(arch, 1000, seed=0).config
    assert config.hidden_size == 64 * config.num_attention_heads
    assert config.num_hidden_layers % 4 == 0


def test_the_first_loss_is_that_of_guessing():
    model = bert.build_masked_lm("bert-tiny", 32768, seed=0)
    draw = torch.Generator().manual_seed(0)
    input_ids = torch.randint(7, 32768, (8, 64), generator=draw)
    found = bert.masked_lm_losses(model, {"input_ids": input_ids, "labels": input_ids})
    assert found.loss.item() == pytest.approx(math.log(32768), abs=0.1)


@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
def test_weights_begin_as_published(positions):
    model = bert.build_masked_lm("bert-tiny", 5000, seed=0, positions=positions)
    scale = 0.02 * math.sqrt(768 / 128)
    assert any(n.endswith("position_scale") for n in model.state_dict()) == (
        positions == "sinusoidal"
    )
    for name, parameter in model.named_parameters():
        if name.endswith("distance_bias"):
            assert positions == "relative" and (parameter == 0).all()
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(scale, rel=0.03), name
        elif name.endswith("position_scale"):
            assert parameter.item() == pytest.approx(1 / math.sqrt(128))
        else:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
    assert (model.encoder.embeddings.words.weight[0] == 0).all()
    again = bert.build_masked_lm("bert-tiny", 5000, seed=0)
    other = bert.build_masked_lm("bert-tiny", 5000, seed=1)
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.equal(model.head.weight, other.head.weight)


def by_hand(model, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits (batch, seq, vocab), written with plain sums and products."""
    encoder = model.encoder
    words, seq, size = encoder.embeddings.words.weight, input_ids.shape[1], 32

    def norm(x, layer):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * layer.weight + layer.bias

    positions = torch.zeros(seq, size)
    for place in range(seq):
        for column in range(0, size, 2):
            angle = place / 10000 ** (column / size)
            positions[place, column] = math.sin(angle)
            positions[place, column + 1] = math.cos(angle)
    relative = model.config.positions == "relative"
    scale = 0 if relative else encoder.embeddings.position_scale
    x = norm(words[input_ids] + scale * positions, encoder.embeddings.norm)
    for layer in encoder.layers:
        q, k, v = (norm(x, layer.norm1) @ layer.attention.qkv.weight.T).split(size, -1)
        heads = []
        for start in (0, 16):
            part = slice(start, start + 16)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(16)
            for place in range(seq if relative else 0):
                for other in range(seq):
                    bias = layer.attention.distance_bias[start // 16, other - place + 23]
                    scores[:, place, other] += bias
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ layer.attention.out.weight.T
        up = norm(x, layer.norm2) @ layer.feed_forward.up.weight.T
        first, second = up[..., :24], up[..., 24:]
        gelu = second * (1 + torch.erf(second / math.sqrt(2))) / 2
        x = x + (first * gelu) @ layer.feed_forward.down.weight.T
    return norm(x, encoder.final_norm) @ model.head.weight.T @ words.T


@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
def test_the_model_is_what_is_written(positions):
    model = build(positions=positions)
    for layer in model.encoder.layers if positions == "relative" else []:
        torch.nn.init.normal_(layer.attention.distance_bias)
    input_ids = sample_batch()["input_ids"]
    torch.testing.assert_close(
        model(input_ids).logits, by_hand(model, input_ids), rtol=1e-4, atol=1e-4
    )


def dense_logits(model, input_ids, **masks):
    return model(input_ids=input_ids, **masks).logits


@pytest.mark.parametrize("arch", ARCHS)
def test_the_sparse_loss_is_the_dense_cross_entropy(arch):
    model, batch = build(arch), sample_batch()
    dense = F.cross_entropy(
        dense_logits(model, batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
    )
    dense.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = bert.masked_lm_losses(model, batch)
    (found.loss_sum / found.num_targets).backward()
    assert found.loss.item() == pytest.approx(dense.item(), rel=1e-5)
    assert found.num_targets == int((batch["labels"] != core.IGNORE_INDEX).sum())
    assert found.logits.shape == (found.num_targets, 90)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_each_sequence_has_its_own_sum(arch):
    model, batch = build(arch), sample_batch()
    batch["labels"][1] = core.IGNORE_INDEX  # a sequence without a target
    found = bert.masked_lm_losses(model, batch)
    assert found.sequence_num_targets.tolist() == (batch["labels"] >= 0).sum(1).tolist()
    assert found.sequence_loss_sums.sum().item() == pytest.approx(found.loss_sum.item(), rel=1e-6)
    assert found.sequence_loss_sums[1] == 0 and not found.sequence_loss_sums.requires_grad
    alone = bert.masked_lm_losses(model, {name: tensor[2:] for name, tensor in batch.items()})
    assert alone.loss_sum.item() == pytest.approx(found.sequence_loss_sums[2].item(), rel=1e-5)


def test_a_batch_without_targets_adds_nothing():
    model, batch = build(), sample_batch()
    batch["labels"][:] = core.IGNORE_INDEX
    found = bert.masked_lm_losses(model, batch)
    found.loss_sum.backward()
    assert (found.loss_sum.item(), found.num_targets) == (0.0, 0) and found.loss.isnan()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("arch", ARCHS)
def test_padding_changes_nothing(arch):
    model, batch = build(arch), sample_batch(1, 8)
    alone = bert.masked_lm_losses(model, batch)
    found = []
    for filler in (0, 55):
        input_ids = torch.full((2, 14), filler)
        input_ids[0, :8] = batch["input_ids"]
        labels = torch.full((2, 14), core.IGNORE_INDEX)
        labels[0, :8] = batch["labels"]
        mask = torch.ones(2, 14, dtype=torch.long)
        mask[0, 8:] = 0
        padded = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        found.append(bert.masked_lm_losses(model, padded))
        torch.testing.assert_close(found[-1].logits, alone.logits, rtol=1e-4, atol=1e-4)
    del padded["attention_mask"]
    changed = bert.masked_lm_losses(model, padded)
    assert not torch.allclose(changed.logits, alone.logits, atol=1e-2)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_mask_of_ones_is_no_mask(arch):
    model, batch = build(arch), sample_batch()
    ones = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    expected = bert.masked_lm_losses(model, batch).logits
    torch.testing.assert_close(bert.masked_lm_losses(model, ones).logits, expected)


@pytest.mark.parametrize("arch", ARCHS)
def test_packed_rows_do_not_see_each_other(arch):
    model, batch = build(arch), sample_batch(2, 12)
    batch["labels"] = batch["input_ids"].clone()
    batch["segment_ids"] = torch.tensor([0] * 5 + [1] * 7).expand(2, 12)
    logits = bert.masked_lm_losses(model, batch).logits.view(2, 12, 90)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, 5:] = 8
    other = bert.masked_lm_losses(model, changed).logits.view(2, 12, 90)
    torch.testing.assert_close(other[:, :5], logits[:, :5], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other[:, 5:], logits[:, 5:], atol=1e-2)
    first = {name: batch[name][:, :5] for name in ("input_ids", "labels")}
    alone = bert.masked_lm_losses(model, first).logits.view(2, 5, 90)
    torch.testing.assert_close(alone, logits[:, :5], rtol=1e-4, atol=1e-4)


def test_a_mask_and_segments_together_are_refused():
    ones = torch.ones(1, 4)
    with pytest.raises(ValueError, match="segment of its own"):
        bert.visible_tokens(ones, ones)


def test_a_sequence_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="25 tokens: the model takes 24"):
        build()(torch.ones(1, 25, dtype=torch.long))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("active", [[0, 1], [0, 2, 3], [3], []])
def test_only_the_active_layers_run(arch, active):
    model, batch = build(arch), sample_batch()
    found = bert.masked_lm_losses(model, batch, active)
    shallow = build(arch, layers=len(active))
    names = dict(shallow.named_parameters())
    own = dict(model.named_parameters())
    prefix = "bert.encoder.layer" if arch == "hf-bert" else "encoder.layers"
    with torch.no_grad():
        for name, parameter in names.items():
            for place, number in enumerate(active):
                if name.startswith(f"{prefix}.{place}."):
                    name = name.replace(f".{place}.", f".{number}.", 1)
                    break
            parameter.copy_(own[name])
    expected = bert.masked_lm_losses(shallow, batch)
    torch.testing.assert_close(found.logits, expected.logits)
    assert len(find_layers(model)) == 4
    found.loss_sum.backward()
    for number, layer in enumerate(find_layers(model)):
        assert all((p.grad is not None) == (number in active) for p in layer.parameters())


@pytest.mark.parametrize("arch", ARCHS)
def test_all_layers_run_unless_told_otherwise(arch):
    model, batch = build(arch), sample_batch()
    found = [bert.masked_lm_losses(model, batch, layers).logits for layers in (None, range(4))]
    torch.testing.assert_close(*found)


def test_pretraining_has_no_dropout_and_fine_tuning_has(tmp_path):
    model, batch = build().train(), sample_batch()
    found = [bert.masked_lm_losses(model, batch).logits for _ in range(2)]
    assert torch.equal(*found)
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).train()
    assert not torch.equal(*(classifier(batch["input_ids"]).logits for _ in range(2)))
    classifier.eval()
    assert torch.equal(*(classifier(batch["input_ids"]).logits for _ in range(2)))
    assert bert.masked_lm_losses(build("hf-bert").train(), batch).logits.requires_grad


def test_a_saved_model_opens_in_transformers(tmp_path):
    model, batch = build(), sample_batch()
    bert.save_model(model, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "budget-bert"
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(again) is bert.BudgetBertForMaskedLM
    assert torch.equal(again(batch["input_ids"]).logits, model(batch["input_ids"]).logits)
    assert again(**batch).loss == model(**batch).loss
    given = {"input_ids": batch["input_ids"], "token_type_ids": torch.zeros(3, 12).long()}
    assert torch.equal(again(**given).logits, model(batch["input_ids"]).logits)


def test_a_classifier_of_a_saved_model_has_a_new_head_only(tmp_path):
    model, batch = build(), sample_batch()
    model.save_pretrained(tmp_path)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    new = {f"{part}.{kind}" for part in ("pooler", "classifier") for kind in ("weight", "bias")}
    assert set(report["missing_keys"]) == new
    assert set(report["unexpected_keys"]) == {"head.weight"}
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(classifier.encoder.get_parameter(name), parameter)
    assert classifier.pooler.weight.shape == (1024, 32)
    assert classifier.pooler.weight.std().item() == pytest.approx(
        model.config.initializer_range, rel=0.05
    )
    found = classifier(batch["input_ids"], labels=torch.tensor([0, 2, 1]))
    assert found.logits.shape == (3, 3)
    assert found.loss.item() == pytest.approx(math.log(3), abs=0.3)


def test_one_label_is_a_regression(tmp_path):
    build().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    target = torch.tensor([0.5, 4.0, 2.0])
    found = model(sample_batch()["input_ids"], labels=target)
    assert found.loss.item() == pytest.approx(((found.logits[:, 0] - target) ** 2).mean().item())


def test_padding_changes_nothing_for_the_classifier(tmp_path):
    build().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).eval()
    input_ids = sample_batch()["input_ids"]
    padded = F.pad(input_ids, (0, 6), value=33)
    mask = F.pad(torch.ones_like(input_ids), (0, 6))
    found = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(found, model(input_ids).logits, rtol=1e-4, atol=1e-5)


def test_the_encoder_serves_the_other_scripts(tmp_path):
    model, batch = build(), sample_batch()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path)).eval()
    mask = torch.ones_like(batch["input_ids"])
    hidden = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden, model.encoder(batch["input_ids"]).last_hidden_state)
    freeze(encoder, "bottom:2")
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert all(name.startswith(("layers.2", "layers.3", "final_norm")) for name in trained)
    assert "final_norm.weight" in trained


def test_word_dropout_takes_the_place_of_torchs(tmp_path):
    build().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).eval()
    input_ids = sample_batch()["input_ids"]
    mask = torch.ones_like(input_ids)
    mask[1, 8:] = 0
    before = model(input_ids, attention_mask=mask).logits
    use_word_dropout(model)
    assert model.config._attn_implementation == ATTENTION
    assert not any(type(module) is torch.nn.Dropout for module in model.modules())
    torch.testing.assert_close(model(input_ids, attention_mask=mask).logits, before)
    model.train()
    changed = input_ids.clone()
    changed[1, 8:] = 44
    found = []
    for given in (input_ids, changed):
        torch.manual_seed(0)
        found.append(model(given, attention_mask=mask).logits)
    torch.testing.assert_close(*found)


def test_eager_attention_is_refused():
    with pytest.raises(ValueError, match="no eager attention"):
        bert.BudgetBertForMaskedLM(bert.BudgetBertConfig(attn_implementation="eager"))


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="bert-large: expected one of bert-tiny"):
        bert.build_masked_lm("bert-large", 100, seed=0)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_stacked_model_is_saved_as_deep_as_it_runs(arch, tmp_path):
    model, batch = build(arch), sample_batch()
    expected = bert.masked_lm_losses(model, batch, [0, 1]).logits
    bert.save_model(model, tmp_path, depth=2)
    assert model.config.num_hidden_layers == len(find_layers(model)) == 4
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == 2
    torch.testing.assert_close(bert.masked_lm_losses(again, batch).logits, expected)

    other = build(arch, seed=5)
    above = find_layers(other)[3].state_dict()
    before = {name: tensor.clone() for name, tensor in above.items()}
    assert bert.load_weights(other, tmp_path) == 2
    torch.testing.assert_close(bert.masked_lm_losses(other, batch, [0, 1]).logits, expected)
    for name, tensor in find_layers(other)[3].state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_weights_come_back(arch, tmp_path):
    model, other = build(arch), build(arch, seed=5)
    bert.save_model(model, tmp_path)
    assert bert.load_weights(other, tmp_path) == 4
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter)
    deeper = build(arch, layers=6)
    with pytest.raises(ValueError, match="does not hold this model's weights"):
        bert.load_weights(build("hf-bert" if arch == "bert-tiny" else "bert-tiny"), tmp_path)
    assert bert.load_weights(deeper, tmp_path) == 4  # its first four


def test_hf_bert_is_transformers_own(tmp_path):
    model, batch = build("hf-bert"), sample_batch()
    assert type(model) is BertForMaskedLM
    found = bert.masked_lm_losses(model, batch)
    assert found.loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    bert.save_model(model, tmp_path)
    again = BertForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(batch["input_ids"]).logits, model(batch["input_ids"]).logits)
