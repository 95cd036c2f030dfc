"""A synthetic EMO checkpoint of any size, written in a stream: random weights, real layout.

python -m tests.bench.synthetic DIR --hidden 2048 --width 1024 --layers 8 --experts 32
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from emo_export.model.checkpoint import INDEX
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Role, Slot, shape_of, slots
from tests.kit.paths import GOLDEN

SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class Size:
    hidden: int = 1024
    width: int = 512
    layers: int = 4
    experts: int = 64
    vocab: int = 8192

    @property
    def stack_bytes(self) -> int:
        """Bytes in float32 of the largest single expert stack of a layer (E, F, D)."""
        return self.experts * self.width * self.hidden * 4


def config_of(size: Size) -> dict[str, object]:
    base: dict[str, object] = json.loads((GOLDEN / "base" / "config.json").read_text())
    return base | {
        "hidden_size": size.hidden,
        "intermediate_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": max(1, size.hidden // 128),
        "num_key_value_heads": max(1, size.hidden // 128),
        "num_experts": size.experts,
        "num_experts_per_tok": min(8, size.experts),
        "vocab_size": size.vocab,
        "max_position_embeddings": 4096,
    }


def write_checkpoint(folder: Path, size: Size) -> int:
    """Write the checkpoint and return its bytes of weights."""
    folder.mkdir(parents=True)
    raw = config_of(size)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(GOLDEN / "base" / name, folder / name)
    config = EmoConfig.from_dict(raw)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 22, dtype=np.float32)
    shards = list(_shards(config))
    weight_map: dict[str, str] = {}
    for index, held in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, held, config, noise, rng)
        weight_map |= {slot.name: file for slot in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return sum(4 * int(np.prod(shape_of(slot, config))) for slot in slots(config))


def _shards(config: EmoConfig) -> Iterator[list[Slot]]:
    held: list[Slot] = []
    total = 0
    for slot in slots(config):
        nbytes = 4 * int(np.prod(shape_of(slot, config)))
        if held and total + nbytes > SHARD_BYTES:
            yield held
            held, total = [], 0
        held.append(slot)
        total += nbytes
    yield held


def _write_shard(
    path: Path, held: list[Slot], config: EmoConfig, noise: np.ndarray, rng: np.random.Generator
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for slot in held:
        shape = shape_of(slot, config)
        end = offset + 4 * int(np.prod(shape))
        header[slot.name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for slot in held:
            file.write(_weight(slot, config, noise, int(rng.integers(1 << 21))).tobytes())


def _weight(slot: Slot, config: EmoConfig, noise: np.ndarray, start: int) -> np.ndarray:
    """Rows cut from a block of noise: as random as a quantiser needs, and fast to make."""
    shape = shape_of(slot, config)
    if slot.role in VECTORS:
        return np.ones(shape, np.float32)
    count = int(np.prod(shape))
    gain = (
        0.3 if slot.role == Role.ROUTER else 1.0 if slot.role == Role.EMBED else shape[-1] ** -0.5
    )
    return np.resize(noise[start:], count).reshape(shape) * np.float32(gain)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--hidden", default=2048, show_default=True)
@click.option("--width", default=1024, show_default=True)
@click.option("--layers", default=8, show_default=True)
@click.option("--experts", default=32, show_default=True)
@click.option("--vocab", default=100352, show_default=True)
def main(folder: Path, hidden: int, width: int, layers: int, experts: int, vocab: int) -> None:
    """Write a synthetic checkpoint into FOLDER."""
    size = Size(hidden, width, layers, experts, vocab)
    click.echo(f"{folder}: {write_checkpoint(folder, size) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
