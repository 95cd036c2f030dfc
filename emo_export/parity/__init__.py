"""Golden logits, the comparison of an engine with them, and the verdict."""
