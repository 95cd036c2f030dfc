"""The verdict on one target by its engine: in this process, or in one of its own."""
