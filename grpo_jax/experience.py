"""From a rollout and its rewards to what the loss reads.

P prompts, G completions each, N completion slots, M pieces.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import advantages as advantages_lib
from grpo_jax import masking, sharding, step
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards.combine import Scores
from grpo_jax.types import Experience, PromptBatch, Rollout

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

  @jax.jit
  def score(
    params: Params,
    prompts: PromptBatch,
    tokens: Int[Array, "P G N"],
    mask: Bool[Array, "P G N"],
  ) -> scoring.Scores:
    def one(piece: Any) -> scoring.Scores:
      prompts, tokens, mask = piece
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

    if num_pieces == 1:
      return one((prompts, tokens, mask))
    pieces = step.cut((prompts, tokens, mask), num_pieces)
    return step.join(jax.lax.map(one, pieces))

  return score


def make_experience(
  rollout: Rollout,
  scores: Scores,
  old: Float[np.ndarray, "P G N"],
  reference: Float[np.ndarray, "P G N"] | None,
  **advantages: Any,
) -> Experience:
  """Returns all that the loss reads but its weights, which are zero still.

  Args:
    rollout: on the host.
    scores: of its P * G completions.
    old: log-probs under the policy that drew, as the trainer scores it.
    reference: log-probs under the reference.
    **advantages: of `advantages.group_advantages`.
  """
  mask = rollout.completion_mask
  groups = mask.shape[:2]
  per_row = advantages_lib.group_advantages(
    jnp.asarray(scores.rewards.reshape(groups)),
    jnp.asarray(scores.valid.reshape(groups)),
    **advantages,
  )
  return Experience(
    prompts=rollout.prompts,
    tokens=rollout.tokens,
    completion_mask=mask,
    old_logprobs=old,
    ref_logprobs=reference,
    sampler_logprobs=rollout.logprobs,
    advantages=np.asarray(per_row)[..., None] * mask,
    weights=np.zeros(mask.shape, np.float32),
  )


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


def minibatches(
  experience: Experience, count: int, weighting: str, length: int
) -> Iterator[Experience]:
  """Yields the experience in `count` parts, each with its update's weights.

  Args:
    experience: of all P prompts.
    count: optimizer updates.
    weighting: a name in `masking.WEIGHTINGS`.
    length: N of the config, which `constant_length` divides by.
  """
  weigh = masking.WEIGHTINGS[weighting]
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
