"""Commands as a user types them, in this process or in one of their own."""

import io
import logging
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from mllm.cli import main
from tests.helpers.runs import ROOT

MLLM = "mllm"
PYTHON = [sys.executable]
LOGGERS = (None, "mllm", "DeepSpeed", "bitsandbytes")


def run_script(script: str, *words: str) -> None:
    """As `python SCRIPT WORDS` runs it, but in this process."""
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


@contextmanager
def _kept() -> Iterator[io.StringIO]:
    """Yields what is logged; afterwards loggers, warnings, arguments and environment are as they were."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    logging.getLogger().addHandler(handler)
    try:
        with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", [MLLM]), warnings.catch_warnings():
            yield logged
    finally:
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def command(*words: object, code: int = 0) -> tuple[str, str]:
    """Run `mllm WORDS`, `SCRIPT.py WORDS` or `-m MODULE WORDS` in this process; returns what it printed, and what it said
    of errors and progress. Raises AssertionError when it ends with another code."""
    line = [str(word) for word in words]
    out, errors = io.StringIO(), io.StringIO()
    ended: object = 0
    with _kept() as logged, redirect_stdout(out), redirect_stderr(errors):
        try:
            if line[0].endswith(".py"):
                run_script(str(ROOT / line[0]), *line[1:])
            elif line[0] == "-m":
                sys.argv = line[1:]
                runpy.run_module(line[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [MLLM, *line]
                main()
        except SystemExit as end:
            ended = end.code or 0
    said = errors.getvalue() + logged.getvalue()
    assert ended == code, f"{line}\n{out.getvalue()[-2000:]}\n{said[-3000:]}"
    return out.getvalue(), said


def process(*words: object, code: int = 0) -> tuple[str, str]:
    """Run a program in a process of its own, in the checkout; returns what it printed to stdout and to stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    line = [str(word) for word in words]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout, done.stderr
