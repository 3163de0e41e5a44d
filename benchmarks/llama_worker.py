"""Answers of llama.cpp, for `deployment.py`: run by a Python that has `xllamacpp` and needs nothing else.

    PYTHON llama_worker.py JOB.json ANSWERS.json

A job has `model`, `mmproj`, `max_tokens`, `threads`, and `contents`, what users
say as the API has it; answers have `ids`, `text` and `prompt_tokens`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import xllamacpp


def server_of(job: dict[str, Any]) -> Any:
    """A server within this process, on the CPU alone, that answers one request at a time."""
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = job["model"], job["mmproj"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2048, 1, 0
    params.cpuparams.n_threads = job["threads"]
    params.use_jinja, params.warmup, params.fit_params, params.verbosity = True, False, False, 0
    return xllamacpp.Server(params)


def answer(server: Any, content: Any, max_tokens: int) -> dict[str, Any]:
    """The tokens and the text of a greedy answer, the token that ends it left out."""
    request = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": 2,
        "cache_prompt": False,
    }
    found = server.handle_chat_completions(request)
    if "error" in found:
        raise SystemExit(f"llama.cpp refuses: {found['error']['message']}")
    (choice,) = found["choices"]
    return {
        "ids": [token["id"] for token in choice["logprobs"]["content"]],
        "text": choice["message"]["content"],
        "prompt_tokens": found["usage"]["prompt_tokens"],
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    server = server_of(job)
    answers = [answer(server, content, job["max_tokens"]) for content in job["contents"]]
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
