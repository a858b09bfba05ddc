"""bench.py: every comparison can be run, and a ratio without equal losses is void."""

import importlib
import json

import pytest

import bench
import benchmarks
from benchmarks import Line, Measured, _peak, _tables

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", bench.COMPARISONS)
def test_every_comparison_has_two_sides_or_does_it_all(name):
    comparison = importlib.import_module(f"benchmarks.{name}")
    assert f"python bench.py {name}" in comparison.__doc__
    assert hasattr(comparison, "run") or (callable(comparison.ours) and callable(comparison.peer))
    for peer in getattr(comparison, "PEERS", {}):
        assert bench.parse([name, f"--peer={peer}"]).peer == peer


def test_the_plan_has_every_comparison_of_speed_and_each_can_be_parsed():
    planned = {bench.parse(text.split()).comparison for text in bench.PLAN}
    assert planned == set(bench.COMPARISONS) - {"glue", "lightning_twin"}  # not of speed alone


def pair(ours: float, peer: float, losses=(2.0, 2.0)) -> dict:
    sides = zip(("ours", "peer"), (ours, peer), losses, strict=True)
    return {
        side: {"tokens_per_second": rate, "loss": loss, "peak_memory_gib": 1 + (side == "peer")}
        for side, rate, loss in sides
    }


def test_a_summary_is_the_median_of_neighbours():
    pairs = [pair(10, 10), pair(30, 10), pair(40, 20)]
    line = bench.summary(bench.parse(["mlm"]), pairs)
    start = "masked-language-model pretraining: 2.00 times the tokens per second (1.00 to 3.00 in 3"
    assert str(line).startswith(start) and not line.void
    assert "0.50 times the peak memory" in str(line)
    line = bench.summary(bench.parse(["mlm"]), [pair(10, 10, (2.0, 2.2))])
    assert str(line).startswith("VOID, the losses do not agree") and line.void
    assert bench.summary(bench.parse(["mlm"]), [pair(10, 10, (2.0, float("nan")))]).void


def test_of_seconds_less_is_better():
    pairs = [{"ours": {"seconds": 4.0}, "peer": {"seconds": 10.0}}]
    for figures in pairs[0].values():
        figures |= {"loss": 1.0, "peak_memory_gib": 1.0}
    line = bench.summary(bench.parse(["startup"]), pairs)
    assert line.median == 2.5 and "4.00 s against 10.00 s" in str(line)


def test_a_side_is_told_what_the_comparison_was_told():
    words = "preference --peer lightning --steps 7 --precision bf16 --data rows.csv"
    words += " --threads 1 --width 64 --eager"
    arguments = bench.parse(words.split())
    told = bench.parse(benchmarks.side_words("peer", arguments, "folder"))
    differ = {n for n in vars(told) if getattr(told, n) != getattr(arguments, n)}
    assert differ == {"side", "folder"}


def test_glue_asks_each_side_for_each_seed(monkeypatch, tmp_path):
    import eval_bert
    from benchmarks import glue
    from settings import parse_settings

    calls = []
    monkeypatch.setattr(glue, "call", lambda threads, *words: calls.append((threads, *words)))
    monkeypatch.chdir(tmp_path)
    words = "glue --data glue --tasks rte,cola --epochs 2 --precision bf16 --threads 1 --repeats 2"
    glue.run(bench.parse(words.split()))
    assert {threads for threads, *_ in calls} == {1} and len(calls) == 2 * (2 * 2 + 1)
    for _, script, *words in calls[5:]:  # of CoLA
        if script == "report.py":
            assert words == [
                "compare",
                "results/bench/glue/cola/peer",
                "results/bench/glue/cola/ours",
            ]
            continue
        if script == "bench.py":
            told = bench.parse(words)
            seed, folder = told.seed, str(told.folder)
            assert (told.side, told.tasks) == ("peer", "cola") and folder.endswith(
                f"peer/seed_{seed}"
            )
            words = glue.settings(told, told.tasks)
        config, _ = parse_settings(eval_bert.Config, words, "eval_bert.py")
        assert (config.suite, config.precision, config.epochs, config.data) == (
            "cola",
            "bf16",
            2,
            "glue",
        )
        if script == "eval_bert.py":
            seed = config.seed
            assert config.out == f"results/bench/glue/cola/ours/seed_{seed}"
        assert config.seed == seed and seed in (0, 1)


@pytest.mark.parametrize("words", (["mlm", "--peer=lightning"], ["mlm", "--markdown=table.md"]))
def test_what_cannot_be_done_is_said(words, capsys):
    with pytest.raises(SystemExit):
        bench.parse(words)
    assert ("it has one peer" in capsys.readouterr().err) == ("lightning" in words[1])


def test_rates_leave_the_warm_up_out(tmp_path):
    (tmp_path / "train/metrics").mkdir(parents=True)
    lines = [
        {"step": s, "train_loss": float(s), "seconds": 10.0 * (s <= 3) + s, "tokens": 5 * s}
        for s in range(1, 9)
    ]
    lines = [line | {"examples": line["step"]} for line in lines] + [{"step": 8, "val_loss": 1}]
    lines[2]["seconds"] = 3.0  # where the counted steps begin
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "train/metrics/metrics.jsonl").write_text(text)
    rates = benchmarks.rates_of_run(tmp_path)
    assert rates == {"tokens_per_second": 5.0, "examples_per_second": 1.0, "loss": 6.0}


def test_the_operations_of_a_step_are_those_of_its_matrix_products():
    import torch

    linear = torch.nn.Linear(16, 32, bias=False)
    heads = torch.randn(2, 3, 8, 4, requires_grad=True)  # (batch, heads, seq, size)
    with _peak.flop_counter() as counter:
        linear(torch.randn(10, 16)).sum().backward()
        forward = 2 * 10 * 16 * 32  # and as much for the weights' gradient; the rows need none
        assert counter.get_total_flops() == 2 * forward
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).sum().backward()
    product = 2 * 2 * 3 * 8 * 8 * 4
    # two products forward; backward the scores again and four gradients
    assert counter.get_total_flops() == 2 * forward + 7 * product


def in_this_process(tmp_path_factory):
    """run_side without its process."""

    def run_side(side, arguments):
        folder = tmp_path_factory.mktemp(side)
        told = bench.parse(benchmarks.side_words(side, arguments, str(folder)))
        return bench.measure(told)

    return run_side


def test_no_setting_of_a_side_is_idle():
    """On reviews no row can be bad; what is given and not read ends a run."""
    for comparison in ("preference", "startup"):
        asked = bench.parse([comparison, "--folder=f"])
        words = importlib.import_module(f"benchmarks.{comparison}").words(asked)
        assert "--data=reviews" in words and "--skip_bad_rows=true" not in words
        words = importlib.import_module(f"benchmarks.{comparison}").words(
            bench.parse([comparison, "--folder=f", "--data=rows.csv"])
        )
        assert "--data=rows.csv" in words and "--skip_bad_rows=true" in words


@pytest.mark.parametrize(
    "name", ["preference", "startup", "tokenising", "checkpoints", "scaling", "frozen"]
)
def test_quick_comparisons_run_to_their_end(
    name, tiny_bert, pair_csv, tmp_path_factory, tmp_path, monkeypatch
):
    """With the peers that the extra dev installs; no speed is asserted."""
    comparison = importlib.import_module(f"benchmarks.{name}")
    for variable in ("ABLATE_CACHE", "HF_DATASETS_CACHE"):  # sides set them for their processes
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    run_side = in_this_process(tmp_path_factory)
    monkeypatch.setattr(bench, "run_side", run_side)
    monkeypatch.setattr(comparison, "run_side", run_side, raising=False)
    files = [f"--{kind}={tmp_path / kind}" for kind in ("output", "markdown")]
    words = [name, "--quick", f"--model={tiny_bert}", f"--data={pair_csv}", "--threads=1"]
    if name == "frozen":  # its own processes are left to tests/long
        folder = tmp_path_factory.mktemp("peer")
        figures = bench.measure(bench.parse([*words, "--side=peer", f"--folder={folder}"]))
        assert 0.5 < figures["loss"] < 2
        return
    bench.main([*words, *files])
    (measured,) = json.loads((tmp_path / "output").read_text()).values()
    assert measured["versions"]["torch"] and measured["runs"]
    if name == "preference":
        assert 0 < measured["lines"][0]["share_of_peak"] < 2
    for line in measured["lines"]:
        assert not Line(**line).void
    for table in measured["tables"].values():
        assert len(table) == 2
    assert f"\npython bench.py {name}" in (tmp_path / "markdown").read_text() or name == "scaling"


def test_output_collects_comparisons_and_shows_them(tmp_path):
    output = tmp_path / "bench.json"
    line = Line("entry", "peer", "speed", [2.0, 3.0], 0.5, (1.0, 1.0), share_of_peak=0.5)
    bench.keep(output, ["mlm", "--output", str(output)], Measured([line]))
    bench.keep(output, ["sft", f"--output={output}", "--steps", "3"], Measured([line]))
    bench.keep(output, ["mlm", "--output", str(output)], Measured([line, line]))
    tables = {"growth": [{"rows": 1000, "seconds": 1.5}]}
    bench.keep(output, ["scaling"], Measured(tables=tables))
    measured = json.loads(output.read_text())
    named = [f"python bench.py {words}" for words in ("mlm", "sft --steps 3", "scaling")]
    assert list(measured) == named
    text = _tables.markdown(measured)
    assert "2.50 × speed [2.00, 3.00], 2 pairs" in text and text.count("| entry ") == 3
    assert "1,000" in text and "50%" in text
    bench.main(["table", f"--output={output}", f"--picture={tmp_path / 'bench.png'}"])
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_says_data_precision_and_width():
    line = {"what": "titles", "peer": "a loop", "unit": "speed", "ratios": [1.5]}
    command = "python bench.py headlines --data a/titles.txt --width 64 --precision bf16"
    [(told, shown)] = _tables.lines_of({command: {"lines": [line], "tables": {}}})
    assert told == command and shown.what == "titles (titles, bf16, width 64)"
    [(_, shown)] = _tables.lines_of({f"{command} --eager": {"lines": [line], "tables": {}}})
    assert shown.what == "titles (titles, bf16, width 64, not compiled)"
