"""What every command shares: the form of its help, logging, and one clear line for a user's mistake."""

import argparse
import difflib
import errno
import logging
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from mllm.errors import EXIT_FAILURE, EXIT_USER_ERROR, TimeIsUp, UserError
from mllm.files import DISK_IS_FULL
from mllm.launch import launched_rank, launched_world_size

EXIT_INTERRUPTED = 130
# What a place, and no mistake of ours, is the cause of.
OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later
HELP_COLUMNS = 100


class HelpFormatter(argparse.HelpFormatter):
    """Wraps prose, and leaves headings and indented lines (examples, tables) as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(HELP_COLUMNS, shutil.get_terminal_size().columns - 2))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrap = super()._fill_text
        lines = text.splitlines()
        return "\n".join(wrap(line, width, indent) if line[:1].strip() and line[-1] != ":" else line for line in lines)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set a.b=c d=e …`, repeatable."""
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="Override settings of the config, such as optim.lr=1e-5 train.epochs=2. Repeatable.",
    )


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """`arguments` without the `--local_rank=N` that launchers put in front; ranks are read from the environment."""
    return [word for word in arguments if not word.startswith(("--local_rank=", "--local-rank="))]


def check_command(words: Sequence[str], names: Collection[str]) -> None:
    """Raise UserError, with the nearest name, when the first of `words` is a command that isn't among `names`."""
    if words and not words[0].startswith("-") and words[0] not in names:
        close = difflib.get_close_matches(words[0], names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"unknown command {words[0]!r}; {hint}`mllm --help` lists the commands")


def check_all_known(options: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Raise UserError for arguments that no parser knew, naming our setting where it is another framework's option."""
    if not unknown:
        return
    if hasattr(options, "overrides"):
        from mllm.foreign_keys import OURS

        for word in unknown:
            name = word.partition("=")[0].lstrip("-").replace("-", "_")
            if word.startswith("--") and name in OURS:
                raise UserError(
                    f"unknown option --{name}; here it is the setting {OURS[name]}, given by --set KEY=VALUE"
                )
    raise UserError(f"unknown argument {' '.join(unknown)}; `--help` lists those of the command")


def check_launcher() -> None:
    """Raise UserError where accelerate was asked for several processes and started one, which it does without GPUs."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
        raise UserError(
            "accelerate starts several processes on CPUs by MPI only, and this is one alone; start them by "
            "torchrun --nproc_per_node N -m mllm, or by accelerate launch --multi_gpu"
        )


def is_verbose() -> bool:
    """Whether the log lines of libraries are wanted: `--verbose`, or MLLM_VERBOSE in the environment."""
    return os.environ.get("MLLM_VERBOSE", "0") not in ("", "0")


def configure_logging(verbose: bool = False) -> None:
    """Log lines to stderr: everything of ours on rank 0, only errors elsewhere, and of libraries what a user can act on.

    With `verbose`, or MLLM_VERBOSE=1 in the environment, which processes that are started inherit: whatever libraries say.
    """
    if verbose:
        os.environ["MLLM_VERBOSE"] = "1"
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mllm").setLevel(logging.INFO if launched_rank() == 0 else logging.ERROR)
    if not is_verbose():
        _quieten_libraries()


def _quieten_libraries() -> None:
    """By the environment where they read it when they are imported, so that nothing is imported for it."""
    # Their bars and reports of unused text weights drown our own lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft imports bitsandbytes, which warns of a kernel package that only 4-bit weights on a CPU would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # DeepSpeed's logger gets its level when it is imported, so its lines are dropped by a filter.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    # DeepSpeed calls collectives by names that torch deprecates: a line a step that no user can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has said how; it is read when torch is loaded.

    Its own way is to try again and again for some milliseconds: on a machine whose cores are taken, that is the time that
    the thread needs which is waited for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def run_command(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Call `command` and exit: 0, 2 with one line for a user's mistake, 130 after Ctrl-C, 75 when time is up.

    Any other error is ours: its traceback, and 1.
    """
    wait_without_spinning()
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(EXIT_USER_ERROR)
    except OSError as error:
        line = _line_of(error)
        if line is None:
            traceback.print_exc()
            _leave(EXIT_FAILURE)
        print(f"error: {line}", file=sys.stderr)
        _leave(EXIT_USER_ERROR)
    except TimeIsUp as error:
        print(f"time is up: {error}", file=sys.stderr)
        _leave(EXIT_REQUEUE)
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        _leave(EXIT_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        _leave(EXIT_FAILURE)
    sys.exit(0)


def _line_of(error: OSError) -> str | None:
    """What to say of a full disk, or of a file that this user may not use; None for any other error."""
    if error.errno in DISK_IS_FULL:
        return f"{error.filename or 'a file'} could not be written: {error.strerror}; make room"
    if error.errno in OF_THE_PLACE and error.filename:
        return f"{error.filename} can't be used: {error.strerror}; name another place"
    return None


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if launched_world_size() > 1:
        # The other ranks may be waiting in a collective; ordinary exit would wait for them.
        os._exit(code)
    sys.exit(code)
