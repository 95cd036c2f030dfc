"""What EMO is: its config, tensor names, checkpoints and recipes."""
