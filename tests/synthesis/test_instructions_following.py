"""A second process writes while the first asks: the same bytes, whatever becomes of it."""

import random
from pathlib import Path

import pytest
from PIL import Image

from mllm.errors import UserError
from mllm.synthesis import following
from mllm.synthesis.following import Follower
from mllm.synthesis.output import Output
from mllm.synthesis.run import write_instructions
from tests.helpers.facts import fact_records, make_run, openai_backend
from tests.helpers.faulty_server import serving

pytestmark = pytest.mark.slow

FILES = ("street.jsonl", "rejected.jsonl")


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Output | None]:
    """What second processes, begun after few requests, have written."""
    seen: list[Output | None] = []
    finish = Follower.finish

    def noting_finish(follower: Follower) -> Output | None:
        seen.append(finish(follower))
        return seen[-1]

    monkeypatch.setattr(Follower, "finish", noting_finish)
    monkeypatch.setattr(following, "STRIDE", 1)
    monkeypatch.setattr(following, "FROM_REQUESTS", 10**9)
    return seen


def records(tmp_path: Path) -> list[dict]:
    """With a bad record, an image that isn't one and one that is there twice."""
    rows = [record | {"height": 24, "width": 24} for record in fact_records(30)]
    for n in range(len(rows)):
        Image.frombytes("RGB", (4, 4), random.Random(n).randbytes(48)).resize((24, 24)).save(tmp_path / f"{n}.png")
    (tmp_path / "7.png").write_bytes(b"no image")
    rows[4]["captions"], rows[4]["boxes"], rows[4]["ocr"] = [], [], []
    rows[20]["image"] = rows[3]["image"]
    return rows


def run_once(tmp_path: Path, url: str, output: str) -> tuple[str, list[bytes]]:
    filters = {"skip": []}
    config = make_run(tmp_path, records(tmp_path), output, backend=openai_backend(url), filters=filters)
    report = write_instructions(config)
    refused = {name: report.funnel[name] for name in ("bad_record", "bad_image", "duplicate_image")}
    assert refused == {"bad_record": 1, "bad_image": 1, "duplicate_image": 1}
    return report.data_hash, [(config.output / name).read_bytes() for name in FILES]


def test_what_a_second_process_writes_is_what_is_written_afterwards(
    tmp_path: Path, finished: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as (url, _):
        afterwards = run_once(tmp_path, url, "afterwards")
    monkeypatch.setattr(following, "FROM_REQUESTS", 3)
    with serving("429", "cut", "500", delay_s=lambda key: int(key[4:6], 16) / 5000) as (url, ledger):
        meanwhile = run_once(tmp_path, url, "meanwhile")
        again = run_once(tmp_path, url, "meanwhile")
        assert len(ledger.paid) == 27 and set(ledger.paid.values()) == {1}
    assert finished[0] is None and finished[1] is not None and finished[2] is not None
    assert meanwhile == afterwards == again


def test_where_the_second_process_dies_the_first_writes(
    tmp_path: Path, finished: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as (url, _):
        afterwards = run_once(tmp_path, url, "afterwards")
        monkeypatch.setattr(following, "FROM_REQUESTS", 3)
        tell = Follower._tell

        def kill_and_tell(follower: Follower, requests: int, is_end: bool) -> None:
            if is_end and follower._process is not None:
                follower._process.kill()
                follower._process.wait()
            tell(follower, requests, is_end)

        monkeypatch.setattr(Follower, "_tell", kill_and_tell)
        assert run_once(tmp_path, url, "killed") == afterwards
    assert finished == [None, None]


def test_a_run_that_ends_early_writes_what_it_has_by_itself(
    tmp_path: Path, finished: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FROM_REQUESTS", 3)
    with serving() as (url, ledger):
        tight = {"budget_tokens": 3000, "max_tokens": 100, "concurrency": 1}
        config = make_run(tmp_path, fact_records(20), backend=openai_backend(url, **tight))
        with pytest.raises(UserError, match="budget of 3,000 tokens"):
            write_instructions(config)
        lines = (config.output / "street.jsonl").read_text().splitlines()
        assert len(lines) == len(ledger.paid) > 3 and not finished
