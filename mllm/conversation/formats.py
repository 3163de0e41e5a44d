"""Prompt formats: how turns become segments of text, special tokens and images.

A format is an entry of `PROMPT_FORMATS` (data, no code); `native`, the tokenizer's own chat template, is built in
`native.py`. What is supervised is the same everywhere: the assistant's words and the token that ends its turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mllm.conversation.schema import Message, TextPart
from mllm.errors import UserError


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompt: `text` tokenized as plain text, a `special` token by its string, or an `image`.

    `ends_turn` marks the text that ends an answer, behind which a prompt for generation may be cut. `weight`: what each
    token of it counts in a loss, where it is supervised.
    """

    kind: Literal["text", "special", "image"]
    text: str = ""
    supervised: bool = False
    ends_turn: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Special:
    """A special token in a format's pieces; `EOS` stands for the tokenizer's own end-of-sequence token."""

    token: str


EOS = Special("")
CONTENT = None
Piece = str | Special | None  # None = CONTENT, where the words of the turn go


@dataclass(frozen=True)
class PromptFormat:
    """A prompt format as data.

    system, user: pieces of a turn with CONTENT for its words. assistant: pieces before the answer; answer_prefix: text
    that belongs to the answer (learned with it); end: ends the answer, learned too; after: follows the end, not
    learned. image_suffix: text after each image. user_text: whether the user's words are kept (`plain` drops them).
    """

    name: str
    system: tuple[Piece, ...]
    user: tuple[Piece, ...]
    assistant: tuple[Piece, ...]
    end: str | Special
    default_system: str | None = None
    answer_prefix: str = ""
    after: str = ""
    image_suffix: str = "\n"
    user_text: bool = True

    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens the tokenizer must have."""
        pieces = (*self.system, *self.user, *self.assistant, self.end)
        return tuple(dict.fromkeys(p.token for p in pieces if isinstance(p, Special) and p is not EOS))

    def segments(self, messages: Sequence[Message], eos_token: str, generation: bool) -> list[Segment]:
        """The conversation as segments; with `generation`, followed by the opening of an assistant turn."""
        out: list[Segment] = []
        if self.default_system is not None and (not messages or messages[0].role != "system"):
            out += self._turn(self.system, [Segment("text", self.default_system)], eos_token)
        for message in messages:
            if message.role == "assistant":
                out += self._turn(self.assistant, [], eos_token)
                out.append(Segment("text", self.answer_prefix + message.text, supervised=True))
                out.append(replace(_segment(self.end, eos_token, supervised=True), ends_turn=True))
                out.append(Segment("text", self.after))
            else:
                pieces = self.system if message.role == "system" else self.user
                out += self._turn(pieces, self._content(message), eos_token)
        if generation:
            out += self._turn(self.assistant, [], eos_token)
        return [s for s in out if s.kind != "text" or s.text]

    def _content(self, message: Message) -> list[Segment]:
        out: list[Segment] = []
        for part in message.content:
            if not isinstance(part, TextPart):
                out += [Segment("image"), Segment("text", self.image_suffix)]
            elif self.user_text or message.role != "user":
                out.append(Segment("text", part.text))
        return out

    def _turn(self, pieces: tuple[Piece, ...], content: list[Segment], eos_token: str) -> list[Segment]:
        out: list[Segment] = []
        for piece in pieces:
            out += content if piece is CONTENT else [_segment(piece, eos_token, supervised=False)]
        return out


def _segment(piece: str | Special, eos_token: str, supervised: bool) -> Segment:
    if isinstance(piece, Special):
        return Segment("special", eos_token if piece is EOS else piece.token, supervised)
    return Segment("text", piece, supervised)


def _headed(role: str) -> tuple[Piece, ...]:
    return (Special("<|start_header_id|>"), role, Special("<|end_header_id|>"), "\n\n")


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

CHATML = PromptFormat(
    "chatml",
    system=(Special("<|im_start|>"), "system\n", CONTENT, Special("<|im_end|>"), "\n"),
    user=(Special("<|im_start|>"), "user\n", CONTENT, Special("<|im_end|>"), "\n"),
    assistant=(Special("<|im_start|>"), "assistant\n"),
    end=Special("<|im_end|>"),
    after="\n",
)

PROMPT_FORMATS: dict[str, PromptFormat] = {
    entry.name: entry
    for entry in (
        # LLaVA's alignment stage: image, caption, newline; the user's words are dropped.
        PromptFormat(
            "plain", system=(CONTENT,), user=(CONTENT,), assistant=(), end="\n", image_suffix="", user_text=False
        ),
        PromptFormat(
            "vicuna_v1",
            system=(CONTENT, " "),
            user=("USER: ", CONTENT, " "),
            assistant=("ASSISTANT:",),
            answer_prefix=" ",
            end=EOS,
            default_system=VICUNA_SYSTEM,
        ),
        PromptFormat(
            "llama_3",
            system=(*_headed("system"), CONTENT, Special("<|eot_id|>")),
            user=(*_headed("user"), CONTENT, Special("<|eot_id|>")),
            assistant=_headed("assistant"),
            end=Special("<|eot_id|>"),
        ),
        CHATML,
        # LLaVA-OneVision's and LLaVA-Video's; behind `chatml`, which an import tries first.
        replace(CHATML, name="qwen_1_5", default_system="You are a helpful assistant."),
    )
}
NATIVE = "native"


def prompt_format(name: str) -> PromptFormat:
    """The table entry called exactly `name`. Raises UserError that lists the choices."""
    if name not in PROMPT_FORMATS:
        choices = ", ".join([*PROMPT_FORMATS, NATIVE])
        raise UserError(f"unknown prompt format {name!r}; choose one of: {choices}")
    return PROMPT_FORMATS[name]
