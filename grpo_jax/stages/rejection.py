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
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import configs, errors, processes, schema, sharding
from grpo_jax.curation import ask, filters, rewriting, selection
from grpo_jax.data import datasets, records
from grpo_jax.data.tokenizers import templates, tokenizer
from grpo_jax.rewards import section as section_lib
from grpo_jax.runs import directory, progress
from grpo_jax.runs import log as run_log
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome, StopRequest
from grpo_jax.sampling import decode, generate
from grpo_jax.stages import claim, prompting, sections, setup
from grpo_jax.stages import describe as describe_lib
from grpo_jax.types import Completions

DATASET, COMPLETIONS, _SOURCES = "dataset", "completions.jsonl", "sources.json"
_COLUMNS = (
  progress.Column("prompts", "prompts", "10,.0f"),
  progress.Column("kept", "kept", "7.1%"),
  progress.Column("tokens/s", "tokens_per_second", "8,.0f"),
)


def run(config: ConfigDict, workdir: pathlib.Path) -> Outcome:
  """Writes `workdir/dataset`.

  Raises:
    ValueError: a field of the config does not fit; or nothing is kept.
    FileNotFoundError: a source holds no model.
  """
  rules, ways = read(config)
  if processes.from_first(lambda: records.is_dataset(workdir / DATASET)):
    claim.claim(config, workdir)
    count = records.provenance(workdir / DATASET)["num_records"]
    progress.say(f"{workdir / DATASET} already holds all {count} records.")
    return Outcome.FINISHED
  check(config)
  with setup.open_run(config, workdir) as run:
    problems = datasets.load(**config.data.to_dict(), data_dir=run.data_dir)
    tests = ask.test_sets(run.data_dir, **config.decontaminate.to_dict())
    day = prompting.day_of(workdir)
    questions = {
      name: ask.ask(
        way,
        problems,
        tests,
        sampling=config.sampling.to_dict(),
        prompts_per_batch=config.prompts_per_batch,
        date=day,
        tell=progress.say,
      )
      for name, way in ways.items()
    }
    check_questions(rules, questions, run.mesh)
    for asked in questions.values():
      setup.check_references(config.rewards, asked.problems)
    run.claim()
    prompting.keep(workdir, templates.Chat(date=day))
    sources = remember_sources(workdir, ways, questions)
    selected = selection.Selection(
      dataclasses.replace(rules, tests=tests), ask.asked_again(questions)
    )
    if not sample(run, ways, questions, selected):
      return Outcome.STOPPED
  if processes.is_first():
    write(run, sources, questions, selected)
  return Outcome.FINISHED


def check_questions(
  rules: selection.Rules, questions: Mapping[str, ask.Asking], mesh: Mesh
) -> None:
  """Raises ValueError where a way has nothing to ask, or it does not fit."""
  for name, asked in questions.items():
    if not asked.problems:
      raise ValueError(
        f"config.ways.{name} has no problem to ask: of those that it names,"
        f" {sum(asked.contaminated.values())} share wording with test sets."
      )
    selection.check_sources(rules, {p.source for p in asked.problems})
    sharding.split_rows(
      mesh, asked.prompts_per_batch, asked.sampling.group_size
    )


def write(
  run: setup.Run,
  sources: Mapping[str, Any],
  questions: Mapping[str, ask.Asking],
  selected: selection.Selection,
) -> None:
  """Writes what is kept, with where it comes from; and says what was dropped.

  Raises:
    ValueError: nothing is kept.
  """
  completions, dataset = run.workdir / COMPLETIONS, run.workdir / DATASET
  show(completions)
  total = selected.total()
  if not total["kept"]:
    raise ValueError(
      f"Nothing is kept of {total['asked']:,} completions: dropped"
      f" {reasons(total['dropped'])}; loosen what drops most, or sample from a"
      " better source."
    )
  records.write(
    dataset,
    (
      selection.record(row)
      for row in run_log.rows(completions)
      if row["dropped"] is None
    ),
    {
      "stage": run.config.stage,
      "seed": run.config.seed,
      "sources": sources,
      "contaminated": {name: a.contaminated for name, a in questions.items()},
      "counts": total,
      "ways": selected.counts,
      "config": run.config.to_dict(),
    },
  )
  for name, counts in selected.counts.items():
    progress.say(
      f"{name}: kept {counts['kept']:,} of {counts['asked']:,} completions;"
      f" dropped {reasons(counts['dropped'])}."
    )
  progress.say(f"The records are in {dataset}.")


def sample(
  run: setup.Run,
  ways: Mapping[str, ask.Prompting],
  questions: Mapping[str, ask.Asking],
  selected: selection.Selection,
) -> bool:
  """Samples and selects what is not in the run's file yet.

  Returns whether all of it is there.
  """
  rows_of = {n: ask.batch_rows(asked) for n, asked in questions.items()}
  sizes = [size for rows in rows_of.values() for size in rows]
  path = run.workdir / COMPLETIONS
  step = processes.from_first(lambda: finished_batches(path, sizes))
  for row in run_log.rows(path):
    if row["step"] <= step:
      selected.add(row)
  processes.wait("reading")  # Before the first one cuts the file.
  if step:
    progress.say(f"Going on after batch {step} of {len(sizes)}.")
  lines = run_log.JsonLines(path, restored=step)
  table = progress.Progress(len(sizes), _COLUMNS)
  timer = progress.Timer()
  first = 0  # Batches of the ways before.
  with StopRequest() as stop:
    for number, (name, way) in enumerate(ways.items()):
      if not stop and step < first + len(rows_of[name]):
        batches = draw(run, way, questions[name], number, step - first)
        for batch in batches:
          step += 1
          readable = ask.readable(batch, questions[name])
          rows = selected.select(name, readable, way.rewrite)
          lines.append(*({"step": step} | row for row in rows))
          total = selected.total()
          seconds = timer.step()["time/step"]
          scalars = {
            "prompts": prompts_done(questions, selected),
            "kept": total["kept"] / total["asked"],
            "tokens_per_second": batch.lengths.sum() / seconds,
          }
          table.show(step, scalars)
          if stop:
            break
      first += len(rows_of[name])
  lines.close()
  if step < len(sizes):
    progress.say(
      f"Stopped after batch {step}; the same command goes on from there."
    )
  return step == len(sizes)


def draw(
  run: setup.Run,
  way: ask.Prompting,
  asked: ask.Asking,
  number: int,
  first_batch: int,
) -> Iterator[Completions]:
  """Yields the completions of a way, batch by batch.

  Args:
    run: of this stage.
    way: how problems are asked.
    asked: its prompts.
    number: of the way.
    first_batch: the ones before it are not drawn.
  """
  cfg, params, step = source_lib.load_policy(
    way.source, run.mesh, frozen=True, **run.config.model
  )
  return generate.generate(
    generate.Policy(params, cfg, asked.tokenizer, run.mesh, step),
    asked.problems,
    asked.encoded,
    run.key(number),
    prompt_slots=way.prompt_slots,
    prompts_per_batch=asked.prompts_per_batch,
    sampling=asked.sampling,
    first_batch=first_batch,
  )


SCHEMA = schema.Fields(
  configs.rejection,
  {
    "data": sections.DATA,
    "model": sections.MODEL,
    "decontaminate": schema.Options(
      ask.test_sets, nodes={"tests": schema.Named(sections.DATA)}
    ),
    "ways": schema.Named(
      schema.Options(
        ask.Prompting,
        nodes={
          "variables": schema.Free(),
          "sampling": schema.Options(decode.SamplingParams, partial=True),
          "rewrite": rewriting.SCHEMA,
        },
      )
    ),
    "sampling": sections.SAMPLING,
    "rewards": section_lib.SCHEMA,
    "keep": schema.Free(),
    "filters": filters.SCHEMA,
  },
)


def check(config: ConfigDict) -> None:
  """Raises an error of one sentence if the config cannot be run.

  Raises:
    ConfigError: a field is unknown or does not fit.
    FileNotFoundError: a source holds no model.
  """
  _, ways = read(config)
  for name, way in ways.items():
    source_lib.require_source(way.source, f"ways.{name}.source")


def read(
  config: ConfigDict,
) -> tuple[selection.Rules, dict[str, ask.Prompting]]:
  """Returns rules and ways of a config.

  Raises:
    ConfigError: a field is unknown or does not fit.
  """
  schema.check(SCHEMA, config)
  if not config.ways:
    raise errors.ConfigError("config.ways is empty: name a way to ask.")
  if config.prompts_per_batch < 1:
    raise errors.ConfigError(
      f"config.prompts_per_batch={config.prompts_per_batch} must be at least 1."
    )
  ways = {}
  for name, section in config.to_dict()["ways"].items():
    where = f"ways.{name}"
    way = ways[name] = ask.Prompting(**section)
    rewriting.check(way.rewrite, f"{where}.rewrite")
    fields = {**config.sampling} | dict(way.sampling)
    decode.SamplingParams(**fields)
    if bool(way.shots) != bool(way.num_shots):
      raise errors.ConfigError(
        f"config.{where} needs both shots and num_shots, or neither."
      )
  return selection.read_rules(config), ways


def remember_sources(
  workdir: pathlib.Path,
  ways: Mapping[str, ask.Prompting],
  questions: Mapping[str, ask.Asking],
) -> dict[str, Any]:
  """Returns what is asked: path, step and tokenizer by the name of each way.

  Raises:
    ValueError: the run began with other checkpoints.
  """
  found = {
    name: {
      "path": way.source,
      "step": source_lib.source_step(way.source),
      "tokenizer": tokenizer.fingerprint(questions[name].tokenizer),
    }
    for name, way in ways.items()
  }
  path = workdir / _SOURCES
  if path.exists() and (before := json.loads(path.read_text())) != found:
    raise ValueError(
      f"{workdir} began with {before} and would go on with {found}: the sources"
      " have changed; remove it to sample anew."
    )
  directory.write_text(path, json.dumps(found, indent=2) + "\n")
  return found


def finished_batches(path: pathlib.Path, sizes: Sequence[int]) -> int:
  """Returns how many batches a file holds whole, from the first one on.

  Args:
    path: of the file of completions; it may be missing or cut short.
    sizes: completions of each batch.
  """
  counts = collections.Counter(row["step"] for row in run_log.rows(path))
  whole = 0
  while whole < len(sizes) and counts[whole + 1] == sizes[whole]:
    whole += 1
  return whole


def prompts_done(
  questions: Mapping[str, ask.Asking], selected: selection.Selection
) -> int:
  """Returns how many prompts were answered, over all ways."""
  return sum(
    counts["asked"] // questions[name].sampling.group_size
    for name, counts in selected.counts.items()
  )


def show(path: pathlib.Path) -> None:
  """Prints the first kept record of each way, and the first for each drop."""
  seen = set()
  for row in run_log.rows(path):
    group = (row["way"], None) if row["dropped"] is None else row["dropped"]
    if group not in seen:
      seen.add(group)
      verdict = "kept" if row["dropped"] is None else f"drop: {row['dropped']}"
      progress.say(
        f"{verdict} ({row['way']})\nquestion: {row['question']}\n"
        f"{progress.quote(row['completion'])}\n"
      )


def reasons(dropped: Mapping[str, int]) -> str:
  """Returns counts by reason as a phrase, the most frequent first."""
  ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
  return ", ".join(f"{n:,} {reason}" for reason, n in ordered) or "none"


def describe(config: ConfigDict) -> list[str]:
  """Returns lines on what would be drawn."""
  _, ways = read(config)
  lines = describe_lib.data(config, "data")
  for name, way in ways.items():
    cfg = source_lib.read_model(way.source, **config.model)
    lines += describe_lib.frozen(cfg, f"ways.{name}")
    sampling = {**config.sampling} | dict(way.sampling)
    lines.append(
      f"completions: {sampling['group_size']:,} of each problem, of up to"
      f" {sampling['max_new_tokens']:,} tokens"
    )
  return lines
