"""A mixture of experts: routing, grouped products, load, router bias.

P prompts, G completions each, T positions; n tokens of a device; E experts, X
experts per token, D width, F feed-forward width of an expert.

No token is dropped, so that what a token gets does not depend on its
neighbours, and sampler and trainer agree. On each device the (token, expert)
pairs of its own tokens are sorted by expert and go through `lax.ragged_dot`,
inside a `shard_map`. Experts are split over the mesh axis `expert`, and their
width over `tensor`; tokens are the same on all devices of these two axes. A
device computes its own experts' share of all n tokens and the shares are summed
(`psum` of [n, D] in float32). That is simple and exact; what it costs is that
all but the experts (attention, shared experts) is computed on each device of
`expert`, and that buffers hold n * X rows on each, of which 1 / expert are in
use.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.models import layers
from grpo_jax.models.config import ModelConfig

Load = dict[str, Float[Array, "L E"]]


def moe(
  params: dict,
  cfg: ModelConfig,
  x: Float[Array, "P G T D"],
  real: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T D"], Float[Array, " E"]]:
  """Returns the sum of each token's experts, and the tokens of each expert.

  Args:
    params: of this layer, without the leading axis L.
    cfg: the model.
    x: normalized input.
    real: which tokens count in the load; the others are computed all the same.
  """
  given = (
    x,
    real,
    sharding.to_use(params["router"], ("embed", None)),
    params.get("router_bias"),
    *(
      sharding.to_use(params[name], ("experts", *axes), x.dtype)
      for name, axes in (
        ("gate", ("embed", "ffn")),
        ("up", ("embed", "ffn")),
        ("down", ("ffn", "embed")),
      )
    ),
  )
  if not sharding.has_mesh():
    y, load = _routed(*given, cfg=cfg)
  else:
    rows = sharding.row_spec(x, 3)
    split_rows = PartitionSpec(*rows)
    into = sharding.spec(("experts", None, "ffn"), sharding.SAMPLE)
    out = sharding.spec(("experts", "ffn", None), sharding.SAMPLE)
    whole = PartitionSpec()
    y, load = jax.shard_map(
      functools.partial(_routed, cfg=cfg, rows=rows),
      in_specs=(split_rows, split_rows, whole, whole, into, into, out),
      out_specs=(split_rows, whole),
    )(*given)
  if cfg.num_shared_experts:
    y = y + layers.mlp(params["shared"], cfg, x)
  return y, load


def route(
  logits: Float[Array, "n E"],
  bias: Float[Array, " E"] | None,
  cfg: ModelConfig,
) -> tuple[Int[Array, "n X"], Float[Array, "n X"]]:
  """Returns the chosen experts of each token and their weights, in float32.

  Softmax (Qwen3-MoE): the X most probable of all. Sigmoid (DeepSeek-V3, arXiv
  2412.19437, eq. 12 to 16): score + bias decides, first on the groups, by the
  sum of their two best, and then on the experts of the best groups; the weight
  is the score without the bias.
  """
  if cfg.router == "softmax":
    scores = jax.nn.softmax(logits, axis=-1)
  else:
    scores = jax.nn.sigmoid(logits)
  choice = jax.lax.stop_gradient(scores)
  if bias is not None:
    choice = choice + jax.lax.stop_gradient(bias)
  if cfg.router_groups > 1:
    groups = choice.reshape(len(choice), cfg.router_groups, -1)
    best = jnp.sum(jax.lax.top_k(groups, 2)[0], axis=-1)
    _, kept = jax.lax.top_k(best, cfg.router_top_groups)
    kept = jnp.any(jax.nn.one_hot(kept, cfg.router_groups, dtype=bool), axis=1)
    choice = jnp.where(kept[:, :, None], groups, -jnp.inf)
    choice = choice.reshape(logits.shape)
  _, experts = jax.lax.top_k(choice, cfg.experts_per_token)
  weights = jnp.take_along_axis(scores, experts, axis=-1)
  if cfg.normalize_experts:
    # DeepSeek adds 1e-20, which float32 does not see beside a sum of sigmoids.
    weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
  return experts, weights * cfg.routed_scale


def load_metrics(load: Load) -> dict[str, Float[Array, ""]]:
  """Returns how even the experts' loads are, from tokens per expert.

  `experts/load_max` is the largest load over the mean load, 1 when even and
  E / X when all tokens choose the same experts, as a mean over layers;
  `experts/load_max_worst` is that of the worst layer; `experts/load_entropy` is
  the entropy of the shares over log E, 1 when even, as a mean over layers.
  """
  counts = jnp.concatenate(list(load.values()))
  shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)
  num_experts = counts.shape[-1]
  top = num_experts * jnp.max(shares, axis=-1)
  entropy = jnp.sum(jax.scipy.special.entr(shares), axis=-1)
  return {
    "experts/load_max": jnp.mean(top),
    "experts/load_max_worst": jnp.max(top),
    "experts/load_entropy": jnp.mean(entropy) / math.log(num_experts),
  }


def balance(params: dict, load: Load, rate: float) -> dict[str, Any]:
  """Returns parameters whose router biases moved towards an even load.

  bias += rate * sign(mean load - load), balancing without an auxiliary loss
  (arXiv 2408.15664, algorithm 1). No gradient reaches these biases.
  """
  moved = dict(params)
  for name, counts in load.items():
    mean = jnp.mean(counts, axis=-1, keepdims=True)
    experts = params[name]["moe"]
    bias = experts["router_bias"] + rate * jnp.sign(mean - counts)
    moved[name] = params[name] | {"moe": experts | {"router_bias": bias}}
  return moved


def check(cfg: ModelConfig, devices: int, router_bias_rate: float) -> None:
  """Raises ValueError where the model has not what a config speaks of.

  Args:
    cfg: the model.
    devices: along the mesh axis `expert`; -1 takes what the others leave.
    router_bias_rate: of `balance`.
  """
  if devices != 1 and not cfg.num_experts:
    raise ValueError(
      f"The mesh has expert={devices}, and the model has no experts: its"
      " devices would all compute the same. Set it to 1."
    )
  if router_bias_rate < 0:
    raise ValueError(f"{router_bias_rate=} must not be negative.")
  if router_bias_rate and not (cfg.num_experts and cfg.router == "sigmoid"):
    raise ValueError(
      f"{router_bias_rate=} needs a model whose router has a bias"
      " (router='sigmoid'); set it to 0."
    )


def _routed(x, real, router, bias, gate, up, down, *, cfg, rows=None):
  """Returns routed experts' sum [P, G, T, D] and load [E]; one device's part.

  With `rows`, the mesh axes that split them, this runs inside a shard_map.
  """
  flat = x.reshape(-1, x.shape[-1])
  # By default a TPU would round the factors of a float32 product to bfloat16.
  logits = jnp.einsum(
    "nD,DE->nE",
    flat.astype(jnp.float32),
    router,
    precision=jax.lax.Precision.HIGHEST,
  )
  experts, weights = route(logits, bias, cfg)
  chosen = jax.nn.one_hot(experts, cfg.num_experts, dtype=jnp.float32)
  load = jnp.sum(chosen * real.reshape(-1, 1, 1), axis=(0, 1))
  if rows is not None:
    # A gather with indices of each device does not do this by itself, and the
    # gradient of x would miss the other devices' part (JAX 0.10.2).
    flat = jax.lax.pcast(flat, ("expert",), to="varying")
    experts = experts - jax.lax.axis_index("expert") * gate.shape[0]
    split = [axis for axis in rows if axis]
    names = [(axis,) if isinstance(axis, str) else axis for axis in split]
    load = jax.lax.psum(load, sum(names, ()))
  y = _grouped(flat, experts, weights, gate, up, down)
  if rows is not None:
    y = jax.lax.psum(y, ("tensor", "expert"))
  return y.astype(x.dtype).reshape(x.shape), load


def _grouped(x, experts, weights, gate, up, down):
  """Returns [n, D] in float32: weights times outputs of the experts given.

  Pairs whose expert is not in [0, number given) belong to another device.
  """
  count, (n, x_per_token) = gate.shape[0], experts.shape
  mine = (experts >= 0) & (experts < count)
  group = jnp.where(mine, experts, count).ravel()
  order = jnp.argsort(group, stable=True)
  sizes = jnp.sum(group[:, None] == jnp.arange(count), axis=0, dtype=jnp.int32)
  # What a backend computes beyond the last group is not defined.
  used = jnp.arange(len(group))[:, None] < jnp.sum(sizes)

  def permute(rows, order):
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")

  # Copies before a permutation, and not a gather with repeats: its gradient is
  # then a permutation too, and the copies are summed in a fixed order.
  rows = jnp.broadcast_to(x[:, None], (n, x_per_token, x.shape[-1]))
  rows = permute(rows.reshape(-1, x.shape[-1]), order)
  rows = jnp.where(used, rows, 0)
  hidden = jax.nn.silu(jax.lax.ragged_dot(rows, gate, sizes))
  hidden = hidden * jax.lax.ragged_dot(rows, up, sizes)
  hidden = jnp.where(used, hidden, 0)
  rows = jnp.where(used, jax.lax.ragged_dot(hidden, down, sizes), 0)
  rows = permute(rows, jnp.argsort(order)).reshape(n, x_per_token, -1)
  return jnp.sum(rows.astype(jnp.float32) * weights[..., None], axis=1)
