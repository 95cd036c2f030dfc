"""ONNX decoders with dynamic expert gather, and the files beside them."""
