r"""Preference data: completions of a policy, compared by a rule or a judge.

  python -m grpo_jax.main --config=experiments/r1_preferences.py

draws sixteen completions for each general prompt from `runs/r1_sft` and
compares them by the built-in rule of politeness; `runs/r1_preferences/dataset`
holds the pairs, as JSON lines and for TFDS. A stopped run goes on where it was.

  experiments/r1_preferences.py:safety       harmless or not, of the base, which
                                             is sometimes rude
  experiments/r1_preferences.py:pair_sum     right against wrong answers of the
                                             base model of r1_zero
  experiments/r1_preferences.py:steps        its steps of thinking, labelled by
                                             eight continuations of each
  experiments/r1_preferences.py:qwen2.5-7b   K = 4 of a real model, and a judge
                                             with four votes (not run so far)

Two CPU cores: pair_sum with K = 4 on 1,024 problems took about 40 s of CPU time
and gave 575 pairs; 449 problems had none, 10 completions of 4,096 were cut.
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    task=("chat", "safety", "pair_sum", "steps", "qwen2.5-7b"),
    source="",
    runs="runs",
    smoke=False,
    seed=0,
  )
  c = configs.preferences()
  c.seed = arg.seed
  if arg.task == "qwen2.5-7b":
    return paper(c, arg)
  c.model.dtype = "float32"
  c.prompts = dict(template="plain", prompt_slots=24, prompts_per_batch=64)
  c.sampling = dict(
    group_size=4, max_new_tokens=88, temperature=1.0, top_p=1.0, cache_chunk=44
  )
  if arg.task == "chat":
    c.source = arg.source or f"{arg.runs}/r1_sft"
    c.data = dict(name="chat", split="train")
    c.rewards = dict(politeness=1.0)
    c.sampling.group_size = 16
    c.pairs = dict(margin=0.2, per_problem=12)
  elif arg.task == "safety":
    c.kind = "labels"
    c.sampling.group_size = 8
    c.source = arg.source or f"{arg.runs}/r1_zero-bilingual/base"
    c.data = dict(name="chat", split="train")
    c.rewards = dict(harmless=1.0)
  else:
    c.source = arg.source or f"{arg.runs}/r1_zero/base"
    c.data = dict(name="pair_sum", split="train")
    c.rewards = dict(accuracy=0.8, format=0.2)
    c.pairs = dict(margin=0.5, per_problem=4)
    c.num_problems = 2048
  if arg.task == "steps":
    c.kind = "steps"
    c.num_problems = 256
    c.rewards = dict(accuracy=1.0)
    # As the toy's thoughts try again, in English and in Chinese.
    c.steps = dict(separators=(" wait ", " 等 "), continuations=8)
  if configs.is_real(c.source):
    configs.real_preferences(c)
  if arg.smoke:
    c.num_problems = 16
    c.prompts.prompts_per_batch = 16
  return c


def paper(c, arg):
  """Pairs for a helpfulness model as the paper makes them, judged by points.

  The server of the judge is `--config.rewards.judge.url` and `.model`.
  """
  c.source = arg.source or f"{arg.runs}/r1_sft-{arg.task}"
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.data = dict(name="jsonl", split="train", path="general_prompts.jsonl")
  c.rewards = dict(
    judge=dict(
      weight=1.0,
      url="http://127.0.0.1:8000/v1",
      model="judge",
      template="helpfulness",
      scale=(1, 10),
      reads="answer",
      votes=4,
    )
  )
  c.pairs = dict(margin=1.0, per_problem=1)
  return c
