"""`mllm data show`: the tokens of a sample, coloured by trained and masked."""

from rich.text import Text

from mllm.data.example import Example
from mllm.processor import Processor

TRAINED, MASKED, IMAGE = "bold green", "dim", "cyan"


def coloured_tokens(example: Example, processor: Processor) -> Text:
    """Each token in its colour: green is learned, dim is not; an image's tokens are drawn as one box with their count."""
    out = Text(f"{example.sample_id}  {example.length} tokens, {example.tokens.supervised_count} trained\n")
    spans = zip(example.tokens.image_spans, example.tokens.visuals, strict=True)
    starts = {start: (count, "image" if visual.frames is None else "video") for (start, count), visual in spans}
    index = 0
    while index < example.length:
        if index in starts:
            count, kind = starts[index]
            out.append(f"[{kind} × {count}]", IMAGE)
            index += max(1, count)
            continue
        token = processor.tokenizer.decode([example.tokens.input_ids[index]])
        out.append(token.replace("\n", "↵\n"), TRAINED if example.tokens.supervised[index] else MASKED)
        index += 1
    return out
