"""Layer drop: how often which layer is dropped, and that every process draws the same."""

import math

import pytest
import torch

from methods.layer_drop import (
    drop_probability,
    expected_layers,
    gate_generator,
    layer_probabilities,
    sample_active_layers,
)


def test_the_drop_probability_rises_from_zero_to_one_minus_theta():
    for fraction in (0.0, 0.01, 0.05, 0.3, 1.0):
        as_published = 1 - (0.5 + 0.5 * math.exp(-100 * fraction))
        assert drop_probability(fraction) == pytest.approx(as_published, abs=1e-15)
    assert drop_probability(0) == 0
    assert drop_probability(0.05) > 0.99 * 0.5
    assert drop_probability(1, theta=0.8, gamma=20) == pytest.approx(0.2)


def test_upper_layers_are_dropped_more_often():
    found = layer_probabilities(0.4, 4)
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_layers", [1, 4, 12, 16])
def test_expected_layers(p, num_layers):
    exact = (1 - layer_probabilities(p, num_layers)).sum().item()
    assert expected_layers(p, num_layers) == pytest.approx(exact)
    if p == 0.5:
        assert expected_layers(p, num_layers) == (3 * num_layers - 1) / 4


def test_gates_drop_at_their_rates_and_independently():
    draws = 20_000
    kept = torch.zeros(draws, 16)
    for number in range(draws):  # as a run draws them: 12 micro-batches a step
        generator = gate_generator(0, *divmod(number, 12))
        kept[number, sample_active_layers(0.5, 16, generator)] = 1
    rates = 1 - layer_probabilities(0.5, 16)
    deviation = (rates * (1 - rates) / draws).sqrt()
    assert ((kept.double().mean(0) - rates).abs() < 5 * deviation).all()
    assert kept.sum(1).mean().item() == pytest.approx(11.75, abs=0.05)
    correlation = torch.corrcoef(kept.t()) - torch.eye(16)
    assert correlation.abs().max() < 5 / math.sqrt(draws)


def test_nothing_is_dropped_at_the_start_and_all_may_be():
    assert sample_active_layers(0.0, 5, gate_generator(0, 0, 0)) == [0, 1, 2, 3, 4]
    found = [sample_active_layers(1.0, 1, gate_generator(0, 0, index)) for index in range(20)]
    assert found == [[]] * 20


def test_gates_depend_on_seed_step_and_micro_batch_alone():
    """A process that draws the gates of one micro-batch only, or in another order, agrees."""

    def draw(seed, step, micro_batch):
        return sample_active_layers(0.5, 16, gate_generator(seed, step, micro_batch))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    alone = [draw(3, 40, index) for index in range(12)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    of_two = {index: draw(3, 40, index) for index in (*range(1, 12, 2), *range(0, 12, 2))}
    assert [of_two[index] for index in range(12)] == alone
    assert len({tuple(layers) for layers in alone}) > 6
    assert draw(3, 41, 0) != alone[0] and draw(4, 40, 0) != alone[0]
    assert all(layers == sorted(layers) for layers in alone)
