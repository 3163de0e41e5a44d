"""Reading the option that an answer to multiple choice names, by the rules of those who publish scores, quirks included.

Checked against MMMU's `eval_utils.py`, lmms-eval 75571cf (August 2026: `mcq_extract.py`, `mmmu_mcq_utils.py`) and VLMEvalKit
e8e78f0 (August 2026: `matching_util.py`). Options are by letter, in their order. A rule returns a letter, or None where it
finds none; the guess that MMMU's and lmms-eval's scripts draw at random then is `guessed`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

BRACKETED = "({})"
MMMU_FORMS = (BRACKETED, " {} ")
LMMS_MMMU_FORMS = (BRACKETED, "{} ", "{}.")
MIN_WORDS_OF_CONTENT = 6
_SEPARATORS = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
_API_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PHRASED = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
# Forms of a letter in an answer, each with its rank: the highest wins.
_LMMS_FORMS = ((BRACKETED, 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_AT_START, _AT_END, _BEHIND_PHRASE, _ANYWHERE = 10, 9, 7, 0
_THINGS, _VERBS = ("answer", "option", "choice"), ("i choose", "i select", "i pick", "my answer is", "my choice is")
_PHRASES = (
    *(f"{the}{thing} is" for thing in _THINGS for the in ("the correct ", "correct ")),
    *(f"{the}{thing} is" for thing in ("answer", "option") for the in ("the best ", "best ")),
    *("the answer is", "answer is", "the choice is", "choice is"),
    *_VERBS,
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def guessed(options: Mapping[str, str], key: str) -> str:
    """Draw a letter by a question's key: the same for every rule and run, where the official scripts draw anew."""
    letters = list(options)
    return letters[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(letters)]


def mmmu_letter(answer: str, options: Mapping[str, str], forms: Sequence[str] = MMMU_FORMS) -> str | None:
    """MMMU's `parse_multi_choice_response`: the last letter in the first of `forms` that occurs, else the last option's text
    in an answer of more than five words.

    Letters without spaces at both sides count as equally early, as there, and the first of them wins.
    """
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form in forms:
        named = [letter for letter in options if form.format(letter) in text]
        if named:
            where = form if form == BRACKETED else " {} "
            return max(named, key=lambda letter: text.rfind(where.format(letter)))
    if len(text.split()) < MIN_WORDS_OF_CONTENT:
        return None
    lowered = text.lower()
    named = [letter for letter, words in options.items() if words.lower() in lowered]
    return max(named, key=lambda letter: lowered.rfind(options[letter].lower()), default=None)


def lmms_mmmu_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's reading of MMMU and NExT-QA: a letter counts behind any character, and before a full stop, too."""
    return mmmu_letter(answer, options, LMMS_MMMU_FORMS)


def lmms_letter(answer: str, letters: Sequence[str]) -> str | None:
    """lmms-eval's `extract_mcq_answer`: of all letters in any known form, the one in the best form, there the last."""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    padded, bare = f" {text} ", text.strip()
    found = [
        (rank, padded.rfind(form.format(letter)), letter)
        for form, rank in _LMMS_FORMS
        for letter in letters
        if form.format(letter) in padded
    ]
    found += [
        (_BEHIND_PHRASE, padded.find(letter, start), letter)
        for phrase in _PHRASES
        if (start := padded.lower().find(phrase) + len(phrase)) >= len(phrase)
        for letter in letters
        if letter in padded[start:]
    ]
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((_AT_START, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((_AT_END, len(padded) - 1, letter))
    found = found or [(_ANYWHERE, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(found, key=lambda one: one[:2], default=(0, 0, None))[2]


def vlmevalkit_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's `can_infer` without a judge: a lone letter near the end, a phrase such as "the answer is B", or a text."""
    if any(refusal in answer for refusal in _REFUSALS) and _API_FAILED not in answer:
        return None
    if _API_FAILED in answer:
        return named_by_text(answer, options)
    letters, letter = letters_near_end(answer, options)
    if letter is not None:
        return letter
    if not letters and "Z" in answer.translate(_SEPARATORS).split():
        return None
    phrased = _PHRASED.search(answer)
    if phrased and phrased[1].upper() in options:
        return phrased[1].upper()
    return named_by_text(answer, options)


def letters_near_end(answer: str, options: Mapping[str, str]) -> tuple[list[str], str | None]:
    """The letters that are words of an answer; and the one, if there is only one and it is among the last four words.

    A letter far from the end is more likely a word of the reasoning, such as the article "A".
    """
    words = answer.translate(_SEPARATORS).split()
    letters = [letter for letter in options if letter in words]
    is_decided = len(letters) == 1 and words.index(letters[0]) > len(words) - 5
    return letters, letters[0] if is_decided else None


def named_by_text(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option whose text is in an answer that is at most twice as long as all options together."""
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    named = [letter for letter, text in options.items() if text.lower() in lowered]
    return named[0] if len(named) == 1 else None


def read_option(answer: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's reading before it knew phrases, by which MMBench is scored here."""
    if any(refusal in answer for refusal in (_API_FAILED, *_REFUSALS)):
        return None
    letters, letter = letters_near_end(answer, options)
    if letter is not None:
        return letter
    if not letters and "Z" in answer.translate(_SEPARATORS).split():
        return None
    return named_by_text(answer, options)
