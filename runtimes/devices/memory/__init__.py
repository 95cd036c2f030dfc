"""How much memory a run takes, and whether a device holds it."""
