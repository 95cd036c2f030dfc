"""Whether onnxruntime-genai's own tokenizer gives our ids.

It (onnxruntime-extensions) passes over what it does not know of a tokenizer.json instead of
refusing it, and gives other ids without a word. So only what
tests/converters/onnx/test_genai_tokenizer.py holds against the tokenizers library is
accepted. What no file can mend (0.18.0): a text ends at a NUL, and U+0085 is no white space.
Source: onnxruntime-extensions `bpe_tokenizer_model.hpp`, `bpe_utils.hpp`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

from emo_export.converters.split import split_of
from emo_export.errors import EmoExportError
from emo_export.text.splits import NOT_UTF8, spellings
from emo_export.text.tokenizer_file import read_tokenizer_json

SPLITS = ("cl100k", "gpt-2", "qwen2", "qwen3.5")
# It knows no possessive quantifiers, as in tiktoken's spelling of the same split.
_PLAIN = {other: spellings(d)[0] for d in ("{1,3}", "") for other in spellings(d)[1:]}
_CHANGES_IDS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def why_no_genai(checkpoint: Path, stops: Sequence[int]) -> str:
    """Why a checkpoint gets no genai_config.json; an empty string when it gets one."""
    if not stops:
        return "no token is known to end a text, and onnxruntime-genai would take another for it"
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        return ""
    try:
        content = read_tokenizer_json(path)
    except EmoExportError as error:
        return str(error)
    try:
        return _unlike(path, respelt(content) or content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"{path.name} is not of the form of a tokenizer.json ({error!r})"


def respelt(tokenizer: Mapping[str, Any]) -> dict[str, Any] | None:
    """A tokenizer.json whose split is spelt without possessive quantifiers; None if it was."""
    changed = deepcopy(dict(tokenizer))
    patterns = [pattern for pattern in _patterns(changed) if str(pattern.get("Regex")) in _PLAIN]
    for pattern in patterns:
        pattern["Regex"] = _PLAIN[pattern["Regex"]]
    return changed if patterns else None


def _patterns(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What its steps split by; none where a file is of another form."""
    pre = tokenizer.get("pre_tokenizer")
    steps = pre.get("pretokenizers") if isinstance(pre, dict) else None
    steps = steps if isinstance(steps, list) else []
    found = [step.get("pattern") for step in steps if isinstance(step, dict)]
    return [pattern for pattern in found if isinstance(pattern, dict)]


def _unlike(path: Path, content: Mapping[str, Any]) -> str:
    """What onnxruntime-genai would read otherwise than the tokenizers library."""
    found = list(_settings(path, content)) or list(_strays(content))
    return f"onnxruntime-genai reads {path.name} otherwise: {'; '.join(found[:4])}" if found else ""


def _settings(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    model = content["model"]
    if model.get("type") != "BPE":
        yield f"model {model.get('type')!r}"
    yield from (f"BPE option {key}" for key in _CHANGES_IDS if model.get(key))
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - NOT_UTF8 - set(model["vocab"])
    if missing:
        yield f"{len(missing)} bytes without a token"
    if content.get("normalizer"):
        yield "a normalizer"
    for added in content.get("added_tokens", ()):
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            yield f"added token {added['content']!r} with conditions"
    try:
        split = split_of(path, content.get("pre_tokenizer"), ignore_merges=False).name
    except EmoExportError:
        split = ""
    if split not in SPLITS:
        yield f"a split other than {', '.join(SPLITS)}"


@contextmanager
def _library_errors() -> Iterator[None]:
    """What the tokenizers library raises, which is plain Exception, as ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(str(error)) from error


def _strays(content: Mapping[str, Any]) -> Iterator[str]:
    """Tokens that give its other ways away, which no BPE has that was trained with its split.

    It takes a piece of text that is a token whole, whatever the merges make of it, and leaves white
    space after a line break at a text's end in one piece with it.
    """
    with _library_errors():
        library = Tokenizer.from_str(json.dumps(content))
    model = library.model
    # What its cache holds stays with the thread for ever (tokenizers 0.23), and is of no use here.
    model._resize_cache(0)
    bytes_of = decoders.ByteLevel()
    added = {entry["content"] for entry in content.get("added_tokens", ())}
    for token, index in content["model"]["vocab"].items():
        if token in added:
            continue
        with _library_errors():
            pieces = [piece.id for piece in model.tokenize(token)]
        if pieces != [index]:
            yield f"token {index} is not what its merges make of its text"
            continue
        text = bytes_of.decode([token])
        whole = "\ufffd" not in text  # else it has a part of a character
        if whole and len(library.pre_tokenizer.pre_tokenize_str(text)) != 1:
            yield f"token {index} ({text!r}) is cut by the split"
