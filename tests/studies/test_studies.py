"""The misalignment simulation and the measures of a space."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from mllm.cli import build_parser
from mllm.errors import UserError
from mllm.studies.diagnose import diagnose, prompt_sensitivity, uniformity
from mllm.studies.misalignment import Simulation, World, r2_per_factor, simulate

SMALL = {"semantic": 3, "omitted": 1, "perturbed": 1, "private": 1, "hidden": 64, "batch_size": 256, "steps": 400}


def test_unbiased_factors_are_recovered_and_omitted_and_perturbed_ones_are_not():
    found, ceiling = simulate(Simulation(**SMALL, lr=3e-3, test_samples=800), seed=0)
    unbiased, perturbed, omitted = found
    assert unbiased > 0.8 > 0.4 > max(perturbed, omitted)
    assert ceiling[0] > 0.95 and max(ceiling[1:]) < 0.1


@pytest.mark.parametrize("structure", ["independent", "dependent", "chain"])
def test_a_world_has_unit_factors_with_the_dependence_asked_for(structure):
    world = World(Simulation(structure=structure), torch.Generator().manual_seed(0))
    factors, image, text = world.sample(4000)
    assert torch.allclose(factors.var(0), torch.ones(10), atol=0.15)
    assert (image.shape[1], text.shape[1]) == (15, 12)
    correlation = torch.corrcoef(factors.T)
    neighbours = correlation.diagonal(1).abs()
    assert (neighbours.max() < 0.1) if structure == "independent" else (neighbours.max() > 0.3)
    if structure == "chain":
        assert neighbours.mean() > 0.55 and correlation[0, 9].abs() < 0.2


def test_r2_is_one_for_what_is_there_and_nothing_for_what_is_not():
    torch.manual_seed(0)
    here, gone = torch.randn(600, 2), torch.randn(600, 1)
    mixed = torch.stack([here.sum(1), torch.tanh(here[:, 0])], 1)
    found = r2_per_factor(mixed, torch.cat([here, gone], 1))
    assert found[:2].min() > 0.8 and found[2] < 0.1


def test_measures_of_a_space_by_hand():
    images, texts = torch.eye(4)[:2], F.normalize(torch.eye(4)[:2] + torch.eye(4)[2:], dim=1)
    found = diagnose(images, texts)
    assert found.alignment == pytest.approx(2 - math.sqrt(2), rel=1e-5)
    assert found.uniformity_images == pytest.approx(-4.0, rel=1e-5)  # one pair at squared distance 2
    assert found.gap == pytest.approx((images.mean(0) - texts.mean(0)).norm().item())
    assert found.cosine_of_pairs == pytest.approx(math.sqrt(0.5)) and found.cosine_of_others == 0
    assert found.linear_separability == 1.0
    assert uniformity(images[[0, 0]]) == pytest.approx(0.0)
    prompts = torch.stack([images, images.flip(0)])
    assert prompt_sensitivity(images, torch.tensor([0, 1]), prompts) == (0.0, 0.5, 1.0)


def test_the_commands_write_tables_and_pictures(trained, tmp_path, capsys):
    def clip(*arguments):
        options = build_parser().parse_args(["clip", *map(str, arguments)])
        options.run(options)

    pairs = ["--image-root", trained, "--picture", tmp_path / "space.png"]
    clip("diagnose", trained / "run", trained / "pairs.jsonl", *pairs)
    output = capsys.readouterr().out
    assert (
        json.loads(output[: output.rindex("}") + 1])["pairs"] == 16 and (tmp_path / "space.png").stat().st_size > 1000
    )
    clip("misalignment", tmp_path / "out", "--steps", "3", "--seeds", "1")
    assert len(json.loads((tmp_path / "out" / "table.json").read_text())["rows"]) == 9
    assert (tmp_path / "out" / "picture.png").stat().st_size > 1000
    with pytest.raises(UserError, match="--steps and --seeds: give at least 1"):
        clip("misalignment", tmp_path / "out", "--seeds", "0")
    with pytest.raises(UserError, match="9 omitted and 3 perturbed of 10 semantic factors leave none"):
        clip("misalignment", tmp_path / "out", "--omitted", "9")
