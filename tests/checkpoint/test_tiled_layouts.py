"""What is imported and exported in transformers' tiled layouts comes back as it was; what they can't say is told."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mllm
from mllm.checkpoint.export import export
from mllm.checkpoint.layouts.registry import VIDEO_TOKEN
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.model.projectors import NEWLINE
from mllm.model.settings import ImageSettings, TrainableSettings, VideoSettings
from mllm.model.trainable import apply_policy
from tests.helpers.samples import batch_of, sample
from tests.helpers.tiled_peers import KINDS, SIZES, ask, our_logits, picture, prompt, save_peer, video, write_json
from tests.helpers.tiny import tiny_settings


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
