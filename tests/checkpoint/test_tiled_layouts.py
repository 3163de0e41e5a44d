"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision through transformers' layouts, both ways, with equal logits.

Videos reach transformers' models as tensors made of our tiles: its video processors need torchvision. They resize and
normalize frames as its image processors do, which `tests/media` holds ours against.
"""

import json
import logging
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mllm
from mllm.checkpoint.export import export
from mllm.checkpoint.layouts.registry import VIDEO_TOKEN
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, TextPart, VideoPart
from mllm.data.example import render_example
from mllm.errors import UserError
from mllm.inference.generate import Request, generate_batch
from mllm.inference.request import prompt_of
from mllm.model.projectors import NEWLINE
from mllm.model.settings import ImageSettings, TrainableSettings, VideoSettings
from mllm.model.trainable import apply_policy
from tests.helpers.samples import batch_of, sample
from tests.helpers.tiled_peers import KINDS, SIDE, our_logits, prompt, save_peer, write_json
from tests.helpers.tiny import tiny_settings

SHOWS_VIDEOS = ("llava_next_video", "llava_onevision")
# (height, width): ties, exact pinpoints and a pixel beside, strips that leave no row or no column, and shapes by chance.
SIZES = [(1, 1), (16, 16), (5, 16), (16, 32), (17, 32), (32, 31), (48, 16), (2, 600), (600, 2), (64, 64), (63, 65)]
SIZES += [(random.Random(n).randint(1, 90), random.Random(-n - 1).randint(1, 90)) for n in range(14)]


def picture(size, seed=0):
    return Image.fromarray(np.random.default_rng([seed, *size]).integers(0, 256, (*size, 3), dtype=np.uint8))


def video(frames, size=(20, 30)):
    return [picture(size, seed) for seed in range(frames)]


def ask(*kinds, text="what is this"):
    parts = {"image": ImagePart(), "video": VideoPart()}
    return [Message(role="user", content=(*(parts[kind] for kind in kinds), TextPart(text=text)))]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    root = tmp_path_factory.mktemp("peers")
    return {kind: save_peer(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(peers):
    """Each peer as we load it."""
    return {kind: mllm.load(peer.directory) for kind, peer in peers.items()}


def image_inputs(peer, pictures):
    """What transformers' own image processor hands the model; several pictures are one conversation's."""
    nested = [pictures] if peer.kind == "llava_onevision" else pictures
    return dict(peer.image_processor(images=nested, return_tensors="pt"))


def video_ids(ids, spans, kinds, peer):
    """Our ids with those of videos as transformers has them: of a token of their own."""
    ids = list(ids)
    for (start, length), kind in zip(spans, kinds, strict=True):
        if kind == "video":
            ids[start : start + length] = [peer.model.config.video_token_id] * length
    return ids


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_size_has_the_logits_of_transformers(peers, loaded, kind, size):
    peer, (model, processor), image = peers[kind], loaded[kind], picture(size)
    ours, ids = our_logits(model, processor, ask("image"), [image])
    theirs = peer.logits(torch.tensor([ids]), **image_inputs(peer, [image]))[0]
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_several_images_of_a_conversation_have_the_logits_of_transformers(peers, loaded, kind):
    """LLaVA-OneVision makes squares of them, also where a later turn brings the second."""
    peer, (model, processor) = peers[kind], loaded[kind]
    pictures = [picture(size) for size in ((30, 50), (20, 70), (16, 16))]
    messages = [*ask("image", "image"), Message(role="assistant", content="red"), *ask("image", text="and this")]
    ours, ids = our_logits(model, processor, messages, pictures)
    theirs = peer.logits(torch.tensor([ids]), **image_inputs(peer, pictures))[0]
    assert (ours - theirs).abs().max() <= 1e-5
    square = SIDE**2 // 16 + 1
    assert ids.count(processor.image_token_id) == 3 * square or kind != "llava_onevision"


@pytest.mark.parametrize("frames", [1, 4, 6, 9])
@pytest.mark.parametrize("kind", SHOWS_VIDEOS)
def test_a_video_has_the_logits_of_transformers(peers, loaded, kind, frames):
    peer, (model, processor) = peers[kind], loaded[kind]
    messages, shown = ask("video"), video(frames)
    ours, ids = our_logits(model, processor, messages, [shown])
    tokens, (tiles,) = prompt(processor, messages, [shown])
    assert len(tiles) == min(frames, 6)  # as its video processor says
    theirs = peer.logits(
        torch.tensor([video_ids(ids, tokens.image_spans, ["video"], peer)]),
        pixel_values_videos=torch.stack(tiles)[None],
    )[0]
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", SHOWS_VIDEOS)
def test_an_image_and_a_video_of_one_conversation_have_the_logits_of_transformers(peers, loaded, kind):
    peer, (model, processor), image, shown = peers[kind], loaded[kind], picture((30, 50)), video(5)
    messages = ask("video", "image")
    ours, ids = our_logits(model, processor, messages, [shown, image])
    tokens, tiles = prompt(processor, messages, [shown, image])
    theirs = peer.logits(
        torch.tensor([video_ids(ids, tokens.image_spans, ["video", "image"], peer)]),
        pixel_values_videos=torch.stack(tiles[0])[None],
        **image_inputs(peer, [image]),
    )[0]
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_unlike_tiles_and_of_text_alone_has_the_logits_of_transformers(peers, loaded, tmp_path, kind):
    """As training sees it: rows of several samples, an image in three tiles, in five, two images, and none."""
    peer, (model, processor) = peers[kind], loaded[kind]
    names = {}
    for number, size in enumerate([(16, 40), (60, 60), (20, 70), (30, 50)]):
        names[number] = str(tmp_path / f"{number}.png")
        picture(size, number).save(names[number])
    shown = [[names[0]], [], [names[1]], [names[2], names[3]], []]
    samples = [sample(f"s{n}", "what is this", "a cat", images) for n, images in enumerate(shown)]
    theirs = []
    for own, each in zip(shown, samples, strict=True):
        ids = list(render_example(each, processor, 1200).tokens.input_ids)
        inputs = image_inputs(peer, [Image.open(name) for name in own]) if own else {}
        theirs.append((ids, peer.logits(torch.tensor([ids]), **inputs)[0]))
    for packing in ("none", "samples"):
        batch = batch_of(samples, processor, packing, 1200)
        with torch.no_grad():
            ours = model.logits(batch)
        for ids, logits in theirs:
            place = next(found for found in segments_of(batch) if batch.input_ids[found].tolist() == ids)
            assert (ours[place] - logits).abs().max() <= 1e-5


def segments_of(batch):
    """The row, and where in it, of each segment of a batch."""
    for row, segments in enumerate(batch.segment_ids):
        for number in range(int(segments.max()) + 1):
            yield row, segments == number


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_batch_padded_on_the_left_are_those_of_transformers(peers, loaded, tmp_path, kind):
    peer, (model, processor) = peers[kind], loaded[kind]
    shown = [[picture((16, 40))], [picture((20, 70)), picture((60, 20))], [], [picture((64, 64))]]
    requests = []
    for number, pictures in enumerate(shown):
        names = [str(tmp_path / f"{number}-{n}.png") for n in range(len(pictures))]
        for name, image in zip(names, pictures, strict=True):
            image.save(name)
        messages = ask(*["image"] * len(pictures), text=f"what is this {number * 'red '}")
        requests.append(Request(tuple(messages), tuple(names)))
    prompts = [list(prompt_of(request, processor).tokens.input_ids) for request in requests]
    longest = max(map(len, prompts))
    padding = processor.tokenizer.pad_token_id
    ids = torch.tensor([[padding] * (longest - len(own)) + own for own in prompts])
    mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in prompts])
    given = [own for own in shown if own] if kind == "llava_onevision" else [image for own in shown for image in own]
    inputs = dict(peer.image_processor(images=given, return_tensors="pt"))
    written = peer.model.generate(
        input_ids=ids, attention_mask=mask, **inputs, max_new_tokens=32, do_sample=False, pad_token_id=padding
    )[:, longest:]
    theirs = [t.strip() for t in processor.tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert generate_batch(model, processor, requests, max_new_tokens=32) == theirs
    assert any(len(processor.tokenizer(text).input_ids) > 8 for text in theirs)


@pytest.mark.parametrize("kind", SHOWS_VIDEOS)
def test_answers_about_videos_padded_on_the_left_are_those_of_transformers(peers, loaded, tmp_path, kind):
    """Of videos as they lie in files, here folders of a picture a frame, beside an image and beside text alone."""
    peer, (model, processor) = peers[kind], loaded[kind]
    films = [video(9), [picture((25, 25), 50 + n) for n in range(7)]]
    for number, film in enumerate(films):
        (tmp_path / f"film{number}").mkdir()
        for index, frame in enumerate(film):
            frame.save(tmp_path / f"film{number}" / f"{index}.png")
    picture((30, 50)).save(tmp_path / "i.png")
    names = [str(tmp_path / name) for name in ("film0", "film1", "i.png")]
    asked = [(("video",), names[:1]), (("video", "image"), names[1:]), ((), [])]
    requests = [Request(tuple(ask(*kinds, text=f"what {n}")), tuple(own)) for n, (kinds, own) in enumerate(asked)]
    prompts = [prompt_of(request, processor) for request in requests]
    rows = [
        video_ids(p.tokens.input_ids, p.tokens.image_spans, k, peer) for p, (k, _) in zip(prompts, asked, strict=True)
    ]
    longest, padding = max(map(len, rows)), processor.tokenizer.pad_token_id
    shown = [processor.read_tiles(p.shown[0].source, p.shown[0].visual) for p in prompts[:2]]
    written = peer.model.generate(
        input_ids=torch.tensor([[padding] * (longest - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        pixel_values_videos=torch.stack([torch.stack(tiles) for tiles in shown]),
        **image_inputs(peer, [picture((30, 50))]),
        max_new_tokens=32,
        do_sample=False,
        pad_token_id=padding,
    )[:, longest:]
    theirs = [t.strip() for t in processor.tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert generate_batch(model, processor, requests, max_new_tokens=32) == theirs


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_imported_is_exported_and_imported_again_to_the_bit(tmp_path, kind, is_legacy):
    peer = save_peer(kind, tmp_path / "theirs", is_legacy)
    import_llava(tmp_path / "theirs", tmp_path / "ours", None, None)
    model, processor = mllm.load(tmp_path / "ours")
    assert processor.format_name == "chatml"
    assert torch.equal(model.state_dict()[NEWLINE], peer.model.model.image_newline)
    export(str(tmp_path / "ours"), tmp_path / "again", "hf")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "theirs")]
    concerned = [key for key in configs[1] if any(w in key for w in ("image", "video", "vision_feature", "spatial"))]
    differing = {key for key in concerned if configs[0].get(key) != configs[1][key]} - {"video_seq_length"}
    assert differing <= {"image_seq_length"}  # transformers' default, which is of another encoder
    back, back_processor = mllm.load(tmp_path / "again")
    assert (back_processor.planner, back.video_settings) == (processor.planner, model.video_settings)
    assert torch.equal(back.state_dict()[NEWLINE], peer.model.model.image_newline)
    for size in ((30, 50), (2, 600)):
        logits = [
            our_logits(m, p, ask("image"), [picture(size)])[0] for m, p in ((model, processor), (back, back_processor))
        ]
        assert torch.equal(*logits)


def ours_with(parts, image, video=None, encoder="clip"):
    settings = tiny_settings(parts, encoder)
    model, processor = build(
        settings.model_copy(update={"image": ImageSettings(**image), "video": VideoSettings(**(video or {}))})
    )
    return model.eval(), processor


POOLED_FIRST = {"pooling": "average", "pool_before_projector": True, "sampling": "exclusive"}
BILINEAR = {"pooling": "bilinear", "newline": "end", "sampling": "exclusive"}
SQUARES = {"several": "square", "several_in": "sample"}
OURS = {
    "LlavaNextForConditionalGeneration": ({"tiling": "anyres"}, {}),
    "LlavaNextVideoForConditionalGeneration": ({"tiling": "anyres", "max_tiles": 3}, POOLED_FIRST),
    "LlavaOnevisionForConditionalGeneration": ({"tiling": "anyres_max", "map_tiles": 3, **SQUARES}, BILINEAR),
}


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("name", OURS)
def test_a_model_of_ours_has_equal_logits_in_its_layout_and_back_here(tiny_parts, tmp_path, name, encoder):
    image, shown_as = OURS[name]
    model, processor = ours_with(tiny_parts, image, shown_as, encoder)
    model.projector.calibrate(5 + 3 * torch.randn(4, 16, 32), model.language_model.get_input_embeddings().weight)
    before = len(processor.tokenizer)
    export_llava(model, processor, tmp_path / "out")
    assert len(processor.tokenizer) == before
    peer = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert type(peer).__name__ == name
    back, back_processor = mllm.load(tmp_path / "out")
    for size in ((30, 50), (16, 16), (2, 600), (600, 2)):
        pictures = [picture(size)]
        ours, ids = our_logits(model, processor, ask("image"), pictures)
        again, ids_again = our_logits(back, back_processor, ask("image"), pictures)
        _, (tiles,) = prompt(processor, ask("image"), pictures)
        with torch.no_grad():
            theirs = peer(
                input_ids=torch.tensor([ids]), pixel_values=torch.stack(tiles)[None], image_sizes=torch.tensor([size])
            ).logits[0]
        words = ours.shape[-1]
        assert (ours - theirs[:, :words]).abs().max() <= 1e-4 >= (ours - again[:, :words]).abs().max()
        assert ids == ids_again
        # A row for the video token, which no prompt of ours has, never is the likeliest.
        assert theirs.argmax(-1).max() < words


def as_dicts(messages):
    return [{"role": m.role, "content": [part.model_dump() for part in m.content]} for m in messages]


def test_a_processor_of_llava_next_makes_our_ids_and_pixels(tiny_parts, tmp_path):
    model, processor = ours_with(tiny_parts, {"tiling": "anyres"})
    export_llava(model, processor, tmp_path / "out")
    theirs = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    for size in SIZES:
        tokens, (tiles,) = prompt(processor, ask("image"), [picture(size)])
        text = theirs.apply_chat_template(as_dicts(ask("image")), add_generation_prompt=True)
        inputs = theirs(text=text, images=[picture(size)], return_tensors="pt", add_special_tokens=False)
        assert inputs["input_ids"][0].tolist() == list(tokens.input_ids)
        assert torch.allclose(inputs["pixel_values"][0].float(), torch.stack(tiles), atol=1e-6)


@pytest.mark.parametrize("name", [n for n in OURS if "Video" in n or "Onevision" in n])
def test_a_processor_that_shows_videos_makes_our_ids(tiny_parts, tmp_path, name):
    """Where torchvision is: transformers makes none without it. Its pixels are torchvision's, a level or so from Pillow's."""
    pytest.importorskip("torchvision")
    image, shown_as = OURS[name]
    model, processor = ours_with(tiny_parts, image, shown_as)
    export_llava(model, processor, tmp_path / "out")
    theirs = AutoProcessor.from_pretrained(tmp_path / "out")
    video_id = theirs.tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    messages, media = ask("video", "image"), [video(11), picture((30, 50))]
    tokens, tiles = prompt(processor, messages, media)
    text = theirs.apply_chat_template(as_dicts(messages), add_generation_prompt=True)
    frames = np.stack([np.asarray(frame) for frame in media[0]])
    inputs = theirs(text=text, images=[[media[1]]], videos=[frames], return_tensors="pt", add_special_tokens=False)
    ids = [processor.image_token_id if token == video_id else token for token in inputs["input_ids"][0].tolist()]
    assert ids == list(tokens.input_ids)
    assert inputs["pixel_values_videos"].shape[1] == len(tiles[0])
    assert (inputs["pixel_values_videos"][0] - torch.stack(tiles[0])).abs().max() < 0.05


def test_a_newline_learns_and_is_saved(tiny_parts, tmp_path):
    model, processor = ours_with(tiny_parts, {"tiling": "anyres"})
    apply_policy(model, TrainableSettings())
    picture((30, 50)).save(tmp_path / "i.png")
    batch = batch_of([sample("a", "what is this", "a cat", [str(tmp_path / "i.png")])], processor, "none", 1200)
    before = model.projector.image_newline.detach().clone()
    optimizer = torch.optim.SGD(model.projector.parameters(), lr=1.0)
    model.train()
    model(batch).backward()
    optimizer.step()
    after = model.projector.image_newline.detach().clone()
    assert not torch.equal(after, before)
    mllm.save(tmp_path / "saved", model, processor)
    assert torch.equal(mllm.load(tmp_path / "saved")[0].projector.image_newline, after)


@pytest.mark.parametrize(
    "image,video,words",
    [
        ({"tiling": "grid"}, {}, "no images of model.image.tiling grid; keep our layout"),
        ({"tiling": "anyres", "rule": "original"}, {}, "reads pinpoints by model.image.rule hf"),
        ({"tiling": "anyres_max", "rule": "original"}, BILINEAR, "LLaVA-OneVision layout reads pinpoints"),
        ({}, {"newline": "frame"}, r"no place for the newline of this model's videos \(model.video.newline: frame\)"),
    ],
)
def test_what_no_layout_says_of_an_image_is_refused_in_a_line(tiny_parts, tmp_path, image, video, words):
    with pytest.raises(UserError, match=words):
        export_llava(*ours_with(tiny_parts, image, video), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "image,video,words",
    [
        ({"tiling": "anyres", "several": "square"}, {}, "model.image.several: square is tile there"),
        ({"tiling": "anyres"}, {"newline": "row"}, "shows no videos"),
        ({"tiling": "anyres"}, {**POOLED_FIRST, "stride": 4}, "shows no videos"),
        ({"tiling": "anyres"}, {**POOLED_FIRST, "sampling": "fps"}, "model.video.sampling: fps is exclusive there"),
        ({"tiling": "anyres_max", **SQUARES, "several_in": "turn"}, BILINEAR, "model.image.several_in: turn is sample"),
        (
            {"tiling": "anyres_max"},
            BILINEAR,
            "several images in another way .* model.image.several: tile is square there",
        ),
        ({"tiling": "anyres_max", **SQUARES}, {**BILINEAR, "newline": "row"}, "model.video.newline: row is end there"),
    ],
)
def test_what_a_layout_does_otherwise_with_several_or_videos_is_one_warning(
    tiny_parts, tmp_path, caplog, image, video, words
):
    model, processor = ours_with(tiny_parts, image, video)
    with caplog.at_level(logging.WARNING, logger="mllm"):
        export_llava(model, processor, tmp_path / "out")
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("mllm")]
    assert re.search(words, line)


@pytest.mark.parametrize("name", OURS)
def test_what_a_layout_says_is_exported_without_a_warning(tiny_parts, tmp_path, caplog, name):
    with caplog.at_level(logging.WARNING, logger="mllm"):
        export_llava(*ours_with(tiny_parts, *OURS[name]), tmp_path / "out")
    assert not [record for record in caplog.records if record.name.startswith("mllm")]


@pytest.mark.parametrize("image", [{"tiling": "anyres"}, {"tiling": "anyres_max"}])
def test_llama_cpp_gets_squares_alone(tiny_parts, tmp_path, image):
    model, processor = ours_with(tiny_parts, image)
    mllm.save(tmp_path / "ours", model, processor)
    with pytest.raises(UserError, match=f"llama.cpp's LLaVA projector knows images as one square.*{image['tiling']}"):
        export(str(tmp_path / "ours"), tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind,values,words",
    [
        ("llava_next_video", {"spatial_pool_mode": "max"}, "spatial_pool_mode 'max'; average is read"),
        ("llava_next_video", {"spatial_pool_mode": "conv"}, "spatial_pool_mode 'conv'; average is read"),
        ("llava_onevision", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'; anyres_max_N is read"),
        ("llava_next", {"vision_feature_select_strategy": "full"}, "theirs.*no place for a class token"),
        ("llava_onevision", {"vision_feature_select_strategy": "default"}, "leaves a patch out"),
        ("llava_next", {"multimodal_projector_bias": False}, "no biases"),
        ("llava_next", {"image_grid_pinpoints": [[16, 32], [24, 16]]}, r"theirs.*\[24, 16\] is no multiple"),
    ],
)
def test_what_is_done_in_no_way_of_ours_is_refused_in_a_line(tmp_path, kind, values, words):
    save_peer(kind, tmp_path / "theirs", **{k: v for k, v in values.items() if k == "spatial_pool_mode"})
    content = json.loads((tmp_path / "theirs" / "config.json").read_text())
    write_json(tmp_path / "theirs" / "config.json", content | values)
    with pytest.raises(UserError, match=words):
        mllm.load(tmp_path / "theirs")


def test_settings_of_images_replace_what_a_directory_says(peers):
    model, processor = mllm.load(peers["llava_onevision"].directory, image=ImageSettings(several="tile", max_tiles=2))
    assert model.image_settings.several == "tile" and model.image_settings.tiling == "anyres_max"
    assert max(processor.planner.plan([size])[0].tile_count for size in SIZES) == 3
    _, few = mllm.load(peers["llava_onevision"].directory, video=VideoSettings(frames=2))
    assert len(prompt(few, ask("video"), [video(9)])[1][0]) == 2
    square, _ = mllm.load(peers["llava_next"].directory, image=ImageSettings(tiling="square", fit="crop"))
    assert square.projector.image_newline is None
