"""What `mllm data layout` says of images, from sizes and headers alone."""

import json
import re
import sys

import pytest
import yaml
from PIL import Image

from mllm.checkpoint.ours import save
from mllm.checkpoint.start import build
from mllm.model.settings import ImageSettings
from tests.helpers.commands import command, process
from tests.helpers.tiny import tiny_settings

CLIP_336 = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
SIGLIP_384 = {"model_type": "siglip", "vision_config": {"image_size": 384, "patch_size": 14}}
# Of transformers' own processors, and of the LLaVA-NeXT code where the rule is its.
GOLDEN = {
    ("clip", "anyres", "hf"): {"1x1": 1176, "320x240": 1368, "640x480": 2340, "480x640": 2352, "2214x1640": 2340},
    ("clip", "anyres", "original"): {"100x336": 1296, "320x240": 1026, "899x1024": 2640, "3000x15": 576},
    ("siglip", "anyres_max", "hf"): {"336x336": 1485, "947x1157": 8765, "2214x1640": 7309, "15x3000": 1053},
    ("siglip", "anyres_max", "original"): {"2214x1640": 7284, "1920x1080": 7269},
    ("clip", "square", "hf"): {"640x480": 576, "15x3000": 576},
}


@pytest.fixture
def config_of(tmp_path):
    """A function that writes a training config whose encoder is known by its sizes alone, and returns its path."""
    for name, values in (("clip", CLIP_336), ("siglip", SIGLIP_384)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))

    def write(encoder="clip", projector=None, **image):
        path = tmp_path / "config.yaml"
        model = {"vision_encoder": {"path": str(tmp_path / encoder)}, "language_model": {"path": "lm"}, "image": image}
        model["projector"] = projector or {}
        path.write_text(
            yaml.safe_dump({"run_dir": "run", "model": model, "data": {"recipe": "r.yaml"}, "optim": {"lr": 1e-3}})
        )
        return path

    return write


def lines(*words):
    return [json.loads(line) for line in command("data", "layout", *words, "--json")[0].splitlines()]


@pytest.mark.parametrize(("encoder", "tiling", "rule"), GOLDEN)
def test_a_line_for_each_size_has_the_tokens_of_the_official_code(config_of, encoder, tiling, rule):
    golden = GOLDEN[encoder, tiling, rule]
    found = lines(config_of(encoder, tiling=tiling, rule=rule), "--size", *golden)
    assert [list(line) for line in found] == [["width", "height", "tiles", "tokens"]] * len(golden)
    assert {f"{line['width']}x{line['height']}": line["tokens"] for line in found} == golden


def test_images_together_are_counted_by_what_the_settings_say_of_several(config_of):
    one, three = (
        lines(config_of(tiling="anyres", several="square"), "--size", "640x480", "--images", n) for n in (1, 3)
    )
    assert one == [{"width": 640, "height": 480, "tiles": 5, "tokens": 2340}]
    assert three == [{"width": 640, "height": 480, "tiles": 3, "tokens": 3 * 577}]


def test_an_image_is_measured_as_it_is_displayed_and_the_table_tells_what_is_kept(config_of, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (640, 480)).save(tmp_path / "turned.jpg", exif=exif)
    config = config_of(tiling="anyres")
    assert lines(config, tmp_path / "turned.jpg") == [{"width": 480, "height": 640, "tiles": 5, "tokens": 2352}]
    table, _ = command("data", "layout", config, tmp_path / "turned.jpg", "--images", 2)
    (row,) = [line for line in table.splitlines() if "turned.jpg" in line]
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["480×640", "5", "2×2", "48×36", "2352", "4704"]


def test_tokens_without_places_are_counted_and_none_is_said_to_be_kept(config_of):
    config = config_of(projector={"kind": "resampler", "tokens": 64}, tiling="grid")
    assert [line["tokens"] for line in lines(config, "--size", "336x336", "672x336")] == [64, 3 * 64]
    table = command("data", "layout", config, "--size", "672x336")[0]
    assert re.search(r"672×336 .* 3 .* 1×2 .* – .* 192 ", table)


def test_a_saved_model_is_laid_out_as_it_was_saved(tiny_parts, tmp_path):
    settings = tiny_settings(tiny_parts).model_copy(update={"image": ImageSettings(tiling="grid", max_tiles=4)})
    model, processor = build(settings)
    save(tmp_path / "model", model, processor)
    (visual,) = processor.planner.plan([(32, 32)])
    assert lines(tmp_path / "model", "--size", "32x32")[0]["tokens"] == visual.token_count == 5 * 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), r"name images, or sizes such as --size 640x480"),
        (("--size", "0x5"), r"an image of 5×0 pixels has no content"),
        (("--size", "5"), r"'5' is no size; write it as WIDTHxHEIGHT"),
        (("gone.png",), r"image 'gone\.png' does not exist"),
    ],
)
def test_what_cannot_be_laid_out_is_one_line(config_of, words, said):
    assert re.search(said, command("data", "layout", config_of(), *words, code=2)[1])


@pytest.mark.slow
def test_sizes_are_laid_out_without_loading_torch(config_of):
    program = (
        "import sys; from mllm.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    out, _ = process(sys.executable, "-c", program, "data", "layout", config_of(tiling="anyres"), "--size", "64x48")
    assert "64×48" in out
