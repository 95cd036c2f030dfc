"""A GGUF with fewer experts, made of one that exists: its keys, its types, and its bytes.

What `GgufWeights.packed` gives is written as it is, so that nothing is rounded a second time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.graph import choose_arch, graph_of
from emo_export.converters.gguf.keys import add_keys, copy_keys
from emo_export.converters.gguf.read_back import GgufWeights
from emo_export.converters.gguf.scaled import fit_to_graph
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.errors import EmoExportError
from emo_export.interfaces import Format
from emo_export.model.config import EmoConfig
from emo_export.model.names import Slot, slots
from emo_export.model.product import Product
from emo_export.model.scheme import QuantScheme
from emo_export.spec import Spec

CONTEXT = 64
SMALLEST = {
    "model_type": "emo",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""Of a model that is opened for its tokenizer."""


class CopyingWriter(GgufWriter):
    """Writes a product of the file `source`, whose `weights` are given; holds no tensor."""

    def __init__(
        self, path: Path, product: Product, spec: Spec, source: Path, weights: GgufWeights
    ) -> None:
        """Raises EmoExportError where the file's bytes are not those that the product needs."""
        config, arch = product.config, weights.arch
        choose_arch(config, arch)
        _check_factors(product, source, arch)
        scheme = _scheme_of(spec, product, source, weights)
        super().__init__(path, config, scheme, arch=arch, tokenizer=None, model_name="", context=1)
        self._source = source

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        """The source's own, in their order; the counts of experts are the product's."""
        graph = self._layout.graph
        changed = {
            f"{self.arch}.expert_count": graph.experts,
            f"{self.arch}.expert_used_count": graph.used,
            f"{self.arch}.expert_shared_count": graph.shared,
        }
        copy_keys(writer, self._source, lambda name: True, changed)


class TokenizerAlone(GgufWriter):
    """A file with the tokenizer of the file `source`, and a model of zeros as small as can be.

    To open it takes memory for a few bytes of each token, whatever the size of `source`.
    """

    def __init__(self, path: Path, source: Path, vocab_size: int) -> None:
        config = EmoConfig.from_dict(SMALLEST | {"vocab_size": vocab_size})
        scheme = gguf_scheme("f32", config)
        super().__init__(path, config, scheme, tokenizer=None, model_name="", context=CONTEXT)
        self._source = source

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        """The model's own, and the source's of its tokenizer."""
        add_keys(writer, self._config, self._layout.graph, CONTEXT)
        copy_keys(writer, self._source, lambda name: name.startswith("tokenizer."))


def _scheme_of(spec: Spec, product: Product, source: Path, weights: GgufWeights) -> QuantScheme:
    """The types that the file has: of an expert that is to be chosen, those of the layer's."""
    formats: dict[Slot, Format] = {}
    for slot in slots(product.config):
        name = weights.type_of(_like(slot, product))
        if name not in GGML_FORMATS:
            raise EmoExportError(f"{source}: {slot.name} is {name}, a type that is not written")
        formats[slot] = GGML_FORMATS[name]
    return fit_to_graph(QuantScheme(spec, {}, formats), product.config, weights.arch)


def _like(slot: Slot, product: Product) -> Slot:
    """A slot of the source in whose tensor a slot of the product is."""
    if slot.expert < 0:
        return slot
    shape, ours = product.source.config.layers[slot.layer], product.config.layers[slot.layer]
    forced = slot.expert in ours.forced
    among, place = (shape.forced, ours.forced.index(slot.expert)) if forced else (shape.routed, 0)
    return Slot(slot.role, slot.layer, among[place])


def _check_factors(product: Product, source: Path, arch: str) -> None:
    """Refuse layers whose `down` is stored multiplied by another factor than the product needs."""
    graphs: list[Any] = [graph_of(c, arch) for c in (product.source.config, product.config)]
    for layer, (old, new) in enumerate(zip(*(graph.stacks for graph in graphs), strict=True)):
        if old is None or new is None or max(new.experts) < 0:
            continue
        cut = product.config.layers[layer].is_dense and graphs[0].shared != graphs[1].shared
        if old.factor != new.factor or cut:
            raise EmoExportError(
                f"{source}: layer {layer} is stored for {graphs[0].experts} experts of which a "
                f"token takes {graphs[0].used}, and its bytes would be others with "
                f"{graphs[1].experts} of which it takes {graphs[1].used}; prune the checkpoint, "
                "and export that"
            )
