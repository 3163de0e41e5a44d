"""The scores of an evaluation as Markdown, for a model card or a discussion."""

from collections.abc import Mapping, Sequence

from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.runner import Score


def as_markdown(
    title: str, scores: Mapping[str, Sequence[Score]], note: str | None, remarks: Mapping[str, Sequence[str]]
) -> str:
    """A table for each benchmark, of means in % with their intervals; `note` and `remarks` as in `write_report`."""
    blocks = [f"# {_plain(title)}"]
    blocks += [f"**{_plain(note)}**"] if note else []
    blocks.append("Mean scores in % [95% bootstrap interval over images].")
    for name, entries in scores.items():
        direction = " (less is better)" if metric_of(name).lower_is_better else ""
        blocks += [f"## {_plain(name)}{direction}", _table(entries)]
        blocks += ["\n".join(f"- {_plain(remark)}" for remark in remarks[name])] if remarks.get(name) else []
    return "\n\n".join(blocks) + "\n"


def _table(entries: Sequence[Score]) -> str:
    conditions = list(dict.fromkeys(entry.condition for entry in entries))
    rows = [["type", "questions", *conditions], ["---"] * (len(conditions) + 2)]
    for kind in dict.fromkeys(entry.type for entry in entries):
        own = {entry.condition: entry for entry in entries if entry.type == kind}
        cells = [_cell(own[condition]) if condition in own else "" for condition in conditions]
        rows.append([_plain(kind), str(next(iter(own.values())).count), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(entry: Score) -> str:
    return f"{100 * entry.score:.1f} [{100 * entry.low:.1f}, {100 * entry.high:.1f}]"


def _plain(text: str) -> str:
    """Text that opens no cell, line or markup of its own."""
    line = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in line)
