"""Pairs from shards, tables and data sets: what is read, in which order, and what is left out."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mllm.contrastive.caption_counts import CaptionCounts, open_counts
from mllm.contrastive.estimate import ClipEstimate
from mllm.contrastive.left_out import LeftOut
from mllm.contrastive.loss import gathered, infonce_sum, multi_positive_sum, sigmoid_sum
from mllm.contrastive.mixture import PairMixture
from mllm.contrastive.pairs import Pair, checked, read_pairs
from mllm.contrastive.settings import ClipDataSettings, ContrastiveSettings
from mllm.contrastive.sources import PairSource, open_sources
from mllm.contrastive.task import ContrastiveTask
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.settings import load_settings, validate_settings
from tests.helpers.commands import command
from tests.helpers.containers import write_tar
from tests.helpers.shards import batcher_of, clip_values, members, picture, stream_of, write_shards


def data(pairs, **changes):
    return validate_settings(ClipDataSettings, {"pairs": pairs} | changes, "test")


def mixture(*pairs, seed=0, **changes):
    return PairMixture(open_sources(data(list(pairs), **changes), seed), seed)


def captions(mix, epoch, start, end):
    return [mix.pair(pick).caption for pick in mix.picks(epoch, start, end)]


def numbers(count, first=0):
    return {f"caption {number}" for number in range(first, first + count)}


def test_shards_of_img2dataset_are_read_with_every_kind_of_image_and_several_captions(tmp_path):
    more = [
        ("a.jpg", picture(0, "jpg")), ("a.json", json.dumps({"caption": ["one", "two\u2028lines"]}).encode()),
        ("b.PNG", picture(1)), ("b.caption", "der Ärmel".encode()),
        ("c.webp", picture(2, "webp")), ("c.json", b'{"caption": null}'), ("c.txt", b"from the text"),
    ]  # fmt: skip
    path = write_shards(tmp_path / "s", (3, 2))
    write_tar(tmp_path / "more.tar", more)
    pairs = read_pairs(f"{path}::{tmp_path / 'more.tar'}", tmp_path)
    assert [pair.caption for pair in pairs[:5]] == [f"caption {number}" for number in range(5)]
    assert [pair.caption for pair in pairs[5:]] == ["one", "two\u2028lines", "der Ärmel", "from the text"]
    assert pairs[5].image == pairs[6].image and all(read_image(checked(p)).size == (20, 16) for p in pairs)
    # A listing in the cache gives the same pairs, and so does the second to open it.
    for _ in range(2):
        listed = open_sources(data(f"{path}::{tmp_path / 'more.tar'}"), 0)[0].pairs
        assert (
            list(listed) == pairs and listed[-1] == pairs[-1] and [p.place for p in listed] == [p.place for p in pairs]
        )


def test_tables_data_sets_and_cocos_files_give_the_same_pairs(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [{"image": f"{number}.png", "caption": f"caption {number}"} for number in range(3)]
    held = [row | {"image": {"bytes": picture(n), "path": None}} for n, row in enumerate(rows)]
    (tmp_path / "a.csv").write_text("filepath,title\n" + "".join(f"{r['image']},{r['caption']}\n" for r in rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(held), tmp_path / "a.parquet")
    (tmp_path / "set").mkdir()
    table = pa.Table.from_pylist(held)
    file = str(tmp_path / "set" / "data-00000-of-00001.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (tmp_path / "set" / "state.json").write_text("{}")
    document = {"images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)]}
    document["annotations"] = [{"id": n, "image_id": n, "caption": f"caption {n}"} for n in range(3)]
    (tmp_path / "coco.json").write_text(json.dumps(document))
    for name, reader in [(n, "captions") for n in ("a.csv", "a.jsonl", "a.parquet", "set")] + [
        ("coco.json", "coco_captions")
    ]:
        source = {"path": str(tmp_path / name), "image_root": str(tmp_path), "reader": reader}
        pairs = list(open_sources(data([source]), 0)[0].pairs)
        assert [pair.caption for pair in pairs] == [row["caption"] for row in rows], name
        assert [read_image(checked(p)).getpixel((0, 0)) for p in pairs] == [
            read_image(picture(n)).getpixel((0, 0)) for n in range(3)
        ]


def test_an_epoch_of_one_listing_is_the_shuffle_of_seed_and_epoch(tmp_path):
    mix = mixture({"path": write_shards(tmp_path, (7, 6))}, seed=5)
    for epoch in (0, 3, 1):
        order = list(range(13))
        random.Random(f"5/{epoch}").shuffle(order)
        assert captions(mix, epoch, 0, 13) == [f"caption {number}" for number in order]


def test_sources_are_mixed_evenly_at_every_stretch_whatever_their_weights():
    counts = (13, 5, 29, 1)
    pairs = [[Pair(Path(f"{s}/{n}"), f"{s} {n}") for n in range(10)] for s in range(4)]
    left_out = LeftOut(True, 0.0)
    mix = PairMixture(
        [PairSource(str(s), p, c, left_out) for s, (p, c) in enumerate(zip(pairs, counts, strict=True))], 0
    )
    seen = Counter()
    for place in range(48):
        (pick,) = mix.picks(0, place, place + 1)
        seen[pick.source] += 1
        assert all(abs(seen[s] - counts[s] * (place + 1) / 48) <= 1 for s in range(4))
    assert [seen[s] for s in range(4)] == list(counts)
    # A pass visits each pair once, also where an epoch begins or ends amidst it.
    visits = [pick for epoch in range(10) for pick in mix.picks(epoch, 0, 48)]
    for source, count in enumerate(counts):
        own = [pick.number for pick in visits if pick.source == source]
        assert set(Counter(own[: count * 10 // 10 * 10]).values()) == {count}
    whole = mix.picks(3, 5, 41)
    assert sorted(whole) == sorted(pick for n in range(5, 41) for pick in mix.picks(3, n, n + 1))


def test_a_stream_gives_each_pair_once_a_turn_and_the_same_from_any_place_on(tmp_path):
    path = write_shards(tmp_path, (4, 4, 4, 4, 4, 4))
    one = mixture(stream_of(path, 24))
    turns = [captions(one, epoch, 0, 24) for epoch in range(3)]
    assert all(set(turn) == numbers(24) for turn in turns) and turns[0] != turns[1]
    for start in (0, 7, 18):
        assert captions(mixture(stream_of(path, 24)), 1, start, 24) == captions(one, 1, start, 24)
    mixed = mixture(stream_of(path, 12), {"path": str(tmp_path / "00000.tar"), "weight": 3.0})
    assert Counter(pick.source for pick in mixed.picks(0, 0, 24)) == {0: 12, 1: 12}


def test_ranks_share_a_step_and_read_their_own_lanes_of_a_stream(tmp_path, monkeypatch):
    batcher = batcher_of([stream_of(write_shards(tmp_path / "s", (6, 6, 6), (4,)), 18)], tmp_path, data__workers=2,
                         train__global_batch_size=6, data__on_bad_sample="skip")  # fmt: skip
    assert batcher.batches_per_epoch == 3
    for step in range(4):
        whole, shares = batcher.batch(step), [batcher.batch(step, rank, 3) for rank in range(3)]
        for name in ("pixel_values", "alive", "describes"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(share, name) for share in shares]))
        # Pairs of a lane lie beside each other, so that a third of the ranks needs a third of the lanes.
        assert [pick.number % 3 for pick in batcher.picks(step)] == [0, 0, 1, 1, 2, 2]

    alone = batcher_of([stream_of(str(tmp_path / "s" / "{00000..00002}.tar"), 18)], tmp_path, loss__ignore="none",
                       train__global_batch_size=6, data__on_bad_sample="skip")  # fmt: skip
    opened = []
    lanes = alone.pairs.sources[0].pairs.begun_anew()
    alone.pairs.sources[0] = replace(alone.pairs.sources[0], pairs=lanes)
    monkeypatch.setattr(lanes, "_open_lane", lambda lane, given=lanes._open_lane: opened.append(lane) or given(lane))
    assert torch.equal(alone.batch(1, 2, 3).pixel_values, batcher.batch(1, 2, 3).pixel_values) and opened == [2]


def test_dead_images_leave_the_loss_to_the_pairs_that_are_left_and_are_counted(tmp_path):
    broken = {3, 11}
    path = write_shards(tmp_path / "s", (8, 8), broken)
    with pytest.raises(UserError, match=r"00000\.tar:00003: image .* is (corrupt|not a readable image)"):
        batcher_of(path, tmp_path, train__global_batch_size=16).batch(0)
    batcher = batcher_of(path, tmp_path, train__global_batch_size=16, data__on_bad_sample="skip")
    window = ContrastiveTask(batcher).window(0, 0, 1)
    alive = window.micro_batches[0].inputs.pairs.alive
    assert window.micro_batches[0].target_count == alive.sum() == 14
    assert sorted(place.rpartition(":")[2] for place, _, _ in window.skipped) == ["00003", "00011"]
    torch.manual_seed(0)
    image, text, none = torch.randn(16, 8), torch.randn(16, 8), torch.zeros(16, 16, dtype=torch.bool)
    positive = torch.eye(16, dtype=torch.bool)
    positive[0, 5] = positive[5, 0] = True
    bias, scale = torch.tensor([-1.0]), torch.tensor(1.5)
    few = none[:14, :14]
    for loss in (
        lambda f, p, n: infonce_sum(f, scale, n),
        lambda f, p, n: multi_positive_sum(f, scale, p, n),
        lambda f, p, n: sigmoid_sum(f, scale, bias, n),
    ):
        expected = loss(gathered(image[alive], text[alive]), positive[alive][:, alive], few)
        found = loss(gathered(image, text, alive), positive, none)
        assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-5)
        assert found.hits == expected.hits


def test_too_many_bad_pairs_end_a_run(tmp_path):
    left_out = LeftOut(at_once=False, most_share=0.01)
    left_out.met = 990
    for _ in range(10):
        left_out.add(UserError("a.jpg is no picture"))
    with pytest.raises(UserError, match=r"11 of 1001 pairs can't be used.*max_bad_share 0.01 allows.*a\.jpg is no"):
        left_out.add(UserError("a.jpg is no picture"))


BAD = {
    "no_caption": ([("a.png", picture(0)), ("b.png", picture(1))], r"t\.tar:a: expected text in one of the fields caption"),
    "two_images": (
        [("a.0.png", picture(0)), ("a.1.png", picture(1)), ("a.txt", b"x")],
        r"t\.tar:a: a pair has one image; found 2",
    ),
    "no_image": ([("a.txt", b"x"), ("a.json", b"{}")], r"t\.tar:a: expected an image in one of the fields"),
    "empty": ([("a.png", picture(0)), ("a.txt", b" ")], r"t\.tar:a: the caption is empty"),
    "bad_json": ([("a.png", picture(0)), ("a.json", b"{")], r"t\.tar:a\.json: not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [*BAD, "corrupt"])
def test_shards_with_faults_are_told_in_a_line_or_counted(tmp_path, kind, stream):
    path = tmp_path / "t.tar"
    if kind == "corrupt":
        # The pair before the damage isn't taken either: it may have had more to it.
        write_tar(path, members(range(4)))
        content, at = path.read_bytes(), path.read_bytes().index(b"00003.jpg")
        path.write_bytes(content[:at] + b"\xff" * 512 + content[at + 512 :])
        message = rf"t\.tar: not a readable, uncompressed tar: there is no header at byte {at}"
    else:
        content, message = BAD[kind]
        write_tar(path, [*members(range(2)), *content])
    source = {"path": str(path)} | ({"stream": True, "count": 6, "shuffle_buffer": 2} if stream else {})
    with pytest.raises(UserError, match=message):
        captions(mixture(source), 0, 0, 4)
    mix = mixture(source, on_bad_sample="skip")
    assert set(captions(mix, 0, 0, len(mix))) == numbers(2)
    # A stream that is too short for its count comes round, and meets its faults again.
    bad = mix.sources[0].left_out
    assert bad.bad == (2 if kind == "no_caption" else 1) * (2 if stream else 1) and bad.met == bad.bad + len(mix)


def test_what_no_source_can_be_is_told_in_a_line(tmp_path):
    path = write_shards(tmp_path / "s", (4,))
    (tmp_path / "mixed").mkdir()
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / "mixed" / name).write_text("x")
    (tmp_path / "empty").mkdir()
    outside = tmp_path / "o.jsonl"
    outside.write_text('{"image": "/etc/passwd", "caption": "x"}\n{"image": "tar:0:9:/etc/passwd", "caption": "y"}\n')
    for given, message in (
        (str(tmp_path / "s" / "{0..}.tar"), r"\{0\.\.\} is no range such as \{00000\.\.00041\}"),
        (str(tmp_path / "s" / "{00000..00001}.tar"), r"00001\.tar does not exist"),
        (f"{path}::{tmp_path / 's' / '00000.tar'}", "names the same file twice"),
        (str(tmp_path / "mixed"), r"several kinds \(\.csv, \.jsonl\); give a pattern of one"),
        (str(tmp_path / "empty"), "is a directory without files of samples"),
        ("nobody/nothing", r"nobody/nothing does not exist, nor is it to be had from the hub"),
    ):
        with pytest.raises(UserError, match=message):
            open_sources(data(given), 0)
    for number, message in enumerate(("leaves the image root", "lies in another file than its sample")):
        with pytest.raises(UserError, match=rf"o\.jsonl:{number + 1}: image .*{message}"):
            checked(open_sources(data(str(outside), image_root=str(tmp_path)), 0)[0].pairs[number])
    with pytest.raises(UserError, match="max_pairs is for one source that is no stream"):
        open_sources(data([stream_of(path, 4)], max_pairs=2), 0)
    with pytest.raises(UserError, match="need `caption_counts`"):
        data(path, filters={"min_word_count": 2})


def test_filters_leave_out_by_words_script_size_and_frequency_and_count_what_they_left_out(tmp_path):
    texts = ["one two three", "one", "две три четыре", "one two three", "one two three", "two zebra", "one two"]
    sizes = [(20, 16)] * 6 + [(60, 12)]
    found = [(f"{n}.png", picture(n, "png", size)) for n, size in enumerate(sizes)]
    found += [(f"{n}.txt", text.encode()) for n, text in enumerate(texts)]
    write_tar(tmp_path / "t.tar", sorted(found))
    with_all = list(open_sources(data(str(tmp_path / "t.tar")), 0)[0].pairs)
    table = CaptionCounts.of((pair.caption for pair in with_all), slots=2**12)
    assert [table.pairs_of("One  two three"), table.pairs_of("one"), table.rarest("two zebra")] == [3, 1, 1]
    assert table.rarest("one two") == 4 and table.rarest("???") == 0
    table.save(tmp_path / "f.npy")
    for filters, kept, reason in (
        ({"min_words": 2, "max_words": 2}, ["two zebra", "one two"], {"min_words": 1, "max_words": 4}),
        ({"scripts": ["Cyrillic"]}, ["две три четыре"], {"scripts": 6}),
        ({"max_aspect": 3.0}, texts[:6], {"max_aspect": 1}),
        ({"min_side_px": 13}, texts[:6], {"min_side_px": 1}),
        ({"caption_counts": "f", "max_pairs_a_caption": 2}, [t for t in texts if t != texts[0]], {"max_pairs_a_caption": 3}),
        ({"caption_counts": "f", "min_word_count": 2}, [t for t in texts if t not in texts[2:6:3]], {"min_word_count": 2}),
    ):  # fmt: skip
        own = filters | ({"caption_counts": str(tmp_path / "f.npy")} if "caption_counts" in filters else {})
        if len(set(kept)) > 1:
            (source,) = open_sources(data(str(tmp_path / "t.tar"), filters=own), 0)
            assert [pair.caption for pair in source.pairs] == kept and dict(source.left_out.counts) == reason
        stream = stream_of(str(tmp_path / "t.tar"), len(kept), shuffle_buffer=1)
        assert captions(mixture(stream, filters=own), 0, 0, len(kept)) == kept
    np.save(tmp_path / "other.npy", np.zeros(4))
    with pytest.raises(UserError, match=r"other\.npy: no file of `mllm clip count-captions`"):
        open_sources(
            data(str(tmp_path / "t.tar"), filters={"caption_counts": str(tmp_path / "other.npy"), "min_word_count": 1}),
            0,
        )


def test_a_plan_says_rates_and_days_of_a_run_and_captions_are_counted_by_the_command(tmp_path):
    path = write_shards(tmp_path / "s", (6, 6), broken=(3,))
    values = clip_values(path, tmp_path / "run", data__on_bad_sample="skip")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    counts = tmp_path / "counts.npy"
    said, _ = command("clip", "count-captions", tmp_path / "c.yaml", "--out", counts, "--slots", "10")
    assert "12 pairs counted" in said and open_counts(counts).rarest("caption 3") == 1
    options = ["--sample", "4", "--pairs", "1e6", "--ranks", "2"]
    said, _ = command("clip", "plan", tmp_path / "c.yaml", *options)
    assert "1,000,000 pairs at" in said and "on 2 ranks" in said and not (tmp_path / "run").exists()
    found = ClipEstimate(read_pairs_per_s=50.0, computed_pairs_per_s=100.0, threads=2, device="cpu", left_out=0.0)
    assert found.days(1.8e9, ranks=10) == pytest.approx(1.8e9 / 500 / 86400)


def test_aligns_recipe_is_a_config_that_a_stream_of_shards_would_run():
    config = load_settings(ContrastiveSettings, Path(__file__).parents[2] / "train/configs/align_base.yaml")
    filters = config.data.filters
    assert config.data.pairs[0].stream and config.data.on_bad_sample == "skip" and config.loss.grad_cache
    assert (filters.min_words, filters.max_words, filters.max_pairs_a_caption) == (3, 20, 10)
    assert config.train.global_batch_size == 16384 and config.train.micro_batch_size < 16384
