"""`mllm serve` under load on loopback: throughput, latency, lost requests, and memory over many requests.

python benchmarks/serve_load.py --clients 1 8 32 --requests 64 --soak 0
python benchmarks/serve_load.py --clients --soak 1000
"""

import argparse
import asyncio
import base64
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import openai
from inference_peers import make_pair, picture, words
from measuring import machine, markdown_table

PORT = 18431
IMAGES = 8  # of the measured load, drawn at random
SOAK_PARTS = 10


def resident_mib(process: subprocess.Popen) -> float:
    """Memory in RAM of a process (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


async def load(bodies: list[dict], clients: int) -> tuple[float, list[float], int]:
    """Seconds in all, seconds of each answer, and how many were lost, with so many clients asking at once."""
    waiting = iter(bodies)
    latencies: list[float] = []
    lost = 0

    async def client() -> None:
        nonlocal lost
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0) as api:
            for body in waiting:
                begun = time.perf_counter()
                try:
                    await api.chat.completions.create(**body)
                    latencies.append(time.perf_counter() - begun)
                except openai.OpenAIError:
                    lost += 1

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - begun, latencies, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="with each number of clients")
    parser.add_argument("--soak", type=int, default=1000, help="requests of one token, over which memory is watched")
    parser.add_argument("--soak-images", type=int, default=40, help="distinct ones in the soak, asked about one by one")
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder))
        urls = []
        for number in range(max(IMAGES, options.soak_images)):
            data = Path(picture(Path(folder) / f"{number}.png", rng)).read_bytes()
            urls.append("data:image/png;base64," + base64.b64encode(data).decode())

        def body(answer_tokens: int, url: str) -> dict:
            image = {"type": "image_url", "image_url": {"url": url}}
            content = [image, {"type": "text", "text": words(rng, 12)}]
            messages = [{"role": "user", "content": content}]
            return {"model": "hf", "messages": messages, "temperature": 0, "max_tokens": answer_tokens}

        command = [
            sys.executable,
            "-m",
            "mllm.cli",
            "serve",
            str(pair.directory),
            "--port",
            str(PORT),
            "--timeout-s",
            "600",
            "--device",
            options.device,
            "--dtype",
            "float32" if options.device == "cpu" else "bfloat16",
        ]
        server = subprocess.Popen(command)
        try:
            _wait_for(f"http://127.0.0.1:{PORT}/health")
            rows = []
            for clients in options.clients:
                bodies = [body(options.answer_tokens, rng.choice(urls[:IMAGES])) for _ in range(options.requests)]
                seconds, latencies, lost = asyncio.run(load(bodies, clients))
                p50, p95 = np.percentile(latencies, [50, 95])
                rows.append([clients, f"{options.requests / seconds:.2f}", f"{p50:.2f}", f"{p95:.2f}", lost])
            memory = [resident_mib(server)]
            bodies = [body(1, urls[number * options.soak_images // options.soak]) for number in range(options.soak)]
            lost_in_soak = 0
            for part in range(SOAK_PARTS):
                chosen = bodies[part * options.soak // SOAK_PARTS : (part + 1) * options.soak // SOAK_PARTS]
                lost_in_soak += asyncio.run(load(chosen, 8))[2]
                memory.append(resident_mib(server))
        finally:
            server.terminate()
            server.wait()
    print(machine())
    if options.clients:
        print(markdown_table(["clients", "requests/s", "p50, s", "p95, s", "lost"], rows))
    if options.soak:
        told = ", ".join(f"{m:.0f}" for m in memory)
        print(f"server's memory over {options.soak} requests of 8 clients, {lost_in_soak} lost, MiB: {told}")


def _wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server didn't start")


if __name__ == "__main__":
    main()
