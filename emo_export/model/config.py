"""EmoConfig: a strict reading of config.json, in which every key is known or refused.

Source: allenai/EMO `configuration_emo.py` and the checks that `modeling_emo.py` makes at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.model.config_reader import MAX_EXPERTS, MAX_LAYERS, ConfigReader, read_rope

DEFAULT_CONTEXT = 4096
"""Positions assumed when the config says -1 and no `--context` is given (the released models')."""


@dataclass(frozen=True)
class LayerShape:
    """The experts of one layer: E in all, of which S shared (the last) and some always active."""

    num_experts: int
    num_shared_experts: int
    always_active_experts: tuple[int, ...]
    num_experts_per_tok: int

    @property
    def is_dense(self) -> bool:
        """No experts: the layer is one MLP of width `dense_intermediate_size`."""
        return self.num_experts == 0

    @property
    def forced(self) -> tuple[int, ...]:
        """Experts that every token uses: the always active, else the shared (in that order)."""
        if self.always_active_experts:
            return self.always_active_experts
        return tuple(range(self.num_experts - self.num_shared_experts, self.num_experts))

    @property
    def routed(self) -> tuple[int, ...]:
        """Experts that a token may choose."""
        forced = set(self.forced)
        return tuple(e for e in range(self.num_experts) if e not in forced)

    @property
    def num_routed_per_tok(self) -> int:
        """How many of the routed experts a token uses."""
        return self.num_experts_per_tok - len(self.forced)


@dataclass(frozen=True)
class EmoConfig:
    """What the model computes. Field names are Hugging Face's; `layers` resolves the counts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    attention_bias: bool
    tie_word_embeddings: bool
    norm_topk_prob: bool
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    dense_intermediate_size: int | None
    dense_mlp_bias: bool
    layers: tuple[LayerShape, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @classmethod
    def from_json(cls, path: Path) -> EmoConfig:
        """Read a config.json. Raises EmoExportError naming the file, the key and the remedy."""
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> EmoConfig:
        """Check every key of a parsed config.json and resolve defaults as the published code does.

        Raises EmoExportError for a key that is unknown, missing, of the wrong type or inconsistent.
        """
        reader = ConfigReader(raw, where)
        reader.check_keys()
        theta, scaling = read_rope(reader)
        heads = reader.integer("num_attention_heads", 1)
        hidden = reader.integer("hidden_size", 1)
        if "head_dim" not in raw and hidden % heads:
            reader.refuse(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        config = cls(
            vocab_size=reader.integer("vocab_size", 1),
            hidden_size=hidden,
            intermediate_size=reader.integer("intermediate_size", 1),
            num_hidden_layers=reader.integer("num_hidden_layers", 1, high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=reader.integer("num_key_value_heads", 1, default=heads),
            head_dim=reader.integer("head_dim", 2, default=hidden // heads),
            max_position_embeddings=reader.integer("max_position_embeddings", -1),
            rms_norm_eps=reader.positive("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            attention_bias=reader.boolean("attention_bias"),
            tie_word_embeddings=reader.boolean("tie_word_embeddings"),
            norm_topk_prob=reader.boolean("norm_topk_prob"),
            num_experts=reader.integer("num_experts", 0, high=MAX_EXPERTS),
            num_experts_per_tok=reader.integer("num_experts_per_tok", 1),
            num_shared_experts=reader.integer("num_shared_experts", 0),
            dense_intermediate_size=reader.optional_integer("dense_intermediate_size"),
            dense_mlp_bias=reader.boolean("dense_mlp_bias"),
            layers=_layers(reader),
            bos_token_id=reader.optional_integer("bos_token_id"),
            eos_token_ids=reader.token_ids("eos_token_id"),
            pad_token_id=reader.optional_integer("pad_token_id"),
        )
        _check(config, reader)
        return config

    def context_length(self, override: int | None = None) -> int:
        """Positions to export: the override, else the config's, else DEFAULT_CONTEXT for -1."""
        known = self.max_position_embeddings
        if override is not None and override < 1:
            raise EmoExportError(f"--context {override}: expected at least 1 position")
        if override is None:
            return known if known > 0 else DEFAULT_CONTEXT
        if known > 0 and override > known:
            raise EmoExportError(
                f"--context {override} exceeds max_position_embeddings {known}: "
                "the model was not made for it, ask for less"
            )
        return override


def _layers(reader: ConfigReader) -> tuple[LayerShape, ...]:
    """The counts of each layer, resolved as EmoModel.__init__ resolves them."""
    raw = reader.raw
    count = reader.integer("num_hidden_layers", 1, high=MAX_LAYERS)
    per_tok = reader.integer("num_experts_per_tok", 1)
    shared_all = reader.integer("num_shared_experts", 0)
    experts = reader.int_list("num_experts_per_layer", count)
    shared = reader.int_list("num_shared_experts_per_layer", count)
    if experts is None:
        # The published code reads the per-layer shared counts only beside per-layer expert counts.
        experts = [reader.integer("num_experts", 1, high=MAX_EXPERTS)] * count
        shared = [shared_all] * count
    elif shared is None:
        shared = [min(shared_all, n) for n in experts]
    if sum(experts) > MAX_EXPERTS:
        reader.refuse(f"{sum(experts)} experts in all layers are above the limit of {MAX_EXPERTS}")
    key = "always_active_experts_per_layer"
    active = raw.get(key)
    if active is None:
        key = "always_active_experts"
        active = [raw.get("always_active_experts")] * count
    if not isinstance(active, list) or len(active) != count:
        reader.refuse(f"always_active_experts_per_layer must hold {count} lists, one a layer")
    layers = []
    for index, (n, s, always) in enumerate(zip(experts, shared, active, strict=True)):
        # The published code never looks at the shared count of a dense layer.
        layer = LayerShape(n, s if n else 0, reader.expert_ids(key, always), per_tok)
        if not layer.is_dense:
            _check_layer(layer, index, reader)
        layers.append(layer)
    return tuple(layers)


def _check_layer(layer: LayerShape, index: int, reader: ConfigReader) -> None:
    always = layer.always_active_experts
    if len(set(always)) != len(always) or max(always, default=-1) >= layer.num_experts:
        reader.refuse(
            f"always_active_experts {list(always)} of layer {index} must be distinct "
            f"and below its {layer.num_experts} experts"
        )
    if layer.num_shared_experts > layer.num_experts:
        reader.refuse(
            f"layer {index} has {layer.num_experts} experts but {layer.num_shared_experts} shared"
        )
    if not 0 <= layer.num_routed_per_tok <= len(layer.routed):
        reader.refuse(
            f"num_experts_per_tok {layer.num_experts_per_tok} does not fit layer {index}: "
            f"{layer.num_experts} experts of which {len(layer.forced)} are always taken; lower it"
        )
    if reader.raw.get("norm_topk_prob") and layer.forced:
        reader.refuse(
            "norm_topk_prob with shared or always active experts is an error in the published code"
        )


def _check(config: EmoConfig, reader: ConfigReader) -> None:
    if config.num_attention_heads % config.num_key_value_heads:
        reader.refuse(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if config.head_dim % 2 or config.head_dim == 0:
        reader.refuse(
            f"head_dim {config.head_dim}: rotary position embedding needs an even number, 2 or more"
        )
    if any(layer.is_dense for layer in config.layers) and not config.dense_intermediate_size:
        reader.refuse("a layer has no experts but dense_intermediate_size is unset")
    for key, value, most in (
        ("rope_theta", config.rope_theta, 1e12),
        ("rms_norm_eps", config.rms_norm_eps, 1.0),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
    ):
        if value > most:
            reader.refuse(f"{key} is {value}, which is above {most:g}: damaged?")
    kind = (config.rope_scaling or {}).get("rope_type", (config.rope_scaling or {}).get("type"))
    if kind == "dynamic" and config.max_position_embeddings < 0:
        reader.refuse("rope_scaling dynamic depends on max_position_embeddings, which is -1 here")
    if config.max_position_embeddings == 0:
        reader.refuse("max_position_embeddings is 0, expected a positive number, or -1 for unknown")
    special = {
        "bos": (config.bos_token_id,),
        "eos": config.eos_token_ids,
        "pad": (config.pad_token_id,),
    }
    for name, ids in special.items():
        for token in ids:
            if token is not None and token >= config.vocab_size:
                reader.refuse(f"{name}_token_id {token} must be below {config.vocab_size}")
