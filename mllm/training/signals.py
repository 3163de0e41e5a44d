"""What signals ask of a run. Each process only notes them; the loop decides with all ranks together.

SIGINT, SIGTERM: save and stop. SIGUSR1: save and stop because the time of the job is nearly over. SIGUSR2: save and go on.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Requests:
    """What this process was asked for. `save` is taken back once it is done."""

    stop: bool = False
    requeue: bool = False
    save: bool = False


MEANING = {signal.SIGINT: "stop", signal.SIGTERM: "stop", signal.SIGUSR1: "requeue", signal.SIGUSR2: "save"}


@contextmanager
def listen() -> Iterator[Requests]:
    """Note signals for as long as the block runs (in the main thread; elsewhere none arrive).

    A second signal to stop acts as usual in a lone process. Under a launcher it is an echo (a terminal signals the whole
    group, then the launcher signals its children, some of them twice) and changes nothing.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    previous = {number: signal.getsignal(number) for number in MEANING}
    is_launched = "RANK" in os.environ

    def handler(number: int, frame: Any) -> None:
        meaning = MEANING[signal.Signals(number)]
        setattr(requests, meaning, True)
        if meaning == "stop" and not is_launched:
            signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handler)
    try:
        yield requests
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
