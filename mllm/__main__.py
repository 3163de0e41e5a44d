"""`python -m mllm`, for launchers that start a module: `torchrun -m mllm train …`."""

from mllm.cli import main

if __name__ == "__main__":
    main()
