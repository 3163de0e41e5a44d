"""Metrics of short answers, held to cases worked out by hand from the official scorers' rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.errors import UserError
from mllm.evaluation.benchmarks import METRICS
from mllm.evaluation.metrics.vqa import leave_one_out_accuracy
from mllm.evaluation.metrics.vqa_text import normalize_m4c, normalize_vqa
from tests.helpers.metric_results import result_of


def score(name, prediction, references, **fields):
    return result_of(name, [{"prediction": prediction, "references": references} | fields]).per_line[0]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat", "cat"),
        ("a an the", ""),
        (" Yes\n", "yes"),
        ("left\tright", "left right"),
        ("none", "0"),
        ("Ten men", "10 men"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # the table's key has a capital, the words have none
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red , blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one hyphen at a space deletes all of them
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits deletes every mark
        ("3.", "3"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("u.s.", "us"),
        ("5%", "5%"),
        ("dog's: $1 #2", "dog's: $1 #2"),
        ("(yes)", "yes"),
        ("x" + "." * 40, "x" + "." * 8),  # the first 32 periods go
    ],
)
def test_vqa_normal_form(text, normal):
    assert normalize_vqa(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [("red,blue", "redblue"), ("What?", "what"), ("dog's", "dog 's"), ("The dogs' two", "dogs' 2"), ("A-B", "b")],
)
def test_m4c_normal_form(text, normal):
    assert normalize_m4c(text) == normal


@pytest.mark.parametrize(("matches", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_one_out(matches, wanted):
    references = ["red"] * matches + ["blue"] * (10 - matches)
    for name in ("vqa", "vqa_official", "textvqa"):
        assert score(name, "red", references) == pytest.approx(wanted)


def test_equal_references_are_not_normalized_by_the_official_scorer():
    assert score("vqa_official", "Red", ["red"] * 10) == 0.0
    assert score("vqa_official", " red\n", ["red"] * 10) == 1.0
    assert score("vqa_official", "Red", ["red"] * 9 + ["RED"]) == 1.0
    assert score("vqa", "Red", ["red"] * 10) == 1.0


def test_vqa_has_means_by_type():
    lines = [
        {"prediction": "yes", "references": ["yes"] * 10, "question_type": "is the", "answer_type": "yes/no"},
        {"prediction": "no", "references": ["yes"] * 10, "question_type": "is the", "answer_type": "yes/no"},
        {"prediction": "red", "references": ["red"] * 10, "question_type": "what", "answer_type": "other"},
    ]
    scores = result_of("vqa", lines).scores
    assert scores["score"] == pytest.approx(2 / 3)
    assert scores["by_question_type"] == {"is the": 0.5, "what": 1.0}
    assert scores["by_answer_type"] == {"yes/no": 0.5, "other": 1.0}


def test_textvqa_wants_exactly_ten_answers():
    with pytest.raises(UserError, match="line 1: references"):
        score("textvqa", "red", ["red"] * 9)


def test_gqa_reads_predictions_as_llava_does_and_as_the_official_script_does():
    assert score("gqa", "Yes..", "yes") == 1.0
    assert score("gqa", "yes. ", "yes") == 0.0
    assert score("gqa", "yes", "Yes") == 0.0
    assert score("gqa_official", "Yes", "yes") == 0.0
    assert score("gqa_official", "yes", "yes") == 1.0
    lines = [
        {"prediction": "yes", "references": "yes", "structural": "verify"},
        {"prediction": "no", "references": "yes", "structural": "logical"},
        {"prediction": "cat", "references": "cat", "structural": "query"},
    ]
    assert result_of("gqa", lines).scores["by_form"] == {"binary": 0.5, "open": 1.0}


@pytest.mark.parametrize(
    ("prediction", "references", "wanted"),
    [
        ("Hello", ["hello"], 1.0),
        ("a  b", ["a b"], 1.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("ab", ["ac"], 0.5),
        ("abc", ["xyc"], 0.0),  # 1/3 similar
        ("", [""], 1.0),
        ("", ["a"], 0.0),
        ("cat", ["dog", "cats"], 0.75),
        ("a    x", ["a    y"], 1 - 1 / 6),  # the length is that of the raw strings
        ("ß", ["a"], 0.5),  # whose upper case has two letters
        ("café", ["cafe"], 0.75),
    ],
)
def test_anls(prediction, references, wanted):
    assert score("anls", prediction, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("prediction", "target", "wanted"),
    [
        ("102", "100", 1),
        ("106", "100", 0),
        ("-96", "-100", 1),
        ("2015", "2010", 1),
        ("50%", "0.5", 1),
        ("50%", "50", 0),
        ("50%%", "0.5", 1),
        ("1e2", "100", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("Yes", "yes", 1),
        ("yes ", "yes", 0),
        (" 100 ", "100", 1),
        ("1,000", "1000", 0),
        ("nan", "100", 0),
        ("%", "%", 1),
    ],
)
def test_chartqa_relaxed(prediction, target, wanted):
    assert score("chartqa_relaxed", prediction, target) == wanted


def test_chartqa_takes_the_best_reference_and_means_by_group():
    assert score("chartqa_relaxed", "7", ["a", "7"]) == 1
    lines = [
        {"prediction": "1", "references": "1", "group": "human"},
        {"prediction": "1", "references": "2", "group": "augmented"},
    ]
    assert result_of("chartqa_relaxed", lines).scores == {"score": 0.5, "by_group": {"human": 1.0, "augmented": 0.0}}


@pytest.mark.parametrize(
    ("dataset", "prediction", "references", "wanted"),
    [
        ("IIIT5K", "It says HELLO.", "hello", 1),
        ("IIIT5K", "hell", ["hello", "hell no"], 0),
        ("IIIT5K", "a\nb", "a b", 1),
        ("IIIT5K", "a  b", "a b", 0),
        ("HME100k", "x ^ 2 + Y", "x^2+Y", 1),
        ("HME100k", "x\n^2", "x^2", 1),
        ("HME100k", "X", "x", 0),
    ],
)
def test_ocrbench(dataset, prediction, references, wanted):
    assert score("ocrbench", prediction, references, dataset_name=dataset) == wanted


def test_ocrbench_sums_points_by_group():
    kinds = ["Digit String Recognition", "Handwriting Recognition", "Doc-oriented VQA"]
    lines = [{"prediction": "7", "references": "7", "dataset_name": "x", "type": kind} for kind in kinds]
    lines[2]["prediction"] = "8"
    scores = result_of("ocrbench", lines).scores
    assert (scores["score"], scores["accuracy"]) == (2, pytest.approx(2 / 3))
    assert scores["points_by_type"]["recognition"] == 2 and scores["points_by_type"]["doc_vqa"] == 0


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        ("B", 1),
        ("b", 0),
        ("B ", 0),
        ("B. the leaf", 1),
        ("B.", 0),
        ("B) leaf", 0),
        ("The answer is B.", 1),
        ("The answer is B!", 1),  # the dot is any character ...
        ("The answer is B", 0),  # ... but there must be one
        ("The answer is B. The answer is B.", 0),
        ("I think the answer is B.", 0),
        ("", 0),
    ],
)
def test_scienceqa(prediction, wanted):
    assert score("scienceqa", prediction, "B") == wanted


def test_scienceqa_has_the_image_subset_apart():
    lines = [
        {"prediction": "A", "references": "A", "has_image": True},
        {"prediction": "A", "references": "B", "has_image": False},
    ]
    assert result_of("scienceqa", lines).scores == {"score": 0.5, "image_accuracy": 1.0}


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        ("B", 1),
        ("b.", 1),
        (" B. the leaf", 1),
        ("(B)", 1),
        ("B leaf", 0),
        ("B ", 1),
        ("A. B", 0),
        (" B", 1),
        ("B\n", 1),
        ("\tb.\n", 1),
    ],
)
def test_ai2d(prediction, wanted):
    assert score("ai2d", prediction, "B") == wanted


answers = st.text(alphabet="ab ,.'-1T", max_size=8)
letters = st.sampled_from("ABCDE")


@given(
    answers,
    st.lists(answers, min_size=1, max_size=10),
    st.lists(letters, min_size=1),
    st.randoms(use_true_random=False),
)
def test_scores_are_bounded_and_the_order_of_references_does_not_matter(prediction, texts, options, random):
    for names, references in (
        (("vqa", "vqa_official", "gqa", "anls", "chartqa_relaxed", "exact_match"), texts),
        (("ai2d", "scienceqa"), options),
    ):
        shuffled = random.sample(references, len(references))
        for name in names:
            value = score(name, prediction, references)
            assert 0 <= value <= 1
            assert value == pytest.approx(score(name, prediction, shuffled))


@given(st.text(alphabet="abc dß", max_size=10), st.text(alphabet="abc dß", max_size=10))
def test_anls_is_symmetric(first, second):
    assert score("anls", first, second) == pytest.approx(score("anls", second, first))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_accuracy_by_leaving_one_out_is_the_mean_over_subsets(matches):
    references = ["x" if match else "y" for match in matches]
    subsets = [references[:i] + references[i + 1 :] for i in range(len(references))]
    wanted = sum(min(1, subset.count("x") / 3) for subset in subsets) / len(subsets)
    assert leave_one_out_accuracy("x", references) == pytest.approx(wanted)


def test_every_metric_of_the_specification_is_there():
    names = (
        "vqa_official vqa textvqa gqa anls chartqa_relaxed ocrbench scienceqa ai2d mmbench_circular pope mme iou "
        "bleu_rouge_cider chair ece cer wer"
    )
    assert set(names.split()) <= set(METRICS)
