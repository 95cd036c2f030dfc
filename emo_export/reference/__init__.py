"""The forward pass in torch."""
