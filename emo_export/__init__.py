"""emo-export: EMO mixture-of-experts checkpoints to GGUF and ONNX, with proof of parity."""

__version__ = "0.1.0"
