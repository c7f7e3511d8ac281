"""Images of characters, whole families of typefaces held out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from .fonts import Face, copies, families, find, render

JIS_LEVEL_1 = "".join(
    bytes((row, cell)).decode("euc_jp", errors="ignore")
    for row in range(0xB0, 0xD0)
    for cell in range(0xA1, 0xFF)
)
"""The 2965 kanji of JIS X 0208's first level, most of which Chinese has too."""
COMPARED = 100
"""Characters by which families are told apart."""
FEWEST_FAMILIES = 4
HELD_OUT = 0.25
"""Of the families, for testing; of the others, for validation."""


@dataclass(frozen=True)
class Images:
    """Images (N, 1, SIZE, SIZE) float32 in [0, 1] would be large: uint8; characters (N,) int64."""

    pixels: Tensor
    characters: Tensor


def load(folder: Path, characters: Sequence[str] = JIS_LEVEL_1) -> dict[str, Images]:
    """Return the images of each part, from all faces below a folder that are not copies."""
    found = find(folder, characters)
    step = max(1, len(characters) // COMPARED)
    drawn = [render(face, characters[::step]) for face in found]
    kept = [at for at, copied in enumerate(copies(drawn)) if not copied]
    faces = [found[at] for at in kept]
    groups = families(faces, [drawn[at] for at in kept])
    if len(set(groups)) < FEWEST_FAMILIES:
        sys.exit(
            f"{folder} has {len(set(groups))} families of typefaces with these characters, and "
            f"{FEWEST_FAMILIES} are needed: install some, such as Debian's fonts-ipafont, "
            "fonts-noto-cjk, fonts-vlgothic and fonts-wqy-zenhei, or name a folder with --fonts"
        )
    return {
        part: images([faces[at] for at in those], characters)
        for part, those in split(groups).items()
    }


def split(groups: Sequence[int]) -> dict[str, list[int]]:
    """Return which faces are in each part: a family is in one alone."""
    rest, test = _hold_out(list(range(len(groups))), groups)
    train, validation = _hold_out(rest, groups)
    return {"train": train, "validation": validation, "test": test}


def _hold_out(faces: list[int], groups: Sequence[int]) -> tuple[list[int], list[int]]:
    splitter = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=0)
    kept, held_out = next(splitter.split(faces, groups=[groups[face] for face in faces]))
    return [faces[at] for at in kept], [faces[at] for at in held_out]


def images(faces: Sequence[Face], characters: Sequence[str]) -> Images:
    """Return the images of all faces, without blank ones."""
    pixels = np.stack([render(face, characters) for face in faces])
    drawn = pixels.any(axis=(2, 3))
    _, labels = np.nonzero(drawn)
    return Images(torch.from_numpy(pixels[drawn])[:, None], torch.from_numpy(labels))
