"""Answers are asked once and kept: kill -9, torn lines, other models; questions are dealt to ranks by image."""

import json
import os
import signal

import pytest

from mllm.errors import UserError
from mllm.evaluation.asking import AnswerLog, Question, Reply, answer_all, deal
from mllm.evaluation.medium import shown
from mllm.evaluation.plan import Setup
from mllm.evaluation.run import evaluate_subject

QUESTIONS = [Question(f"what {n}?", shown(f"{n // 3}.png" if n % 5 else None), 8) for n in range(40)]


class Parrot:
    """Says what it was asked, `batch` questions at a time; dies by SIGKILL after `lives` of them."""

    def __init__(self, lives=None, batch=4, name="parrot"):
        self.identity = {"model_sha256": name}
        self.lives, self.batch, self.asked = lives, batch, []

    def answer(self, questions, on_replies):
        for start in range(0, len(questions), self.batch):
            if self.lives is not None and start >= self.lives:
                os.kill(os.getpid(), signal.SIGKILL)
            chosen = questions[start : start + self.batch]
            self.asked += chosen
            on_replies({question: Reply(question.prompt.upper(), -0.5) for question in chosen})


def open_log(directory, subject, rank=0, hash_of=str):
    return AnswerLog(directory, rank, subject.identity, hash_of)


def test_a_killed_run_goes_on_without_asking_or_losing_an_answer(tmp_path):
    child = os.fork()
    if child == 0:
        subject = Parrot(lives=12)
        answer_all(QUESTIONS, subject, open_log(tmp_path, subject))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = (tmp_path / "0.jsonl").read_text()
    assert before.count("\n") == 12

    subject = Parrot()
    replies = answer_all(QUESTIONS, subject, open_log(tmp_path, subject))
    assert replies == {question: Reply(question.prompt.upper(), -0.5) for question in QUESTIONS}
    assert len(subject.asked) == len(QUESTIONS) - 12
    text = (tmp_path / "0.jsonl").read_text()
    keys = [json.loads(line)["key"] for line in text.splitlines()]
    assert text.startswith(before) and len(keys) == len(set(keys)) == len(QUESTIONS)

    again = Parrot()
    assert answer_all(QUESTIONS, again, open_log(tmp_path, again)) == replies and again.asked == []


def test_a_torn_last_line_is_dropped_and_asked_again(tmp_path):
    first = Parrot()
    answer_all(QUESTIONS[:8], first, open_log(tmp_path, first))
    whole = (tmp_path / "0.jsonl").read_bytes()
    (tmp_path / "0.jsonl").write_bytes(whole[:-10])
    (tmp_path / "1.jsonl").write_bytes(b'{"key": "of another rank')
    second = Parrot()
    replies = answer_all(QUESTIONS[:8], second, open_log(tmp_path, second))
    assert second.asked == first.asked[-1:] and len(replies) == 8
    assert (tmp_path / "0.jsonl").read_bytes() == whole
    (tmp_path / "0.jsonl").write_bytes(b"nonsense\n" + whole)
    with pytest.raises(UserError, match=r"0\.jsonl, line 1 is no answer"):
        open_log(tmp_path, second)


def test_an_answer_holds_for_one_model_image_and_decoding(tmp_path):
    subject = Parrot()
    log = open_log(tmp_path, subject, hash_of={"a.png": "1", "copy.png": "1", "b.png": "2"}.get)
    base = Question("what?", shown("a.png"), 8)
    log.append({base: Reply("a")})
    assert log.key(base) == log.key(Question("what?", shown("copy.png"), 8))
    others = [
        Question("what now?", shown("a.png"), 8),
        Question("what?", shown("b.png"), 8),
        Question("what?", (), 8),
        Question("what?", shown("a.png"), 9),
        Question("what?", shown("a.png"), 8, ("A", "B")),
    ]
    assert not {log.key(question) for question in others} & log.known.keys()
    assert open_log(tmp_path, Parrot(name="other"), hash_of=log._hash_of).key(base) not in log.known


def test_ranks_share_the_questions_and_no_image(tmp_path):
    shares = deal(QUESTIONS, 3)
    assert sorted(q.prompt for share in shares for q in share) == sorted(q.prompt for q in QUESTIONS)
    images = [{question.media for question in share} - {()} for share in shares]
    assert not images[0] & images[1] and not images[1] & images[2] and not images[0] & images[2]
    assert max(map(len, shares)) - min(map(len, shares)) <= 3
    assert deal(QUESTIONS[:1], 2) == [QUESTIONS[:1], []]


def test_an_interrupted_evaluation_says_that_its_answers_are_kept_and_goes_on(tmp_path):
    (tmp_path / "q.jsonl").write_text("".join(f'{{"question": "what {n}?", "answer": "a"}}\n' for n in range(12)))
    setup = Setup([str(tmp_path / "q.jsonl")], tmp_path, tmp_path / "eval", conditions=("model",))

    class Impatient(Parrot):
        def answer(self, questions, on_replies):
            super().answer(questions[:8], on_replies)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"kept in .*asked; the same command goes on"):
        evaluate_subject(setup, lambda: (Impatient(), "parrot", []))
    after = Parrot()
    evaluate_subject(setup, lambda: (after, "parrot", []))
    assert len(after.asked) == 4 and (tmp_path / "eval" / "results.json").is_file()
    (tmp_path / "eval" / "report.md").write_text("my own words")
    with pytest.raises(UserError, match=r"report\.md would be replaced, which was changed.*eval-2"):
        evaluate_subject(setup, lambda: (Parrot(), "parrot", []))
    assert (tmp_path / "eval" / "report.md").read_text() == "my own words"
