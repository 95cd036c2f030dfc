"""Safetensors checkpoints, as Hugging Face stores them."""
