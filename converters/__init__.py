"""Writers and Formats: what turns declared tensors into GGUF and ONNX files."""
