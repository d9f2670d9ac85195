"""The scorers of the reasoning-gym package.

A scorer reads what a model wrote, so it runs in a worker process with a
deadline (`isolation.workers`), which imports this module: it must not import
JAX.
"""

from grpo_jax.data.sources import gym_entries


def score(details: str, answer: str) -> float:
  """What the task's own scorer gives an answer; 1 is right, less is partial.

  Args:
    details: of the problem, from `gym_entries.entries`.
    answer: of the model, without tags.
  """
  problem = gym_entries.unpack(details)
  dataset = gym_entries.make(
    problem["task"], gym_entries.pack(problem["config"])
  )
  return float(dataset.score_answer(answer, problem["entry"]))
