"""What a launcher (deepspeed, torchrun) tells each of the processes that it starts."""

import os


def launched_rank() -> int:
    """The number of this process among those that a launcher started; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    """How many processes the launcher says it started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))
