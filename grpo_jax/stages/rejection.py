"""A dataset from a policy: sample, score, filter, keep.

`config.ways` says how problems are asked, and of which model. One way that
shows the question alone to a trained policy is rejection sampling
(DeepSeek-R1, https://arxiv.org/abs/2501.12948 section 2.3.3). The three ways to
cold-start data (section 2.3.1) differ from it in nothing but how they ask and
in what is made readable before it is scored, so they are three such sections
and no stage of their own.

`completions.jsonl` grows batch by batch and decides where a run goes on;
`dataset/` is written from it at the end. A run that was killed and started
again writes the same records.jsonl and dataset.json, to the byte, and the same
records for TFDS, whose files order the fields of a record as they like.

P prompts a batch, k completions each.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import (
  checkpoint,
  configs,
  generation,
  progress,
  run_log,
  sharding,
)
from grpo_jax.data import (
  datasets,
  decontamination,
  prompts,
  records,
  rewriting,
  selection,
  tokenizer,
  worked_examples,
)
from grpo_jax.sampling import decode
from grpo_jax.stopping import StopRequest
from grpo_jax.types import Problem

DATASET, COMPLETIONS, _SOURCES = "dataset", "completions.jsonl", "sources.json"
_COLUMNS = (
  progress.Column("prompts", "prompts", "10,.0f"),
  progress.Column("kept", "kept", "7.1%"),
  progress.Column("tokens/s", "tokens_per_second", "8,.0f"),
)


@dataclasses.dataclass(frozen=True)
class Way:
  """How problems are asked; a section of `config.ways`.

  Attributes:
    source: directory of a run, whose newest checkpoint is asked, or one of
      Hugging Face.
    template: a name in `prompts.TEMPLATES`, a file, or "chat".
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
    sampling: how to draw.
    next_turn: where a completion is cut; empty for nowhere.
    contaminated: by the name of each test set, problems that were left out.
  """

  tokenizer: tokenizer.Tokenizer
  problems: list[Problem]
  encoded: list[np.ndarray]
  sampling: decode.SamplingParams
  next_turn: str
  contaminated: dict[str, int]


def run(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Writes `workdir/dataset`; returns whether it is there.

  Raises:
    ValueError: a field of the config does not fit; or nothing is kept.
    FileNotFoundError: a source holds no model.
  """
  rules, ways = check(config)
  if records.is_dataset(workdir / DATASET):
    checkpoint.claim(workdir, config.to_dict())
    count = records.provenance(workdir / DATASET)["num_records"]
    print(f"{workdir / DATASET} already holds all {count} records.")
    return True
  for name, way in ways.items():
    checkpoint.require_source(way.source, f"ways.{name}.source")
  mesh = sharding.make_mesh(config.mesh.to_dict())
  jax.set_mesh(mesh)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  problems = datasets.load(**config.data.to_dict(), data_dir=data_dir)
  tests = test_sets(config.decontaminate, data_dir)
  asking = {
    name: ask(config, way, problems, tests) for name, way in ways.items()
  }
  for name, asked in asking.items():
    if not asked.problems:
      raise ValueError(
        f"config.ways.{name} has no problem to ask: of those that it names,"
        f" {sum(asked.contaminated.values())} share wording with test sets."
      )
    selection.check_sources(rules, {p.source for p in asked.problems})
    size = batch_size(config, asked)
    sharding.split_rows(mesh, size, asked.sampling.group_size)
  checkpoint.claim(workdir, config.to_dict())
  sources = remember_sources(workdir, ways, asking)
  selected = selection.Selection(
    dataclasses.replace(rules, tests=tests), asked_again(asking)
  )
  if not sample(config, workdir, mesh, ways, asking, selected):
    return False
  if jax.process_index() > 0:
    return True
  show(workdir / COMPLETIONS)
  total = selected.total()
  if not total["kept"]:
    raise ValueError(
      f"Nothing is kept of {total['asked']:,} completions: dropped"
      f" {reasons(total['dropped'])}; loosen what drops most, or sample from a"
      " better source."
    )
  records.write(
    workdir / DATASET,
    (
      selection.record(row)
      for row in read_rows(workdir / COMPLETIONS)
      if row["dropped"] is None
    ),
    {
      "stage": config.stage,
      "seed": config.seed,
      "sources": sources,
      "contaminated": {name: a.contaminated for name, a in asking.items()},
      "counts": total,
      "ways": selected.counts,
      "config": config.to_dict(),
    },
  )
  for name, counts in selected.counts.items():
    print(
      f"{name}: kept {counts['kept']:,} of {counts['asked']:,} completions;"
      f" dropped {reasons(counts['dropped'])}."
    )
  print(f"The records are in {workdir / DATASET}.")
  return True


def sample(
  config: ConfigDict,
  workdir: pathlib.Path,
  mesh: Mesh,
  ways: Mapping[str, Way],
  asking: Mapping[str, Asking],
  selected: selection.Selection,
) -> bool:
  """Samples and selects what is not in the run's file yet.

  Returns whether all of it is there.
  """
  rows_of = {name: batch_rows(config, asked) for name, asked in asking.items()}
  sizes = [size for rows in rows_of.values() for size in rows]
  path = workdir / COMPLETIONS
  step = finished_batches(path, sizes)
  for row in read_rows(path):
    if row["step"] <= step:
      selected.add(row)
  if step:
    print(f"Going on after batch {step} of {len(sizes)}.")
  lines = run_log.JsonLines(path, restored=step)
  table = progress.Progress(len(sizes), _COLUMNS)
  timer = progress.Timer()
  first = 0  # Batches of the ways before.
  with StopRequest() as stop:
    for number, (name, way) in enumerate(ways.items()):
      if not stop and step < first + len(rows_of[name]):
        asked = asking[name]
        cfg, params, _ = checkpoint.load_policy(
          way.source, mesh, frozen=True, **config.model
        )
        for batch in generation.generate(
          params,
          cfg,
          asked.tokenizer,
          asked.problems,
          asked.encoded,
          jax.random.fold_in(jax.random.key(config.seed), number),
          mesh,
          prompt_slots=way.prompt_slots,
          prompts_per_batch=batch_size(config, asked),
          sampling=asked.sampling,
          first_batch=step - first,
        ):
          step += 1
          rows = selected.select(name, *readable(batch, asked), way.rewrite)
          lines.append(*({"step": step} | row for row in rows))
          total = selected.total()
          seconds = timer.step()["time/step"]
          scalars = {
            "prompts": prompts_done(asking, selected),
            "kept": total["kept"] / total["asked"],
            "tokens_per_second": batch.lengths.sum() / seconds,
          }
          table.show(step, scalars)
          if stop:
            break
      first += len(rows_of[name])
  lines.close()
  if step < len(sizes):
    print(f"Stopped after batch {step}; the same command goes on from there.")
  return step == len(sizes)


def check(
  config: ConfigDict,
) -> tuple[selection.Rules, dict[str, Way]]:
  """Returns rules and ways of a config that can be run.

  Raises:
    ConfigError: a field is unknown or does not fit.
  """
  configs.check_fields(
    config,
    configs.rejection(),
    free=("data", "ways", "rewards", "keep", "filters", "sampling", "tests"),
  )
  configs.check_section("sampling", config.sampling, decode.SamplingParams)
  if not config.ways:
    raise configs.ConfigError("config.ways is empty: name a way to ask.")
  if config.prompts_per_batch < 1:
    raise configs.ConfigError(
      f"config.prompts_per_batch={config.prompts_per_batch} must be at least 1."
    )
  ways = {}
  for name, section in config.to_dict()["ways"].items():
    where = f"ways.{name}"
    configs.check_section(where, section, Way)
    way = ways[name] = Way(**section)
    rewriting.check(way.rewrite, f"{where}.rewrite")
    fields = {**config.sampling} | dict(way.sampling)
    configs.check_section(f"{where}.sampling", fields, decode.SamplingParams)
    decode.SamplingParams(**fields)
    if bool(way.shots) != bool(way.num_shots):
      raise configs.ConfigError(
        f"config.{where} needs both shots and num_shots, or neither."
      )
  return selection.read_rules(config), ways


def test_sets(
  section: ConfigDict, data_dir: pathlib.Path
) -> decontamination.Index | None:
  """Returns the wording of the test sets that `config.decontaminate` names."""
  if not section.tests:
    return None
  questions = {
    name: [
      problem.question for problem in datasets.load(**data, data_dir=data_dir)
    ]
    for name, data in section.tests.items()
  }
  return decontamination.make_index(questions, section.ngram)


def ask(
  config: ConfigDict,
  way: Way,
  problems: Sequence[Problem],
  tests: decontamination.Index | None,
) -> Asking:
  """Returns the prompts of a way, without problems of test sets.

  Raises:
    ValueError: a template, worked examples or a prompt's length do not fit.
  """
  tok = tokenizer.load(checkpoint.tokenizer_directory(way.source))
  template = prompts.read_template(way.template, chat_too=True)
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
  said = [prompts.fill(message, p).prompt for p in left]
  asked, encoded = prompts.ask(
    [p._replace(question=text) for p, text in zip(left, said, strict=True)],
    template,
    tok,
    way.prompt_slots,
    shots=shots,
  )
  return Asking(
    tok,
    [p._replace(question=q.question) for p, q in zip(asked, left, strict=True)],
    encoded,
    decode.SamplingParams(**{**config.sampling} | dict(way.sampling)),
    prompts.next_turn(template),
    dict(contaminated),
  )


def batch_size(config: ConfigDict, asked: Asking) -> int:
  """Returns P."""
  return min(config.prompts_per_batch, len(asked.problems))


def batch_rows(config: ConfigDict, asked: Asking) -> list[int]:
  """Returns how many completions each batch of a way has."""
  size, count = batch_size(config, asked), len(asked.problems)
  k = asked.sampling.group_size
  return [min(size, count - at) * k for at in range(0, count, size)]


def readable(
  batch: generation.Completions, asked: Asking
) -> tuple[list[Problem], list[str], np.ndarray, np.ndarray]:
  """Returns problems, texts, lengths and what is truncated of a batch.

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
  return problems, texts, batch.lengths, truncated


def remember_sources(
  workdir: pathlib.Path,
  ways: Mapping[str, Way],
  asking: Mapping[str, Asking],
) -> dict[str, Any]:
  """Returns what is asked: path, step and tokenizer by the name of each way.

  Raises:
    ValueError: the run began with other checkpoints.
  """
  found = {
    name: {
      "path": way.source,
      "step": checkpoint.source_step(way.source),
      "tokenizer": tokenizer.fingerprint(asking[name].tokenizer),
    }
    for name, way in ways.items()
  }
  path = workdir / _SOURCES
  if path.exists() and (before := json.loads(path.read_text())) != found:
    raise ValueError(
      f"{workdir} began with {before} and would go on with {found}: the sources"
      " have changed; remove it to sample anew."
    )
  checkpoint.write_text(path, json.dumps(found, indent=2) + "\n")
  return found


def asked_again(asking: Mapping[str, Asking]) -> set[str]:
  """Returns the questions that are asked more than once."""
  count = collections.Counter(
    problem.question for asked in asking.values() for problem in asked.problems
  )
  return {question for question, times in count.items() if times > 1}


def finished_batches(path: pathlib.Path, sizes: Sequence[int]) -> int:
  """Returns how many batches a file holds whole, from the first one on.

  Args:
    path: of the file of completions; it may be missing or cut short.
    sizes: completions of each batch.
  """
  counts = collections.Counter(row["step"] for row in read_rows(path))
  whole = 0
  while whole < len(sizes) and counts[whole + 1] == sizes[whole]:
    whole += 1
  return whole


def read_rows(path: pathlib.Path) -> Iterator[selection.Row]:
  """Yields the rows of a file up to a line that a kill cut short."""
  if not path.exists():
    return
  with path.open(encoding="utf-8") as lines:
    for line in lines:
      if not line.endswith("\n"):
        return
      yield json.loads(line)


def prompts_done(
  asking: Mapping[str, Asking], selected: selection.Selection
) -> int:
  """Returns how many prompts were answered, over all ways."""
  return sum(
    counts["asked"] // asking[name].sampling.group_size
    for name, counts in selected.counts.items()
  )


def show(path: pathlib.Path) -> None:
  """Prints the first kept record of each way, and the first for each drop."""
  seen = set()
  for row in read_rows(path):
    group = (row["way"], None) if row["dropped"] is None else row["dropped"]
    if group not in seen:
      seen.add(group)
      verdict = "kept" if row["dropped"] is None else f"drop: {row['dropped']}"
      print(
        f"{verdict} ({row['way']})\nquestion: {row['question']}\n"
        f"{progress.quote(row['completion'])}\n"
      )


def reasons(dropped: Mapping[str, int]) -> str:
  """Returns counts by reason as a phrase, the most frequent first."""
  ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
  return ", ".join(f"{n:,} {reason}" for reason, n in ordered) or "none"
