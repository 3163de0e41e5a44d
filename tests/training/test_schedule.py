"""The rate over a run: it rises, falls, and ends where the settings say."""

import itertools

import pytest

from mllm.training.loop import lr_scale
from mllm.training.settings import OptimizerSettings

STEPS = 200


def rates(**values):
    settings = OptimizerSettings(lr=1.0, **values)
    return [lr_scale(step, STEPS, settings) for step in range(STEPS + 1)]


@pytest.mark.parametrize("least", [0.0, 0.1, 1.0])
def test_the_rate_rises_in_a_line_and_falls_by_half_a_cosine_to_the_least(least):
    found = rates(warmup_ratio=0.1, min_lr_ratio=least)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[20] == 1.0 and found[-1] == pytest.approx(least)
    assert found[110] == pytest.approx((1 + least) / 2)
    assert all(a >= b for a, b in itertools.pairwise(found[20:]))


def test_a_constant_rate_stays_whatever_the_least_is():
    assert set(rates(warmup_ratio=0.0, schedule="constant", min_lr_ratio=0.5)) == {1.0}
