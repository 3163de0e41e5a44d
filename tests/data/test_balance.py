"""Rows and ranks are alike in tokens and in tiles, and as they were where an image is one tile."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.conversation.tokenize import Tokens
from mllm.data import packing as packing_module
from mllm.data.balance import exchanged
from mllm.data.example import Example
from mllm.data.packing import pack
from mllm.finetune import task as task_module
from mllm.finetune.task import deal
from mllm.media.planner import ClipPlan, Planner
from mllm.media.tilings import TILINGS, TilingRule
from mllm.media.visual import Clip, ImageGeometry

RANKS, MAX_LENGTH = 4, 8192
GEOMETRY = ImageGeometry(336, 14)
PINPOINTS = tuple((336 * rows, 336 * columns) for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
SIDES = (240, 336, 480, 640, 1024, 1600)


def planner(tiling):
    numbers = TilingRule(PINPOINTS if tiling == "anyres" else ())
    return Planner(GEOMETRY, TILINGS.get(tiling)(GEOMETRY, numbers), ClipPlan(GEOMETRY, pooling="average"))


def conversations(tiling, count=96, seed=0):
    """Of ten, seven show an image of some size, one two to four images, one a video of eight frames, and one nothing."""
    rng, plan = random.Random(seed), planner(tiling).plan
    found = []
    for number in range(count):
        shown = [0, 1, 1, 1, 1, 1, 1, 1, rng.randint(2, 4), -1][number % 10]
        media = [(rng.choice(SIDES), rng.choice(SIDES)) for _ in range(shown)]
        visuals = plan(media if shown >= 0 else [Clip(360, 640, tuple(n / 25 for n in range(200)))])
        ids, spans = [1] * 10, []
        for visual in visuals:
            spans.append((len(ids), visual.token_count))
            ids += [0] * visual.token_count
        words = 20 + int(rng.lognormvariate(5, 0.7))
        supervised = (False,) * (len(ids) + 10) + (True,) * words
        tokens = Tokens((*ids, *[2] * (10 + words)), supervised, tuple(spans), visuals)
        images = tuple(f"{number}/{n}.png" for n in range(len(visuals)))
        found.append(Example(f"s{number}", tokens, images))
    return [example for example in found if example.length <= MAX_LENGTH]


def over_mean(loads):
    """How far the heaviest lies above the mean, as a share of it."""
    return max(loads) * len(loads) / sum(loads) - 1


def hands_of(examples, packing, tile_cost=20):
    rows = pack(examples, packing, MAX_LENGTH, RANKS, tile_cost)
    return [[row for group in deal(rows, rank, RANKS, 1, tile_cost) for row in group] for rank in range(RANKS)]


def imbalance(hands):
    """Of the ranks' tokens and of their tiles."""
    return [over_mean([sum(getattr(row, name) for row in hand) for hand in hands]) for name in ("length", "tiles")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("packing", ["none", "samples", "shared_prefix"])
@pytest.mark.parametrize("tiling", ["anyres", "grid"])
def test_four_ranks_carry_like_loads_of_tokens_and_of_tiles(tiling, packing, seed):
    tokens, tiles = imbalance(hands_of(conversations(tiling, seed=seed), packing))
    assert tokens <= 0.05 and tiles <= 0.10


def test_tokens_alone_would_leave_ranks_with_unlike_numbers_of_tiles(monkeypatch):
    examples = conversations("anyres", seed=2)
    ours = imbalance(hands_of(examples, "samples"))[1]
    for module in (packing_module, task_module):
        monkeypatch.setattr(module, "exchanged", lambda loads, places, *_, **__: [*places])
    assert ours < 0.05 and imbalance(hands_of(examples, "samples"))[1] > 0.10


def test_where_rows_are_too_few_no_exchange_can_even_them_out():
    """Four rows on four ranks, one of them a video of many frames: a row is never cut."""
    examples = conversations("grid", count=4)
    assert imbalance(hands_of(examples, "none"))[1] > 0.10


@pytest.mark.parametrize("packing", ["none", "samples", "shared_prefix"])
def test_images_of_one_tile_are_laid_out_by_tokens_alone(packing, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("tiles are no load of their own")

    for module in (packing_module, task_module):
        monkeypatch.setattr(module, "exchanged", refuse)
    examples = [e for e in conversations("square") if all(count == 1 for count in e.tile_counts)]
    assert any(e.images for e in examples) and hands_of(examples, packing)


LOADS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=24)


@given(LOADS, st.integers(1, 5), st.integers(1, 50), st.data())
def test_an_exchange_evens_out_keeps_rounds_and_never_fills_a_row_beyond_its_limit(loads, bins, tile_cost, data):
    places = [n % bins for n in range(len(loads))]
    rounds = [n // bins for n in range(len(loads))] if data.draw(st.booleans()) else []
    limit = max(sum(loads[n][0] for n in range(len(loads)) if places[n] == b) for b in range(bins))
    moved = exchanged(loads, places, tile_cost, limit, rounds)

    def filled(places):
        return np.array(
            [[sum(loads[n][d] for n, p in enumerate(places) if p == b) for d in (0, 1)] for b in range(bins)]
        )

    tokens, tiles = np.sum(loads, axis=0)

    def unevenness(places):
        return int((filled(places) ** 2 @ np.array([tiles, tile_cost * tokens])).sum())

    assert unevenness(moved) <= unevenness(places) and filled(moved)[:, 0].max() <= limit
    seats = rounds or [0] * len(loads)
    assert sorted(zip(seats, moved, strict=True)) == sorted(zip(seats, places, strict=True))
    assert moved == exchanged(loads, places, tile_cost, limit, rounds)
