"""Subcommands of `mllm`, one file each."""
