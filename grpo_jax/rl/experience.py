"""From a rollout and its rewards to what the loss reads.

P prompts, G completions each, S prompt slots, N completion slots, M pieces.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.losses import advantages as advantages_lib
from grpo_jax.losses import kl
from grpo_jax.losses import weighting as weighting_lib
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards.combine import Scores
from grpo_jax.train import update
from grpo_jax.types import Experience, PromptBatch, Rollout, TextBatch

ScoreFn = Callable[[Params, PromptBatch, Any, Any], scoring.Scores]


def make_score(
  cfg: ModelConfig, temperature: float, num_pieces: int
) -> ScoreFn:
  """Returns the jitted `(params, prompts, tokens, mask) -> Scores`.

  Their load is empty: it is told of the pass that has a gradient.

  Args:
    cfg: the model.
    temperature: of sampling.
    num_pieces: prompts are scored in this many pieces, one after the other.
  """

  def score(
    params: Params,
    prompts: PromptBatch,
    tokens: Int[Array, "P G N"],
    mask: Bool[Array, "P G N"],
  ) -> scoring.Scores:
    scores = scoring.score_completions(
      params,
      cfg,
      prompts.tokens,
      prompts.mask,
      tokens,
      mask,
      temperature=temperature,
    )
    return scores._replace(load={})

  return jax.jit(in_pieces(score, num_pieces))


def in_pieces(score: Callable[..., Any], num_pieces: int) -> Callable[..., Any]:
  """Returns `(params, *rows)` that goes through the rows piece by piece."""

  def whole(params: Params, *rows: Any) -> Any:
    if num_pieces == 1:
      return score(params, *rows)
    pieces = update.cut(rows, num_pieces)
    return update.join(jax.lax.map(lambda piece: score(params, *piece), pieces))

  return whole


def make_experience(
  rollout: Rollout,
  scores: Scores,
  old: Float[np.ndarray, "P G N"],
  reference: Float[np.ndarray, "P G N"] | None,
  values: Float[np.ndarray, "P G N"] | None = None,
  **advantages: Any,
) -> Experience:
  """Returns all that the loss reads but its weights, which are zero still.

  Args:
    rollout: on the host.
    scores: of its P * G completions.
    old: log-probs under the policy that drew, as the trainer scores it.
    reference: log-probs under the reference.
    values: returns as the value model predicts them; None where there is none.
    **advantages: of `advantages.group_advantages`, or with values of
      `token_advantages`.
  """
  mask = rollout.completion_mask
  per_row = (scores.rewards, scores.valid)
  rewards, valid = (jnp.asarray(x.reshape(mask.shape[:2])) for x in per_row)
  if values is None:
    by_group = advantages_lib.group_advantages(rewards, valid, **advantages)
    per_token, returns = np.asarray(by_group)[..., None] * mask, None
  else:
    rows = jax.tree.map(jnp.asarray, (mask, old, reference, values))
    per_token, returns = jax.device_get(
      token_advantages(rewards, valid, *rows, **advantages)
    )
  return Experience(
    prompts=rollout.prompts,
    tokens=rollout.tokens,
    completion_mask=mask,
    old_logprobs=old,
    ref_logprobs=reference,
    sampler_logprobs=rollout.logprobs,
    advantages=per_token,
    weights=np.zeros(mask.shape, np.float32),
    values=values,
    returns=returns,
  )


def token_advantages(
  rewards: Float[Array, "P G"],
  valid: Bool[Array, "P G"],
  mask: Bool[Array, "P G N"],
  old: Float[Array, "P G N"],
  reference: Float[Array, "P G N"] | None,
  values: Float[Array, "P G N"],
  *,
  discount: float = 1.0,
  lambda_: float = 1.0,
  kl_coef: float = 0.0,
  normalize: bool = True,
) -> tuple[Float[Array, "P G N"], Float[Array, "P G N"]]:
  """Advantages of PPO, and the returns that its values are to predict.

  A completion's reward is that of its last token, and a KL term that of each:
  InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5. Then
  `advantages.gae`; behind the last token the value is 0, in a truncated
  completion too, whose reward is for what there is of it.

  Args:
    rewards: of completions.
    valid: False where there is none: advantages are 0 and returns NaN.
    mask: the tokens that the policy chose.
    old: log-probs under the policy that drew.
    reference: log-probs under the reference; read where `kl_coef` is not 0.
    values: as predicted before each token.
    discount: as in `advantages.gae`.
    lambda_: as in `advantages.gae`.
    kl_coef: reward that a nat of `log pi_old - log pi_ref` costs.
    normalize: advantages have mean 0 and standard deviation 1 over all tokens
      of the rollout.
  """
  lengths = jnp.sum(mask, axis=-1, keepdims=True)
  is_last = mask & (jnp.cumsum(mask, axis=-1) == lengths)
  known = mask & valid[..., None]
  per_token = jnp.where(is_last & known, rewards[..., None], 0.0)
  if kl_coef:
    per_token += kl.reward_penalty(old, reference, mask, kl_coef=kl_coef)
  gae = functools.partial(
    advantages_lib.gae, discount=discount, lambda_=lambda_
  )
  estimates = jax.vmap(jax.vmap(gae))(per_token, values, mask)
  returns = jnp.where(known, estimates + values, jnp.nan)
  estimates = jnp.where(known, estimates, 0.0)
  if normalize:
    estimates = advantages_lib.batch_normalize(estimates, known)
  return estimates, returns


def trim(rollout: Rollout, multiple: int) -> Rollout:
  """Returns the rollout without slots that no completion uses.

  The length is rounded up to a multiple, so that few programs are compiled.
  """
  slots = rollout.tokens.shape[-1]
  longest = int(rollout.completion_mask.sum(axis=-1).max())
  keep = min(-(-longest // multiple) * multiple, slots)
  return rollout.replace(
    tokens=rollout.tokens[..., :keep],
    completion_mask=rollout.completion_mask[..., :keep],
    logprobs=rollout.logprobs[..., :keep],
  )


def as_text(rollout: Rollout) -> TextBatch:
  """Returns a rollout on the host as P * G rows of text of S + N positions.

  The weights are the token mean over what the policy chose.
  """
  group, slots = rollout.tokens.shape[1:]

  def join(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
    repeated = np.repeat(prompts, group, axis=0)
    return np.concatenate([repeated, completions.reshape(-1, slots)], axis=1)

  real = join(rollout.prompts.mask, rollout.completion_mask)
  weights = weighting_lib.token_mean(jnp.asarray(rollout.completion_mask))
  return TextBatch(
    tokens=join(rollout.prompts.tokens, rollout.tokens),
    segments=real.astype(np.int32),
    positions=np.asarray(weighting_lib.positions(jnp.asarray(real))),
    weights=join(
      np.zeros(rollout.prompts.mask.shape, np.float32), np.asarray(weights)
    ),
  )


def minibatches(
  experience: Experience, count: int, weighting: str, length: int
) -> Iterator[Experience]:
  """Yields the experience in `count` parts, each with its update's weights.

  Args:
    experience: of all P prompts.
    count: optimizer updates.
    weighting: a name in `weighting.WEIGHTINGS`.
    length: N of the config, which `constant_length` divides by.
  """
  weigh: Callable[..., Any] = weighting_lib.WEIGHTINGS[weighting]
  if weighting == "constant_length":
    weigh = functools.partial(weigh, length=length)
  size = experience.tokens.shape[0] // count
  for first in range(0, size * count, size):
    part = jax.tree.map(lambda x, i=first: x[i : i + size], experience)
    weights = weigh(jnp.asarray(part.completion_mask))
    yield part.replace(weights=np.asarray(weights))


def place(
  tree: Experience | Rollout, mesh: Mesh, num_microbatches: int = 1
) -> Experience | Rollout:
  """Returns host arrays as global ones, split so that microbatches are too."""
  prompts, group = tree.tokens.shape[:2]
  axes = sharding.split_rows(mesh, prompts // num_microbatches, group)
  rows = {name: x for name, x in vars(tree).items() if name != "prompts"}
  return tree.replace(
    prompts=sharding.place(mesh, tree.prompts, axes[:1]),
    **sharding.place(mesh, rows, axes),
  )
