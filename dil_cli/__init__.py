"""dil: preference optimisation of language models by direct imitation learning (arXiv 2503.05079)."""

__version__ = "0.1.0"
