"""EmoConfig: a strict reading of config.json, in which every key is known or refused.

Source: allenai/EMO `configuration_emo.py` and the checks that `modeling_emo.py` makes at run time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from emo_export.config_keys import IGNORED_KEYS, NEUTRAL_ONLY, OPTIONAL_KEYS, REQUIRED_KEYS
from emo_export.errors import EmoExportError

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
        return tuple(e for e in range(self.num_experts) if e not in set(self.forced))

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
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise EmoExportError(f"{path}: is not JSON ({error})") from error
        if not isinstance(raw, dict):
            raise EmoExportError(f"{path}: holds {type(raw).__name__}, expected a JSON object")
        return cls.from_dict(raw, str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> EmoConfig:
        """Check every key of a parsed config.json and resolve defaults as the published code does.

        Raises EmoExportError for a key that is unknown, missing, of the wrong type or inconsistent.
        """
        reader = _Reader(raw, where)
        reader.check_keys()
        theta, scaling = _rope(reader)
        heads = reader.integer("num_attention_heads", 1)
        hidden = reader.integer("hidden_size", 1)
        if "head_dim" not in raw and hidden % heads:
            reader.refuse(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        config = cls(
            vocab_size=reader.integer("vocab_size", 1),
            hidden_size=hidden,
            intermediate_size=reader.integer("intermediate_size", 1),
            num_hidden_layers=reader.integer("num_hidden_layers", 1),
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
            num_experts=reader.integer("num_experts", 0),
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
        if override is None:
            return known if known > 0 else DEFAULT_CONTEXT
        if known > 0 and override > known:
            raise EmoExportError(
                f"--context {override} exceeds max_position_embeddings {known}: "
                "the model was not made for it, ask for less"
            )
        return override


class _Reader:
    """Typed access to a parsed config.json; every error names the file and the key."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def refuse(self, what: str) -> NoReturn:
        raise EmoExportError(f"{self.where}: {what}")

    def check_keys(self) -> None:
        raw = self.raw
        missing = [key for key in REQUIRED_KEYS if raw.get(key) is None]
        if missing:
            self.refuse(f"required key {', '.join(missing)} is missing; it has no safe default")
        if raw["model_type"] != "emo":
            self.refuse(f"model_type is {raw['model_type']!r}; this tool exports 'emo'")
        if raw.get("hidden_act", "silu") != "silu":
            self.refuse(f"hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
        known = IGNORED_KEYS | OPTIONAL_KEYS | set(REQUIRED_KEYS) | set(NEUTRAL_ONLY)
        unknown = sorted(set(raw) - known)
        if unknown:
            self.refuse(
                f"unknown config key {', '.join(unknown)}: it might change what the model computes;"
                " remove it if it does not, or ask for support"
            )
        for key, neutral in NEUTRAL_ONLY.items():
            if key in raw and raw[key] not in neutral:
                self.refuse(f"{key} = {raw[key]!r} is not supported (only {neutral[0]!r})")

    def integer(self, key: str, low: int, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            self.refuse(f"{key} is {value!r}, expected an integer of at least {low}")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self.raw.get(key) is None else self.integer(key, 0)

    def positive(self, key: str) -> float:
        value = self.raw.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            self.refuse(f"{key} is {value!r}, expected a positive number")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(f"{key} is {value!r}, expected true or false")
        return bool(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            self.refuse(f"{key} is {value!r}, expected a token id or a list of them")
        return tuple(ids)

    def int_list(self, key: str, length: int) -> list[int] | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
        ):
            self.refuse(f"{key} is {value!r}, expected {length} integers, one for each layer")
        return list(value)


def _rope(reader: _Reader) -> tuple[float, Mapping[str, Any] | None]:
    """rope_theta and rope_scaling, also from the `rope_parameters` that transformers 5 writes."""
    raw = reader.raw
    theta, scaling = raw.get("rope_theta"), raw.get("rope_scaling")
    parameters = raw.get("rope_parameters")
    if parameters is not None:
        if not isinstance(parameters, dict):
            reader.refuse(f"rope_parameters is {parameters!r}, expected an object")
        rest = {key: value for key, value in parameters.items() if key != "rope_theta"}
        inner = parameters.get("rope_theta", theta)
        if theta is not None and inner != theta:
            reader.refuse(f"rope_theta is {theta} but rope_parameters says {inner}")
        if scaling is not None and scaling != rest:
            reader.refuse("rope_scaling and rope_parameters disagree")
        theta, scaling = inner, rest
    if theta is None:
        reader.refuse("required key rope_theta is missing; it has no safe default")
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not theta > 0:
        reader.refuse(f"rope_theta is {theta!r}, expected a positive number")
    if scaling is not None and not isinstance(scaling, dict):
        reader.refuse(f"rope_scaling is {scaling!r}, expected an object")
    if scaling and scaling.get("rope_type", scaling.get("type", "default")) == "default":
        scaling = None
    return float(theta), scaling or None


def _layers(reader: _Reader) -> tuple[LayerShape, ...]:
    """The counts of each layer, resolved as EmoModel.__init__ resolves them."""
    raw = reader.raw
    count = reader.integer("num_hidden_layers", 1)
    per_tok = reader.integer("num_experts_per_tok", 1)
    shared_all = reader.integer("num_shared_experts", 0)
    experts = reader.int_list("num_experts_per_layer", count)
    shared = reader.int_list("num_shared_experts_per_layer", count)
    if experts is None:
        # The published code reads the per-layer shared counts only beside per-layer expert counts.
        experts, shared = [reader.integer("num_experts", 1)] * count, [shared_all] * count
    elif shared is None:
        shared = [min(shared_all, n) for n in experts]
    active = raw.get("always_active_experts_per_layer")
    if active is None:
        active = [raw.get("always_active_experts") or []] * count
    if not isinstance(active, list) or len(active) != count:
        reader.refuse(f"always_active_experts_per_layer must hold {count} lists, one a layer")
    layers = []
    for index, (n, s, always) in enumerate(zip(experts, shared, active, strict=True)):
        layer = LayerShape(n, s, tuple(always or ()), per_tok)
        if not layer.is_dense:
            _check_layer(layer, index, reader)
        layers.append(layer)
    return tuple(layers)


def _check_layer(layer: LayerShape, index: int, reader: _Reader) -> None:
    always = layer.always_active_experts
    if len(set(always)) != len(always) or not all(
        isinstance(e, int) and 0 <= e < layer.num_experts for e in always
    ):
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


def _check(config: EmoConfig, reader: _Reader) -> None:
    if config.num_attention_heads % config.num_key_value_heads:
        reader.refuse(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if config.head_dim % 2:
        reader.refuse(f"head_dim {config.head_dim} is odd: rotary position embedding needs pairs")
    if any(layer.is_dense for layer in config.layers) and not config.dense_intermediate_size:
        reader.refuse("a layer has no experts but dense_intermediate_size is unset")
    if config.max_position_embeddings == 0:
        reader.refuse("max_position_embeddings is 0, expected a positive number, or -1 for unknown")
    for name, ids in (("eos", config.eos_token_ids), ("pad", (config.pad_token_id,))):
        for token in ids:
            if token is not None and token >= config.vocab_size:
                reader.refuse(f"{name}_token_id {token} must be below {config.vocab_size}")
