"""The things of AMBER's closed list that a text names, found without a tagger.

The authors take what NLTK tags as a noun, bring it to WordNet's lemma and keep what is on their list. Here forms are looked
up in a table of the list's words and their plurals, and a word that is a verb, too, doesn't count where the word before it
says so ("to watch", "they train"). Capitals are others' words, as there: "Dogs", at the beginning of a sentence, names
nothing. This stands in for the tagger and wasn't compared with it.
"""

from mllm.evaluation.metrics.amber_words import VOCABULARY
from mllm.evaluation.metrics.chair import WORD

TABLES = """
never: chopsticks slippers sunglasses earrings leave hot
also verbs: bail bar bat bear bill board box brush cage card cloud cord core court cream curtain desert drain drink fence
 file fish flag floor fork glass grill ground hose house ice juice light line lock mat mirror note pack pad paddle pan paper
 pen phone pillow pipe plane plate plug pole pot rack rail range ring rock rope sand scoop screen shell ship shore shovel
 sign signal sink skate ski sled snack snow sound sponge spray stage star stone string support switch table tank tap tape
 telephone tie tire towel toy track train wall warp watch water wire
before verbs: to will would can could may might must should shall do does did not n't I you we they who which he she it
doing: drawing painting sailing railing
before doing: is are was were be been being am 's 're
before a can: a the this that one another each trash garbage soda beer tin aluminum watering empty
"""
"""never: what WordNet brings to a lemma that isn't on the list, and what a tagger takes for no noun."""
_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "snowman": "snowmen",
    "child": "children",
    "goose": "geese",
    "mouse": "mice",
}
_IRREGULAR |= {"knife": "knives", "shelf": "shelves", "bookshelf": "bookshelves", "scarf": "scarves"}
_IRREGULAR |= {"tomato": "tomatoes", "potato": "potatoes"}


def _read(text: str) -> dict[str, frozenset[str]]:
    entries = (line.partition(": ") for line in text.strip().replace("\n ", " ").split("\n"))
    return {name: frozenset(words.split()) for name, _, words in entries}


_WORDS = _read(TABLES)


def _plural(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


_FORMS = {_plural(word): word for word in VOCABULARY if word.islower()} | {word: word for word in VOCABULARY}
FORMS = {form: word for form, word in _FORMS.items() if word not in _WORDS["never"]}
"""A form → the word of the list."""


def nouns_of(text: str) -> list[str]:
    """The words of the list that a text names, in order, repeats included."""
    words = WORD.findall(text)
    before = ["", *words]
    return [FORMS[word] for word, last in zip(words, before, strict=False) if word in FORMS and _is_noun(word, last)]


def _is_noun(form: str, before: str) -> bool:
    if form == "can":  # a verb nearly everywhere
        return before in _WORDS["before a can"]
    if form in _WORDS["doing"]:
        return before not in _WORDS["before doing"]
    return FORMS[form] not in _WORDS["also verbs"] or before not in _WORDS["before verbs"]
