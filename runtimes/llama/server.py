"""A GGUF file in llama.cpp's own server, inside the xllamacpp wheel: several answers at once.

Its slots share each step of the model (continuous batching), and keep the beginning that a prompt
has in common with the one before. Requests go into it by a call, not by HTTP.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_export.base.scratch import Scratch
from emo_export.errors import EmoExportError
from emo_export.files.gguf_parts import read_model
from emo_export.files.kv_cache import CACHE_F16, CACHE_F32, CACHE_Q8_0
from emo_export.runtimes.serving import (
    Chosen,
    Finish,
    Likely,
    Listener,
    Piece,
    UnservableError,
    Wanted,
)

PREFILL_PIECE = 256
"""Tokens of prompts in one step of the model: between two, a listener may be found gone."""

LOOKED_AT = 20
"""Likeliest tokens that are asked for where any are, to find the one that was chosen in them."""

LONGEST_SOCKET = 107  # bytes of a path (man 7 unix)
SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p")
"""Those of Sampling, in its order."""


class LlamaServer:
    """One GGUF file with `places` sequences, each with a KV cache of `context` positions.

    `kv_cache`: as of LlamaCpp. The file's header must have been checked (`check_file`).
    """

    name = "llama.cpp"

    def __init__(
        self, path: Path, *, threads: int, places: int, context: int, kv_cache: str | None
    ) -> None:
        """Raises EmoExportError for a file that llama.cpp refuses."""
        import xllamacpp

        self.places, self.context_length = places, context
        keys = read_model(path).keys
        # llama.cpp answers an empty prompt with nothing.
        self._begin = keys.get("tokenizer.ggml.eos_token_id")
        if keys.get("tokenizer.ggml.model") in (None, "none"):
            raise EmoExportError(f"{path}: has no tokenizer, so there is no text to serve")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {path.stem}
        params.n_parallel, params.n_ctx = places, places * context
        params.kv_unified = False  # a long text would take the room of others
        params.n_batch = params.n_ubatch = PREFILL_PIECE
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        kinds = xllamacpp.ggml_type
        kind = {
            CACHE_F32: kinds.GGML_TYPE_F32,
            CACHE_F16: kinds.GGML_TYPE_F16,
            CACHE_Q8_0: kinds.GGML_TYPE_Q8_0,
        }[kv_cache or CACHE_F16]
        params.cache_type_k = params.cache_type_v = kind
        if kv_cache == CACHE_F32:
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_ram_mib = 0  # it would keep up to 8 GB of prompts that are over
        params.n_ctx_checkpoints = 0
        params.fit_params = params.warmup = params.ui = False
        params.verbosity = 0
        # It listens by HTTP as well, with no key and to pages of any origin: not where one could
        # come. The folder is this user's alone.
        self._scratch = Scratch("serve")
        listener = self._scratch.path / "s.sock"
        params.hostnames = [str(listener)]
        params.api_keys = [secrets.token_hex(32)]
        params.n_threads_http = 1
        try:
            if len(os.fsencode(listener)) > LONGEST_SOCKET:
                raise EmoExportError(f"{listener.parent}: too long for a socket; shorten TMPDIR")
            self._server: Any = xllamacpp.Server(params)
        except EmoExportError:
            self._scratch.close()
            raise
        except RuntimeError as error:
            self._scratch.close()
            raise EmoExportError(
                f"llama.cpp cannot serve {path} with {places} contexts of {context} tokens; "
                "emo-export inspect tells more of the file"
            ) from error

    def answer(self, wanted: Wanted, listener: Listener) -> Finish:
        """See Answering."""
        ended: dict[str, Any] = {}

        def heard(event: Mapping[str, Any]) -> bool:
            if "error" in event:
                ended["error"] = event["error"]
                return True
            choice = event["choices"][0]
            if choice["finish_reason"] is not None:
                ended.update(reason=choice["finish_reason"], usage=event["usage"])
            logprobs = choice["logprobs"]
            chosen = tuple(map(_chosen, logprobs["content"])) if logprobs else ()
            if chosen and wanted.alternatives is not None:
                count = wanted.alternatives
                chosen = tuple(Chosen(one.token, one.alternatives[:count]) for one in chosen)
            if choice["text"] or chosen:
                listener.hear(Piece(choice["text"], chosen))
            return listener.gone

        self._server.handle_completions(self._request(wanted), heard)
        if "error" in ended:
            _refuse(ended["error"])
        usage = ended.get("usage", {"prompt_tokens": 0, "completion_tokens": 0})
        if not ended and not listener.gone:
            raise EmoExportError("llama.cpp ended an answer without a reason")
        return Finish(
            ended.get("reason") == "stop", usage["prompt_tokens"], usage["completion_tokens"]
        )

    def _request(self, wanted: Wanted) -> dict[str, Any]:
        sampling = wanted.sampling
        prompt = wanted.prompt if isinstance(wanted.prompt, str) else list(wanted.prompt)
        if not prompt:
            if self._begin is None:
                raise UnservableError("the prompt is empty, and no token begins a text")
            prompt = [self._begin]
        request: dict[str, Any] = {
            "prompt": prompt,
            "stream": True,
            "return_progress": True,  # between the pieces of a prompt: a listener may be gone
            "max_tokens": wanted.max_tokens,
            "seed": wanted.seed,
            "stop": list(wanted.stop),
            "samplers": SAMPLERS,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_length,
        }
        if wanted.alternatives is not None:
            request["logprobs"] = max(LOOKED_AT, wanted.alternatives)
        return request

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._server = None
        self._scratch.close()


def _chosen(entry: Mapping[str, Any]) -> Chosen:
    # A token's own `bytes` are what was sent at its step: not the token where the text was held
    # back, as the beginning of a stop or of a character. Among the likeliest it is what it is.
    others = entry["top_logprobs"]
    itself = next((other for other in others if other["id"] == entry["id"]), entry)
    return Chosen(_likely(itself), tuple(map(_likely, others)))


def _likely(entry: Mapping[str, Any]) -> Likely:
    return Likely(bytes(entry["bytes"]), float(entry["logprob"]))


def _refuse(error: Mapping[str, Any]) -> None:
    if "n_prompt_tokens" in error:
        raise UnservableError(
            f"the prompt has {error['n_prompt_tokens']} tokens, the context {error['n_ctx']}, of "
            "which one is for the answer"
        )
    if error.get("code") == 400:
        raise UnservableError(f"llama.cpp refuses the request: {error.get('message')}")
    raise EmoExportError(f"llama.cpp failed: {error.get('message')}")
