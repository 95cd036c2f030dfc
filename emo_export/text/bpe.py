"""Byte-level BPE of a tokenizer.json, without the tokenizers library and what that brings along.

Ids are the library's, or the file is refused: what is not done here is named. Source: tokenizers
`models/bpe/word.rs` (order of merges), `tokenizer/added_vocabulary.rs` (what is looked for first).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from emo_export.text.splits import NOT_UTF8, shape
from emo_export.text.words import Words, words_of

_PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token")
_FLAGS = ("byte_fallback", "fuse_unk")
_STRIPS = ("lstrip", "rstrip", "single_word")
_PAIR = 32  # bits of the second of two ids that are kept as one number


class NotPlainBpeError(Exception):
    """What of a file is not done here, in words."""


class Bpe:
    """Text -> ids of a tokenizer.json that has been looked at by `read_tokenizer_json`."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Raises NotPlainBpeError for what only the library can do."""
        model = content["model"]
        _check_model(model)
        if content.get("normalizer"):
            raise NotPlainBpeError(f"the normalizer {content['normalizer'].get('type')}")
        steps = shape(content.get("pre_tokenizer") or {})
        words = words_of(steps)
        if words is None:
            raise NotPlainBpeError(f"the split {', then '.join(step.words for step in steps)}")
        self._words: Words = words
        self._vocab: dict[str, int] = model["vocab"]
        self._texts = {token: text for text, token in self._vocab.items()}
        if len(self._texts) < len(self._vocab):
            raise NotPlainBpeError("one id for two tokens")
        self._bytes = _alphabet(self._vocab)
        self._merges = _merges(model["merges"], self._vocab)
        self._whole = bool(model.get("ignore_merges"))
        self.added = _added(content.get("added_tokens") or (), self._vocab)
        """Id -> entry of the file's added tokens."""
        entries = self.added.values()
        self._sought = [
            pattern
            for late in (False, True)
            if (pattern := _longest_first(e for e in entries if bool(e.get("normalized")) == late))
        ]
        self._ids = {str(entry["content"]): token for token, entry in self.added.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, in which added tokens are found; none is put around it."""
        ids: list[int] = []
        known: dict[str, list[int]] = {}
        for part, token in self._parts(text):
            if token is not None:
                ids.append(token)
                continue
            for word in self._words(part):
                found = known.get(word)
                if found is None:
                    known[word] = found = self._encode_word(word)
                ids += found
        return ids

    def text_of(self, token: int) -> str | None:
        """An ordinary token as the vocabulary writes it, in characters that stand for bytes."""
        return self._texts.get(token)

    def _parts(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text cut at added tokens, with the id of those."""
        parts: list[tuple[str, int | None]] = [(text, None)]
        for sought in self._sought:
            parts = [
                (piece, self._ids[piece] if found else None)
                for part, token in parts
                for piece, found in ([(part, True)] if token is not None else _cut(sought, part))
            ]
        yield from parts

    def _encode_word(self, word: str) -> list[int]:
        data = word.encode("utf-8")
        if self._whole:
            whole = self._vocab.get("".join(map(CHARACTERS.__getitem__, data)))
            if whole is not None:
                return [whole]
        return _merged([self._bytes[byte] for byte in data], self._merges)


def _merged(ids: list[int], merges: Mapping[int, tuple[int, int]]) -> list[int]:
    """Join pairs, that of the lowest rank first, of equal ones the leftmost."""
    size = len(ids)
    before, after = list(range(-1, size - 1)), [*range(1, size), -1]
    queue: list[tuple[int, int, int]] = []

    def look(left: int, right: int) -> tuple[int, int, int] | None:
        found = merges.get(ids[left] << _PAIR | ids[right])
        return None if found is None else (found[0], left, found[1])

    queue = [found for at in range(size - 1) if (found := look(at, at + 1))]
    heapify(queue)
    while queue:
        _, left, made = heappop(queue)
        right = after[left]
        if ids[left] < 0 or right < 0:
            continue
        found = look(left, right)
        if found is None or found[2] != made:  # of what was joined to something else since
            continue
        ids[left], ids[right] = made, -1
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
            if found := look(left, after[left]):
                heappush(queue, found)
        if before[left] >= 0 and (found := look(before[left], left)):
            heappush(queue, found)
    return [token for token in ids if token >= 0]


def _characters() -> list[str]:
    """Byte -> character of byte-level BPE.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and
    on (source: `bytes_to_unicode` of openai/gpt-2, encoder.py).
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


CHARACTERS = _characters()
BYTE_OF: Mapping[str, int] = {character: byte for byte, character in enumerate(CHARACTERS)}
"""Character of byte-level BPE -> byte."""


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise NotPlainBpeError(f"the model {model.get('type')}")
    for key in (*_PLAIN, *_FLAGS):
        if model.get(key):
            raise NotPlainBpeError(f"BPE option {key}")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise NotPlainBpeError("a BPE without vocabulary or merges")


def _alphabet(vocab: Mapping[str, int]) -> list[int]:
    """Byte -> id; -1 for bytes that no UTF-8 has."""
    for character in CHARACTERS:
        if character not in vocab and character not in NOT_UTF8:
            raise NotPlainBpeError(f"no token for the byte that {character!r} stands for")
    return [vocab.get(character, -1) for character in CHARACTERS]


def _merges(
    merges: Sequence[str | Sequence[str]], vocab: Mapping[str, int]
) -> dict[int, tuple[int, int]]:
    """Both ids as one number -> rank and id of what they make; of a repeated pair, the last."""
    found = {}
    for rank, pair in enumerate(merges):
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        try:
            found[vocab[first] << _PAIR | vocab[second]] = (rank, vocab[first + second])
        except KeyError as error:
            raise NotPlainBpeError(f"a merge with {error}, which is no token") from error
    return found


def _added(
    entries: Sequence[Mapping[str, Any]], vocab: Mapping[str, int]
) -> dict[int, Mapping[str, Any]]:
    """Id -> entry. The library counts those that are not in the vocabulary on from its end."""
    found: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        text = str(entry["content"])
        if not text or any(entry.get(key) for key in _STRIPS):
            raise NotPlainBpeError(f"the added token {text!r}, which is empty or strips text")
        following = max(len(vocab), max(found, default=-1) + 1)
        if entry["id"] != vocab.get(text, following) or entry["id"] in found:
            raise NotPlainBpeError(f"the added token {text!r} with an id of its own")
        found[entry["id"]] = entry
    return found


def _longest_first(entries: Iterator[Mapping[str, Any]]) -> re.Pattern[str] | None:
    """What finds any of the added tokens: the leftmost, and there the longest."""
    texts = sorted((str(entry["content"]) for entry in entries), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _cut(sought: re.Pattern[str], text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of the text, and whether each is one of what is sought."""
    done = 0
    for found in sought.finditer(text):
        if done < found.start():
            yield text[done : found.start()], False
        yield found[0], True
        done = found.end()
    if done < len(text):
        yield text[done:], False
