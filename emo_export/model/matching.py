"""Which stored tensor is which slot, under every name and in every form that is certain.

A tensor is under its own name, under a training wrapper's prefix, or part of a stack of experts.
What the config determines (buffers, a tied head) may be stored beside, if it agrees. Everything
else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emo_export.errors import EmoExportError
from emo_export.model.buffers import check_buffer, is_buffer
from emo_export.model.config import EmoConfig
from emo_export.model.names import TEMPLATES, Role, Slot, Stack, row_spans, shape_of, slots, stacks
from emo_export.model.notes import Note, NoteKind
from emo_export.model.safetensors_file import LazyTensor

Tensors = dict[str, LazyTensor]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that wrappers put in: DataParallel, torch.compile, FSDP, activation checkpoints.

No tensor of the model has one of them in its name.
"""
HEAD = TEMPLATES[Role.HEAD]


def match(
    config: EmoConfig, stored: Mapping[str, LazyTensor], source: Path
) -> tuple[Tensors, tuple[Note, ...]]:
    """The tensors by the names of their slots, in the order of a forward pass, and what to tell.

    Of data it reads what the config also determines, piece by piece. Raises EmoExportError naming
    the file and the tensor for anything missing, extra, of the wrong shape, or that disagrees.
    """
    expected = {slot.name: shape_of(slot, config) for slot in slots(config)}
    plain, notes = _unwrapped(stored)
    found = {name: plain.pop(name) for name in expected if name in plain}
    for name, tensor in found.items():
        _check_shape(tensor, expected[name])
    for stack in stacks(config):
        if stack.name in plain:
            found |= _split(stack, plain.pop(stack.name), found)
    buffers = {name: plain.pop(name) for name in list(plain) if is_buffer(name, config)}
    head = plain.pop(HEAD, None) if config.tie_word_embeddings else None
    for tensor in plain.values():
        raise EmoExportError(
            f"{tensor.file}: tensor {tensor.name} is extra: config.json has no place for it"
        )
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise EmoExportError(
            f"{source}: tensor {missing[0]} is missing{more}; config.json calls for it"
        )
    for name, tensor in buffers.items():
        check_buffer(name, tensor, config)
    if buffers:
        first = next(iter(buffers.values())).name
        notes.append(Note(NoteKind.BUFFERS, len(buffers), first))
    if head is not None:
        _check_tied(head, found[Slot(Role.EMBED).name], config)
        notes.append(Note(NoteKind.TIED_HEAD, 1, head.name))
    wide = [tensor.name for tensor in stored.values() if tensor.dtype == "F64"]
    if wide:
        notes.append(Note(NoteKind.FLOAT64, len(wide), wide[0]))
    return {name: found[name] for name in expected}, tuple(notes)


def _unwrapped(stored: Mapping[str, LazyTensor]) -> tuple[Tensors, list[Note]]:
    """The tensors under the names that they had before wrapping, with a note for each prefix."""
    plain: Tensors = {}
    wrapped: dict[str, list[str]] = {}
    for name, tensor in stored.items():
        bare, prefix = _bare(name)
        if bare in plain:
            raise EmoExportError(
                f"{tensor.file}: tensors {plain[bare].name} and {name} both are {bare}; "
                "remove the one that is not the model's"
            )
        plain[bare] = tensor
        if prefix:
            wrapped.setdefault(prefix, []).append(name)
    notes = [
        Note(NoteKind.WRAPPED, len(names), names[0], prefix) for prefix, names in wrapped.items()
    ]
    return plain, notes


def _bare(name: str) -> tuple[str, str]:
    """A name without what wrappers put in, and what that was."""
    parts = name.split(".")
    dropped = [part for part in parts if part in WRAPPERS]
    parts = [part for part in parts if part not in WRAPPERS]
    # A module that has the causal model as its `model`: model.model.layers…, model.lm_head.
    while parts[:2] in (["model", "model"], ["model", "lm_head"]):
        dropped.append(parts.pop(0))
    return ".".join(parts), "".join(f"{part}." for part in dropped)


def _check_shape(tensor: LazyTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise EmoExportError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, "
            f"config.json calls for {list(shape)}"
        )


def _split(stack: Stack, tensor: LazyTensor, found: Mapping[str, LazyTensor]) -> Tensors:
    """The experts' matrices of a stack, each a range of its rows."""
    count, rows, cols = stack.shape
    if tensor.shape == (count, cols, rows) and rows != cols:
        raise EmoExportError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, the transpose of "
            f"{list(stack.shape)}, in which other models keep their experts; swap its last two "
            f"dimensions, and those of the layer's other stack"
        )
    _check_shape(tensor, stack.shape)
    parts = {slot.name: tensor.part(*place) for slot, *place in stack.parts()}
    for name in parts:
        if name in found:
            raise EmoExportError(
                f"{tensor.file}: tensor {tensor.name} holds {name}, which {found[name].file} has "
                "as a tensor of its own; remove one of them"
            )
    return parts


def _check_tied(head: LazyTensor, embedding: LazyTensor, config: EmoConfig) -> None:
    """A head that is stored although it is tied must be the embedding, in what float32 tells."""
    _check_shape(head, embedding.shape)
    for start, stop in row_spans(Slot(Role.EMBED), config):
        differs = (head.rows(start, stop) != embedding.rows(start, stop)).any(axis=1)
        if differs.any():
            raise EmoExportError(
                f"{head.file}: tensor {head.name} differs from {embedding.name} "
                f"(row {start + int(np.argmax(differs))} first), but config.json has "
                "tie_word_embeddings: true, which makes one matrix of both; set it to false if the "
                "stored head is the model's, else remove the tensor"
            )
