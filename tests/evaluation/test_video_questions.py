"""Benchmarks about videos through a model of ours: whole videos, parts of them, and the controls."""

from dataclasses import replace
from pathlib import Path

import pytest

from mllm.checkpoint.start import build
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.controls import questions_of
from mllm.evaluation.subjects.local import LocalModel
from mllm.inference.request import prompt_of
from tests.helpers.media_releases import MEDIA_WRITERS
from tests.helpers.tiny import tiny_settings
from tests.helpers.videos import write_video


@pytest.mark.parametrize(("name", "task"), [("videomme", "short"), ("mvbench", "action_localization")])
def test_videos_and_parts_of_them_are_asked_about_under_every_control(tiny_parts, tmp_path, name, task):
    MEDIA_WRITERS[name](tmp_path)
    content = write_video("mp4", 120, fps=10)
    for path in tmp_path.rglob("*.m*"):
        path.write_bytes(content)
    model, processor = build(tiny_settings(tiny_parts))
    benchmark = find_benchmark(name)
    items = benchmark.items(tmp_path)
    chosen = next(n for n, item in enumerate(items) if item.type == task)
    for condition, count in (("model", 1), ("withheld", 0), ("swapped", 1)):
        question = replace(questions_of(benchmark, items, condition, seed=0)[chosen], max_new_tokens=2)
        assert len(prompt_of(question.request(), processor).tokens.visuals) == count
        found = {}
        LocalModel(model, processor, 1, {}).answer([question], found.update)
        assert list(found) == [question]
        assert all(Path(medium.source.rpartition(":")[2]).is_file() for medium in question.media)
