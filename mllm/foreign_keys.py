"""What other frameworks call our settings, so that the error for a key of theirs can name ours."""

# A key of LLaVA, LLaMA-Factory, ms-swift or TRL → our setting, with a remark or a value behind it.
OURS: dict[str, str] = {}
