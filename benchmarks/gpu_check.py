"""Everything that needs a GPU, in one command, and a report of it: `make gpu-check`.

    python benchmarks/gpu_check.py --out runs/gpu_check
    python benchmarks/gpu_check.py --out runs/gpu_check --wheels wheels     # packages that the machine lacks, offline
    python benchmarks/gpu_check.py --out runs/try --size tiny --checks shapes stage2     # on a CPU, to try the script

Runs the tests marked `gpu`, a LLaVA of 1.2 billion parameters through its stages, and benchmarks beside transformers,
each in a process of its own with a time limit; all limits together are 12 minutes. One that fails doesn't keep the
others from running. `report.md` and `report.json` are written anew after each of them, so that a machine that goes
away leaves what was known. Exit code 0 when all passed, 1 when something failed, 2 without a GPU.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("torch", "transformers", "deepspeed", "peft", "bitsandbytes", "flash-attn", "liger-kernel"),
    *("accelerate", "datasets", "numpy", "pillow"),
)
TAIL_LINES = 40
FIGURES = "figures: "
SITE = "site"  # under --out: packages installed from --wheels


@dataclass(frozen=True)
class Check:
    """A command, without the Python it runs under, and how long it may take."""

    name: str
    command: tuple[str, ...]
    timeout_s: int


@dataclass(frozen=True)
class Result:
    """How a check ended. `outcome`: passed | failed (exit code N) | out of time | no such script.

    figures: what it measured, by name. tail: the end of what it printed.
    """

    check: Check
    outcome: str
    seconds: float
    tail: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def checks(out: Path, size: str) -> list[Check]:
    """The tests first: a benchmark of something wrong says nothing. Limits add up to 12 minutes, and most end far earlier."""
    sections = ("benchmarks/gpu_sections.py",)
    rest = ("--work", str(out / "work"), "--size", size)
    limits = {
        **{"shapes": 45, "step": 90, "stage1": 40, "stage2": 45, "zero3": 45, "fsdp": 45},
        **{"lora": 40, "qlora": 45, "offload": 60, "resume": 40, "resumed": 35},
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = ("--shape", "llama_1b", "--rounds", "1", "--images", "16", "--only", "ours", "transformers + Trainer")
    return [
        Check("tests", ("-m", "pytest", "-m", "gpu", "-rsfE", "--durations=0", "tests/gpu"), 80),
        *(Check(name, (*sections, name, *rest), seconds) for name, seconds in limits.items()),
        Check("train_stage2", ("benchmarks/train_stage2.py", *peer), 60),
        Check("decode", ("benchmarks/decode.py", "--rounds", "1", "--device", device), 25),
        Check("serve", ("benchmarks/serve_load.py", "--soak", "0", "--clients", "1", "32", "--device", device), 25),
    ]


def run(check: Check, out: Path) -> Result:
    """Run a check; everything it prints goes to `out/NAME.log`."""
    script = check.command[0]
    if script.endswith(".py") and not (ROOT / script).is_file():
        return Result(check, "no such script", 0.0, "")
    log = out / f"{check.name}.log"
    paths = os.pathsep.join((str(ROOT), str(out / SITE)))
    environment = {"OMP_NUM_THREADS": "4"} | os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
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
    found = [line.removeprefix(FIGURES) for line in lines if line.startswith(FIGURES)]
    tail = "\n".join(line for line in lines[-TAIL_LINES:] if not line.startswith(FIGURES))
    return Result(check, outcome, time.monotonic() - started, tail, json.loads(found[-1]) if found else {})


def install(wheels: Path, out: Path) -> None:
    """Install the wheels of a folder under `out`, from nowhere else. Raises SystemExit when pip can't."""
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(out / SITE))
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *files])
    if not files or done.returncode:
        raise SystemExit(
            f"error: the wheels of {wheels} can't be installed; see above" if files else f"error: no wheel in {wheels}"
        )


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
        if result.figures:
            lines += ["", f"## {result.check.name}", "", "| | |", "| --- | --- |"]
            lines += [f"| {name} | {_told(value)} |" for name, value in result.figures.items()]
    for result in results:
        lines += ["", f"## Log of {result.check.name}: {result.outcome}", "", f"End of `{result.check.name}.log`:", ""]
        lines += ["~~~", result.tail, "~~~"]
    return "\n".join(lines) + "\n"


def _told(value: Any) -> str:
    """A figure, or several, for a reader."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_told(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    return f"{value:,.5g}" if isinstance(value, float) else str(value)


def write_reports(out: Path, found: dict[str, str], results: Sequence[Result], planned: int) -> None:
    """Write `report.md` and `report.json`."""
    (out / "report.md").write_text(report(found, results, planned), encoding="utf-8")
    told = {"environment": found, "planned": planned, "checks": [asdict(result) for result in results]}
    (out / "report.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check"), help="Where the reports and logs go (default: %(default)s)."
    )
    parser.add_argument("--wheels", type=Path, help="A folder of wheels to install first, without an index.")
    parser.add_argument(
        "--size", choices=("1b", "tiny"), default="1b", help="How large a model (default: %(default)s)."
    )
    parser.add_argument("--checks", nargs="+", help="Run these checks alone (default: all).")
    options = parser.parse_args(arguments)
    if options.size != "tiny" and not torch.cuda.is_available():
        print("error: no GPU that torch can use on this machine; gpu-check needs one", file=sys.stderr)
        return 2
    out = options.out.resolve()
    planned = checks(out, options.size)
    unknown = set(options.checks or ()) - {check.name for check in planned}
    if unknown:
        print(f"error: no check {min(unknown)!r}; there are: {', '.join(c.name for c in planned)}", file=sys.stderr)
        return 2
    planned = [check for check in planned if options.checks is None or check.name in options.checks]
    out.mkdir(parents=True, exist_ok=True)
    if options.wheels is not None:
        install(options.wheels, out)
    found = environment()
    results: list[Result] = []
    write_reports(out, found, results, len(planned))
    for check in planned:
        print(f"{check.name} …", flush=True)
        results.append(run(check, out))
        print(f"{check.name}: {results[-1].outcome}, {results[-1].seconds:.0f} s", flush=True)
        write_reports(out, found, results, len(planned))
    print(f"the report: {out / 'report.md'}")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
