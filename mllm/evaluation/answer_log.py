"""Replies on the disk as they come, so that a run that was killed goes on where it stood."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.evaluation.question import Question, Reply
from mllm.files import fsync_path


class AnswerLog:
    """Replies under a key of all that determines them, one line of JSON each.

    Every rank appends to its own file of the directory, `{rank}.jsonl`, and reads all of them at its start. A line that
    was cut short at the end of a file is dropped. Raises UserError for any other line that isn't one.
    """

    def __init__(self, directory: Path, rank: int, identity: Mapping[str, Any], hash_of: Callable[[str], str]) -> None:
        """identity: of the model under test. hash_of: the content hash of an image file."""
        self._identity, self._hash_of = dict(identity), hash_of
        directory.mkdir(parents=True, exist_ok=True)
        own = directory / f"{rank}.jsonl"
        self.known: dict[str, Reply] = {}
        for file in sorted({*directory.glob("*.jsonl"), own}):
            replies, whole_bytes = _read(file)
            self.known |= replies
            if file == own and own.is_file():
                os.truncate(own, whole_bytes)
        self._file = open(own, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        fsync_path(directory)

    def key(self, question: Question) -> str:
        """SHA-256 of model, words, image, and how the answer is found."""
        image = None if question.image is None else self._hash_of(question.image)
        what = [self._identity, question.prompt, image, question.max_new_tokens, question.options]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def append(self, replies: Mapping[Question, Reply]) -> None:
        """The replies are on the disk when this returns."""
        lines = []
        for question, reply in replies.items():
            key = self.key(question)
            self.known[key] = reply
            lines.append(json.dumps({"key": key, "answer": reply.text, "logprob": reply.logprob}) + "\n")
        rest = memoryview("".join(lines).encode())
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _read(file: Path) -> tuple[dict[str, Reply], int]:
    """Replies by key, and the length of the file without a torn end."""
    content = file.read_bytes() if file.is_file() else b""
    replies = {}
    end = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            record = json.loads(line)
            replies[record["key"]] = Reply(record["answer"], record["logprob"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}, line {number} is no answer; remove the file to ask its questions again") from None
    return replies, end
