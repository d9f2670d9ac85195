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
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from grpo_jax import (
  checkpoint,
  configs,
  generation,
  metrics,
  run_log,
  sharding,
)
from grpo_jax.data import datasets, prompts, recipes, records, tokenizer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine, learned
from grpo_jax.sampling import decode
from grpo_jax.stopping import StopRequest
from grpo_jax.types import Problem

# What a random number is for; batches and rows are folded in after it.
_COMPLETIONS, _CONTINUATIONS = 0, 1

# Records to write, and how often what happened.
Found = tuple[list[dict[str, Any]], dict[str, int]]


class Policy(NamedTuple):
  """A policy and how it is asked.

  Attributes:
    prompts_per_batch: P; also how many beginnings are continued at a time.
    prompt_slots: S of the problems.
    sampling: of completions; K is its group size.
  """

  params: Params
  cfg: ModelConfig
  tok: tokenizer.Tokenizer
  mesh: Mesh
  prompts_per_batch: int
  prompt_slots: int
  sampling: decode.SamplingParams


class Drawn(NamedTuple):
  """Completions of one batch of problems, and what they earned.

  Attributes:
    number: of the batch, from 0.
    prompts: of each problem, in tokens.
    completions: of P problems, K each.
    rewards: of each; NaN where there is none.
  """

  number: int
  prompts: Sequence[Int[np.ndarray, " S"]]
  completions: generation.Completions
  rewards: Float[np.ndarray, " rows"]


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Draws, compares and writes a dataset; returns whether it is written.

  Raises:
    ValueError: a field of the config is unknown or does not fit, or nothing is
      left to write.
    FileNotFoundError: the source is missing.
  """
  check(config)
  mesh = sharding.make_mesh(config.mesh.to_dict())
  jax.set_mesh(mesh)
  checkpoint.require_source(config.source)
  template = prompts.read_template(config.prompts.template, chat_too=True)
  tok = tokenizer.load(checkpoint.tokenizer_directory(config.source))
  data_dir = pathlib.Path(config.data_dir).expanduser()
  problems = datasets.load(**config.data, data_dir=data_dir)
  count = min(config.num_problems or len(problems), len(problems))
  problems, encoded = prompts.ask(
    [problems[i] for i in range(count)],
    template,
    tok,
    config.prompts.prompt_slots,
  )
  size = min(config.prompts.prompts_per_batch, count)
  sharding.split_rows(mesh, size, config.sampling.group_size)
  checkpoint.claim(workdir, config.to_dict())
  dataset, log = workdir / "dataset", workdir / "drawn.jsonl"
  if records.is_dataset(dataset):
    print(f"{dataset} is already written.")
    return True

  cfg, params, step = checkpoint.load_policy(
    config.source, mesh, frozen=True, **config.model
  )
  tok.save(workdir / "tokenizer")
  policy = Policy(
    params,
    cfg,
    tok,
    mesh,
    size,
    config.prompts.prompt_slots,
    decode.SamplingParams(**config.sampling),
  )
  key = jax.random.key(config.seed)
  convert = {
    "labels": labels_of,
    "pairs": functools.partial(pairs_of, seed=config.seed, **config.pairs),
    "steps": functools.partial(
      steps_of,
      policy=policy,
      rewards=config.rewards,
      key=jax.random.fold_in(key, _CONTINUATIONS),
      **config.steps,
    ),
  }[config.kind]
  batches = draw(
    policy,
    problems,
    encoded,
    jax.random.fold_in(key, _COMPLETIONS),
    rewards=config.rewards,
    first_batch=_lines(log),
  )
  if not keep(map(convert, batches), log, -(-count // size)):
    return False
  lines = run_log.read(log)
  counts = collections.Counter()
  for line in lines:
    counts.update(line["counts"])
  rows = [record for line in lines for record in line["records"]]
  print(f"{len(rows):,} records in {dataset}; {dict(counts)}")
  if jax.process_index() == 0:
    records.write(
      dataset,
      rows,
      {
        "stage": config.stage,
        "config": config.to_dict(),
        "source": {"path": str(config.source), "step": step},
        "tokenizer": recipes.content_hash(_files(workdir / "tokenizer")),
        "counts": {"problems": count} | dict(counts),
        "seed": config.seed,
      },
    )
  return True


def draw(
  policy: Policy,
  problems: Sequence[Problem],
  encoded: Sequence[np.ndarray],
  key: Key[Array, ""],
  *,
  rewards: configs.Section,
  first_batch: int,
) -> Iterator[Drawn]:
  """Yields completions of the problems, batch by batch, and their rewards."""
  size = policy.prompts_per_batch
  batches = generation.generate(
    policy.params,
    policy.cfg,
    policy.tok,
    problems,
    encoded,
    key,
    policy.mesh,
    prompt_slots=policy.prompt_slots,
    prompts_per_batch=size,
    sampling=policy.sampling,
    first_batch=first_batch,
  )
  for number, batch in enumerate(batches, start=first_batch):
    asked = encoded[number * size : (number + 1) * size]
    yield Drawn(number, asked, batch, score(rewards, batch))


def score(
  rewards: configs.Section, batch: generation.Completions
) -> Float[np.ndarray, " rows"]:
  """What each completion earns; NaN where there is no telling."""
  scores = combine.score(
    rewards,
    batch.problems,
    batch.texts,
    lengths=batch.lengths,
    truncated=batch.truncated,
  )
  return np.where(scores.valid, scores.rewards.astype(np.float64), np.nan)


def keep(found: Iterator[Found], path: pathlib.Path, num_batches: int) -> bool:
  """Keeps what batches came to; returns whether all of them are kept.

  Args:
    found: of the batches that are not kept yet.
    path: one line for each batch.
    num_batches: of all.
  """
  done = _lines(path)
  log = run_log.JsonLines(path, restored=done)
  with StopRequest() as stop:
    # No batch is begun after a stop was asked for.
    while done < num_batches and not stop:
      rows, counts = next(found)
      done += 1
      log.append({"step": done, "counts": counts, "records": rows})
      print(f"batch {done}/{num_batches}: {len(rows)} records", flush=True)
  log.close()
  return done == num_batches


def labels_of(drawn: Drawn) -> Found:
  """Completions with what they earn as their label; see `_usable`.

  Raises:
    ValueError: a reward is not in [0, 1].
  """
  rows = [
    _asked(drawn.completions.problems[row])
    | dict(
      completion=drawn.completions.texts[row],
      label=_label(drawn.rewards[row]),
    )
    for row in _usable(drawn)
  ]
  return rows, _counts(drawn)


def pairs_of(
  drawn: Drawn, *, margin: float, per_problem: int, seed: int
) -> Found:
  """Pairs of completions of one problem whose rewards differ enough.

  Each problem gives up to `per_problem` of its pairs, drawn at random.

  Args:
    drawn: completions.
    margin: rewards of a pair differ by more than this; at least 0.
    per_problem: at least 1.
    seed: of the choice.
  """
  batch, rewards = drawn.completions, drawn.rewards.tolist()
  group_size = _group_size(drawn)
  rows, alike = [], 0
  for place, group in itertools.groupby(
    range(len(rewards)), lambda row: row // group_size
  ):
    inside = _usable(drawn, group)
    found = [
      (better, worse)
      for better, worse in itertools.permutations(inside, 2)
      if rewards[better] - rewards[worse] > margin
    ]
    problem = batch.problems[place * group_size]
    rng = random.Random(f"{seed} {problem.question}")
    alike += not found
    rows += [
      _asked(problem)
      | dict(
        chosen=batch.texts[better],
        rejected=batch.texts[worse],
        chosen_reward=rewards[better],
        rejected_reward=rewards[worse],
        margin=rewards[better] - rewards[worse],
      )
      for better, worse in rng.sample(found, min(per_problem, len(found)))
    ]
  return rows, _counts(drawn) | {"problems_without_a_pair": alike}


def steps_of(
  drawn: Drawn,
  *,
  policy: Policy,
  rewards: configs.Section,
  key: Key[Array, ""],
  separators: Sequence[str],
  continuations: int,
) -> Found:
  """Completions with labels of their steps, from continuations of each step.

  The last step of a completion ends it: its label is what the whole earns.

  Args:
    drawn: completions.
    policy: what continues them.
    rewards: of continued completions; in [0, 1].
    key: of the draws.
    separators: each ends a step; see `learned.step_offsets`.
    continuations: of each step.

  Raises:
    ValueError: a reward is not in [0, 1].
  """
  texts = drawn.completions.texts
  ends = {
    row: learned.step_offsets(texts[row], separators) for row in _usable(drawn)
  }
  begun = [
    beginning
    for row in ends
    for beginning in _beginnings(drawn, row, ends[row], policy.tok)
  ]
  key = jax.random.fold_in(key, drawn.number)
  earned = _continued(drawn, begun, policy, rewards, key, continuations)
  labels: dict[int, list[float | None]] = {row: [] for row in ends}
  for beginning, mean in zip(begun, earned, strict=True):
    labels[beginning.row].append(_label(mean))
  rows = [
    _asked(drawn.completions.problems[row])
    | dict(
      completion=texts[row],
      labels=json.dumps([*found, _label(drawn.rewards[row])]),
    )
    for row, found in labels.items()
  ]
  return rows, _counts(drawn) | {"continued_steps": len(begun)}


class _Beginning(NamedTuple):
  """A completion up to the end of a step: its row, characters, all tokens."""

  row: int
  end: int
  ids: Int[np.ndarray, " T"]


def _beginnings(
  drawn: Drawn, row: int, ends: Sequence[int], tok: tokenizer.Tokenizer
) -> Iterator[_Beginning]:
  """Prompt and completion up to the end of each step but the last.

  Steps are tokenized apart, as a process reward model reads them.
  """
  text = drawn.completions.texts[row]
  ids = drawn.prompts[row // _group_size(drawn)].tolist()
  for start, end in zip([0, *ends], ends[:-1], strict=False):
    ids = ids + tok.encode(text[start:end])
    yield _Beginning(row, end, np.asarray(ids, np.int32))


def _continued(
  drawn: Drawn,
  begun: Sequence[_Beginning],
  policy: Policy,
  rewards: configs.Section,
  key: Key[Array, ""],
  continuations: int,
) -> list[float]:
  """The mean of what continuations of each beginning earn; NaN for none."""
  slots = policy.prompt_slots + policy.sampling.max_new_tokens
  # What is no valid text may have more tokens than were drawn.
  fits = [i for i, beginning in enumerate(begun) if len(beginning.ids) <= slots]
  found, place = [math.nan] * len(begun), 0
  for batch in generation.generate(
    policy.params,
    policy.cfg,
    policy.tok,
    [drawn.completions.problems[begun[i].row] for i in fits],
    [begun[i].ids for i in fits],
    key,
    policy.mesh,
    prompt_slots=slots,
    prompts_per_batch=policy.prompts_per_batch,
    sampling=dataclasses.replace(policy.sampling, group_size=continuations),
  ):
    owners = fits[place : place + len(batch.texts) // continuations]
    place += len(owners)
    begins = [
      drawn.completions.texts[begun[i].row][: begun[i].end]
      for i in owners
      for _ in range(continuations)
    ]
    texts = [a + b for a, b in zip(begins, batch.texts, strict=True)]
    earned = score(rewards, batch._replace(texts=texts))
    for i, row in zip(owners, earned.reshape(len(owners), -1), strict=True):
      found[i] = metrics.mean(row)
  return found


def _group_size(drawn: Drawn) -> int:
  return len(drawn.completions.texts) // len(drawn.prompts)


def _usable(drawn: Drawn, rows: Iterable[int] | None = None) -> list[int]:
  """Rows that ended and have a reward; of equal texts of a problem the first.

  Args:
    drawn: completions.
    rows: to choose from; all by default.
  """
  batch, seen = drawn.completions, {}
  for row in range(len(batch.texts)) if rows is None else rows:
    if not (batch.truncated[row] or np.isnan(drawn.rewards[row])):
      same = row // _group_size(drawn), batch.texts[row]
      seen.setdefault(same, row)
  return list(seen.values())


def _label(reward: float) -> float | None:
  """A reward as a label; None where there is none."""
  if np.isnan(reward):
    return None
  if not 0 <= reward <= 1:
    raise ValueError(
      f"A completion earns {reward:g}, which is no label: config.rewards must"
      " be in [0, 1], such as dict(accuracy=1.0)."
    )
  return round(float(reward), 6)


def _asked(problem: Problem) -> dict[str, Any]:
  return dict(
    question=problem.question, answer=problem.answer, source=problem.source
  )


def _counts(drawn: Drawn) -> dict[str, int]:
  return {
    "completions": len(drawn.rewards),
    "truncated": int(np.count_nonzero(drawn.completions.truncated)),
    "unscored": int(np.count_nonzero(np.isnan(drawn.rewards))),
  }


def _lines(path: pathlib.Path) -> int:
  """Whole lines of a file."""
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in directory.rglob("*") if path.is_file())


def check(config: ConfigDict) -> None:
  """Raises ValueError, in one sentence, if the config cannot be run."""
  configs.check_fields(
    config, configs.preferences(), free=("data", "sampling", "rewards")
  )
  configs.check_section("sampling", config.sampling, decode.SamplingParams)
  configs.check_section("pairs", config.pairs, pairs_of, ("seed",))
  given = "policy", "rewards", "key"
  configs.check_section("steps", config.steps, steps_of, given)
  combine.check(config.rewards)
  kinds = ("labels", "pairs", "steps")
  if config.kind not in kinds:
    raise configs.ConfigError(
      f"config.kind={config.kind!r} must be one of {', '.join(kinds)}."
    )
  if config.kind == "pairs" and config.sampling.group_size < 2:
    raise configs.ConfigError(
      "config.sampling.group_size must be at least 2: pairs are of completions"
      " of one problem."
    )
  if config.steps.continuations < 1 or config.pairs.per_problem < 1:
    raise configs.ConfigError(
      "config.steps.continuations and config.pairs.per_problem must be at least"
      " 1."
    )
