"""Metrics whose lines belong together, held to cases worked out by hand and to independent implementations."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.errors import UserError
from mllm.evaluation.benchmarks.pope import says_yes
from mllm.evaluation.letters import read_option
from mllm.evaluation.metrics.chair import objects_of
from mllm.evaluation.metrics.ece import calibration_bins
from mllm.evaluation.metrics.iou import box_iou
from mllm.evaluation.metrics.ptb import ptb_words
from tests.helpers.metric_results import result_of

OPTIONS = {"A": "red ball", "B": "blue cube", "C": "green cone"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("b", None),
        ("A or B", None),
        ("The answer is B", "B"),
        ("It is the blue cube", "B"),
        ("It is the BLUE CUBE.", "B"),
        ("a red ball on a blue cube", None),
        ("B is what I see in it", None),  # four words or more after the letter
        ("C: A blue cube", "B"),
        ("I think it is the blue cube " + "x" * 60, None),  # longer than twice the options together
        ("Z", None),
        ("Cannot determine the answer, B", None),
        ("", None),
    ],
)
def test_an_option_is_read_from_its_letter_or_its_text(answer, letter):
    assert read_option(answer, OPTIONS) == letter


def test_a_circular_question_counts_if_every_rotation_is_right():
    rotated = {"A": "blue cube", "B": "green cone", "C": "red ball"}
    lines = [
        {"index": 7, "prediction": "A", "references": "A", "options": OPTIONS, "category": "x", "l2-category": "p"},
        {"index": 1000007, "prediction": "C", "references": "C", "options": rotated},
        {"index": 8, "prediction": "C", "references": "B", "options": list(OPTIONS.values()), "category": "x"},
        {"index": 1000008, "prediction": "A", "references": "A", "options": rotated},
        {"index": 9, "prediction": "C", "references": "C", "options": OPTIONS, "category": "y"},
    ]
    circular, vanilla = result_of("mmbench_circular", lines), result_of("mmbench", lines)
    assert circular.scores["score"] == pytest.approx(2 / 3) and circular.scores["questions"] == 3
    assert circular.scores["by_category"] == {"x": 0.5, "y": 1.0}
    assert circular.scores["by_l2_category"] == {"p": 1.0}
    assert circular.per_line == [1, 1, 0, 0, 1]
    assert vanilla.scores["score"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("NO", True),
        ("No, there is none", False),
        ("No. Yes", False),
        ("Yes. No", True),
        ("There is not", False),
        ("nothing", True),
        ("No\nthere", True),  # split at spaces alone
        ("Maybe", True),
        ("", True),
        ("no!", True),
    ],
)
def test_pope_reads_everything_but_a_plain_no_as_yes(answer, yes):
    assert says_yes(answer) is yes


def test_pope_rates_by_group_and_their_means():
    def lines(group, pairs):
        return [{"id": i, "group": group, "prediction": p, "references": r} for i, (p, r) in enumerate(pairs)]

    # random: 2 hits, 1 false alarm, 1 miss, 0 rejections; popular: says no to all
    random = lines("random", [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes")])
    popular = lines("popular", [("no", "yes"), ("no", "no")])
    result = result_of("pope", random + popular)
    first, second = result.scores["by_group"]["random"], result.scores["by_group"]["popular"]
    assert first == pytest.approx(
        {"accuracy": 0.5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.75}
    )
    assert second == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    assert result.scores["score"] == result.scores["f1"] == pytest.approx(1 / 3)
    assert result.scores["yes_ratio"] == pytest.approx(0.375)
    assert result.per_line == [1, 1, 0, 0, 0, 1]


def test_mme_adds_accuracy_and_accuracy_plus_over_tasks():
    rows = [
        ("existence", "a", "Yes", "Yes"),
        ("existence", "a", "No", "no, none"),
        ("existence", "b", "Yes", "I say yes"),  # past the first four characters: other
        ("existence", "b", "No", "no"),
        ("code_reasoning", "c", "Yes", "yes"),
        ("code_reasoning", "c", "No", "Not no"),  # "not " holds "no"
    ]
    for with_image in (True, False):
        lines = [
            {"category": task, "references": gold, "prediction": answer} | ({"image": image} if with_image else {})
            for task, image, gold, answer in rows
        ]
        scores = result_of("mme", lines).scores
        assert scores["perception"] == pytest.approx(75 + 50)
        assert scores["cognition"] == pytest.approx(200)
        assert scores["score"] == pytest.approx(325)
    with pytest.raises(UserError, match="1 question"):
        result_of("mme", lines[:1])
    with pytest.raises(UserError, match=r"line 1: category: unknown MME task 'x'; choose one of: existence"):
        result_of("mme", [lines[0] | {"category": "x"}])


def iou_of(prediction, reference, size=None, **settings):
    fields = {} if size is None else dict(zip(("width", "height"), size, strict=True))
    return result_of("iou", [{"prediction": prediction, "references": reference} | fields], **settings)


def test_iou_by_hand():
    assert iou_of([0, 0, 10, 10], [0, 0, 10, 10]).per_line == [1.0]
    assert iou_of([0, 0, 10, 10], [5, 0, 15, 10]).per_line == [pytest.approx(50 / 150)]
    assert iou_of([0, 0, 10, 10], [10, 0, 20, 10]).per_line == [0.0]
    assert iou_of([10, 10, 0, 0], [0, 0, 10, 10]).per_line == [1.0]  # inverted corners
    assert iou_of([-5, 0, 10, 30], [0, 0, 10, 20], (10, 20)).per_line == [1.0]  # clipped
    assert iou_of([5, 5, 5, 9], [0, 0, 10, 10]).per_line == [0.0]
    assert iou_of("[0, 0, 10, 10.0] or 4", [[90, 90, 99, 99], [0, 0, 10, 10]]).per_line == [1.0]
    nothing = iou_of("no box", [0, 0, 1, 1])
    assert nothing.per_line == [0.0] and nothing.scores["without_box"] == 1


def test_coordinates_are_what_they_are_declared_to_be():
    pixels, size = [20, 10, 60, 30], (100, 50)
    assert iou_of("0.2 0.2 0.6 0.6", pixels, size, convention="0-1").per_line == [pytest.approx(1)]
    assert iou_of("200 200 600 600", pixels, size, convention="0-1000").per_line == [pytest.approx(1)]
    assert iou_of("0.2 0.2 0.6 0.6", pixels, size).per_line == [0.0]  # never guessed
    same = iou_of([0, 0, 1, 1], [0, 0, 1, 0.6], convention="0-1", reference_convention="0-1")
    assert same.per_line == [pytest.approx(0.6)] and same.scores["score"] == 1.0
    assert iou_of([0, 0, 1, 1], [0, 0, 1, 0.6], threshold="0.7").scores["score"] == 0.0
    with pytest.raises(UserError, match="width, height"):
        iou_of([0, 0, 1, 1], pixels, convention="0-1")


boxes = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(boxes, boxes)
def test_iou_counts_unit_squares(first, second):
    def squares(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    a, b = squares(first), squares(second)
    assert box_iou(first, second) == pytest.approx(len(a & b) / len(a | b)) == box_iou(second, first)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        # The right-hand sides are what CoreNLP 3.4.1 gives after the official filter.
        (
            "A man (in a red shirt) isn't riding; he's happy...",
            "a man -lrb- in a red shirt -rrb- is n't riding he 's happy",
        ),
        ("The dogs' $5.50 ball & 3/4 of 1,000", "the dogs $ 5.50 ball & 3/4 of 1,000"),
        ("can't cannot gonna won't", "ca n't can not gon na wo n't"),
        ("A t-shirt, black-and-white, at 5 p.m.", "a t-shirt black-and-white at 5 p.m."),
        ('Mr. Smith\'s "stop sign".', "mr. smith 's stop sign"),
        ("Two cats!! What?! Wow!", "two cats !! what ?! wow"),
        ("50% of #1 and x/y", "50 % of # 1 and x/y"),
        ("it’s a “fancy” – one—two", "it 's a fancy one two"),
        ("'hello' rock 'n' roll o'clock 5'10\"", "hello rock 'n' roll o'clock 5 10"),
        ("The cat sat. No.", "the cat sat no"),
        ("St. Louis no. 5, the U.S. flag. End", "st. louis no. 5 the u.s. flag end"),
    ],
)
def test_caption_words_are_those_of_the_stanford_tokenizer(caption, words):
    assert ptb_words(caption) == words.split()


def test_caption_scores_by_hand():
    pytest.importorskip("pycocoevalcap")
    lines = [
        {"prediction": "A cat sat.", "references": ["the cat sat", "a cat sat down"]},
        {"prediction": "two red dogs run", "references": ["two red dogs run"]},
    ]
    scores = result_of("bleu_rouge_cider", lines).scores
    # 7 of 7 words, 5 of 5 pairs, 3 of 3 triples and 1 of 1 quadruple occur; lengths 7 against the closest 3 + 4
    assert [scores[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1, 1, 1, 1], abs=1e-6)
    # ROUGE-L: best precision 1 (second reference), best recall 3/4; beta 1.2
    first = (1 + 1.44) * 1 * 0.75 / (0.75 + 1.44 * 1)
    assert scores["rouge_l"] == pytest.approx((first + 1) / 2)
    alone = result_of("bleu_rouge_cider", lines[1:]).scores
    assert alone["cider"] == 0.0 and alone["bleu_4"] == pytest.approx(1, abs=1e-6)


def test_cider_by_hand():
    pytest.importorskip("pycocoevalcap")
    lines = [{"prediction": "a b", "references": ["a b"]}, {"prediction": "c", "references": ["a c"]}]
    result = result_of("bleu_rouge_cider", lines)
    # "a" is in both images: weight 0. Line 1: 1-gram cosine 1 (b), 2-gram cosine 1, none above: 10 · 2/4 = 5.
    # Line 2: cosine of c is 1, length differs by one: exp(-1/72); no 2-gram in the caption: 10/4 of it.
    assert result.per_line == pytest.approx([5.0, 2.5 * math.exp(-1 / 72)])
    assert result.scores["score"] == result.scores["cider"] == pytest.approx(sum(result.per_line) / 2)


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("Two men and a woman ride bikes.", ["person", "person", "bicycle"]),
        ("A baby bird near a passenger jet", ["bird", "airplane"]),
        ("A hot dog and a dog, hot.", ["hot dog", "dog"]),
        ("wine glasses, a glass and a wine glass", ["wine glass", "wine glass"]),
        ("the seat of the toilet", ["toilet"]),
        ("a toilet seat", ["toilet"]),
        ("a seat", ["chair"]),
        ("knives, scissors, geese, couches, puppies", ["knife", "scissors", "bird", "couch", "dog"]),
        ("a bus and two buses", ["bus"]),  # the singular of "bus" is "bu" to the official script
        ("tennis racket", ["tennis racket"]),
        ("home plate and a plate of food", []),
        ("The dog's bowl/cup", ["dog"]),
        ("a teddy bear on a dining table", ["teddy bear", "dining table"]),
    ],
)
def test_objects_are_found_by_their_synonyms(caption, objects):
    assert objects_of(caption) == objects


def test_chair_counts_repeats():
    lines = [
        {"prediction": "A cat and a dog and a dog", "references": ["a kitten", "a cat on a couch"], "objects": ["tv"]},
        {"prediction": "a pizza", "objects": ["pizza"]},
        {"prediction": "nothing", "references": "a bench"},
    ]
    result = result_of("chair", lines)
    assert result.scores["chair_i"] == pytest.approx(2 / 4)
    assert result.scores["chair_s"] == pytest.approx(1 / 3)
    assert result.scores["recall"] == pytest.approx(2 / 5)
    assert result.per_line == pytest.approx([2 / 3, 0, 0])
    with pytest.raises(UserError, match="objects: 'unicorn' is no COCO category"):
        result_of("chair", [{"prediction": "a", "objects": ["unicorn"]}])
    with pytest.raises(UserError, match="line 1: references: field required"):
        result_of("chair", [{"prediction": "a"}])


def ece_of(pairs, **settings):
    lines = [{"prediction": confidence, "references": right} for confidence, right in pairs]
    return result_of("ece", lines, **settings).scores["score"]


def test_ece_by_hand():
    pairs = [(0.1, 0), (0.3, 1), (0.6, 1), (0.9, 0)]
    # two bins: [0, 0.5) confidence 0.2, accuracy 0.5; [0.5, 1) confidence 0.75, accuracy 0.5
    assert ece_of(pairs, bins="2") == pytest.approx(0.5 * 0.3 + 0.5 * 0.25)
    assert ece_of(pairs, bins="2", norm="max") == pytest.approx(0.3)
    assert ece_of(pairs, bins="2", norm="l2") == pytest.approx(math.sqrt(0.5 * 0.09 + 0.5 * 0.0625))
    # an edge belongs to the bin above it, and confidence 1 has a bin of its own
    assert [b.count for b in calibration_bins([0.5, 0.49, 0.99, 1.0], [True] * 4, 2)] == [1, 2, 1]


@settings(deadline=None)  # the first call imports torchmetrics
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_ece_is_that_of_torchmetrics(pairs, bins):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    confidences, right = torch.tensor([p for p, _ in pairs]), torch.tensor([int(r) for _, r in pairs])
    for norm in ("l1", "l2", "max"):
        wanted = functional.binary_calibration_error(confidences, right, n_bins=bins, norm=norm)
        assert ece_of(pairs, bins=str(bins), norm=norm) == pytest.approx(float(wanted), abs=1e-5)


def test_error_rates_are_sums_over_the_corpus():
    pytest.importorskip("jiwer")
    lines = [
        {"prediction": "the cat", "references": "the cat sat"},  # one word, four characters deleted
        {"prediction": "a big dog", "references": "a dog"},  # one word, four characters inserted
        {"prediction": "x", "references": "y"},  # substituted
    ]
    words, characters = result_of("wer", lines), result_of("cer", lines)
    assert words.scores == {"score": pytest.approx(3 / 6), "errors": 3, "words": 6}
    assert words.per_line == pytest.approx([1 / 3, 1 / 2, 1])
    assert characters.scores == {"score": pytest.approx(9 / 17), "errors": 9, "characters": 17}
    assert result_of("wer", [*lines, {"prediction": "a b", "references": ""}]).scores["score"] == pytest.approx(5 / 6)
    with pytest.raises(UserError, match="every reference is empty"):
        result_of("cer", [{"prediction": "a", "references": ""}])
