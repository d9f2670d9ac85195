"""How problems are asked of which model, and what of an answer is read.

A way shows a question alone or behind worked examples, in a template of its
own, and leaves out what shares wording with test sets.

P prompts a batch, k completions each, S prompt slots.
"""

import collections
import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.curation import decontamination, worked_examples
from grpo_jax.data import datasets, prompts
from grpo_jax.data.tokenizers import templates, tokenizer
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode
from grpo_jax.types import Completions, Problem


@dataclasses.dataclass(frozen=True)
class Prompting:
  """How problems are asked; a section of `config.ways`.

  Attributes:
    source: directory of a run, whose newest checkpoint is asked, or one of
      Hugging Face.
    template: a name in `prompts.TEMPLATES`, a file, or "chat".
    system: what a conversation begins with, as `prompts.read_system` reads it.
    variables: what else a chat template reads, such as `enable_thinking`.
    message: what the user says, in the place of the bare question: a name in
      `prompts.TEMPLATES`, such as "detailed", or a file.
    shots: worked examples: a name in `worked_examples.EXAMPLES` or the
      directory of a dataset of records.
    num_shots: how many of them stand before the question.
    prompt_slots: S, at least the tokens of the longest prompt.
    first_problem: of the dataset.
    num_problems: from there on; 0 for all.
    sampling: fields that differ from `config.sampling`.
    rewrite: what `rewriting.rewrite` reads.
  """

  source: str
  template: str = "r1_zero"
  system: str = ""
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  message: str = "bare"
  shots: str = ""
  num_shots: int = 0
  prompt_slots: int = 512
  first_problem: int = 0
  num_problems: int = 0
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rewrite: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Asking(NamedTuple):
  """A way with its prompts.

  Attributes:
    tokenizer: of the source.
    problems: with their prompts, without those left out.
    encoded: ids of each prompt.
    prompts_per_batch: P.
    sampling: how to draw.
    next_turn: where a completion is cut; empty for nowhere.
    contaminated: by the name of each test set, problems that were left out.
  """

  tokenizer: tokenizer.Tokenizer
  problems: list[Problem]
  encoded: list[np.ndarray]
  prompts_per_batch: int
  sampling: decode.SamplingParams
  next_turn: str
  contaminated: dict[str, int]


def test_sets(
  data_dir: pathlib.Path,
  *,
  tests: Mapping[str, Mapping[str, Any]],
  ngram: int,
) -> decontamination.Index | None:
  """Returns the wording of test sets; None without any.

  Args:
    data_dir: of prepared datasets.
    tests: by names of one's own, what `datasets.load` reads.
    ngram: so many words in a row are wording.
  """
  if not tests:
    return None
  questions = {
    name: [
      problem.question for problem in datasets.load(**data, data_dir=data_dir)
    ]
    for name, data in tests.items()
  }
  return decontamination.make_index(questions, ngram)


def ask(
  way: Prompting,
  problems: Sequence[Problem],
  tests: decontamination.Index | None,
  *,
  sampling: Mapping[str, Any],
  prompts_per_batch: int,
  date: datetime.date | None = None,
  tell: Callable[[str], Any] = lambda line: None,
) -> Asking:
  """Returns the prompts of a way, without problems of test sets.

  Args:
    way: how they are asked.
    problems: of which it takes some.
    tests: wording of test sets.
    sampling: fields that the way may set otherwise.
    prompts_per_batch: P, unless there are fewer.
    date: that a chat template tells; None for today.
    tell: takes a line on prompts that are too long, which are left out.

  Raises:
    ValueError: a template or worked examples do not fit, or all prompts are too
      long.
  """
  template = prompts.read_template(way.template, chat_too=True)
  if template == prompts.CHAT:
    system = prompts.read_system(way.system)
    template = templates.Chat(system, way.variables, date)
  tok = prompts.fitted(
    tokenizer.load(source_lib.tokenizer_directory(way.source)), template
  )
  message = prompts.read_template(way.message)
  shots = ()
  if way.shots:
    shots = worked_examples.load(way.shots, way.num_shots)
  end = way.first_problem + way.num_problems if way.num_problems else None
  chosen = range(len(problems))[way.first_problem : end]
  contaminated = collections.Counter()
  left = []
  for index in chosen:
    problem = problems[index]
    test = decontamination.find(tests, problem.question) if tests else None
    if test is None:
      left.append(problem)
    else:
      contaminated[test] += 1
  asked, encoded = prompts.ask(
    left,
    template,
    tok,
    way.prompt_slots,
    shots=shots,
    message=message,
    tell=tell,
  )
  return Asking(
    tok,
    asked,
    encoded,
    min(prompts_per_batch, len(asked)),
    decode.SamplingParams(**dict(sampling) | dict(way.sampling)),
    prompts.next_turn(template),
    dict(contaminated),
  )


def batch_rows(asked: Asking) -> list[int]:
  """Returns how many completions each batch of a way has."""
  size, count = asked.prompts_per_batch, len(asked.problems)
  k = asked.sampling.group_size
  return [min(size, count - at) * k for at in range(0, count, size)]


def readable(batch: Completions, asked: Asking) -> Completions:
  """Returns a batch as it is read.

  A text ends where the next question begins. Thinking that the prompt opened
  is opened by the text instead, which so reads the same under any template.
  """
  problems, texts = [], []
  truncated = np.array(batch.truncated)
  for row, (problem, text) in enumerate(
    zip(batch.problems, batch.texts, strict=True)
  ):
    if asked.next_turn and asked.next_turn in text:
      text = text.partition(asked.next_turn)[0].rstrip()
      truncated[row] = False
    prompt = problem.prompt.rstrip()
    if prompt.endswith("<think>"):
      text = "<think>" + text
      problem = problem._replace(prompt=prompt.removesuffix("<think>"))
    problems.append(problem)
    texts.append(text)
  return batch.replace(problems=problems, texts=texts, truncated=truncated)


def asked_again(ways: Mapping[str, Asking]) -> set[str]:
  """Returns the questions that are asked more than once."""
  count = collections.Counter(
    problem.question for asked in ways.values() for problem in asked.problems
  )
  return {question for question, times in count.items() if times > 1}
