"""Train a CLIP- or SigLIP-style dual encoder.

python train/contrastive.py --config train/configs/demo_clip.yaml
"""

from collections.abc import Sequence

from mllm.commands.shared import configure_logging, run_command, settings_parser


def main(arguments: Sequence[str]) -> None:
    example = "python train/contrastive.py --config train/configs/demo_clip.yaml --set train.epochs=2"
    options = settings_parser("Train a CLIP- or SigLIP-style dual encoder.", example).parse_args(arguments)
    configure_logging()

    from mllm.contrastive.run import train_clip
    from mllm.contrastive.settings import ContrastiveSettings
    from mllm.settings import load_settings

    settings = load_settings(ContrastiveSettings, options.config, options.overrides)
    print(f"saved {train_clip(settings)}")


if __name__ == "__main__":
    run_command(main)
