"""What a model is given fits it: no position, no token and no padding that it has not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from all_scripts import run, words_of, write_data
from conftest import WORDS
from tiny_instructions import texts as instruction_texts
from tiny_models import SIZES, bert_config, build_tiny_gpt2, build_tiny_llama, gpt2_config

from commands.opening import OpenConfig, open_causal
from models import causal, lora, pretrained

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = SIZES | {"num_hidden_layers": 1, "max_position_embeddings": 40, "vocab_size": 64}


def small(name: str, **changes) -> object:
    return getattr(transformers, f"{name}Config")(**SMALL | changes)


# configuration, tokens that it has positions for
POSITIONS = {
    "roberta": (small("Roberta"), 38),
    "roberta, padding 3": (small("Roberta", pad_token_id=3), 36),
    "roberta, padding 0": (small("Roberta", pad_token_id=0), 39),
    "xlm-roberta": (small("XLMRoberta"), 38),
    "xlm-roberta-xl": (small("XLMRobertaXL"), 38),
    "camembert": (small("Camembert"), 38),
    "xmod": (small("Xmod", languages=["en_XX"], default_language="en_XX"), 38),
    "roberta-prelayernorm": (small("RobertaPreLayerNorm"), 38),
    "data2vec-text": (small("Data2VecText"), 38),
    "longformer": (small("Longformer", attention_window=[8], pad_token_id=1), 38),
    "mpnet": (small("MPNet"), 38),
    "bert": (bert_config(max_position_embeddings=40), 40),
    "electra": (small("Electra", embedding_size=32), 40),
    "gpt2": (gpt2_config(n_positions=40), 40),
    "opt": (small("OPT", ffn_dim=64, word_embed_proj_dim=32), 40),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_the_limit_is_the_last_length_that_the_model_can_read(name):
    config, limit = POSITIONS[name]
    state = torch.get_rng_state()
    assert pretrained.max_positions(config) == limit
    assert torch.equal(state, torch.get_rng_state())  # nothing was drawn
    model = transformers.AutoModel.from_config(config).eval()

    def read(length: int) -> None:
        ids = torch.full((1, length), 7)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))

    read(limit)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        read(limit + 1)


def test_a_model_without_a_table_of_positions_has_the_limit_of_its_config():
    assert pretrained.max_positions(transformers.LlamaConfig(max_position_embeddings=99)) == 99
    assert pretrained.max_positions(transformers.BloomConfig()) is None


def edit(folder: Path, file: str, **changes: object) -> None:
    facts = json.loads((folder / file).read_text()) | changes
    facts = {name: value for name, value in facts.items() if value is not None}
    (folder / file).write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def data(tmp_path_factory, pair_csv) -> dict[str, Path]:
    return write_data(tmp_path_factory.mktemp("rows")) | {"pairs": pair_csv}


@pytest.mark.parametrize("script", ["run_5_models", "eval_bert", "finetune_gpt2"])
def test_the_first_long_row_is_read_and_one_more_token_refused(script, tiny, data, tmp_path):
    """RoBERTa with another padding index: 512 rows of its table are 508 tokens."""
    folder = tmp_path / "model"
    shutil.copytree(tiny("roberta"), folder)
    pretrained.save_weights(
        transformers.RobertaModel(
            transformers.RobertaConfig.from_pretrained(
                folder, pad_token_id=3, max_position_embeddings=44, num_hidden_layers=1
            ),
            add_pooling_layer=False,
        ),
        folder,
    )
    words = [f"--model={folder}", *words_of(script, data)]
    words = [word for word in words if not word.startswith("--max_length")]
    with pytest.raises(ValueError, match="--max_length 41: .* has 40 positions"):
        run(script, *words, "--max_length=41", f"--out={tmp_path / 'over'}")
    record = run(script, *words, "--max_length=40", f"--out={tmp_path / 'run'}")
    assert record["status"] == "finished"


# ------------------------------------------------------------------------------ padding


@pytest.fixture
def decoder(request, tmp_path) -> Path:
    """A decoder whose tokenizer was given what its weights have no embedding for."""
    build = {"gpt2": build_tiny_gpt2, "llama": build_tiny_llama}[request.param]
    texts = [*instruction_texts(), " ".join(WORDS)]
    folder = tmp_path / request.param
    build(folder, texts, **({"positions": 256} if request.param == "gpt2" else {}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    edit(folder, "config.json", pad_token_id=tokenizer.pad_token_id, max_position_embeddings=256)
    return folder


@pytest.mark.parametrize("decoder", ["gpt2", "llama"], indirect=True)
@pytest.mark.parametrize("script, more", [("finetune_gpt2", []), ("alpaca_sft", ["--lora_r=2"])])
def test_an_added_padding_token_needs_no_embedding(script, more, decoder, data, tmp_path, capsys):
    out = tmp_path / "run"
    words = [f"--model={decoder}", *words_of(script, data), *more, "--batch=16"]
    assert run(script, *words, f"--out={out}")["status"] == "finished"
    said = capsys.readouterr().out
    assert "has a [PAD] for which the model has no embedding: <|endoftext|> pads" in said
    saved = (
        pretrained.load_config(str(decoder))
        if more
        else pretrained.load_config(str(out / "train/weights/best"))
    )
    rows = causal.load_model(str(decoder), causal.load_config(str(decoder)))
    assert saved.vocab_size == rows.get_input_embeddings().num_embeddings  # the softmax as it was
    if script == "alpaca_sft":
        model, tokenizer, _ = open_causal(OpenConfig(model=str(out), device="cpu"))
        assert lora.adapters(model) and tokenizer.pad_token_id < saved.vocab_size


@pytest.mark.parametrize("decoder", ["gpt2"], indirect=True)
def test_words_that_were_added_get_embeddings_that_depend_on_the_weights_alone(
    decoder, data, tmp_path, capsys
):
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_tokens(["wibble", "wobble"])
    tokenizer.save_pretrained(decoder)
    config = causal.load_config(str(decoder))
    first, again = (
        causal.load_model(str(decoder), config, seed=seed, tokenizer=tokenizer) for seed in (1, 2)
    )
    matrix = first.get_input_embeddings().weight
    assert len(matrix) == len(tokenizer) == first.config.vocab_size
    assert torch.equal(matrix, again.get_input_embeddings().weight)
    assert first.get_output_embeddings().weight is matrix
    old = causal.load_model(str(decoder), config).get_input_embeddings().weight
    assert torch.equal(matrix[: len(old)], old)
    # an adapter on it: what is opened again is what was trained
    words = [f"--model={decoder}", *words_of("alpaca_sft", data), "--lora_r=2"]
    run("alpaca_sft", *words, f"--out={tmp_path / 'run'}")
    assert "3 tokens have no embedding in the model" in capsys.readouterr().out
    model, *_ = open_causal(OpenConfig(model=str(tmp_path / "run"), device="cpu"))
    assert torch.equal(model.get_input_embeddings().weight, matrix)


@pytest.mark.parametrize("script", ["run_5_models", "eval_bert", "finetune_gpt2"])
def test_an_encoder_whose_tokenizer_names_no_padding(script, tiny_bert, data, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    edit(folder, "tokenizer_config.json", pad_token=None, tokenizer_class="PreTrainedTokenizerFast")
    words = [f"--model={folder}", *words_of(script, data)]
    assert run(script, *words, f"--out={tmp_path / 'run'}")["status"] == "finished"
    assert "has no token for padding: [PAD] pads" in capsys.readouterr().out  # as config.json says
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/train/weights/best")
    assert saved.pad_token == "[PAD]"


def test_what_pads_is_what_the_model_knows(tiny_bert):
    def padding(pad: str | None, config: object) -> tuple[str, list[str]]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
        tokenizer.pad_token, said = pad, []
        pretrained.choose_padding(tokenizer, "x", config, said.append)
        return tokenizer.pad_token, said

    rows = bert_config(pad_token_id=None)
    assert padding("[PAD]", rows) == ("[PAD]", [])
    assert padding("[MASK]", rows) == ("[MASK]", [])  # whatever it names, if there is a row for it
    assert padding(None, bert_config(pad_token_id=1))[0] == "[UNK]"
    assert padding(None, rows)[0] == "[SEP]"
    assert padding(None, bert_config(pad_token_id=-1))[0] == "[SEP]"
    pad, said = padding(None, None)
    assert pad == "[SEP]" and said == [
        "note: the tokenizer of x has no token for padding: [SEP] pads"
    ]
