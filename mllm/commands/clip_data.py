"""`mllm clip count-captions` and `mllm clip plan`: what web pairs are like, and how long a run on them takes."""

import argparse
from pathlib import Path
from typing import Any

from mllm.commands.arguments import add_config, add_part, at_least_1, read_config
from mllm.errors import UserError
from mllm.settings import expanded

ALIGN_PAIRS = 1.8e9


def add_data(parts: Any) -> None:
    """The two subcommands."""
    counts = add_part(
        parts,
        "count-captions",
        _count_captions,
        "Count how many pairs share a caption, and how often words and neighbouring words occur, for data.filters of "
        "mllm clip train. The pairs are read once, in a table of fixed size.",
        "mllm clip count-captions train/configs/demo_clip.yaml --out counts.npy",
    )
    add_config(counts)
    counts.add_argument("--out", type=expanded, required=True, metavar="FILE.npy", help="The file to write.")
    counts.add_argument(
        "--slots",
        type=int,
        default=26,
        metavar="BITS",
        help="The table has 2 to this power of slots, of 16 bytes each; more make counts that are too high rarer "
        "(default: %(default)s).",
    )

    plan = add_part(
        parts,
        "plan",
        _plan,
        "Say how long a contrastive run takes, from pairs that are read and steps that are computed on this machine. Nothing "
        "is written but the listing of the pairs.",
        "mllm clip plan train/configs/demo_clip.yaml --pairs 1.8e9 --ranks 8",
    )
    add_config(plan)
    plan.add_argument(
        "--pairs",
        type=float,
        default=ALIGN_PAIRS,
        help="Number of pairs that the run sees in all (default: ALIGN's, %(default)g).",
    )
    plan.add_argument(
        "--ranks", type=at_least_1, default=1, help="Number of ranks, each as fast as this one (default: %(default)s)."
    )
    plan.add_argument(
        "--sample",
        type=at_least_1,
        default=64,
        help="Number of pairs of the batches that are timed (default: %(default)s).",
    )


def _count_captions(options: argparse.Namespace) -> None:
    from mllm.contrastive.settings import ContrastiveSettings

    settings = read_config(options, ContrastiveSettings, "mllm clip train's CONFIG.yaml")
    if not 10 <= options.slots <= 32:
        raise UserError(f"--slots {options.slots}: give 10 to 32 bits")
    from mllm.contrastive.caption_counts import BY, CaptionCounts
    from mllm.contrastive.mixture import PairMixture
    from mllm.contrastive.source_settings import PairFilterSettings
    from mllm.contrastive.sources import open_sources
    from mllm.outputs import check_file

    check_file(Path(options.out), BY)
    data = settings.data.model_copy(update={"filters": PairFilterSettings()})
    mixture = PairMixture(open_sources(data, settings.seed), settings.seed)
    CaptionCounts.of(mixture.captions(len(mixture)), 2**options.slots).save(options.out)
    print(f"saved {options.out}: {len(mixture):,} pairs counted")


def _plan(options: argparse.Namespace) -> None:
    from mllm.contrastive.settings import ContrastiveSettings

    settings = read_config(options, ContrastiveSettings, "mllm clip train's CONFIG.yaml")
    if options.sample < 2:
        raise UserError(f"--sample {options.sample}: a batch has at least 2 pairs")
    from mllm.contrastive.estimate import estimate_clip

    found = estimate_clip(settings, options.sample)
    print(f"read:      {found.read_pairs_per_s:,.1f} pairs/s a rank, by {found.threads} threads")
    print(
        f"computed:  {found.computed_pairs_per_s:,.1f} pairs/s a rank, on {found.device}, batches of {options.sample}"
    )
    if found.left_out:
        print(f"left out:  {found.left_out:.1%} of the pairs met")
    rate, days = found.pairs_per_s(options.ranks), found.days(options.pairs, options.ranks)
    print(f"{options.pairs:,.0f} pairs at {rate:,.1f} pairs/s on {options.ranks} ranks: {days:,.1f} days")
    print("Ranks are taken for as fast as this one; what they say to each other isn't timed.")
