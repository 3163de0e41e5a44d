"""A Modelfile, by which Ollama is told of a GGUF: its files, how prompts are written, and what ends an answer.

The format is https://docs.ollama.com/modelfile; Ollama itself was not run.
"""

import logging

from mllm.checkpoint.chat_template import Pieces, pieces_of, written
from mllm.checkpoint.mmproj import FILE_NAME
from mllm.conversation.schema import Message
from mllm.errors import UserError
from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor

logger = logging.getLogger(__name__)

MODELFILE = "Modelfile"
LANGUAGE_MODEL = "model.gguf"  # where llama.cpp's script is told to write the language model
QUOTES = '"""'
_TEMPLATE = (
    '{{{{- range .Messages }}}}{{{{ if eq .Role "system" }}}}{system[0]}{{{{ .Content }}}}{system[1]}'
    '{{{{ else if eq .Role "user" }}}}{user[0]}{{{{ .Content }}}}{user[1]}'
    "{{{{ else }}}}{answer[0]}{{{{ .Content }}}}{answer[1]}{{{{ end }}}}{{{{ end }}}}{generation}"
)
_TRIED = (
    [Message(role="user", content="a")],
    [
        *(Message(role=role, content=role) for role in ("system", "user", "assistant")),
        Message(role="user", content="b"),
    ],
)


def modelfile(model: MultimodalLM, processor: Processor) -> str:
    """Write the Modelfile of a model beside its `mmproj.gguf`, for a language model in `model.gguf`.

    A prompt format that isn't the same around every turn gets no TEMPLATE: Ollama then looks for one in the GGUF. What is
    said before the first turn of a conversation without a system turn is the SYSTEM; the tokenizer's own opening is left to
    the GGUF.
    """
    lines = [f"FROM ./{LANGUAGE_MODEL}", f"FROM ./{FILE_NAME}"]
    pieces = _pieces(processor)
    if pieces is None:
        logger.warning(
            "prompt format %s isn't the same around every turn, so %s has no TEMPLATE: write one",
            processor.format_name,
            MODELFILE,
        )
    else:
        lines.append(f"TEMPLATE {QUOTES}{_template(pieces)}{QUOTES}")
        opening = _system(pieces)
        lines += [f"SYSTEM {QUOTES}{opening}{QUOTES}"] if opening else []
    stops = [processor.tokenizer.decode([token]) for token in processor.stop_token_ids]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append("PARAMETER temperature 0")
    if model.context_tokens is not None:
        lines.append(f"PARAMETER num_ctx {model.context_tokens}")
    return "\n".join(lines) + "\n"


def _template(pieces: Pieces) -> str:
    """Write pieces as a template of Go; behind the last answer nothing is asked of it."""
    return _TEMPLATE.format(system=pieces.system, user=pieces.user, answer=pieces.answer, generation=pieces.generation)


def _system(pieces: Pieces) -> str:
    """The words of the default system turn."""
    return pieces.default.removeprefix(pieces.system[0]).removesuffix(pieces.system[1])


def _pieces(processor: Processor) -> Pieces | None:
    """The pieces of the prompt format, if conversations are made of them; None otherwise."""
    try:
        pieces = pieces_of(processor)
        opened = "" if not pieces.default else pieces.system[0] + _system(pieces) + pieces.system[1]
        are_true = pieces.default == opened and all(
            written(processor, turns, generation=True) == _joined(pieces, turns) for turns in _TRIED
        )
    except UserError:
        return None
    texts = (pieces.generation, *pieces.system, *pieces.user, *pieces.answer)
    return pieces if are_true and not any("{{" in text or QUOTES in text for text in texts) else None


def _joined(pieces: Pieces, messages: list[Message]) -> str:
    around = {"system": pieces.system, "user": pieces.user, "assistant": pieces.answer}
    turns = [around[m.role][0] + m.text + around[m.role][1] for m in messages]
    opening = "" if messages[0].role == "system" else pieces.default
    return opening + "".join(turns) + pieces.generation
