"""From completions and their rewards to what the loss reads.

P prompts, G completions each, K reward terms, N completion slots.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from grpo_jax import sharding
from grpo_jax.losses import advantages as advantages_lib
from grpo_jax.losses import correction as correction_lib
from grpo_jax.losses import weighting as weighting_lib
from grpo_jax.types import (
  Completions,
  Experience,
  Rollout,
  TextBatch,
  cut_groups,
)

# The reward that says whether a completion solved its problem.
OUTCOME = "accuracy"
# By the rollouts beside a term's own metrics: what the greedy completion earns.
GREEDY = "greedy_reward"


class Scored(NamedTuple):
  """A rollout as the trainer's models see it, on the host.

  Attributes:
    old_logprobs: under the policy that drew, in nats.
    entropy: of that policy at each token, in nats.
    ref_logprobs: under the reference; None where nothing reads it.
    values: returns as the value model predicts them; None where there is none.
  """

  old_logprobs: Float[np.ndarray, "P G N"]
  entropy: Float[np.ndarray, "P G N"]
  ref_logprobs: Float[np.ndarray, "P G N"] | None = None
  values: Float[np.ndarray, "P G N"] | None = None


def make_experience(
  completions: Completions,
  scored: Scored,
  *,
  advantages: Mapping[str, Any] | None = None,
  correction: Mapping[str, Any] | None = None,
  term_weights: Mapping[str, float] | None = None,
) -> Experience:
  """Returns all that the loss reads but its weights, which are zero still.

  Args:
    completions: with their rollout and rewards.
    scored: their tokens.
    advantages: `kind`, a name in `losses.advantages.ADVANTAGES`, and its
      options; by default those of groups.
    correction: `kind`, a name in `losses.correction.CORRECTIONS`, and its
      options; by default none.
    term_weights: of the reward terms by name, where the advantages read terms.
  """
  rollout = completions.rollout
  data = jax.tree.map(jnp.asarray, _data(completions, scored, term_weights))
  returns = factor = None
  found = _call(
    advantages_lib.ADVANTAGES, advantages or {"kind": "group"}, data
  )
  if isinstance(found, tuple):
    found, returns = found
  if found.ndim == 2:
    found = advantages_lib.spread(found, data["mask"])
  data["advantages"] = found
  if correction and correction["kind"] != "none":
    factor = _call(correction_lib.CORRECTIONS, correction, data)
  found, returns, factor = jax.device_get((found, returns, factor))
  return Experience(
    prompts=rollout.prompts,
    tokens=rollout.tokens,
    completion_mask=rollout.completion_mask,
    old_logprobs=scored.old_logprobs,
    ref_logprobs=scored.ref_logprobs,
    sampler_logprobs=rollout.logprobs,
    advantages=found,
    weights=np.zeros(rollout.tokens.shape, np.float32),
    correction=factor,
    values=scored.values,
    returns=returns,
  )


def data_of(function: Callable[..., Any]) -> list[str]:
  """Returns the data that a row of a table reads, by name."""
  parameters = inspect.signature(function).parameters.values()
  return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _call(
  table: Mapping[str, Callable[..., Any]],
  section: Mapping[str, Any],
  data: Mapping[str, Any],
) -> Any:
  """Calls the row that a section names, with its data and its options."""
  options = {name: x for name, x in section.items() if name != "kind"}
  row = table[section["kind"]]
  return row(**{name: data[name] for name in data_of(row)}, **options)


def _data(
  completions: Completions,
  scored: Scored,
  term_weights: Mapping[str, float] | None,
) -> dict[str, Any]:
  """All that a row of a table may read, by name; None where there is none."""
  rewards, rollout = completions.rewards, completions.rollout
  mask = rollout.completion_mask
  shape = mask.shape[:2]
  names = list(rewards.terms)
  weights = term_weights or dict.fromkeys(names, 1.0)
  data = {
    "rewards": rewards.total.reshape(shape),
    "valid": rewards.valid.reshape(shape),
    "mask": mask,
    "lengths": mask.sum(axis=-1),
    "sampler_logprobs": rollout.logprobs,
    **scored._asdict(),
  }
  if names:
    data["terms"] = np.stack([rewards.terms[n].reshape(shape) for n in names])
    data["term_weights"] = np.array([weights[n] for n in names], np.float32)
  if OUTCOME in rewards.terms:
    data["correct"] = rewards.terms[OUTCOME].reshape(shape) > 0.5
  if GREEDY in rewards.metrics:
    data["greedy_rewards"] = rewards.metrics[GREEDY].reshape(shape)[:, 0]
  return data


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
  """Returns host arrays as global ones, split so that microbatches are too.

  Groups are cut where `sharding.group_parts` says so.
  """
  prompts, group = tree.tokens.shape[:2]
  shape = prompts // num_microbatches, group
  axes = sharding.split_rows(mesh, *shape)
  tree = cut_groups(tree, sharding.group_parts(mesh, *shape))
  rows = {name: x for name, x in vars(tree).items() if name != "prompts"}
  return tree.replace(
    prompts=sharding.place(mesh, tree.prompts, axes[:1]),
    **sharding.place(mesh, rows, axes),
  )
