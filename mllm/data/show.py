"""`mllm data show`: the tokens of a sample, coloured by trained and masked."""

from rich.text import Text

from mllm.data.example import Example
from mllm.media.visual import Visual
from mllm.processor import Processor

TRAINED, WEIGHTED, MASKED, IMAGE = "bold green", "bold green underline", "dim", "cyan"


def coloured_tokens(example: Example, processor: Processor) -> Text:
    """Each token in its colour: green is learned, dim is not, underlined counts otherwise than 1; an image's tokens are drawn
    as one box with their count, and the number of tiles or frames that they are made of, where there are several."""
    out = Text(f"{example.sample_id}  {example.length} tokens, {example.tokens.supervised_count} trained\n")
    starts = {start: visual for (start, _), visual in zip(example.image_spans, example.tokens.visuals, strict=True)}
    index = 0
    while index < example.length:
        if index in starts:
            out.append(_box(starts[index]), IMAGE)
            index += max(1, starts[index].token_count)
            continue
        token = processor.tokenizer.decode([example.tokens.input_ids[index]])
        weights = example.tokens.weights
        trained = TRAINED if weights is None or weights[index] == 1 else WEIGHTED
        out.append(token.replace("\n", "↵\n"), trained if example.tokens.supervised[index] else MASKED)
        index += 1
    return out


def _box(visual: Visual) -> str:
    if visual.frames is not None:
        return f"[video × {visual.token_count}, {len(visual.frames)} frame(s)]"
    tiles = f", {visual.tile_count} tiles" if visual.tile_count > 1 else ""
    return f"[image × {visual.token_count}{tiles}]"
