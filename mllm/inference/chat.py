"""A conversation with a model, turn by turn; what was computed in a turn stays for the next."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from mllm.conversation.schema import ImagePart, Message, Part, TextPart, VideoPart, media_kinds
from mllm.errors import UserError
from mllm.files import write_text_atomically
from mllm.inference.answer import Answer, Stream
from mllm.inference.cache import new_cache, truncate
from mllm.inference.confidence import Confidence, Said
from mllm.inference.contrast import Contrast
from mllm.inference.decoding import Decoding
from mllm.inference.generate import check_context
from mllm.inference.places import Places, places_in
from mllm.inference.reading import reader_of, settled
from mllm.inference.request import Prompt, Request, common_length, prompt_of
from mllm.inference.rivals import rivals_of
from mllm.media.clip import DEFAULT_CLIP_LIMITS, read_clip
from mllm.media.decode import read_image
from mllm.media.ref import ImageSource
from mllm.media.remote import data_url, data_url_bytes, is_data_url
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

BY = "mllm chat"
ANY_BYTES = "application/octet-stream"


class _SavedChat(BaseModel):
    """A conversation in a file: `images` (and videos) are absolute paths, or data URLs of what came without a file."""

    model_config = ConfigDict(extra="forbid")
    messages: tuple[Message, ...]
    images: tuple[str, ...]


class ChatSession:
    """Keeps the turns, images and videos of a conversation; `ask` appends a question and its answer.

    The keys and values of the turns stay, so that a turn computes only its new tokens. Which those are is found by
    comparing the tokens of the whole conversation, rendered anew, with the computed ones: the answer is that of a full
    recomputation, also after `undo`, or when the rendering of an answer differs from the tokens it was written in.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        confidence: Confidence | None = None,
        contrast: Contrast | None = None,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        is_sure = confidence is not None
        self.decoding = Decoding(
            max_new_tokens, temperature, top_p, stop=tuple(stop), logprobs=is_sure, contrast=contrast
        )
        self.system = system
        self.confidence = confidence
        self.last: Answer | None = None
        self.said = Said("")
        self.places: Places | None = None
        self._reader = reader_of(model, processor)
        self._cache, self._computed, self._asked = new_cache(), (), None
        self.reset()

    _computed: tuple[int, ...]
    _asked: Prompt | None  # what the cache was filled for

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages: list[Message] = [Message(role="system", content=self.system)] if self.system else []
        self.images: list[ImageSource] = []

    def set_system(self, system: str | None) -> None:
        """Replace the system prompt, or remove it; the turns stay."""
        self.system = system
        turns = [message for message in self.messages if message.role != "system"]
        self.messages = [*([Message(role="system", content=system)] if system else []), *turns]

    def undo(self) -> None:
        """Take back the last question and its answer. Raises UserError when there is none."""
        if not self.messages or self.messages[-1].role != "assistant":
            raise UserError("there is no question to take back")
        count = self.messages[-2].image_count
        self.messages = self.messages[:-2]
        self.images = self.images[: len(self.images) - count]

    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        on_text: Callable[[str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        videos: Sequence[ImageSource] = (),
    ) -> str:
        """The answer to `question` about `images`, `videos` and all that was said before.

        More about it is in `last`, in `said` how sure it is where that is known, and in `places` where in an image it points
        to, if it does. An answer that isn't sure enough (`Confidence.min_confidence`) is replaced, also for later turns.

        on_text receives the answer piece by piece while it is written; whole, where it may be replaced. is_cancelled is asked
        after each token; when it says so, the answer ends there and counts. A question that fails, or is interrupted by an
        exception, leaves the conversation as it was. Raises UserError for an empty question, an unreadable image or video, or
        too long a conversation.
        """
        if not question.strip():
            raise UserError("the question is empty")
        for image in images:
            read_image(image)
        shown: list[Part] = [*(ImagePart() for _ in images), *(VideoPart() for _ in videos)]
        parts: list[Part] = [*shown, TextPart(text=question)]
        messages = [*self.messages, Message(role="user", content=tuple(parts))]
        all_images = [*self.images, *images, *videos]
        request = Request(tuple(messages), tuple(all_images))
        prompt = prompt_of(request, self.processor, self.decoding.rival(request))
        check_context(self.model, prompt.longest, self.decoding.max_new_tokens)
        is_held = self.confidence is not None and self.confidence.may_abstain
        row = Stream(self.processor, self.decoding, None if is_held else on_text, is_cancelled)
        self.last = self._answer(prompt, row)
        self.said = Said(self.last.text) if self.confidence is None else self.confidence.said(self.last)
        if is_held and on_text is not None:
            on_text(self.said.text)
        self.places = places_in(self.said.text, prompt.shown, self.processor)
        self.messages = [*messages, Message(role="assistant", content=self.said.text)]
        self.images = all_images
        return self.said.text

    def _answer(self, prompt: Prompt, row: Stream) -> Answer:
        known = self._known(prompt)
        truncate(self._cache, known)
        self._computed, self._asked = prompt.key[:known], prompt
        rest = self._reader.stretch([prompt], [known], [len(prompt)])
        cached_mask = torch.ones(1, known, dtype=torch.int64, device=rest.mask.device)
        try:
            rivals = rivals_of(self._reader, [prompt], [row.decoding])
            self._reader.write(self._cache, cached_mask, rest, [row], rivals)
        except BaseException:
            # The layers may be unequally long, and at the first turn some may be missing.
            if known:
                truncate(self._cache, known)
            else:
                self._cache = new_cache()
            raise
        self._computed = (prompt.key + tuple(row.token_ids))[: self._cache.get_seq_length()]
        return row.answer(len(prompt), len(prompt) - known)

    def _known(self, prompt: Prompt) -> int:
        """How many of a prompt's positions are computed and can be gone on from."""
        known = settled(self._reader, [prompt], common_length(self._computed, prompt.key))
        if self._asked is None or known >= len(self._asked):
            return known
        return settled(self._reader, [prompt, self._asked], known)

    def save(self, path: str | Path) -> None:
        """Write the conversation to a JSON file; images are named by their absolute paths.

        Raises UserError where the file is there and no chat saved it.
        """
        images = [
            data_url(image, ANY_BYTES) if isinstance(image, bytes) else str(Path(image).resolve())
            for image in self.images
        ]
        saved = _SavedChat(messages=tuple(self.messages), images=tuple(images))
        write_text_atomically(path, saved.model_dump_json(indent=2) + "\n", BY)

    def load(self, path: str | Path) -> None:
        """Go on with a conversation that `save` wrote. Raises UserError, and changes nothing, if it can't be used."""
        try:
            saved = _SavedChat.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise UserError(f"{path} holds no saved conversation ({reason})") from None
        images: list[ImageSource] = [
            data_url_bytes(image, DEFAULT_CLIP_LIMITS.max_bytes) if is_data_url(image) else image
            for image in saved.images
        ]
        question = Message(role="user", content=(TextPart(text="?"),))
        Request((*saved.messages, question), tuple(images)).check()
        for kind, image in zip(media_kinds(saved.messages), images, strict=True):
            if kind == "video":
                read_clip(image)
            else:
                read_image(image)
        self.messages, self.images = list(saved.messages), images
        first = self.messages[0] if self.messages else None
        self.system = first.text if first is not None and first.role == "system" else None
