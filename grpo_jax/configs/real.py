"""Settings of a real model, where an experiment's own are for a tiny one."""

import json
import pathlib

from ml_collections import config_dict

from grpo_jax.configs import stages

_FILE = "config.json"


def is_real(source: str) -> bool:
  """Whether a source is a model of others, or a run that began with one.

  Args:
    source: a directory of Hugging Face or of a run; it may be missing.
  """
  seen = set()
  while source and source not in seen:
    seen.add(source)
    path = pathlib.Path(source) / _FILE
    if not path.is_file():
      return False
    try:
      content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
      return False  # Whoever reads the model says what is wrong with it.
    if not isinstance(content, dict):
      return False
    if "model_type" in content:
      return True
    source = content.get("source") or ""
  return False


def real_rl(c: config_dict.ConfigDict, template: str = "r1_zero") -> None:
  """Gives a config of the rl stage what a real model needs.

  Lengths, what it is computed in, and batch sizes that are fitted to the
  devices when the run begins. Data and rewards stay as they are.

  Args:
    c: is changed.
    template: in which it is asked; "chat" after SFT under a chat template.
  """
  usual = stages.rl()
  c.model, c.optimizer = usual.model, usual.optimizer
  c.prompts = dict(template=template, num_prompts=0, prompt_slots=512)
  c.sampling.update(max_new_tokens=1024, cache_chunk=256)
  c.batching.update(num_microbatches=0, length_multiple=256)
  real_evaluation(c.evaluate)


def real_evaluation(c: config_dict.ConfigDict) -> None:
  """Gives `evaluate` of an rl stage the lengths of a real model."""
  c.prompt_slots, c.prompts_per_batch, c.num_problems = 512, 0, 128
  c.sampling.update(group_size=1, max_new_tokens=1024, cache_chunk=256)


def real_preferences(c: config_dict.ConfigDict) -> None:
  """Gives a config of the preferences stage the lengths of a real model.

  It is asked under its own chat template.
  """
  c.model.dtype = "bfloat16"
  c.prompts = dict(template="chat", prompt_slots=512, prompts_per_batch=16)
  c.sampling.update(max_new_tokens=1024, cache_chunk=256)


def real_sft(c: config_dict.ConfigDict) -> None:
  """Gives a config of the sft stage what a real model needs.

  It is asked under its own chat template, and a row has 4,096 tokens.
  """
  usual = stages.sft()
  c.model, c.optimizer.learning_rate = usual.model, 1e-5
  c.prompts = usual.prompts
  c.batch = dict(num_rows=16, row_length=4096, num_microbatches=0)
  if c.evaluate:
    real_evaluation(c.evaluate)
    c.evaluate.prompts_per_batch = 16
