"""A tokenizer.json from a stranger: what is looked at before the tokenizers library gets it.

The library is native code: it panics at some files, and its regular expressions can take time that
grows with a power of the text. Those that do so fast are refused: a repeated group, or more than
three parts of one branch that each take any number of characters.
Source: tokenizers `models/bpe/serialization.rs`, Oniguruma `doc/RE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from emo_export.base.json_file import parse_object, read_text
from emo_export.errors import EmoExportError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_BYTES = 24 << 20  # vocabularies of 100 000 tokens have 7 MB, twice that with merges as pairs
MOST_ADDED = 8192
MOST_ID = 1 << 24
MOST_REGEX = 2000  # characters
MOST_OPEN = 3  # parts of a branch that take any number of characters

NORMALIZERS = frozenset(
    "NFC NFD NFKC NFKD Lowercase StripAccents Strip Prepend Replace ByteLevel Sequence".split()
)
"""Not Precompiled, whose table is binary, nor BertNormalizer, which no byte-level BPE has."""

_CLASS = r"\[\^?\]?(?:\\.|[^\]\\])*\]"
_OPEN = re.compile(r"[*+]|\{\d*,\}|\{\d{4,}|\{\d*,\d{4,}")
_PIECES = re.compile(rf"{_CLASS}|\\.|.", re.DOTALL)


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """What a tokenizer.json holds, checked. Raises EmoExportError naming what is wrong with it."""
    return _checked(path, read_text(path, MOST_BYTES))


def open_library(path: Path) -> Tokenizer:
    """The tokenizers library's tokenizer of a file that has been checked.

    Raises EmoExportError for what is refused here or there; ModuleNotFoundError without it.
    """
    from tokenizers import Tokenizer, models

    text = read_text(path, MOST_BYTES)
    _checked(path, text)
    with library_errors(path):
        tokenizer = Tokenizer.from_str(text)
        # A file may carry the settings of a training run; the model itself reads all of a text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # What its cache holds stays with the thread for ever (tokenizers 0.23); it saves a seventh.
        if isinstance(tokenizer.model, models.BPE):
            tokenizer.model._resize_cache(0)
    return tokenizer


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Make an EmoExportError of what the library raises: plain Exception, or a panic's own."""
    try:
        yield
    except Exception as error:
        raise EmoExportError(f"{path}: is not a tokenizer.json ({error})") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which can't be imported
            raise
        raise EmoExportError(f"{path}: the tokenizers library fails at it ({error})") from error


def _checked(path: Path, text: str) -> dict[str, Any]:
    content = parse_object(text, str(path))

    def refuse(what: str) -> NoReturn:
        raise EmoExportError(f"{path}: is not a tokenizer.json that is read: {what}")

    model = content.get("model")
    if not isinstance(model, dict):
        refuse("it has no model")
    vocab = model.get("vocab")
    if isinstance(vocab, dict) and not all(
        type(token) is int and 0 <= token < MOST_ID for token in vocab.values()
    ):
        refuse("a token of its vocabulary has no id")
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MOST_ADDED:
        refuse(f"its added tokens are no list of up to {MOST_ADDED}")
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            refuse("an added token is no object with content")
        number = entry.get("id")
        if type(number) is not int or not 0 <= number < MOST_ID:
            refuse(f"an added token has the id {number!r:.60}")
    for step in _steps(content.get("normalizer")):
        kind = step.get("type")
        if not isinstance(kind, str) or kind not in NORMALIZERS:
            refuse(f"it has the normalizer {kind!r:.60}")
    for regex in _regexes(content):
        if problem := too_slow(regex):
            refuse(f"the regular expression {regex[:80]!r} {problem}")
    return content


def too_slow(regex: str) -> str:
    """What of a regular expression could take very long on some text; empty: nothing."""
    if len(regex) > MOST_REGEX:
        return f"has {len(regex)} characters"
    if re.search(r"\\[1-9kg]", regex):
        return "refers back to a group"
    pieces = _PIECES.findall(regex)
    opened = [0]  # parts so far that take any number, in each group that is open
    for at, piece in enumerate(pieces):
        rest = "".join(pieces[at + 1 : at + 8])
        if piece == "(":
            opened.append(0)
        elif piece == "|" and len(opened) == 1:
            opened[0] = 0
        elif piece == ")":
            if _OPEN.match(rest) or re.match(r"\{", rest):
                return "repeats a group"
            if len(opened) > 1:
                inner = opened.pop()
                opened[-1] += inner
        elif piece in "*+{" and (
            piece != "+" or at == 0 or pieces[at - 1] not in ("*", "+", "?", "}")
        ):
            opened[-1] += bool(_OPEN.match(piece + rest))
        if opened[-1] > MOST_OPEN:
            return f"has more than {MOST_OPEN} parts in a row that take any number of characters"
    return ""


def _regexes(content: Mapping[str, Any]) -> Iterator[str]:
    """All of a file, wherever they stand."""
    for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        stack = [content.get(key)]
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                regex = value.get("Regex")
                if isinstance(regex, str):
                    yield regex
                stack.extend(value.values())
            elif isinstance(value, list):
                stack.extend(value)


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    stack = [step] if step else []
    while stack:
        one = stack.pop()
        if not isinstance(one, dict):
            one = {"type": one}
        yield one
        inner = one.get("normalizers")
        stack.extend(inner if isinstance(inner, list) else [])
