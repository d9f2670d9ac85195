"""R1's first RL stage: reasoning, kept readable by a language term.

  python -m grpo_jax.main --config=experiments/r1_rl.py

trains the policy that experiments/r1_cold_start.py left in runs/r1_cold_start.
The rewards are R1-Zero's and the share of the thinking that is in English,
which here occurs beside Chinese.

On two CPU cores, seed 0, in the chain of experiments/r1.py, 20 steps in under a
minute: held-out pass@1 81.3 % before, 100.0 % after, and 100.0 % without the
term. At temperature 1, at which RL draws, thoughts are to 0.91 in English at
the beginning, and at the end (five steps) to 0.97 with the term, to 0.85
without.

  experiments/r1_rl.py:no_language   the ablation: consistency is logged and
                                     earns nothing
  experiments/r1_rl.py:smoke         two steps, to see that everything runs
  experiments/r1_rl.py:runs=DIR      sources are DIR/NAME instead of runs/NAME
  experiments/r1_rl.py:qwen2.5-7b    the paper's hyperparameters, on GSM8K
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    model=("tiny", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b"),
    no_language=False,
    smoke=False,
    runs="runs",
    seed=0,
  )
  c = built_in(arg) if arg.model == "tiny" else paper(arg)
  c.seed = arg.seed
  if arg.no_language:
    c.rewards.language.weight = 0.0
  # The paper's clip: ratios are bounded from above, by 11.
  c.loss.clip_low = c.loss.clip_high = 10.0
  if arg.smoke:
    c.total_steps = 2
  return c


def built_in(arg):
  """The world in miniature: minutes on two cores."""
  c = configs.built_in_rl()
  c.source, c.pretrain = f"{arg.runs}/r1_cold_start", None
  if configs.is_real(c.source):
    configs.real_rl(c, template="chat")
  else:
    c.prompts.num_prompts, c.sampling.group_size = 16, 16
  c.total_steps = 20
  c.rewards.language = dict(weight=0.5, language="en", among=("en", "zh"))
  c.evaluate.every = c.checkpoint.every = 10
  return c


def paper(arg):
  """DeepSeek-R1's first RL stage, as far as the paper gives it.

  Not run so far: it wants accelerators.
  """
  c = configs.rl()
  c.source = f"{arg.runs}/r1_cold_start-{arg.model}"
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.prompts.template = "chat"
  # 8,192 completions a rollout, in 16 updates of 512.
  c.prompts.num_prompts = 512
  c.batching.num_minibatches, c.batching.num_microbatches = 16, 8
  c.total_steps = 100  # Rollouts; the paper does not say how many.
  c.ref_every = 25  # Rollouts: 400 updates.
  c.rewards.language = dict(weight=1.0, language="question")
  return c
