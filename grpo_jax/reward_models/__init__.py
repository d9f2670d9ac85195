"""Reward models of ours: what they read, their scores, how good they are."""
