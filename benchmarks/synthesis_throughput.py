"""`mllm synth` against a server that answers at once: requests a second from end to end, and peak memory.

python benchmarks/synthesis_throughput.py --records 10000 100000
python benchmarks/synthesis_throughput.py --records 10000 --pictures

The server is a process of its own and does next to nothing; its CPU time is shown apart. A run reads the records, asks,
keeps the answers in the journal, filters them and writes the samples; each is a process of its own that starts a second.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.settings import validate_settings
from mllm.synthesis.run import write_instructions
from mllm.synthesis.settings import InstructionConfig

PROMPTS = Path(__file__).parents[1] / "data_recipes" / "prompts"
COLORS = ("red", "green", "blue", "yellow", "brown", "white", "black", "grey", "orange", "golden", "silver", "striped")
THINGS = (
    "wall",
    "road",
    "roof",
    "garden",
    "field",
    "river",
    "hill",
    "tower",
    "market",
    "shop",
    "rock",
    "cloud",
    "door",
)
ACTS = ("standing", "leaning", "resting", "waiting", "hanging", "lying", "shining", "growing", "turning", "moving")


def phrase(rng: random.Random) -> str:
    return f"{rng.choice(COLORS)} {rng.choice(THINGS)} {rng.choice(ACTS)} near the {rng.choice(COLORS)} {rng.choice(THINGS)}"


class InstantAnswers(asyncio.Protocol):
    """Chat completions over kept-alive connections: a drawn conversation for each request, whatever it says."""

    rng = random.Random(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._received = transport, b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = body[length:]
        asked, told = phrase(self.rng), phrase(self.rng)
        pairs = [
            ("What can you see here?", f"There is a {asked}, and behind it a {told}."),
            (f"What is the {asked} for?", f"It belongs to the {told}."),
        ]
        text = json.dumps({"turns": [{"question": question, "answer": answer} for question, answer in pairs]})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 600, "completion_tokens": 60, "total_tokens": 660}
        whole = {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        answer = json.dumps(whole).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
        self._transport.write(head + answer)  # type: ignore[attr-defined]


async def serve() -> None:
    """Say the port, then answer until standard input ends; then say the CPU seconds used."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(InstantAnswers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(cpu_s(), flush=True)


def cpu_s() -> float:
    """Seconds of this process and of those it has started and seen end."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def run_once(config_path: str) -> None:
    """Run a config in this process, and say how long it took and how much memory."""
    config = validate_settings(
        InstructionConfig, json.loads(Path(config_path).read_text(encoding="utf-8")), config_path
    )
    begun, cpu_before_s = time.perf_counter(), cpu_s()
    report = write_instructions(config)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    # Linux gives KiB.
    writer_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    measured = {"s": time.perf_counter() - begun, "cpu_s": cpu_s() - cpu_before_s, "peak_mib": peak_kib / 1024}
    measured["writer_mib"] = writer_kib / 1024
    print(json.dumps({**measured, "samples": report.samples, "requests": report.requests}))


def write_records(root: Path, count: int, pictures: bool) -> None:
    """`root/facts.jsonl` of `count` images with captions and boxes; the images themselves only if they are looked at."""
    rng = random.Random(1)
    with open(root / "facts.jsonl", "w", encoding="utf-8") as file:
        for n in range(count):
            captions = [f"A {phrase(rng)}, number {n}.", f"There is a {phrase(rng)}.", f"A {phrase(rng)} in the sun."]
            boxes = [{"category": name, "box": [n % 50 + 9, 20, n % 50 + 99, 200]} for name in rng.sample(THINGS, 4)]
            record = {"id": n, "image": f"{n}.jpg", "captions": captions, "boxes": boxes, "height": 240, "width": 320}
            file.write(json.dumps(record) + "\n")
            if pictures:
                Image.frombytes("RGB", (8, 6), rng.randbytes(144)).resize((320, 240)).save(root / f"{n}.jpg")


def measure(records: int, pictures: bool, sends_image: bool, concurrency: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_records(root, records, pictures)
        me = [sys.executable, __file__]
        with subprocess.Popen([*me, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None and server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            config = {
                "output": str(root / "out"),
                "backend": {
                    "kind": "openai",
                    "model": "m",
                    "base_url": url,
                    "concurrency": concurrency,
                    "sends_image": sends_image,
                },
                "inputs": [{"name": "facts", "path": str(root / "facts.jsonl"), "image_root": folder}],
                "kinds": {"conversation": 1},
                "prompts": str(PROMPTS),
                "filters": {"skip": [] if pictures else ["bad_image", "evaluation_image", "duplicate_image"]},
            }
            (root / "config.json").write_text(json.dumps(config))
            ran = subprocess.run([*me, "--run", str(root / "config.json")], check=True, capture_output=True, text=True)
            server.stdin.close()
            server_cpu_s = float(server.stdout.readline())
    return {**json.loads(ran.stdout), "server_cpu_s": server_cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--pictures", action="store_true", help="with images of 320×240, which the filters look at")
    parser.add_argument("--sends-image", action="store_true", help="with --pictures: each goes along with its request")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    elif options.run:
        run_once(options.run)
    else:
        print(
            "| requests | samples | seconds | requests/s | client's CPU s | server's CPU s | peak MiB, asking | writing |"
        )
        print("| ---: " * 8 + "|")
        for count in options.records:
            row = measure(count, options.pictures, options.sends_image, options.concurrency)
            print(
                f"| {row['requests']:,} | {row['samples']:,} | {row['s']:.1f} | {row['requests'] / row['s']:.0f} "
                f"| {row['cpu_s']:.1f} | {row['server_cpu_s']:.1f} | {row['peak_mib']:.0f} | {row['writer_mib']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
