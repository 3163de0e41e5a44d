"""Names that training never hears, and questions for them: what is seen has to be told by what the words mean."""

import re
from collections.abc import Iterable, Sequence

from data_recipes.demo.drafts import HeldoutQuestion
from data_recipes.demo.phrases import NAMING_QUESTIONS
from data_recipes.demo.picture import Picture
from mllm.synthesis.prompts import seeded_random

OPTIONS = 4
_LONGEST_NAME_WORDS = 3


def names_in(names: Sequence[str], texts: Iterable[str]) -> list[str]:
    """Those of `names` that are a word of the texts, in the singular or plural."""
    words = {word for text in texts for word in re.findall("[a-z]+", text.lower())}
    return [name for name in names if words & _forms(name)]


def _forms(name: str) -> set[str]:
    return {name, f"{name}s", f"{name}es"} | ({name[:-1]} if name.endswith("s") else set())


def is_called(title: str, name: str) -> bool:
    """Whether a short title ends in the name, as `brown bear` does in `bear`."""
    words = title.split()
    return 0 < len(words) <= _LONGEST_NAME_WORDS and words[-1] in _forms(name)


def naming_questions(pictures: Sequence[tuple[Picture, str]], names: Sequence[str], seed: int) -> list[HeldoutQuestion]:
    """Ask for each picture's name among four, the others drawn from `names`."""
    questions = []
    for picture, name in pictures:
        rng = seeded_random(seed, picture.source, "naming", picture.key)
        options = [name, *rng.sample([other for other in names if other != name], OPTIONS - 1)]
        rng.shuffle(options)
        asked, place = rng.choice(NAMING_QUESTIONS), f"{picture.source}-{picture.key}"
        questions.append(HeldoutQuestion(place, picture, asked, name, picture.source, tuple(options)))
    return questions
