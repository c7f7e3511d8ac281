"""Typefaces on this machine, and which of them are one family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse.csgraph import connected_components

SYSTEM = Path("/usr/share/fonts")
COLLECTIONS = {".ttc", ".otc"}
SUFFIXES = {".ttf", ".otf", *COLLECTIONS}
SIZE = 32
"""Pixels of an image's side."""
MARGIN = 2
SAME_PIXELS = 0.02
"""Images whose ink differs by no more than this share of it are of one drawing."""
RELATED, COPIED = 0.2, 0.8
"""Shares of their drawings beyond which two faces are of one family, and copies."""
FOUNDRY = 3
"""Letters of a name that tell whose typeface it is: of VL Gothic and IPAexMincho, say."""


@dataclass(frozen=True)
class Face:
    """One face in a file of fonts, its name, and the characters that it has of those asked for."""

    path: Path
    index: int
    name: str
    characters: frozenset[str]


def find(folder: Path, characters: Sequence[str]) -> list[Face]:
    """Return the faces below a folder that have at least half of the characters."""
    faces = []
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    for path in files:
        try:
            fonts = _fonts_in(path)
        except (TTLibError, OSError):
            continue  # not a font, or a broken one
        for index, font in enumerate(fonts):
            glyphs = font.getBestCmap() or {}
            known = frozenset(character for character in characters if ord(character) in glyphs)
            # A font of last resort has one glyph, a box, for many characters.
            if 2 * len({glyphs[ord(character)] for character in known}) >= len(characters):
                name = font["name"].getDebugName(4) or path.stem
                faces.append(Face(path, index, name, known))
    return faces


def _fonts_in(path: Path) -> list[TTFont]:
    if path.suffix.lower() in COLLECTIONS:
        return list(TTCollection(path, lazy=True).fonts)
    return [TTFont(path, lazy=True)]


def render(face: Face, characters: Sequence[str]) -> NDArray[np.uint8]:
    """Return images (len(characters), SIZE, SIZE), 255 where there is ink, centred.

    A character that the face does not have, or has no drawing of, is blank.
    """
    font = ImageFont.truetype(face.path, SIZE - 2 * MARGIN, face.index)
    images = np.zeros((len(characters), SIZE, SIZE), np.uint8)
    for image, character in zip(images, characters, strict=True):
        if character in face.characters:
            left, top, right, bottom = font.getbbox(character)
            corner = ((SIZE - left - right) / 2, (SIZE - top - bottom) / 2)
            canvas = Image.new("L", (SIZE, SIZE))
            ImageDraw.Draw(canvas).text(corner, character, 255, font)
            image[:] = np.asarray(canvas)
    return images


def families(faces: Sequence[Face], images: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Return the family of each face, a number.

    Faces whose names begin alike are of one family, and so are those whose images (characters,
    SIZE, SIZE) agree: one drawing comes under several names, and faces are derived from others.
    Joined are also all that are joined to those. Too large a family costs little, one that is torn
    apart would let a network see in training what it is tested on.
    """
    if not faces:
        return []
    drawn = list(zip(faces, images, strict=True))
    joined = [
        [_same_name(face, other) or alike(one, two) > RELATED for other, two in drawn]
        for face, one in drawn
    ]
    return [int(label) for label in connected_components(np.array(joined), directed=False)[1]]


def copies(images: Sequence[NDArray[np.uint8]]) -> list[bool]:
    """Return whether each face draws what one before it draws: the same in another file."""
    return [
        any(alike(one, before) > COPIED for before in images[:at]) for at, one in enumerate(images)
    ]


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return which share of the characters that two faces have they draw alike."""
    inks = [images.sum(axis=(1, 2), dtype=np.int64) for images in (one, other)]
    common = (inks[0] > 0) & (inks[1] > 0)
    if not common.any():
        return 0.0
    apart = np.abs(one.astype(np.int64) - other).sum(axis=(1, 2))
    return float((apart <= SAME_PIXELS * np.minimum(*inks))[common].mean())


def _same_name(face: Face, other: Face) -> bool:
    return face.name[:FOUNDRY].casefold() == other.name[:FOUNDRY].casefold()
