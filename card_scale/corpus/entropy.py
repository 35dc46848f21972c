"""The entropy of tokens drawn by their frequencies alone: what a model must beat to have learnt anything of context."""

import numpy as np


def unigram_entropy(tokens: np.ndarray) -> float:
    """Return -sum p log p in nats per token, with p the tokens' own frequencies.

    No model that ignores context can have a smaller loss on these tokens.
    """
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
