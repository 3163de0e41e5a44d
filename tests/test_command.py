"""What the commands share."""

import errno
import os
import subprocess
import sys

import pytest
from rich.table import Table

from mllm.cli import build_parser
from mllm.commands.shared import run_command
from mllm.console import report_console

GIVEN = ["--set", "a.b=1", "c=2", "--set", "d=x"]


@pytest.mark.parametrize(
    "arguments", [["train", "c.yaml"], ["clip", "train", "--config", "c.yaml"], ["synth", "s.yaml"]]
)
def test_set_takes_several_settings_and_may_be_repeated(arguments):
    parser = build_parser()
    assert parser.parse_args([*arguments, *GIVEN]).overrides == ["a.b=1", "c=2", "d=x"]
    assert parser.parse_args(arguments).overrides == []


@pytest.mark.slow
def test_openmp_is_told_how_to_wait_before_torch_is_loaded_unless_the_user_has_said_it():
    code = """
import os, sys
import mllm.cli, mllm.commands.shared
assert "torch" not in sys.modules
mllm.commands.shared.run_command(lambda arguments: print(os.environ["OMP_WAIT_POLICY"]), [])
"""
    for given, expected in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        told = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_is_full_or_closed_to_the_user_is_a_line(number, capsys):
    def command(arguments):
        raise OSError(number, os.strerror(number), "some/file")

    with pytest.raises(SystemExit) as left:
        run_command(command, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith("error: some/file") and os.strerror(number) in line


def test_an_error_of_the_system_that_is_our_own_mistake_keeps_its_trace(capsys):
    def command(arguments):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(SystemExit) as ended:
        run_command(command, [])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith("Traceback") and "Bad file descriptor" in told


def test_a_table_is_not_cut_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("place", title="wide")
    table.add_row("folder/" * 60 + "samples.jsonl:12345")
    report_console().print(table)
    out = capsys.readouterr().out
    assert "folder/" * 60 + "samples.jsonl:12345" in out and max(map(len, out.splitlines())) < 500
