"""Evaluation on held-out problems: sample k completions, score, average.

`evaluate` is called inside loops; `run` is the stage that evaluates the newest
checkpoint of another run in every way there is, once. P prompts, k completions
each.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from grpo_jax import configs, errors, schema, sharding
from grpo_jax.data import datasets, prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import probes
from grpo_jax.evaluation import results as results_lib
from grpo_jax.evaluation.results import Answers
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import answer, combine
from grpo_jax.runs import directory, progress
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode, generate
from grpo_jax.stages import sections
from grpo_jax.types import Problem

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
  """

  problems: list[Problem]
  encoded: list[np.ndarray]
  prompt_slots: int
  prompts_per_batch: int
  sampling: decode.SamplingParams
  rewards: Mapping[str, Any] = REWARDS


def make_questions(
  section: Mapping[str, Any],
  tok: tokenizer.Tokenizer,
  template: str,
  data_dir: str | os.PathLike,
  *,
  examples: Sequence[str] = (),
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

  Raises:
    ValueError: a prompt is longer than its slots, or a dataset has no problems.
    sandbox.IsolationError: programs are asked for that could not be run safely.
  """
  problems = datasets.load(**section["data"], data_dir=data_dir)
  count = min(section["num_problems"] or len(problems), len(problems))
  problems = [problems[i] for i in range(count)]
  answer.check(problems)
  slots = section["prompt_slots"]
  front = "".join(f"{text}\n\n" for text in examples)
  if template == prompts.CHAT:
    asked = [p._replace(question=front + p.question) for p in problems]
  else:
    asked, template = problems, front + template
  asked, encoded = prompts.ask(asked, template, tok, slots)
  return Questions(
    [
      problem._replace(prompt=filled.prompt)
      for problem, filled in zip(problems, asked, strict=True)
    ],
    encoded,
    slots,
    min(section["prompts_per_batch"], len(problems)),
    decode.SamplingParams(**section["sampling"]),
    section.get("rewards", REWARDS),
  )


def evaluate(
  params: Params,
  cfg: ModelConfig,
  tok: tokenizer.Tokenizer,
  questions: Questions,
  key: Key[Array, ""],
  mesh: Mesh,
) -> tuple[dict[str, float], list[str], combine.Scores]:
  """Returns results, all P * k completions and their scores.

  For the results see `results.scalars`. Row p * k + i of the completions
  answers problem p.
  """
  answers = ask(Policy(params, cfg, tok), questions, key, mesh)
  return results_lib.scalars(answers), answers.texts, answers.scores


class Policy(NamedTuple):
  """A model that is asked; `step` is that of its checkpoint."""

  params: Params
  cfg: ModelConfig
  tok: tokenizer.Tokenizer
  step: int = 0


def load_policy(source: str, mesh: Mesh, **model: Any) -> Policy:
  """Returns the newest checkpoint of a run, or a model of Hugging Face.

  Args:
    source: its directory.
    mesh: to place it on.
    **model: how it is computed, see `runs.source.load_policy`.
  """
  tok = tokenizer.load(source_lib.tokenizer_directory(source))
  cfg, params, step = source_lib.load_policy(source, mesh, **model)
  return Policy(params, cfg, tok, step)


def ask(
  policy: Policy, questions: Questions, key: Key[Array, ""], mesh: Mesh
) -> Answers:
  """Returns k completions of each problem, scored.

  Args:
    policy: whom to ask.
    questions: what.
    key: of the draws; what is drawn for a problem depends on its place among
      the problems and not on the batches.
    mesh: in force.
  """
  rows, texts, lengths, truncated = [], [], [], []
  for batch in generate.generate(
    policy.params,
    policy.cfg,
    policy.tok,
    questions.problems,
    questions.encoded,
    key,
    mesh,
    prompt_slots=questions.prompt_slots,
    prompts_per_batch=_prompts_at_a_time(questions, mesh),
    sampling=questions.sampling,
  ):
    rows += batch.problems
    texts += batch.texts
    lengths.append(batch.lengths)
    truncated.append(batch.truncated)
  lengths, truncated = np.concatenate(lengths), np.concatenate(truncated)
  scores = combine.score(
    questions.rewards, rows, texts, lengths=lengths, truncated=truncated
  )
  samples = questions.sampling.group_size
  return Answers(rows, texts, lengths, truncated, scores, samples)


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
    f"{title} {layout.format(results[name])}"
    for title, name, layout in parts
    if name in results
  )


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Evaluates the newest checkpoint of `config.source`.

  Writes `results.json`, its table `results.md`, every completion
  (`samples.jsonl`), and a line a dataset in `evaluations.jsonl`, as loops do.
  A stopped evaluation begins anew.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: `config.source` or another model is not there.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  jax.set_mesh(mesh)
  template = prompts.read_template(config.prompts.template, chat_too=True)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  tok = tokenizer.load(source_lib.tokenizer_directory(config.source))
  load = functools.partial(load_policy, mesh=mesh, **config.model)
  make = functools.partial(
    make_questions, tok=tok, template=template, data_dir=data_dir
  )
  answer_to = functools.partial(ask, key=jax.random.key(config.seed), mesh=mesh)
  sections = {
    name: merged(config.evaluate, section)
    for name, section in config.datasets.items()
  }
  questions = {name: make(section) for name, section in sections.items()}
  setting = probes.Setting(
    tok, data_dir, mesh, config.seed, sections, make, answer_to, load
  )
  measures = {
    name: probes.PROBES[name](setting, **section.to_dict())
    for name, section in config.probes.items()
  }
  if config.against:
    # The other model may have another tokenizer.
    other = source_lib.tokenizer_directory(config.against.source)
    section = merged(config.evaluate, config.against)
    rivals = make(section), make(section, tok=tokenizer.load(other))
  directory.claim(workdir, config.to_dict())

  writer = run_log.Writer(workdir)
  samples = run_log.JsonLines(workdir / "samples.jsonl")
  policy = load(config.source)
  step = policy.step

  def keep(name: str, answers: Answers, greedy: bool = False) -> None:
    records = results_lib.samples(name, answers, greedy=greedy)
    samples.append(*({"step": step} | record for record in records))

  answers, found = {}, {}
  for name, asked in questions.items():
    answers[name] = answer_to(policy, asked)
    keep(name, answers[name])
    greedy = None
    if sections[name]["greedy"]:
      greedy = answer_to(policy, greedily(asked))
      keep(name, greedy, greedy=True)
    found[name] = results_lib.details(
      answers[name], greedy=greedy, seed=config.seed
    )
    scalars = results_lib.scalars(answers[name])
    writer.write_evaluation(step, name, scalars)
    progress.say(progress.render(*answers[name][:2], answers[name].scores))
    progress.say(f"\n{name}: {summary(scalars)}\n")
  results = {
    "source": config.source,
    "step": step,
    "seed": config.seed,
    "datasets": found,
    "probes": {
      name: measure(policy, answers, keep) for name, measure in measures.items()
    },
    "against": {},
  }
  if config.against:
    mine = answer_to(policy, rivals[0])
    keep("against", mine)
    del policy  # There may not be room for two.
    theirs = answer_to(load(config.against.source), rivals[1])
    keep("against/other", theirs)
    results["against"] = results_lib.win_rate(mine, theirs, seed=config.seed)
  writer.close()
  samples.close()
  table = results_lib.table(results)
  text = json.dumps(results_lib.plain(results), indent=2, ensure_ascii=False)
  if jax.process_index() == 0:
    directory.write_text(workdir / "results.json", text + "\n")
    directory.write_text(workdir / "results.md", table + "\n")
  progress.say(table)


def greedily(questions: Questions) -> Questions:
  """Returns the same questions, asked once each at temperature 0."""
  sampling = dataclasses.replace(
    questions.sampling, group_size=1, temperature=0.0
  )
  return questions._replace(sampling=sampling)


def merged(common: ConfigDict, section: ConfigDict) -> dict[str, Any]:
  """Returns the common fields with those of a section over them.

  `sampling` is merged field by field; other sections replace the common ones.
  """
  fields, own = common.to_dict(), section.to_dict()
  sampling = fields["sampling"] | own.get("sampling", {})
  return fields | own | {"sampling": sampling}


def _differs(
  *,
  prompt_slots: int,
  num_problems: int,
  prompts_per_batch: int,
  sampling: Mapping[str, Any],
  rewards: Mapping[str, Any],
  greedy: bool,
) -> None:
  """Fields of `config.evaluate` that may differ for a dataset.

  Args:
    prompt_slots: tokens that a prompt may have.
    num_problems: the first ones of the dataset; 0 for all.
    prompts_per_batch: how many are asked at a time.
    sampling: fields that differ.
    rewards: what is measured.
    greedy: whether each problem is asked once more, at temperature 0.
  """


def _asks(*, data: Mapping[str, Any]) -> None:
  """A dataset of `config.datasets`.

  Args:
    data: what `data.datasets.load` reads.
  """


def _holds_against(*, source: str, data: Mapping[str, Any]) -> None:
  """`config.against`.

  Args:
    source: directory of the other model.
    data: what `data.datasets.load` reads.
  """


def _asked(own: Callable[..., None]) -> schema.Options:
  nodes = {
    "data": sections.DATA,
    "sampling": schema.Options(decode.SamplingParams, partial=True),
    "rewards": combine.SCHEMA,
  }
  return schema.Options(_differs, partial=True, shared=own, nodes=nodes)


SCHEMA = schema.Fields(
  configs.evaluate,
  {
    "model": sections.MODEL,
    "evaluate.sampling": sections.SAMPLING,
    "evaluate.rewards": combine.SCHEMA,
    "datasets": schema.Named(_asked(_asks)),
    "probes": schema.Named(
      lambda name: schema.Options(probes.PROBES[name]), tuple(probes.PROBES)
    ),
    "against": schema.Optional(_asked(_holds_against)),
  },
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` or the model it is held against is not
      there.
  """
  schema.check(SCHEMA, config)
  if not config.datasets:
    raise errors.ConfigError("config.datasets is empty; name one at least.")
  against = [config.against] if config.against else []
  for section in (*config.datasets.values(), *against):
    fields = merged(config.evaluate, section)
    decode.SamplingParams(**fields["sampling"])
    combine.check(fields["rewards"])
  source_lib.require_source(config.source)
  if config.against:
    source_lib.require_source(config.against.source, "against.source")
