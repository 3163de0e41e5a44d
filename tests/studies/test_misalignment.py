"""What captions that omit and alter semantics leave learned: the world, its probes, its tasks and its scenes."""

import json
import math

import pytest
import torch

from mllm.cli import build_parser
from mllm.errors import UserError
from mllm.studies.misalignment import downstream, pictures, recovery
from mllm.studies.misalignment.captions import LONGEST, told_values, word_ids, write_captions
from mllm.studies.misalignment.cells import Cell, run_cells
from mllm.studies.misalignment.probes import Sample, correlation, linear_r2, logistic_classes, mlp_classes, mlp_r2
from mllm.studies.misalignment.scenes import COUNTS, FACTORS, all_scenes, draw, likelihood
from mllm.studies.misalignment.world import Simulation, World, last_ones

SMALL = {"semantic": 3, "omitted": (2,), "perturbed": (1,), "private": 1, "hidden": 64, "hidden_layers": 2}


def world(**settings):
    return World(Simulation(**settings), torch.Generator().manual_seed(0))


def test_unbiased_factors_are_recovered_and_omitted_and_perturbed_ones_are_not():
    found = recovery.recover(Cell(Simulation(**SMALL, steps=400, samples=4096), 0))
    for name in ("linear", "mlp"):
        unbiased, perturbed, omitted, _ = found[name]
        assert unbiased > 0.8 > 0.4 > max(perturbed, omitted)
    ceiling = found["ceiling"]
    assert ceiling[0] > 0.95 and max(ceiling[1:]) < 0.1


@pytest.mark.parametrize("structure", ["independent", "dependent", "chain"])
def test_a_world_has_unit_factors_with_the_dependence_asked_for(structure):
    made = world(structure=structure)
    factors, image, text, _ = made.sample(4000)
    assert torch.allclose(factors.var(0), torch.ones(10), atol=0.15)
    assert (image.shape[1], text.shape[1]) == (15, 12)
    correlations = torch.corrcoef(factors.T)
    neighbours = correlations.diagonal(1).abs()
    assert (neighbours.max() < 0.1) if structure == "independent" else (neighbours.max() > 0.3)
    if structure == "chain":
        assert neighbours.mean() > 0.55 and correlations[0, 9].abs() < 0.2
    # The ceiling is what least squares on the true unbiased factors finds.
    known = [Sample(pairs[:, :4], pairs) for pairs in (made.sample(20_000).factors, made.sample(20_000).factors)]
    assert linear_r2(*known) == pytest.approx(made.ceiling(), abs=0.02)


@pytest.mark.parametrize(("perturbation", "variance"), [("additive", 1.75), ("redraw", 1.0)])
def test_only_perturbed_factors_are_told_wrongly_and_as_often_as_asked(perturbation, variance):
    made = world(perturbation=perturbation)
    factors = made.sample(20_000).factors
    told = made.tell(factors)
    changed = (told != factors).float().mean(0)
    assert changed[[0, 1, 2, 3, 7, 8, 9]].max() == 0
    assert changed[4:7].tolist() == pytest.approx([0.75] * 3, abs=0.02)
    assert told[:, 4:7].var(0).tolist() == pytest.approx([variance] * 3, abs=0.06)


def test_a_shift_makes_its_factors_heavy_tailed_and_leaves_the_others():
    factors = world().sample(20_000, shifted=(8, 9)).factors
    assert factors[:, :8].var(0).tolist() == pytest.approx([1.0] * 8, abs=0.06)
    assert (factors[:, 8:].abs() == 10).float().mean(0).tolist() == pytest.approx([0.1] * 2, abs=0.01)


def test_probes_find_what_is_there_and_within_a_hundredth_nothing_of_what_is_not():
    torch.manual_seed(0)

    def sample():
        here, gone = torch.randn(20_480, 2), torch.randn(20_480, 1)
        mixed = torch.stack([here.sum(1), torch.tanh(here[:, 0])], 1)
        return Sample(mixed, torch.cat([here, here[:, :1].cos(), gone], 1))

    train, test = sample(), sample()
    linear, found = linear_r2(train, test), mlp_r2(train, test)
    assert min(linear[:2]) > 0.8 and linear[2] < 0.1 and abs(linear[3]) <= 0.01
    assert min(found[:2]) > 0.8 and found[2] > 0.8 and abs(found[3]) <= 0.01


def test_classes_are_found_by_both_probes_and_chance_has_no_correlation():
    torch.manual_seed(0)

    def sample():
        inputs = torch.randn(2000, 2)
        corner = (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()
        return Sample(inputs, torch.stack([corner, (inputs.prod(1) > 0).long(), torch.randint(2, (2000,))], 1))

    train, test = sample(), sample()
    scores = {
        probe: [correlation(a, b) for a, b in zip(probe(train, test).T, test.factors.T, strict=True)]
        for probe in (logistic_classes, mlp_classes)
    }
    assert scores[logistic_classes][0] > 0.9 and abs(scores[logistic_classes][1]) < 0.3
    assert min(scores[mlp_classes][:2]) > 0.9
    assert max(abs(found[2]) for found in scores.values()) < 0.1


def test_correlation_by_hand():
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    assert correlation(truth, truth) == pytest.approx(1.0)
    assert correlation(torch.zeros(6, dtype=torch.int64), truth) == 0.0
    # Three right of one class, two right and one wrong of the other: (3·2 − 1·0) / √(4·3·2·3).
    two = torch.tensor([0, 0, 0, 1, 1, 1])
    assert correlation(torch.tensor([0, 0, 0, 0, 1, 1]), two) == pytest.approx(6 / math.sqrt(72))


def test_subsets_are_those_of_the_paper_or_every_pair_that_leaves_a_factor():
    growing = list(recovery.subsets(10, every=False))
    assert len(growing) == 19 and growing[0] == ((), ()) and ((1, 2, 3, 4, 5, 6, 7, 8, 9), ()) in growing
    every = list(recovery.subsets(3, every=True))
    assert len(set(every)) == 3**3 - 2**3
    assert all(len({*omitted, *perturbed}) == len(omitted) + len(perturbed) < 3 for omitted, perturbed in every)


def test_targets_by_hand_and_the_classes_lie_around_two_means():
    assert downstream.function(torch.zeros(1, 3)).item() == pytest.approx(3 * (0.7 + 0.6))
    alone = 1 + 0.3 + 0.7 * (math.sin(1) + math.cos(1)) + 0.4 * math.log(2) + 0.6 / math.e
    assert downstream.function(torch.ones(1, 3)).item() == pytest.approx(3 * alone + 0.5 * 3 + 0.2)
    assert downstream.threshold(torch.tensor([0.0, 0.2, 5.0, 5.2])) == pytest.approx(2.6)


def test_downstream_scores_each_target_and_shift_and_tells_gains_over_texts_that_tell_all():
    settings = downstream.grid([Simulation(steps=2, samples=300)])
    assert settings[3].omitted == (3, 4, 5, 6, 7, 8, 9) and settings[4].perturbed == (8, 9)
    scores = downstream.transfer(Cell(settings[0], 0))
    assert set(scores["r2"]) == {"y1", "y2", "y3", "y4"} and len(scores["y5"]) == 4
    better = {"r2": scores["r2"], "y5": {shift: value + 0.25 for shift, value in scores["y5"].items()}}
    cells = [Cell(own, seed) for own in settings for seed in range(2)]
    report = downstream.report(settings, cells, [scores, scores, *[better] * (len(cells) - 2)])
    assert report.rows[0][-1] == "+0.000 ± 0.000" and report.rows[1][-1] == "+0.250 ± 0.000"
    with pytest.raises(UserError, match="targets are of 10 factors"):
        downstream.grid([Simulation(semantic=9)])


def test_a_scene_is_a_function_of_its_factors_and_each_of_them_is_seen():
    scene = (0, 1, 1, 0, 0, 1, 1)
    assert draw(scene).tobytes() == draw(scene).tobytes()
    for n, count in enumerate(COUNTS):
        drawn = {draw((*scene[:n], value, *scene[n + 1 :])).tobytes() for value in range(count)}
        assert len(drawn) == count, list(FACTORS)[n]


def test_captions_leave_out_what_is_omitted_and_alter_only_what_is_perturbed():
    generator = torch.Generator().manual_seed(0)
    values = all_scenes().values[torch.randint(len(all_scenes().values), (3000,), generator=generator)]
    told = told_values(values, ("shape",), generator)
    changed = (told != values).float().mean(0)
    # A redrawn value is the same one as often as there are values.
    assert changed[1].item() == pytest.approx(0.9 * (1 - 1 / COUNTS[1]), abs=0.03) and changed.sum() == changed[1]
    captions = write_captions(told, ("background", "vertical"), generator)
    words = {word for text in captions for word in text.split()}
    assert not words & {*FACTORS["background"], *FACTORS["vertical"], "row", "on"} and {"red", "column"} <= words
    assert len(set(captions)) > 400 and word_ids(write_captions(values, (), generator)).shape == (3000, LONGEST)
    assert "thing" in write_captions(values[:1], ("shape",), generator)[0]


def test_scenes_in_a_chain_follow_each_other_and_the_ceiling_is_what_unbiased_factors_tell():
    chance = likelihood("chain")
    values = all_scenes().values
    assert chance.sum().item() == pytest.approx(1.0)
    follows = values[:, 1] == values[:, 0] % COUNTS[1]
    assert chance[follows].sum().item() == pytest.approx(0.7 + 0.3 / COUNTS[1])
    settings = pictures.Pictures(omitted=("vertical",), structure="chain")
    best = pictures.Source(settings, 0).likeliest(values[:50])
    assert torch.equal(best[:, :6], values[:50, :6])
    assert torch.equal(best[:, 6], values[:50, 5] % COUNTS[6])


def test_pictures_are_probed_for_each_factor_on_scenes_that_were_not_trained_on():
    settings = pictures.grid([pictures.Pictures(steps=2, batch_size=8, samples=200)])
    assert [len(own.unbiased) for own in settings] == [7, 5, 3, 1, 5, 3, 1] and settings[3].encoding_width == 5
    source = pictures.Source(settings[0], 0)
    parts = [set(part.tolist()) for part in (source.trained, source.fitted, source.scored)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(all_scenes().values)
    scores = pictures.probe(Cell(settings[1], 0))
    assert {name: len(values) for name, values in scores.items()} == dict.fromkeys(
        ("logistic", "mlp", "ceiling", "accuracy"), 7
    )
    assert scores["ceiling"][:5] == pytest.approx([1.0] * 5) and scores["ceiling"][5:] == [0.0, 0.0]


def test_a_study_goes_on_after_the_cells_that_ended(tmp_path):
    cells = [Cell(Simulation(steps=n), seed) for n in (1, 2) for seed in (0, 1)]
    trained = []

    def run(cell):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(cell)
        return {"linear": [cell.settings.steps, cell.seed]}

    with pytest.raises(KeyboardInterrupt):
        run_cells("s", cells, run, tmp_path)
    again = run_cells("s", cells, lambda cell: {"linear": [cell.settings.steps, cell.seed]}, tmp_path)
    assert trained == cells[:2] and again == [{"linear": [n, seed]} for n in (1, 2) for seed in (0, 1)]
    kept = next((tmp_path / "cells").glob("*.json"))
    kept.write_text("{}")
    with pytest.raises(UserError, match="holds no scores of its cell; remove it"):
        run_cells("s", cells, run, tmp_path)


def clip(*arguments):
    options = build_parser().parse_args(["clip", "misalignment", *map(str, arguments)])
    options.run(options)


def test_the_command_writes_tables_and_a_picture_that_say_seeds_and_sizes(tmp_path, capsys):
    small = ["--steps", 3, "--seeds", 1, "--structure", "independent", "--factors", 3]
    clip(tmp_path / "out", *small, "--omitted", 1, "--perturbed", 1)
    record = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row[1] for row in record["rows"]] == ["unbiased", "perturbed", "omitted", "private"]
    assert record["sizes"] == "1 seed(s), each 3 steps of 256 pairs; probes fitted on 20,480 points"
    assert record["sizes"] in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "picture.png").stat().st_size > 1000 and "saved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--omitted", "9"], "9 omitted and 3 perturbed of 10 semantic factors leave none"),
        (["--study", "subsets", "--omitted", "1"], "--omitted is of --study recovery; leave it out"),
        (["--every-subset"], "--every-subset is of --study subsets; leave it out"),
        (["--study", "pictures", "--perturbation", "redraw"], "--perturbation is of --study recovery, subsets and"),
        (["--study", "pictures", "--structure", "dependent"], "--structure dependent: scenes of pictures are"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        clip(tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_numbers_below_one_are_refused(tmp_path, capsys):
    for option in ("--steps", "--seeds", "--dim"):
        with pytest.raises(SystemExit):
            clip(tmp_path / "out", option, "0")
        assert "no whole number from 1 on" in capsys.readouterr().err


def test_the_last_factors_are_those_that_texts_omit_or_get_wrong():
    assert last_ones(10, 3, 3) == ((7, 8, 9), (4, 5, 6)) and last_ones(2, 0, 1) == ((), (1,))
