"""Gather what `make gpu-check` needs beside torch and transformers, for a machine that reaches no package index.

    python benchmarks/gpu_wheels.py wheels --python 3.12

Writes wheels for 64-bit x86 Linux, of at most 64 MiB together. Take the folder along and name it to
`gpu_check.py --wheels`. What images for such machines hold anyway (numpy, pillow, pyarrow, matplotlib, rich, pytest)
is left out.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

MOST_MIB = 64
# Each alone, without what it requires: that would bring torch again.
ALONE = (
    *("deepspeed==0.19.8", "hjson", "py-cpuinfo", "einops", "peft", "accelerate", "bitsandbytes", "liger-kernel"),
    *("prompt_toolkit", "wcwidth", "msgpack", "ninja", "openai", "distro", "jiter"),
)
WITH_REQUIREMENTS = ("pydantic", "fastapi", "uvicorn", "prometheus-client")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pip(*arguments: str) -> None:
    """Run pip quietly. Raises SystemExit when it fails."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    if subprocess.run(command).returncode:
        raise SystemExit(f"error: pip {' '.join(arguments)} failed; see above")


def gather(folder: Path, python: str) -> None:
    """Fill `folder` with wheels for CPython `python` on Linux; what is only a source distribution is built here."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    wanted = (
        "--only-binary=:all:",
        "--python-version",
        python,
        "--implementation",
        "cp",
        *platforms,
        "-d",
        str(folder),
    )
    built = [name for name in ALONE if name.startswith("deepspeed") or name == "hjson"]
    pip("wheel", "--no-deps", "-w", str(folder), *built)
    pip("download", "--no-deps", *wanted, *(name for name in ALONE if name not in built))
    pip("download", *wanted, *WITH_REQUIREMENTS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where the wheels go; it must not exist.")
    parser.add_argument("--python", default="3.12", help="The CPython of that machine (default: %(default)s).")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        print(f"error: {options.folder} is there already; name another folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=options.folder.absolute().parent) as started:
        gather(Path(started), options.python)
        mib = sum(path.stat().st_size for path in Path(started).iterdir()) / 2**20
        if mib > MOST_MIB:
            print(f"error: the wheels take {mib:.0f} MiB together, more than {MOST_MIB}", file=sys.stderr)
            return 1
        Path(started).chmod(0o755)
        Path(started).rename(options.folder)
        Path(started).mkdir()  # what the block's end removes
    print(f"{options.folder}: {mib:.0f} MiB of wheels for CPython {options.python}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
