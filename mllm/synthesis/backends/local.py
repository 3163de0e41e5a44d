"""A language model of the transformers library on this machine, a batch of prompts at a time."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from mllm.errors import UserError
from mllm.synthesis.backends.base import Answered, Completion, Prompt
from mllm.synthesis.settings import LocalSettings


class LocalBackend:
    """Prompts go through the tokenizer's own chat template. Sampling is seeded by the first prompt of a batch."""

    concurrency = 1
    kinds: frozenset[str] | None = None
    languages: frozenset[str] | None = None
    needs_facts = True
    takes_schema = False

    def __init__(self, settings: LocalSettings) -> None:
        """Raises UserError when there is no such model, or it has no chat template."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
            self._model = AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto").to(device).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"backend local: {settings.model} can't be loaded ({str(error).splitlines()[0]})") from None
        if self._tokenizer.chat_template is None:
            raise UserError(f"backend local: {settings.model} has no chat template; choose an instruction-tuned model")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._settings = settings
        self.batch_size = settings.batch_size
        self.identity = json.dumps(["local", settings.model, settings.max_tokens, settings.temperature])

    def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Nothing is paid."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.0

    async def complete(self, prompts: Sequence[Prompt]) -> list[Answered]:
        return await asyncio.to_thread(self._generate, prompts)

    async def close(self) -> None:
        """Nothing is open."""

    def _generate(self, prompts: Sequence[Prompt]) -> list[Answered]:
        import torch

        texts = [
            self._tokenizer.apply_chat_template(list(p.messages), tokenize=False, add_generation_prompt=True)
            for p in prompts
        ]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {name: inputs[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
        sampling: dict[str, Any] = {"do_sample": False}
        if self._settings.temperature > 0:
            torch.manual_seed(prompts[0].seed)
            sampling = {"do_sample": True, "temperature": self._settings.temperature}
        with torch.inference_mode():
            ids = self._model.generate(
                **inputs,
                max_new_tokens=self._settings.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        length = inputs["input_ids"].shape[1]
        answers: list[Answered] = []
        for row, mask in zip(ids[:, length:], inputs["attention_mask"], strict=True):
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            written = int((row != self._tokenizer.pad_token_id).sum())
            answers.append(Completion(text, int(mask.sum()), written))
        return answers
