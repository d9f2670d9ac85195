"""Completions of many problems, batch by batch.

P prompts a batch, k completions each, N completion slots. What is drawn for a
problem depends on its place among the problems, not on the batches.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from grpo_jax import sharding
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.sampling import decode
from grpo_jax.types import Problem


class Completions(NamedTuple):
  """Completions of up to P problems; row p * k + i answers problem p.

  Attributes:
    problems: of each row.
    texts: without prompt and stop token.
    lengths: in tokens, the stop token included.
    truncated: ran out of room before a stop token.
  """

  problems: list[Problem]
  texts: list[str]
  lengths: Int[np.ndarray, " rows"]
  truncated: Bool[np.ndarray, " rows"]


def generate(
  params: Params,
  cfg: ModelConfig,
  tok: tokenizer.Tokenizer,
  problems: Sequence[Problem],
  encoded: Sequence[np.ndarray],
  key: Key[Array, ""],
  mesh: Mesh,
  *,
  prompt_slots: int,
  prompts_per_batch: int,
  sampling: decode.SamplingParams,
  first_batch: int = 0,
) -> Iterator[Completions]:
  """Yields `sampling.group_size` completions of each problem, in their order.

  Args:
    params: of the policy.
    cfg: the model.
    tok: its tokenizer.
    problems: with their prompts.
    encoded: ids of each prompt; both are what `prompts.ask` returned.
    key: of the draws.
    mesh: to place prompts on.
    prompt_slots: S, at least the tokens of the longest prompt.
    prompts_per_batch: P; the last batch is filled up, so that there is one
      program.
    sampling: how to draw.
    first_batch: of those to yield; the ones before it are not drawn.
  """
  size, k = prompts_per_batch, sampling.group_size
  axes = sharding.split_rows(mesh, size, k)
  for start in range(first_batch * size, len(problems), size):
    ids = list(encoded[start : start + size])
    real = len(ids)
    ids += [ids[-1]] * (size - real)
    batch = prompts.pad_prompts(ids, tok, prompt_slots)
    rollout = decode.sample(
      params,
      cfg,
      sharding.place(mesh, batch, axes[:1]),
      key,
      sampling=sampling,
      eos_ids=tok.eos_ids,
      first_row=start * k,
    )
    tokens, mask, truncated = sharding.to_host(
      (rollout.tokens, rollout.completion_mask, rollout.truncated)
    )
    yield Completions(
      [p for p in problems[start : start + size] for _ in range(k)],
      decoded(tok, tokens[:real], mask[:real]),
      mask[:real].sum(axis=-1).ravel(),
      truncated[:real].ravel(),
    )


def decoded(
  tok: tokenizer.Tokenizer, tokens: np.ndarray, mask: np.ndarray
) -> list[str]:
  """Returns the text of each completion, [P, G, N] to P * G of them."""
  length = tokens.shape[-1]
  rows = zip(tokens.reshape(-1, length), mask.reshape(-1, length), strict=True)
  return [tok.decode(row[inside].tolist()) for row, inside in rows]
