"""Sampling, controls and intervals of an evaluation."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from mllm.errors import UserError
from mllm.evaluation.asking import Reply, answer_all
from mllm.evaluation.benchmark import Item, MajorityAnswer
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.controls import questions_of, stratified_sample, swap_partners
from mllm.evaluation.medium import Medium, shown
from mllm.evaluation.plan import plan_run
from mllm.evaluation.scoring import score_answers, summarize
from mllm.evaluation.statistics import bootstrap_interval
from tests.helpers.releases import write_coco
from tests.helpers.tiny import save_image


class Saying:
    """A model under test whose answers are a function of the question; `asked` is what it was asked."""

    identity = MappingProxyType({})

    def __init__(self, words):
        self.words, self.asked = words, []

    def answer(self, questions, on_replies):
        self.asked += questions
        on_replies({question: Reply(self.words(question)) for question in questions})


def answers_of(benchmark, items, condition, subject):
    questions = questions_of(benchmark, items, condition, seed=0)
    replies = answer_all(questions, subject)
    return score_answers(benchmark, items, condition, questions, [replies[question] for question in questions])[0]


@pytest.fixture
def items(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(20)]
    for path in paths:
        save_image(path)
    kinds = {"shape": ["circle", "square"], "yes_no": ["yes", "no", "no"]}
    out = []
    for n, path in enumerate(paths):
        for kind, answers in kinds.items():
            for k in range(1 if kind == "shape" else 3):
                answer = answers[(n + k) % len(answers)]
                out.append(Item(f"{n}-{kind}-{k}", shown(path), f"{kind} {k}?", (answer,), kind, path.name))
    return out


def test_stratified_sample_keeps_the_shares_of_types(items):
    chosen = stratified_sample(items, 40, seed=1)
    assert len(chosen) >= 40
    assert sum(i.type == "shape" for i in chosen) == 10
    assert chosen == stratified_sample(items, 40, seed=1) != stratified_sample(items, 40, seed=2)


def test_a_sample_is_drawn_from_all_items_and_keeps_those_of_an_image_together(items):
    drawn = Counter(i.id for seed in range(300) for i in stratified_sample(items, 20, seed))
    assert all(0.25 * 0.6 < drawn[i.id] / 300 < 0.25 * 1.5 for i in items)
    groups = [i.group for i in stratified_sample(items, 40, seed=1)]
    assert len(set(groups)) > 12
    assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1


def test_swapped_items_never_keep_their_image_or_answer(items):
    for item, partner in zip(items, swap_partners(items, seed=0), strict=True):
        assert partner.group != item.group and partner.references != item.references


def shown_together(name, *media):
    return Item(name, media, "which?", ("a",), "all", name)


def test_the_first_of_several_images_is_shown_alone_in_its_place():
    benchmark, pair = find_benchmark("clipart"), (Medium("a.png"), Medium("b.png"))
    several = replace(shown_together("several", *pair), question="of two", places=(2, 5))
    alone, one = questions_of(benchmark, [several, shown_together("one", pair[0])], "single", seed=0)
    assert alone.media == pair[:1] and alone.places == (2,) and one.media == pair[:1]
    with pytest.raises(UserError, match="single: no question shows more than one image"):
        questions_of(benchmark, [shown_together("one", pair[0])], "single", seed=0)


def test_shuffled_frames_are_asked_of_videos_alone_by_a_seed_of_the_question():
    benchmark = find_benchmark("clipart")
    clips = [shown_together(f"{n}", Medium(f"{n}.mp4", is_video=True)) for n in range(30)]
    picture = shown_together("picture", Medium("a.png"))
    asked = questions_of(benchmark, [*clips, picture], "shuffled", seed=0)
    assert asked == questions_of(benchmark, [*clips, picture], "shuffled", seed=0)
    assert [question.media for question in asked] == [item.media for item in (*clips, picture)]
    assert asked[-1].order_seed is None and len({question.order_seed for question in asked[:-1]}) > 4
    with pytest.raises(UserError, match="shuffled: no question shows a video"):
        questions_of(benchmark, [picture], "shuffled", seed=0)


def test_equal_requests_are_asked_once_and_answers_are_those_of_asking_all(items):
    subject = Saying(lambda question: question.prompt)
    answers = answers_of(find_benchmark("clipart"), items, "withheld", subject)
    assert len(subject.asked) == 4 and [a.answer for a in answers] == [i.question for i in items]


def test_missing_images_are_named_before_anything_is_asked(items, tmp_path):
    gone = Path(items[3].media[0].source)
    gone.unlink()
    lines = [{"image": item.group, "question": item.question, "answer": item.references[0]} for item in items]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=rf"1 image\(s\) are missing, such as .*{gone.name}"):
        plan_run([str(tmp_path / "own.jsonl")], None, None, seed=0)


def test_scores_count_exact_matches_by_type(items):
    right = {(i.media, i.question): i.references[0] for i in items}
    subject = Saying(lambda question: right[question.media, question.prompt].upper() + ".")
    scores = summarize(answers_of(find_benchmark("clipart"), items, "model", subject), seed=0)
    assert {s.type: (s.score, s.low, s.high) for s in scores} == {k: (1, 1, 1) for k in ("overall", "shape", "yes_no")}


def test_majority_is_the_commonest_training_answer_of_the_text():
    majority = MajorityAnswer([("a?", "no"), ("a?", "no"), ("a?", "yes"), ("b?", "red")])
    assert [majority.predict(q) for q in ("a?", "b?", "c?")] == ["no", "red", "no"]


def test_interval_is_wider_when_the_answers_of_an_image_agree():
    rng = np.random.default_rng(0)
    per_image = (rng.random(40) < 0.7).astype(float)
    scores = np.repeat(per_image, 10).tolist()
    clustered = bootstrap_interval(scores, [str(i // 10) for i in range(400)], seed=0)
    single = bootstrap_interval(scores, [str(i) for i in range(400)], seed=0)
    assert clustered[1] - clustered[0] > 2 * (single[1] - single[0])


def test_a_missing_benchmark_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"clipart\.jsonl does not exist; prepare the data first"):
        find_benchmark("clipart").items(tmp_path)
    with pytest.raises(UserError, match=r"pope: say where its files lie with --data DIR; they are in DIR/pope"):
        plan_run(["pope"], None, None, seed=0)


def test_questions_about_text_alone_have_no_image_under_any_condition(items):
    text = Item("text", (), "no image?", ("yes",), "text", "text")
    for condition in ("model", "withheld", "swapped"):
        subject = Saying(lambda question: "yes")
        answers = answers_of(find_benchmark("clipart"), [*items, text], condition, subject)
        asked = [question for question in subject.asked if question.prompt == "no image?"]
        assert [question.request().images for question in asked] == [()]
        assert (answers[-1].media, answers[-1].score) == ((), 1.0)


def test_official_benchmarks_are_scored_over_all_their_answers(tmp_path):
    write_coco(tmp_path)
    benchmark = find_benchmark("coco_captions")
    asked = benchmark.items(tmp_path)
    right = {item.media: item.references[0] for item in asked}
    answers = answers_of(benchmark, asked, "model", Saying(lambda question: right[question.media]))
    # alone, each caption would have the CIDEr of a one-image corpus: 0
    assert all(answer.score > 1 for answer in answers)
