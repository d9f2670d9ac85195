r"""Learning from preferences without a reward model: DPO and its relatives.

  python -m grpo_jax.main --config=experiments/preference.py

takes the policy of `runs/r1_sft` and the pairs of `runs/r1_preferences`, drawn
from it and compared by the rule of politeness, and makes the preferred
completions more likely than the others, measured against the policy as it was.

On two CPU cores, seed 0, from the SFT policy and the 1,172 training pairs of
experiments/rlhf.py:whole, 74 updates in a minute of CPU time: held-out pairs
(151) whose preferred completion has the higher implied reward, and politeness
of held-out small talk, which is 0.49 before (temperature 0.6):

          dpo     ipo     kto     orpo    simpo
  pairs   87.4%   85.4%   86.8%   90.1%   92.7%
  polite  0.72    0.72    0.73    0.66    0.71

  experiments/preference.py:ipo      or kto, orpo, simpo: another loss
  experiments/preference.py:base=DIR,pairs=PATH
                                     another policy; a dataset, or a file of
                                     pairs that `data.preferences` reads
  experiments/preference.py:pair_sum right against wrong sums, of the base of
                                     runs/r1_zero and its pairs
  experiments/preference.py:smoke    one short epoch, to see that it runs
"""

from grpo_jax import configs


def get_config(arg=None):
  arg = configs.parse_arg(
    arg,
    loss=("dpo", "ipo", "kto", "orpo", "simpo"),
    task=("chat", "pair_sum"),
    base="",
    pairs="",
    runs="runs",
    smoke=False,
    seed=0,
  )
  c = configs.preference()
  c.seed = arg.seed
  source, pairs = {
    "chat": ("r1_sft", "r1_preferences"),
    "pair_sum": ("r1_zero/base", "r1_preferences-pair_sum"),
  }[arg.task]
  c.source = arg.base or f"{arg.runs}/{source}"
  c.data.path = arg.pairs or f"{arg.runs}/{pairs}/dataset"
  c.model = dict(dtype="float32", remat="none", head_chunk=2048)
  c.prompts.template = "plain"
  c.max_length = 128
  c.num_epochs = 2
  c.batch = dict(num_rows=32, num_microbatches=1)
  c.loss.kind = arg.loss
  c.optimizer.update(
    learning_rate=1e-4, schedule="cosine", warmup_updates=5, final_fraction=0.1
  )
  c.evaluate = evaluation(arg.task)
  c.log_every = 5
  if configs.is_real(c.source):
    usual = configs.preference()
    c.model, c.prompts, c.optimizer = (
      usual.model,
      usual.prompts,
      usual.optimizer,
    )
    c.max_length, c.batch = 2048, dict(num_rows=32, num_microbatches=4)
    configs.real_evaluation(c.evaluate)
    c.evaluate.prompts_per_batch = 16
  if arg.smoke:
    c.num_epochs = 1
    c.optimizer.warmup_updates = 0
  return c


def evaluation(task):
  """Held-out problems, to see what the policy says by itself."""
  c = configs.built_in_evaluation()
  c.every = 0
  if task == "chat":
    c.data = dict(name="chat", split="test")
    c.prompts_per_batch = 32
    c.sampling.group_size = 16
    c.rewards = dict(politeness=1.0)
  return c
