"""Preference data of our own: completions of a policy, and who is better.

Three kinds, which `config.kind` names:

  labels  K completions for each problem with what each earns under
          `config.rewards`, a number in [0, 1]
  pairs   such completions compared by what they earn from a rule, a reward
          model, or a judge. As DeepSeek-R1 does, those pairs are kept whose
          scores differ by more than a margin, https://arxiv.org/abs/2501.12948
          section 3.2.2. There a judge compares the two, in both orders; here
          each is scored by itself.
  steps   labels of the steps of completions: the mean of what continuations
          from the end of a step earn, the share that is right where the reward
          is accuracy. Math-Shepherd, https://arxiv.org/abs/2312.08935, equation
          4 (soft estimation).

The dataset is written to `dataset/` of the run's directory, by
`data.records`. What was drawn is kept batch by batch in `drawn.jsonl`, so that
a stopped run goes on and writes the same. P problems a batch, K completions.
"""

import collections
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from grpo_jax import configs, errors, processes, schema, sharding
from grpo_jax.curation import annotate
from grpo_jax.data import datasets, prompts, records
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import ask
from grpo_jax.rewards import combine
from grpo_jax.rewards import section as section_lib
from grpo_jax.runs import log as run_log
from grpo_jax.runs import progress
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome, StopRequest
from grpo_jax.sampling import decode, generate
from grpo_jax.stages import describe as describe_lib
from grpo_jax.stages import sections, setup
from grpo_jax.types import Problem

# What a random number is for; batches and rows are folded in after it.
_COMPLETIONS, _CONTINUATIONS = 0, 1


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Draws, compares and writes a dataset.

  Raises:
    ValueError: a field of the config is unknown or does not fit, or nothing is
      left to write.
    FileNotFoundError: the source is missing.
  """
  check(config)
  with setup.open_run(config, workdir) as run:
    problems = datasets.load(**config.data, data_dir=run.data_dir)
    count = min(config.num_problems or len(problems), len(problems))
    problems, encoded = prompts.ask(
      [problems[i] for i in range(count)],
      run.template,
      run.tok,
      config.prompts.prompt_slots,
      tell=progress.say,
    )
    count = len(problems)
    setup.check_references(config.rewards, problems)
    size = min(config.prompts.prompts_per_batch, count)
    sharding.split_rows(run.mesh, size, config.sampling.group_size)
    run.claim()
    dataset, log = workdir / "dataset", workdir / "drawn.jsonl"
    if processes.from_first(lambda: records.is_dataset(dataset)):
      progress.say(f"{dataset} is already written.")
      return Outcome.FINISHED
    processes.first("tok", lambda: run.tok.save(workdir / "tokenizer"))
    annotator = annotate.Annotator(
      ask.load_policy(
        config.source,
        run.mesh,
        template=run.template,
        frozen=True,
        **config.model,
      ),
      size,
      config.prompts.prompt_slots,
      decode.SamplingParams(**config.sampling),
    )
    done = processes.from_first(lambda: _lines(log))
    batches = draw(
      annotator,
      problems,
      encoded,
      run.key(_COMPLETIONS),
      rewards=config.rewards,
      first_batch=done,
    )
    found = map(converter(run, annotator), batches)
    if not keep(found, log, done, -(-count // size)):
      return Outcome.STOPPED
    if processes.is_first():
      write(run, annotator.model.step, count, run_log.read(log))
  return Outcome.FINISHED


def converter(
  run: setup.Run, annotator: annotate.Annotator
) -> Callable[[annotate.ScoredBatch], annotate.Found]:
  """Returns what makes records of a batch, by `config.kind`."""
  config = run.config
  return {
    "labels": annotate.labels_of,
    "pairs": functools.partial(
      annotate.pairs_of, seed=config.seed, **config.pairs
    ),
    "steps": functools.partial(
      annotate.steps_of,
      annotator=annotator,
      rewards=config.rewards,
      key=run.key(_CONTINUATIONS),
      **config.steps,
    ),
  }[config.kind]


def write(
  run: setup.Run, step: int, count: int, lines: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the dataset, with where it comes from.

  Args:
    run: of this stage.
    step: of the source's checkpoint.
    count: of problems.
    lines: what was kept of each batch.
  """
  config, counts = run.config, collections.Counter()
  for line in lines:
    counts.update(line["counts"])
  rows = [record for line in lines for record in line["records"]]
  dataset = run.workdir / "dataset"
  progress.say(f"{len(rows):,} records in {dataset}; {dict(counts)}")
  records.write(
    dataset,
    rows,
    {
      "stage": config.stage,
      "config": config.to_dict(),
      "source": {"path": str(config.source), "step": step},
      "tokenizer": tokenizer.fingerprint(run.tok),
      "counts": {"problems": count} | dict(counts),
      "seed": config.seed,
    },
  )


def draw(
  annotator: annotate.Annotator,
  problems: Sequence[Problem],
  encoded: Sequence[np.ndarray],
  key: Key[Array, ""],
  *,
  rewards: errors.Section,
  first_batch: int,
) -> Iterator[annotate.ScoredBatch]:
  """Yields completions of the problems, batch by batch, and their rewards."""
  size = annotator.prompts_per_batch
  batches = generate.generate(
    annotator.model,
    problems,
    encoded,
    key,
    prompt_slots=annotator.prompt_slots,
    prompts_per_batch=size,
    sampling=annotator.sampling,
    first_batch=first_batch,
  )
  for number, batch in enumerate(batches, start=first_batch):
    asked = encoded[number * size : (number + 1) * size]
    yield annotate.ScoredBatch(
      number, asked, batch, annotate.score(rewards, batch)
    )


def keep(
  found: Iterator[annotate.Found],
  path: pathlib.Path,
  done: int,
  num_batches: int,
) -> bool:
  """Keeps what batches came to; returns whether all of them are kept.

  Args:
    found: of the batches that are not kept yet.
    path: one line for each batch.
    done: batches that it has.
    num_batches: of all.
  """
  log = run_log.JsonLines(path, restored=done)
  with StopRequest() as stop:
    # No batch is begun after a stop was asked for.
    while done < num_batches and not stop:
      rows, counts = next(found)
      done += 1
      log.append({"step": done, "counts": counts, "records": rows})
      progress.say(f"batch {done}/{num_batches}: {len(rows)} records")
  log.close()
  return done == num_batches


def _lines(path: pathlib.Path) -> int:
  """Whole lines of a file."""
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _batches(*, prompt_slots: int, prompts_per_batch: int) -> None:
  """Prompts of a batch.

  Args:
    prompt_slots: tokens that a prompt may have; longer ones are left out.
    prompts_per_batch: how many are asked at a time.
  """


SCHEMA = schema.Fields(
  configs.preferences,
  {
    "data": sections.DATA,
    "prompts": sections.prompts(_batches),
    "model": sections.MODEL,
    "sampling": sections.SAMPLING,
    "rewards": section_lib.SCHEMA,
    "pairs": schema.Options(annotate.pairs_of, ("seed",)),
    "steps": schema.Options(annotate.steps_of, ("annotator", "rewards", "key")),
  },
  choices={"kind": ("labels", "pairs", "steps")},
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ValueError: a field is unknown or does not fit the others.
    FileNotFoundError: `config.source` holds no model.
  """
  schema.check(SCHEMA, config)
  source_lib.require_source(config.source)
  combine.check(config.rewards)
  if config.kind == "pairs" and config.sampling.group_size < 2:
    raise errors.ConfigError(
      "config.sampling.group_size must be at least 2: pairs are of completions"
      " of one problem."
    )
  if config.steps.continuations < 1 or config.pairs.per_problem < 1:
    raise errors.ConfigError(
      "config.steps.continuations and config.pairs.per_problem must be at least"
      " 1."
    )


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what would be drawn."""
  cfg = source_lib.read_model(config.source, **config.model)
  drawn, length = config.sampling.group_size, config.sampling.max_new_tokens
  return [
    *describe_lib.data(config, "data"),
    *describe_lib.frozen(cfg, "the policy"),
    f"completions: {drawn:,} of each problem, of up to {length:,} tokens",
  ]
