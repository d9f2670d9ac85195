"""Completions of many problems, batch by batch: the only way to draw them.

P prompts a batch, G completions each, N completion slots. What is drawn for a
problem depends on its place among the problems, not on the batches.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from grpo_jax import sharding
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.sampling import decode
from grpo_jax.types import (
  Completions,
  Problem,
  PromptBatch,
  Rollout,
  join_groups,
)


class Policy(NamedTuple):
  """A model that is asked, and where it lies.

  Attributes:
    params: its parameters.
    cfg: the model.
    tok: its tokenizer.
    mesh: that the parameters are on.
    step: of the checkpoint that they are from.
  """

  params: Params
  cfg: ModelConfig
  tok: tokenizer.Tokenizer
  mesh: Mesh
  step: int = 0


def draw(
  policy: Policy,
  batch: PromptBatch,
  key: Key[Array, ""],
  sampling: decode.SamplingParams,
  first_row: int = 0,
) -> Rollout:
  """Returns G completions of each prompt, on the host.

  Args:
    policy: whom to ask.
    batch: of P prompts, on the host.
    key: of the draws.
    sampling: how to draw.
    first_row: number of the first completion among all under this key.
  """
  shape = len(batch.tokens), sampling.group_size
  axes = sharding.split_rows(policy.mesh, *shape)
  parts = sharding.group_parts(policy.mesh, *shape)
  rollout = decode.sample(
    policy.params,
    policy.cfg,
    sharding.place(policy.mesh, batch.repeated(parts), axes[:1]),
    key,
    sampling=dataclasses.replace(sampling, group_size=shape[1] // parts),
    eos_ids=policy.tok.eos_ids,
    first_row=first_row,
  )
  return join_groups(sharding.to_host(rollout))


def generate(
  policy: Policy,
  problems: Sequence[Problem],
  encoded: Sequence[np.ndarray],
  key: Key[Array, ""],
  *,
  prompt_slots: int,
  prompts_per_batch: int,
  sampling: decode.SamplingParams,
  first_batch: int = 0,
) -> Iterator[Completions]:
  """Yields `sampling.group_size` completions of each problem, in their order.

  Args:
    policy: whom to ask.
    problems: with their prompts.
    encoded: ids of each prompt; both are what `prompts.ask` returned.
    key: of the draws.
    prompt_slots: S, at least the tokens of the longest prompt.
    prompts_per_batch: P; the last batch is filled up, so that there is one
      program.
    sampling: how to draw.
    first_batch: of those to yield; the ones before it are not drawn.
  """
  size, group = prompts_per_batch, sampling.group_size
  for start in range(first_batch * size, len(problems), size):
    ids = list(encoded[start : start + size])
    real = len(ids)
    ids += [ids[-1]] * (size - real)
    batch = prompts.pad_prompts(ids, policy.tok, prompt_slots)
    rollout = draw(policy, batch, key, sampling, start * group)
    yield completions_of(
      policy.tok,
      [p for p in problems[start : start + size] for _ in range(group)],
      rollout,
    ).replace(rollout=None)


def completions_of(
  tok: tokenizer.Tokenizer, rows: Sequence[Problem], rollout: Rollout
) -> Completions:
  """Returns the first groups of a rollout as text, one for each G of `rows`.

  Args:
    tok: of the policy.
    rows: the problem of each completion; the prompts behind them are left out.
    rollout: on the host.
  """
  group = rollout.tokens.shape[1]
  count = len(rows) // group
  tokens, mask, truncated = (
    np.asarray(x)[:count]
    for x in (rollout.tokens, rollout.completion_mask, rollout.truncated)
  )
  return Completions(
    list(rows),
    decoded(tok, tokens, mask),
    mask.sum(axis=-1).ravel(),
    truncated.ravel(),
    group,
    rollout=rollout,
  )


def decoded(
  tok: tokenizer.Tokenizer, tokens: np.ndarray, mask: np.ndarray
) -> list[str]:
  """Returns the text of each completion, [P, G, N] to P * G of them."""
  length = tokens.shape[-1]
  rows = zip(tokens.reshape(-1, length), mask.reshape(-1, length), strict=True)
  return [
    tokenizer.decode_after(tok, row[inside].tolist()) for row, inside in rows
  ]
