"""Arrays in, `(scalar, metrics)` out; nothing but JAX and jaxtyping."""

from grpo_jax.losses import (
  advantages,
  correction,
  covariance,
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
  "covariance",
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
