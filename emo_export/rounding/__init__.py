"""Putting matrices on a grid, column by column, so that what they compute changes little."""
