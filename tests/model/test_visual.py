"""From tiles to image tokens: today's square to the bit, and images of unlike tiles and token counts on the same road."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.data.collate import collate
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.errors import UserError
from mllm.finetune.plan.data import Shape
from mllm.finetune.plan.memory import step_memory
from mllm.finetune.task import work_of
from mllm.inference.chat import ChatSession
from mllm.inference.features import ImageFeatures
from mllm.inference.generate import Request, generate_batch
from mllm.inference.request import prompt_of
from mllm.media.visual import WHOLE, Crop, ImageGeometry, Size, Visual
from mllm.model.projectors import MlpProjector, pixel_shuffle
from mllm.model.settings import TrainableSettings
from mllm.model.trainable import apply_policy
from tests.helpers.tiny import save_image, tiny_settings

SIZES = [(12, 20), (33, 16), (16, 60), (40, 40)]
COLOURS = [(250, 10, 30), (10, 200, 60), (30, 30, 220), (200, 180, 0)]


def fail(error):
    raise error


def ask(text, *images):
    return Message(role="user", content=(*(ImagePart() for _ in images), TextPart(text=text)))


@pytest.fixture
def images(tmp_path):
    return [
        save_image(tmp_path / f"{n}.png", colour, size[::-1])
        for n, (colour, size) in enumerate(zip(COLOURS, SIZES, strict=True))
    ]


@pytest.fixture
def samples(images):
    asked = [("a", images[:1]), ("b", images[:1]), ("c", []), ("d", images[1:3]), ("e", images[1:3]), ("f", images[3:])]
    answers = ["a cat", "red", "hello world", "no", "yes it is", "a dog"]
    return [
        Sample(
            id=name, images=tuple(own), messages=(ask(f"what {name}", *own), Message(role="assistant", content=words))
        )
        for (name, own), words in zip(asked, answers, strict=True)
    ]


def batch_of(samples, processor, packing, max_length=600):
    rows = pack([render_example(s, processor, max_length) for s in samples], packing, max_length)
    return collate(rows, processor, fail)


def loss_and_gradients(model, batches):
    model.zero_grad()
    total = sum(model(batch) for batch in batches)
    total.backward()
    return total.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_squares_are_encoded_projected_and_put_where_a_mask_says_to_the_bit(tiny_parts, samples, encoder, shuffle):
    model, processor = build(tiny_settings(tiny_parts, encoder, shuffle=shuffle))
    apply_policy(model, TrainableSettings(vision_encoder="full", language_model="full"))
    projector = model.projector
    projector.feature_mean.normal_()
    projector.feature_std.uniform_(0.5, 2)

    def direct(batch):
        embeddings = model.language_model.get_input_embeddings()(batch.input_ids)
        features = model.vision_encoder(batch.normalized_tiles())
        standardized = (features - projector.feature_mean) / projector.feature_std
        hidden = projector.linear_1(pixel_shuffle(standardized, shuffle))
        features = projector.linear_2(torch.nn.functional.gelu(hidden))
        mask = (batch.input_ids == model.image_token_id)[..., None].expand_as(embeddings)
        return embeddings.masked_scatter(mask, features)

    for packing in ("none", "shared_prefix"):
        batch = batch_of(samples, processor, packing)
        ways = {}
        for name, embed in (("ours", type(model).embed.__get__(model)), ("direct", direct)):
            model.embed = embed
            loss, gradients = loss_and_gradients(model, [batch])
            with torch.no_grad():
                ways[name] = [embed(batch), model.logits(batch), torch.tensor(loss), *gradients.values()]
        for ours, theirs in zip(ways["ours"], ways["direct"], strict=True):
            assert torch.equal(ours, theirs)


def test_arranging_squares_copies_nothing(tiny_parts):
    model, processor = build(tiny_settings(tiny_parts))
    features = torch.randn(3, 16, 32)
    arranged = model.projector.arrange(features, processor.planner.plan([(9, 5)] * 3))
    assert arranged.shape == (48, 32) and arranged.data_ptr() == features.data_ptr()


@dataclass(frozen=True)
class Tiles:
    """An overview, then tiles in a grid as near to the image's size as its share of the conversation's budget allows."""

    geometry: ImageGeometry
    budget: int = 8
    depends_on_size = True

    def plan(self, sizes: Sequence[Size], turns: Sequence[int] = ()) -> tuple[Visual, ...]:
        return tuple(self._visual(size, max(1, self.budget // len(sizes))) for size in sizes)

    def _visual(self, size: Size, most: int) -> Visual:
        side, count = self.geometry.image_size_px, self.geometry.tokens_per_tile
        rows, columns = (-(-length // side) for length in size)
        while rows * columns > most:
            rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
        corners = [(side * row, side * column) for row in range(rows) for column in range(columns)]
        crops = (WHOLE, *(Crop((rows * side, columns * side), corner) for corner in corners))
        return Visual(crops, (1, rows, columns), len(crops) * count + rows)


class NewlineProjector(MlpProjector):
    """A learned row behind each row of tiles."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.newline = torch.nn.Parameter(torch.randn(self.last_layer.out_features))

    def arrange(self, features, visuals):
        parts, tile = [], 0
        for visual in visuals:
            _, rows, columns = visual.grid
            parts.append(features[tile])
            for row in range(rows):
                first = tile + 1 + row * columns
                parts += [features[first : first + columns].flatten(0, 1), self.newline[None]]
            tile += visual.tile_count
        return torch.cat(parts)

    def count_tokens(self, visual, features_per_tile):
        return super().count_tokens(visual, features_per_tile) + visual.grid[1]


@pytest.fixture
def ragged(tiny_parts):
    """A model whose images become unlike numbers of tiles and tokens: nothing of it is set but planner and projector."""
    model, processor = build(tiny_settings(tiny_parts))
    processor.planner = Tiles(processor.geometry)
    torch.manual_seed(1)
    model.projector = NewlineProjector(model.vision_encoder.width, 32, 1, 2)
    # Features that tell one image from another, so that what is mixed up shows.
    for parameter in model.projector.parameters():
        parameter.data.mul_(4.0)
    return model.eval(), processor


def test_a_shared_budget_gives_an_image_fewer_tiles_beside_others(ragged):
    planner = ragged[1].planner
    assert [v.tile_count for v in planner.plan([(40, 40)])] == [1 + 6]
    assert [v.tile_count for v in planner.plan([(40, 40)] * 4)] == [1 + 2] * 4


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
def test_images_of_unlike_tiles_packed_have_the_loss_and_gradients_of_each_alone(ragged, samples, packing):
    model, processor = ragged
    apply_policy(model, TrainableSettings(language_model="full", vision_encoder="full"))
    packed = batch_of(samples, processor, packing)
    counts = [visual.token_count for visual in packed.visuals]
    assert len(set(counts)) > 2 and len(packed.image_places) == sum(counts)
    assert len(packed.tiles) == sum(visual.tile_count for visual in packed.visuals) > len(counts)
    assert torch.equal(packed.image_places, (packed.input_ids == processor.image_token_id).flatten().nonzero()[:, 0])
    loss_a, grads_a = loss_and_gradients(model, [batch_of([s], processor, "none") for s in samples])
    loss_p, grads_p = loss_and_gradients(model, [packed])
    assert loss_p == pytest.approx(loss_a, rel=1e-5) and "projector.newline" in grads_a
    for name, gradient in grads_a.items():
        assert torch.allclose(gradient, grads_p[name], rtol=1e-3, atol=1e-4), name


def test_answers_about_images_of_unlike_tiles_at_batch_1_equal_batch_n(ragged, images):
    model, processor = ragged
    shown = [images[:1], images[1:3], images[2:3], images[:1], []]
    requests = [Request((ask("what is this " * (n + 1), *own),), tuple(own)) for n, own in enumerate(shown)]
    together = generate_batch(model, processor, requests, max_new_tokens=6)
    assert together == [generate_batch(model, processor, [r], max_new_tokens=6)[0] for r in requests]


def test_a_later_image_that_changes_an_earlier_ones_tiles_leaves_no_stale_keys(ragged, images):
    model, processor = ragged
    chat = ChatSession(model, processor, max_new_tokens=6)
    first = chat.ask("what is this", [images[3]])
    second = chat.ask("and these", images[1:3])
    messages = (
        ask("what is this", images[3]),
        Message(role="assistant", content=first),
        ask("and these", *images[1:3]),
    )
    request = Request(messages, (images[3], *images[1:3]))
    assert second == generate_batch(model, processor, [request], max_new_tokens=6)[0]
    alone, beside = (prompt_of(r, processor).shown for r in (Request(messages[:1], (images[3],)), request))
    assert alone[0].source == beside[0].source and alone[0].visual != beside[0].visual
    features = ImageFeatures(model, processor)
    found = features.of([*alone, *beside, *alone])
    assert features.encoded == 4  # one file cut in two ways is two images
    assert [len(f) for f in found] == [image.visual.token_count for image in (*alone, *beside, *alone)]


def test_the_work_and_memory_of_a_step_follow_the_tiles(ragged, samples):
    model, processor = ragged
    rows = pack([render_example(s, processor, 600) for s in samples], "samples", 600)
    batch = collate(rows, processor, fail)
    assert work_of(rows, 1).tiles == len(batch.tiles)
    apply_policy(model, TrainableSettings(vision_encoder="full"))
    few, all_of_them = (
        step_memory(deepcopy(model), Shape(*batch.input_ids.shape, visuals, 8), "float32", False, "cpu").activations
        for visuals in (batch.visuals[:1], batch.visuals)
    )
    assert few < all_of_them


def test_collation_names_the_sample_whose_image_has_other_tiles_or_tokens_than_planned(ragged, samples):
    _, processor = ragged
    rows = pack([render_example(samples[0], processor, 600)], "samples", 600)
    with pytest.raises(UserError, match=r"sample 'a': image .*0\.png' has 1 tile\(s\) where 3 were planned"):
        collate(rows, processor, fail, lambda path, visual: [torch.zeros(3, 16, 16)])
    tokens = rows[0].segments[0].example.tokens
    object.__setattr__(tokens, "image_spans", ((tokens.image_spans[0][0], 5),))
    with pytest.raises(UserError, match=r"sample 'a': an image has \d+ features but 5 image tokens"):
        collate(rows, processor, fail)
