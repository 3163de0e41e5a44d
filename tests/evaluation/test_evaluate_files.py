"""A model directory through `evaluate`: our benchmarks, official ones and a user's file in one run."""

import json
from pathlib import Path

import pytest

import mllm
from mllm.checkpoint.ours import save
from mllm.checkpoint.start import build
from mllm.cli import build_parser, main
from mllm.errors import UserError
from mllm.evaluation.reliability import calibrate
from mllm.evaluation.run import evaluate
from mllm.inference.answer import Answer, TokenLogprob
from tests.helpers.commands import run_script
from tests.helpers.launches import in_ranks
from tests.helpers.releases import write_mme
from tests.helpers.tiny import save_image, tiny_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tiny_parts, tmp_path_factory):
    """A directory with `model`, MME's files, and `own.jsonl`: two questions about images, one about text."""
    root = tmp_path_factory.mktemp("prepared")
    save(root / "model", *build(tiny_settings(tiny_parts)))
    write_mme(root)
    save_image(root / "a.png")
    save_image(root / "b.png", (10, 90, 10))
    lines = [
        {"image": "a.png", "question": "What?", "answer": "a"},
        {"question": "Why?", "answer": "b"},
        {"image": "b.png", "question": "What?", "answer": "c"},
    ]
    (root / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def run(root, output, *names, **more):
    own = [str(root / "own.jsonl"), *names]
    return evaluate(root / "model", own, root, output=output, limit=3, batch_size=8, **more).scores


def read(output):
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    return json.loads((output / "results.json").read_text()), answers


def test_results_hold_the_official_numbers_of_every_condition_and_how_they_were_made(prepared, tmp_path):
    run(prepared, tmp_path, "mme")
    results, answers = read(tmp_path)
    assert set(results["official"]["mme"]) == {"model", "withheld", "swapped"}
    assert {"perception", "cognition", "by_task"} <= results["official"]["mme"]["model"].keys()
    pairs = [a["group"] for a in answers if a["benchmark"] == "mme" and a["condition"] == "model"]
    assert pairs and all(pairs.count(group) == 2 for group in pairs)  # three were asked for, pairs were completed
    assert results["is_partial"] is False and results["coverage"]["mme"]["asked"] == len(pairs)
    assert results["decoding"] == {
        "do_sample": False,
        "choice_by": "generation",
        "max_new_tokens": results["decoding"]["max_new_tokens"],
    }
    for name in ("model_sha256", "preprocessing_sha256", "questions_sha256", "data_sha256", "prompt_sha256", "dtype"):
        assert results[name]
    # every answer carries its log-probability, so calibration can be read off
    assert all(answer["logprob"] < 0 for answer in answers)
    assert calibrate(tmp_path)["mme"]["count"] == len(pairs)


def test_a_second_run_computes_nothing(prepared, tmp_path, monkeypatch):
    first = run(prepared, tmp_path)
    monkeypatch.setattr("mllm.evaluation.subjects.local.generate_answers", lambda *_: pytest.fail("asked again"))
    assert run(prepared, tmp_path) == first
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        run(prepared, tmp_path, dtype="bfloat16")


def test_a_model_in_memory_has_the_scores_of_its_directory_and_nothing_is_written(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(prepared / "own.jsonl"), "mme"]
    written = mllm.evaluate(prepared / "model", names, prepared, output=tmp_path / "out", limit=3, device="cpu")
    model, processor = mllm.load(prepared / "model")
    model.train()
    found = mllm.evaluate((model, processor), names, prepared, limit=3)
    assert (found.scores, found.official) == (written.scores, written.official) and model.training
    assert found["mme"] == next(s for s in found.scores["mme"] if (s.condition, s.type) == ("model", "overall"))
    assert mllm.evaluate(str(prepared / "model"), names[0], limit=3).scores == {names[0]: found.scores[names[0]]}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="save it, and give the directory"):
        mllm.evaluate((model, processor), names, prepared, output=tmp_path / "other")
    with pytest.raises(UserError, match="device 'cuda:77'"):
        mllm.evaluate(prepared / "model", names[0], device="cuda:77")


@pytest.mark.slow
def test_two_ranks_give_the_answers_of_one(prepared, tmp_path):
    run(prepared, tmp_path / "one", "mme")
    names = f"{prepared / 'own.jsonl'},mme"
    options = ["--data", prepared, "--benchmarks", names, "--output", tmp_path / "two", "--limit", 3, "--batch-size", 8]
    words = [str(part) for part in ("--model", prepared / "model", *options)]
    in_ranks(tmp_path / "ranks", 2, run_script, "eval/run.py", *words)
    said = [(tmp_path / "ranks" / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert "".join(said).count("mean score") == 1
    (one, answers), (two, dealt) = read(tmp_path / "one"), read(tmp_path / "two")
    assert two["scores"] == one["scores"] and two["data_sha256"] == one["data_sha256"]
    for a, b in zip(answers, dealt, strict=True):
        assert b.pop("logprob") == pytest.approx(a.pop("logprob"), abs=1e-3)
        assert a == b
    shares = [(tmp_path / "two" / "asked" / f"{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    first, second = ({json.loads(line)["key"] for line in share} for share in shares)
    assert first and second and not first & second


def test_missing_images_end_the_run_or_make_it_partial(prepared, tmp_path):
    lines = [{"id": str(n), "image": f"{n}.png", "question": "What?", "answer": f"{n}"} for n in range(4)]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for n in range(3):
        save_image(tmp_path / f"{n}.png", (n, n, n))
    names, more = [str(tmp_path / "some.jsonl")], {"output": tmp_path / "out", "batch_size": 8}
    with pytest.raises(UserError, match=r"1 image\(s\) are missing, such as .*3\.png; --on-missing skip"):
        evaluate(str(prepared / "model"), names, **more)
    assert not (tmp_path / "out").exists()
    evaluate(str(prepared / "model"), names, **more, on_missing="skip")
    results, answers = read(tmp_path / "out")
    (coverage,) = results["coverage"].values()
    assert results["is_partial"] is True and coverage == {"in_files": 4, "asked": 3, "skipped": 1}
    assert {answer["item_id"] for answer in answers} == {"0", "1", "2"}
    skipped = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert skipped["item_id"] == "3" and skipped["reason"].endswith("3.png is missing")
    for page in ("report.html", "report.md"):
        assert "PARTIAL: questions were skipped" in (tmp_path / "out" / page).read_text()
    for n in range(3):
        (tmp_path / f"{n}.png").unlink()
    with pytest.raises(UserError, match=r"all 4 question\(s\) lack their image"):
        evaluate(str(prepared / "model"), names, **more, on_missing="skip")


def test_models_that_say_nothing_or_no_number_are_named(prepared, tmp_path, monkeypatch):
    def silent(model, processor, requests, decodings, batch_size, report):
        report({n: Answer("", (1,), "stop", 1, 1, (TokenLogprob(1, logprob),)) for n in range(len(requests))})

    monkeypatch.setattr("mllm.evaluation.subjects.local.generate_answers", silent)
    logprob = float("nan")
    with pytest.raises(UserError, match="the log-probability nan"):
        run(prepared, tmp_path)
    logprob = -1.0
    with pytest.raises(UserError, match=r"model answered nothing to 4 question\(s\)"):
        run(prepared, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_likelihood_chooses_among_the_options(prepared, tmp_path):
    options = {"options": {"A": "a cat", "B": "a dog"}, "answer": "A"}
    lines = [{"image": str(prepared / name), "question": "A. a cat\nB. a dog"} | options for name in ("a.png", "b.png")]
    (tmp_path / "choice.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(prepared, tmp_path, str(tmp_path / "choice.jsonl"), choice_by="likelihood")
    results, answers = read(tmp_path)
    chosen = [answer for answer in answers if answer["benchmark"].endswith("choice.jsonl")]
    assert chosen and {answer["answer"] for answer in chosen} <= {"A", "B"}
    assert all(answer["logprob"] < 0 for answer in chosen) and results["decoding"]["choice_by"] == "likelihood"
    with pytest.raises(UserError, match="needs questions with options"):
        run(prepared, tmp_path, choice_by="likelihood")


def test_a_model_that_is_no_directory_needs_an_output(capsys):
    options = build_parser().parse_args(["eval", "someone/llava", "--benchmarks", "pope"])
    with pytest.raises(UserError, match="say --output"):
        options.run(options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--limit", "0"], "argument --limit: '0' is no whole number from 1 on"),
        (["--batch-size", "-2"], "argument --batch-size: "),
        (["--concurrency", "x"], "argument --concurrency: "),
        (["--benchmarks", ","], "--benchmarks ',' names none"),
    ],
)
def test_counts_and_names_that_ask_nothing_are_refused(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr("sys.argv", ["mllm", "eval", "someone/llava", "--benchmarks", "pope", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and said in capsys.readouterr().err
