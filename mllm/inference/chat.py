"""A conversation with a model, turn by turn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from mllm.conversation.schema import ImagePart, Message, Part, TextPart
from mllm.errors import UserError
from mllm.images.decode import read_image
from mllm.inference.generate import Request, generate_answers, generation_config, render_request
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor


class _Callback(TextStreamer):
    """Hands each finished piece of text to a function."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


class ChatSession:
    """Keeps the turns and images of a conversation; `ask` appends a question and its answer."""

    def __init__(
        self,
        model: MultimodalLM,
        processor: Processor,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.config = generation_config(processor, max_new_tokens, temperature, top_p)
        self.system = system
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages: list[Message] = [Message(role="system", content=self.system)] if self.system else []
        self.images: list[str | Path] = []

    def ask(
        self, question: str, images: Sequence[str | Path] = (), on_text: Callable[[str], None] | None = None
    ) -> str:
        """The answer to `question` about `images` and all that was said before.

        on_text receives the answer piece by piece while it is written. A question that fails, or is interrupted, leaves
        the conversation as it was. Raises UserError for an empty question or an unreadable image.
        """
        if not question.strip():
            raise UserError("the question is empty")
        for image in images:
            read_image(image)
        parts: list[Part] = [*(ImagePart() for _ in images), TextPart(text=question)]
        messages = [*self.messages, Message(role="user", content=tuple(parts))]
        all_images = [*self.images, *images]
        prompt = render_request(Request(tuple(messages), tuple(all_images)), self.processor)
        streamer = _Callback(self.processor.tokenizer, on_text) if on_text is not None else None
        with torch.inference_mode():
            answer = generate_answers(self.model, self.processor, [prompt], [all_images], self.config, streamer)[0]
        self.messages = [*messages, Message(role="assistant", content=answer)]
        self.images = all_images
        return answer
