"""Reinforcement learning: what is drawn, what it earned, what is learned."""
