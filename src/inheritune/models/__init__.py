"""Hugging Face causal language models: where their parts are, the paper's sizes, reading and writing them."""
