"""The whole recipe of DeepSeek-R1 in miniature, stage by stage, from nothing.

  python -m grpo_jax.main --config=experiments/r1.py

On two CPU cores, seed 0: 13 min 45 s (35 minutes on an older machine that was
busy with other work), at most 3.2 GiB. 256 held-out sums, 4 samples each at
temperature 0.6; small talk of 32 held-out questions, 16 samples each; wins are
against "SFT on kept samples":

                              accuracy   format  language  length  polite   wins
base                             34.0%    96.3%      0.97    23.8    0.40  38.1%
R1-Zero                          99.7%   100.0%      0.34    52.4    0.39  35.8%
cold start                       80.1%    99.9%      1.00    43.8    0.41  38.5%
RL                              100.0%   100.0%      1.00    52.4    0.37  35.3%
RL, no language term             99.7%   100.0%      0.97    52.3    0.38  36.2%
SFT on kept samples             100.0%   100.0%      1.00    52.4    0.54  50.0%
R1: RL with preferences         100.0%   100.0%      1.00    52.4    0.76  75.5%
student: RL alone                82.4%    96.8%      0.94    48.6
student: distilled               99.9%   100.0%      1.00    52.4
student: distilled, then RL     100.0%   100.0%      1.00    52.4

Zero reasons, in two languages at once. The cold start is readable and less
able; RL with the language term is both. At temperature 1, at which RL draws,
thoughts are to 0.97 in English at its end, and without the term to 0.85. The
second stage wins most comparisons of small talk and keeps the sums. A student
of 0.12 M parameters learns more from the kept samples, in 6 seconds, than from
RL alone in a minute. Seeds 1 and 2 tell the same:
docs/results.md.

  experiments/r1.py:smoke    a few steps of each stage, to see that all run
  experiments/r1.py:seed=1   another seed throughout
"""

from grpo_jax import configs

# What each stage's model is called in the table, and its run.
_ROWS = (
  ("base", "r1_zero-bilingual/base"),
  ("R1-Zero", "r1_zero-bilingual"),
  ("cold start", "r1_cold_start"),
  ("RL", "r1_rl"),
  ("RL, no language term", "r1_rl-no_language"),
  ("SFT on kept samples", "r1_sft"),
  ("R1: RL with preferences", "r1_rlhf"),
)
_STUDENTS = (
  ("student: RL alone", "rl"),
  ("student: distilled", "sft"),
  ("student: distilled, then RL", "sft_rl"),
)
_COLUMNS = (
  ("accuracy", "datasets/pair_sum/pass@1", "{:.1%}"),
  ("format", "datasets/pair_sum/format", "{:.1%}"),
  ("language", "datasets/pair_sum/language", "{:.2f}"),
  ("length", "datasets/pair_sum/mean_length", "{:.1f}"),
  ("polite", "datasets/chat/politeness", "{:.2f}"),
  ("wins", "against/win rate/value", "{:.1%}"),
)
_STAGES = (
  *("r1_zero-bilingual", "r1_collect", "r1_cold_start", "r1_rl"),
  *("r1_rl-no_language", "r1_rejection", "r1_sft", "r1_preferences"),
  *("reward_model", "r1_preferences-safety", "reward_model-safety"),
  *("r1_rlhf", "r1_distill"),
)


def get_config(arg=None):
  arg = configs.parse_arg(arg, smoke=False, seed=0)
  c = configs.chain()
  common = f"seed={arg.seed}" + (",smoke" if arg.smoke else "")
  order, rows = list(_STAGES), []
  for name in _STAGES:
    experiment, _, variant = name.partition("-")
    # A chain within this one has texts about its own directory.
    runs = "{workdir}/.." if experiment == "r1_distill" else "{workdir}"
    words = [word for word in (variant, common) if word]
    if experiment != "r1_zero":  # It reads no other run.
      words.append(f"runs={runs}")
    c.steps[name] = configs.experiment(__file__, experiment, ",".join(words))
    if arg.smoke:
      smaller(c.steps[name])
  for title, run in _ROWS:
    name = "table/" + run.replace("/", "-")
    c.steps[name] = evaluation(run, arg)
    order.append(name)
    rows.append((title, name))
  rows += [(title, f"r1_distill/table/{run}") for title, run in _STUDENTS]
  c.order = tuple(order)
  c.table = dict(rows=tuple(rows), columns=_COLUMNS)
  return c


def smaller(c):
  """Makes a stage go through on what models of a few steps write."""
  if c.stage == "chain":
    for step in c.steps.values():
      smaller(step)
  if c.stage == "rl" and c.pretrain:
    c.pretrain.total_steps = 60
  if c.stage == "rejection":
    c.keep, c.filters = dict.fromkeys(c.keep, 0.0), {}
  if "evaluate" in c and c.evaluate and "num_problems" in c.evaluate:
    c.evaluate.num_problems = c.evaluate.prompts_per_batch = 16


def evaluation(run, arg):
  """Held-out sums and small talk, and how often it beats the SFT model."""
  c = configs.miniature_evaluation()
  c.seed = arg.seed
  c.source = f"{{workdir}}/{run}"
  c.against = c.datasets.chat.to_dict() | dict(source="{workdir}/r1_sft")
  if arg.smoke:
    smaller(c)
  return c
