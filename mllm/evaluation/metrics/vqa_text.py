"""The two answer normalizers of the VQA family, quirks included.

Sources: GT-Vision-Lab/VQA `vqaEval.py` (the VQA challenge) and the EvalAI processor of MMF, which LLaVA ships as
`m4c_evaluator.py` (TextVQA).
"""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
NUMBERS["none"] = "0"

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The original meant "not between digits", but misspelt the lookbehind, so that "3." loses its period ...
_PERIOD = re.compile(r"\.(?!\d)")
# ... and passed re.UNICODE, which is 32, where `sub` takes the number of replacements.
_MAX_PERIODS = 32

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {spelling: word for word in _CONTRACTED.split() for spelling in _without_one_apostrophe(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the one entry of the official table that goes the other way


def strip_lines(text: str) -> str:
    """Newlines and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """A text on one line without the challenge's marks, each of them deleted or made a space, and without most periods."""
    text = strip_lines(text)
    out = text
    has_thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in PUNCTUATION:
        # Both tests look at the whole original string: a comma between digits anywhere deletes every mark.
        is_at_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if is_at_space or has_thousands else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


@lru_cache(maxsize=1 << 16)  # a few words answer most questions
def normalize_vqa(text: str) -> str:
    """The normal form of the VQA challenge: punctuation, case, number words, articles, contractions."""
    words = [NUMBERS.get(word, word) for word in strip_punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize_m4c(text: str) -> str:
    """The EvalAI processor's normal form: commas and question marks vanish and `'s` becomes a word of its own first."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalize_vqa(text)
