"""Rewards as a user would write them, and runs that learn from them."""

from tests.helpers.runs import config

REWARDS = "tests.helpers.own_rewards"


def early_letters(answer, attempt):
    """The share of letters from the first half of the alphabet: a number that changes with almost every answer."""
    letters = [letter for letter in answer.lower() if letter.isalpha()]
    return sum(letter < "n" for letter in letters) / max(1, len(letters))


def none_for_blue(answer, attempt):
    """1, but no number where blue is right."""
    return float("nan") if attempt.references[0].startswith("blue") else 1


def reward_config(tiny_parts, recipe, run_dir, **changes):
    """Settings of a run as a file holds them, of two steps of three prompts; `section__key=value` changes one."""
    values = config(tiny_parts, recipe, run_dir)
    values["data"] |= {"packing": "samples"}
    values["train"] |= {"global_batch_size": 3, "micro_batch_size": 2, "max_steps": 2, "trackers": []}
    values["trainable"] = {"language_model": "full"}
    values["sampling"] = {"answers": 3, "max_new_tokens": 5}
    values["rewards"] = {"parts": [{"kind": "python", "function": f"{REWARDS}:early_letters"}]}
    values["objective"] = {}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return values
