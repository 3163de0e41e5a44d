"""Rendered pairs: what is damaged, what is shared, and what an answer's log-probabilities are kept under."""

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.checkpoint.start import build
from mllm.conversation.pair import PreferencePair
from mllm.data.collate import collate
from mllm.data.packing import pack_bundles
from mllm.data.settings import DataSettings
from mllm.errors import BadSampleError
from mllm.media.decode import read_image
from mllm.preference.cache import AnswerKeys
from mllm.preference.damage import Damaging
from mllm.preference.pairs import pair_batch, render_pair
from mllm.preference.settings import DamageSettings
from tests.helpers.pairs import pair_records
from tests.helpers.samples import fail
from tests.helpers.tiny import save_image, tiny_settings

DATA = DataSettings(recipe="r", max_length_tokens=200)
NOISE = Damaging(DamageSettings(kind="noise"), 0)


@pytest.fixture(scope="module")
def processor(tiny_parts):
    return build(tiny_settings(tiny_parts))[1]


def pairs_in(folder, count=4):
    """Pairs about one image."""
    path = save_image(folder / "red.png", (200, 30, 30), (30, 24))
    own = [record | {"images": [path]} for record in pair_records()]
    return [PreferencePair(**record | {"rejected_images": None}) for record in own[:count]]


@pytest.mark.parametrize("kind", ["crop", "noise"])
def test_a_damaged_image_follows_from_the_seed_and_its_name_and_keeps_its_size(kind, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png")

    def damaged(name, seed=0):
        return read_image(Damaging(DamageSettings(kind=kind), seed).reference(str(tmp_path / name)))

    once, again = damaged("a.png"), damaged("a.png")
    assert once.tobytes() == again.tobytes() != image.tobytes() and once.size == image.size
    others = [damaged("b.png"), damaged("a.png", 1)]
    assert all(other.tobytes() != once.tobytes() for other in others)
    if kind == "noise":
        kept = np.corrcoef(np.asarray(image).ravel(), np.asarray(once).ravel())[0, 1]
        assert 0 < kept < 0.3  # a tenth of every pixel is left


def test_sides_of_pairs_on_one_image_share_it_and_its_damaged_copy(processor, tmp_path):
    pairs = [render_pair(pair, processor, DATA, NOISE) for pair in pairs_in(tmp_path)]
    (row,) = pack_bundles([pair.sides for pair in pairs], "shared_prefix", 400)
    batch = collate([row], processor, fail)
    assert [(len(batch.tiles), len(pair.sides)) for pair in pairs] == [(2, 3)] * 4
    assert not torch.equal(batch.tiles[0], batch.tiles[1])
    found = pair_batch(batch, [row], pairs, 3)
    assert found.sides.shape == (3, 4) and sorted(found.sides.flatten().tolist()) == list(range(12))
    for column, pair in zip(found.sides.T.tolist(), pairs, strict=True):
        lengths = [found.lengths[number].item() for number in column]
        assert lengths == [side.tokens.supervised_count for side in pair.sides] and lengths[0] == lengths[2]


def test_weights_and_the_context_are_those_of_the_pair(processor, tmp_path):
    pairs = [render_pair(pair, processor, DATA, None) for pair in pairs_in(tmp_path, 5)]
    (row,) = pack_bundles([pair.sides for pair in pairs], "shared_prefix", 400)
    found = pair_batch(collate([row], processor, fail), [row], pairs, 2)
    assert found.weights.unique().tolist() == [1.0, 5.0]
    chosen = found.lengths[found.sides[0]]
    for pair, count in zip(pairs, chosen.tolist(), strict=True):
        text = processor.tokenizer.decode(pair.sides[0].tokens.input_ids[-count - 1 :])
        assert "hello world" not in text and "it is" in text


def test_a_key_changes_with_text_image_damage_and_prompt_format(processor, tiny_parts, tmp_path):
    pair, other = pairs_in(tmp_path, 2)

    def key(pair, processor=processor, damage=NOISE, side=2):
        return AnswerKeys(processor).of(render_pair(pair, processor, DATA, damage).sides[side])

    vicuna = build(tiny_settings(tiny_parts, prompt_format="vicuna_v1"))[1]
    siglip = build(tiny_settings(tiny_parts, "siglip"))[1]
    keys = [key(pair), key(pair, side=0), key(pair, side=1), key(other), key(pair, vicuna), key(pair, siglip)]
    keys += [key(pair, damage=Damaging(DamageSettings(kind="crop"), 0)), key(pair, damage=Damaging(NOISE.settings, 1))]
    save_image(tmp_path / "red.png", (210, 30, 30), (30, 24))
    keys.append(key(pair))
    assert len(set(keys)) == len(keys)
    save_image(tmp_path / "red.png", (200, 30, 30), (30, 24))
    assert key(pair) == keys[0]


def test_a_pair_without_a_difference_is_refused_by_its_kind(processor, tmp_path):
    (pair,) = pairs_in(tmp_path, 1)
    with pytest.raises(BadSampleError) as error:
        render_pair(pair.model_copy(update={"rejected": pair.chosen}), processor, DATA, None)
    assert error.value.kind == "no_difference"
