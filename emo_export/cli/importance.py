"""Where the command line gets an importance matrix: calibration text, a file, an export folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emo_export.errors import EmoExportError
from emo_export.files.manifest import verify

if TYPE_CHECKING:
    from emo_export.export import Measure
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.importance import ImportanceMatrix
    from emo_export.reference.calibrate import Calibration

MOST_NAMED = 8


def start_calibration(
    files: Sequence[Path], tokens: int, checkpoint: Checkpoint, context: int | None, device: str
) -> Calibration:
    """A calibration over the first tokens of the files, to be collected in the pass to come.

    Raises EmoExportError for a checkpoint without tokenizer or files without text.
    """
    from emo_export.model.importance import CHUNK
    from emo_export.model.texts import named, open_tokenizer, sequences_of, text_files
    from emo_export.reference.calibrate import Calibration

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
    return Calibration(config, sequences, named(found), device)


def read_importance(path: Path, checkpoint: Checkpoint, arch: str | None) -> ImportanceMatrix:
    """An importance matrix file of llama-imatrix or of an earlier export."""
    from emo_export.converters.gguf.graph import choose_arch
    from emo_export.converters.gguf.imatrix import read_imatrix

    return read_imatrix(path, checkpoint.config, choose_arch(checkpoint.config, arch))


def measure_of(
    found: Calibration | ImportanceMatrix | None, checkpoint: Checkpoint, arch: str | None
) -> Measure | None:
    """The importance for an export, which is saved in its folder as imatrix.gguf."""
    if found is None:
        return None
    from emo_export.converters.gguf.graph import choose_arch
    from emo_export.converters.gguf.imatrix import write_imatrix
    from emo_export.export import Measure
    from emo_export.model.importance import IMATRIX

    graph = choose_arch(checkpoint.config, arch)
    matrix = matrix_of(found)

    def save(folder: Path) -> None:
        write_imatrix(folder / IMATRIX, matrix, checkpoint.config, graph)

    return Measure(found, save)


def matrix_of(found: Calibration | ImportanceMatrix) -> ImportanceMatrix:
    """The matrix that a calibration fills, or the one that was read."""
    from emo_export.model.importance import ImportanceMatrix

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
            problems = verify(folder, only=str(entry["importance"]["file"]))
            if problems:
                raise EmoExportError(f"{problems[0]}; {spec} was quantised with what it was")
            return read_importance(path, checkpoint, entry.get("arch"))
    return None


def unrepeatable(
    folder: Path, targets: Mapping[str, Mapping[str, Any]], checkpoint: Checkpoint
) -> dict[str, str]:
    """The GGUF files away from a manifest whose quantisation can't be repeated, and why not."""
    found = {}
    for spec, entry in targets.items():
        path = folder / str(entry["path"])
        if not spec.startswith("gguf") or not path.is_file():
            continue
        reason = _unlike_ours(path, spec, checkpoint, entry)
        if reason and "recipe" in entry:
            raise EmoExportError(f"{path}: is not what manifest.json says: {reason}")
        if reason:
            found[spec] = (
                f"compared with the original alone: {reason}, so what it should compute can't be "
                "told from the checkpoint"
            )
    return found


def _unlike_ours(path: Path, spec: str, checkpoint: Checkpoint, entry: Mapping[str, Any]) -> str:
    """What a GGUF has that an export with this entry's recipe would not have, or nothing."""
    from emo_export.cli.make import scheme_of
    from emo_export.converters.gguf.layout import Layout
    from emo_export.files.gguf_header import read_gguf

    file = read_gguf(path)
    measured = any(key.startswith("quantize.imatrix.") for key in file.keys)
    if measured and "importance" not in entry:
        return "it was quantised with an importance matrix"
    arch = str(file.keys.get("general.architecture"))
    if entry.get("arch", arch) != arch:
        return f"its architecture is {arch}"
    scheme = scheme_of(spec, checkpoint, {**entry, "arch": arch})
    declared = Layout(checkpoint.config, arch, scheme).declared
    types = {name: kind.name for name, _, kind in declared}
    for tensor in file.tensors:
        wanted = types.get(tensor.name, tensor.type.lower())
        if tensor.type.lower() != wanted:
            return (
                f"{tensor.name} is {tensor.type.lower()} where our {spec} has {wanted} (another "
                "tool's mix, or --tensor-type)"
            )
    return ""
