"""A prompt format as a Jinja template over content parts, for whoever renders prompts without our code."""

from dataclasses import dataclass

from mllm.conversation.native import NativeFormat
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.processor import IMAGE_TOKEN, Processor

_TEMPLATE = """{{%- for message in messages -%}}
{{%- if loop.first and message.role != 'system' -%}}{{{{ {default} }}}}{{%- endif -%}}
{{%- set body = namespace(text='') -%}}
{{%- if message.content is string -%}}{{%- set body.text = message.content -%}}
{{%- else -%}}{{%- for part in message.content -%}}
{{%- if part.type == 'image' -%}}{{%- set body.text = body.text + {image} -%}}
{video}{{%- else -%}}{{%- set body.text = body.text + part.text -%}}{{%- endif -%}}
{{%- endfor -%}}{{%- endif -%}}
{{%- if message.role == 'system' -%}}{{{{ {system[0]} + body.text + {system[1]} }}}}
{{%- elif message.role == 'user' -%}}{{{{ {user[0]} + body.text + {user[1]} }}}}
{{%- else -%}}{{{{ {answer[0]} + body.text + {answer[1]} }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ {generation} }}}}{{%- endif -%}}"""
_VIDEO = "{{%- elif part.type == 'video' -%}}{{%- set body.text = body.text + {video} -%}}\n"


# Set before a template that takes strings, it makes one string of each turn's parts, as the native format does.
_JOIN_PARTS = """{{%- set joined = namespace(turns=[]) -%}}
{{%- for message in messages -%}}
{{%- set body = namespace(text='') -%}}
{{%- if message.content is string -%}}{{%- set body.text = message.content -%}}
{{%- else -%}}{{%- for part in message.content -%}}
{{%- set body.text = body.text + ({image} if part.type == 'image' else {video}part.text) -%}}
{{%- endfor -%}}{{%- endif -%}}
{{%- set joined.turns = joined.turns + [dict(role=message.role, content=body.text)] -%}}
{{%- endfor -%}}
{{%- set messages = joined.turns -%}}{{{{ '' }}}}"""


def chat_template(processor: Processor, video_token: str | None = None) -> str:
    """Write a Jinja template over content parts that renders as our prompt format does, read off the format itself.

    video_token: what stands for a video, in the place of the image token; None writes a template that knows no videos.
    Raises UserError for a format without turns.
    """
    if isinstance(processor.format, NativeFormat):
        template: str = processor.tokenizer.chat_template
        return template if processor.format.takes_parts else _joining_parts(video_token) + template
    if processor.format_name == "plain":
        raise UserError(
            "prompt format plain has no turns to make a chat template of; finish with vicuna_v1, llama_3, chatml or native"
        )
    opening = processor.tokenizer.decode(processor.render([]).input_ids[:1]) if processor.opens_with_bos else ""
    pieces = pieces_of(processor)
    quoted = {
        "default": _quote(opening + pieces.default),
        "image": _quote(pieces.image),
        "generation": _quote(pieces.generation),
        "system": [_quote(opening + pieces.system[0]), _quote(pieces.system[1])],
        "user": [_quote(piece) for piece in pieces.user],
        "answer": [_quote(piece) for piece in pieces.answer],
    }
    video = "" if video_token is None else _VIDEO.format(video=_quote(pieces.image.replace(IMAGE_TOKEN, video_token)))
    return _TEMPLATE.format(video=video, **quoted)


@dataclass(frozen=True)
class Pieces:
    """What a prompt format puts around the words of each kind of turn, and of an image.

    default: before a conversation that no system turn opens. image: in the place of an image. generation: what opens an
    answer. system, user, answer: before the words, and behind them.
    """

    default: str
    image: str
    generation: str
    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]


def written(processor: Processor, messages: list[Message], generation: bool = False) -> str:
    """Write a conversation as the prompt format does, without what the tokenizer itself opens with."""
    segments = processor.format.segments(messages, processor.tokenizer.eos_token or "", generation)
    return "".join(IMAGE_TOKEN if s.kind == "image" else s.text for s in segments)


def pieces_of(processor: Processor) -> Pieces:
    """Read the pieces of a processor's prompt format off what it writes."""
    mark = "\ue0f0"
    silent, asking = Message(role="system", content=""), Message(role="user", content=mark)
    base = written(processor, [silent])
    asked = written(processor, [silent, asking])
    user = asked.removeprefix(base)
    answer = written(processor, [silent, asking, Message(role="assistant", content=mark)]).removeprefix(asked)
    image = written(processor, [silent, Message(role="user", content=(ImagePart(), TextPart(text=mark)))])
    return Pieces(
        default=written(processor, [asking]).removesuffix(user),
        image=image.removeprefix(base).split(mark)[0].removeprefix(user.split(mark)[0]),
        generation=written(processor, [silent], generation=True).removeprefix(base),
        system=_around(written(processor, [Message(role="system", content=mark)]), mark),
        user=_around(user, mark),
        answer=_around(answer, mark),
    )


def _around(text: str, mark: str) -> tuple[str, str]:
    before, _, behind = text.partition(mark)
    return before, behind


def _joining_parts(video_token: str | None) -> str:
    video = "" if video_token is None else _quote(f"{video_token}\n") + " if part.type == 'video' else "
    return _JOIN_PARTS.format(image=_quote(f"{IMAGE_TOKEN}\n"), video=video)


def _quote(text: str) -> str:
    """Write `text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
