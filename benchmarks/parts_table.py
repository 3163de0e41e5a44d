"""What the runs of `parts_study.py` come to: a row for each choice of parts, with intervals over seeds and pictures."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from measuring import markdown_table

from mllm.evaluation.statistics import CONFIDENCE, RESAMPLES

COSTS = {
    "image tokens": "image_tokens_per_picture",
    "tokens a sample": "tokens_per_sample",
    "connector, M": "connector_millions",
    "training, s": "training_s",
    "a question, s": "question_s",
}
"""Heading → key of a run's costs; a row has the mean over its seeds."""


def interval(runs: Sequence[Mapping[str, Sequence[Any]]], condition: str = "model") -> tuple[float, float, float]:
    """(mean, low, high) of the share that is right, in %, over the runs of a choice: one a seed, of the same questions.

    Each has `groups`, a picture a question, and under `condition` whether it was answered rightly. Seeds and pictures are
    drawn with replacement, both at once, so that an interval of one seed says nothing of other seeds.
    """
    groups = np.unique(np.asarray(runs[0]["groups"]), return_inverse=True)[1]
    counts = np.bincount(groups).astype(np.float64)
    right = np.stack([np.bincount(groups, weights=np.asarray(run[condition], dtype=np.float64)) for run in runs])
    rng = np.random.default_rng(0)
    seeds = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=RESAMPLES) / len(runs)
    pictures = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    means = np.einsum("rs,sg,rg->r", seeds, right, pictures) / (pictures @ counts)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return 100 * float(right.sum() / (len(runs) * counts.sum())), 100 * float(low), 100 * float(high)


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each choice of parts among the results of runs, the best mean over the material first."""
    choices: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        choices.setdefault((result["encoder"], result["connector"], result["tiling"]), []).append(result)
    rows = []
    for (encoder, connector, tiling), own in choices.items():
        scores: dict[str, dict[str, Any]] = {}
        for column in own[0]["answers"]:
            answers = [result["answers"][column] for result in own]
            share, low, high = interval(answers)
            by_seed = {result["seed"]: 100 * mean(result["answers"][column]["model"]) for result in own}
            scores[column] = {"percent": share, "low": low, "high": high, "by_seed": by_seed}
        rows.append(
            {
                "encoder": encoder,
                "connector": connector,
                "tiling": tiling,
                "seeds": [result["seed"] for result in own],
                "scores": scores,
                "mean": mean([score["percent"] for score in scores.values()]),
                "costs": {key: mean([result["costs"][key] for result in own]) for key in COSTS.values()},
            }
        )
    return sorted(rows, key=lambda row: -float(row["mean"]))


def as_markdown(
    rows: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], refused: Mapping[str, str]
) -> str:
    """The table, with what is right without looking below it, and the choices that were refused."""
    columns = list(results[0]["answers"])
    table = [
        [
            *(row["encoder"], row["connector"], row["tiling"], len(row["seeds"])),
            *(_cell(row["scores"][column]) for column in columns),
            f"{row['mean']:.1f}",
            *(_figure(row["costs"][key]) for key in COSTS.values()),
        ]
        for row in rows
    ]
    for name, key in (("image withheld, all runs", "withheld"), ("commonest answer of training", "majority")):
        shares = [100 * mean([mean(result["answers"][column][key]) for result in results]) for column in columns]
        table.append(
            [name, "", "", "", *(f"{share:.1f}" for share in shares), f"{mean(shares):.1f}", *("" for _ in COSTS)]
        )
    asked = [len(results[0]["answers"][column]["model"]) for column in columns]
    table.append(["questions", "", "", "", *asked, sum(asked), *("" for _ in COSTS)])
    header = ["encoder", "connector", "tiling", "seeds", *columns, "mean", *COSTS]
    lines = [markdown_table(header, table)]
    if refused:
        lines += ["", "Refused:", *(f"- {choice}: {reason}" for choice, reason in refused.items())]
    return "\n".join(lines)


def _cell(score: Mapping[str, Any]) -> str:
    return f"{score['percent']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
