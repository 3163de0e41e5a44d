"""What of a model of transformers learns, at which rates, and with which noise."""

import math
import re

import pytest
import torch

from mllm.errors import UserError
from mllm.finetune.run import parts_by_name
from mllm.model.public import PublicModel, wrap
from mllm.model.settings import TrainableSettings
from mllm.model.trainable import apply_policy, idle_modules
from mllm.settings import validate_settings
from tests.helpers.public_models import MAKERS, tiny
from tests.helpers.samples import batch_of, loss_and_gradients

WHOLE = {"vision_encoder": "full", "projector": "full", "language_model": "full"}


def policy(**values):
    return validate_settings(TrainableSettings, WHOLE | values, "test")


@pytest.fixture(scope="module")
def early_features():
    """A model whose features come from the layer before the last."""
    peer, processor = tiny("whole_samples")
    peer.config.vision_feature_layer = -2
    return wrap(peer, processor)


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_layers_behind_the_features_are_named_and_the_rest_learns(early_features, samples):
    model, processor = early_features
    apply_policy(model, policy())
    tower = "peer.model.vision_tower"
    assert idle_modules(model, policy()) == [
        *(f"{tower}.encoder.layers.1", f"{tower}.head", f"{tower}.head.attention", f"{tower}.head.attention.out_proj"),
        *(f"{tower}.head.layernorm", f"{tower}.head.mlp.fc1", f"{tower}.head.mlp.fc2", f"{tower}.post_layernorm"),
    ]
    _, slopes = loss_and_gradients(model.train(), [batch_of(samples, processor, "samples", 2000)])
    assert slopes.keys() == learning(model)
    assert idle_modules(model, policy(vision_encoder="frozen")) == []


def place_of(name):
    """What a weight of the encoder stands in: the number of its layer, or `front` or `behind`."""
    layer = re.search(r"\.(?:layers|blocks)\.(\d)\.", name)
    return layer[1] if layer else "front" if "embed" in name else "behind"


@pytest.mark.parametrize("name", MAKERS)
def test_a_rate_falls_by_the_layer_and_what_is_in_front_of_all_has_the_lowest(named, name):
    model, _ = named(name)
    part_of = parts_by_name(model, 0.5)
    own = [name for name, _ in model.named_parameters() if model.part_of(name) == "vision_encoder"]
    rates = {(place_of(name), part_of(name).factor) for name in own}
    assert rates - {("behind", 1.0)} == {("front", 0.125), ("0", 0.25), ("1", 0.5)}
    below = {id(parameter) for parameter in model.encoder_parameters_below(1)}
    assert below == {id(p) for n, p in model.named_parameters() if n in own and place_of(n) in ("front", "0")}


def test_layers_that_features_do_not_come_from_cannot_be_the_first_to_learn(early_features):
    with pytest.raises(UserError, match=r"vision_encoder_from_layer is 1, but .* comes from layers 0 to 0"):
        apply_policy(early_features[0], policy(vision_encoder_from_layer=1))


def test_a_model_that_was_not_looked_at_has_no_layers_to_count(named):
    bare = PublicModel(named("several_axes")[0].peer)
    assert bare.unused_parameters() == []
    with pytest.raises(UserError, match=r"layer_decay_vision_encoder counts the layers .* can't be told"):
        bare.encoder_height_of("peer.model.visual.blocks.0.norm1.weight")


@pytest.mark.parametrize("name", ["several_axes", "spans_and_windows"])
def test_noise_is_on_the_words_of_each_sample_by_its_length_and_in_training_alone(name, samples):
    model, processor = wrap(*tiny(name))
    batch = batch_of(samples, processor, "samples", 2000)
    seen = []
    model.peer.get_decoder().register_forward_pre_hook(
        lambda module, args, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    model.neftune_alpha = 5.0
    with torch.no_grad():
        for training in (False, True):
            model.train(training).hidden_states(batch)
    noise = (seen[1] - seen[0]).abs().amax(-1)[0]
    is_image = batch.input_ids[0] == processor.carried.feature_token_id
    assert is_image.any() and not noise[is_image].any()
    for segment in range(int(batch.segment_ids.max()) + 1):
        own = batch.segment_ids[0] == segment
        bound = 5.0 / math.sqrt(int(own.sum()) * model.text_config.hidden_size)
        assert 0.9 * bound < noise[own & ~is_image].max() <= bound * (1 + 1e-5)
