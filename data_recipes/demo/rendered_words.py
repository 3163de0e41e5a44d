"""Rendered words as a source: reading, with renders of each word kept back in a font not trained on for that word.

A word is drawn so that it fills a small square image: text to read, in many looks.
"""

import io
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from data_recipes.demo.drafts import Drafted, HeldoutQuestion, SourceOutput, draft, pair_captions
from data_recipes.demo.packages import package_folder
from data_recipes.demo.phrases import Kind, write_turns
from data_recipes.demo.picture import Picture
from data_recipes.demo.settings import RenderedWordsSource
from mllm.errors import UserError
from mllm.synthesis.prompts import seeded_random

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
)
_LIGHT_BACKGROUND_SHARE = 0.25
_FILLED_WIDTH = (0.82, 0.96)
_FILLED_HEIGHT = 0.8
_MARGIN_PX = 1


@dataclass
class LoadedWords:
    config: RenderedWordsSource
    train: list[Picture]
    test: list[Picture]
    asked: frozenset[str] = frozenset()
    filtered: Counter[str] = field(default_factory=Counter)

    def write(self, train: list[Picture], seed: int) -> SourceOutput:
        output = SourceOutput()
        counts: dict[Kind, int] = {"caption": self.config.caption_count, "reading": self.config.reading_count}
        asked = [picture for picture in train if picture.word in self.asked]
        # Other renders than the captions' as far as there are: one that is known already teaches less.
        read = [*asked[counts["caption"] :], *asked][: counts["reading"]]
        output.captions = self._draft("caption", asked[: counts["caption"]], seed)
        output.instruct = self._draft("reading", read, seed)
        output.requested = Counter({str(kind): count for kind, count in counts.items()})
        output.clip_pairs = pair_captions(train[: self.config.clip_pair_count], seed)
        output.heldout_clip_pairs = pair_captions(self.test, seed)
        output.heldout["ocr_words"] = [
            HeldoutQuestion(d.sample.id, d.picture, d.sample.messages[0].text, d.sample.messages[1].text, "reading")
            for d in self._draft("reading", self.test, seed)
        ]
        return output

    def _draft(self, kind: Kind, pictures: list[Picture], seed: int) -> list[Drafted]:
        name = self.config.name
        return [
            draft(p, f"{name}-{kind}-{p.key}", kind, write_turns(kind, p, seeded_random(seed, name, kind, p.key)))
            for p in pictures
        ]


def read_words(path: Path) -> list[str]:
    """The words of a file, one a line. Raises UserError for a missing file, a double or what isn't a-z."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a text file with one lower-case word a line")
    try:
        words = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; give a text file with one lower-case word a line") from None
    for word in words:
        if not (word.isascii() and word.isalpha() and word.islower()):
            raise UserError(f"{path}: {word!r} is not a plain lower-case word; keep one word of a-z a line")
    double = next((word for word, times in Counter(words).items() if times > 1), None)
    if double or not words:
        raise UserError(f"{path}: {f'{double!r} is listed twice' if double else 'holds no words'}")
    return words


def ordered_words(path: Path, seed: int, source: str) -> list[str]:
    """The words of a file in the order in which a source takes them; the first are asked about. Raises as `read_words`."""
    words = read_words(path)
    seeded_random(seed, source, "order").shuffle(words)
    return words


def heldout_font(word: str, seed: int, source: str) -> str:
    """The font in which a source never trains a word."""
    return seeded_random(seed, source, "font", word).choice(FONTS)


def load_rendered_words(config: RenderedWordsSource, seed: int) -> LoadedWords:
    """Draw the renders of both splits, the words in turn; each word's held-out font is not among its training fonts."""
    words = ordered_words(config.path, seed, config.name)
    fonts = {word: heldout_font(word, seed, config.name) for word in words}
    asked = words[: config.asked_words]
    train_count = max(config.caption_count, config.reading_count, config.clip_pair_count)
    loaded = LoadedWords(config, [], [], frozenset(asked))
    for index in tqdm(range(train_count), desc=config.name, unit="image", disable=None):
        word = words[index % len(words)]
        loaded.train.append(_render(word, tuple(f for f in FONTS if f != fonts[word]), config, seed, "train", index))
    for index in range(config.heldout_count):
        word = asked[index % len(asked)]
        loaded.test.append(_render(word, (fonts[word],), config, seed, "heldout", index))
    return loaded


def _render(
    word: str, fonts: tuple[str, ...], config: RenderedWordsSource, seed: int, split: str, index: int
) -> Picture:
    rng = seeded_random(seed, config.name, split, index)
    data = render_word(word, rng.choice(fonts), config.image_size_px, rng)
    return Picture(f"{split}-{index}", config.name, data, ".png", word=word)


def font_folder() -> Path:
    """The fonts that come with matplotlib, found without importing it. Raises UserError when it isn't installed."""
    folder = package_folder("matplotlib")
    if folder is None:
        raise UserError("rendering words needs the fonts of matplotlib: run `pip install matplotlib`")
    return folder / "mpl-data" / "fonts" / "ttf"


@cache
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    path = font_folder() / f"{name}.ttf"
    if not path.is_file():
        raise UserError(f"font {path} does not exist; install a current matplotlib")
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def fit_font(word: str, name: str, width_px: float, height_px: float) -> ImageFont.FreeTypeFont:
    """The largest whole font size at which the ink of `word` is no wider and no taller than given."""
    left, top, right, bottom = _font(name, 100).getbbox(word)
    size = max(1, int(100 * min(width_px / (right - left), height_px / (bottom - top))) + 1)
    while size > 1:
        left, top, right, bottom = _font(name, size).getbbox(word)
        if right - left <= width_px and bottom - top <= height_px:
            break
        size -= 1
    return _font(name, size)


def render_word(word: str, font_name: str, image_size_px: int, rng: random.Random) -> bytes:
    """PNG of `word`, [image_size_px, image_size_px, 3]: size, place and colours drawn from `rng`, all ink inside a margin."""
    background = (255, 255, 255)
    if rng.random() < _LIGHT_BACKGROUND_SHARE:
        background = (rng.randint(215, 255), rng.randint(215, 255), rng.randint(215, 255))
    font = fit_font(word, font_name, rng.uniform(*_FILLED_WIDTH) * image_size_px, _FILLED_HEIGHT * image_size_px)
    left, top, right, bottom = font.getbbox(word)
    x = rng.randint(_MARGIN_PX, max(_MARGIN_PX, int(image_size_px - _MARGIN_PX - (right - left))))
    # Kept near the middle: fitting leaves so little room sideways that freedom upwards would stand out.
    slack = int(image_size_px - (bottom - top)) // 2
    y = slack + rng.randint(-slack // 2, slack // 2)
    image = Image.new("RGB", (image_size_px, image_size_px), background)
    ImageDraw.Draw(image).text((x - left, y - top), word, font=font, fill=_ink(rng))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _ink(rng: random.Random) -> tuple[int, int, int]:
    """A dark or saturated colour, well apart from every background."""
    if rng.random() < 0.4:
        return (rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 70))
    channels = [rng.randint(0, 60), rng.randint(0, 110), rng.randint(120, 200)]
    rng.shuffle(channels)
    return (channels[0], channels[1], channels[2])
