"""Arrays in, `(scalar, metrics)` out; nothing but JAX and jaxtyping."""

from grpo_jax.losses import (
  correction,
  distill,
  kl,
  language,
  policy,
  preference,
  value,
  vocabulary,
)

__all__ = [
  "correction",
  "distill",
  "kl",
  "language",
  "policy",
  "preference",
  "value",
  "vocabulary",
]
