"""A judge that is a model of ours, on the devices of the run.

P prompts of the judge, S prompt slots.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax

from grpo_jax.data import prompts as prompts_lib
from grpo_jax.rewards.judges.judge import Reply
from grpo_jax.sampling import decode, generate


class Judge(NamedTuple):
  """A model and how it is asked.

  Attributes:
    policy: the model.
    template: text with `{question}` in it, where the judge's prompt goes.
    sampling: of a reply; its group size is not read.
    prompt_slots: S. A longer prompt has no reply.
    prompts_per_batch: P of one program; fewer are filled up.
    seed: of the replies, with a prompt's place among the prompts.
  """

  policy: generate.Policy
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
  tok, size = judge.policy.tok, judge.prompts_per_batch
  texts = [judge.template.replace("{question}", p) for p in prompts]
  begin = [] if tok.bos_id is None else [tok.bos_id]
  lengths = [len(begin) + len(ids) for ids in tok.encode_batch(texts)]
  fits = [i for i, n in enumerate(lengths) if n <= judge.prompt_slots]
  too_long = Reply(None, f"A prompt exceeds prompt_slots={judge.prompt_slots}.")
  replies = [[too_long] * votes for _ in prompts]
  sampling = dataclasses.replace(judge.sampling, group_size=votes)
  key = jax.random.key(judge.seed)
  for start in range(0, len(fits), size):
    rows = fits[start : start + size]
    # One shape, hence one program.
    shown = [texts[i] for i in rows + rows[-1:] * (size - len(rows))]
    batch = prompts_lib.pad_prompts(shown, tok, judge.prompt_slots)
    with jax.set_mesh(judge.policy.mesh):
      drawn = generate.draw(judge.policy, batch, key, sampling, start * votes)
    said = generate.decoded(tok, drawn.tokens, drawn.completion_mask)
    for p, row in enumerate(rows):
      replies[row] = [
        Reply(None, "The reply was cut at max_new_tokens.")
        if drawn.truncated[p, g]
        else Reply(said[p * votes + g])
        for g in range(votes)
      ]
  return replies
