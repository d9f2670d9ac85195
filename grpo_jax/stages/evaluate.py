"""Evaluation on held-out problems: sample k completions, score, average.

`evaluate` is called inside loops; `run` is the stage that does it once for the
newest checkpoint of another run. P prompts, k completions each.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from grpo_jax import (
  checkpoint,
  configs,
  generation,
  metrics,
  progress,
  run_log,
  sharding,
)
from grpo_jax.data import datasets, prompts, tokenizer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine
from grpo_jax.sampling import decode
from grpo_jax.types import Problem


class Questions(NamedTuple):
  """Held-out problems, encoded, with how they are asked."""

  problems: list[Problem]
  encoded: list[np.ndarray]
  prompt_slots: int
  prompts_per_batch: int
  sampling: decode.SamplingParams


def make_questions(
  section: Mapping[str, Any],
  tok: tokenizer.Tokenizer,
  template: str,
  data_dir: str | os.PathLike,
) -> Questions:
  """Returns the problems that `config.evaluate` names.

  Args:
    section: `config.evaluate`: `data`, `num_problems` (its first ones; 0 for
      all), `prompt_slots`, `prompts_per_batch` and `sampling`.
    tok: of the policy.
    template: what `prompts.read_template` returned.
    data_dir: where prepared datasets are kept.

  Raises:
    ValueError: a prompt is longer than its slots, or a dataset has no problems.
  """
  problems = datasets.load(**section["data"], data_dir=data_dir)
  count = min(section["num_problems"] or len(problems), len(problems))
  problems = [problems[i] for i in range(count)]
  slots = section["prompt_slots"]
  problems, encoded = prompts.ask(problems, template, tok, slots)
  return Questions(
    problems,
    encoded,
    slots,
    min(section["prompts_per_batch"], len(problems)),
    decode.SamplingParams(**section["sampling"]),
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

  `pass@1` is the mean over the k completions of each problem and over problems
  (DeepSeek-R1, arXiv 2501.12948, section 3); `pass@1_stderr` its standard error
  over problems. Row p * k + i of the completions answers problem p.
  """
  batches = generation.generate(
    params,
    cfg,
    tok,
    questions.problems,
    questions.encoded,
    key,
    mesh,
    prompt_slots=questions.prompt_slots,
    prompts_per_batch=questions.prompts_per_batch,
    sampling=questions.sampling,
  )
  repeated, texts, lengths, truncated = [], [], [], []
  for batch in batches:
    repeated += batch.problems
    texts += batch.texts
    lengths += batch.lengths.tolist()
    truncated += batch.truncated.tolist()
  scores = combine.score({"accuracy": 1.0, "format": 0.0}, repeated, texts)
  # A problem that cannot be graded counts neither way.
  k = questions.sampling.group_size
  accuracy = scores.terms["accuracy"].reshape(-1, k).astype(np.float64)
  solved = np.array([metrics.mean(row) for row in accuracy])
  graded = np.count_nonzero(~np.isnan(solved))
  results = {
    "pass@1": metrics.mean(solved),
    "pass@1_stderr": metrics.std(solved) / max(graded, 1) ** 0.5,
    "format": metrics.mean(scores.terms["format"]),
    "mean_length": float(np.mean(lengths)),
    "reflection_words": metrics.mean_reflection_words(texts),
    "truncated": float(np.mean(truncated)),
    "problems": len(questions.problems),
    "samples": k,
  }
  # Outcomes of grading, as shares of all P * k completions.
  results |= {name: metrics.mean(v) for name, v in scores.metrics.items()}
  return results, texts, scores


def summary(results: Mapping[str, float]) -> str:
  """Returns the results of an evaluation as one line of text."""
  return (
    f"pass@1 {results['pass@1']:.1%}, format {results['format']:.1%}, length"
    f" {results['mean_length']:.1f}, reflection words"
    f" {results['reflection_words']:.2f}"
  )


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Evaluates the newest checkpoint of `config.source`, and writes results.

  `config.source` is the directory of a run, or one of Hugging Face.
  """
  configs.check_fields(config, configs.evaluate(), free=("data", "sampling"))
  configs.check_section(
    "evaluate.sampling", config.evaluate.sampling, decode.SamplingParams
  )
  checkpoint.require_source(config.source)
  template = prompts.read_template(config.prompts.template, chat_too=True)
  data_dir = pathlib.Path(config.data_dir).expanduser()
  mesh = sharding.make_mesh(config.mesh)
  jax.set_mesh(mesh)
  tok = tokenizer.load(checkpoint.tokenizer_directory(config.source))
  questions = make_questions(config.evaluate, tok, template, data_dir)
  checkpoint.claim(workdir, config.to_dict())
  cfg, params, step = checkpoint.load_policy(
    config.source, mesh, **config.model
  )
  results, texts, scores = evaluate(
    params, cfg, tok, questions, jax.random.key(config.seed), mesh
  )
  writer = run_log.Writer(workdir)
  writer.write_evaluation(step, config.evaluate.data.name, results)
  writer.close()
  k = questions.sampling.group_size
  repeated = [p for p in questions.problems for _ in range(k)]
  print(progress.render(repeated, texts, scores, rows=(0, k)))
  print(json.dumps(results, indent=2))
