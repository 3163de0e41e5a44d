"""Images with human titles, keywords and categories (clip art, emoji) as a source."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from data_recipes.demo.categories import CATEGORIES, CATEGORY_QUESTION, category_of
from data_recipes.demo.drafts import Drafted, HeldoutQuestion, SourceOutput, balanced, draft, pair_captions
from data_recipes.demo.facts import clean_keywords, clean_title, extent, main_color, refusal
from data_recipes.demo.heldout_names import is_called, names_in, naming_questions
from data_recipes.demo.phrases import Kind, Turn, write_turns
from data_recipes.demo.picture import Picture, decode
from data_recipes.demo.rendered_words import read_words
from data_recipes.demo.settings import CaptionedParquetSource
from mllm.errors import UserError
from mllm.synthesis.prompts import seeded_random

_COLUMNS = ("image", "title", "keywords", "category", "split")


@dataclass
class LoadedParquet:
    """`test` holds all that is never trained on: the pictures `of_split`, and those of a name that training never hears.

    names: the names of the file, none without one. named: the pictures that are called one of them, each with its own.
    """

    config: CaptionedParquetSource
    train: list[Picture] = field(default_factory=list)
    test: list[Picture] = field(default_factory=list)
    of_split: list[Picture] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    named: list[tuple[Picture, str]] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)

    def write(self, train: list[Picture], seed: int) -> SourceOutput:
        output = SourceOutput()
        counts: dict[Kind, int] = {
            "caption": self.config.caption_count,
            "naming": self.config.naming_count,
            "category": self.config.category_count,
            "description": self.config.description_count,
            "conversation": self.config.conversation_count,
        }
        for kind, count in counts.items():
            drafted = self._draft_kind(kind, count, train, seed)
            (output.captions if kind == "caption" else output.instruct).extend(drafted)
        output.instruct += self._draft_yes_no(train, seed)
        output.requested = Counter({str(kind): count for kind, count in counts.items()})
        output.requested["yes_no"] = self.config.yes_no_count
        output.clip_pairs = pair_captions(train, seed)
        output.heldout_clip_pairs = pair_captions(self.of_split, seed)
        if self.named:
            output.heldout["naming"] = naming_questions(self.named, self.names, seed)
        if self.config.writes_heldout_questions:
            output.heldout[self.config.name] = [
                HeldoutQuestion(f"{p.source}-{p.key}", p, CATEGORY_QUESTION, p.category, "category")
                for p in self.of_split
                if p.category
            ]
        return output

    def _draft_kind(self, kind: Kind, count: int, train: list[Picture], seed: int) -> list[Drafted]:
        name = self.config.name
        rng = seeded_random(seed, name, kind)
        pictures = sorted(train, key=lambda p: p.key)
        rng.shuffle(pictures)
        if kind == "category":
            pictures = _alternate_categories(pictures)
        drafted: list[Drafted] = []
        for picture in pictures:
            if len(drafted) >= count:
                break
            turns = write_turns(kind, picture, rng)
            if turns:
                drafted.append(draft(picture, f"{name}-{kind}-{picture.key}", kind, turns))
        return drafted

    def _draft_yes_no(self, train: list[Picture], seed: int) -> list[Drafted]:
        name = self.config.name
        candidates = [
            (question, p.category == asked, p)
            for p in train
            for asked, entry in CATEGORIES.items()
            if is_clear(p, asked)
            for question in entry.questions
        ]
        chosen = balanced(candidates, self.config.yes_no_count, seeded_random(seed, name, "yes_no"))
        return [
            draft(p, f"{name}-yes_no-{index}", "yes_no", [Turn(text, "yes" if is_yes else "no", "identity")])
            for index, (text, is_yes, p) in enumerate(chosen)
        ]


def is_clear(picture: Picture, asked: str) -> bool:
    """Whether "is this of the category `asked`?" has one right answer for the picture."""
    if picture.category is None or picture.category == asked:
        return picture.category == asked
    words = set(picture.title.split()) | {word for keyword in picture.keywords for word in keyword.split()}
    return picture.category not in CATEGORIES[asked].unclear and not words & set(CATEGORIES[asked].words)


def _alternate_categories(pictures: list[Picture]) -> list[Picture]:
    """The pictures that have a category, one of each category in turn, so that any first part is about even."""
    by_category: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.category:
            by_category[picture.category].append(picture)
    numbered = [(rank, category) for category in sorted(by_category) for rank in range(len(by_category[category]))]
    return [by_category[category][rank] for rank, category in sorted(numbered)]


def load_captioned_parquet(config: CaptionedParquetSource, seed: int) -> LoadedParquet:
    """Read the rows of both splits. Raises UserError when file, columns, splits or an image are not as needed."""
    rows = _read_rows(config.path)
    splits = {row["split"] for row in rows}
    for split in (config.split, config.heldout_split):
        if split not in splits:
            raise UserError(f"{config.path} has no rows with split {split!r}; it has {', '.join(sorted(splits))}")
    titles = Counter(clean_title(row["title"] or "") for row in rows)
    loaded = LoadedParquet(config, names=read_words(config.heldout_words) if config.heldout_words else [])
    for row in tqdm(rows, desc=config.name, unit="image", disable=None):
        if row["split"] in (config.split, config.heldout_split):
            _add(loaded, row, titles)
    return loaded


def _add(loaded: LoadedParquet, row: dict[str, Any], titles: Counter[str]) -> None:
    """Put the picture of a row where it belongs. One of two of the names is asked about neither, and not trained on."""
    config = loaded.config
    of_split = row["split"] == config.heldout_split
    names = names_in(loaded.names, [clean_title(row["title"] or ""), *(row["keywords"] or [])])
    trains = not of_split and not names
    picture = _picture(row, config, titles, loaded.filtered if trains else Counter())
    if trains:
        loaded.train.append(picture)
        return
    loaded.test.append(picture)
    if of_split:
        loaded.of_split.append(picture)
    else:
        loaded.filtered["heldout_name"] += 1
    if len(names) == 1 and is_called(picture.title, names[0]):
        loaded.named.append((picture, names[0]))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a Parquet file of captioned images")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise UserError(f"{path}: missing column(s) {', '.join(missing)}; it has {', '.join(table.column_names)}")
    rows = table.select(list(_COLUMNS)).to_pylist()
    for number, row in enumerate(rows):
        _check_row(row, f"{path}, row {number}")
    return rows


def _check_row(row: dict[str, Any], place: str) -> None:
    image = row["image"]
    if not (isinstance(image, dict) and isinstance(image.get("bytes"), bytes) and isinstance(image.get("path"), str)):
        raise UserError(f"{place}: `image` doesn't hold {{bytes, path}}, as the Hub's images do")
    wrong = [name for name in ("title", "category") if not isinstance(row[name] or "", str)]
    wrong += [] if isinstance(row["split"], str) else ["split"]
    keywords = row["keywords"] or []
    wrong += [] if isinstance(keywords, list) and all(isinstance(word, str) for word in keywords) else ["keywords"]
    if wrong:
        raise UserError(f"{place}: `{wrong[0]}` isn't {'a list of texts' if wrong[0] == 'keywords' else 'text'}")


def _picture(
    row: dict[str, Any], config: CaptionedParquetSource, titles: Counter[str], filtered: Counter[str]
) -> Picture:
    """The picture of a row; a refused title is counted and left empty, the category remains usable."""
    data = row["image"]["bytes"]
    key = f"{Path(row['image']['path']).stem}-{hashlib.sha1(data).hexdigest()[:8]}"
    image = decode(data, f"{config.path}, image {row['image']['path']}")
    title = clean_title(row["title"] or "")
    reason = refusal(title, config.max_title_characters, titles[title], config.max_pictures_per_title)
    if reason:
        filtered[reason] += 1
    keywords = clean_keywords(row["keywords"] or [], title)
    category = category_of(row["category"] or "", keywords)
    if category == "flags" and "flag" not in title.split():
        title = f"{title} flag"
    return Picture(
        key,
        config.name,
        data,
        Path(row["image"]["path"]).suffix or ".webp",
        title="" if reason else title,
        keywords=keywords,
        category=category,
        color=main_color(image),
        extent=extent(image),
    )
