"""DeepSeek-R1's reinforcement learning recipe in pure JAX."""

__version__ = "0.2.0"
