"""Align a projector (stage 1) or tune on instructions (stage 2): the config says which.

python train/finetune.py --config train/configs/demo_stage1.yaml
deepspeed train/finetune.py --config train/configs/demo_stage2.yaml
"""

from collections.abc import Sequence

from mllm.commands.shared import configure_logging, run_command, settings_parser


def main(arguments: Sequence[str]) -> None:
    example = "deepspeed train/finetune.py --config train/configs/demo_stage2.yaml --set optim.lr=1e-5"
    parser = settings_parser("Train a multimodal LLM: alignment (stage 1) or instruction tuning (stage 2).", example)
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="end, resumable, when this many steps are done")
    options = parser.parse_args(arguments)
    configure_logging()

    from mllm.finetune.run import finetune
    from mllm.finetune.settings import FinetuneSettings
    from mllm.settings import load_settings

    settings = load_settings(FinetuneSettings, options.config, options.overrides)
    final = finetune(settings, options.stop_after)
    if final is not None:
        print(f"saved {final}")


if __name__ == "__main__":
    run_command(main)
