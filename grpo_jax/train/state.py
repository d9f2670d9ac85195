"""What training changes: step, parameters, optimizer state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.models.params import Params


@flax.struct.dataclass
class TrainState:
  """All that an optimizer update reads and writes.

  Attributes:
    step: optimizer updates so far; int [].
    params: float32 masters.
    opt_state: of optax.
  """

  step: Any
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
  mesh = jax.tree.leaves(params)[0].sharding.mesh

  def on_devices(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    split = x.sharding.spec if x.sharding else PartitionSpec()
    where = NamedSharding(mesh, split)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  shapes = jax.eval_shape(lambda p: init_state(p, tx), params)
  return jax.tree.map(on_devices, shapes)
