"""What a step of reinforcement learning changes, and how.

P prompts, G completions each, N completion slots.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from grpo_jax import errors, sharding
from grpo_jax.models import lora
from grpo_jax.models import params as params_lib
from grpo_jax.models.params import Params
from grpo_jax.rl import coefficients as coefficients_lib
from grpo_jax.rl import experience, metrics, value_model
from grpo_jax.rl.programs import Programs
from grpo_jax.train import checkpoint
from grpo_jax.train import state as state_lib
from grpo_jax.types import Experience, Rollout


class Learner:
  """The policy in training, its reference, and its value model.

  Attributes:
    trainable: what of the policy is trained.
    state: of the policy's training.
    value_state: of the value model's; None without one.
    reference: the reference policy; None where nothing reads it.
  """

  def __init__(
    self,
    programs: Callable[[float], Programs],
    trainable: lora.Trainable,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    num_minibatches: int,
    num_microbatches: int,
    weighting: str,
    coefficients: coefficients_lib.Coefficients | None = None,
    value: value_model.ValueModel | None = None,
    value_state: state_lib.TrainState | None = None,
  ):
    """Has no state yet: `begin` or `restore` gives it one.

    Args:
      programs: by temperature, what `programs.make_programs` returned.
      trainable: what of the policy is trained.
      tx: the optimizer.
      mesh: in force.
      num_minibatches: updates of a step.
      num_microbatches: gradients of an update.
      weighting: a name in `losses.weighting.WEIGHTINGS`.
      coefficients: those of the loss that adapt.
      value: the value model of PPO.
      value_state: of it, before the first update.
    """
    self._programs = functools.cache(programs)
    self.trainable = trainable
    self._tx = tx
    self._mesh = mesh
    self._minibatches = num_minibatches
    self._microbatches = num_microbatches
    self._weighting = weighting
    self._coefficients = coefficients or coefficients_lib.Coefficients({})
    self._value = value
    self.value_state = value_state
    self.state: state_lib.TrainState | None = None
    self.reference: Params | None = None
    # What was trained of the reference; None while it is the source.
    self._refreshed: Params | None = None

  @property
  def policy(self) -> Params:
    """The policy as it is."""
    return self.trainable.policy(self.state.params)

  def begin(self, part: Params, reference: Params | None) -> None:
    """Starts before the first update.

    Args:
      part: the trained part of the policy.
      reference: the reference policy; None where nothing reads it.
    """
    self.state = state_lib.init_state(part, self._tx)
    self.reference = reference

  def restore(
    self,
    checkpointer: checkpoint.Checkpointer,
    step: int,
    reference: Params | None,
  ) -> dict[str, Any]:
    """Goes on from a checkpoint; returns what else was saved with it.

    Args:
      checkpointer: of the run.
      step: a saved one.
      reference: the source; None where nothing reads a reference.
    """
    abstract = params_lib.abstract_params(self.trainable.specs, self._mesh)
    self.state, refreshed, kept = checkpointer.restore(
      step, state_lib.abstract_state(abstract, self._tx)
    )
    if self.value_state is not None:
      self.value_state = checkpointer.restore_value(step, self.value_state)
    self._coefficients.state |= kept.get("coefficients", {})
    self.reference = reference
    if reference is not None and refreshed is not None:
      self._refreshed = refreshed
      self.reference = self.trainable.policy(refreshed)
    return kept

  def save(
    self,
    checkpointer: checkpoint.Checkpointer,
    step: int,
    progress: dict[str, Any],
  ) -> None:
    """Saves all of it after `step` steps, with what else a restart reads."""
    checkpointer.save(
      step,
      self.state,
      reference=self._refreshed,
      value=self.value_state,
      progress={**progress, "coefficients": self._coefficients.state},
    )

  def score(self, rollout: Rollout, temperature: float) -> experience.Scored:
    """Returns what policy, reference and value model make of a rollout.

    Args:
      rollout: on the host.
      temperature: at which it was drawn.
    """
    pieces = self._minibatches * self._microbatches
    placed = experience.place(rollout, self._mesh, pieces)
    given = placed.prompts, placed.tokens, placed.completion_mask
    score = self._programs(temperature).score

    def whole(x: Any) -> Any:
      """On the host, and in whole groups again."""
      return sharding.to_host(x).reshape(rollout.tokens.shape)

    old = score(self.policy, *given)
    logprobs, entropy = whole(old.logprobs), whole(old.entropy)
    ref = values = None
    if self.reference is not None:
      ref = whole(score(self.reference, *given).logprobs)
    if self._value is not None:
      values = whole(self._value.score(self.value_state.params, *given))
    return experience.Scored(logprobs, entropy, ref, values)

  def update(
    self, data: Experience, temperature: float, length: int, entropy: float
  ) -> dict[str, float]:
    """Updates policy and value model; returns the mean of their metrics.

    Args:
      data: of a rollout.
      temperature: at which it was drawn.
      length: completion slots of the config, which `constant_length` reads.
      entropy: the mean over all tokens of the rollout, in nats.
    """
    update, found = self._programs(temperature).update, []
    coefs = self._coefficients.now(entropy)
    for part in experience.minibatches(
      data, self._minibatches, self._weighting, length
    ):
      part = experience.place(part, self._mesh, self._microbatches)
      self.state, scalars = update(
        self.state, part, coefs, *self.trainable.frozen
      )
      if self._value is not None:
        self.value_state, more = self._value.update(self.value_state, part)
        scalars |= more
      found.append(sharding.to_host(scalars))
    means = metrics.mean_over_updates(found)
    self._coefficients.after(means)
    return means | {name: float(value) for name, value in coefs.items()}

  def refresh_reference(self) -> None:
    """Makes the policy as it is the reference, where there is one."""
    if self.reference is not None:
      self._refreshed = jax.tree.map(jnp.copy, self.state.params)
      self.reference = self.trainable.policy(self._refreshed)


def reads_reference(loss: errors.Section, advantages: errors.Section) -> bool:
  """Returns whether these options of a run need a reference policy."""
  return bool(loss.get("kl_coef") or advantages.get("kl_coef"))
