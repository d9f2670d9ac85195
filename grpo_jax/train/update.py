"""One optimizer update: microbatches, gradient, optimizer.

A loss is a sum of weighted terms whose weights were computed over all rows of
the update, so the gradients and the metrics of microbatches add up.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from grpo_jax import sharding
from grpo_jax.models import moe
from grpo_jax.models.params import Params
from grpo_jax.train.state import TrainState

Metrics = Mapping[str, Any]
LossFn = Callable[..., tuple[Float[Array, ""], Metrics]]


def make_update(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  num_microbatches: int = 1,
  router_bias_rate: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns the jitted update `(state, batch, *frozen) -> (state, metrics)`.

  The state is donated; what is frozen goes to the loss and gets no gradient.
  Metrics are those of the loss, summed over microbatches, with `loss` and
  `grad_norm` (before clipping). Where the loss has a metric `expert_load` (a
  `moe.Load`), its figures are in its place, and router biases move by it.

  Args:
    loss_fn: `(params, batch, *frozen) -> (loss, metrics)`; both additive over
      rows.
    tx: the optimizer.
    num_microbatches: the leading axis of every array of the batch is cut into
      this many gradients, which are added up.
    router_bias_rate: how far a router's biases move per update; see
      `moe.balance`.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: TrainState, batch: Any, *frozen: Any
  ) -> tuple[TrainState, Metrics]:
    loss, metrics, gradient = gradients(
      loss_fn, state.params, batch, num_microbatches, *frozen
    )
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    metrics = dict(metrics) | {
      "loss": loss,
      "grad_norm": optax.tree.norm(gradient),
    }
    params = optax.apply_updates(state.params, updates)
    load = metrics.pop("expert_load", None)
    if load:
      metrics |= moe.load_metrics(load)
      if router_bias_rate:
        params = moe.balance(params, load, router_bias_rate)
    return TrainState(state.step + 1, params, opt_state), metrics

  return update


def gradients(
  loss_fn: LossFn,
  params: Params,
  batch: Any,
  num_microbatches: int,
  *frozen: Any,
) -> tuple[Float[Array, ""], Metrics, Params]:
  """Returns loss, metrics and gradient, summed over microbatches."""

  def one(piece: Any) -> tuple[Float[Array, ""], Metrics, Params]:
    (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
      params, piece, *frozen
    )
    return loss, metrics, gradient

  if num_microbatches == 1:
    return one(batch)

  def add(total: Any, piece: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, one(piece)), None

  pieces = cut(batch, num_microbatches)
  first = one(jax.tree.map(lambda x: x[0], pieces))
  rest = jax.tree.map(lambda x: x[1:], pieces)
  return jax.lax.scan(add, first, rest)[0]


def cut(tree: Any, count: int) -> Any:
  """Returns arrays [B, ...] as [count, B / count, ...].

  Row b goes to piece b mod count, which leaves the rows' sharding alone.
  """

  def one(x: Array) -> Array:
    split = sharding.row_spec(x, x.ndim)
    pieces = jax.lax.reshape(
      x,
      (x.shape[0] // count, count, *x.shape[1:]),
      out_sharding=split and PartitionSpec(split[0], None, *split[1:]),
    )
    return jnp.moveaxis(pieces, 1, 0)

  return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
  """Returns the arrays that `cut` had cut."""

  def one(x: Array) -> Array:
    rows = jnp.moveaxis(x, 0, 1)
    split = sharding.row_spec(rows, rows.ndim)
    return jax.lax.reshape(
      rows,
      (rows.shape[0] * rows.shape[1], *rows.shape[2:]),
      out_sharding=split and PartitionSpec(split[0], *split[2:]),
    )

  return jax.tree.map(one, tree)
