"""`mllm push`: a model directory to the hub."""

import argparse
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        "Send a model directory to the hub of Hugging Face, with a card of its recipe, data and scores. Checkpoints and the "
        "state of optimizers stay here.",
        "mllm push exported OWNER/NAME --private",
        "mllm push runs/llava/stage2 OWNER/NAME --dry-run",
    )
    parser.add_argument(
        "model", type=expanded, help="A model directory, an export of any layout, or a run with final/ in it."
    )
    parser.add_argument(
        "repo_id", metavar="REPO_ID", help="Where it goes, as OWNER/NAME. It is made if it isn't there."
    )
    parser.add_argument("--private", action="store_true", help="Make the repository private (default: public).")
    parser.add_argument("--revision", metavar="BRANCH", help="The branch, made if it isn't there (default: main).")
    parser.add_argument("--dry-run", action="store_true", help="Say what would be sent, and send nothing.")


def run(options: argparse.Namespace) -> None:
    from mllm.checkpoint.card import README
    from mllm.checkpoint.push import plan_upload, send

    upload = plan_upload(Path(options.model))
    for name in upload.files:
        print(f"{upload.size_bytes(name) / 1e6:12,.2f} MB  {name}")
    if upload.card is not None:
        print(f"{len(upload.card.encode()) / 1e6:12,.2f} MB  {README}, a card that is written for it")
    if upload.left:
        print(f"stay here: {', '.join(upload.left)}")
    if options.dry_run:
        print(f"would be sent to {options.repo_id}; nothing was")
        return
    print(f"sent to {send(upload, options.repo_id, options.private, options.revision)}")
