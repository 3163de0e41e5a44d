"""A model directory goes to the hub whole, with a card, and nothing else that lies there does."""

import json
from pathlib import Path

import pytest
import yaml

import mllm
from mllm.checkpoint import public
from mllm.checkpoint.ours import directory_hash
from mllm.checkpoint.push import plan_upload
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.files import hash_files
from mllm.model.lora import add_lora
from mllm.model.public import wrap
from mllm.model.settings import LoraSettings
from tests.helpers.commands import command
from tests.helpers.fake_hub import running_hub
from tests.helpers.public_models import tiny
from tests.helpers.tiny import tiny_settings


def a_run(parts, root):
    """A finished run: a model with the settings, data and scores behind it, and a checkpoint beside it."""
    mllm.save(root / "run" / "final", *build(tiny_settings(parts, "siglip")))
    source = root / "samples.jsonl"
    source.write_text("{}\n")
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "mine", "sources": [{"path": str(source)}]}))
    settings = {"model": {"init_from": None}, "data": {"recipe": str(root / "recipe.yaml")}, "seed": 17}
    (root / "run" / "final" / "run_config.yaml").write_text(yaml.safe_dump(settings))
    state = root / "run" / "checkpoints" / "step_1" / "state"
    state.mkdir(parents=True)
    (state / "optimizer.pt").write_bytes(b"moments")
    (root / "run" / "final" / "optimizer.state").write_bytes(b"moments")
    (root / "run" / "final" / "notes").mkdir()
    (root / "run" / "final" / "notes" / "private.txt").write_text("mine alone")
    overall = {"type": "overall", "count": 40, "low": 0.5, "high": 0.7}
    scores = [overall | {"condition": "model", "score": 0.6}, overall | {"condition": "withheld", "score": 0.55}]
    results = {
        "model_sha256": directory_hash(root / "run" / "final"),
        "data_sha256": {"shapes": "ab" * 32},
        "is_partial": False,
        "scores": {"shapes": scores},
    }
    (root / "run" / "eval").mkdir()
    (root / "run" / "eval" / "results.json").write_text(json.dumps(results))
    return root / "run"


def test_a_run_is_sent_with_its_card_and_without_checkpoints(tiny_parts, tmp_path, monkeypatch):
    run = a_run(tiny_parts, tmp_path)
    with running_hub(monkeypatch) as hub:
        assert "nothing was" in command("push", run, "me/model", "--dry-run")[0] and not hub.repositories
        printed = command("push", run, "me/model", "--private", "--revision", "trial")[0]
        entry = hub.repositories["me/model"]
        sent = entry["branches"]["trial"]
        command("push", run, "me/model", "--private")  # what is there is sent again
        assert entry["branches"]["main"].keys() == sent.keys()
        hub.repositories["me/open"] = {"private": False, "branches": {"main": {}}}
        assert "me/open is there and public" in command("push", run, "me/open", "--private", code=2)[1]
        assert not hub.repositories["me/open"]["branches"]["main"]
    assert f"sent to {hub.url}/me/model" in printed and "stay here: notes/private.txt, optimizer.state" in printed
    assert entry["private"]
    for name, content in sent.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert {"config.json", "model.safetensors", "README.md", "run_config.yaml"} <= sent.keys()
    assert not any("optimizer" in name or "private" in name or name.startswith(".") for name in sent)
    mllm.load(tmp_path / "back")
    card = sent["README.md"].decode()
    assert "| shapes | model | 40 | 60.0 | 50.0–70.0 |" in card and "| shapes | withheld | 40 | 55.0 |" in card
    assert hash_files([tmp_path / "samples.jsonl"]) in card and "ab" * 32 in card and "seed: 17" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "mllm"


def test_scores_of_other_weights_are_said_to_be(tiny_parts, tmp_path):
    run = a_run(tiny_parts, tmp_path)
    file = run / "eval" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_sha256": "0" * 64}))
    assert "of other weights" in str(plan_upload(run).card)
    (run / "final" / "README.md").write_text("mine")
    assert plan_upload(run).card is None and "README.md" in plan_upload(run).files


def test_a_model_of_transformers_is_sent_with_its_factors_and_a_card_of_its_own(tmp_path):
    model, processor = wrap(*tiny("rows_and_columns"))
    add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0))
    public.write(tmp_path / "model", model, processor, model.state_dict())
    upload = plan_upload(tmp_path / "model")
    assert {"model.safetensors", "mllm.json", public.LOW_RANK} <= set(upload.files) and not upload.left
    assert "- model of transformers: Idefics3ForConditionalGeneration" in upload.card
    assert "Not measured." in upload.card and yaml.safe_load(upload.card.split("---")[1])["tags"] == ["mllm"]


@pytest.mark.parametrize(
    "repo_id,token,words",
    [
        ("theirs/model", None, "the token may not write there"),
        ("me/model", "hf_another", "it doesn't know the token; run hf auth login"),
        ("no such id", None, "no id has this form; write OWNER/NAME"),
    ],
)
def test_what_the_hub_refuses_is_a_line(tiny_parts, tmp_path, monkeypatch, repo_id, token, words):
    run = a_run(tiny_parts, tmp_path)
    with running_hub(monkeypatch, **({"token": token} if token else {})):
        said = command("push", run, repo_id, code=2)[1]
    assert words in said and said.count("\n") == 1


def test_without_network_or_token_nothing_is_tried(tiny_parts, tmp_path, monkeypatch):
    run = a_run(tiny_parts, tmp_path)
    assert "HF_HUB_OFFLINE is set" in command("push", run, "me/model", code=2)[1]
    with running_hub(monkeypatch) as hub:
        pass
    assert f"could not be sent to {hub.url}" in command("push", run, "me/model", code=2)[1]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "run hf auth login, or set HF_TOKEN" in command("push", run, "me/model", code=2)[1]


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "step_1" / "state").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json; of a checkpoint, give the model/ in it"):
        plan_upload(tmp_path / "step_1")
    with pytest.raises(UserError, match="does not exist"):
        plan_upload(Path("nowhere"))
