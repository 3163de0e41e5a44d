"""The one processor: conversation and images in, tokens and pixels out, for training, chat and evaluation alike."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property

import torch
from PIL import Image
from transformers import AddedToken, PreTrainedTokenizerBase

from mllm.batch import Batch
from mllm.conversation.boxes import BOX_FORMATS, DEFAULT_BOX_FORMAT, Region
from mllm.conversation.formats import NATIVE, PromptFormat, Segment, prompt_format
from mllm.conversation.last_answer import learn_last_answer
from mllm.conversation.native import NativeFormat
from mllm.conversation.schema import BoxesPart, LastAnswer, Message, Part, Shown, TextPart, boxes_of, media_kinds
from mllm.conversation.tokenize import RunEncoder, Tokens, tokenize
from mllm.media.clip import each_frame, read_clip
from mllm.media.decode import read_image, read_image_size
from mllm.media.frame import Frame, frame_of
from mllm.media.planner import ClipPlan, Planner
from mllm.media.prepare import ImagePreparer
from mllm.media.ref import ImageSource
from mllm.media.tilings import TILINGS, TilingRule
from mllm.media.visual import Clip, Crop, ImageGeometry, Media, Visual, VisualPlanner

IMAGE_TOKEN = "<image>"


class Processor:
    """Tokenizer, prompt and box format, image geometry, and the planner and preparer of images of one model.

    The tokenizer gets the image token and the format's special tokens if it lacks them; the model's embedding has to
    be as long as `len(processor.tokenizer)` afterwards.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        format_name: str,
        geometry: ImageGeometry,
        preparer: ImagePreparer,
        day: date | None = None,
        planner: VisualPlanner | None = None,
        box_format: str = DEFAULT_BOX_FORMAT,
    ) -> None:
        """day: what a chat template that prints the date prints; None is today. planner: None makes a square of an image.

        box_format: how places are written (`mllm.conversation.boxes`). Raises UserError for an unknown one.
        """
        self.geometry, self.preparer = geometry, preparer
        add_special_tokens(tokenizer, [IMAGE_TOKEN])
        form: PromptFormat | NativeFormat
        if format_name == NATIVE:
            form = NativeFormat(tokenizer, IMAGE_TOKEN, day)
        else:
            form = prompt_format(format_name)
            add_special_tokens(tokenizer, form.special_tokens())
        opening = () if format_name == NATIVE else opening_ids(tokenizer)
        self._read_words(tokenizer, form, IMAGE_TOKEN, opening)
        self._read_images(planner or square_planner(geometry), box_format)

    def _read_words(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: PromptFormat | NativeFormat,
        image_token: str,
        opening: tuple[int, ...],
    ) -> None:
        """Render by `form`, behind the ids of `opening`, with `image_token` for an image in a template's text."""
        self.tokenizer, self.format, self.format_name = tokenizer, form, form.name
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(image_token)
        self._opening = opening
        self._encoder = RunEncoder(tokenizer)

    def _read_images(self, planner: VisualPlanner, box_format: str) -> None:
        """Plan images by `planner`, and write and read places in `box_format`. Raises UserError for an unknown format."""
        self.planner = planner
        self.box_format, self._boxes = box_format, BOX_FORMATS.get(box_format)

    def render(
        self,
        messages: Sequence[Message],
        media: Sequence[Media] = (),
        generation: bool = False,
        last_answer: LastAnswer | None = None,
    ) -> Tokens:
        """Tokens of a conversation, and what its images and videos become; `media`: their sizes in the order of their parts.

        With `generation`, the opening of an assistant turn follows: the prompt to generate from. last_answer: how the last
        turn is learned, where no other is; None learns every answer. Raises ImageBudgetError
        for images of more tokens than the model's settings allow, and ConversationRefusedError for what the prompt or box
        format doesn't take.
        """
        visuals = self.planner.plan(media, turns_of(messages))
        written = self._with_boxes(messages, media, visuals)
        segments = self.format.segments(with_words(written, visuals), self.tokenizer.eos_token or "", generation)
        if last_answer is not None:
            segments = learn_last_answer(segments, written[-1].text, last_answer)
        segments = self.around_images(segments, media)
        opened = bool(self._opening)
        tokens = tokenize(segments, self._encoder, self.image_ids(media, visuals), visuals, starts_with_special=opened)
        return tokens.behind(self._opening) if opened else tokens

    def image_ids(self, media: Sequence[Media], visuals: Sequence[Visual]) -> list[Sequence[int]]:
        """The ids that each image and video of a conversation stands for: as many image tokens as its visual says."""
        return [(self.image_token_id,) * visual.token_count for visual in visuals]

    def around_images(self, segments: list[Segment], media: Sequence[Media]) -> list[Segment]:
        """`segments` with the plain text that belongs to each image beside it; none here."""
        return segments

    def _with_boxes(
        self, messages: Sequence[Message], media: Sequence[Media], visuals: Sequence[Visual]
    ) -> Sequence[Message]:
        """`messages` with their places as words, which go into one text part with the words beside them."""
        if not boxes_of(messages):
            return messages
        frames = [self.frame(*pair) for pair in zip(media, visuals, strict=True)]
        return [self._written(message, frames) if boxes_of([message]) else message for message in messages]

    def _written(self, message: Message, frames: Sequence[Frame]) -> Message:
        parts: list[Part] = []
        for part in message.content:
            if isinstance(part, BoxesPart):
                frame = frames[part.image]
                part = TextPart(text=self._boxes.write(part.shares(frame.size), frame))
            if isinstance(part, TextPart) and parts and isinstance(last := parts[-1], TextPart):
                parts[-1] = TextPart(text=last.text + part.text)
            else:
                parts.append(part)
        return message.model_copy(update={"content": tuple(parts)})

    def frame(self, size: Media, visual: Visual) -> Frame:
        """What the encoder sees of an image of `size` that became `visual`, which the numbers of places may be over."""
        shape = (size.height, size.width) if isinstance(size, Clip) else size
        return frame_of(shape, visual, self.preparer.fit, self.geometry.image_size_px)

    def read_boxes(self, text: str, frame: Frame) -> list[Region]:
        """The places that an answer names, written in the model's box format, in shares of the image (`Region`)."""
        return self._boxes.read(text, frame)

    @property
    def day(self) -> date | None:
        """The day that the prompt format prints, fixed with the model; None when it prints none."""
        return self.format.day if isinstance(self.format, NativeFormat) else None

    def use_day(self, day: date | None) -> None:
        """Print `day` from here on, where the prompt format prints one; None changes nothing."""
        if isinstance(self.format, NativeFormat):
            self.format.day = day

    @property
    def opens_with_bos(self) -> bool:
        """Whether every prompt starts with the tokenizer's beginning-of-sequence token."""
        return bool(self._opening)

    @property
    def position_axes(self) -> int | None:
        """Along how many axes positions are counted; None along one, without an axis of its own."""
        return None

    @property
    def prepares_together(self) -> bool:
        """Whether what an image becomes depends on the others of its sample, so that none may stand apart from them."""
        return False

    @property
    def shares_openings(self) -> bool:
        """Whether samples that open alike may share the tokens of their opening: the model's attention knows branches."""
        return True

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile."""
        return self.geometry.tokens_per_tile

    @property
    def filler(self) -> Tokens | None:
        """A sample with a small image and nothing to learn, for a batch without images of a model whose parts all have to
        compute; None for a model that sees to that itself."""
        return None

    def positions(self, tokens: Tokens, media: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """int64 [T], or [axes, T]: the positions of a whole sample, computed alone; media: what its images became."""
        return torch.arange(len(tokens.input_ids))

    @property
    def has_token_types(self) -> bool:
        """Whether the model is told which tokens are of an image."""
        return False

    def token_types(self, tokens: Tokens) -> torch.Tensor | None:
        """int64 [T]: 1 at tokens of images, for a model that is told; None for others."""
        return None

    def prepare(self, visuals: Sequence[Visual], tiles: Sequence[Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What the model takes for a sample's images, by name; tiles: of each, as they were read."""
        return {"tiles": torch.stack([tile for own in tiles for tile in own])}

    def blank_batch(self, together: Sequence[Sequence[Visual]], rows: int, length: int) -> Batch:
        """A batch that shows black images in so many rows and tokens, of a model that takes them whole."""
        raise NotImplementedError(f"{type(self).__name__} cuts images into tiles")

    def blank(self, visual: Visual, dtype: torch.dtype | None) -> list[torch.Tensor]:
        """Tiles without contents, in place of those that can't be read; dtype: of the others, None for torch's own."""
        side = self.preparer.side_px
        return [torch.zeros(self.preparer.channels, side, side, dtype=dtype)] * visual.tile_count

    def pixel_statistics(self, media: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """float32 [2, C], mean and standard deviation of pixels that are still to be normalized; None for others."""
        if "tiles" not in media or media["tiles"].dtype != torch.uint8:
            return None
        return torch.tensor([self.preparer.mean, self.preparer.std])

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """float32 [C, S, S] of the whole of an RGB image, C channels: three for each encoder."""
        return self.preparer(image)

    def measures(self, messages: Sequence[Message]) -> bool:
        """Whether files of a conversation have to be opened before it is rendered.

        Their size decides what they become, and which numbers places in them have.
        """
        kinds = media_kinds(messages)
        return "video" in kinds or (bool(kinds) and (self.planner.depends_on_size or bool(boxes_of(messages))))

    def read_sizes(
        self, messages: Sequence[Message], sources: Sequence[ImageSource], opens_all: bool = True
    ) -> list[Media]:
        """What the planner goes by: the size of each image and video of a conversation.

        opens_all: whether images are opened whose size decides on nothing. Raises UserError for one that can't be read.
        """
        opens_images = opens_all or self.planner.depends_on_size or bool(boxes_of(messages))
        anything = (1, 1) if opens_images else (self.geometry.image_size_px,) * 2
        return [
            read_clip(source) if kind == "video" else read_image_size(source) if opens_images else anything
            for kind, source in zip(media_kinds(messages), sources, strict=True)
        ]

    def read_tiles(self, source: ImageSource, visual: Visual) -> list[torch.Tensor]:
        """float32 [C, S, S] of each tile of an image or video. Raises UserError for one that can't be read."""
        return _cut(source, visual, self.preparer.tiles)

    def read_fitted_tiles(self, source: ImageSource, visual: Visual) -> list[torch.Tensor]:
        """uint8 [C, S, S] of each tile of an image or video: `Batch.normalized_tiles` makes `read_tiles` of them."""
        return _cut(source, visual, self.preparer.fitted_tiles)

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end an answer: what the format puts behind one, and the tokenizer's end-of-sequence token."""
        answer = [Message(role="user", content="?"), Message(role="assistant", content="a")]
        tokens = self.render(answer)
        last = max(index for index, flag in enumerate(tokens.supervised) if flag)
        stops = {tokens.input_ids[last]}
        if self.tokenizer.eos_token_id is not None:
            stops.add(self.tokenizer.eos_token_id)
        return sorted(stops)


def _cut(
    source: ImageSource, visual: Visual, cut: Callable[[Image.Image, Sequence[Crop]], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """The tiles that `cut` makes of an image, or of each frame of a video: one frame at a time is held whole."""
    if visual.frames is None:
        return cut(read_image(source), visual.crops)
    crops = {crop.frame: crop for crop in visual.crops}
    tiles = {index: cut(frame, [crops[index]])[0] for index, frame in each_frame(source, visual.frames)}
    return [tiles[index] for index in visual.frames]


def square_planner(geometry: ImageGeometry) -> Planner:
    """The planner that makes one square of every image, and shows eight frames of a video."""
    return Planner(geometry, TILINGS.get("square")(geometry, TilingRule()), ClipPlan(geometry))


def turns_of(messages: Sequence[Message]) -> list[int]:
    """The number of the message of each image and video, in order."""
    return [number for number, message in enumerate(messages) for part in message.content if isinstance(part, Shown)]


def with_words(messages: Sequence[Message], visuals: Sequence[Visual]) -> Sequence[Message]:
    """`messages` with a line of text behind each image and video of which its visual has words."""
    if not any(visual.words for visual in visuals):
        return messages
    told: list[Message] = []
    following = iter(visuals)
    for message in messages:
        parts: list[Part] = []
        for part in message.content:
            parts.append(part)
            if isinstance(part, Shown) and (words := next(following).words):
                parts.append(TextPart(text=f"{words}\n"))
        told.append(message.model_copy(update={"content": tuple(parts)}))
    return told


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add those of `tokens` that the tokenizer lacks, as special tokens, keeping the ones it has."""
    known = tokenizer.get_vocab()
    missing = [AddedToken(t, special=True, normalized=False) for t in tokens if t not in known]
    unmarked = [t for t in tokens if t in known and t not in tokenizer.all_special_tokens]
    if missing or unmarked:
        extra = [*missing, *(AddedToken(t, special=True, normalized=False) for t in unmarked)]
        tokenizer.add_special_tokens({"extra_special_tokens": extra}, replace_extra_special_tokens=False)


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts in front of a text (a beginning-of-sequence token, or nothing)."""
    bos = tokenizer.bos_token_id
    ids = tokenizer("a").input_ids
    return (bos,) if bos is not None and ids and ids[0] == bos else ()
