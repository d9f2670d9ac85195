"""How problems are asked, and what of an answer is read."""

import numpy as np

from grpo_jax import types
from grpo_jax.curation import ask
from grpo_jax.sampling import decode


def test_thinking_that_the_prompt_opened_is_opened_by_the_text():
  problem = types.Problem("q", "a", "pair_sum", "User: q\nAssistant:<think>")
  batch = types.Completions(
    [problem] * 2,
    ["so</think>a", "so</think>a\nUser: more"],
    np.array([3, 9]),
    np.array([False, True]),
  )
  asked = ask.Asking(None, [], [], 1, decode.SamplingParams(), "User:", {})
  read = ask.readable(batch, asked)
  assert read.texts == ["<think>so</think>a"] * 2
  assert [p.prompt for p in read.problems] == ["User: q\nAssistant:"] * 2
  assert read.lengths.tolist() == [3, 9]
  assert read.truncated.tolist() == [False, False]


def test_batches_hold_all_completions_and_the_last_is_smaller():
  problems = [types.Problem("q", "a", "pair_sum", "q")] * 7
  sampling = decode.SamplingParams(group_size=3)
  asked = ask.Asking(None, problems, [], 4, sampling, "", {})
  assert ask.batch_rows(asked) == [12, 9]
