"""Rendered words: legible in whole, and never the same in training and held-out files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_recipes.demo.picture import pixel_hash
from data_recipes.demo.rendered_words import FONTS, load_rendered_words, read_words, render_word
from data_recipes.demo.settings import RenderedWordsSource
from mllm.errors import UserError
from mllm.synthesis.prompts import seeded_random

WORD_LIST = Path(__file__).parents[2] / "data_recipes" / "demo" / "words.txt"


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("word", ["fly", "jacket", "mmmmmm", "ill"])
def test_rendered_word_fits_in_the_frame_and_fills_its_width(word: str, font: str) -> None:
    for seed in range(6):
        data = render_word(word, font, 64, seeded_random(seed, word, font))
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert pixels.shape == (64, 64, 3)
        inked = (pixels != pixels[0, 0]).any(axis=2)
        assert not (inked[0].any() or inked[-1].any() or inked[:, 0].any() or inked[:, -1].any())
        columns, rows = np.flatnonzero(inked.any(axis=0)), np.flatnonzero(inked.any(axis=1))
        # A narrow word ("ill") stops growing at the height limit instead.
        assert np.ptp(columns) >= 40 or np.ptp(rows) >= 40


def test_ink_stands_out_from_the_background() -> None:
    for seed in range(60):
        data = render_word("window", "DejaVuSans-Bold", 64, seeded_random(seed, "contrast"))
        gray = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
        assert gray[0, 0] - gray.min() >= 50


def test_heldout_renders_use_a_font_their_word_is_never_trained_in(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("apple\nbus\nhen\n")
    config = RenderedWordsSource(
        kind="rendered_words",
        path=tmp_path / "words.txt",
        caption_count=3,
        reading_count=6,
        clip_pair_count=60,
        heldout_count=9,
    )
    loaded = load_rendered_words(config, seed=0)
    assert {p.word for p in loaded.train} == {p.word for p in loaded.test} == {"apple", "bus", "hen"}
    trained = {pixel_hash(p.data, p.key) for p in loaded.train}
    assert not trained & {pixel_hash(p.data, p.key) for p in loaded.test}
    fonts = {word: seeded_random(0, "words", "font", word).choice(FONTS) for word in ("apple", "bus", "hen")}
    for picture in loaded.test:
        rng = seeded_random(0, "words", *picture.key.split("-"))
        assert picture.data == render_word(picture.word, rng.choice((fonts[picture.word],)), 64, rng)
    for picture in loaded.train:
        rng = seeded_random(0, "words", *picture.key.split("-"))
        font = rng.choice([f for f in FONTS if f != fonts[picture.word]])
        assert picture.data == render_word(picture.word, font, 64, rng)


def test_the_demo_word_list_holds_words_of_three_and_four_letters() -> None:
    words = read_words(WORD_LIST)
    assert len(words) == 100 and all(3 <= len(word) <= 4 for word in words)


@pytest.mark.parametrize(
    ("text", "message"), [(b"", "no words"), (b"a\na\n", "twice"), (b"Big\n", "lower-case"), (b"caf\xe9", "UTF-8")]
)
def test_a_bad_word_list_is_refused_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        read_words(tmp_path / "words.txt")
