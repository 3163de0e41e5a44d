"""The page about a run of rounds: what was asked, what it was worth, what was learned of it, and the scores."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.html import draw_curve, write_html
from mllm.improve.answering import whole_records
from mllm.improve.settings import ImproveSettings
from mllm.media.data_url import thumbnail_url
from mllm.rewards.settings import title_of

EXAMPLES = 6
THUMBNAIL_PX = 96
Figures = dict[str, float | int | None]
ROWS = {
    "prompts": "prompts",
    "skipped": "… that could not be asked",
    "answers": "answers",
    "cut": "… that reached the most tokens",
    "failed": "… without a reward",
    "mean_reward": "mean reward of an answer",
    "best_reward": "mean reward of a prompt's best answer",
    "flat": "prompts whose answers are worth the same",
    "learned": "pairs or samples to learn from",
    "margin": "mean margin of a pair",
    "chosen_characters": "characters of a chosen answer, mean",
    "rejected_characters": "characters of a rejected answer, mean",
    "steps": "steps of training",
    "seconds": "seconds of training",
    "last_loss": "loss of the last step",
}
WHOLE = ("prompts", "skipped", "answers", "cut", "failed", "flat", "learned", "steps")


def write_improvement(run_dir: Path, settings: ImproveSettings, done: int, name: str, by: str) -> None:
    """Write the report of the first `done` rounds as `name`, a page, and as `report.json`."""
    rounds = [run_dir / f"round_{number}" for number in range(1, done + 1)]
    figures = [figures_of(directory) for directory in rounds]
    scores = [_scores(directory) for directory in (run_dir / "start", *rounds)]
    told = {"rounds": figures, "scores": scores, "settings": settings.model_dump(mode="json")}
    write_json_atomically(run_dir / "report.json", told, by)
    body = [f"<p>From {escape(settings.model)}, by {escape(_rewards_in_words(settings))}.</p>"]
    body += [_table(figures), _score_table(scores)]
    for number, directory in enumerate(rounds, 1):
        body += [f"<h2>round {number}</h2>", _curve(directory, number), _gallery(directory)]
    write_html(run_dir / name, f"improving in rounds: {run_dir.name}", body, by)


def figures_of(directory: Path) -> Figures:
    """The numbers of a round that is done, by the keys of ROWS; None where there is none."""
    answers, worth = whole_records(directory / "answers.jsonl"), whole_records(directory / "rewards.jsonl")
    learned = _learned(directory)
    groups = [[reward for reward in record["rewards"] if reward is not None] for record in worth]
    known = [reward for group in groups for reward in group]
    given = [answer for record in answers for answer in record.get("answers", ())]
    pairs = [line for line in learned if "chosen" in line]
    steps = whole_records(directory / "training" / "metrics.jsonl")
    return {
        "prompts": len(answers),
        "skipped": sum("problem" in record for record in answers),
        "answers": len(given),
        "cut": sum(answer["cut"] for answer in given),
        "failed": len(given) - len(known),
        "mean_reward": _mean(known),
        "best_reward": _mean([max(group) for group in groups if group]),
        "flat": sum(len(group) > 0 and max(group) == min(group) for group in groups),
        "learned": len(learned),
        "margin": _mean([pair["margin"] for pair in pairs]),
        "chosen_characters": _mean([len(_text(pair["chosen"])) for pair in pairs]),
        "rejected_characters": _mean([len(_text(pair["rejected"])) for pair in pairs]),
        "steps": len(steps),
        "seconds": math.fsum(step["step_s"] for step in steps),
        "last_loss": steps[-1]["loss"] if steps else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _learned(directory: Path) -> list[dict[str, Any]]:
    return [line for name in ("pairs", "best") for line in whole_records(directory / f"{name}.jsonl")]


def _scores(directory: Path) -> dict[str, dict[str, float]]:
    path = directory / "scores.json"
    return json.loads(path.read_text(encoding="utf-8"))["scores"] if path.is_file() else {}


def _rewards_in_words(settings: ImproveSettings) -> str:
    parts = settings.rewards.parts
    named = ", ".join(title_of(p) if p.weight == 1 else f"{p.weight:g} · {title_of(p)}" for p in parts)
    return f"{settings.sampling.answers} answers a prompt and the reward {named}"


def _table(figures: Sequence[Figures]) -> str:
    """A column a round."""
    head = "".join(f"<th>round {number}" for number in range(1, len(figures) + 1))
    rows = [
        f"<tr><td>{label}" + "".join(f"<td class=n>{_number(key, round_[key])}" for round_ in figures)
        for key, label in ROWS.items()
        if any(round_[key] is not None for round_ in figures)
    ]
    return f"<h2>the rounds</h2><div class=scroll><table><tr><th>{head}{''.join(rows)}</table></div>" if figures else ""


def _number(key: str, value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if key in WHOLE else f"{value:,.3g}" if abs(value) >= 10 else f"{value:.3f}"


def _score_table(scores: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """A column for the start and for each round, with 95% intervals."""
    names = list(dict.fromkeys(name for own in scores for name in own))
    if not names:
        return ""
    head = "<th>start" + "".join(f"<th>after round {number}" for number in range(1, len(scores)))
    rows = "".join(
        f"<tr><td>{escape(name)}" + "".join(f"<td class=n>{_score(own.get(name))}" for own in scores) for name in names
    )
    return f"<h2>scores in %</h2><div class=scroll><table><tr><th>{head}{rows}</table></div>"


def _score(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "–"
    low, high = 100 * entry["low"], 100 * entry["high"]
    return f"{100 * entry['score']:.1f} <small>({low:.1f}–{high:.1f})</small>"


def _curve(directory: Path, number: int) -> str:
    losses = [step["loss"] for step in whole_records(directory / "training" / "metrics.jsonl")]
    return draw_curve(f"training of round {number}", losses, f"{len(losses)} steps") if len(losses) > 1 else ""


def _gallery(directory: Path) -> str:
    """The first lines that were learned, with their images."""
    cards = "".join(f"<div class=card>{''.join(_card(line))}</div>" for line in _learned(directory)[:EXAMPLES])
    return f"<div class=grid>{cards}</div>"


def _card(line: Mapping[str, Any]) -> Iterator[str]:
    for image in line.get("images", ())[:1]:
        try:
            yield f"<img alt='' src='{thumbnail_url(image, THUMBNAIL_PX)}'>"
        except UserError as error:
            yield f"<small>{escape(str(error))}</small><br>"
    asked = [message for message in line["messages"] if message["role"] == "user"]
    yield f"<b>{escape(_text(asked[-1]['content']))}</b><br>"
    if "chosen" not in line:
        yield f"<span class=name>learned</span> {escape(_text(line['messages'][-1]['content']))}"
        return
    for side in ("chosen", "rejected"):
        reward = line["scores"][side]["reward"]
        yield f"<span class=name>{side}</span> {escape(_text(line[side]))} <small>({reward:.3g})</small><br>"
