"""Sentences that follow from the facts of an image, and their wording."""

import random
from collections import Counter

from mllm.synthesis.context import Box, Context
from mllm.synthesis.parsing import Turns

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def count_turns(context: Context, rng: random.Random) -> Turns:
    """Turns that ask how many there are of each kind of object, in any order."""
    counts = Counter(box.category.lower() for box in context.boxes)
    turns = [
        (f"How many {plural(name)} can you see?", f"There {'is' if count == 1 else 'are'} {counted(name, count)}.")
        for name, count in sorted(counts.items())
    ]
    rng.shuffle(turns)
    return turns


def relation_turns(context: Context, rng: random.Random) -> Turns:
    """Turns about pairs of kinds with one object each that don't overlap from left to right, in any order."""
    single = alone(context)
    turns = []
    for left in single:
        for right in single:
            if left.corners[2] <= right.corners[0]:
                a, b = left.category.lower(), right.category.lower()
                question = f"Is the {a} to the left or to the right of the {b}?"
                turns.append((question, f"The {a} is to the left of the {b}."))
                question = f"Is the {b} to the left or to the right of the {a}?"
                turns.append((question, f"The {b} is to the right of the {a}."))
    rng.shuffle(turns)
    return turns


def alone(context: Context) -> list[Box]:
    """The objects of which there is one of their kind."""
    counts = Counter(box.category.lower() for box in context.boxes)
    return [box for box in context.boxes if counts[box.category.lower()] == 1]


def sentence(text: str) -> str:
    """`text` with a capital at its start and a stop at its end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def counted(name: str, count: int) -> str:
    """`two dogs`."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} {name if count == 1 else plural(name)}"


def plural(name: str) -> str:
    """More than one of them, by a short list and the regular endings."""
    irregular = {"person": "people", "man": "men", "woman": "women", "child": "children", "sheep": "sheep"}
    irregular |= {"knife": "knives", "mouse": "mice", "scissors": "scissors", "skis": "skis", "bus": "buses"}
    head, _, last = name.rpartition(" ")
    if last not in irregular:
        ending = "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
        irregular[last] = last + ending
    return f"{head} {irregular[last]}".strip()


def with_article(name: str) -> str:
    """`a dog`; what has no singular stays as it is."""
    if plural(name) == name:
        return name
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"
