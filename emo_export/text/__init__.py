"""Text as token ids: which files, which documents, and which of their tokens are taken."""
