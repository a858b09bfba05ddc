"""Every method of every script, and what else computes on a device, on a GPU that is not there.

python -m pytest -x tests/long/test_stand_in_methods.py
"""

import pytest
from systems import DROPS, METHODS, REFUSED
from test_glue import write_task
from test_stand_in import SCORING, observe

NAMES = ["preference", "glue", "gpt2", "gpt2 lm", "headlines", "alpaca", "bert"]
FEW = {"bert": ["--epochs=0.15"]}


def words_of(name: str, method: str) -> list[str]:
    drops = DROPS.get(name, []) if method == "R-Drop" else []
    few = [] if "budget" in method else FEW.get(name, [])
    return [name, *few, *METHODS[method], *drops]


METHOD_RUNS = {
    f"{name}, {method}": words_of(name, method)
    for method in METHODS
    for name in NAMES
    if (name, method) not in REFUSED and method != "RHO-loss"
}
RHO = ["--selection.name=rho_loss", "--selection.mega_batch=20"]
RHO += ["--selection.il_losses=RUNS/losses"]
OTHERS = {
    "preference": ["preference", "--freeze=bottom:2", "--features=true", "--swap=both"],
    "frozen": ["preference", "--freeze=all", "--pooling=mean"],
    "alpaca": ["alpaca", "--packing=false", "--lora_r=2"],
    "by turns": ["gpt2", "--head_epochs=1"],
    "il": ["bert", *FEW["bert"], "--validation.il_model=true"],
    "extract": [
        *("pretrain_bert.py", "extract_il_losses", "--run_folder=RUNS/il"),
        *("--output=RUNS/losses", "--device=cuda"),
    ],
    "RHO-loss": ["bert", *FEW["bert"], *RHO],
    "stacking": ["bert", *FEW["bert"], "--stacking.enabled=true", "--stacking.initial_layers=1"],
    "layer drop": ["bert", *FEW["bert"], "--layer_drop.enabled=true"],
    "answers": [
        *("alpaca_sft.py", "generate", "--model=RUNS/alpaca", "--instruction=Name a film"),
        *("--device=cuda", "--max_new_tokens=4"),
    ],
    "copa": ["glue", "--suite=copa", "--data=RUNS/../superglue"],
    "wic": ["glue", "--suite=wic", "--data=RUNS/../superglue", "--precision=fp16"],
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("methods")
    for task in ("copa", "wic"):
        write_task(folder, task)
    return observe(folder, {**METHOD_RUNS, **OTHERS}, 3000)


@pytest.mark.parametrize("name", [*METHOD_RUNS, *OTHERS])
def test_it_ends_and_waits_for_its_two_vectors(seen, name):
    run = seen[name]
    assert not run["error"], run["error"]
    for waits in run["steps"]:
        scoring = sum(number for place, number in waits.items() if SCORING in place)
        estimate = 2 if "sophia" in name else 0
        assert sum(waits.values()) - scoring <= 2 + estimate, waits
