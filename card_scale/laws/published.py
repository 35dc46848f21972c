"""Constants that others have published, for checks and as given constants of a fit."""

from collections.abc import Mapping
from math import exp, log
from types import MappingProxyType

CONSTANTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        # Hoffmann et al., approach 3, unrounded as in Epoch AI's replication notebook.
        "hoffmann": MappingProxyType(
            {"A": exp(6.0073404), "B": exp(6.0179186), "E": exp(0.5267228), "alpha": 0.33917084, "beta": 0.2849083}
        ),
        # Besiroglu et al. (Epoch AI), the replication on 240 of the 245 points.
        "epoch": MappingProxyType({"A": 482.01, "B": 2085.43, "E": 1.8169, "alpha": 0.3478, "beta": 0.3658}),
        # Muennighoff et al., C4 isoFLOP runs, tied exponents; the base of their repetition constants.
        "muennighoff-c4": MappingProxyType(
            {"A": exp(6.255414), "B": exp(7.3049974), "E": exp(0.6254804), "alpha": 0.3526596, "beta": 0.3526596}
        ),
    }
)
"""Constants of the Chinchilla law by name: A, B, E (nats), alpha, beta; N and D counted in ones."""

MUENNIGHOFF_REPETITION: Mapping[str, float] = MappingProxyType({"R_D": 15.387756, "R_N": 5.309743})
"""Muennighoff et al.: repetition constants of AR on 182 runs. A local minimum only, see docs/scaling_laws.md."""

PRABHUDESAI_CRITICAL_COMPUTE: Mapping[str, float] = MappingProxyType({"k": 2.12 * 10**1.956, "slope": 2.174})
"""Prabhudesai et al.: FLOPs at which masked diffusion overtakes AR on U unique tokens (U counted in ones)."""

GPT2_UNINFORMED_LOSS = log(50257)
"""Nats per token of a model that knows nothing, GPT-2's vocabulary: L0 of the practical law."""
