"""A stand-in for EMO in Hugging Face transformers: an OLMoE of the same shape, random weights.

EMO's own code there needs an old transformers; OLMoE has the same attention and experts (all of
them routed, and norms of q and k besides), so a token reads and multiplies as much. The weights are
bfloat16 from the start. For timing only: its logits mean nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.read_per_token import check_olmoe
from emo_export.interfaces import F32, Ids
from emo_export.model.config import EmoConfig

INSTALL = "pip install transformers torch"
DECODE_WAYS = ("eager", "grouped_mm", "batched_mm")
PREFILL_WAYS = ("eager", "grouped_mm")  # batched_mm copies an expert for every token
TRIAL_TOKENS, TRIALS = 64, 2
NOISE = 1 << 22


class OlmoeStandIn:
    """The stand-in as a Runtime, on the CPU.

    transformers has several ways to compute experts. Each is timed once, and the fastest is taken,
    for prefill and for decode apart (`describe` says which).
    """

    name = "transformers"

    def __init__(self, config: Path, threads: int) -> None:
        """`config` is a config.json of EMO. Raises MissingDependencyError without transformers."""
        shape = EmoConfig.from_json(config)
        check_olmoe(shape, config)
        torch.set_num_threads(threads)
        self.vocab_size = shape.vocab_size
        self.context_length = shape.context_length()
        self._threads = threads
        self._transformers = _import_transformers()
        self._model = _build(self._transformers, shape)
        self._cache: Any = None
        self._length = 0
        self._way = ""
        self._ways = {"prefill": self._fastest(PREFILL_WAYS, TRIAL_TOKENS)}
        self._ways["decode"] = self._fastest(DECODE_WAYS, 1)
        self.reset()

    def _fastest(self, ways: Iterable[str], tokens: int) -> str:
        """The way with the shortest of a few passes over so many tokens."""
        ids = torch.arange(tokens)[None] % self.vocab_size
        found = {}
        for way in ways:
            self.reset()
            self._take(way)
            seconds = []
            for _ in range(TRIALS):
                start = time.perf_counter()
                self._step(ids)
                seconds.append(time.perf_counter() - start)
            found[way] = min(seconds)
        return min(found, key=lambda way: found[way])

    def _take(self, way: str) -> None:
        if way != self._way:
            self._model.set_experts_implementation(way)
            self._way = way

    @torch.inference_mode()
    def _step(self, ids: torch.Tensor, kept: int = 1) -> torch.Tensor:
        """Token ids (1, T) after the cache -> logits (1, kept, V), of all for 0."""
        out = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=kept
        )
        self._cache = out.past_key_values
        logits: torch.Tensor = out.logits
        return logits

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        """Token ids (T,) appended to the cached sequence -> logits (T, V), or (1, V) of the last.

        Raises EmoExportError beyond `context_length`.
        """
        if self._length + len(ids) > self.context_length:
            raise EmoExportError(
                f"{len(ids)} tokens after {self._length} exceed the context of "
                f"{self.context_length} tokens"
            )
        self._take(self._ways["decode" if len(ids) == 1 else "prefill"])
        logits = self._step(torch.from_numpy(ids)[None], 1 if last else 0)
        self._length += len(ids)
        result: F32 = logits[0].float().numpy()
        return result

    def reset(self) -> None:
        """Empty the KV cache."""
        self._cache, self._length = None, 0

    def close(self) -> None:
        """Free the model."""
        self._model = self._cache = None

    def describe(self) -> Mapping[str, str]:
        """Engine, version and settings that the figures of this runtime depend on."""
        return {
            "engine": "OLMoE of this shape in transformers",
            "version": f"transformers {self._transformers.__version__}, torch {torch.__version__}",
            "experts": f"{self._ways['prefill']} in prefill, {self._ways['decode']} in decode",
            "KV cache": "bf16",
            "threads": str(self._threads),
            "context": str(self.context_length),
        }


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(f"--olmoe-bf16 needs transformers: {INSTALL}") from error
    if not hasattr(transformers.PreTrainedModel, "set_experts_implementation"):
        raise MissingDependencyError(
            f"--olmoe-bf16 needs transformers 5 or newer, {transformers.__version__} is installed: "
            'pip install "transformers>=5"'
        )
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


@torch.no_grad()
def _build(transformers: Any, shape: EmoConfig) -> Any:
    """The model with its weights made in place: nothing is ever float32 but the rotary table."""
    config = transformers.OlmoeConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
        max_position_embeddings=shape.context_length(),
        rms_norm_eps=shape.rms_norm_eps,
        tie_word_embeddings=shape.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        pad_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.OlmoeForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    model.tie_weights()
    # Its table is not among the weights, so to_empty left it unset.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for weight in model.parameters():
        _fill(weight, noise)
    return model


def _fill(weight: torch.Tensor, noise: torch.Tensor) -> None:
    """Norms are one; rows of a matrix keep the signal's size. The noise repeats: fast to make."""
    if weight.ndim == 1:
        weight.fill_(1)
        return
    scaled = noise / math.sqrt(weight.shape[-1])
    flat = weight.view(-1)
    for at in range(0, len(flat), len(noise)):
        part = flat[at : at + len(noise)]
        part.copy_(scaled[: len(part)])
