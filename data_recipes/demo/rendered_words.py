"""Rendered words as a source: reading, with renders of each word kept back in a font not trained on for that word."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_recipes.demo.backend import Backend, Kind
from data_recipes.demo.config import RenderedWordsSource
from data_recipes.demo.rendering import FONTS, render_word
from data_recipes.demo.samples import Drafted, HeldoutQuestion, SourceOutput, draft, pair_captions
from data_recipes.demo.source_base import SOURCES
from mllm.errors import UserError
from mllm.synthesis.picture import Picture, seeded_random


@dataclass
class LoadedWords:
    config: RenderedWordsSource
    train: list[Picture]
    test: list[Picture]
    asked: frozenset[str] = frozenset()
    filtered: Counter[str] = field(default_factory=Counter)

    def write(self, train: list[Picture], backend: Backend, seed: int) -> SourceOutput:
        output = SourceOutput()
        counts: dict[Kind, int] = {"caption": self.config.caption_count, "reading": self.config.reading_count}
        asked = [picture for picture in train if picture.word in self.asked]
        # Other renders than the captions' as far as there are: one that is known already teaches less.
        read = [*asked[counts["caption"] :], *asked][: counts["reading"]]
        output.captions = self._draft("caption", asked[: counts["caption"]], backend, seed)
        output.instruct = self._draft("reading", read, backend, seed)
        output.requested = Counter({str(kind): count for kind, count in counts.items()})
        output.clip_pairs = pair_captions(train[: self.config.clip_pair_count], backend, seed)
        output.heldout_clip_pairs = pair_captions(self.test, backend, seed)
        output.heldout["ocr_words"] = [
            HeldoutQuestion(d.sample.id, d.picture, d.sample.messages[0].text, d.sample.messages[1].text, "reading")
            for d in self._draft("reading", self.test, backend, seed)
        ]
        return output

    def _draft(self, kind: Kind, pictures: list[Picture], backend: Backend, seed: int) -> list[Drafted]:
        name = self.config.name
        return [
            draft(p, f"{name}-{kind}-{p.key}", kind, backend.turns(kind, p, seeded_random(seed, name, kind, p.key)))
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


@SOURCES.register("rendered_words")
def load_rendered_words(config: RenderedWordsSource, seed: int) -> LoadedWords:
    """Draw the renders of both splits, the words in turn; each word's held-out font is not among its training fonts."""
    words = read_words(config.path)
    seeded_random(seed, config.name, "order").shuffle(words)
    fonts = {word: seeded_random(seed, config.name, "font", word).choice(FONTS) for word in words}
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
