"""R1's SFT: the base once more, on reasoning and general conversations.

  python -m grpo_jax.main --config=experiments/r1_sft.py

fine-tunes the small base that `experiments/r1_zero.py:bilingual` made, as the
paper does with DeepSeek-V3-Base, for two epochs on three parts of what
`experiments/r1_rejection.py` kept and one part of general conversations (the
paper: 600,000 and 200,000), and evaluates it on held-out problems before and
after.

On two CPU cores, seed 0, in the chain of experiments/r1.py: 1,013 kept and 338
general conversations, 92 updates in a quarter of a minute; held-out pass@1
37.1 % before and 99.9 % after, well formed 95.3 % and 99.9 %.

  experiments/r1_sft.py:smoke      two steps, to see that it runs
  experiments/r1_sft.py:runs=DIR   reads the runs of another folder
  experiments/r1_sft.py:base=DIR,data=PATH
                                   another model, and other reasoning data
  experiments/r1_sft.py:qwen2.5-7b,general=PATH
                                   a real base: rows of 32,768 tokens, cosine to
                                   a tenth
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
    general="",
    seed=0,
  )
  tiny = arg.model == "tiny"
  c = configs.built_in_sft() if tiny else configs.sft()
  c.seed = arg.seed
  made = "r1_rejection" if tiny else f"r1_rejection-{arg.model}"
  path = arg.data or f"{arg.runs}/{made}/dataset"
  reasoning = dict(name="records", path=path)
  general = dict(name="chat_examples")
  if arg.general:
    general = dict(name="records", path=arg.general)
  elif not tiny:
    raise configs.ConfigError(
      f"{arg.model} needs general=PATH, a JSONL file of conversations."
    )
  c.data = dict(
    name="mixture",
    split="train",
    parts=dict(
      reasoning=dict(data=reasoning, weight=600_000),
      general=dict(data=general, weight=200_000),
    ),
  )
  if tiny:
    c.source = arg.base or f"{arg.runs}/r1_zero-bilingual/base"
    if configs.is_real(c.source):
      configs.real_sft(c)
  else:
    # Not run so far: it wants accelerators.
    c.source = arg.base or f"checkpoints/{arg.model}"
    c.mesh = dict(data=1, fsdp=-1, tensor=1)
  if arg.smoke:
    c.max_steps = 2
  return c
