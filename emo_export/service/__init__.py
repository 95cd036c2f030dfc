"""An OpenAI-compatible endpoint: what `serve` answers."""
