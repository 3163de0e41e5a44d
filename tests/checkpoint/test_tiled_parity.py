"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision as transformers saves them, loaded here: its logits and its answers.

Videos reach transformers' models as tensors made of our tiles: its video processors need torchvision. They resize and
normalize frames as its image processors do, which `tests/media` holds ours against.
"""

import pytest
import torch
from PIL import Image

import mllm
from mllm.conversation.schema import Message
from mllm.data.example import render_example
from mllm.inference.generate import Request, generate_batch
from mllm.inference.request import prompt_of
from mllm.model.settings import ImageSettings, VideoSettings
from tests.helpers.samples import batch_of, sample
from tests.helpers.tiled_peers import KINDS, SIDE, SIZES, ask, our_logits, picture, prompt, save_peer, video

SHOWS_VIDEOS = ("llava_next_video", "llava_onevision")


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


def test_settings_of_images_replace_what_a_directory_says(peers):
    model, processor = mllm.load(peers["llava_onevision"].directory, image=ImageSettings(several="tile", max_tiles=2))
    assert model.image_settings.several == "tile" and model.image_settings.tiling == "anyres_max"
    assert max(processor.planner.plan([size])[0].tile_count for size in SIZES) == 3
    _, few = mllm.load(peers["llava_onevision"].directory, video=VideoSettings(frames=2))
    assert len(prompt(few, ask("video"), [video(9)])[1][0]) == 2
    square, _ = mllm.load(peers["llava_next"].directory, image=ImageSettings(tiling="square", fit="crop"))
    assert square.projector.image_newline is None
