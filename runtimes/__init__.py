"""Engines that run an exported model: llama.cpp and ONNX Runtime, and text generation on them.

Nothing here imports torch, onnx, transformers or gguf: this part runs on the device.
"""
