"""Everything that needs a GPU, in one command, and a report of it: `make gpu-check`.

    python benchmarks/gpu_check.py --out runs/gpu_check

Runs the tests marked `gpu` and the benchmarks, each in a process of its own with a time limit; one that fails doesn't
keep the others from running. `report.md` is written anew after each of them, so that a machine that goes away leaves
what was known. Exit code 0 when all passed, 1 when something failed, 2 without a GPU.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("torch", "transformers", "deepspeed", "peft", "bitsandbytes", "flash-attn", "liger-kernel"),
    *("accelerate", "datasets", "numpy", "pillow"),
)
TAIL_LINES = 40


@dataclass(frozen=True)
class Check:
    """A command, without the Python it runs under, and how long it may take."""

    name: str
    command: tuple[str, ...]
    timeout_s: int = 1800


@dataclass(frozen=True)
class Result:
    """How a check ended. `outcome`: passed | failed (exit code N) | out of time | no such script."""

    check: Check
    outcome: str
    seconds: float
    tail: str

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def checks(out: Path) -> list[Check]:
    """The tests first: a benchmark of something wrong says nothing."""
    return [
        Check("tests", ("-m", "pytest", "-m", "gpu", "-rsfE", "--durations=0", "tests")),
        Check("mfu", ("benchmarks/mfu.py",)),
        Check("scale", ("benchmarks/scale.py", "--out", str(out / "scale.png"))),
        Check("train_stage2", ("benchmarks/train_stage2.py",)),
        Check("train_stage1", ("benchmarks/train_stage1.py",)),
    ]


def run(check: Check, out: Path) -> Result:
    """Run a check; everything it prints goes to `out/NAME.log`."""
    script = check.command[0]
    if script.endswith(".py") and not (ROOT / script).is_file():
        return Result(check, "no such script", 0.0, "")
    log = out / f"{check.name}.log"
    environment = {"OMP_NUM_THREADS": "4"} | os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *check.command],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=check.timeout_s,
            )
            outcome = "passed" if done.returncode == 0 else f"failed (exit code {done.returncode})"
        except subprocess.TimeoutExpired:
            outcome = f"out of time ({check.timeout_s} s)"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Result(check, outcome, time.monotonic() - started, "\n".join(lines[-TAIL_LINES:]))


def environment() -> dict[str, str]:
    """What the results depend on: devices, driver, versions, the code's commit."""
    found = {"machine": f"{platform.platform()}, {os.cpu_count()} cores", "Python": platform.python_version()}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"GPU {index}"] = (
            f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, capability {properties.major}.{properties.minor}"
        )
    found["driver"] = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["CUDA of torch"] = str(torch.version.cuda)
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    found["commit"] = _first_line("git", "-C", str(ROOT), "rev-parse", "HEAD")
    return found | {package: _version(package) for package in PACKAGES}


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next(iter(done.stdout.splitlines()), "unknown")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def report(environment: dict[str, str], results: Sequence[Result], planned: int) -> str:
    """The report in Markdown; `planned`: how many checks there are to be in all."""
    lines = [
        "# GPU check",
        "",
        f"{len(results)} of {planned} checks done, {sum(r.passed for r in results)} passed.",
        "",
    ]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in environment.items()), ""]
    lines += ["| check | outcome | seconds | command |", "| --- | --- | --: | --- |"]
    for result in results:
        command = " ".join(("python", *result.check.command))
        lines.append(f"| {result.check.name} | {result.outcome} | {result.seconds:.0f} | `{command}` |")
    for result in results:
        lines += ["", f"## {result.check.name}: {result.outcome}", "", f"End of `{result.check.name}.log`:", ""]
        lines += ["~~~", result.tail, "~~~"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="where report.md and the logs go")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no GPU that torch can use on this machine; gpu-check needs one", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    planned = checks(out)
    results: list[Result] = []
    for check in planned:
        print(f"{check.name} …", flush=True)
        results.append(run(check, out))
        print(f"{check.name}: {results[-1].outcome}, {results[-1].seconds:.0f} s", flush=True)
        (out / "report.md").write_text(report(environment(), results, len(planned)), encoding="utf-8")
    print(f"the report: {out / 'report.md'}")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
