"""Distillation: a divergence between a teacher and the policy at every token.

With p the teacher, q the policy, over the vocabulary at one position:

  forward_kl  KL(p || q) = sum p (log p - log q), which covers the teacher
  reverse_kl  KL(q || p) = sum q (log q - log p), which seeks one mode
  js          beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q

the last from GKD, https://arxiv.org/abs/2306.13649, section 2.
All are in nats and at least 0. Whether tokens come from the teacher, a dataset
or the policy is the caller's; `on_policy_advantages` is the other way to learn
from a teacher on the policy's own tokens.

The full vocabulary is walked through in chunks as in `vocabulary.py`, the
teacher's logits beside the policy's, both computed again in the backward pass.
From K stored log-probs of the teacher, `top_k_divergence` compares the K tokens
and the rest as one more.

Dimension key: T positions, D and E widths of policy and teacher, V vocabulary,
K stored tokens; `*rows` is any number of leading axes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.losses import chunking, kl, vocabulary

Metrics = dict[str, Float[Array, ""]]


class Divergence(NamedTuple):
  """A divergence of p and q, from log-probs [..., V] and the beta of "js".

  Attributes:
    summands: what each token of the vocabulary adds to it.
    slope: q_v times its derivative in q_v, up to a multiple of q. The
      derivative in logit v is this less q_v times its sum over the vocabulary,
      which no multiple of q changes.
  """

  summands: Callable[[Array, Array, float], Array]
  slope: Callable[[Array, Array, float], Array]


def _js(log_p, log_q, beta):
  log_m = _log_mixture(log_p, log_q, beta)
  of_p = beta * jnp.exp(log_p) * (log_p - log_m)
  return of_p + _js_slope(log_p, log_q, beta)


def _js_slope(log_p, log_q, beta):
  log_m = _log_mixture(log_p, log_q, beta)
  return (1.0 - beta) * jnp.exp(log_q) * (log_q - log_m)


def _log_mixture(log_p, log_q, beta):
  return jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))


def _forward_kl(log_p, log_q, _):
  return jnp.exp(log_p) * (log_p - log_q)


def _forward_kl_slope(log_p, log_q, _):
  return -jnp.exp(log_p)


def _reverse_kl(log_p, log_q, _):
  return jnp.exp(log_q) * (log_q - log_p)


DIVERGENCES = {
  "forward_kl": Divergence(_forward_kl, _forward_kl_slope),
  "reverse_kl": Divergence(_reverse_kl, _reverse_kl),
  "js": Divergence(_js, _js_slope),
}


def distill_loss(
  divergence: Float[Array, "*rows T"], weights: Float[Array, "*rows T"]
) -> tuple[Float[Array, ""], Metrics]:
  """Weighted sum of divergences; the metrics are "weight" and "divergence".

  Args:
    divergence: of each token, from a function of this module.
    weights: each token's share of the update; where 0 nothing is read.
  """
  weights = weights.astype(jnp.float32)
  divergence = jnp.where(weights > 0, divergence.astype(jnp.float32), 0.0)
  loss = jnp.sum(weights * divergence)
  metrics = {"weight": jnp.sum(weights), "divergence": loss}
  return loss, jax.lax.stop_gradient(metrics)


def full_divergence(
  hidden: Float[Array, "*rows T D"],
  head: Float[Array, "D V"],
  teacher_hidden: Float[Array, "*rows T E"],
  teacher_head: Float[Array, "E V"],
  *,
  kind: str = "forward_kl",
  beta: float = 0.5,
  temperature: float = 1.0,
  chunk_size: int | None = None,
) -> Float[Array, "*rows T"]:
  """The divergence over the whole vocabulary, never [T, V] at once.

  Differentiable in `hidden` and `head`, in reverse mode; the teacher is a
  constant. Shardings are handled as in `vocabulary.py`; the teacher's follow
  the policy's.

  Args:
    hidden: last states of the policy.
    head: unembedding of the policy, without a bias.
    teacher_hidden: last states of the teacher at the same tokens.
    teacher_head: unembedding of the teacher, over the same vocabulary.
    kind: a key of `DIVERGENCES`.
    beta: of "js", in (0, 1).
    temperature: of both distributions, above 0. The gradient shrinks with its
      square, which nothing here undoes.
    chunk_size: as in `vocabulary.token_stats`; two arrays of logits live.

  Raises:
    ValueError: as in `vocabulary.token_stats`; an unknown `kind`, or `beta`
      outside (0, 1).
  """
  check(kind=kind, beta=beta, temperature=temperature)
  hidden, head = chunking.gather_width(hidden, head)
  teacher = chunking.gather_width(teacher_hidden, teacher_head)
  settings = (kind, beta, temperature, chunk_size)
  return _divergence(hidden, head, *jax.lax.stop_gradient(teacher), settings)


def divergence(
  hidden: Float[Array, "*rows T D"],
  head: Float[Array, "D V"],
  teacher_hidden: Float[Array, "*rows T E"],
  teacher_head: Float[Array, "E V"],
  *,
  kind: str = "forward_kl",
  beta: float = 0.5,
  temperature: float = 1.0,
  top_k: int = 0,
  chunk_size: int | None = None,
) -> Float[Array, "*rows T"]:
  """`full_divergence`, or `top_k_divergence` over the teacher's K tokens.

  Args:
    hidden: as in `full_divergence`.
    head: as in `full_divergence`.
    teacher_hidden: as in `full_divergence`.
    teacher_head: as in `full_divergence`.
    kind: a key of `DIVERGENCES`.
    beta: of "js", in (0, 1).
    temperature: of both distributions, above 0.
    top_k: K, at most V; 0 for the whole vocabulary.
    chunk_size: as in `vocabulary.token_stats`.

  Raises:
    ValueError: an unknown `kind`, or an argument out of its range.
  """
  if not top_k:
    return full_divergence(
      hidden,
      head,
      teacher_hidden,
      teacher_head,
      kind=kind,
      beta=beta,
      temperature=temperature,
      chunk_size=chunk_size,
    )
  options = dict(temperature=temperature, chunk_size=chunk_size)
  top = vocabulary.top_logprobs(teacher_hidden, teacher_head, top_k, **options)
  logprobs = vocabulary.logprobs_at(hidden, head, top.ids, **options)
  return top_k_divergence(logprobs, top.logprobs, kind=kind, beta=beta)


def logits_divergence(
  logits: Float[Array, "*rows T V"],
  teacher_logits: Float[Array, "*rows T V"],
  *,
  kind: str = "forward_kl",
  beta: float = 0.5,
  temperature: float = 1.0,
) -> Float[Array, "*rows T"]:
  """As `full_divergence`, from logits that exist already.

  Args:
    logits: of the policy; carries the gradient.
    teacher_logits: of the teacher; constants.
    kind: a key of `DIVERGENCES`.
    beta: of "js", in (0, 1).
    temperature: of both distributions, above 0.

  Raises:
    ValueError: an unknown `kind`, or an argument out of its range.
  """
  check(kind=kind, beta=beta, temperature=temperature)
  log_q = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  log_p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
  summands = DIVERGENCES[kind].summands
  return jnp.sum(summands(jax.lax.stop_gradient(log_p), log_q, beta), axis=-1)


def top_k_divergence(
  logprobs: Float[Array, "*rows T K"],
  teacher_logprobs: Float[Array, "*rows T K"],
  *,
  kind: str = "forward_kl",
  beta: float = 0.5,
) -> Float[Array, "*rows T"]:
  """The divergence over K tokens of the teacher and the rest as one more.

  Both distributions become K + 1 numbers that sum to 1. By the data-processing
  inequality this is at most the divergence over the whole vocabulary, and it
  falls to 0 when the K tokens agree; nothing is renormalized.

  Args:
    logprobs: of the policy at the teacher's tokens, over its whole vocabulary:
      `vocabulary.logprobs_at`. Carries the gradient.
    teacher_logprobs: of the teacher at K different tokens, over its whole
      vocabulary: `vocabulary.top_logprobs`. Constants.
    kind: a key of `DIVERGENCES`.
    beta: of "js", in (0, 1).

  Raises:
    ValueError: an unknown `kind`, or `beta` outside (0, 1).
  """
  check(kind=kind, beta=beta)
  log_q = _with_rest(logprobs.astype(jnp.float32))
  log_p = _with_rest(teacher_logprobs.astype(jnp.float32))
  summands = DIVERGENCES[kind].summands
  return jnp.sum(summands(jax.lax.stop_gradient(log_p), log_q, beta), axis=-1)


def on_policy_advantages(
  old_logprobs: Float[Array, "*rows T"],
  teacher_logprobs: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
) -> Float[Array, "*rows T"]:
  """Distillation as an advantage of each token, log p - log pi_old.

  The negative of a one-token estimate of the reverse KL, so that any objective
  of `policy.py` lowers it on the policy's own tokens, without looking ahead
  (discount 0): https://thinkingmachines.ai/blog/on-policy-distillation. It adds
  to advantages from rewards.

  Args:
    old_logprobs: of the policy that drew the tokens, in nats.
    teacher_logprobs: of the teacher at the same tokens.
    mask: the tokens that the policy chose; 0 outside.
  """
  return jax.lax.stop_gradient(
    kl.masked_difference(teacher_logprobs, old_logprobs, mask)
  )


def check(
  *,
  kind: str = "forward_kl",
  beta: float = 0.5,
  temperature: float = 1.0,
  top_k: int = 0,
) -> None:
  """Refuses what `full_divergence` refuses; call it with the config.

  Raises:
    ValueError: an unknown `kind`, or an argument out of its range.
  """
  if kind not in DIVERGENCES:
    raise ValueError(f"{kind=} must be one of {tuple(DIVERGENCES)}.")
  if kind == "js" and not 0 < beta < 1:
    raise ValueError(f"{beta=} must be between 0 and 1.")
  if top_k < 0:
    raise ValueError(f"{top_k=} must not be negative.")
  vocabulary.check_temperature(temperature)


def _with_rest(logprobs):
  """Appends the log-prob of all other tokens, at least e^-16 of the whole."""
  inside = jax.nn.logsumexp(logprobs, axis=-1, keepdims=True)
  # Off 1, where nothing is left and the logarithm has no gradient.
  inside = jnp.minimum(inside, -1e-7)
  return jnp.concatenate([logprobs, jnp.log(-jnp.expm1(inside))], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _divergence(hidden, head, teacher_hidden, teacher_head, settings):
  return _forward(hidden, head, teacher_hidden, teacher_head, settings)[0]


def _log_softmax(hidden, head, temperature, layout):
  logits = vocabulary.project(hidden, head, temperature)
  top, log_total = vocabulary.normalize(logits, layout)
  return logits - top - log_total


def _forward(hidden, head, teacher_hidden, teacher_head, settings):
  kind, beta, temperature, chunk_size = settings
  layout = chunking.layout_of(hidden, head)

  def local(hidden, head, teacher_hidden, teacher_head):
    def chunk(_, arrays):
      hidden, teacher_hidden = arrays
      log_q = _log_softmax(hidden, head, temperature, layout)
      log_p = _log_softmax(teacher_hidden, teacher_head, temperature, layout)
      summands = DIVERGENCES[kind].summands(log_p, log_q, beta)
      return None, (layout.sum_vocab(jnp.sum(summands, axis=-1)),)

    chunks = layout.num_chunks(chunk_size)
    arrays = (hidden, teacher_hidden)
    return chunking.scan_chunks(chunk, None, arrays, chunks)[1]

  args = (hidden, head, teacher_hidden, teacher_head)
  kinds = ("tokens", "head") * 2
  (divergence,) = layout.run(local, args, kinds, ("tokens",))
  return divergence, args


def _backward(settings, residuals, cotangent):
  kind, beta, temperature, chunk_size = settings
  hidden, head, teacher_hidden, teacher_head = residuals
  layout = chunking.layout_of(hidden, head)

  def local(hidden, head, teacher_hidden, teacher_head, cotangent):
    def chunk(head_grad, arrays):
      hidden, teacher_hidden, cotangent = arrays
      live = (cotangent != 0)[:, None]
      hidden = jnp.where(live, hidden, 0)
      teacher_hidden = jnp.where(live, teacher_hidden, 0)
      log_q = _log_softmax(hidden, head, temperature, layout)
      log_p = _log_softmax(teacher_hidden, teacher_head, temperature, layout)
      slope = DIVERGENCES[kind].slope(log_p, log_q, beta)
      total = layout.sum_vocab(jnp.sum(slope, axis=-1, keepdims=True))
      grad = slope - jnp.exp(log_q) * total
      grad *= (cotangent / temperature)[:, None]
      return vocabulary.backproject(head_grad, hidden, head, grad, layout)

    head_grad, (hidden_grad,) = chunking.scan_chunks(
      chunk,
      jnp.zeros(head.shape, jnp.float32),
      (hidden, teacher_hidden, cotangent),
      layout.num_chunks(chunk_size),
    )
    return hidden_grad, layout.sum_rows(head_grad).astype(head.dtype)

  hidden_grad, head_grad = layout.run(
    local,
    (*residuals, cotangent),
    ("tokens", "head") * 2 + ("tokens",),
    ("tokens", "head"),
  )
  return hidden_grad, head_grad, None, None


_divergence.defvjp(_forward, _backward)
