"""The expert block as a graph: QMoE, one If per expert, or standard operators."""
