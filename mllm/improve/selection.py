"""The third arrow of a round: answers and their rewards become pairs, or samples, to learn from."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.conversation.pair import PreferencePair, Scores
from mllm.conversation.schema import Message, Sample, TextPart
from mllm.data.writers import record_of
from mllm.errors import UserError
from mllm.files import write_text_atomically
from mllm.improve.settings import SelectionSettings
from mllm.rewards.asked import messages_before_answer


@dataclass(frozen=True)
class Choice:
    """The best and the worst answer to a prompt, by their places."""

    best: int
    worst: int


def choose(
    answers: Sequence[Mapping[str, Any]], rewards: Sequence[float | None], selection: SelectionSettings
) -> Choice | None:
    """What is learned of the answers to a prompt; None where nothing is.

    Answers without a reward or without words have no part in it, nor have those without an end unless the settings say so. Of
    equally bad ones, the one that is nearest the best in length is the worst, so that length teaches little.
    """
    known = {
        place: reward
        for place, (answer, reward) in enumerate(zip(answers, rewards, strict=True))
        if reward is not None and answer["text"].strip() and (selection.takes_cut_answers or not answer["cut"])
    }
    if not known:
        return None
    best = max(known, key=lambda place: (known[place], -place))
    if selection.learn_from == "best":
        is_learned = selection.least_reward is None or known[best] >= selection.least_reward
        return Choice(best, best) if is_learned else None
    length = len(answers[best]["text"])
    worst = min(known, key=lambda place: (known[place], abs(len(answers[place]["text"]) - length), place))
    # Rewards are sums of rounded numbers.
    return Choice(best, worst) if known[best] - known[worst] >= selection.margin - 1e-9 else None


def select_round(
    directory: Path,
    answers: Sequence[Mapping[str, Any]],
    rewards: Sequence[Mapping[str, Any]],
    sample_of: Callable[[int], Sample],
    selection: SelectionSettings,
    by: str,
) -> Path:
    """Write what is learned, `pairs.jsonl` or `best.jsonl`, and `recipe.yaml`, whose path is returned.

    sample_of: the sample at a place of the round. Raises UserError where nothing would be learned.
    """
    lines: list[Sample] = []
    for place, (told, worth) in enumerate(zip(answers, rewards, strict=True)):
        choice = choose(told.get("answers", ()), worth["rewards"], selection)
        if choice is None:
            continue
        sample = sample_of(place)
        if selection.learn_from == "best":
            lines.append(_sample(sample, told["answers"][choice.best]["text"]))
        elif sample.images:
            lines.append(_pair(sample, told, worth, choice))
    name = "pairs" if selection.learn_from == "pairs" else "best"
    if not lines:
        wanted = "a pair of a question with an image" if name == "pairs" else "an answer to learn"
        raise UserError(
            f"{directory}: none of {len(answers)} prompts gives {wanted}; see answers.jsonl and rewards.jsonl there, and "
            "mend the rewards, lower selection.margin, or raise sampling.answers or sampling.max_new_tokens"
        )
    path, recipe = directory / f"{name}.jsonl", directory / "recipe.yaml"
    write_text_atomically(path, "".join(json.dumps(record_of(line), ensure_ascii=False) + "\n" for line in lines), by)
    reader = "pairs" if name == "pairs" else "messages"
    source = json.dumps({"path": str(path), "reader": reader, "image_root": "/"}, ensure_ascii=False)
    write_text_atomically(recipe, f"name: {directory.name}-{name}\nsources:\n  - {source}\n", by)
    return recipe


def _shared(sample: Sample) -> dict[str, Any]:
    """What a pair and a sample have in common."""
    images = tuple(str(Path(image).absolute()) for image in sample.images)
    return {"id": sample.id, "images": images, "source": sample.source, "kind": sample.kind}


def _pair(sample: Sample, told: Mapping[str, Any], worth: Mapping[str, Any], choice: Choice) -> PreferencePair:
    sides = {"chosen": choice.best, "rejected": choice.worst}
    texts = {side: (TextPart(text=told["answers"][place]["text"]),) for side, place in sides.items()}
    margin = worth["rewards"][choice.best] - worth["rewards"][choice.worst]
    scores = {side: {"reward": worth["rewards"][place], **worth["parts"][place]} for side, place in sides.items()}
    messages = messages_before_answer(sample)
    return PreferencePair(**_shared(sample), messages=messages, margin=margin, scores=Scores(**scores), **texts)


def _sample(sample: Sample, answer: str) -> Sample:
    said = Message(role="assistant", content=(TextPart(text=answer),))
    return Sample(**_shared(sample), messages=(*messages_before_answer(sample), said))
