"""Evaluation on held-out problems: sample k completions, score, average.

The newest checkpoint of another run is evaluated in every way there is, once.
P prompts, k completions each.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from grpo_jax import configs, errors, processes, schema
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import ask, probes
from grpo_jax.evaluation import results as results_lib
from grpo_jax.rewards import combine
from grpo_jax.rewards import section as section_lib
from grpo_jax.runs import directory, progress
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.sampling import decode
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.types import Completions


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Evaluates the newest checkpoint of `config.source`.

  Writes `results.json`, its table `results.md`, every completion
  (`samples.jsonl`), and a line a dataset in `evaluations.jsonl`, as loops do.
  A stopped evaluation begins anew.

  Raises:
    ValueError: a field of the config is unknown or does not fit the others.
    FileNotFoundError: `config.source` or another model is not there.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    load = functools.partial(
      ask.load_policy, mesh=run.mesh, template=run.template, **config.model
    )
    make = functools.partial(
      ask.make_questions,
      tok=run.tok,
      template=run.template,
      data_dir=run.data_dir,
      tell=progress.say,
    )
    answer_to = functools.partial(ask.ask, key=jax.random.key(config.seed))
    sections = {
      name: merged(config.evaluate, section)
      for name, section in config.datasets.items()
    }
    questions = {name: make(section) for name, section in sections.items()}
    for asked in questions.values():
      progress.warn(asked.notes)
    setting = probes.Setting(
      run.tok,
      run.data_dir,
      run.mesh,
      config.seed,
      sections,
      make,
      answer_to,
      load,
    )
    measures = {
      name: probes.PROBES[name](setting, **section.to_dict())
      for name, section in config.probes.items()
    }
    rivals = make_rivals(config, make)
    run.claim()
    policy = load(config.source)
    with Samples(workdir, policy.step) as samples:
      answers, found = {}, {}
      for name, asked in questions.items():
        if processes.asked_to_stop():
          return Outcome.STOPPED
        answers[name], found[name] = one_dataset(
          name,
          asked,
          functools.partial(answer_to, policy),
          samples,
          greedy=sections[name]["greedy"],
          seed=config.seed,
        )
      results = {
        "source": config.source,
        "step": policy.step,
        "seed": config.seed,
        "datasets": found,
        "probes": {
          name: measure(policy, answers, samples.keep)
          for name, measure in measures.items()
        },
        "against": {},
      }
      if config.against:
        mine = answer_to(policy, rivals[0])
        samples.keep("against", mine)
        del policy  # There may not be room for two.
        theirs = answer_to(load(config.against.source), rivals[1])
        samples.keep("against/other", theirs)
        results["against"] = results_lib.win_rate(
          mine, theirs, seed=config.seed
        )
  write(results, workdir)
  return Outcome.FINISHED


def make_rivals(
  config: ConfigDict, make: Callable[..., ask.Questions]
) -> tuple[ask.Questions, ...]:
  """Returns what policy and rival are asked, where there is a rival."""
  if not config.against:
    return ()
  # The other model may have another tokenizer.
  other = source_lib.tokenizer_directory(config.against.source)
  section = merged(config.evaluate, config.against)
  return make(section), make(section, tok=tokenizer.load(other))


class Samples:
  """The files of an evaluation: every completion, and a line a dataset."""

  def __init__(self, workdir: pathlib.Path, step: int):
    """Begins them anew; `step` is that of the checkpoint."""
    self._writer = run_log.Writer(workdir)
    self._lines = run_log.JsonLines(workdir / "samples.jsonl")
    self._step = step

  def __enter__(self) -> "Samples":
    return self

  def __exit__(self, *_) -> None:
    self._writer.close()
    self._lines.close()

  def keep(self, name: str, answers: Completions, greedy: bool = False) -> None:
    """Writes completions under the name of what they answer."""
    records = results_lib.samples(name, answers, greedy=greedy)
    self._lines.append(*({"step": self._step} | record for record in records))

  def write(self, name: str, scalars: Mapping[str, Any]) -> None:
    """Writes the means of a dataset."""
    self._writer.write_evaluation(self._step, name, scalars)


def one_dataset(
  name: str,
  asked: ask.Questions,
  answer_to: Callable[[ask.Questions], Completions],
  samples: Samples,
  *,
  greedy: bool,
  seed: int,
) -> tuple[Completions, dict[str, Any]]:
  """Returns the answers to a dataset and what they say, and keeps both."""
  answers, best = answer_to(asked), None
  samples.keep(name, answers)
  if greedy:
    best = answer_to(ask.greedily(asked))
    samples.keep(name, best, greedy=True)
  scalars = results_lib.scalars(answers)
  samples.write(name, scalars)
  progress.say(progress.render(answers))
  progress.say(f"\n{name}: {ask.summary(scalars)}\n")
  return answers, results_lib.details(answers, greedy=best, seed=seed)


def write(results: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes `results.json` and its table, and prints the table."""
  table = results_lib.table(results)
  text = json.dumps(results_lib.plain(results), indent=2, ensure_ascii=False)
  directory.write_text(workdir / "results.json", text + "\n")
  directory.write_text(workdir / "results.md", table + "\n")
  progress.say(table)


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
    "rewards": section_lib.SCHEMA,
  }
  return schema.Options(_differs, partial=True, shared=own, nodes=nodes)


SCHEMA = schema.Fields(
  configs.evaluate,
  {
    "model": sections.MODEL,
    "prompts": sections.prompts(),
    "evaluate.sampling": sections.SAMPLING,
    "evaluate.rewards": section_lib.SCHEMA,
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


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what would be drawn."""
  reads = (f"datasets.{name}.data" for name in config.datasets)
  cfg = source_lib.read_model(config.source, **config.model)
  lines = [
    *describe_lib.data(config, *reads),
    *describe_lib.frozen(cfg, "the policy"),
  ]
  for name, section in config.datasets.items():
    sampling = merged(config.evaluate, section)["sampling"]
    lines.append(
      f"completions of {name}: {sampling['group_size']:,} of each problem, of"
      f" up to {sampling['max_new_tokens']:,} tokens"
    )
  return lines
