"""Fixed phrases filled with the facts of a picture: its questions and answers, and its captions."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data_recipes.demo.categories import CATEGORY_QUESTION
from data_recipes.demo.picture import Picture

CAPTION_QUESTION = "Describe the image."
NAMING_QUESTIONS = ("What is this?", "What does the picture show?", "What can you see here?", "Name what is shown.")
DESCRIPTION_QUESTIONS = ("Describe the picture in a few words.", "Say more about this picture.")
READING_QUESTIONS = ("What word is written here?", "Read the word in the image.", "Which word does the image show?")
MAIN_COLOR_QUESTIONS = ("What is the main color of the drawing?", "Which color is used most?")
EXTENT_QUESTION = "Is the drawing wider than tall or taller than wide?"
_KEYWORDS_IN_ANSWER = 3
Kind = Literal["caption", "naming", "category", "description", "conversation", "reading"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer. Answers of one `facet` may imply each other, those of different facets don't."""

    question: str
    answer: str
    facet: str


def write_turns(kind: Kind, picture: Picture, rng: random.Random) -> list[Turn]:
    """Return the turns of one sample in one of several phrasings; none when the picture's facts don't suffice.

    What the turns state is in the facts and nowhere else.
    """
    writers: dict[Kind, Callable[[Picture, random.Random], list[Turn]]] = {
        "caption": _caption_turn,
        "naming": _naming_turn,
        "category": _category_turn,
        "description": _description_turn,
        "conversation": _conversation_turns,
        "reading": _reading_turn,
    }
    return writers[kind](picture, rng)


def clip_captions(picture: Picture, rng: random.Random) -> list[str]:
    """Return short captions for contrastive training; none when the picture's facts don't suffice."""
    if picture.shape and picture.color:
        # Alone, the shape can't hide behind the color, which is so much easier to tell apart.
        return [f"a {picture.color} {picture.shape}", f"a {picture.shape}"]
    if picture.word:
        return [f"the word {picture.word}"]
    if not picture.title:
        return [picture.category] if picture.category else []
    keywords = _draw_keywords(picture, rng)
    captions = [", ".join([picture.title, *keywords])]
    if picture.category:
        captions.append(f"{picture.title}, {picture.category}")
    return list(dict.fromkeys(captions))


def _caption_turn(picture: Picture, rng: random.Random) -> list[Turn]:
    if picture.shape and picture.color:
        caption = f"a {picture.color} {picture.shape}"
    elif picture.word:
        caption = f'the word "{picture.word}"'
    else:
        caption = picture.title
    return [Turn(CAPTION_QUESTION, caption, "identity")] if caption else []


def _naming_turn(picture: Picture, rng: random.Random) -> list[Turn]:
    return [Turn(rng.choice(NAMING_QUESTIONS), picture.title, "identity")] if picture.title else []


def _category_turn(picture: Picture, rng: random.Random) -> list[Turn]:
    return [Turn(CATEGORY_QUESTION, picture.category, "identity")] if picture.category else []


def _description_turn(picture: Picture, rng: random.Random) -> list[Turn]:
    keywords = _draw_keywords(picture, rng)
    if not (picture.title and keywords):
        return []
    return [Turn(rng.choice(DESCRIPTION_QUESTIONS), f"{picture.title}, about {' and '.join(keywords)}", "identity")]


def _reading_turn(picture: Picture, rng: random.Random) -> list[Turn]:
    return [Turn(rng.choice(READING_QUESTIONS), picture.word, "identity")] if picture.word else []


def _conversation_turns(picture: Picture, rng: random.Random) -> list[Turn]:
    """Two turns of different facets. A flag's name tells its colours and form, so flags have no conversation."""
    identity = _naming_turn(picture, rng) + _category_turn(picture, rng)
    looks = []
    if picture.color:
        looks.append(Turn(rng.choice(MAIN_COLOR_QUESTIONS), picture.color, "color"))
    if picture.extent:
        looks.append(Turn(EXTENT_QUESTION, picture.extent, "extent"))
    if picture.category == "flags" or not (identity and looks):
        return []
    turns = [rng.choice(identity), rng.choice(looks)]
    rng.shuffle(turns)
    return turns if are_independent(turns) else []


def are_independent(turns: list[Turn]) -> bool:
    """Whether no answer gives another one away: facets differ, and no answer holds a word of another."""
    facets = [turn.facet for turn in turns]
    words = [set(turn.answer.lower().split()) for turn in turns]
    overlap = any(a & b for index, a in enumerate(words) for b in words[index + 1 :])
    return len(set(facets)) == len(facets) and not overlap


def _draw_keywords(picture: Picture, rng: random.Random) -> list[str]:
    # Sampled by index and put back in order, so that a caption keeps the order its author chose.
    count = min(_KEYWORDS_IN_ANSWER, len(picture.keywords))
    return [picture.keywords[index] for index in sorted(rng.sample(range(len(picture.keywords)), count))]


def is_negated(question: str) -> bool:
    """Tell whether a yes/no question asks for an absence, as in "is there not a circle?"."""
    return bool({"not", "no"} & set(question.split()))
