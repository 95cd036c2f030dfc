"""Where the command line gets an importance matrix: calibration text, a file, an export folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emo_export.errors import EmoExportError

if TYPE_CHECKING:
    from emo_export.calibrate import Calibration
    from emo_export.checkpoint import Checkpoint
    from emo_export.export import Measure
    from emo_export.importance import ImportanceMatrix

MOST_NAMED = 8


def start_calibration(
    files: Sequence[Path], tokens: int, checkpoint: Checkpoint, context: int | None, device: str
) -> Calibration:
    """A calibration over the first tokens of the files, to be collected in the pass to come.

    Raises EmoExportError for a checkpoint without tokenizer or files without text.
    """
    from emo_export.calibrate import Calibration
    from emo_export.importance import CHUNK
    from emo_export.texts import open_tokenizer, sequences_of, text_files

    config = checkpoint.config
    encode = open_tokenizer(checkpoint.path, config.vocab_size)
    if encode is None:
        raise EmoExportError(
            f"--calibration needs the checkpoint's tokenizer, and {checkpoint.path} has no "
            "tokenizer.json"
        )
    found = text_files(files)
    length = min(CHUNK, config.context_length(context))
    sequences = sequences_of(found, encode, tokens, length)
    if not sequences:
        raise EmoExportError("--calibration: the text is too short; give at least two tokens")
    # A name that is no UTF-8 could not be written into the files.
    source = ", ".join(file.name.encode("utf-8", "replace").decode() for file in found)
    return Calibration(config, sequences, source, device)


def read_importance(path: Path, checkpoint: Checkpoint, arch: str | None) -> ImportanceMatrix:
    """An importance matrix file of llama-imatrix or of an earlier export."""
    from emo_export.converters.gguf_graph import choose_arch
    from emo_export.converters.imatrix import read_imatrix

    return read_imatrix(path, checkpoint.config, choose_arch(checkpoint.config, arch))


def measure_of(
    found: Calibration | ImportanceMatrix | None, checkpoint: Checkpoint, arch: str | None
) -> Measure | None:
    """The importance for an export, which is saved in its folder as imatrix.gguf."""
    if found is None:
        return None
    from emo_export.converters.gguf_graph import choose_arch
    from emo_export.converters.imatrix import write_imatrix
    from emo_export.export import Measure
    from emo_export.importance import IMATRIX

    graph = choose_arch(checkpoint.config, arch)
    matrix = matrix_of(found)

    def save(folder: Path) -> None:
        write_imatrix(folder / IMATRIX, matrix, checkpoint.config, graph)

    return Measure(found, save)


def matrix_of(found: Calibration | ImportanceMatrix) -> ImportanceMatrix:
    """The matrix that a calibration fills, or the one that was read."""
    from emo_export.importance import ImportanceMatrix

    return found if isinstance(found, ImportanceMatrix) else found.matrix


def warn_unseen(matrix: ImportanceMatrix) -> None:
    """Name the experts that the calibration text never reached."""
    unseen = list(dict.fromkeys((slot.layer, slot.expert) for slot in matrix.unseen()))
    if not unseen:
        return
    named = ", ".join(f"{expert} of layer {layer}" for layer, expert in unseen[:MOST_NAMED])
    more = f" and {len(unseen) - MOST_NAMED} more" if len(unseen) > MOST_NAMED else ""
    click.echo(
        f"warning: {len(unseen)} expert{'s' * (len(unseen) > 1)} saw no token of {matrix.source}: "
        f"quantised with even weights ({named}{more}); more text, or of more kinds, helps",
        err=True,
    )


def importance_of_folder(
    folder: Path, targets: Mapping[str, Mapping[str, Any]], checkpoint: Checkpoint
) -> ImportanceMatrix | None:
    """The matrix that the targets of an exported folder were quantised with, or None.

    Raises EmoExportError when the manifest, or a file that lies alone, names one that is not there.
    """
    for spec, entry in targets.items():
        if "importance" in entry:
            path = folder / str(entry["importance"]["file"])
            if not path.is_file():
                raise EmoExportError(
                    f"{path}: is missing; {spec} was quantised with this importance matrix, and "
                    "its reference can't be computed anew without"
                )
            return read_importance(path, checkpoint, entry.get("arch"))
    return None


def unrepeatable(
    folder: Path, targets: Mapping[str, Mapping[str, Any]], checkpoint: Checkpoint
) -> dict[str, str]:
    """The GGUF files away from a manifest whose quantisation can't be repeated, and why not."""
    found = {}
    for spec, entry in targets.items():
        path = folder / str(entry["path"])
        if "recipe" not in entry and spec.startswith("gguf") and path.is_file():
            reason = _unlike_ours(path, spec, checkpoint)
            if reason:
                found[spec] = (
                    f"compared with the original alone: {reason}, so what it should compute can't "
                    "be told from the checkpoint"
                )
    return found


def _unlike_ours(path: Path, spec: str, checkpoint: Checkpoint) -> str:
    """What a GGUF has that an export by the type's recipe alone would not have, or nothing."""
    from emo_export.cli_make import scheme_of
    from emo_export.converters.gguf_layout import Layout
    from emo_export.gguf_header import read_gguf

    file = read_gguf(path)
    if any(key.startswith("quantize.imatrix.") for key in file.keys):
        return "it was quantised with an importance matrix"
    arch = str(file.keys.get("general.architecture"))
    declared = Layout(checkpoint.config, arch, scheme_of(spec, checkpoint, {"arch": arch})).declared
    types = {name: kind.name for name, _, kind in declared}
    for tensor in file.tensors:
        wanted = types.get(tensor.name, tensor.type.lower())
        if tensor.type.lower() != wanted:
            return (
                f"{tensor.name} is {tensor.type.lower()} where our {spec} has {wanted} (another "
                "tool's mix, or --tensor-type)"
            )
    return ""
