"""DeepSeek-R1's reinforcement learning recipe in pure JAX."""
