"""Asking a faulty server: nothing lost, nothing paid twice, the output independent of timing."""

import asyncio
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from mllm.clients.openai import Pace
from mllm.errors import UserError
from mllm.synthesis.asking import ask_all
from mllm.synthesis.backends.base import Completion
from mllm.synthesis.backends.template import TemplateBackend
from mllm.synthesis.inputs import Inputs
from mllm.synthesis.journal import Journal
from mllm.synthesis.prompts import Requests
from mllm.synthesis.run import write_instructions
from tests.helpers.demo_inputs import read_lines
from tests.helpers.facts import fact_records, make_run, openai_backend
from tests.helpers.faulty_server import serving

FAULTS = ("429", "500", "timeout", "cut", "drip", "malformed", "no_choices")


def test_a_server_with_every_fault_loses_nothing_is_paid_once_and_changes_no_byte(tmp_path: Path) -> None:
    records = fact_records(24)
    with serving(delay_s=lambda key: 0.005) as (url, gentle):
        calm = write_instructions(make_run(tmp_path, records, "calm", backend=openai_backend(url)))
        assert 1 < gentle.most_at_once <= 6
    with serving(*FAULTS, delay_s=lambda key: int(key[4:6], 16) / 5000) as (url, ledger):
        config = make_run(tmp_path, records, "faulty", backend=openai_backend(url))
        report = write_instructions(config)
        assert len(ledger.paid) == 24 and set(ledger.paid.values()) == {1}
        assert sum(ledger.tried.values()) == 24 * 8
    assert report.samples == 24 and report.complete and not report.failed
    assert report.data_hash == calm.data_hash
    assert (tmp_path / "faulty/street.jsonl").read_bytes() == (tmp_path / "calm/street.jsonl").read_bytes()
    ids = [row["id"] for row in read_lines(tmp_path / "faulty/street.jsonl")]
    assert ids == [f"street-r{n}-conversation-en-0" for n in range(24)]


def test_a_second_run_asks_nothing_again_and_writes_the_same(tmp_path: Path) -> None:
    with serving() as (url, ledger):
        config = make_run(tmp_path, fact_records(8), backend=openai_backend(url))
        first = write_instructions(config)
        again = write_instructions(config)
        assert len(ledger.requests) == 8
    assert (again.answered_before, again.data_hash) == (8, first.data_hash)
    assert (again.prompt_tokens, again.completion_tokens) == (800, 160)


def test_the_budget_stops_the_run_before_it_is_exceeded_and_more_of_it_goes_on(tmp_path: Path) -> None:
    prices = {"price_prompt": 1000.0, "price_completion": 5000.0, "max_tokens": 40, "concurrency": 2}
    with serving() as (url, ledger):
        records = fact_records(12)
        config = make_run(tmp_path, records, backend=openai_backend(url, **prices, budget=3.0))
        with pytest.raises(UserError, match=r"budget of 3 would be exceeded.*samples"):
            write_instructions(config)
        paid = sum(ledger.paid.values())
        assert 0 < paid < 12 and paid * 0.2 <= 3.0
        assert len(read_lines(tmp_path / "out/street.jsonl")) == paid
        report = write_instructions(make_run(tmp_path, records, backend=openai_backend(url, **prices, budget=30.0)))
        assert set(ledger.paid.values()) == {1} and len(ledger.paid) == 12
    assert report.cost == pytest.approx(12 * 0.2)


@pytest.mark.parametrize("fault", ["refusal", "silence", "twice", "plain", "half", "parts"])
def test_an_answer_that_was_paid_for_is_kept_whatever_it_says(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with serving(fault) as (url, ledger):
        config = make_run(tmp_path, fact_records(8), backend=openai_backend(url))
        report = write_instructions(config)
        assert write_instructions(config).data_hash == report.data_hash and len(ledger.requests) == 8
    assert report.answered == 8 and report.prompt_tokens == 800 and ledger.authorizations == {"Bearer a-key"}
    assert report.funnel["unparsable"] == (8 if fault in ("refusal", "silence") else 0)


def test_a_count_of_tokens_that_no_answer_has_is_taken_for_none(tmp_path: Path) -> None:
    with serving("endless") as (url, _):
        report = write_instructions(make_run(tmp_path, fact_records(4), backend=openai_backend(url)))
    assert report.samples == 4 and report.completion_tokens == 80 and report.prompt_tokens < 400


def test_an_image_that_cannot_be_read_fails_its_own_request(tmp_path: Path) -> None:
    with serving(answer=lambda r: "Question: What?\n===\nAnswer: A zebra.") as (url, ledger):
        records = [record | {"height": 24, "width": 24} for record in fact_records(3)]
        config = make_run(tmp_path, records, backend=openai_backend(url, sends_image=True))
        (tmp_path / "1.png").write_bytes(b"no image")
        report = write_instructions(config)
    assert report.failed == {"bad_image": 1} and report.samples == 2 and len(ledger.requests) == 2


def test_a_budget_of_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backend\.openai\.budget: .*greater than 0"):
        make_run(tmp_path, fact_records(1), backend=openai_backend("http://127.0.0.1:1/v1", budget=0))


def test_an_endless_weight_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kinds\.conversation: .*finite"):
        make_run(tmp_path, fact_records(1), kinds={"conversation": float("inf")})


def test_a_refused_key_ends_the_run_at_once_with_the_servers_words(tmp_path: Path) -> None:
    with serving("401") as (url, ledger):
        config = make_run(tmp_path, fact_records(30), backend=openai_backend(url, concurrency=2))
        with pytest.raises(UserError, match=r"the server refuses .*as you asked"):
            write_instructions(config)
        assert len(ledger.requests) <= 30


def test_a_field_that_the_model_refuses_ends_the_run_with_the_setting_to_change(tmp_path: Path) -> None:
    """One word in the settings after another makes the run go through; the fields are sent as they say."""
    records, settings = fact_records(12), {"concurrency": 1}
    with serving("new_model") as (url, ledger):
        for name, value in (("max_tokens_name", "max_completion_tokens"), ("temperature", None)):
            mend = f"set {name}: {'null' if value is None else value} for model m;"
            with pytest.raises(UserError, match=rf"the server refuses .*{mend}"):
                write_instructions(make_run(tmp_path, records, name, backend=openai_backend(url, **settings)))
            settings[name] = value
        ledger.requests.clear()
        report = write_instructions(make_run(tmp_path, records, backend=openai_backend(url, **settings)))
        bodies = ledger.requests
    assert report.samples == 12 == len(bodies) and not report.failed
    assert {(body["max_completion_tokens"], "max_tokens" in body, "temperature" in body) for body in bodies} == {
        (1024, False, False)
    }


def test_refused_requests_are_asked_once_and_a_run_without_an_answer_fails(tmp_path: Path) -> None:
    with serving("too_long") as (url, ledger):
        config = make_run(tmp_path, fact_records(12), backend=openai_backend(url))
        with pytest.raises(UserError, match=r"none of the requests was answered \(status_400 12\)"):
            write_instructions(config)
    assert len(ledger.requests) == 12
    report = json.loads((config.output / "synth_report.json").read_text(encoding="utf-8"))
    assert report["failed"] == {"status_400": 12} and not report["complete"]


def test_a_server_that_is_gone_ends_the_run_after_some_failures(tmp_path: Path) -> None:
    config = make_run(tmp_path, fact_records(30), backend=openai_backend("http://127.0.0.1:9/v1", attempts=1))
    with pytest.raises(UserError, match=r"20 requests in a row failed.*connection"):
        write_instructions(config)


def test_a_schema_is_sent_until_the_server_refuses_it(tmp_path: Path) -> None:
    with serving("no_schema") as (url, ledger):
        report = write_instructions(make_run(tmp_path, fact_records(8), backend=openai_backend(url, concurrency=1)))
        formats = ["response_format" in request for request in ledger.requests]
    assert formats[0] and not formats[-1] and report.samples == 8


def test_the_image_goes_with_the_facts_when_asked(tmp_path: Path) -> None:
    with serving(answer=lambda r: "Question: What?\n===\nAnswer: A zebra.") as (url, ledger):
        backend = openai_backend(url, sends_image=True)
        report = write_instructions(make_run(tmp_path, fact_records(1), backend=backend))
        parts = ledger.requests[0]["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert report.samples == 1  # what the model may have seen is not held against the facts


@pytest.mark.slow
def test_a_killed_run_pays_again_only_for_what_was_under_way(tmp_path: Path) -> None:
    records = fact_records(60)
    asked, is_killed = itertools.count(), threading.Event()
    # Slow from where it is killed on, so that it can't end before.
    with serving(delay_s=lambda key: 0.01 if is_killed.is_set() or next(asked) < 24 else 0.5) as (url, ledger):
        config = make_run(tmp_path, records, backend=openai_backend(url, concurrency=4))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        script = (
            "from mllm.settings import load_settings\n"
            "from mllm.synthesis.settings import InstructionConfig\n"
            "from mllm.synthesis.run import write_instructions\n"
            f"write_instructions(load_settings(InstructionConfig, {str(tmp_path / 'config.yaml')!r}))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(ledger.paid) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        is_killed.set()
        time.sleep(0.1)
        before = len(ledger.paid)
        assert 20 <= before < 60
        report = write_instructions(config)
        again = sum(ledger.paid.values()) - 60
    assert report.samples == 60 and report.answered_before >= before - 4
    assert again <= 4


def test_two_runs_into_one_output_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.sqlite"), pytest.raises(UserError, match="another run"):
        Journal(tmp_path / "a.sqlite")
    (tmp_path / "b.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="not usable"):
        Journal(tmp_path / "b.sqlite")


def test_an_answer_is_on_the_disk_when_put_returns_and_the_first_stays(tmp_path: Path) -> None:
    async def put_all(journal: Journal) -> None:
        await asyncio.gather(*(journal.put(f"k{n % 50}", Completion(f"{n}", 1, 2)) for n in range(100)))

    with Journal(tmp_path / "a.sqlite") as journal:
        asyncio.run(put_all(journal))
    with Journal(tmp_path / "a.sqlite") as journal:
        assert journal.totals() == (50, 50, 100) and journal.get("k7") == "7" and journal.get("k50") is None


def test_an_answer_that_the_disk_cannot_take_ends_the_run_and_not_the_next_one(tmp_path: Path) -> None:
    async def put() -> None:
        with Journal(tmp_path / "j.sqlite") as journal:
            for bad in (Completion("\ud800", 1, 1), Completion("x", 10**30, 1)):
                with pytest.raises(UserError, match="can't be kept"):
                    await asyncio.wait_for(journal.put("a", bad), 20)
            await asyncio.wait_for(journal.put("a", Completion("good", 1, 1)), 20)
            assert journal.get("a") == "good"

    asyncio.run(put())


def test_what_has_arrived_is_kept_when_a_run_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, write, commits = threading.Event(), Journal._write, []

    def slow_write(journal: Journal, rows: list) -> None:
        writing.set()
        time.sleep(0.1)
        commits.append(len(rows))
        write(journal, rows)

    async def interrupted() -> None:
        backend = TemplateBackend()
        requests = Requests(make_run(tmp_path, fact_records(3)), backend)
        prompts = [r.prompt for context in Inputs(requests.config) for r in requests.about(context)]
        with Journal(tmp_path / "a.sqlite") as journal:
            task = asyncio.create_task(ask_all(prompts, backend, journal, "asking"))
            await asyncio.to_thread(writing.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    monkeypatch.setattr(Journal, "_write", slow_write)
    asyncio.run(interrupted())
    with Journal(tmp_path / "a.sqlite") as journal:
        assert journal.totals().answers == 3 and commits == [3]  # one batch, one commit


def test_the_pace_spaces_requests_makes_up_for_tokens_and_pauses_for_all() -> None:
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    async def times() -> list[float]:
        pace, seen = Pace(60, 600, lambda: now[0], sleep), []
        for step in range(5):
            await pace.wait()
            seen.append(now[0])
            if step == 1:
                pace.used(50)
            if step == 2:
                pace.pause(10)
        return seen

    assert asyncio.run(times()) == [0, 1, 6, 16, 17]
