"""The `native` format: segments out of the tokenizer's own chat template.

The template is rendered with a marker in place of every text part; what lies between the markers is structure (parsed
for special tokens), the parts themselves are plain text. The result is then held against the template's rendering of
the real messages, so that a template that rewrites texts is refused instead of trained on wrongly.

A template may print the day (`strftime_now`). For one format it is always the same day, which is saved with the model: a
structure that changed at midnight would be neither a prefix of what was trained nor what a resumed run saw before.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from mllm.conversation.formats import Segment
from mllm.conversation.schema import Message, TextPart
from mllm.errors import ConversationRefusedError, UserError

CLOCK = "strftime_now"
CLOCK_SIGNS = (*"aAbBcdDeFfGHIjmMnpRStTuUVwWxXyYzZ", "-d", "-m", "-j", "-H", "-I", "-M", "-S")
PERCENT = "\ue0f2"
SIMPLEST = (
    Message(role="user", content=(TextPart(text="?"),)),
    Message(role="assistant", content=(TextPart(text="a"),)),
)
MARKER = re.compile("\ue0f0(\\d+)\ue0f1")
CHECKED_TURNS = 32  # prefixes are checked turn by turn up to here: the structure repeats after the first turns


def _marker(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"


Shape = tuple[tuple[str, tuple[str, ...]], ...]


class NativeFormat:
    """Segments from `tokenizer.chat_template`. Raises UserError when there is none or it can't be followed."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token: str,
        day: date | None = None,
        structure_tokens: Sequence[str] = (),
    ) -> None:
        """day: what a template that asks for the date is told, at midnight; None is the day of today.

        structure_tokens: tokens that a template may write beside the tokenizer's special ones.
        """
        self.name = "native"
        self.tokenizer = tokenizer
        self.image_token = image_token
        if not tokenizer.chat_template:
            raise UserError("prompt_format native: the tokenizer has no chat template; choose vicuna_v1 or chatml")
        tokens = sorted({*tokenizer.all_special_tokens, image_token, *structure_tokens}, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(t) for t in tokens))
        self._structures: dict[tuple[Shape, bool], list[Segment | int]] = {}
        self._day = day or date.today()
        self.prints_day = CLOCK in str(tokenizer.chat_template)
        self._dated_template = self._with_day()
        self.takes_parts = self._probe_parts()

    def special_tokens(self) -> tuple[str, ...]:
        return ()

    @property
    def day(self) -> date | None:
        """The day that the template prints; None when it prints none."""
        return self._day if self.prints_day else None

    @day.setter
    def day(self, day: date | None) -> None:
        self._day = day or self._day
        self._dated_template = self._with_day()
        self._structures.clear()

    def segments(self, messages: Sequence[Message], eos_token: str, generation: bool) -> list[Segment]:
        """The conversation as segments; with `generation`, followed by the opening of an assistant turn.

        Raises ConversationRefusedError for what the template doesn't take, UserError when it takes no conversation at all.
        """
        try:
            return self._segments(messages, generation)
        except UserError as error:
            # Asked for the simplest conversation, a template that can't be used says so itself.
            self._segments(SIMPLEST, generation=False)
            raise ConversationRefusedError(str(error)) from None

    def _segments(self, messages: Sequence[Message], generation: bool) -> list[Segment]:
        shape: Shape = tuple((m.role, tuple(part.type for part in m.content)) for m in messages)
        if (shape, generation) not in self._structures:
            self._structures[shape, generation] = self._structure(shape, generation)
        structure = self._structures[shape, generation]
        texts = [part.text for m in messages for part in m.content if isinstance(part, TextPart)]
        roles = [m.role for m in messages for part in m.content if isinstance(part, TextPart)]
        expected = self.text(messages, generation)
        for candidate in (texts, self._trimmed(messages)):
            segments = [
                Segment("text", candidate[item], supervised=roles[item] == "assistant")
                if isinstance(item, int)
                else item
                for item in structure
            ]
            if "".join(self.image_token if s.kind == "image" else s.text for s in segments) == expected:
                return [s for s in segments if s.kind != "text" or s.text]
        raise UserError(
            f"the chat template of {self.tokenizer.name_or_path!r} rewrites the text of a turn, so its words can't be "
            "told from its structure; choose a prompt format from the table"
        )

    def text(self, messages: Sequence[Message], generation: bool) -> str:
        """What the template itself renders for these messages."""
        return self._render([(m.role, self._parts(m)) for m in messages], generation)

    def _with_day(self) -> str | None:
        """The template with a clock of its own that stands still; None where it asks for no time, for the template as it is.

        A macro of that name hides the function that transformers gives to templates; another function can't be handed in.
        """
        if not self.prints_day:
            return None
        midnight = datetime.combine(self._day, datetime.min.time())
        steps = "".join(f" | replace({f'%{sign}'!r}, {midnight.strftime(f'%{sign}')!r})" for sign in CLOCK_SIGNS)
        percent = f"replace('%%', {PERCENT!r}){steps} | replace({PERCENT!r}, '%')"
        # What follows an expression keeps its line feed, what follows a block doesn't.
        macro = f"{{% macro {CLOCK}(format) %}}{{{{ format | {percent} }}}}{{% endmacro %}}{{{{ '' }}}}"
        return macro + self.tokenizer.get_chat_template()

    @staticmethod
    def _parts(message: Message) -> list[str | None]:
        return [part.text if isinstance(part, TextPart) else None for part in message.content]

    @staticmethod
    def _trimmed(messages: Sequence[Message]) -> list[str]:
        """The texts as a template that trims every turn leaves them."""
        out = []
        for message in messages:
            for index, part in enumerate(message.content):
                if isinstance(part, TextPart):
                    text = part.text.lstrip() if index == 0 else part.text
                    out.append(text.rstrip() if index == len(message.content) - 1 else text)
        return out

    def _render(self, turns: Sequence[tuple[str, list[str | None]]], generation: bool) -> str:
        """Render turns of (role, parts), None standing for an image."""
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": role, "content": self._content(parts)} for role, parts in turns],
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=self._dated_template,
            )
        except Exception as error:
            # A template is a program of somebody else's: whatever it raises is its answer to these turns.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses this conversation: {reason}; "
                "change its turns, or choose a prompt format from the table"
            ) from None

    def _content(self, parts: list[str | None]) -> Any:
        if self.takes_parts:
            return [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
        return "".join(f"{self.image_token}\n" if part is None else part for part in parts)

    def _probe_parts(self) -> bool:
        """Whether the template takes a list of parts and renders an image as the image token."""
        self.takes_parts = True
        try:
            text = self._render([("user", [None, _marker(0)])], generation=False)
        except UserError:
            return False
        return _marker(0) in text and self.image_token in text and "'type'" not in text and '"type"' not in text

    def _structure(self, shape: Shape, generation: bool) -> list[Segment | int]:
        """Segments of the structure, with the index of a text part where that part goes."""
        index = 0
        turns: list[tuple[str, list[str | None]]] = []
        answers: dict[int, int] = {}  # index of an assistant's text part → its turn
        for turn, (role, types) in enumerate(shape):
            parts: list[str | None] = []
            for kind in types:
                if kind == "text" and role == "assistant":
                    answers.setdefault(index, turn)
                parts.append(_marker(index) if kind == "text" else None)
                index += kind == "text"
            turns.append((role, parts))
        rendered = self._render(turns, generation)
        pieces = MARKER.split(rendered)
        if [int(p) for p in pieces[1::2]] != list(range(index)):
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path!r} drops, repeats or reorders the text of a turn; "
                "choose a prompt format from the table"
            )
        self._check_prefixes(turns, rendered, answers)
        out: list[Segment | int] = []
        for position, piece in enumerate(pieces):
            if position % 2:
                out.append(int(piece))
                continue
            after_answer = position > 0 and int(pieces[position - 1]) in self._last_parts(shape)
            out += self._parse(piece, after_answer)
        return out

    @staticmethod
    def _last_parts(shape: Shape) -> set[int]:
        """Indices of the text parts that close an assistant's turn."""
        closing, index = set(), -1
        for role, types in shape:
            index += sum(kind == "text" for kind in types)
            if role == "assistant":
                closing.add(index)
        return closing

    def _check_prefixes(self, turns: list[Any], rendered: str, answers: dict[int, int]) -> None:
        """Each generation prompt must be a prefix of the whole, up to white space that belongs to the answer."""
        for index, turn in list(answers.items())[:CHECKED_TURNS]:
            before = rendered[: rendered.index(_marker(index))]
            prompt = self._render(turns[:turn], generation=True)
            if not before.startswith(prompt) or before[len(prompt) :].strip():
                raise UserError(
                    f"the chat template of {self.tokenizer.name_or_path!r} breaks its own prefix: the prompt it gives "
                    "for generation is not how the trained text begins; choose a prompt format from the table"
                )

    def _parse(self, text: str, after_answer: bool) -> list[Segment]:
        """Structure text as segments; the special token right after an answer ends it and is supervised."""
        out: list[Segment] = []
        position = 0
        for match in self._special.finditer(text):
            if match.start() > position:
                out.append(Segment("text", text[position : match.start()]))
            token = match.group()
            is_end = after_answer and match.start() == 0
            out.append(Segment("image") if token == self.image_token else Segment("special", token, is_end))
            position = match.end()
        if position < len(text):
            out.append(Segment("text", text[position:]))
        if after_answer and not (out and out[0].supervised):
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path!r} does not end the assistant's turn with a "
                "special token; choose a prompt format from the table"
            )
        return out
