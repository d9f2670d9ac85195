"""Cold start: SFT of the base on a few readable chains of thought.

  python -m grpo_jax.main --config=experiments/r1_cold_start.py

fine-tunes the small base that `experiments/r1_zero.py:bilingual` made, on what
`experiments/r1_collect.py` collected, and evaluates it on held-out problems
before and after.

On two CPU cores, seed 0, in the chain of experiments/r1.py: 169 conversations,
one epoch, 6 updates; held-out pass@1 37.1 % before and 81.3 % after, well
formed 95.3 % and 99.8 %. Longer, or on more of them, it is at 99 % already, and
nothing is left for RL to teach.

  experiments/r1_cold_start.py:smoke      two steps, to see that it runs
  experiments/r1_cold_start.py:runs=DIR   reads the runs of another folder
  experiments/r1_cold_start.py:base=DIR,data=PATH
                                          another model, and other conversations
  experiments/r1_cold_start.py:qwen2.5-7b
                                          a real base: rows of 32,768 tokens,
                                          cosine to a tenth
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    model=("tiny", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b"),
    smoke=False,
    runs="runs",
    base="",
    data="",
    seed=0,
  )
  tiny = arg.model == "tiny"
  c = configs.built_in_sft() if tiny else configs.sft()
  c.seed = arg.seed
  made = "r1_collect" if tiny else f"r1_collect-{arg.model}"
  path = arg.data or f"{arg.runs}/{made}/dataset"
  c.data = dict(name="records", split="train", path=path)
  if tiny:
    c.source = arg.base or f"{arg.runs}/r1_zero-bilingual/base"
    # A few updates: enough for the form, and RL has something left to teach.
    c.num_epochs, c.optimizer.learning_rate = 1, 2e-4
    if configs.is_real(c.source):
      configs.real_sft(c)
  else:
    # Not run so far: it wants accelerators.
    c.source = arg.base or f"checkpoints/{arg.model}"
    c.mesh = dict(data=1, fsdp=-1, tensor=1)
  if arg.smoke:
    c.max_steps = 2
  return c
