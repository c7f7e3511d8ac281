"""The network: a convolution over characters, the greatest of each feature, two layers."""

from __future__ import annotations

from torch import Tensor, nn

NETWORKS = ("BatchNorm", "no BatchNorm")
EMBEDDING = 24
WIDTH = 64


class CharacterNetwork(nn.Module):
    """Names (N, length) -> logits (N, countries)."""

    def __init__(self, kind: str, characters: int, countries: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.convolution = nn.Conv1d(EMBEDDING, WIDTH, 5, padding=2)

        def normalisation() -> nn.Module:
            return nn.BatchNorm1d(WIDTH) if kind == "BatchNorm" else nn.Identity()

        self.layers = nn.Sequential(
            normalisation(),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            normalisation(),
            nn.ReLU(),
            nn.Linear(WIDTH, countries),
        )

    def forward(self, names: Tensor) -> Tensor:
        characters = self.embedding(names).transpose(1, 2).contiguous()
        # The greatest first, which ReLU keeps: a sixteenth is left to normalise.
        return self.layers(self.convolution(characters).amax(dim=2))
