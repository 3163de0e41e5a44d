"""Generated pictures judged: by rules, by a multimodal LLM, by a dual encoder, and shown on a page."""
