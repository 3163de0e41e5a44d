"""`mllm serve`: an OpenAI-compatible server with dynamic batching and a small web page."""
