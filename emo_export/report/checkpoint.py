"""What was unusual in a checkpoint, in sentences."""

from __future__ import annotations

from emo_export.model.notes import Note, NoteKind


def note(found: Note) -> str:
    """What was found and what becomes of it."""
    which = (
        f"{found.first}" if found.count == 1 else f"{found.count} tensors (first: {found.first})"
    )
    is_, has = ("is", "has") if found.count == 1 else ("are", "have")
    if found.kind == NoteKind.WRAPPED:
        return (
            f"{which} {has} {found.prefix} in the name, as a wrapper of training puts it there; "
            "read as if without"
        )
    if found.kind == NoteKind.BUFFERS:
        return f"{which} {is_} stored, and {is_} what config.json gives anyway"
    if found.kind == NoteKind.TIED_HEAD:
        return f"{which} {is_} stored beside tie_word_embeddings: true, and equals the embedding"
    if found.kind == NoteKind.FLOAT64:
        return f"{which} {is_} stored as float64, and read as float32"
    raise ValueError(f"{found.kind} is no kind of note that is known")
