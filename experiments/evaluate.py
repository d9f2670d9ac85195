"""pass@1 of the newest checkpoint of a run, on a task's held-out problems.

  python -m grpo_jax.main --config=experiments/evaluate.py:runs/r1_zero

prints the results as JSON under two completions. 4 samples per problem at
temperature 0.6 and top-p 0.95, as in the paper; any of these is a field, such
as `--config.evaluate.sampling.group_size=64`.
"""

from grpo_jax import configs


def get_config(arg=None):
  c = configs.evaluate()
  c.source = arg or "runs/r1_zero"
  c.model = dict(dtype="float32")
  c.prompts = dict(template="plain")
  c.evaluate = configs.built_in_evaluation()
  return c
