"""A language model of two transformer layers, whose logits the loss makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONTEXT = 128
WIDTH = 128


class LanguageModel(nn.Module):
    """Tokens (N, length) -> features (N, length, WIDTH); `head` makes logits of them."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        features = self.token(tokens) + self.position[:length]
        return self.layers(features, mask=self.mask[:length, :length], is_causal=True)
