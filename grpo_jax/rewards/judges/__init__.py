"""Generative judges: what they are asked, and how a verdict is read."""
