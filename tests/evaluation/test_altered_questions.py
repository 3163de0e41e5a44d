"""Conditions that alter images: blurred, grey, mirrored, and written into; what they do to answers, and who may be asked."""

import json
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.evaluation.asking import Reply, answer_all
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.controls import items_under, questions_of
from mllm.evaluation.injection import Injection, count_flips, planted_answers
from mllm.evaluation.mirror import with_sides_exchanged
from mllm.evaluation.plan import Setup, plan_run, questions_of_plan
from mllm.evaluation.run import evaluate_subject
from mllm.evaluation.scoring import score_plan
from mllm.evaluation.subjects.local import LocalModel
from mllm.media.altered import Writing, without_change
from tests.helpers.media_releases import MEDIA_WRITERS
from tests.helpers.releases import WRITERS
from tests.helpers.spatial_releases import SPATIAL_WRITERS
from tests.helpers.tiny import save_image, tiny_settings
from tests.helpers.truth_releases import TRUTH_WRITERS


class Reader:
    """Sees whether there are words in an image and does what they say; else says yes."""

    identity = MappingProxyType({"model_sha256": "reader"})

    def answer(self, questions, on_replies):
        on_replies({question: Reply(self.say(question)) for question in questions})

    def places(self, text, media):
        return None

    def say(self, question):
        change = without_change(question.media[0].source)[1] if question.media else ""
        if change.startswith("written"):
            return Writing.of(change).words.split('"')[1]
        return "Yes"


def outcome_of(names, data, conditions, **more):
    plan = plan_run(names, data, None, 0, conditions=conditions, **more)
    return plan, score_plan(plan, answer_all(questions_of_plan(plan), Reader()), 0, Reader())


def test_left_and_right_change_places_in_words_alone():
    text = "LEFT of the leftmost cup, Right-hand: bright, upright, left. A leftover right"
    assert (
        with_sides_exchanged(text) == "RIGHT of the rightmost cup, Left-hand: bright, upright, right. A leftover left"
    )
    assert with_sides_exchanged(with_sides_exchanged(text)) == text


def test_a_mirrored_question_keeps_its_truth_in_other_words(tmp_path):
    for name in ("whatsup", "vsr"):
        SPATIAL_WRITERS[name](tmp_path)
    benchmark = find_benchmark("whatsup")
    items = benchmark.items(tmp_path)
    mirrored = items_under(benchmark, items, "mirrored")
    for item, other in zip(items, mirrored, strict=True):
        right, now = item.fields["options"][item.references[0]], other.fields["options"][other.references[0]]
        assert now == with_sides_exchanged(right) and now in other.question
        assert other.fields["preposition"] == with_sides_exchanged(item.fields["preposition"])
        assert (other.type, other.group, other.media) == (item.type, item.group, item.media)
    answers = [item.fields["options"][item.references[0]] for item in mirrored]
    assert benchmark.score_all(answers, mirrored).scores["set"] == 1.0
    assert benchmark.score_all(answers, items).scores["score"] < 1.0
    asked = questions_of(benchmark, items, "mirrored", seed=0)
    assert all(without_change(question.media[0].source)[1] == "mirrored" for question in asked)
    assert [question.prompt for question in asked] == [benchmark.prompt(item) for item in mirrored]


def test_a_benchmark_that_does_not_know_sides_is_refused_by_name(tmp_path):
    WRITERS["textvqa"](tmp_path)
    with pytest.raises(UserError, match=r"textvqa: mirrored: what becomes of its answers in a mirror isn't known"):
        plan_run(["textvqa"], tmp_path, None, 0, conditions=("model", "mirrored"))
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "Left?", "answer": "left", "image": "a.png"}))
    save_image(tmp_path / "a.png")
    (tmp_path / "own.yaml").write_text("file: own.jsonl\nmirrors: true\n")
    with pytest.raises(UserError, match=r"own\.jsonl: mirrored"):
        plan_run([str(tmp_path / "own.jsonl")], None, None, 0, conditions=("mirrored",))
    (chosen,) = plan_run([str(tmp_path / "own.yaml")], None, None, 0, conditions=("mirrored", "grey"))
    assert [own[0].prompt for own in chosen.questions.values()] == ["Right?", "Left?"]


def test_planted_answers_are_wrong_and_follow_the_seed(tmp_path):
    writers = WRITERS | MEDIA_WRITERS | SPATIAL_WRITERS | TRUTH_WRITERS
    names = "pope mme mmbench_circular gqa vqav2 mathvista mmvp amber amber_discriminative hallusionbench naturalbench"
    for name in names.split():
        writers[name](tmp_path / name)
        benchmark = find_benchmark(name)
        items = benchmark.items(tmp_path / name)
        planted = planted_answers(benchmark, items, seed=0)
        assert planted == planted_answers(benchmark, items, seed=0)
        assert all(benchmark.score(own, item) < 0.5 for own, item in zip(planted, items, strict=True) if own)
        # Who says what is planted is counted, whatever the benchmark reads.
        flips = count_flips(benchmark, items, planted, ["qq"] * len(items), [own or "" for own in planted], 0)
        assert flips["rate"] == 1 and flips["of"] + flips["said_it_before"] == sum(map(bool, planted)) > 0
    asked = questions_of(benchmark, items, "injected", 0, injection=Injection(0.2, 0.5))
    assert "written,0.2,0.5," in asked[0].media[0].source
    other = questions_of(benchmark, items, "injected", 1, injection=Injection(0.2, 0.5))
    assert [question.media for question in other] != [question.media for question in asked]


def test_answers_that_turn_to_the_planted_one_are_counted_beside_their_control(tmp_path):
    WRITERS["pope"](tmp_path)
    conditions = ("model", "injected", "scrawled")
    (chosen,), outcome = outcome_of(["pope"], tmp_path, conditions)
    # Who says yes to everything said the planted answer before wherever no is true.
    wrong = sum(item.references == ("no",) for item in chosen.items)
    flips = {name: outcome.official["pope"][name]["flips"] for name in conditions[1:]}
    assert (flips["injected"]["flipped"], flips["injected"]["of"]) == (len(chosen.items) - wrong,) * 2
    assert (flips["injected"]["rate"], flips["injected"]["low"], flips["injected"]["said_it_before"]) == (1, 1, wrong)
    assert (flips["scrawled"]["flipped"], flips["scrawled"]["rate"], flips["scrawled"]["high"]) == (0, 0, 0)
    with pytest.raises(UserError, match="name the condition model, too"):
        plan_run(["pope"], tmp_path, None, 0, conditions=("injected",))


def test_descriptions_and_refusals_have_no_answer_to_plant(tmp_path):
    for name, words in (
        ("coco_chair", "aren't right or wrong words"),
        ("refcoco", "aren't right or wrong words"),
        ("amber_generative", "no question has an image and a wrong answer"),
        ("vlguard", "no question has an image and a wrong answer"),
    ):
        (WRITERS | TRUTH_WRITERS)[name](tmp_path)
        with pytest.raises(UserError, match=rf"{find_benchmark(name).folder}: injected: .*{words}"):
            plan_run([name], tmp_path, None, 0, conditions=("model", "injected"))


def test_a_report_shows_altered_conditions_as_the_others_and_says_how_many_answers_turned(tmp_path):
    WRITERS["pope"](tmp_path)
    conditions = ("model", "blurred", "grey", "mirrored", "injected", "scrawled")
    setup = Setup(["pope"], tmp_path, tmp_path / "out", conditions=conditions, injection=Injection(0.1, 0.5))
    evaluate_subject(replace(setup), lambda: (Reader(), "reader", []))
    page, table = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["injection"] == {"size": 0.1, "contrast": 0.5}
    assert {entry["condition"] for entry in results["scores"]["pope"]} == set(conditions)
    assert "| model | blurred | grey | mirrored | injected | scrawled |" in table
    assert all(f"<i>{name}</i>: " in page for name in conditions[1:])
    for text in (page, table):
        assert "(10 % of the height a line, contrast 0.5): 3 of 3 answers turned to the planted one, 100.0 %" in text
        assert "Its strokes in disorder (10 % of the height a line, contrast 0.5): 0 of 3" in text


def test_a_model_of_ours_sees_what_is_altered(tmp_path, tiny_parts):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    line = {"question": "Is it left?", "answer": "yes", "image": "a.png"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    (tmp_path / "own.yaml").write_text("file: own.jsonl\nmirrors: true\nmax_new_tokens: 1\n")
    conditions = ("model", "blurred", "grey", "injected", "scrawled")
    plan = plan_run([str(tmp_path / "own.yaml")], None, None, 0, conditions=conditions)
    replies = answer_all(questions_of_plan(plan), LocalModel(*build(tiny_settings(tiny_parts)), 4, {}))
    assert len({reply.logprob for reply in replies.values()}) == len(conditions)
