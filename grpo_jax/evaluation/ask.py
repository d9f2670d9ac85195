"""Held-out problems: asked, answered k times each, scored.

P prompts, k completions each.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from grpo_jax import sharding
from grpo_jax.data import datasets, prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import results as results_lib
from grpo_jax.rewards import answer, combine, references, rules
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode, generate
from grpo_jax.sampling.generate import Policy
from grpo_jax.types import Completions, Problem, join

REWARDS = {"accuracy": 1.0, "format": 1.0}


class Questions(NamedTuple):
  """Held-out problems, encoded, with how they are asked.

  Attributes:
    problems: P of them, with their prompts.
    encoded: ids of each prompt.
    prompt_slots: tokens that a prompt may have.
    prompts_per_batch: how many are asked at a time.
    sampling: how completions are drawn, k for each problem.
    rewards: what is measured of them, as in `config.rewards`.
    notes: sentences on what of them cannot be measured.
  """

  problems: list[Problem]
  encoded: list[np.ndarray]
  prompt_slots: int
  prompts_per_batch: int
  sampling: decode.SamplingParams
  rewards: Mapping[str, Any] = REWARDS
  notes: tuple[str, ...] = ()


def make_questions(
  section: Mapping[str, Any],
  tok: tokenizer.Tokenizer,
  template: prompts.Template,
  data_dir: str | os.PathLike,
  *,
  examples: Sequence[str] = (),
  tell: Callable[[str], Any] = lambda line: None,
) -> Questions:
  """Returns the problems that `config.evaluate` names.

  Args:
    section: `config.evaluate`: `data`, `num_problems` (its first ones; 0 for
      all), `prompt_slots`, `prompts_per_batch`, `sampling`, and `rewards`, by
      default accuracy and format.
    tok: of the policy.
    template: what `prompts.read_template` returned.
    data_dir: where prepared datasets are kept.
    examples: texts in front of each prompt; under a chat template in front of
      the question.
    tell: takes a line on prompts that are longer than their slots, which are
      left out.

  Raises:
    ValueError: all prompts are longer than their slots, a dataset has no
      problems, or not one of its reference answers can be read.
    sandbox.IsolationError: programs are asked for that could not be run safely.
  """
  problems = datasets.load(**section["data"], data_dir=data_dir)
  count = min(section["num_problems"] or len(problems), len(problems))
  problems = [problems[i] for i in range(count)]
  answer.check(problems)
  rewards = section.get("rewards", REWARDS)
  where = f"the dataset {section['data'].get('name')!r}"
  if said := rules.check(rewards, problems, where):
    progress.say(said)
  slots = section["prompt_slots"]
  front = "".join(f"{text}\n\n" for text in examples)
  message = "{question}"
  if prompts.as_chat(template) is not None:
    message = front + message
  else:
    template = f"{front}{template}"
  asked, encoded = prompts.ask(
    problems, template, tok, slots, message=message, tell=tell
  )
  combine.check_columns(rewards, asked)
  notes = references.check(rewards, asked, where=where)
  return Questions(
    asked,
    encoded,
    slots,
    min(section["prompts_per_batch"], len(asked)),
    decode.SamplingParams(**section["sampling"]),
    rewards,
    tuple(notes),
  )


def evaluate(
  policy: Policy, questions: Questions, key: Key[Array, ""]
) -> tuple[dict[str, float], Completions]:
  """Returns results, see `results.scalars`, and the completions behind them."""
  answers = ask(policy, questions, key)
  return results_lib.scalars(answers), answers


def load_policy(
  source: str, mesh: Mesh, template: prompts.Template = "", **model: Any
) -> Policy:
  """Returns the newest checkpoint of a run, or a model of Hugging Face.

  Args:
    source: its directory.
    mesh: to place it on.
    template: in which it is asked; its stop tokens follow from it.
    **model: how it is computed, see `runs.source.load_policy`.
  """
  tok = tokenizer.load(source_lib.tokenizer_directory(source))
  tok = prompts.fitted(tok, template)
  cfg, params, step = source_lib.load_policy(source, mesh, **model)
  return Policy(params, cfg, tok, mesh, step)


def ask(
  policy: Policy, questions: Questions, key: Key[Array, ""]
) -> Completions:
  """Returns k completions of each problem, scored.

  Args:
    policy: whom to ask.
    questions: what.
    key: of the draws; what is drawn for a problem depends on its place among
      the problems and not on the batches.
  """
  answers = join(
    list(
      generate.generate(
        policy,
        questions.problems,
        questions.encoded,
        key,
        prompt_slots=questions.prompt_slots,
        prompts_per_batch=_prompts_at_a_time(questions, policy.mesh),
        sampling=questions.sampling,
      )
    )
  )
  rewards = combine.score(
    questions.rewards,
    answers.problems,
    answers.texts,
    lengths=answers.lengths,
    truncated=answers.truncated,
  )
  return answers.replace(rewards=rewards)


def _prompts_at_a_time(questions: Questions, mesh: Mesh) -> int:
  """As asked for, or a few more where those do not divide over the mesh."""
  size, samples = questions.prompts_per_batch, questions.sampling.group_size
  try:
    sharding.split_rows(mesh, size, samples)
  except ValueError:
    devices = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    return -(-size // devices) * devices
  return size


def summary(results: Mapping[str, float]) -> str:
  """Returns the results of an evaluation as one line of text."""
  parts = (
    ("pass@1", "pass@1", "{:.1%}"),
    ("format", "format", "{:.1%}"),
    ("length", "mean_length", "{:.1f}"),
    ("reflection words", "reflection_words", "{:.2f}"),
  )
  return ", ".join(
    f"{title} {_number(results, name, layout)}"
    for title, name, layout in parts
    if name in results
  )


def _number(results: Mapping[str, float], name: str, layout: str) -> str:
  value = results[name]
  if math.isfinite(value):
    return layout.format(value)
  return f"none ({results_lib.reason(results, name)})"


def greedily(questions: Questions) -> Questions:
  """Returns the same questions, asked once each at temperature 0."""
  sampling = dataclasses.replace(
    questions.sampling, group_size=1, temperature=0.0
  )
  return questions._replace(sampling=sampling)
