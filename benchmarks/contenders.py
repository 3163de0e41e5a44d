"""Contenders in a process each, so that the peak memory of one says nothing of another; they run one at a time, in turn."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import peak_rss_bytes

ANSWER = "answer: "


def serve(prepare: Callable[[], Callable[[], dict[str, Any]]]) -> None:
    """In the contender's process: get ready, then for each line on stdin run one round and print what it returns.

    `peak_bytes` (of the GPU's memory where there is one) is added to each answer.
    """
    run = prepare()
    print(ANSWER + "{}", flush=True)
    for _ in sys.stdin:
        found = run()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss_bytes()
        print(ANSWER + json.dumps(found | {"peak_bytes": peak}), flush=True)


class Contender:
    """The process of `script` with `arguments`, whose `main` ends in `serve`. Its stderr goes to `log`.

    python: what runs it; None is the Python that runs this.
    """

    def __init__(self, script: str, arguments: list[str], log: Path, python: str | None = None) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [python or sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),  # noqa: SIM115 (the process holds it)
            text=True,
            # On a machine with several GPUs Hugging Face's Trainer would take them all in one process; ours takes one.
            env={"CUDA_VISIBLE_DEVICES": "0"} | os.environ,
        )
        self._answer()

    def run(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise SystemExit(f"a contender ended early; its log:\n{self._log.read_text()[-3000:]}")
