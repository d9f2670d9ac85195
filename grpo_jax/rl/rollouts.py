"""What is asked at a step, what is drawn, and what it earns.

P prompts, G completions each; B = P * G rows, row b in group b // G.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from grpo_jax import errors
from grpo_jax.rewards import combine
from grpo_jax.rl import curriculum as curriculum_lib
from grpo_jax.rl import dynamic_sampling
from grpo_jax.rl.dynamic_sampling import Pending
from grpo_jax.rl.experience import GREEDY
from grpo_jax.runs import progress
from grpo_jax.sampling import decode, generate
from grpo_jax.types import Completions, Problem, PromptBatch, Rewards


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """How a run comes to its completions.

  Attributes:
    curriculum: the prompts, one batch after the other.
    rewards: a section of terms; see `combine.score`.
    key: of the draws; the turn of the curriculum is folded in.
    timer: of the phases of a step.
    dynamic_sampling: options of `dynamic_sampling.fill`; None without it.
    greedy: whether each prompt is also answered once at temperature 0, whose
      reward is a metric of the group's rows.
  """

  curriculum: curriculum_lib.Curriculum
  rewards: errors.Section
  key: Key[Array, ""]
  timer: progress.Timer
  dynamic_sampling: Mapping[str, Any] | None = None
  greedy: bool = False

  def draw(
    self, policy: generate.Policy, step: int, sampling: decode.SamplingParams
  ) -> tuple[Pending, dict[str, int]]:
    """Returns completions of the next prompts, and counts to log.

    Args:
      policy: whom to ask.
      step: steps done.
      sampling: how to draw.
    """
    if self.dynamic_sampling is None:
      return self._ask(policy, step, sampling), {}
    completions, counts = dynamic_sampling.fill(
      lambda: self._ask(policy, step, sampling), **self.dynamic_sampling
    )
    return Pending(completions, lambda: completions.rewards), counts

  def _ask(
    self, policy: generate.Policy, step: int, sampling: decode.SamplingParams
  ) -> Pending:
    """Completions of P prompts, with their rewards on their way."""
    with self.timer.phase("data"):
      asked = self.curriculum.next(step)
    with self.timer.phase("sample"):
      key = jax.random.fold_in(self.key, asked.turn)
      drawn = _drawn(policy, asked.problems, asked.batch, key, sampling)
      if self.greedy:
        once = dataclasses.replace(sampling, group_size=1, temperature=0.0)
        best = _drawn(policy, asked.problems, asked.batch, key, once)
    with self.timer.phase("reward"):
      pending = self._begin(drawn, step)
      if self.greedy:
        also = self._begin(best, step)

    def finish() -> Rewards:
      with self.timer.phase("reward"):
        rewards = pending()
        if self.greedy:
          total = np.repeat(also().total, sampling.group_size)
          rewards = rewards._replace(metrics={**rewards.metrics, GREEDY: total})
      self.curriculum.record(asked.indices, rewards.terms)
      return rewards

    return Pending(drawn, finish)

  def _begin(self, completions: Completions, step: int) -> Any:
    return combine.begin(
      self.rewards,
      completions.problems,
      completions.texts,
      lengths=completions.lengths,
      truncated=completions.truncated,
      step=step,
    )


def _drawn(
  policy: generate.Policy,
  problems: list[Problem],
  batch: PromptBatch,
  key: Key[Array, ""],
  sampling: decode.SamplingParams,
) -> Completions:
  rollout = generate.draw(policy, batch, key, sampling)
  rows = [p for p in problems for _ in range(sampling.group_size)]
  return generate.completions_of(policy.tok, rows, rollout)
