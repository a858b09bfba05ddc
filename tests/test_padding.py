"""What a row gets does not depend on the padding behind it, in any encoder that is trained."""

import pytest
import torch
from systems import build_systems

from models import pretrained

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 32, "initializer_range": 0.2}
SHAPES = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 5},
    "convbert": SMALL | {"embedding_size": 16},
    "fnet": SMALL,
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "vocab_size": 400},
}


def build(kind: str, head: bool) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    torch.manual_seed(0)
    builder = AutoModelForSequenceClassification if head else AutoModel
    return builder.from_config(AutoConfig.for_model(kind, **SHAPES[kind]))


@pytest.mark.parametrize(
    "kind, head, found",
    [
        *((kind, head, "") for kind in ("bert", "roberta") for head in (0, 1)),
        ("convbert", 0, "said"),
        ("convbert", 1, "said"),
        ("fnet", 0, "refused"),
        ("xlnet", 0, ""),  # its states are right, its head reads the last one
        ("xlnet", 1, "refused"),
    ],
)
def test_an_encoder_that_reads_padding_is_known(kind, head, found):
    model, said = build(kind, head).train(), []
    pad = model.config.pad_token_id
    if found == "refused":
        with pytest.raises(ValueError, match=f"{kind} reads padding"):
            pretrained.check_padding(model, pad, said.append)
    else:
        pretrained.check_padding(model, pad, said.append)
    assert bool(said) == (found == "said") and model.training


@pytest.mark.parametrize("name", ["preference", "glue", "gpt2"])
def test_every_script_looks(name, tmp_path, tiny_bert, cache_folder):
    build("fnet", False).save_pretrained(tmp_path / "fnet")
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    tokenizer.save_pretrained(tmp_path / "fnet")
    with pytest.raises(ValueError, match="fnet reads padding"):
        build_systems(tmp_path)[name].train(tmp_path / "run", f"--model={tmp_path / 'fnet'}")
