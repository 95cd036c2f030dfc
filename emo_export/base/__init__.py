"""Files, processes, threads and sizes: nothing about models."""
