"""Speed, memory and bandwidth of an exported model, and what this machine has."""
