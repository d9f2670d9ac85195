"""A judge that is a model of ours, on the devices of the run.

P prompts of the judge, S prompt slots.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from grpo_jax import sharding
from grpo_jax.data import prompts as prompts_lib
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards.judges.judge import Reply
from grpo_jax.sampling import decode


class Judge(NamedTuple):
  """A model and how it is asked.

  Attributes:
    template: text with `{question}` in it, where the judge's prompt goes.
    sampling: of a reply; its group size is not read.
    prompt_slots: S. A longer prompt has no reply.
    prompts_per_batch: P of one program; fewer are filled up.
    seed: of the replies, with a prompt's place among the prompts.
  """

  params: Params
  cfg: ModelConfig
  tokenizer: tokenizer.Tokenizer
  mesh: Mesh
  template: str
  sampling: decode.SamplingParams
  prompt_slots: int
  prompts_per_batch: int
  seed: int = 0


def ask(
  judge: Judge, prompts: Sequence[str], votes: int = 1
) -> list[list[Reply]]:
  """`votes` replies to each prompt; one cut by `max_new_tokens` is none.

  Text of a completion is tokenized as text is: where the tokenizer has symbols
  such as the tags of thinking, it may hold them.
  """
  tok, size = judge.tokenizer, judge.prompts_per_batch
  texts = [judge.template.replace("{question}", p) for p in prompts]
  begin = [] if tok.bos_id is None else [tok.bos_id]
  lengths = [len(begin) + len(ids) for ids in tok.encode_batch(texts)]
  fits = [i for i, n in enumerate(lengths) if n <= judge.prompt_slots]
  too_long = Reply(None, f"A prompt exceeds prompt_slots={judge.prompt_slots}.")
  replies = [[too_long] * votes for _ in prompts]
  axes = sharding.split_rows(judge.mesh, size, votes)
  sampling = dataclasses.replace(judge.sampling, group_size=votes)
  with jax.set_mesh(judge.mesh):
    for start in range(0, len(fits), size):
      rows = fits[start : start + size]
      # One shape, hence one program.
      shown = [texts[i] for i in rows + rows[-1:] * (size - len(rows))]
      batch = prompts_lib.pad_prompts(shown, tok, judge.prompt_slots)
      rollout = decode.sample(
        judge.params,
        judge.cfg,
        sharding.place(judge.mesh, batch, axes[:1]),
        jax.random.key(judge.seed),
        sampling=sampling,
        eos_ids=tok.eos_ids,
        first_row=start * votes,
      )
      tokens, mask, truncated = sharding.to_host(
        (rollout.tokens, rollout.completion_mask, rollout.truncated)
      )
      for p, row in enumerate(rows):
        replies[row] = [
          Reply(None, "The reply was cut at max_new_tokens.")
          if truncated[p, g]
          else Reply(tok.decode(tokens[p, g, mask[p, g]].tolist()))
          for g in range(votes)
        ]
  return replies
