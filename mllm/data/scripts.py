"""In which script a text is written."""

import re

SCRIPTS = {
    "Latin": r"[a-zA-ZÀ-ɏ]", "Cyrillic": r"[Ѐ-ӿ]", "Greek": r"[Ͱ-Ͽ]", "Arabic": r"[؀-ۿ]", "Hebrew": r"[֐-׿]",
    "Devanagari": r"[ऀ-ॿ]", "Bengali": r"[ঀ-৿]", "Tamil": r"[஀-௿]", "Thai": r"[฀-๿]", "Kana": r"[぀-ヿ]", "Hangul": r"[가-힣]",
    "Han": r"[一-鿿]",
}  # fmt: skip
LETTERS = {name: re.compile(pattern) for name, pattern in SCRIPTS.items()}


def script_of(text: str) -> str:
    """The script of most letters; "(no letters)" where there are none."""
    counts = {name: len(pattern.findall(text)) for name, pattern in LETTERS.items()}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else "(no letters)"
