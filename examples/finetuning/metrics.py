"""What a language model knows of both texts, and how its samples vary."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from examples.evidence.metrics import nll

from .network import CONTEXT, LanguageModel

ENTROPY = 2.5
"""Of the next token, in nats, on the new text: where samples are compared."""
SHARPEST, FLATTEST = 32.0, 1 / 32
"""Between these factors of the logits temperatures are looked for."""
SAMPLES, SAMPLED, PROMPT = 24, 64, 16


@torch.no_grad()
def logits_of(model: LanguageModel, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, C) and the tokens (N,) that came, of all places of the windows."""
    model.eval()
    logits = torch.cat([model.head(model(part[:, :-1])) for part in windows.split(32)])
    return logits.flatten(0, 1), windows[:, 1:].flatten()


def judge(model: LanguageModel, texts: dict[str, Tensor], alpha: float) -> dict[str, float]:
    """Return losses of each text: at softmax(z), at softmax(alpha z), and at the best temperature.

    The last does not depend on how far alpha has scaled the logits: it is what the model knows.
    """
    metrics = {}
    for name, windows in texts.items():
        logits, tokens = logits_of(model, windows)
        metrics |= {
            f"{name}_nll": nll(logits, tokens, 1.0),
            f"{name}_nll_trained": nll(logits, tokens, alpha),
            f"{name}_nll_best": best_nll(logits, tokens),
            f"{name}_entropy": entropy(logits, 1.0),
            f"{name}_entropy_trained": entropy(logits, alpha),
        }
    return metrics


def best_nll(logits: Tensor, tokens: Tensor) -> float:
    """Return the smallest loss at softmax(factor * z) over all factors."""
    found = minimize_scalar(
        lambda log: nll(logits, tokens, float(np.exp(log))),
        bounds=(np.log(FLATTEST), np.log(SHARPEST)),
        method="bounded",
        options={"xatol": 0.01},
    )
    return float(found.fun)


def entropy(logits: Tensor, factor: float) -> float:
    """Return the mean entropy of softmax(factor * z), in nats."""
    log_p = torch.log_softmax(factor * logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean().item()


def factor_for(logits: Tensor, wanted: float) -> float:
    """Return the factor of the logits at which the mean entropy is the one wanted."""

    def excess(log: float) -> float:
        return entropy(logits, float(np.exp(log))) - wanted

    return float(np.exp(brentq(excess, np.log(FLATTEST), np.log(SHARPEST), xtol=1e-3)))


def sample_metrics(model: LanguageModel, windows: Tensor, seed: int) -> dict[str, float]:
    """Return loss and distinct n-grams of samples where the entropy is ENTROPY for every model."""
    logits, tokens = logits_of(model, windows)
    factor = factor_for(logits, ENTROPY)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(windows), generator=generator)[:SAMPLES]
    samples = sample(model, windows[rows, :PROMPT], factor, generator)
    return {
        "matched_factor": factor,
        "matched_nll": nll(logits, tokens, factor),
        "matched_distinct2": distinct(samples, 2),
        "matched_distinct4": distinct(samples, 4),
    }


@torch.no_grad()
def sample(
    model: LanguageModel, prompts: Tensor, factor: float, generator: torch.Generator
) -> Tensor:
    """Return SAMPLED tokens that follow each prompt (N, length), drawn from softmax(factor * z)."""
    model.eval()
    text = prompts
    for _ in range(SAMPLED):
        p = torch.softmax(factor * model.head(model(text[:, -CONTEXT:])[:, -1]), dim=1)
        text = torch.cat([text, torch.multinomial(p, 1, generator=generator)], dim=1)
    return text[:, prompts.shape[1] :]


def distinct(samples: Tensor, n: int) -> float:
    """Return how many percent of the n-grams of samples (N, length) are different ones."""
    grams = samples.unfold(1, n, 1).flatten(0, 1)
    return 100 * len(grams.unique(dim=0)) / len(grams)
