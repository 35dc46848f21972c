"""Training of causal autoregressive diffusion language models (CARD) at scale."""

__version__ = "0.1.0"
