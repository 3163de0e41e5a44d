"""From tiles to image tokens: a square to the bit, and images and videos of unlike tiles and tokens on the same road."""

from copy import deepcopy

import pytest
import torch

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, Sample, TextPart, VideoPart
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
from mllm.model.projectors import pixel_shuffle
from mllm.model.settings import ImageSettings, LoraSettings, TrainableSettings, VideoSettings
from mllm.model.trainable import apply_policy
from tests.helpers.connectors import CONNECTORS
from tests.helpers.layouts import LAYOUTS, make_up_clips, tiled_settings
from tests.helpers.tiny import save_image, tiny_settings
from tests.helpers.videos import write_video

SIZES = [(12, 20), (33, 16), (16, 60), (40, 40)]
CUT_AT = 330
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


@pytest.fixture
def mixed(samples, images, tmp_path, monkeypatch):
    """`samples`, one that loses its last image where it is cut, one of a video, and one of a video beside an image."""
    make_up_clips(monkeypatch)
    (tmp_path / "a.mp4").write_bytes(b"a clip")
    film = str(tmp_path / "a.mp4")
    cut = (
        ask("what f", images[3]),
        Message(role="assistant", content="yes " * CUT_AT),
        ask("and", images[0]),
        Message(role="assistant", content="no"),
    )
    watched = Message(role="user", content=(TextPart(text="see"), VideoPart(), TextPart(text="what is this")))
    both = Message(role="user", content=(VideoPart(), ImagePart(), TextPart(text="compare")))
    answers = [Message(role="assistant", content=words) for words in ("a dog", "hello")]
    return [
        *samples,
        Sample(id="g", images=(images[3], images[0]), messages=cut),
        Sample(id="h", images=(film,), messages=(watched, answers[0])),
        Sample(id="i", images=(film, images[1]), messages=(both, answers[1])),
    ]


def batch_of(samples, processor, packing, max_length=1200):
    """Of samples that are cut at CUT_AT tokens, in rows of `max_length`."""
    rows = pack([render_example(s, processor, CUT_AT, "truncate_text") for s in samples], packing, max_length)
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


@pytest.fixture
def tiled(tiny_parts):
    """A function that makes a model and its processor for one of LAYOUTS, whose features tell one image from another."""

    def make(layout, **projector):
        model, processor = build(tiled_settings(tiny_parts, layout, **projector))
        torch.manual_seed(1)
        for parameter in model.projector.parameters():
            parameter.data.mul_(4.0)
        return model.eval(), processor

    return make


POLICIES = {
    "full": {"language_model": "full", "vision_encoder": "full"},
    "stage1": {},
    "lora": {"language_model": "lora", "lora": LoraSettings(rank=4, alpha=8, dropout=0.0)},
}


def assert_alike(gradients, expected):
    """Each tensor's gradient within 1e-4 of the expected one, relative to its norm, or of nothing beside the largest."""
    assert gradients.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_and_frames_packed_have_the_loss_and_gradients_of_each_sample_alone(tiled, mixed, layout, packing):
    assert_packed_teaches_as_alone(*tiled(layout), mixed, packing)


@pytest.mark.parametrize("layout", ["anyres", "square"])
def test_decoded_frames_packed_teach_what_each_sample_teaches_alone(tiled, mixed, tmp_path, monkeypatch, layout):
    monkeypatch.undo()  # the clip that was made up
    (tmp_path / "a.mp4").write_bytes(write_video("mp4", 30))
    assert_packed_teaches_as_alone(*tiled(layout), mixed, "shared_prefix")


def assert_packed_teaches_as_alone(model, processor, samples, packing):
    apply_policy(model, TrainableSettings(**POLICIES["full"]))
    packed = batch_of(samples, processor, packing)
    counts = [visual.token_count for visual in packed.visuals]
    assert len(set(counts)) > 1 and len(packed.image_places) == sum(counts)
    assert len(packed.tiles) == sum(visual.tile_count for visual in packed.visuals) > len(counts)
    assert torch.equal(packed.image_places, (packed.input_ids == processor.image_token_id).flatten().nonzero()[:, 0])
    loss_a, grads_a = loss_and_gradients(model, [batch_of([s], processor, "none") for s in samples])
    loss_p, grads_p = loss_and_gradients(model, [packed])
    assert loss_p == pytest.approx(loss_a, rel=1e-5)
    assert ("projector.image_newline" in grads_a) == (model.projector.image_newline is not None)
    assert_alike(grads_p, grads_a)


@pytest.mark.parametrize("layout", ["anyres", "anyres_max", "grid", "square"])
@pytest.mark.parametrize("kind", ["norm_mlp2x_gelu", "average_pool", "bilinear_pool", "c_abstractor", "resampler"])
def test_every_projector_teaches_from_tiles_and_frames_packed_what_each_sample_teaches_alone(
    tiny_parts, mixed, kind, layout
):
    settings = tiled_settings(tiny_parts, layout, kind=kind, **CONNECTORS[kind])
    if kind == "resampler":
        # Its tokens are of no places: they can be told apart by frames, and not pooled or cut.
        video = VideoSettings(frames=3, newline="end" if layout == "anyres" else "frame")
        image = ImageSettings() if layout.startswith("anyres") else settings.image
        settings = settings.model_copy(update={"image": image, "video": video})
    elif kind != "norm_mlp2x_gelu":
        video = settings.video.model_copy(update={"pool_before_projector": False})
        settings = settings.model_copy(update={"video": video})
    model, processor = build(settings)
    apply_policy(model, TrainableSettings(**POLICIES["full"]))
    packed = batch_of(mixed, processor, "shared_prefix")
    loss_a, grads_a = loss_and_gradients(model, [batch_of([s], processor, "none") for s in mixed])
    loss_p, grads_p = loss_and_gradients(model, [packed])
    assert loss_p == pytest.approx(loss_a, rel=1e-5)
    assert_alike(grads_p, grads_a)


@pytest.mark.parametrize(
    "way", ["stage1", "lora", "checkpointing", "chunks", "float32 pixels", "shuffle", "two batches"]
)
@pytest.mark.parametrize("layout", ["anyres", "grid"])
def test_no_way_to_train_changes_what_tiles_and_frames_teach(tiled, mixed, layout, way):
    model, processor = tiled(layout, shuffle=2 if way == "shuffle" else 1)
    apply_policy(model, TrainableSettings(**POLICIES.get(way, POLICIES["full"])))
    batch = batch_of(mixed, processor, "shared_prefix")
    model.train()
    loss_a, grads_a = loss_and_gradients(model, [batch_of([s], processor, "none") for s in mixed])
    batches = [batch]
    if way == "checkpointing":
        model.checkpoint_activations()
    elif way == "chunks":
        model.tiles_together = 3
    elif way == "float32 pixels":
        rows = pack([render_example(s, processor, CUT_AT, "truncate_text") for s in mixed], "samples", 1200)
        batches = [collate(rows, processor, fail, processor.read_tiles)]
        assert batches[0].tiles.dtype == torch.float32 and batch.tiles.dtype == torch.uint8
    elif way == "two batches":
        batches = [batch_of(part, processor, "samples") for part in (mixed[:4], mixed[4:])]
    loss, grads = loss_and_gradients(model, batches)
    assert loss == pytest.approx(loss_a, rel=1e-5)
    assert_alike(grads, grads_a)


def test_an_opening_is_shared_by_those_alone_whose_image_became_the_same(tiled, mixed):
    """Of samples e and g the first image is the same file; beside another image, which the cut left out, it was a square."""
    _, processor = tiled("anyres")
    f, g = (render_example(s, processor, CUT_AT, "truncate_text") for s in mixed[5:7])
    assert f.images == g.images and g.cut_tokens and f.tokens.visuals != g.tokens.visuals
    rows = pack([f, f, g], "shared_prefix", 1200)
    assert [[s.parent for s in row.segments] for row in rows] in ([[-1, 0, 0, -1]], [[-1, -1, 1, 1]])


@pytest.mark.parametrize(
    "layout,kind", [*((layout, "mlp2x_gelu") for layout in LAYOUTS), ("grid", "resampler"), ("anyres", "c_abstractor")]
)
def test_answers_about_images_of_unlike_tiles_at_batch_1_equal_batch_n(tiled, images, layout, kind):
    model, processor = tiled(layout, kind=kind, **CONNECTORS[kind])
    shown = [images[:1], images[1:3], images[2:3], images[:1], []]
    requests = [Request((ask("what is this " * (n + 1), *own),), tuple(own)) for n, own in enumerate(shown)]
    together = generate_batch(model, processor, requests, max_new_tokens=6)
    assert together == [generate_batch(model, processor, [r], max_new_tokens=6)[0] for r in requests]


def test_a_later_image_that_changes_an_earlier_ones_tiles_leaves_no_stale_keys(tiled, images):
    model, processor = tiled("grid")
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


@pytest.mark.parametrize("layout", ["anyres_max", "square"])
def test_the_work_and_memory_of_a_step_follow_the_tiles(tiled, mixed, layout):
    model, processor = tiled(layout)
    rows = pack([render_example(s, processor, CUT_AT, "truncate_text") for s in mixed], "samples", 600)
    batch = collate(rows, processor, fail)
    assert work_of(rows, 1).tiles == sum(row.tiles for row in rows) == len(batch.tiles)
    apply_policy(model, TrainableSettings(vision_encoder="full"))
    few, all_of_them = (
        step_memory(deepcopy(model), Shape(*batch.input_ids.shape, visuals, 8), "float32", False, "cpu").activations
        for visuals in (batch.visuals[:1], batch.visuals)
    )
    assert few < all_of_them


def test_fewer_tiles_at_once_take_less_memory(tiled, mixed):
    model, processor = tiled("anyres")
    batch = batch_of(mixed, processor, "samples")
    apply_policy(model, TrainableSettings())
    calls = []
    model.vision_encoder.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    needed = {}
    for together in (None, 2):
        chunked = deepcopy(model)
        chunked.tiles_together = together
        shape = Shape(1, 8, batch.visuals, 1)  # few words, so that the encoder decides
        needed[together] = step_memory(chunked, shape, "float32", False, "cpu").activations
        calls.clear()
        model.tiles_together = together
        model(batch)
        assert sum(calls) == len(batch.tiles) and max(calls) == (together or len(batch.tiles))
    assert needed[2] < needed[None]


def test_collation_names_the_sample_whose_image_has_other_tiles_or_tokens_than_planned(tiled, samples):
    _, processor = tiled("anyres")
    rows = pack([render_example(samples[0], processor, 600)], "samples", 600)
    with pytest.raises(UserError, match=r"sample 'a': image .*0\.png' has 1 tile\(s\) where 3 were planned"):
        collate(rows, processor, fail, lambda path, visual: [torch.zeros(3, 16, 16)])
    tokens = rows[0].segments[0].example.tokens
    object.__setattr__(tokens, "image_spans", ((tokens.image_spans[0][0], 5),))
    with pytest.raises(UserError, match=r"sample 'a': an image has \d+ features but 5 image tokens"):
        collate(rows, processor, fail)
