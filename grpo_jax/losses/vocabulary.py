"""The vocabulary head in chunks: log-probs, entropy and top-k, never [T, V].

At a vocabulary of 152k the logits, not the model, are what runs out of memory.
Here the logits of a few tokens exist at a time, in float32, and are computed
again in the backward pass, which keeps one log-normalizer and one entropy per
token and nothing of size V. Memory is that of one chunk, whatever V is.

Under a mesh with explicit axes (`jax.set_mesh`) the rows may be sharded over
any axes and the head over others along V: each device walks through its own
tokens and its own part of the vocabulary, sums over the vocabulary are a few
numbers per token on the wire, and the gradient of the head is summed over the
row shards once, behind the loop. A head that is also sharded along D (fsdp) is
gathered first. The same code runs without a mesh.

A token whose cotangents are all zero, as the losses give it outside their
mask, never enters the gradient, so NaN in padding stays there.

Dimension key: T positions, D model width, V vocabulary, K ids per token;
`*rows` is any number of leading axes. In the private functions L counts the
tokens of one device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.losses import chunking


class TokenStats(NamedTuple):
  """What the losses read about each target, in float32 and nats.

  Attributes:
    logprobs: log softmax(logits / temperature) at the target; at most 0.
    entropy: of softmax(logits / temperature), between 0 and log V.
    log_normalizer: log sum_v exp(logits_v / temperature), for the z-loss.
  """

  logprobs: Float[Array, "*rows T"]
  entropy: Float[Array, "*rows T"]
  log_normalizer: Float[Array, "*rows T"]


class TopLogprobs(NamedTuple):
  """The K most likely tokens, most likely first.

  Attributes:
    logprobs: under the whole vocabulary, so that their exp sums to at most 1.
    ids: in [0, V).
  """

  logprobs: Float[Array, "*rows T K"]
  ids: Int[Array, "*rows T K"]


def token_stats(
  hidden: Float[Array, "*rows T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "*rows T"],
  *,
  temperature: float = 1.0,
  chunk_size: int | None = None,
) -> TokenStats:
  """Log-prob of each target, and the entropy of what it was drawn from.

  With l = hidden @ head / temperature and Z = sum_v exp(l_v):
  logprob = l_target - log Z and entropy = log Z - sum_v (exp(l_v) / Z) l_v.
  All three results are differentiable in `hidden` and `head`; reverse mode
  only.

  `hidden[..., t, :]` is the state that predicts `targets[..., t]`: the shift by
  one is the caller's.

  Args:
    hidden: last states of the network; products of bfloat16 are accumulated
      in float32.
    head: the unembedding, without a bias.
    targets: ids in [0, V). The log-prob of an id outside means nothing, but is
      finite and harms no other.
    temperature: of the distribution that is scored; above 0.
    chunk_size: in tokens per device; None is 2,048, or as many as make 2**26
      logits. When all tokens fit into one chunk, its logits are kept for the
      backward pass instead of being computed twice.

  Raises:
    ValueError: `temperature` or `chunk_size` is not positive, or rows and
      vocabulary are sharded over the same mesh axis.
  """
  check_temperature(temperature)
  hidden, head = chunking.gather_width(hidden, head)
  logprobs, entropy, log_normalizer = _head(
    hidden, head, targets[..., None], temperature, chunk_size
  )
  return TokenStats(logprobs[..., 0], entropy, log_normalizer)


def logprobs_at(
  hidden: Float[Array, "*rows T D"],
  head: Float[Array, "D V"],
  ids: Int[Array, "*rows T K"],
  *,
  temperature: float = 1.0,
  chunk_size: int | None = None,
) -> Float[Array, "*rows T K"]:
  """Log-probs of K ids per token, as `token_stats` gives that of one.

  Args:
    hidden: as in `token_stats`.
    head: as in `token_stats`.
    ids: in [0, V); they may repeat.
    temperature: as in `token_stats`.
    chunk_size: as in `token_stats`.

  Raises:
    ValueError: as in `token_stats`.
  """
  check_temperature(temperature)
  hidden, head = chunking.gather_width(hidden, head)
  logprobs, _, _ = _head(hidden, head, ids, temperature, chunk_size)
  return logprobs


def top_logprobs(
  hidden: Float[Array, "*rows T D"],
  head: Float[Array, "D V"],
  k: int,
  *,
  temperature: float = 1.0,
  chunk_size: int | None = None,
) -> TopLogprobs:
  """The k most likely tokens at every position; no gradient flows back.

  Args:
    hidden: as in `token_stats`.
    head: as in `token_stats`.
    k: between 1 and V.
    temperature: as in `token_stats`.
    chunk_size: as in `token_stats`.

  Raises:
    ValueError: as in `token_stats`, or `k` is not between 1 and V.
  """
  if not 1 <= k <= head.shape[-1]:
    raise ValueError(f"{k=} must be between 1 and V = {head.shape[-1]}.")
  check_temperature(temperature)
  hidden, head = jax.lax.stop_gradient(chunking.gather_width(hidden, head))
  layout = chunking.layout_of(hidden, head)

  def local(hidden, head):
    def chunk(_, arrays):
      logits = project(*arrays, head, temperature)
      top, log_total = normalize(logits, layout)
      values, ids = jax.lax.top_k(logits, min(k, layout.local_vocab))
      ids += layout.first_id()
      if layout.vocab_axes:
        values, ids = (
          jax.lax.all_gather(x, layout.vocab_axes, axis=-1, tiled=True)
          for x in (values, ids)
        )
        values, order = jax.lax.top_k(values, k)
        ids = jnp.take_along_axis(ids, order, axis=-1)
      return None, (values - top - log_total, ids)

    chunks = layout.num_chunks(chunk_size)
    return chunking.scan_chunks(chunk, None, (hidden,), chunks)[1]

  return TopLogprobs(
    *layout.run(local, (hidden, head), ("tokens", "head"), ("tokens",) * 2)
  )


def mean_logprobs(
  hidden: Float[Array, "*rows T D"],
  head: Float[Array, "D V"],
  log_normalizer: Float[Array, "*rows T"],
  *,
  temperature: float = 1.0,
) -> Float[Array, "*rows T"]:
  """Mean over the vocabulary of the log-probs, which label smoothing needs.

  mean_v l_v - log Z, and the mean of linear logits is that of the head's
  columns: hidden @ mean_v(head) / temperature - log Z.

  Args:
    hidden: as in `token_stats`.
    head: as in `token_stats`.
    log_normalizer: from `token_stats`, of the same temperature.
    temperature: as in `token_stats`.

  Raises:
    ValueError: `temperature` is not positive.
  """
  check_temperature(temperature)
  hidden, head = chunking.gather_width(hidden, head)
  # What is not finite is padding, and must not reach the head's gradient.
  finite = jnp.isfinite(log_normalizer)[..., None]
  hidden = jnp.where(finite, hidden.astype(jnp.float32), 0.0)
  column = jnp.mean(head.astype(jnp.float32), axis=-1)
  mean = jnp.einsum("...d,d->...", hidden, column)
  return mean / temperature - log_normalizer


def stats_from_logits(
  logits: Float[Array, "*rows T V"],
  targets: Int[Array, "*rows T"],
  *,
  temperature: float = 1.0,
) -> TokenStats:
  """As `token_stats`, from logits that exist already.

  For small vocabularies and for models that only give logits. The vocabulary
  must not be sharded over an explicit mesh axis.

  Args:
    logits: before any temperature, of any float type.
    targets: ids in [0, V).
    temperature: as in `token_stats`.

  Raises:
    ValueError: `temperature` is not positive.
  """
  check_temperature(temperature)
  logits = logits.astype(jnp.float32) / temperature
  log_normalizer = jax.nn.logsumexp(logits, axis=-1)
  all_logprobs = logits - log_normalizer[..., None]
  hit = targets[..., None] == jnp.arange(logits.shape[-1])
  return TokenStats(
    logprobs=jnp.sum(jnp.where(hit, all_logprobs, 0.0), axis=-1),
    entropy=-jnp.sum(jnp.exp(all_logprobs) * all_logprobs, axis=-1),
    log_normalizer=log_normalizer,
  )


def check_temperature(temperature: float) -> None:
  """Raises ValueError unless `temperature` is positive."""
  if temperature <= 0:
    raise ValueError(f"{temperature=} must be positive.")


def project(hidden: Array, head: Array, temperature: float) -> Array:
  """Logits [L, V] in float32."""
  logits = jnp.einsum(
    "ld,dv->lv", hidden, head, preferred_element_type=jnp.float32
  )
  return logits if temperature == 1.0 else logits / temperature


def normalize(logits: Array, layout: chunking.Layout) -> tuple[Array, Array]:
  """The largest logit and log sum exp(logits - largest), both [L, 1]."""
  top = layout.max_vocab(jnp.max(logits, axis=-1, keepdims=True))
  total = jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
  return top, jnp.log(layout.sum_vocab(total))


def backproject(
  head_grad: Array,
  hidden: Array,
  head: Array,
  grad: Array,
  layout: chunking.Layout,
) -> tuple[Array, tuple[Array]]:
  """One step of `scan_chunks` backwards, from the gradient [L, V] of logits.

  Returns:
    head_grad [D, V] with this chunk's share added, and the gradient of hidden.
  """
  head_grad += jnp.einsum(
    "ld,lv->dv", hidden, grad, preferred_element_type=jnp.float32
  )
  hidden_grad = jnp.einsum(
    "lv,dv->ld", grad, head, preferred_element_type=jnp.float32
  )
  return head_grad, (layout.sum_vocab(hidden_grad).astype(hidden.dtype),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _head(hidden, head, ids, temperature, chunk_size):
  """Log-probs [*rows T K] at ids, entropy and log-normalizer [*rows T]."""
  return _forward(hidden, head, ids, temperature, chunk_size)[0]


def _forward(hidden, head, ids, temperature, chunk_size):
  layout = chunking.layout_of(hidden, head)
  chunks = layout.num_chunks(chunk_size)

  def local(hidden, head, ids):
    def chunk(_, arrays):
      hidden, ids = arrays
      logits = project(hidden, head, temperature)
      top, log_total = normalize(logits, layout)
      # Around the largest logit, so that large logits do not cancel.
      below = logits - top
      expected = jnp.exp(below - log_total) * below
      picked = _pick(below, ids - layout.first_id())
      results = (
        layout.sum_vocab(picked) - log_total,
        log_total[:, 0] - layout.sum_vocab(jnp.sum(expected, axis=-1)),
        (top + log_total)[:, 0],
      )
      return None, results + (logits,) * (chunks == 1)

    return chunking.scan_chunks(chunk, None, (hidden, ids), chunks)[1]

  logprobs, entropy, log_normalizer, *logits = layout.run(
    local,
    (hidden, head, ids),
    ("tokens", "head", "tokens"),
    ("tokens",) * 3 + ("logits",) * (chunks == 1),
  )
  results = (logprobs, entropy, log_normalizer)
  return results, (hidden, head, ids, entropy, log_normalizer, logits)


def _backward(temperature, chunk_size, residuals, cotangents):
  """Gradients of hidden and head.

  With p the softmax, H the entropy and a, b, c the three cotangents, that of
  logit v is sum_k a_k (1[v = id_k] - p_v) - b p_v (log p_v + H) + c p_v.
  """
  hidden, head, ids, entropy, log_normalizer, logits = residuals
  layout = chunking.layout_of(hidden, head)
  chunks = layout.num_chunks(chunk_size)

  def local(head, *arrays):
    def chunk(head_grad, arrays):
      hidden, ids, entropy, log_normalizer, at_ids, of_entropy, of_z = arrays[
        :7
      ]
      live = jnp.any(at_ids != 0, axis=-1) | (of_entropy != 0) | (of_z != 0)
      live = live[:, None]
      hidden = jnp.where(live, hidden, 0)
      logits = arrays[7] if chunks == 1 else project(hidden, head, temperature)
      log_p = logits - log_normalizer[:, None]
      grad = jnp.exp(log_p) * (
        (of_z - jnp.sum(at_ids, axis=-1))[:, None]
        - of_entropy[:, None] * (log_p + entropy[:, None])
      )
      grad = _add_at(grad, ids - layout.first_id(), at_ids)
      grad = jnp.where(live, grad, 0.0) / temperature
      return backproject(head_grad, hidden, head, grad, layout)

    head_grad, (hidden_grad,) = chunking.scan_chunks(
      chunk, jnp.zeros(head.shape, jnp.float32), arrays, chunks
    )
    return hidden_grad, layout.sum_rows(head_grad).astype(head.dtype)

  token_arrays = (hidden, ids, entropy, log_normalizer, *cotangents)
  hidden_grad, head_grad = layout.run(
    local,
    (head, *token_arrays, *logits),
    ("head",) + ("tokens",) * len(token_arrays) + ("logits",) * len(logits),
    ("tokens", "head"),
  )
  return hidden_grad, head_grad, None


_head.defvjp(_forward, _backward)


def _pick(logits, ids):
  """Entries [L, K] of logits [L, V] at ids; 0 where an id is elsewhere."""
  if ids.shape[-1] == 1:
    hit = ids == jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    return jnp.sum(jnp.where(hit, logits, 0.0), axis=-1, keepdims=True)
  inside = (ids >= 0) & (ids < logits.shape[-1])
  picked = jnp.take_along_axis(logits, jnp.where(inside, ids, 0), axis=-1)
  return jnp.where(inside, picked, 0.0)


def _add_at(logits, ids, x):
  """Adds x [L, K] to logits [L, V] at ids, and ignores ids elsewhere."""
  if ids.shape[-1] == 1:
    hit = ids == jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    return logits + jnp.where(hit, x, 0.0)
  inside = (ids >= 0) & (ids < logits.shape[-1])
  rows = jnp.arange(len(ids))[:, None]
  ids = jnp.where(inside, ids, logits.shape[-1])
  return logits.at[rows, ids].add(x, mode="drop")
