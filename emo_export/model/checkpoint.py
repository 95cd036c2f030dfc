"""A Hugging Face checkpoint as a mapping of lazy tensors: headers are checked, data is not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_json
from emo_export.base.plain_file import check_plain
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.hub import SMALL_FILES
from emo_export.model.matching import match
from emo_export.model.names import Slot
from emo_export.model.notes import Note
from emo_export.model.reads import Reads
from emo_export.model.safetensors_file import LazyTensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = "pytorch_model*.bin"

CONVERSION = (
    'python -c "import glob, torch; from safetensors.torch import save_file; '
    "save_file({k: v.contiguous().clone() for f in sorted(glob.glob('" + PICKLES + "')) "
    "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
    f"'{SINGLE}')\""
)
"""Makes a safetensors file of PyTorch's pickles; clones, since tied tensors share memory there."""


class Checkpoint(Mapping[str, LazyTensor]):
    """An EMO checkpoint: its config and every tensor that the config calls for, and no other.

    It is the source of an export, experts numbered as stored; `raw` is its config.json. Keys are
    the published names, under whatever names and in whatever stacks the files hold the tensors;
    `notes` tell what was unusual.
    """

    def __init__(
        self,
        path: Path,
        raw: Mapping[str, Any],
        config: EmoConfig,
        tensors: Mapping[str, LazyTensor],
        notes: tuple[Note, ...] = (),
    ) -> None:
        self.path, self.raw, self.config, self.notes = path, raw, config, notes
        self._tensors = tensors

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def at(self, slot: Slot) -> LazyTensor:
        """The tensor of a slot."""
        return self._tensors[slot.name]

    def heard_by(self, reads: Reads) -> Checkpoint:
        """The same, whose bytes `reads` hears of as they are read."""
        tensors = {name: replace(t, on_read=reads.feed) for name, t in self._tensors.items()}
        return Checkpoint(self.path, self.raw, self.config, tensors, self.notes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order of name."""
        return sorted({tensor.file for tensor in self._tensors.values()})

    @property
    def pruning(self) -> Mapping[str, Any] | None:
        """`pruning_metadata.json` of a pruned checkpoint, if it has one."""
        path = self.path / "pruning_metadata.json"
        return read_json(path) if path.is_file() else None

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a local folder and account for every tensor.

        Raises EmoExportError naming the file and the tensor for anything missing, extra, truncated,
        of the wrong shape or type, or stored beside the config and unlike it.
        """
        if not path.is_dir():
            raise EmoExportError(f"{path}: is not a folder with a checkpoint")
        check_plain(path, SMALL_FILES)
        config_path = path / "config.json"
        if not config_path.is_file():
            what = "is it a Hugging Face checkpoint?"
            if (path / "manifest.json").is_file():
                what = "it is a package that export made, and this takes a checkpoint"
            raise EmoExportError(f"{path}: has no config.json; {what}")
        raw = read_json(config_path)
        config = EmoConfig.from_dict(raw, str(config_path))
        source = path / INDEX if (path / INDEX).is_file() else path / SINGLE
        tensors, notes = match(config, _open_tensors(path), source)
        checkpoint = cls(path, raw, config, tensors, notes)
        _ = checkpoint.pruning  # a damaged file is refused now, not after hours of work
        return checkpoint


def _open_tensors(path: Path) -> dict[str, LazyTensor]:
    index = path / INDEX
    if not index.is_file():
        if not (path / SINGLE).is_file():
            if any(path.glob(PICKLES)):
                raise EmoExportError(
                    f"{path}: has its weights as {PICKLES} alone, and a pickle is not read, since "
                    f"it can run code; make {SINGLE} of it in that folder, with memory for all of "
                    f"it: {CONVERSION}"
                )
            raise EmoExportError(
                f"{path}: has neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read"
            )
        return read_header(path / SINGLE)
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise EmoExportError(f"{index}: has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise EmoExportError(
                f"{index}: names shard {shard!r} for {name}, which is not a plain file name"
            )
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= _open_shard(index, shard, weight_map)
    for name, shard in weight_map.items():
        if name not in tensors:
            raise EmoExportError(f"{path / shard}: does not hold tensor {name} as {INDEX} says")
    return tensors


def _open_shard(index: Path, shard: str, weight_map: Mapping[str, str]) -> dict[str, LazyTensor]:
    file = index.parent / shard
    # os.path, because Path.is_file raises for a name that is too long.
    if not os.path.isfile(file):  # noqa: PTH113
        first = next(name for name, value in weight_map.items() if value == shard)
        raise EmoExportError(
            f"{index}: names shard {shard}, which isn't there (needed for {first}); fetch it"
        )
    held = read_header(file)
    for name in held:
        if weight_map.get(name) != shard:
            raise EmoExportError(f"{file}: holds tensor {name}, which {INDEX} does not place there")
    return held
