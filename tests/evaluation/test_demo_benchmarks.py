"""The demo's benchmarks, described by YAML files: the questions of its data, their controls, and where they lie."""

import json

import pytest

from mllm.errors import UserError
from mllm.evaluation.benchmark import Item, MajorityAnswer
from mllm.evaluation.benchmarks import benchmark_files, find_benchmark, metric_of
from mllm.evaluation.medium import shown
from mllm.evaluation.plan import plan_run
from tests.helpers.demo_inputs import write_easyvqa
from tests.helpers.releases import save_image

KINDS = {"circle": "shape", "rectangle": "shape", "triangle": "shape", "yes": "yes_no", "no": "yes_no"}


def test_easyvqa_asks_its_own_test_split_in_the_order_of_its_file(tmp_path):
    root = write_easyvqa(tmp_path / "easyvqa")
    benchmark = find_benchmark("easyvqa")
    rows = json.loads((root / "test" / "questions.json").read_text())
    wanted = [
        (
            f"test-{n}",
            shown(root / "test" / "images" / f"{image}.png"),
            question,
            (answer,),
            KINDS.get(answer, "color"),
            f"{image}.png",
        )
        for n, (question, answer, image) in enumerate(rows)
    ]
    items = benchmark.items(tmp_path)
    assert [(i.id, i.media, i.question, i.references, i.type, i.group) for i in items] == wanted
    assert [benchmark.prompt(item) for item in items] == [question for question, _, _ in rows]
    assert [benchmark.score(text, items[0]) for text in (rows[0][1].upper() + ".", "nothing")] == [1.0, 0.0]
    assert (benchmark.default_limit, benchmark.max_new_tokens, metric_of("easyvqa").__name__) == (
        1000,
        8,
        "ExactMatchScore",
    )
    trained = json.loads((root / "train" / "questions.json").read_text())
    majority, found = (
        MajorityAnswer((question, answer) for question, answer, _ in trained),
        benchmark.majority(tmp_path),
    )
    texts = [item.question for item in items] + ["never asked?"]
    assert [found.predict(text) for text in texts] == [majority.predict(text) for text in texts]


def test_an_answer_of_no_type_and_a_row_of_another_length_are_named(tmp_path):
    root = write_easyvqa(tmp_path / "easyvqa")
    path = root / "test" / "questions.json"
    for rows, words in ((["what?", "purple", 0], "the answer 'purple' is of no type"), (["what?", "red"], "a list of")):
        path.write_text(json.dumps([rows]))
        with pytest.raises(UserError, match=rf"questions\.json\[0\]: .*{words}"):
            find_benchmark("easyvqa").items(tmp_path)


@pytest.mark.parametrize("name", ["clipart", "ocr_words"])
def test_held_out_questions_are_those_of_the_demos_data_and_the_majority_of_its_training(name, tmp_path):
    (tmp_path / "heldout").mkdir()
    save_image(tmp_path / "images" / "a.png")
    line = {"id": "a", "image": "images/a.png", "question": "What is it?", "answer": "a cat", "type": "category"}
    (tmp_path / "heldout" / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    samples = [
        {"id": "1", "messages": turns, "images": []}
        for turns in (
            [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a dog"}],
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 2,
        )
    ]
    (tmp_path / "instruct.jsonl").write_text("\n".join(map(json.dumps, samples)))
    (chosen,) = plan_run([name], tmp_path, None, seed=0, conditions=("model",))
    (item,) = chosen.items
    assert (item.id, item.media, item.question, item.references, item.type, item.group) == (
        "a",
        shown(tmp_path / "images" / "a.png"),
        "What is it?",
        ("a cat",),
        "category",
        "images/a.png",
    )
    assert chosen.benchmark.max_new_tokens == 16 and chosen.benchmark.default_limit is None
    assert [chosen.majority.predict(text) for text in ("What is it?", "x")] == ["a dog", "a dog"]
    (tmp_path / "instruct.jsonl").write_text('{"messages": 5}\n')
    with pytest.raises(UserError, match=r"instruct\.jsonl:1: no sample and no question: .*write the data again"):
        chosen.benchmark.majority(tmp_path)


def test_a_benchmark_of_ones_own_is_a_yaml_file_beside_its_questions(tmp_path):
    save_image(tmp_path / "pictures" / "7.png")
    (tmp_path / "q.csv").write_text("question,answer,number\nWhat?,a cap,7\n")
    settings = "file: q.csv\nimage: '{number}.png'\nimage_root: pictures\nid: q{index}\nprompt: 'Look: {question}'\n"
    (tmp_path / "own.yaml").write_text(settings + "metric: anls\nlimit: 5\nmax_new_tokens: 9\n")
    name = str(tmp_path / "own.yaml")
    (chosen,) = plan_run([name], tmp_path / "elsewhere", None, seed=0, conditions=("model",))
    wanted = Item("q0", shown(tmp_path / "pictures" / "7.png"), "What?", ("a cap",), "all", "7.png")
    assert (chosen.items[0].id, chosen.items[0].media) == (wanted.id, wanted.media)
    (question,) = chosen.questions["model"]
    assert (question.prompt, question.max_new_tokens) == ("Look: What?", 9)
    assert chosen.benchmark.score("a cat", chosen.items[0]) == pytest.approx(0.8)
    for change, words in (
        ("imaeg: x\n", "unknown key 'imaeg'; did you mean 'image'"),
        ("metric: nope\n", "unknown metric 'nope'"),
        ("prompt: no question in it\n", "prompt: "),
    ):
        (tmp_path / "own.yaml").write_text("file: q.csv\n" + change)
        with pytest.raises(UserError, match=words):
            find_benchmark(name)
    (tmp_path / "own.yaml").write_text("file: q.csv\nimage: '{nummer}.png'\n")
    with pytest.raises(UserError, match=r"q\.csv:2: 'nummer' is no column of it; see own\.yaml"):
        find_benchmark(name).items(tmp_path)


def test_every_file_beside_the_recipes_can_be_read_by_its_name():
    assert {"easyvqa", "clipart", "naming", "ocr_words"} <= benchmark_files().keys()
    for name in benchmark_files():
        assert find_benchmark(name).default_data is not None


def test_the_majority_is_counted_in_samples_as_users_write_them(tmp_path):
    shapes = ["circle", "circle", "square"]
    lines = [
        {
            "messages": [
                {"role": "user", "content": "<image>\nWhat shape is it?"},
                {"role": "assistant", "content": shape},
            ],
            "images": ["a.png"],
        }
        for shape in shapes
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mine.yaml").write_text("file: questions.jsonl\nmajority: train.jsonl\n")
    benchmark = find_benchmark(str(tmp_path / "mine.yaml"))
    assert benchmark.majority(tmp_path).predict("What shape is it?") == "circle"

    questions = [{"question": "What shape is it?", "answer": "square", "image": "a.png"}] * 2
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *questions]))
    assert benchmark.majority(tmp_path).predict("What shape is it?") == "square"
