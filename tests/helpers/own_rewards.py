"""Rewards as a user would write them."""


def early_letters(answer, attempt):
    """The share of letters from the first half of the alphabet: a number that changes with almost every answer."""
    letters = [letter for letter in answer.lower() if letter.isalpha()]
    return sum(letter < "n" for letter in letters) / max(1, len(letters))


def none_for_blue(answer, attempt):
    """1, but no number where blue is right."""
    return float("nan") if attempt.references[0].startswith("blue") else 1
