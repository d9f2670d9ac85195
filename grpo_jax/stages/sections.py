"""Sections that the configs of several stages have, and what they may hold."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from grpo_jax import errors, reward_models, schema
from grpo_jax.data import datasets
from grpo_jax.models import lora
from grpo_jax.rewards import section as section_lib
from grpo_jax.sampling import decode
from grpo_jax.train import optimizer


def _any_dataset(*, split: str) -> None:
  """What every dataset is asked for.

  Args:
    split: "train" or "test".
  """


def _how_computed(*, dtype: str, remat: str, head_chunk: int) -> None:
  """How a model that is read from a directory is computed.

  Args:
    dtype: of activations and of weights in use: "float32" or "bfloat16".
    remat: what the backward pass recomputes: "none", "dots" for all but the
      products of matrices, "full".
    head_chunk: tokens of a device whose vocabulary logits exist at one time.
  """


class _Optimizer(schema.Options):
  """The options of `optimizer.make_optimizer`, and the ranges of numbers."""

  def check(self, path: str, section: Any, parent: Any) -> None:
    super().check(path, section, parent)
    try:
      optimizer.check(dict(section.items()), path)
    except ValueError as error:
      raise errors.ConfigError(str(error)) from None


def _how_asked(
  *,
  template: str,
  system: str = "auto",
  variables: Mapping[str, Any] = {},
  date: str = "",
) -> None:
  """How problems are put to a policy.

  Args:
    template: a name in `data.prompts.TEMPLATES`, a file, or "chat" for the chat
      template of the source's tokenizer. The other fields are for that one.
    system: what a conversation begins with: a name in `data.prompts.SYSTEM`, a
      file, the text itself, or "" for nothing. "auto" is what the source was
      trained with, if that is a run; where RL begins with a model of others, it
      is what tells of the form that a reward asks for, if the template does not
      think by itself.
    variables: what else the chat template reads, such as
      dict(enable_thinking=False).
    date: the day, such as 2026-01-31, that the chat template tells; empty for
      the one on which the run begins, which it keeps.
  """


def prompts(own: Callable[..., None] | None = None, **nodes: schema.Node):
  """What `prompts` of a stage may hold.

  Args:
    own: whose options it holds beside those of `_how_asked`.
    **nodes: of options that are sections.
  """
  nodes["variables"] = schema.Free()
  if own is None:
    return schema.Options(_how_asked, nodes=nodes)
  return schema.Options(own, shared=_how_asked, nodes=nodes)


def drawn(*, num_prompts: int, prompt_slots: int) -> None:
  """Prompts of a step.

  Args:
    num_prompts: of a step; 0 for as many as fit the devices (`stages.fit`).
    prompt_slots: tokens that a prompt may have; longer ones are left out, and
      their number is said.
  """


# Rewards of these names are known wherever a stage is.
LEARNED = tuple(reward_models.BUILT_IN)
DATA = schema.Kind(datasets.DATASETS, by="name", shared=_any_dataset)
SAMPLING = schema.Options(decode.SamplingParams)
OPTIMIZER = _Optimizer(optimizer.make_optimizer)
LORA = schema.Options(lora.LoraConfig)
MODEL = schema.Options(_how_computed, partial=True)


def evaluation(config: Callable[[], ConfigDict]) -> schema.Fields:
  """What `evaluate` of a stage that trains may hold.

  Args:
    config: builds the stage's config.
  """
  return schema.Fields(
    lambda: config().evaluate,
    {"data": DATA, "sampling": SAMPLING, "rewards": section_lib.SCHEMA},
  )


def check_counts(config: ConfigDict, names: Iterable[str], least: int) -> None:
  """Raises ConfigError where a field is no whole number from a least one on.

  Args:
    config: of a stage.
    names: paths in it, such as "checkpoint.every".
    least: of the numbers.
  """
  for name in names:
    value = config
    for part in name.split("."):
      value = value[part]
    if type(value) is not int or value < least:
      raise errors.ConfigError(
        f"config.{name}={value!r} must be a whole number of at least {least}."
      )
