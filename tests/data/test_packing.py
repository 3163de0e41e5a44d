"""How examples are laid out in rows."""

from hypothesis import given
from hypothesis import strategies as st

from mllm.batch import IGNORE_INDEX
from mllm.conversation.tokenize import Tokens
from mllm.data.collate import targets_of
from mllm.data.example import Example
from mllm.data.packing import PlacedSegment, Row, _first_fit, _spread, pack, pack_bundles
from mllm.finetune.task import deal
from mllm.media.visual import WHOLE, Visual

MAX_LENGTH = 64


def example(name: str, length: int, image: str | None = None) -> Example:
    """`length` tokens of which the last is learned; those of one image open alike."""
    ids = (*range(length - 1), 1000 + hash(name) % 1000)
    return Example(name, Tokens(ids, (False,) * (length - 1) + (True,), (), ()), (image,) if image else ())


def visual(token_count: int) -> Visual:
    return Visual((WHOLE,), (1, 1, 1), token_count)


lengths = st.lists(st.integers(2, MAX_LENGTH), min_size=1, max_size=30)


@given(lengths, st.integers(1, 4), st.sampled_from(["samples", "shared_prefix"]))
def test_every_example_is_placed_once_and_no_row_is_too_long(lengths, ranks, packing):
    examples = [example(f"e{n}", length, f"image{n % 3}") for n, length in enumerate(lengths)]
    rows = pack(examples, packing, MAX_LENGTH, ranks)
    placed = [s.example.sample_id for row in rows for s in row.segments if s.stop == s.example.length]
    assert sorted(placed) == sorted(e.sample_id for e in examples)
    assert all(0 < row.length <= MAX_LENGTH for row in rows)
    for row in rows:
        for segment in row.segments:
            if segment.parent >= 0:
                assert row.segments[segment.parent].example.images == segment.example.images


def test_rows_are_of_like_length_and_come_in_full_rounds_of_ranks():
    examples = [example(f"e{n}", 16) for n in range(10)]
    assert [row.length for row in pack(examples, "samples", MAX_LENGTH, 1)] == [64, 48, 48]
    assert sorted(row.length for row in pack(examples, "samples", MAX_LENGTH, 2)) == [32, 32, 48, 48]


def test_what_only_a_tight_fit_can_hold_is_fitted_tightly():
    # Spread over two rows, longest first, one would get 32 + 21 + 21 = 74 tokens.
    examples = [example(f"e{n}", length) for n, length in enumerate((32, 32, 22, 21, 21))]
    assert [row.length for row in pack(examples, "samples", MAX_LENGTH, 1)] == [64, 64]


def scanned(lengths, max_length):
    """First fit as it is defined: every bin is looked at."""
    places, used = [], []
    for length in lengths:
        place = next((n for n, filled in enumerate(used) if filled + length <= max_length), len(used))
        used += [0] * (place == len(used))
        used[place] += length
        places.append(place)
    return places


@given(lengths, st.integers(1, 40))
def test_bins_found_by_tree_and_heap_are_those_of_looking_at_every_bin(lengths, count):
    lengths = sorted(lengths, reverse=True)
    assert _first_fit(lengths, MAX_LENGTH) == scanned(lengths, MAX_LENGTH)
    used, places = [0] * count, []
    for length in lengths:
        places.append(used.index(min(used)))
        used[places[-1]] += length
    assert _spread(lengths, count) == places


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=8), st.data())
def test_a_prefix_is_shared_as_far_as_all_tokens_agree_and_cuts_no_image(shapes, data):
    """Openings of 0 to 1 tokens, an image of 4, 0 to 3 tokens; then what is learned, up to 9 tokens longer than one."""
    examples = []
    for number, (before, after, more) in enumerate(shapes):
        ids = [7] * before + [9] * 4 + data.draw(st.lists(st.integers(1, 2), min_size=after, max_size=after))
        supervised = (False,) * len(ids) + (True,) * (1 + more)
        tokens = Tokens((*ids, *range(100, 101 + more)), supervised, ((before, 4),), (visual(4),))
        examples.append(Example(f"e{number}", tokens, ("a.png",)))
    (row,) = pack(examples, "shared_prefix", 1000, 1)
    limit = min(e.first_supervised for e in examples) - 1
    openings = [e.tokens.input_ids[:limit] for e in examples]
    agreed = next((n for n, ids in enumerate(zip(*openings, strict=True)) if len(set(ids)) > 1), limit)
    start = examples[0].image_spans[0][0]
    expected = start if start < agreed < start + 4 else agreed
    trunk = row.segments[0]
    assert (
        (trunk.stop, row.segments[-1].start) == (expected, expected) if expected else trunk.stop == examples[0].length
    )
    assert row.length == sum(e.length for e in examples) - expected * (len(examples) - 1)


@given(lengths, st.integers(1, 9), st.integers(1, 3))
def test_dealing_gives_every_row_to_one_rank_and_every_rank_as_many_micro_batches(lengths, ranks, size):
    rows = pack([example(f"e{n}", length) for n, length in enumerate(lengths)], "samples", MAX_LENGTH, ranks)
    hands = [deal(rows, rank, ranks, size) for rank in range(ranks)]
    assert len({len(hand) for hand in hands}) == 1
    dealt = [row for hand in hands for group in hand for row in group]
    fillers = [row for row in dealt if row not in rows]
    assert sorted(map(id, rows)) == sorted(id(row) for row in dealt if row in rows)
    assert all(targets_of(s) == [IGNORE_INDEX] * s.length for row in fillers for s in row.segments)


def test_a_row_that_keeps_a_rank_in_step_teaches_nothing_though_an_image_follows_an_answer():
    supervised = (False, False, True, False, False, True)
    late = Example(
        "late", Tokens((1, 9, 3, 9, 9, 4), supervised, ((1, 1), (3, 2)), (visual(1), visual(2))), ("a.png", "b.png")
    )
    (filler,) = deal([Row((PlacedSegment(late, 0, 6),))], 1, 2, 1)[0]
    assert filler.length == 2 and set(targets_of(filler.segments[0])) == {IGNORE_INDEX}
    at_once = Example("at once", Tokens((5, 6), (True, True), (), ()), ())
    (filler,) = deal([Row((PlacedSegment(at_once, 0, 2),))], 1, 2, 1)[0]
    assert filler.length == 1 and set(targets_of(filler.segments[0])) == {IGNORE_INDEX}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(3, 9), st.integers(1, 9)), min_size=1, max_size=12), st.data())
def test_a_bundle_is_never_parted_and_shares_what_it_opens_with(shapes, data):
    """Bundles of two answers of up to 9 tokens to one question of 3 to 9 about one of three images."""
    bundles = []
    for number, (image, question, answer) in enumerate(shapes):
        opening = (*range(question), 50 + number % 2)
        own = [
            Tokens(opening + (100 + n,) * answer, (False,) * len(opening) + (True,) * answer, (), ()) for n in (0, 1)
        ]
        bundles.append([Example(f"e{number}", tokens, (f"{image}.png",)) for tokens in own])
    packing = data.draw(st.sampled_from(["none", "samples", "shared_prefix"]))
    rows = pack_bundles(bundles, packing, 40, data.draw(st.integers(1, 3)))
    homes = [n for n, row in enumerate(rows) for s in row.segments if s.stop == s.example.length]
    names = [s.example.sample_id for row in rows for s in row.segments if s.stop == s.example.length]
    assert sorted(names) == sorted(2 * [f"e{n}" for n in range(len(shapes))])
    assert len(set(zip(names, homes, strict=True))) == len(shapes)
    assert all(row.length <= 40 or len({s.example.sample_id for s in row.segments}) == 1 for row in rows)
    if packing == "shared_prefix":
        apart = sum(2 * len(two[0].tokens.input_ids) - two[0].first_supervised + 1 for two in bundles)
        assert sum(row.length for row in rows) <= apart
