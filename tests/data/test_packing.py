"""How examples are laid out in rows."""

from hypothesis import given
from hypothesis import strategies as st

from mllm.conversation.tokenize import Tokens
from mllm.data.example import Example
from mllm.data.packing import pack

MAX_LENGTH = 64


def example(name: str, length: int, image: str | None = None) -> Example:
    """`length` tokens of which the last is learned; those of one image open alike."""
    ids = (*range(length - 1), 1000 + hash(name) % 1000)
    return Example(name, Tokens(ids, (False,) * (length - 1) + (True,), ()), (image,) if image else ())


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
