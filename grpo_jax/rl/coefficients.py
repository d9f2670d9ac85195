"""Coefficients of the loss that follow what a run measures.

They are arguments of the compiled update, so that no step compiles anew.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_jax.losses import kl


class Coefficients:
  """`kl_coef` and `entropy_coef` of a run, where they adapt.

  Attributes:
    state: each adapting coefficient as it is now, as JSON.
  """

  def __init__(
    self,
    loss: Mapping[str, Any],
    *,
    adapt_kl: Mapping[str, Any] | None = None,
    adapt_entropy: Mapping[str, Any] | None = None,
  ):
    """Begins with the coefficients of the loss.

    Args:
      loss: its options.
      adapt_kl: options of `losses.kl.adapt_coef`; None where it is constant.
      adapt_entropy: options of `losses.kl.adapt_entropy_coef`; likewise.
    """
    self._adapt_kl = adapt_kl
    self._adapt_entropy = adapt_entropy
    self.state: dict[str, float] = {}
    if adapt_kl is not None:
      self.state["kl_coef"] = float(loss.get("kl_coef", 0.0))
    if adapt_entropy is not None:
      self.state["entropy_coef"] = float(loss.get("entropy_coef", 0.0))

  def now(self, entropy: float) -> dict[str, np.float32]:
    """Returns those of a step, before its updates.

    Args:
      entropy: the mean over all tokens of the rollout, in nats.
    """
    used = dict(self.state)
    if self._adapt_entropy is not None:
      used["entropy_coef"], self.state["entropy_coef"] = kl.adapt_entropy_coef(
        self.state["entropy_coef"], entropy, **self._adapt_entropy
      )
    return {name: np.float32(value) for name, value in used.items()}

  def after(self, metrics: Mapping[str, float]) -> None:
    """Adapts the coefficient of the KL to that of the step's updates."""
    if self._adapt_kl is not None:
      adapted = kl.adapt_coef(
        self.state["kl_coef"], metrics["kl"], **self._adapt_kl
      )
      self.state["kl_coef"] = float(adapted)
