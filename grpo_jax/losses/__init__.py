"""Arrays in, `(scalar, metrics)` out; nothing but JAX and jaxtyping."""

from grpo_jax.losses import (
  advantages,
  correction,
  distill,
  kl,
  language,
  policy,
  preference,
  returns,
  surrogates,
  value,
  vocabulary,
  weighting,
)

__all__ = [
  "advantages",
  "correction",
  "distill",
  "kl",
  "language",
  "policy",
  "preference",
  "returns",
  "surrogates",
  "value",
  "vocabulary",
  "weighting",
]
