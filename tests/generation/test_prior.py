"""The prior's sequence and mask are those of the paper, and its embeddings those of the data."""

import pytest
import torch
from diffusers import PriorTransformer

from mllm.errors import UserError
from mllm.generation.conditions import Conditions
from mllm.generation.embeddings import Standardizer, measure_standardizer
from mllm.generation.prior import build_prior, load_prior_net, prior_text

WIDTH, LENGTH, LENGTHS = 16, 5, torch.tensor([3, 5])
# Text tokens, text embedding, timestep, noised image embedding, and the query whose output is the answer.
TEXT_EMBEDDING, TIMESTEP, NOISED, QUERY = range(LENGTH, LENGTH + 4)


@pytest.fixture
def prior():
    torch.manual_seed(0)
    denoiser = build_prior(WIDTH, LENGTH, layers=1, heads=2, head_width=8).eval()
    denoiser.standardize_by(Standardizer(torch.randn(WIDTH), torch.rand(WIDTH) + 0.1))
    return denoiser


def inputs():
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, LENGTH, WIDTH, generator=generator)
    embeddings = torch.nn.functional.normalize(torch.randn(2, WIDTH, generator=generator), dim=-1)
    text = prior_text(states, embeddings, LENGTHS)
    return torch.randn(2, WIDTH, 1, 1, generator=generator), torch.tensor([7, 900]), Conditions(text=text)


def into_first_block(prior, noised, timesteps, conditions):
    """What the first block is given: hidden states [b, tokens, width] and the mask [b × heads, tokens, tokens]."""
    seen = {}

    def hook(_, arguments, named):
        seen.update(states=arguments[0], mask=named["attention_mask"])

    handle = prior.net.transformer_blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        prior(noised, timesteps, conditions)
    handle.remove()
    return seen["states"], seen["mask"]


def test_each_position_holds_what_the_paper_puts_there(prior):
    noised, timesteps, conditions = inputs()
    net, text = prior.net, conditions.text
    states, _ = into_first_block(prior, noised, timesteps, conditions)
    with torch.no_grad():
        positions = net.positional_embedding[0]
        assert states.shape[1] == len(positions) == LENGTH + 4
        assert torch.allclose(states[:, :LENGTH], net.encoder_hidden_states_proj(text[:, :LENGTH]) + positions[:LENGTH])
        assert torch.allclose(states[:, TEXT_EMBEDDING], net.embedding_proj(text[:, -1]) + positions[TEXT_EMBEDDING])
        level = net.time_embedding(net.time_proj(timesteps))
        assert torch.allclose(states[:, TIMESTEP], level + positions[TIMESTEP])
        assert torch.allclose(states[:, NOISED], net.proj_in(noised.flatten(1)) + positions[NOISED])
        query = (net.prd_embedding[0, 0] + positions[QUERY]).expand(2, -1)
        assert torch.allclose(states[:, QUERY], query)


def test_a_position_sees_those_before_it_and_no_padding(prior):
    _, mask = into_first_block(prior, *inputs())
    sees = (mask > -5000).reshape(2, 2, LENGTH + 4, LENGTH + 4)  # samples × heads
    for sample, length in enumerate(LENGTHS.tolist()):
        for asking in range(LENGTH + 4):
            before = [place for place in range(asking + 1) if place < length or place >= LENGTH]
            for head in range(2):
                assert sees[sample, head, asking].nonzero().flatten().tolist() == before


def test_the_answer_depends_on_all_conditions_and_on_no_padding(prior):
    noised, timesteps, conditions = inputs()

    def answer(text=conditions.text, noised=noised, timesteps=timesteps):
        with torch.no_grad():
            return prior(noised, timesteps, Conditions(text=text))[0]

    plain = answer()
    assert plain.shape == (WIDTH, 1, 1)
    for place in (0, 2, LENGTH):  # the first and the last token of three, and the text embedding
        changed = conditions.text.clone()
        changed[0, place] += 1
        assert not torch.allclose(answer(changed), plain, atol=1e-5)
    assert not torch.allclose(answer(noised=noised + 1), plain, atol=1e-5)
    assert not torch.allclose(answer(timesteps=timesteps + 50), plain, atol=1e-5)
    # A caption's padding is zeros, whatever the text side said there.
    states = torch.ones(2, LENGTH, WIDTH)
    assert bool((prior_text(states, torch.ones(2, WIDTH), LENGTHS)[0, 3:LENGTH] == 0).all())


def test_standardized_embeddings_have_unit_deviation_and_come_back_as_unit_vectors():
    raw = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 2, WIDTH) + 1
    unit = torch.nn.functional.normalize(raw, dim=-1)
    standardizer = measure_standardizer(unit)
    standardized = standardizer.standardize(unit)
    assert torch.allclose(standardized.mean(0), torch.zeros(WIDTH), atol=1e-4)
    assert torch.allclose(standardized.std(0), torch.ones(WIDTH), atol=1e-4)
    assert torch.allclose(standardizer.restore(standardized), unit, atol=1e-5)
    # What a prior says isn't on the sphere; what is made of it is.
    assert torch.allclose(standardizer.restore(standardized + 0.3).norm(dim=-1), torch.ones(400), atol=1e-5)


def test_zeros_that_diffusers_begins_with_never_survive(prior, tmp_path):
    untouched = PriorTransformer(2, 8, 1, WIDTH, LENGTH, 4)
    untouched.save_pretrained(tmp_path / "untouched")
    with pytest.raises(UserError, match="clip_std is all zeros"):
        load_prior_net(tmp_path / "untouched")
    prior.net.save_pretrained(tmp_path / "set")
    standardizer = load_prior_net(tmp_path / "set").standardizer
    assert torch.equal(standardizer.mean, prior.standardizer.mean)
    assert torch.equal(standardizer.std, prior.standardizer.std)
    # Frozen: neither the gradient's check nor the optimizer meets them.
    frozen = {name for name, parameter in prior.named_parameters() if not parameter.requires_grad}
    assert frozen == {"net.clip_mean", "net.clip_std"}
