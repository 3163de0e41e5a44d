"""Whether a text is in the language that was asked for."""

import re
import unicodedata

from mllm.errors import UserError
from mllm.synthesis.filters.base import Candidate

# First words of the Unicode names of the letters a language is written in; Latin where none is given.
SCRIPTS = {
    "ar": ("ARABIC",), "bn": ("BENGALI",), "el": ("GREEK",), "fa": ("ARABIC",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL",), "ru": ("CYRILLIC",), "ta": ("TAMIL",), "th": ("THAI",),
    "uk": ("CYRILLIC",), "ur": ("ARABIC",), "zh": ("CJK",),
}  # fmt: skip
# Some languages are told apart by the library only with much text.
ALIKE = ({"no", "da", "sv", "nb", "nn"}, {"id", "ms", "jv"}, {"fa", "ur", "ar", "ps"}, {"uk", "ru", "be", "bg", "mk"})
IDENTIFIED_WORDS = 8
QUOTED = re.compile(r"[\"“„«].*?[\"”“»]")


class WrongLanguage:
    """The script of most letters decides for any text, `py3langid` for one of at least eight words beside it."""

    def __init__(self) -> None:
        """Raises UserError without the package."""
        try:
            import py3langid
        except ImportError:
            raise UserError(
                "the filter wrong_language needs py3langid; pip install 'mllm[synth]', or skip it"
            ) from None
        self._classify = py3langid.classify

    def __call__(self, candidate: Candidate) -> str | None:
        wanted = candidate.request.language
        # Text read from an image stays in its own language.
        text = QUOTED.sub("", candidate.text if candidate.request.kind != "ocr" else candidate.turns[0][0])
        letters = [c for c in text if c.isalpha()]
        scripts = SCRIPTS.get(wanted, ("LATIN",))
        fitting = sum(unicodedata.name(c, "").startswith(scripts) for c in letters)
        if letters and fitting < len(letters) / 2:
            return f"is not in the script of {wanted}"
        if wanted in SCRIPTS and len(scripts) == 1 and wanted not in ("ar", "fa", "ur", "ru", "uk"):
            return None
        if len(text.split()) < IDENTIFIED_WORDS and wanted not in ("ja",):
            return None
        found = self._classify(text)[0]
        is_alike = any({found, wanted} <= group for group in ALIKE)
        return None if found == wanted or is_alike else f"is {found}, not {wanted}"
