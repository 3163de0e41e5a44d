"""The picture categories that questions are asked about, and what the sources' own category paths become."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """`questions` are answered yes for this category.

    They are not asked of pictures whose category is in `unclear` or whose title or keywords hold a word of `words`:
    there the answer could be either.
    """

    questions: tuple[str, ...]
    words: tuple[str, ...]
    unclear: tuple[str, ...] = ()


CATEGORIES: dict[str, Category] = {
    "animals": Category(
        ("Is this an animal?", "Does the picture show an animal?"),
        ("animal", "bird", "fish", "insect", "dog", "cat", "bear", "horse"),
        ("faces", "food"),
    ),
    "buildings": Category(
        ("Is this a building?", "Does the picture show a building?"),
        ("building", "house", "home", "church", "castle", "city"),
        ("signs",),
    ),
    "clothing": Category(("Is this clothing?",), ("clothing", "hat", "shirt", "shoe"), ("people", "faces", "sports")),
    "computers": Category(("Is this computer equipment?",), ("computer", "phone", "internet"), ("music", "games")),
    "faces": Category(
        ("Is this a face?", "Does the picture show a face?"), ("face", "smiley", "head"), ("people", "animals")
    ),
    "flags": Category(("Is this a flag?", "Does the picture show a flag?"), ("flag", "flags"), ("signs",)),
    "food": Category(
        ("Is this something to eat or drink?", "Does the picture show food?"),
        ("food", "fruit", "drink", "beverage"),
        ("animals", "plants"),
    ),
    "games": Category(("Is this from a game?",), ("game", "games", "card", "toy"), ("sports", "faces")),
    "maps": Category(("Is this a map?",), ("map", "geography"), ("signs", "flags")),
    "music": Category(("Is this about music?",), ("music", "guitar", "sound"), ("people", "computers")),
    "people": Category(
        ("Is this a person?", "Does the picture show a person?"),
        ("people", "person", "man", "woman", "boy", "girl"),
        ("faces", "clothing", "sports", "signs", "games", "music"),
    ),
    "plants": Category(
        ("Is this a plant?", "Does the picture show a plant?"), ("plant", "flower", "tree", "leaf"), ("food",)
    ),
    "signs": Category(
        ("Is this a sign or symbol?",),
        ("sign", "signs", "symbol", "symbols", "arrow", "roadsign"),
        ("flags", "games", "faces", "maps", "computers", "people"),
    ),
    "sports": Category(("Is this about sports?",), ("sport", "sports", "ball"), ("people", "games", "transportation")),
    "tools": Category(("Is this a tool?",), ("tool", "tools", "weapon"), ("computers",)),
    "transportation": Category(
        ("Is this a way to travel?", "Does the picture show transportation?"),
        ("transport", "transportation", "vehicle", "car", "boat", "ship", "train", "plane"),
        ("signs", "sports"),
    ),
}

CATEGORY_QUESTION = "Which category fits the picture?"

# The longest prefix of a source's category path decides; an empty value leaves the picture without a category.
_PREFIXES: dict[str, str] = {
    # Open Clip Art Library
    "animals": "animals",
    "buildings": "buildings",
    "buildings/furniture": "",
    "computer": "computers",
    "computer/buttons": "signs",
    "computer/folders": "signs",
    "food": "food",
    "geography": "maps",
    "geography/astronomy": "",
    "people": "people",
    "people/bodypart": "",
    "people/clothing": "clothing",
    "people/smilies": "faces",
    "plants": "plants",
    "recreation/games": "games",
    "recreation/music": "music",
    "recreation/sports": "sports",
    "signs_and_symbols": "signs",
    "signs_and_symbols/clocks": "",
    "signs_and_symbols/flags": "flags",
    "signs_and_symbols/flags/semaphore": "",
    "signs_and_symbols/money": "",
    "signs_and_symbols/weather": "",
    "tools": "tools",
    "transportation": "transportation",
    "transportation/roadsigns": "signs",
    # Unicode emoji
    "activities/game": "games",
    "activities/sport": "sports",
    "animals & nature/animal-amphibian": "animals",
    "animals & nature/animal-bird": "animals",
    "animals & nature/animal-bug": "animals",
    "animals & nature/animal-mammal": "animals",
    "animals & nature/animal-marine": "animals",
    "animals & nature/animal-reptile": "animals",
    "animals & nature/plant-flower": "plants",
    "animals & nature/plant-other": "plants",
    "flags": "flags",
    "food & drink": "food",
    "food & drink/dishware": "",
    "objects/clothing": "clothing",
    "objects/computer": "computers",
    "objects/music": "music",
    "objects/musical-instrument": "music",
    "objects/tool": "tools",
    "people & body/family": "people",
    "people & body/person": "people",
    "people & body/person-activity": "people",
    "people & body/person-fantasy": "people",
    "people & body/person-gesture": "people",
    "people & body/person-resting": "people",
    "people & body/person-role": "people",
    "smileys & emotion/cat-face": "faces",
    "smileys & emotion/face-affection": "faces",
    "smileys & emotion/face-concerned": "faces",
    "smileys & emotion/face-costume": "faces",
    "smileys & emotion/face-glasses": "faces",
    "smileys & emotion/face-hand": "faces",
    "smileys & emotion/face-hat": "faces",
    "smileys & emotion/face-negative": "faces",
    "smileys & emotion/face-neutral-skeptical": "faces",
    "smileys & emotion/face-sleepy": "faces",
    "smileys & emotion/face-smiling": "faces",
    "smileys & emotion/face-tongue": "faces",
    "smileys & emotion/face-unwell": "faces",
    "symbols": "signs",
    "travel & places/place-building": "buildings",
    "travel & places/place-religious": "buildings",
    "travel & places/transport-air": "transportation",
    "travel & places/transport-ground": "transportation",
    "travel & places/transport-water": "transportation",
}


def category_of(path: str, keywords: tuple[str, ...]) -> str | None:
    """The category for a source's path such as `food/fruit`, or None when the path fits none of them clearly."""
    if "roadsign" in keywords:
        return "signs"  # many are filed under transportation itself, beside the cars
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        prefix = "/".join(parts[:length])
        if prefix in _PREFIXES:
            return _PREFIXES[prefix] or None
    return None
