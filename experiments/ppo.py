"""PPO with a value model: the classic way, which GRPO does without.

  python -m grpo_jax.main --config=experiments/ppo.py

makes the same small base model as experiments/r1_zero.py, and teaches it the
same task with as many completions a step, but asks eight times as many
questions with one completion each: what is better than expected is said by a
value model of its own, per token (GAE), not by the other completions of a
group.

Held-out pass@1 of the base of r1_zero's seed 2, base and trained: 36.2 % and
99.2 % (GRPO took the same base to 100.0 %), in 2 min 17 s on two CPU cores, at
most 3.7 GiB.

  experiments/ppo.py:smoke         two steps, to see that everything runs
  experiments/ppo.py:base=DIR      on the checkpoint of another run, or on a
                                   directory of Hugging Face
  experiments/ppo.py:gae_lambda=0.95   the usual lambda instead of 1
  experiments/ppo.py:qwen2.5-7b    the settings of InstructGPT's scale
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    model=("tiny", "qwen2.5-1.5b", "qwen2.5-7b"),
    smoke=False,
    base="",
    gae_lambda=1.0,
    seed=0,
  )
  c = real(arg) if arg.model != "tiny" else built_in(arg)
  c.seed = arg.seed
  c.advantages = dict(
    kind="gae",
    discount=1.0,
    lambda_=arg.gae_lambda,
    kl_coef=0.001,
    normalize=True,
  )
  c.objective, c.weighting = "ppo", "token_mean"
  # The KL to the reference is in the reward of each token, not in the loss.
  c.loss = dict(clip_low=0.2, clip_high=0.2, kl_coef=0.0)
  c.ref_every = 0
  if arg.smoke:
    c.total_steps = 2
    configs.shorten_base(c)
  return c


def built_in(arg):
  """The embedded task: minutes on two cores, nothing to download."""
  c = configs.built_in_rl()
  c.prompts.num_prompts, c.sampling.group_size = 256, 1
  c.value = configs.value()
  c.value.optimizer.update(
    learning_rate=1e-3, schedule="linear", final_fraction=0.1
  )
  if arg.base:
    c.source, c.pretrain = arg.base, None
    if configs.is_real(arg.base):
      configs.real_rl(c)
      c.value = configs.value()
  else:
    c.pretrain.seed = arg.seed
  return c


def real(arg):
  """A real checkpoint on GSM8K: `base=DIR`, by default checkpoints/MODEL.

  Not run so far: it wants accelerators.
  """
  c = configs.rl()
  c.source = arg.base or f"checkpoints/{arg.model}"
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.prompts.num_prompts, c.sampling.group_size = 512, 1
  c.sampling.max_new_tokens = 2048
  c.batching.num_minibatches, c.batching.num_microbatches = 4, 8
  c.total_steps = 400
  c.optimizer.learning_rate = 1e-6
  c.value = configs.value()
  return c
