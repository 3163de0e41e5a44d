"""Answers on the disk: an answer counts as received once it is durable, and is never paid for again."""

import asyncio
import fcntl
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from mllm.errors import UserError
from mllm.synthesis.backends.base import Completion

_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
) WITHOUT ROWID"""


class Totals(NamedTuple):
    answers: int
    prompt_tokens: int
    completion_tokens: int


class AnswerReader:
    """Reads a journal, also while another process writes to it."""

    def __init__(self, path: Path) -> None:
        self._reads = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def get(self, key: str) -> str | None:
        """The text answered to a request, None when there is none yet."""
        row = self._reads.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._reads.close()


class Journal(AnswerReader):
    """An SQLite file of answers by the key of their request, in WAL mode, each commit flushed to the disk.

    Commits are grouped: what arrives while one is under way goes into the next. One process may use it at a time.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is no journal, or another run uses it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(path.with_name(path.name + ".lock"), "w")  # noqa: SIM115 (held until the journal is closed)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"{path}: another run is writing to it; wait for it to end") from None
        # A connection of its own for the thread that commits: a flush to the disk would hold up whoever reads.
        self._writes = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        super().__init__(path)
        try:
            self._writes.execute("PRAGMA journal_mode=WAL")
            self._writes.execute("PRAGMA synchronous=FULL")
            self._writes.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(f"{path}: not usable as a journal of answers ({error}); move it away") from None
        self._waiting: list[tuple[str, Completion, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None

    def totals(self) -> Totals:
        query = "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM answers"
        return Totals(*self._reads.execute(query).fetchone())

    async def put(self, key: str, completion: Completion) -> None:
        """Returns when the answer is on the disk. A key that is there already keeps its answer."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, completion, durable))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_waiting())
        await durable

    async def _commit_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            rows = [(key, c.text, c.prompt_tokens, c.completion_tokens) for key, c, _ in batch]
            try:
                await asyncio.to_thread(self._write, rows)
            except (sqlite3.Error, ValueError, OverflowError) as error:
                failure = UserError(f"answers can't be kept on the disk: {error}")
                for _, _, durable in batch:
                    if not durable.done():
                        durable.set_exception(failure)
            else:
                for _, _, durable in batch:
                    if not durable.done():
                        durable.set_result(None)

    def _write(self, rows: list[tuple[str, str, int, int]]) -> None:
        self._writes.execute("BEGIN IMMEDIATE")
        try:
            self._writes.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", rows)
            self._writes.execute("COMMIT")
        except BaseException:
            self._writes.execute("ROLLBACK")
            raise

    async def flushed(self) -> None:
        """Returns when nothing waits for the disk any more, also for those who have stopped waiting for it."""
        if self._committer is not None:
            await self._committer

    def close(self) -> None:
        super().close()
        self._writes.close()
        self._lock.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
