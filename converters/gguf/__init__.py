"""GGUF files whose graph in llama.cpp computes what EMO computes."""
