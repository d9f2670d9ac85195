r"""Rejection sampling: what the first RL policy does well becomes data.

  python -m grpo_jax.main --config=experiments/r1_rejection.py

asks runs/r1_rl (`experiments/r1_rl.py`) 1,000 training problems, 4 completions
each, and writes the right, readable and different ones to
runs/r1_rejection/dataset: records.jsonl, the same for TFDS, and dataset.json,
which says where they came from and what was dropped for which reason.

On two CPU cores, seed 0, in the chain of experiments/r1.py: 1,013 of 4,000 kept
in 12 seconds; dropped 2,922 duplicates, 39 of mixed language, 16 truncated, 10
wrong.

  experiments/r1_rejection.py:source=DIR   another policy
  experiments/r1_rejection.py:qwen2.5-7b   the paper's filters on GSM8K
  experiments/r1_rejection.py:smoke        two batches
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    model=("tiny", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b"),
    smoke=False,
    source="",
    runs="runs",
    seed=0,
  )
  c = pair_sum() if arg.model == "tiny" else paper()
  c.seed = arg.seed
  source = f"{arg.runs}/r1_rl"
  if arg.model != "tiny":
    source += f"-{arg.model}"
  source = c.ways.sampled.source = arg.source or source
  if arg.model == "tiny" and configs.is_real(source):
    c.model.dtype, c.prompts_per_batch = "bfloat16", 16
    c.sampling.update(max_new_tokens=1024, cache_chunk=256)
    c.ways.sampled.update(template="chat", prompt_slots=512)
  if arg.smoke:
    c.ways.sampled.num_problems = 2 * c.prompts_per_batch
  return c


def pair_sum():
  """The built-in task: half a minute on two cores."""
  c = configs.rejection()
  configs.built_in_sampling(c)
  c.ways.sampled = dict(
    source="", template="plain", prompt_slots=24, num_problems=1_000
  )
  # Tries are formulas: what differs between two ways to one answer is little.
  del c.filters.near_duplicate
  return c


def paper():
  """The paper's filters on GSM8K, with its test split kept out.

  Not run so far: it wants accelerators. For problems that no rule can grade add

    c.rewards.judge = dict(weight=1.0, url="http://HOST:8000/v1", model="NAME")
    c.keep.judge = 1.0
  """
  c = configs.rejection()
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.decontaminate.tests = dict(
    gsm8k=dict(name="gsm8k", split="test"),
    math=dict(name="math", split="test"),
  )
  c.sampling.group_size = 16
  c.max_per_prompt = 4
  return c
