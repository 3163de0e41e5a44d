"""Benchmarks of places and composition against their official scripts' rules, written here a second time.

Each oracle follows the publisher's own bookkeeping (lists in file order, counts of pairs) and shares no code with the metric.
"""

import json
import random
import re
from collections import Counter, defaultdict
from types import MappingProxyType

import pytest

from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.evaluation.asking import Question, Reply, answer_all
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.benchmarks.naturalbench import read_answer
from mllm.evaluation.benchmarks.vsr import read_truth
from mllm.evaluation.controls import questions_of
from mllm.evaluation.medium import shown
from mllm.evaluation.plan import Setup, plan_run
from mllm.evaluation.predictions import score_file
from mllm.evaluation.run import evaluate_subject
from mllm.evaluation.scoring import score_answers
from mllm.evaluation.subjects.endpoint import Endpoint
from mllm.evaluation.subjects.local import LocalModel
from mllm.inference.likelihood import score_answers as likelihoods
from tests.helpers.media_releases import write as write_rows
from tests.helpers.metric_results import result_of
from tests.helpers.releases import write_json
from tests.helpers.spatial_releases import SPATIAL_WRITERS, write_json_lines, write_naturalbench
from tests.helpers.tiny import tiny_settings

GROUPED = {"whatsup": 4, "winoground": 4, "mmvp": 2, "naturalbench": 4, "sugarcrepe": 2}


def items_of(name, data):
    SPATIAL_WRITERS[name](data)
    benchmark = find_benchmark(name)
    return benchmark, benchmark.items(data)


def test_winoground_is_scored_as_the_paper_defines_it_and_ties_lose():
    rng = random.Random(0)
    fits = [[[rng.choice((0.0, 0.5, 1.0, -3e-2)) for _ in range(2)] for _ in range(2)] for _ in range(400)]
    text = [own[0][0] > own[1][0] and own[1][1] > own[0][1] for own in fits]
    image = [own[0][0] > own[0][1] and own[1][1] > own[1][0] for own in fits]
    lines = [
        {"prediction": own[c][i], "references": "yes" if c == i else "no", "group": n, "caption": c, "image": i}
        for n, own in enumerate(fits)
        for c in range(2)
        for i in range(2)
    ]
    rng.shuffle(lines)
    result = result_of("winoground", lines)
    both = [t and i for t, i in zip(text, image, strict=True)]
    found = [result.scores[name] for name in ("text", "image", "group", "score")]
    assert found == pytest.approx([sum(own) / 400 for own in (text, image, both, both)])
    assert 0 < result.scores["group"] < result.scores["text"]
    assert result.per_line == [float(both[line["group"]]) for line in lines]


def test_sugarcrepe_is_the_mean_over_files_of_strictly_better_captions():
    rng = random.Random(1)
    pairs = [(f"kind_{rng.randrange(7)}", n, rng.choice((1, 2, 3)), rng.choice((1, 2, 3))) for n in range(300)]
    hits = defaultdict(list)
    for kind, _, true, false in pairs:
        hits[kind].append(1 if true > false else 0)
    lines = [
        {"prediction": fit, "references": word, "category": kind, "pair": number}
        for kind, number, *fits in pairs
        for word, fit in zip(("yes", "no"), fits, strict=True)
    ]
    scores = result_of("sugarcrepe", lines).scores
    assert scores["by_category"] == pytest.approx({kind: sum(own) / len(own) for kind, own in hits.items()})
    assert scores["score"] == pytest.approx(sum(sum(own) / len(own) for own in hits.values()) / 7)
    assert scores["pairs"] == 300


def test_vsr_counts_relations_as_the_authors_script_does():
    rng = random.Random(2)
    words = {"True": 1, "false": 0, "Yes, it is.": 1, "No.": 0, "That is FALSE, yes": 0}
    lines, by_relation = [], defaultdict(list)
    for _ in range(200):
        said, label, relation = rng.choice(list(words)), rng.randrange(2), rng.choice(("left of", "on", "facing"))
        lines.append({"prediction": said, "references": ["false", "true"][label], "relation": relation})
        by_relation[relation].append(int(words[said] == label))
    scores = result_of("vsr", lines).scores
    assert scores["by_relation"] == pytest.approx({name: sum(own) / len(own) for name, own in by_relation.items()})
    assert scores["score"] == pytest.approx(sum(map(sum, by_relation.values())) / 200)
    assert [read_truth(text) for text in ("untrue", "nothing", "", "Nobody; true")] == [None, None, None, True]


def official_whatsup(names, is_right):
    """Kamath et al.'s bookkeeping: a table of four places for each two things, filled as files come."""
    table = {}
    for name, right in zip(names, is_right, strict=True):
        words = name.removesuffix(".jpeg").split("_")
        table.setdefault((words[0], words[-1]), {})[words[1]] = right
    pairs = sets = 0
    for own in table.values():
        pairs += own.get("left", 0) and own.get("right", 0)
        pairs += (own.get("on", 0) and own.get("under", 0)) or (own.get("in-front", 0) and own.get("behind", 0))
        sets += sum(own.values()) == 4
    return sum(is_right) / len(names), pairs / (len(names) / 2), sets / (len(names) / 4)


@pytest.mark.parametrize("last", [("on", "under"), ("in-front_of", "behind")])
def test_whatsup_counts_pairs_and_sets_as_the_authors_script_does(last, tmp_path):
    rng = random.Random(3)
    places = ("left_of", "right_of", *last)
    names = [f"thing-{n}_{place}_table.jpeg" for n in range(60) for place in places]
    records = [
        {"image_path": f"data/x/{name}", "caption_options": [f"{name} is {other}" for other in ("so", "b", "c", "d")]}
        for name in names
    ]
    write_json(tmp_path / "whatsup" / "controlled_images_dataset.json", records)
    write_json(tmp_path / "whatsup" / "controlled_clevr_dataset.json", records[:4])
    benchmark = find_benchmark("whatsup")
    items = [item for item in benchmark.items(tmp_path) if item.type == "controlled_a"]
    is_right = [int(rng.random() < 0.8) for _ in items]
    answers = [i.references[0] if right else "?" for i, right in zip(items, is_right, strict=True)]
    found = benchmark.score_all(answers, items).scores["by_subset"]["controlled_a"]
    assert list(found.values()) == pytest.approx(official_whatsup(names, is_right))


@pytest.mark.parametrize("name", ["whatsup", "whatsup_photos"])
def test_the_right_caption_of_whatsup_is_at_every_letter_alike_within_each_preposition(name, tmp_path):
    root = tmp_path / "whatsup"
    places = ("left_of", "right_of", "on", "under")
    records = [
        {"image_path": f"data/x/t{n}_{place}_y.jpeg", "caption_options": [place, "b", "c", "d"]}
        for n in range(40)
        for place in places
    ]
    for file in ("controlled_images_dataset.json", "controlled_clevr_dataset.json"):
        write_json(root / file, records)
    for file in ("coco_qa_one_obj.json", "coco_qa_two_obj.json", "vg_qa_one_obj.json", "vg_qa_two_obj.json"):
        sides = ["a dog left of", "a dog right of"]
        write_json(root / file, [[n, *(sides if n % 2 else reversed(sides))] for n in range(80)])
    items = find_benchmark(name).items(tmp_path)
    counts = defaultdict(Counter)
    for item in items:
        counts[item.fields["subset"], item.fields["preposition"]][item.references[0]] += 1
    letters = set("ABCD" if name == "whatsup" else "AB")
    assert all(set(own) == letters and len(set(own.values())) == 1 for own in counts.values())
    for item in items:
        right = item.fields["options"][item.references[0]]
        assert right.startswith("a dog") or right in places
    # Always saying the same letter meets no pair of opposites.
    scores = find_benchmark(name).score_all(["A"] * len(items), items).scores
    assert scores["individual"] == pytest.approx(0.25 if name == "whatsup" else 0.5) and scores.get("pair", 0) == 0


def test_mmvp_counts_neighbours_and_the_four_swapped_labels_are_corrected_or_taken_as_released(tmp_path):
    benchmark, items = items_of("mmvp", tmp_path)
    assert [item.references for item in items] == [("A",), ("B",), ("B",), ("A",)]
    assert [item.fields["official"] for item in items] == ["A", "B", "A", "B"]
    said = ["(a)", "(b)", "(b) Short", "Long"]
    result = benchmark.score_all(said, items)
    assert result.scores["by_rule"] == {"corrected": 1.0, "released_labels": 0.5, "lmms_eval": 0.5}
    assert result.scores["judged_differently"] == ["99", "100"] and result.per_line == [1.0] * 4
    assert [benchmark.score(answer, item) for answer, item in zip(said, items, strict=True)] == [1.0] * 4
    # The grader's loop: after every second line, both were right or the pair is lost.
    rng = random.Random(4)
    lines = [
        {"prediction": rng.choice("AB"), "references": rng.choice("AB"), "options": ["x", "y"]} for _ in range(300)
    ]
    graded = [line["prediction"] == line["references"] for line in lines]
    pairs = [first and second for first, second in zip(graded[::2], graded[1::2], strict=True)]
    scores = result_of("mmvp", lines).scores
    assert (scores["score"], scores["accuracy"]) == pytest.approx((sum(pairs) / 150, sum(graded) / 300))


def official_naturalbench(said, kinds):
    """Li et al.'s four numbers over answers in the order q0i0, q0i1, q1i0, q1i1 of each sample."""

    def value(text, kind):
        words = ("yes", "no") if kind == "yes_no" else ("a", "b")
        places = [found.start() if (found := re.search(rf"\b{word}\b", text.lower())) else -1 for word in words]
        if places == [-1, -1]:
            return -1
        if -1 in places:
            return int(places[1] == -1)
        return int(places[0] < places[1])

    q_acc = i_acc = acc = g_acc = 0
    for start in range(0, len(said), 4):
        a, b, c, d = (value(said[start + n], kinds[start // 4]) for n in range(4))
        question = [a == 1 and b == 0, d == 1 and c == 0]
        image = [a == 1 and c == 0, d == 1 and b == 0]
        q_acc, i_acc = q_acc + sum(question), i_acc + sum(image)
        acc += (a == 1) + (b == 0) + (c == 0) + (d == 1)
        g_acc += all(question) and all(image)
    count = len(said) // 4
    return {"Q_Acc": q_acc / count / 2, "I_Acc": i_acc / count / 2, "Acc": acc / count / 4, "G_Acc": g_acc / count}


def test_naturalbench_gives_the_official_four_numbers(tmp_path):
    rng = random.Random(5)
    kinds = [rng.choice(("yes_no", "multiple_choice")) for _ in range(300)]
    right = {"yes_no": ("Yes", "No"), "multiple_choice": ("A", "B")}
    odd = ["", "It is a B", "b. Not a dog", "yesterday", "no, yes", "YES!"]
    said = [
        rng.choice(odd) if rng.random() < 0.2 else right[kind][place in (1, 2)] for kind in kinds for place in range(4)
    ]
    lines = [
        {"prediction": text, "references": "x", "group": n // 4, "question": n % 4 // 2, "image": n % 2}
        | {"question_type": kinds[n // 4]}
        for n, text in enumerate(said)
    ]
    scores = result_of("naturalbench", lines).scores
    wanted = official_naturalbench(said, kinds)
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted) and 0.1 < scores["score"] < 0.9


def test_the_article_a_is_the_letter_a_in_naturalbench():
    assert read_answer("It is a B", "multiple_choice") is True
    assert read_answer("B, not a C", "multiple_choice") is False
    assert read_answer("It is a dog", "yes_no") is None


def test_each_question_of_naturalbench_shows_one_photo_read_once(tmp_path):
    write_naturalbench(tmp_path)
    items = find_benchmark(f"naturalbench@{tmp_path}").items(tmp_path)
    assert [len(item.media) for item in items] == [1] * 12 and len({item.media for item in items}) == 6
    assert [item.media for item in items[:4]] == [items[0].media, items[1].media] * 2
    right = {item.fields["group"]: [] for item in items}
    for item in items:
        right[item.fields["group"]].append(item.references[0])
    assert right == {"0": ["Yes", "No", "No", "Yes"], "1": ["A", "B", "B", "A"], "2": ["Yes", "No", "No", "Yes"]}


@pytest.mark.parametrize("name", GROUPED)
def test_a_limit_draws_groups_whole(name, tmp_path):
    SPATIAL_WRITERS[name](tmp_path)
    (chosen,) = plan_run([name], tmp_path, 1, seed=0, conditions=("model",))
    counts = Counter(item.group for item in chosen.items)
    everything = Counter(item.group for item in chosen.benchmark.items(tmp_path))
    assert len(chosen.items) < chosen.in_files and all(counts[group] == everything[group] for group in counts)
    assert min(counts.values()) >= GROUPED[name]
    chosen.benchmark.score_all([""] * len(chosen.items), chosen.items)


def test_a_group_that_is_not_whole_is_named(tmp_path):
    for name, problem in (
        ("winoground", r"example 0 has 3 line\(s\); expected two captions"),
        ("mmvp", r"pair 1 has 1 question\(s\)"),
        ("naturalbench", r"sample 0 has 3 answer\(s\); expected four"),
        ("sugarcrepe", "add_obj 0: one caption; expected a true and a false one"),
    ):
        benchmark, items = items_of(name, tmp_path)
        with pytest.raises(UserError, match=problem):
            benchmark.score_all([""] * (len(items) - 1), items[1:])


def test_what_is_not_as_released_is_named_with_its_place(tmp_path):
    SPATIAL_WRITERS["vsr"](tmp_path)
    write_json_lines(tmp_path / "vsr" / "splits" / "random" / "test.jsonl", [{"image": "a.jpg", "label": 2}])
    with pytest.raises(UserError, match=r"test\.jsonl:1: image_link: .*get it again from http"):
        find_benchmark("vsr").items(tmp_path)
    SPATIAL_WRITERS["mmvp"](tmp_path)
    (tmp_path / "mmvp" / "Questions.csv").write_text(
        "Index,Question,Options,Correct Answer\n1,Which?,(a) x (b) y,(c)\n"
    )
    with pytest.raises(UserError, match=r"Questions\.csv:2: isn't as released"):
        find_benchmark("mmvp").items(tmp_path)
    write_json(
        tmp_path / "whatsup" / "controlled_images_dataset.json", [{"image_path": "x.jpg", "caption_options": []}]
    )
    with pytest.raises(UserError, match="question 0 isn't as released"):
        find_benchmark("whatsup").items(tmp_path)
    row = {"Index": 0, "Question_0": "?", "Question_1": "?", "Question_Type": "essay"}
    write_rows(tmp_path / "nb" / "train-0.parquet", [row])
    with pytest.raises(UserError, match="has no column"):
        find_benchmark(f"naturalbench@{tmp_path / 'nb'}").items(tmp_path)


@pytest.mark.parametrize("fit", ["nan", "inf", "yes", "1,5"])
def test_a_fit_that_is_no_finite_number_is_refused(fit):
    with pytest.raises(UserError, match="is no finite number"):
        result_of("sugarcrepe", [{"prediction": fit, "references": "yes", "category": "add_obj", "pair": 1}])


def test_fits_are_log_probabilities_of_the_answer_however_multiple_choice_is_answered(tiny_parts, tmp_path):
    model, processor = build(tiny_settings(tiny_parts))
    model.eval()
    for name in ("winoground", "winoground_caption"):
        benchmark, items = items_of(name, tmp_path)
        questions = questions_of(benchmark, items, "model", seed=0)
        assert [q.options for q in questions] == [tuple(item.fields["options"]) for item in items]
        replies = answer_all(questions, LocalModel(model, processor, 4, {}), shows_progress=False)
        answers, official = score_answers(benchmark, items, "model", questions, [replies[q] for q in questions])
        wanted = {}
        likelihoods(
            model, processor, [q.request() for q in questions], [q.options[0] for q in questions], 1, wanted.update
        )
        assert [float(answer.answer) for answer in answers] == pytest.approx([wanted[n] for n in range(12)], rel=1e-4)
        assert official["score"] == official["group"]


class Sure:
    """A model under test that is as sure of every answer as its prompt is long."""

    identity = MappingProxyType({"model_sha256": "s"})

    def answer(self, questions, on_replies):
        on_replies({q: Reply((q.options or ("A",))[0], -1.0 / len(q.prompt + str(q.media))) for q in questions})


def test_answers_of_an_evaluation_are_scored_again_from_their_file_and_say_what_was_measured(tmp_path):
    names = ("winoground", "sugarcrepe_caption", "mmvp", "naturalbench", "whatsup", "vsr")
    for name in names:
        SPATIAL_WRITERS[name](tmp_path)
    outcome = evaluate_subject(Setup(names, tmp_path, tmp_path / "out"), lambda: (Sure(), "sure", []))
    for name in names:
        metric = find_benchmark(name).metric
        again = score_file(metric, tmp_path / "out" / "answers.jsonl")
        assert again["score"] == outcome.official[name]["model"]["score"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["decoding"]["measured"] == ["winoground", "sugarcrepe_caption"]
    assert "Official number (winoground)" in (tmp_path / "out" / "report.md").read_text()


def test_without_the_image_every_image_score_is_a_tie_and_lost(tmp_path):
    benchmark, items = items_of("winoground", tmp_path)
    questions = questions_of(benchmark, items, "withheld", seed=0)
    replies = [Reply("Yes", -float(len(question.prompt))) for question in questions]
    _, official = score_answers(benchmark, items, "withheld", questions, replies)
    assert official["image"] == official["group"] == 0.0


def test_an_endpoint_refuses_what_is_measured():
    subject = Endpoint("m", "http://127.0.0.1:1", 1)
    question = Question("Does it?", shown("a.png"), 1, ("Yes",))
    with pytest.raises(UserError, match="leave out --choice-by likelihood, and benchmarks that measure it"):
        subject.answer([question], lambda replies: None)
