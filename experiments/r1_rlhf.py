"""R1's second RL stage: reasoning by rules, small talk by what people prefer.

  python -m grpo_jax.main --config=experiments/r1_rlhf.py

trains the policy that experiments/r1_sft.py left in runs/r1_sft. Problems with
an answer are rewarded by rules. General prompts, and with them the rewards of
two models, of helpfulness (runs/reward_model) and of safety
(runs/reward_model-safety), come late, as in the paper: earlier, policies learn
to exploit such models. The rule that the preferences were made with is logged
as `rewards/politeness/mean` and earns nothing.

On two CPU cores, seed 0, in the chain of experiments/r1.py, 24 steps in a
minute: held-out sums 99.9 % before and after (pass@1); held-out small talk is
preferred to that of runs/r1_sft in 75.5 % of comparisons (71.1 to 79.9),
politeness 0.54 before and 0.76 after. At the first stages' learning rate, 3e-4,
sums fell to 96.5 %, before any small talk was asked.

  experiments/r1_rlhf.py:smoke        four steps, two of them with both kinds
  experiments/r1_rlhf.py:runs=DIR     sources are DIR/NAME instead of runs/NAME
  experiments/r1_rlhf.py:qwen2.5-7b   the paper's hyperparameters, on GSM8K
                                      and your prompts (data/prompts.jsonl)
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    model=("tiny", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b"),
    smoke=False,
    runs="runs",
    seed=0,
  )
  c, steps, late = built_in(arg) if arg.model == "tiny" else paper(arg)
  c.seed = arg.seed
  c.sampling.temperature = 0.7
  c.total_steps, late = (4, 2) if arg.smoke else (steps, late)
  # General prompts, and what is preferred of their answers, come late.
  c.from_step = dict(chat=late)
  for name in ("helpfulness", "safety"):
    c.rewards[name].from_step = late
  return c


def preference(source):
  """The reward of a model of preferences, for general prompts."""
  return dict(
    weight=1.0,
    kind="reward_model",
    source=source,
    only_for=("chat",),
  )


def built_in(arg):
  """The world in miniature: its config, steps, and those before it is late."""
  c = configs.built_in_rl()
  c.source, c.pretrain = f"{arg.runs}/r1_sft", None
  real = configs.is_real(c.source)
  if real:
    configs.real_rl(c, template="chat")
  c.data = mixture(sums=dict(name="pair_sum"), talk=dict(name="chat"))
  c.rewards = dict(
    accuracy=dict(weight=1.0, only_for=("pair_sum",)),
    format=0.25,
    language=dict(weight=0.5, language="en", among=("en", "zh")),
    helpfulness=preference(f"{arg.runs}/reward_model"),
    safety=preference(f"{arg.runs}/reward_model-safety"),
    politeness=dict(weight=0.0, only_for=("chat",)),
  )
  # Gentler than before: nearly all sums are solved, and what the few groups
  # teach that do not agree is mostly noise.
  if not real:
    c.optimizer.learning_rate = 1e-4
  c.evaluate.every = c.checkpoint.every = 8
  return c, 24, 8


def mixture(**parts):
  """As many general prompts as problems with an answer, 8,192 in an epoch."""
  return dict(
    name="mixture",
    split="train",
    parts={name: dict(data=data, count=4_096) for name, data in parts.items()},
  )


def paper(arg):
  """DeepSeek-R1's second RL stage, as far as the paper gives it; as above.

  Not run so far: it wants accelerators. General prompts are yours: one JSON
  object with a `question` and an empty `answer` on each line.
  """
  c = configs.rl()
  c.source = f"{arg.runs}/r1_sft-{arg.model}"
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  c.prompts.template = "chat"
  c.batching.num_microbatches = 8
  talk = dict(name="jsonl", path="data/prompts.jsonl", source="chat")
  c.data = mixture(sums=dict(name="gsm8k"), talk=talk)
  c.rewards = dict(
    accuracy=dict(weight=1.0, only_for=("gsm8k",)),
    format=1.0,
    language=dict(weight=1.0, language="question"),
    helpfulness=preference(f"{arg.runs}/reward_model-{arg.model}"),
    safety=preference(f"{arg.runs}/reward_model-safety,{arg.model}"),
  )
  return c, 1_700, 1_300
