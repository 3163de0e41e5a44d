"""`mllm.load`: whatever the source, the model that was saved, or one clear line."""

import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file

import mllm
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.parts import HUB_FILES
from mllm.checkpoint.start import build
from mllm.cli import build_parser
from mllm.commands.shared import run_command
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.inference.features import ImageFeatures
from mllm.inference.generate import Request, generate_batch
from mllm.inference.request import PromptImage
from mllm.kernels.precision import cast_parameters
from mllm.model.lora import add_lora
from mllm.model.settings import LoraSettings
from tests.helpers.tiny import save_image, tiny_settings

REVISION = "0123456789abcdef0123456789abcdef01234567"


def make(parts, prompt_format="chatml", fit="crop", encoder="clip", lora=False):
    settings = tiny_settings(parts, encoder, prompt_format)
    settings = settings.model_copy(update={"image": settings.image.model_copy(update={"fit": fit})})
    model, processor = build(settings)
    torch.manual_seed(1)
    if lora:
        add_lora(model, LoraSettings(rank=4, alpha=8, dropout=0.0))
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model.eval(), processor


def logits(model, processor, path):
    question = Message(role="user", content=(ImagePart(), TextPart(text="what is this")))
    tokens = processor.render([question], [(12, 20)], generation=True)
    ids, shown = torch.tensor([tokens.input_ids]), PromptImage(path, *tokens.visuals)
    with torch.inference_mode():
        embeddings = model.embed_features(ids, ImageFeatures(model, processor).of([shown]))
        return model.language_model(inputs_embeds=embeddings, use_cache=False).logits.float()


@pytest.fixture
def image(tmp_path):
    return save_image(tmp_path / "i.png")


@pytest.mark.parametrize("lora", [False, True])
def test_our_directory_and_the_run_it_lies_in_load_with_equal_logits(tiny_parts, tmp_path, image, lora):
    model, processor = make(tiny_parts, fit="pad", lora=lora)
    mllm.save(tmp_path / "run" / "final", model, processor)
    for source in (tmp_path / "run" / "final", str(tmp_path / "run")):
        loaded = mllm.load(source)
        assert torch.allclose(logits(*loaded, image), logits(model, processor, image), atol=1e-6)


@pytest.mark.parametrize("encoder,fit", [("clip", "crop"), ("siglip", "stretch"), ("clip", "pad")])
@pytest.mark.parametrize("prompt_format", ["vicuna_v1", "llama_3", "chatml"])
def test_a_llava_directory_loads_with_its_prompt_format_and_image_fit(
    tiny_parts, tmp_path, image, encoder, fit, prompt_format
):
    model, processor = make(tiny_parts, prompt_format, fit, encoder)
    expected = logits(model, processor, image)
    export_llava(model, processor, tmp_path / "hf")
    loaded, loaded_processor = mllm.load(tmp_path / "hf")
    assert loaded_processor.format_name == prompt_format and loaded_processor.preparer == processor.preparer
    assert torch.allclose(logits(loaded, loaded_processor, image), expected, atol=1e-5)
    assert mllm.load(tmp_path / "hf", prompt_format="plain")[1].format_name == "plain"


def test_a_foreign_chat_template_has_to_be_named(tiny_parts, tmp_path):
    export_llava(*make(tiny_parts), tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}!")
    with pytest.raises(UserError, match="none of our prompt formats"):
        mllm.load(tmp_path / "hf")
    assert mllm.load(tmp_path / "hf", prompt_format="chatml")


def change_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    save_file(change(weights), directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layout", ["ours", "hf"])
def test_missing_unused_misshapen_torn_and_pickled_weights_are_refused(tiny_parts, tmp_path, layout):
    model, processor = make(tiny_parts)
    whole = tmp_path / "whole"
    if layout == "ours":
        mllm.save(whole, model, processor)
    else:
        export_llava(model, processor, whole)
    name = next(n for n in load_file(whole / "model.safetensors") if n.endswith("linear_1.weight"))

    def broken(number):
        return shutil.copytree(whole, tmp_path / f"broken{number}")

    change_weights(broken(0), lambda w: {k: v for k, v in w.items() if k != name})
    change_weights(broken(1), lambda w: w | {"extra.weight": torch.zeros(2)})
    change_weights(broken(2), lambda w: w | {name: torch.zeros(3, 3)})
    torn = broken(3) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (broken(4) / "pytorch_model.bin").write_bytes(b"x")
    (broken(5) / "config.json").write_text("{")
    for number in range(6):
        with pytest.raises(UserError, match=f"broken{number}"):
            mllm.load(tmp_path / f"broken{number}")


def test_what_is_no_model_is_said_in_a_line(tiny_parts, tmp_path):
    for source, words in (
        (tmp_path / "gone", "does not exist"),
        (tiny_parts / "lm", "'llama' model"),
        ("nobody/nothing", "neither a directory nor to be had from the hub"),
    ):
        with pytest.raises(UserError, match=words):
            mllm.load(source)
    with pytest.raises(UserError, match="unknown dtype"):
        mllm.load(tiny_parts / "lm", dtype="int7")


def test_a_hub_id_is_its_snapshot_in_the_cache_and_another_is_a_line(tiny_parts, tmp_path, monkeypatch, capsys):
    cached = tmp_path / "hub" / "models--owner--name"
    export_llava(*make(tiny_parts), cached / "snapshots" / REVISION)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run_import(name, out):
        with pytest.raises(SystemExit) as ended:
            run_command(lambda words: (options := build_parser().parse_args(words)).run(options), ["import", name, out])
        return ended.value.code

    assert run_import("owner/name", str(tmp_path / "out")) == 0
    assert mllm.load(tmp_path / "out")[1].format_name == mllm.load("owner/name")[1].format_name == "chatml"
    capsys.readouterr()
    for name, words in (("owner/other", "isn't in the cache"), ("owner/o..r", "no id has this form")):
        assert run_import(name, str(tmp_path / "none")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line and words in line and not (tmp_path / "none").exists()


def test_a_model_of_ours_is_not_imported(tiny_parts, tmp_path):
    mllm.save(tmp_path / "ours", *make(tiny_parts))
    with pytest.raises(UserError, match="a model of ours already"):
        import_llava(tmp_path / "ours", tmp_path / "out", None, None)


def test_no_pickle_is_asked_of_the_hub():
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in HUB_FILES)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_language_model_answers_much_as_the_whole_one(tiny_parts, tmp_path, image, bits, lora):
    model, processor = make(tiny_parts, lora=lora)
    mllm.save(tmp_path / "model", model, processor)
    small, small_processor = mllm.load(tmp_path / "model", quantize=bits)
    kinds = {type(module).__name__ for module in small.language_model.get_decoder().modules()}
    assert ("Linear4bit" if bits == "4bit" else "Linear8bitLt") in kinds and "Linear" not in kinds
    assert not any(
        "bitsandbytes" in type(m).__module__ for m in (*small.vision_encoder.modules(), *small.projector.modules())
    )
    exact, near = logits(model, processor, image), logits(small, small_processor, image)
    assert 0 < (exact - near).abs().mean() < 0.3 * exact.std()
    question = Request((Message(role="user", content="hello"),))
    assert len(generate_batch(small, small_processor, [question], max_new_tokens=3)) == 1


def test_dtype_is_that_of_every_part(tiny_parts, tmp_path, image):
    model, processor = make(tiny_parts)
    mllm.save(tmp_path / "ours", model, processor)
    export_llava(model, processor, tmp_path / "hf")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float32"
    for source in ("ours", "hf"):
        loaded, loaded_processor = mllm.load(tmp_path / source, dtype="bfloat16")
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert torch.isfinite(logits(loaded, loaded_processor, image)).all()


def test_casting_a_model_casts_its_parameters_and_no_buffer(tiny_parts, tmp_path, image):
    """Rotary frequencies and the projector's mean and deviation are the same constants in training and in use."""
    model, processor = make(tiny_parts)
    embeddings = model.language_model.get_input_embeddings().weight
    model.projector.calibrate(model.vision_encoder(torch.rand(4, 3, 16, 16)).float(), embeddings)
    export_llava(model, processor, tmp_path / "hf")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert {"projector.feature_std", "language_model.model.rotary_emb.inv_freq"} < before.keys()
    cast_parameters(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    mllm.save(tmp_path / "ours", model, processor)
    for trained in (model, mllm.load(tmp_path / "ours", dtype="bfloat16")[0]):
        after = dict(trained.named_buffers())
        assert all(
            torch.equal(buffer, after[name]) and buffer.dtype == after[name].dtype for name, buffer in before.items()
        )
    loaded = mllm.load(tmp_path / "ours", dtype="bfloat16")
    assert torch.equal(logits(*loaded, image), logits(model, processor, image))
    foreign = dict(mllm.load(tmp_path / "hf", dtype="bfloat16")[0].named_buffers())
    rotary = [name for name in before if "rotary" in name]
    assert all(torch.equal(before[name], foreign[name]) for name in rotary)


def test_float32_rounds_no_product_on_a_gpu(tiny_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    mllm.save(tmp_path / "ours", *make(tiny_parts))
    mllm.load(tmp_path / "ours", dtype="bfloat16")
    assert torch.backends.cudnn.allow_tf32
    mllm.load(tmp_path / "ours")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
