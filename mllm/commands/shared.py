"""What every command shares: its parser, `--config` and `--set`, logging, and one clear line for a user's mistake."""

import argparse
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mllm.errors import EXIT_FAILURE, EXIT_USER_ERROR, TimeIsUp, UserError
from mllm.files import DISK_IS_FULL

EXIT_INTERRUPTED = 130
# What a place, and no mistake of ours, is the cause of.
OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set a.b=c d=e …`, repeatable."""
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings, such as optim.lr=1e-5 train.epochs=2",
    )


def settings_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with `--config FILE`, `--set a.b=c` and the launcher's `--local_rank`."""
    parser = argparse.ArgumentParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML settings")
    add_overrides(parser)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def subparser(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """A subcommand whose --help ends with an example, and which calls `run`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=summary, epilog=f"example:\n  {example}", formatter_class=formatter)
    parser.set_defaults(run=run)
    return parser


def configure_logging() -> None:
    """Log lines to stderr: everything of ours on rank 0, only errors elsewhere."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mllm").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # peft imports bitsandbytes, which warns of a kernel package that only 4-bit weights on a CPU would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch deprecates: a line a step that no user can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    from transformers.utils import logging as transformers_logging

    # Its bars and its reports of unused text weights drown our own lines.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


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
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The other ranks may be waiting in a collective; ordinary exit would wait for them.
        os._exit(code)
    sys.exit(code)
