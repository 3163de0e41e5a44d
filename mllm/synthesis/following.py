"""A second process that filters and writes while the first still asks: the two take a core each.

It walks the same inputs in the same order and waits, before each image and each request, until the first process says
that it is decided: an answer is then in the journal, or there will be none. So the files are the same as if all of it had
come afterwards. It gives its files their names only when told that all is decided; where it ends early for any reason, the
first process writes them itself.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from mllm.errors import UserError
from mllm.settings import validate_settings
from mllm.synthesis.backends import build_backend
from mllm.synthesis.filters import Candidate
from mllm.synthesis.inputs import ImageDecisions, Refused
from mllm.synthesis.journal import AnswerReader
from mllm.synthesis.output import Output, write_output
from mllm.synthesis.passes import InstructionRun
from mllm.synthesis.settings import InstructionConfig, OpenAISettings

log = logging.getLogger(__name__)
ANSWERS_NAME = "answers.sqlite"
# A process takes a second to start: fewer answers are written sooner without it.
FROM_REQUESTS = 1000
# Messages are sent after so many requests at least.
STRIDE = 64


class Follower:
    """The first process's side. Where a judge follows, or a model that this machine runs, there is no second process."""

    def __init__(self, config: InstructionConfig, images: ImageDecisions) -> None:
        self._config, self._images = config, images
        self._is_wanted = isinstance(config.backend, OpenAISettings) and config.judge is None
        self._process: subprocess.Popen[str] | None = None
        self._told_requests = self._told_images = 0

    def decided(self, requests: int) -> None:
        """The first `requests` requests of the run each have an answer on the disk, or will have none in this run."""
        if self._is_wanted and requests >= max(FROM_REQUESTS, self._told_requests + STRIDE):
            self._told_requests = requests
            self._tell(requests, is_end=False)

    def finish(self) -> Output | None:
        """What was written, all requests being decided; None where that is still to be done."""
        if self._process is None:
            return None
        self._tell(self._told_requests, is_end=True)
        answer = self._process.communicate()[0] if self._process is not None else ""
        if not answer:
            log.warning("the process that writes ended early; writing again")
            return None
        values = json.loads(answer)
        return Output(values.pop("digest"), *(Counter(values[name]) for name in ("written", "refused", "yes_no")))

    def stop(self) -> None:
        """End the second process, whatever it has done; it has given no file its name."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._process, self._is_wanted = None, False

    def _tell(self, requests: int, is_end: bool) -> None:
        # The images are looked at in another thread: the number comes first, so that no refusal below it is missing.
        images = self._images.count
        refused = [
            (number, *self._images.refused[number])
            for number in range(self._told_images, images)
            if number in self._images.refused
        ]
        self._told_images = images
        try:
            if self._process is None:
                command = [sys.executable, "-m", "mllm.synthesis.following"]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                self._send(self._config.model_dump(mode="json"))
            self._send({"requests": requests, "images": images, "refused": refused, "is_end": is_end})
        except OSError as error:
            log.warning("the process that writes can't be used (%s); writing afterwards", error)
            self.stop()

    def _send(self, message: Any) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


class Gate:
    """The second process's side: waits for what the first has decided."""

    def __init__(self, images: ImageDecisions, messages: IO[str]) -> None:
        self._images, self._messages = images, messages
        self._requests, self._is_end = 0, False
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for_request(self, number: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._is_end or number < self._requests)

    def wait_for_image(self, number: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._is_end or number < self._images.count)

    def wait_for_end(self) -> None:
        with self._news:
            self._news.wait_for(lambda: self._is_end)

    def _listen(self) -> None:
        for line in self._messages:
            message = json.loads(line)
            with self._news:
                self._images.refused.update((number, (name, why)) for number, name, why in message["refused"])
                self._images.count = message["images"]
                self._requests, self._is_end = message["requests"], message["is_end"]
                self._news.notify_all()
            if self._is_end:
                return
        # The first process is gone: at once, since the next run may already write the same files.
        os._exit(1)


def follow(messages: IO[str]) -> Output:
    """Filter and write as the messages allow it."""
    config = validate_settings(InstructionConfig, json.loads(messages.readline()), "the first process")
    images = ImageDecisions()
    gate = Gate(images, messages)
    answers = AnswerReader(config.output / ANSWERS_NAME)
    run = InstructionRun(config, build_backend(config.backend), answers, images=images, waits=gate)

    def items() -> Iterator[Candidate | Refused]:
        yield from run.survivors(is_judged=False)
        gate.wait_for_end()

    try:
        return write_output(config, items())
    finally:
        answers.close()


if __name__ == "__main__":
    # Ctrl-C goes to both processes; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        print(json.dumps(vars(follow(sys.stdin))))
    except UserError:
        # The first process comes upon the same, and says so.
        sys.exit(1)
