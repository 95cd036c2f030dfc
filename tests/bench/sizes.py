"""Sizes of our recipes beside llama-quantize's at the released model's shape, without weights.

    python -m tests.bench.sizes [--experts 128 --experts 32 --experts 16] [--type q4_k_m]

Recipes differ in which part gets more bits, so which file is smaller depends on how many experts
were kept. The real llama-quantize (tests/kit/llama_tools.py) is asked with --dry-run, on an f16
file of 16 layers that has its header and no data: a sparse file, which takes no disk.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.model.config import EmoConfig
from tests.bench.synthetic import Size, config_of
from tests.kit.llama_tools import tools

MIB = 1 << 20


def writer(path: Path, config: EmoConfig, type_name: str) -> GgufWriter:
    scheme = gguf_scheme(type_name, config)
    return GgufWriter(path, config, scheme, tokenizer=None, model_name="x", context=4096)


def by_peer(source: Path, type_name: str) -> float:
    """MiB of tensors that llama-quantize would write."""
    done = tools().run("llama-quantize", "--dry-run", source, type_name)
    found = re.search(r"quant size\s*=\s*([\d.]+) MiB", done.stdout + done.stderr)
    if found is None:
        raise click.ClickException(f"llama-quantize said no size:\n{done.stderr[-500:]}")
    return float(found[1])


@click.command()
@click.option("--experts", "counts", multiple=True, type=int, default=(128, 32, 16))
@click.option("--type", "types", multiple=True, default=("q4_k_m", "q3_k_m"))
def main(counts: tuple[int, ...], types: tuple[str, ...]) -> None:
    """Print MiB of tensors, ours and theirs."""
    click.echo("experts  type      ours MiB  llama-quantize MiB  ratio")
    with tempfile.TemporaryDirectory(prefix="emo-export-sizes-") as folder:
        for count in counts:
            config = EmoConfig.from_dict(config_of(Size(2048, 1024, 16, count, 100352)))
            source = Path(folder) / f"{count}.gguf"
            header = writer(source, config, "f16")
            header.open()
            header.abort()
            for name in types:
                declared = writer(source, config, name).declarations()
                ours, theirs = sum(d.nbytes for d in declared) / MIB, by_peer(source, name)
                click.echo(f"{count:7}  {name:8} {ours:9.1f}  {theirs:18.1f}  {ours / theirs:.3f}")
            source.unlink()


if __name__ == "__main__":
    main()
