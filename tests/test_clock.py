"""The budget clock: what a budget buys, for which work, on which machine."""

import io
import json
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import core
from methods.clock import RTX_3090, BudgetClock, Costs, flops_costs, forward_flops, price
from methods.layer_drop import drop_probability, gate_generator, sample_active_layers
from methods.schedules import budget_one_cycle, budget_triangle2
from methods.stacking import depth_at

BATCH = 1536  # sequences an update: 12 micro-batches of 128


def hours(budget: float, **options) -> BudgetClock:
    return BudgetClock(budget, "rst_hours", RTX_3090, **options)


def test_the_clock_can_take_the_place_of_cores():
    mine, cores = BudgetClock(5, "steps"), core.StepClock(5)
    for _ in range(5):
        assert (mine.fraction, mine.done) == (cores.fraction, cores.done)
        mine.charge("train", 16, BATCH)
        for clock in (mine, cores):
            clock.after_update()
        mine.settle()
    assert mine.done and mine.fraction == 1 and mine.total_steps == 5


@pytest.mark.parametrize(("budget", "updates"), [(6, 7989), (12, 15978), (24, 31957)])
def test_what_a_budget_buys_the_baseline(budget, updates):
    clock = hours(budget)
    while not clock.done:
        clock.charge("train", 16, BATCH)
        clock.settle()
    assert clock.steps == updates
    assert clock.spent <= budget and clock.fraction > 0.9998


@pytest.mark.parametrize(
    ("candidates", "free", "share"),
    [
        (2 * BATCH, (), 0.55),  # RHO with 3,072, or selective backprop at beta 1
        (2 * BATCH, ("forward",), 1.0),
        (15360, (), 0.195),
    ],
)
def test_what_a_budget_buys_with_selection(candidates, free, share):
    clock = hours(6, free=free)
    while not clock.done:
        clock.charge("forward", 16, candidates)
        clock.charge("train", 16, BATCH)
        clock.settle()
    assert clock.steps / 7989 == pytest.approx(share, abs=0.005)
    assert clock.counts["forward"] == {16: clock.steps * candidates}  # counted even if free


@pytest.mark.parametrize(("free", "share"), [((), 0.952), (("curvature",), 1.0)])
def test_what_a_budget_buys_sophia(free, share):
    clock = hours(6, free=free)
    while not clock.done:
        if clock.steps % 10 == 0:
            clock.charge("curvature", 16, 768)
        clock.charge("train", 16, BATCH)
        clock.settle()
    assert clock.steps / 7989 == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(("budget", "micro_batches"), [(6, 140_469), (12, 280_938)])
def test_what_a_budget_buys_with_stacking(budget, micro_batches):
    clock = hours(budget)
    while not clock.done:
        clock.charge("train", depth_at(clock.fraction), BATCH)
        clock.settle()
    assert 12 * clock.steps == pytest.approx(micro_batches, rel=1e-3)
    assert 12 * clock.steps / (12 * 7989 * budget / 6) == pytest.approx(1.465, abs=0.003)
    assert list(clock.counts["train"]) == [4, 8, 16]


def test_a_step_with_layer_drop_takes_three_quarters_of_the_time():
    clock = hours(1)
    while not clock.done:
        p = drop_probability(clock.fraction)
        for micro_batch in range(12):
            generator = gate_generator(0, clock.steps, micro_batch)
            clock.charge("train", len(sample_active_layers(p, 16, generator)), 128)
        clock.settle()
    assert clock.steps / (7989 / 6) == pytest.approx(1 / 0.75, abs=0.03)


def test_the_typo_at_seven_layers_is_corrected():
    steps = [RTX_3090.of("train", n + 1) - RTX_3090.of("train", n) for n in range(16)]
    assert all(0.0125 < 128 * step < 0.0137 for step in steps)
    assert 128 * RTX_3090.of("train", 7) == pytest.approx(0.1052)


def test_the_published_forward_time_is_that_of_16_layers():
    assert 128 * RTX_3090.of("forward", 16) == pytest.approx(0.09285)
    assert RTX_3090.of("forward", 4) / RTX_3090.of("train", 4) == pytest.approx(0.412, abs=1e-3)


def test_between_two_entries_lies_a_line():
    costs = Costs("seconds", "test", "bert-tiny", 8, {"train": {2: 1.0, 4: 2.0, 8: 3.0}})
    assert [costs.of("train", n) for n in range(9)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0]
    )
    for layers in (9, -1):
        with pytest.raises(ValueError, match="none of train"):
            costs.of("train", layers)
    with pytest.raises(ValueError, match="none of forward"):
        costs.of("forward", 2)


@pytest.mark.parametrize(("arch", "length"), [("bert-tiny", 128), ("bert-c5", 64)])
def test_the_table_prices_its_own_model_only(arch, length):
    with pytest.raises(ValueError, match="wall-clock hours, steps or FLOPs, or calibrate"):
        RTX_3090.require(arch, length)
    RTX_3090.require("bert-c5", 128)


def test_a_finished_run_is_priced_anew():
    clock = hours(1, free=["forward"])
    draw = random.Random(0)
    total = {"3090": 0.0, "twice": 0.0}
    twice = Costs(
        *("seconds", "half as fast", "bert-c5", 128),
        {k: {n: 2 * c for n, c in t.items()} for k, t in RTX_3090.per_sequence.items()},
    )
    for _ in range(50):
        kind, layers = draw.choice(["train", "forward", "curvature"]), draw.randrange(17)
        clock.charge(kind, layers, 128)
        if kind != "forward":
            total["3090"] += 128 * RTX_3090.of(kind, layers)
            total["twice"] += 128 * twice.of(kind, layers)
    counts = json.loads(json.dumps(clock.counts))
    assert clock.spent * 3600 == pytest.approx(total["3090"])
    assert price(counts, RTX_3090, {"forward"}) == pytest.approx(total["3090"])
    assert price(counts, twice, {"forward"}) == pytest.approx(total["twice"])
    assert price(counts, RTX_3090) > total["3090"]


def test_wall_clock_hours_are_measured():
    clock = BudgetClock(0.1, "hours", free={"forward"})
    while not clock.done:
        clock.measure("train", 50.0)
        clock.measure("forward", 1000.0)
        clock.settle()
    assert clock.steps == 7  # an eighth update would end at 400 of 360 seconds
    assert clock.fraction == pytest.approx(350 / 360)


def test_a_first_update_is_made_however_small_the_budget():
    clock = BudgetClock(1.0, "flops", flops_costs("t", 2, 8, 16, 50, 4))
    assert not clock.done
    clock.charge("train", 2, 1)
    clock.settle()
    assert clock.done and clock.fraction == 1


def test_updates_that_fit_exactly_are_made():
    costs = Costs("seconds", "test", "t", 8, {"train": {3: 0.1}})
    clock = BudgetClock(10 * 0.1 * 7 / 3600, "rst_hours", costs)
    while not clock.done:
        clock.charge("train", 3, 7)
        clock.settle()
    assert clock.steps == 10


def test_a_saved_clock_continues():
    def work(clock, times):
        for _ in range(times):
            clock.charge("forward", 8, 300)
            clock.charge("train", 16 - clock.steps % 3, 128)
            clock.measure("train", 0.1)
            clock.settle()

    whole, clock, again = (hours(1, free={"forward"}) for _ in range(3))
    work(whole, 20)
    work(clock, 9)
    file = io.BytesIO()
    torch.save(clock.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    work(clock, 5)  # what was saved does not change with it
    work(again, 11)
    assert again.state_dict() == whole.state_dict()
    assert (again.fraction, again.done) == (whole.fraction, whole.done)


def test_costs_survive_a_file(tmp_path):
    RTX_3090.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == RTX_3090


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "hours"}, "unit 'hours'"),
        ({"per_sequence": {"training": {"1": 2.0}}}, "unknown kind of work"),
        ({"per_sequence": {"train": {"1": -2.0}}}, "impossible cost"),
        ({"per_sequence": {"train": {"one": 2.0}}}, "not a table of costs"),
        ({"per_sequence": [1.0]}, "not a table of costs"),
    ],
)
def test_a_damaged_file_of_costs_is_refused(tmp_path, change, message):
    path = tmp_path / "costs.json"
    RTX_3090.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Costs.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "steps"), "more than 0"),
        ((1, "days"), "unit 'days'"),
        ((1, "rst_hours"), "costs in seconds"),
        ((1, "flops", RTX_3090), "costs in flops"),
        ((1, "steps", None, {"evaluation"}), "unknown kind"),
    ],
)
def test_impossible_budgets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BudgetClock(*arguments)
    with pytest.raises(ValueError, match="unknown kind"):
        BudgetClock(1, "steps").charge("validation", 2, 1)


def test_flops_of_the_published_architecture():
    """25.95 GFLOPs a sequence: 16 layers of 5,898,240 weights, attention, the head at 19.2
    tokens. At the table's time an RTX 3090 does 44 TFLOP/s of its 71."""
    forward = forward_flops(16, 768, 3072, 32768, 128)
    by_hand = 16 * (2 * 5_898_240 * 128 + 4 * 128 * 128 * 768)
    by_hand += 2 * (768 * 768 + 768 * 32768) * 0.15 * 128
    assert forward == pytest.approx(by_hand, rel=1e-12)
    assert 3 * forward / RTX_3090.of("train", 16) == pytest.approx(44e12, rel=0.02)
    costs = flops_costs("bert-c5", 16, 768, 3072, 32768, 128)
    assert costs.of("train", 16) == costs.of("curvature", 16) == 3 * costs.of("forward", 16)
    assert costs.of("forward", 0) == pytest.approx(2 * (768**2 + 768 * 32768) * 19.2)


@pytest.mark.parametrize("arch", ["bert-tiny", "hf-bert"])
def test_flops_are_those_that_torch_counts(arch):
    """The plain kernel of attention: torch counts its products on every device."""
    from models import bert

    small = {"num_hidden_layers": 3, "hidden_size": 128, "intermediate_size": 256}
    small |= {"num_attention_heads": 2}
    model = bert.build_masked_lm(arch, 500, seed=0, **small).eval()
    input_ids = torch.randint(1, 500, (2, 32))
    labels = torch.full_like(input_ids, core.IGNORE_INDEX)
    labels[:, :8] = 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            bert.masked_lm_losses(model, {"input_ids": input_ids, "labels": labels})
    expected = forward_flops(3, 128, 256, 500, 32, 0.25, gated=arch != "hf-bert")
    assert counter.get_total_flops() == pytest.approx(2 * expected, rel=1e-9)


def test_one_cycle_starts_and_ends_at_zero():
    assert [budget_one_cycle(x) for x in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert budget_one_cycle(1.01) == 0


def test_triangle_rises_from_a_quarter_over_three_quarters():
    found = [budget_triangle2(x) for x in (0, 0.375, 0.75, 0.875, 1)]
    assert found == [0.25, 0.625, 1, 0.5, 0]
    assert budget_triangle2(1.01) == 0
