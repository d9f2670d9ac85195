"""What training changes: step, parameters, optimizer state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from grpo_jax.models.params import Params


@flax.struct.dataclass
class TrainState:
  """All that an optimizer update reads and writes.

  Attributes:
    step: optimizer updates so far.
    params: float32 masters.
    opt_state: of optax.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first update; moments rest as params do."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=jax.jit(tx.init)(params),
  )


def abstract_state(
  params: Params, tx: optax.GradientTransformation
) -> TrainState:
  """Returns shapes and shardings of `init_state`, from abstract parameters."""
  return jax.eval_shape(lambda p: init_state(p, tx), params)
