"""`mllm data report`: what a recipe's samples are like, as one HTML page."""
