r"""RLHF as InstructGPT has it: PPO against a reward model, close to the SFT.

  python -m grpo_jax.main --config=experiments/rlhf.py

trains the policy of `runs/r1_sft` on small talk. All that it earns is the
score r(x, y) of the Bradley-Terry model of `runs/reward_model`, less the log-
ratio to the SFT policy, which each token pays for itself:

  r(x, y) - beta log(pi(y | x) / pi_sft(y | x))

InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5, equation 2 without
its pre-training term. A value model that begins as the reward model says what
a completion is worth so far; no rule rewards anything. Held-out prompts are
scored by the reward model too; beside it, and earning nothing, stands the rule
by which the preferences were made: where it falls while the score rises, the
policy has learned to please the model alone.

Two CPU cores that were busy with other work, seed 0, `whole`, from nothing in
28 minutes (of which the base 13, the reward model 12 and this, 24 steps, 3):
held-out prompts, 16 samples each, score 0.35 before and 4.06 after (the reward
model is right on 93.4 % of 151 held-out pairs); at step 24 the KL to the SFT
policy was 0.043 nats per token, about 1 nat per completion. Completions score
above those of the SFT policy in 77.3 % of comparisons (73.4 to 81.0), and the
rule agrees: 0.41 before and 0.66 after.

  experiments/rlhf.py:whole       from nothing: base, SFT, preferences, reward
                                  model, and this, in one directory
  experiments/rlhf.py:whole,smoke the same in a few steps of each
  experiments/rlhf.py:kl_coef=0.2 beta; by default 0.05
  experiments/rlhf.py:runs=DIR    sources are DIR/NAME instead of runs/NAME
"""

from grpo_jax import configs

_ORDER = "base", "sft", "preferences", "reward_model", "rlhf"
_ROWS = ("SFT", "table/sft"), ("RLHF", "table/rlhf")
_COLUMNS = (
  ("score", "datasets/chat/reward_model", "{:.2f}"),
  ("polite", "datasets/chat/politeness", "{:.2f}"),
  ("wins", "against/win rate/value", "{:.1%}"),
  ("length", "datasets/chat/mean_length", "{:.1f}"),
)


def get_config(arg=None):
  arg = configs.parse_arg(
    arg, whole=False, smoke=False, runs="runs", kl_coef=0.05, seed=0
  )
  if arg.whole:
    return whole(arg)
  return ppo(arg, f"{arg.runs}/r1_sft", f"{arg.runs}/reward_model")


def ppo(arg, sft, reward_model):
  """PPO on small talk from the SFT policy, for the reward model's score."""
  c = configs.experiment(
    __file__, "ppo", f"base={sft},gae_lambda=0.95,seed={arg.seed}"
  )
  c.data = dict(name="chat", split="train")
  c.sampling.update(max_new_tokens=44, cache_chunk=44)
  score = dict(weight=1.0, source=reward_model, dtype="float32")
  c.rewards = dict(reward_model=score)
  c.advantages.kl_coef = arg.kl_coef
  c.value.source = reward_model
  c.total_steps = 2 if arg.smoke else 24
  c.optimizer.learning_rate = 1e-4
  c.evaluate.data = dict(name="chat", split="test")
  held_out(c.evaluate, score)
  return c


def held_out(section, score):
  """How held-out prompts are asked, and what is measured of the answers."""
  section.prompts_per_batch = 32
  # As in training, so that scores and KL are of one policy.
  section.sampling.update(
    group_size=16,
    max_new_tokens=44,
    temperature=1.0,
    top_p=1.0,
    cache_chunk=44,
  )
  section.rewards = dict(reward_model=score, politeness=0.0)


def whole(arg):
  """All that comes before, from nothing, and then PPO."""
  c = configs.chain()
  common = f"seed={arg.seed}" + (",smoke" if arg.smoke else "")
  run = {name: f"{{workdir}}/{name}" for name in _ORDER}
  c.steps.base = configs.miniature_base()
  if arg.smoke:
    c.steps.base.total_steps = 60
  c.steps.sft = sft(arg, run["base"])
  c.steps.preferences = configs.experiment(
    __file__, "r1_preferences", f"{common},source={run['sft']}"
  )
  data = f"{run['preferences']}/dataset"
  c.steps.reward_model = configs.experiment(
    __file__, "reward_model", f"{common},source={run['sft']},data={data}"
  )
  c.steps.rlhf = ppo(arg, run["sft"], run["reward_model"])
  for _, name in _ROWS:
    source = run[name.removeprefix("table/")]
    c.steps[name] = evaluation(arg, source, run["sft"], c.steps.rlhf.rewards)
  c.order = (*_ORDER, *(name for _, name in _ROWS))
  c.table = dict(rows=_ROWS, columns=_COLUMNS)
  return c


def sft(arg, base):
  """Small talk that does no harm, 40 % of it polite."""
  c = configs.built_in_sft()
  c.seed = arg.seed
  c.source = base
  c.data = dict(name="chat_examples", split="train")
  c.evaluate = None
  c.max_steps = 2 if arg.smoke else 0
  return c


def evaluation(arg, source, rival, rewards):
  """Held-out small talk, scored, and how often it scores above the SFT's."""
  c = configs.miniature_evaluation()
  c.seed = arg.seed
  c.source = source
  held_out(c.evaluate, rewards.reward_model)
  data = dict(name="chat", split="test")
  c.datasets = dict(chat=dict(data=data))
  c.against = dict(source=rival, data=data, rewards=rewards)
  return c
