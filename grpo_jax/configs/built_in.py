"""Settings of the built-in tasks, which several experiments share."""

from typing import Any

from ml_collections import config_dict

from grpo_jax.configs import stages


def built_in_rl() -> config_dict.ConfigDict:
  """The rl stage on pair_sum: minutes on two cores, nothing to download.

  It makes a base model of its own; another corpus or source may be set.
  """
  c = stages.rl()
  c.total_steps = 32
  c.pretrain = stages.pretrain()
  c.model = dict(dtype="float32", remat="none", head_chunk=2048)
  c.data = dict(name="pair_sum", split="train")
  c.prompts = dict(template="plain", num_prompts=32, prompt_slots=24)
  c.sampling.update(group_size=8, max_new_tokens=88, cache_chunk=44)
  # Right answers count most: a base this small finds form before content.
  c.rewards = dict(accuracy=1.0, format=0.25)
  c.ref_every = 16
  c.batching = dict(num_minibatches=2, num_microbatches=1, length_multiple=44)
  c.optimizer.learning_rate = 3e-4
  c.optimizer.schedule, c.optimizer.final_fraction = "linear", 0.1
  c.evaluate = built_in_evaluation()
  c.evaluate.every = 8
  c.checkpoint.every = 8
  return c


def built_in_sft() -> config_dict.ConfigDict:
  """The sft stage on conversations about pair_sum, for a built-in base."""
  c = stages.sft()
  c.model = dict(dtype="float32", remat="none", head_chunk=2048)
  c.prompts.template = "plain"
  c.batch = dict(num_rows=16, row_length=128, num_microbatches=1)
  c.optimizer.learning_rate = 3e-4
  c.evaluate = built_in_evaluation()
  c.evaluate.every = 0
  c.log_every = 5
  return c


def built_in_reward_model() -> config_dict.ConfigDict:
  """The reward_model stage on judged completions of a built-in base."""
  c = stages.reward_model()
  c.model = dict(dtype="float32", remat="none")
  c.prompts.template = "plain"
  c.max_length = 128
  c.epochs = 2
  c.batch.num_rows = 32
  c.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_updates=5)
  c.evaluate.rows_per_batch = 64
  c.log_every = 5
  return c


def preference_base(
  path: str, vocab_size: int, symbols: tuple[str, ...], **data: Any
) -> config_dict.ConfigDict:
  """The pretrain stage on the texts of judged completions, for a reward model.

  Args:
    path: of the judged completions.
    vocab_size: of the tokenizer, which falls back on bytes.
    symbols: one token each.
    **data: more of what `data.datasets.load` reads.
  """
  c = stages.pretrain()
  c.data = dict(name="preference_corpus", split="train", path=path) | data
  c.tokenizer.update(vocab_size=vocab_size, byte_fallback=True, symbols=symbols)
  c.batch = dict(num_rows=8, row_length=512, num_microbatches=1)
  c.total_steps = 300
  return c


def shorten_base(c: config_dict.ConfigDict) -> None:
  """Gives the base model of a stage, where it makes one, a few steps only."""
  if c.pretrain:
    c.pretrain.total_steps = 20
    c.pretrain.optimizer.warmup_updates = 5


def miniature_base() -> config_dict.ConfigDict:
  """The pretrain stage for the base that the recipe in miniature starts from.

  Its corpus thinks in two languages and makes small talk, see
  `data.sources.miniature`.
  """
  c = stages.pretrain()
  c.data.name = "miniature_corpus"
  c.tokenizer.vocab_size = 192
  c.tokenizer.symbols = (
    *("<think>", "</think>", "<answer>", "</answer>"),
    *(" right", " wrong", " wait ", " 对", " 不", " 等 "),
  )
  return c


def miniature_evaluation() -> config_dict.ConfigDict:
  """The evaluate stage on the recipe in miniature: sums, and small talk."""
  c = stages.evaluate()
  c.model = dict(dtype="float32")
  c.prompts.template = "plain"
  section = built_in_evaluation()
  del section.data
  c.evaluate.update(section)
  c.evaluate.greedy = False
  language = dict(weight=0.0, language="en", among=("en", "zh"))
  c.datasets = dict(
    pair_sum=dict(
      data=dict(name="pair_sum", split="test", test_size=256),
      rewards=dict(accuracy=1.0, format=0.0, language=language),
    ),
    chat=dict(
      data=dict(name="chat", split="test"),
      prompts_per_batch=32,
      sampling=dict(group_size=16),
      rewards=dict(politeness=1.0),
    ),
  )
  return c


def built_in_evaluation() -> config_dict.ConfigDict:
  """`evaluate` for pair_sum: 256 held-out problems, 4 samples each."""
  return config_dict.ConfigDict(
    dict(
      data=dict(name="pair_sum", split="test", test_size=256),
      prompt_slots=24,
      num_problems=0,
      prompts_per_batch=128,
      sampling=dict(
        group_size=4,
        max_new_tokens=88,
        temperature=0.6,
        top_p=0.95,
        cache_chunk=44,
      ),
      rewards=dict(accuracy=1.0, format=1.0),
    )
  )


def built_in_sampling(c: config_dict.ConfigDict) -> None:
  """Sets a config of the rejection stage to ask pair_sum problems."""
  c.model = dict(dtype="float32")
  c.data = dict(name="pair_sum", split="train")
  c.decontaminate.tests = dict(pair_sum=dict(name="pair_sum", split="test"))
  c.prompts_per_batch = 128
  c.sampling.update(max_new_tokens=88, cache_chunk=44)
  # "just a guess" has three words, a sum and its verdict five.
  c.filters.brief = dict(least=5)
  c.filters.mixed_language = dict(language="en", least=0.95, among=("en", "zh"))
