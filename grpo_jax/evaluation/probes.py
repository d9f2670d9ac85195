"""Probes: the limitations that the paper names, measured on a policy.

DeepSeek-R1, arXiv 2501.12948, section 6: what a policy has forgotten, which
language it thinks in, what worked examples in the prompt do to it.

A probe reads its data at once, so that a mistake is found before a model is
loaded, and returns what measures a policy.

P problems, N completions of each; D documents; B rows of text, T positions.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from grpo_jax import errors, sharding
from grpo_jax.data import datasets as datasets_lib
from grpo_jax.data import text
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import results
from grpo_jax.evaluation.results import Measured
from grpo_jax.models import scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import language
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling.generate import Policy
from grpo_jax.types import Completions, TextBatch


class Setting(NamedTuple):
  """The evaluation that a probe belongs to.

  Attributes:
    tok: of the policy.
    data_dir: where prepared datasets are kept.
    mesh: in force.
    seed: of the intervals.
    sections: by name of each dataset, how it is asked.
    questions: makes them of a section, with examples in front of each.
    ask: gives a policy's answers to them.
    load: gives the policy of a source.
  """

  tok: tokenizer.Tokenizer
  data_dir: pathlib.Path
  mesh: Mesh
  seed: int
  sections: Mapping[str, Mapping[str, Any]]
  questions: Callable[..., Any]
  ask: Callable[[Any, Any], Completions]
  load: Callable[[str], Policy]


# Of a policy, the answers to the datasets by name, and a function that keeps
# others under a name.
Measure = Callable[
  [Any, Mapping[str, Completions], Callable[[str, Completions], None]],
  dict[str, Measured],
]


def forgetting(
  setting: Setting,
  *,
  data: Mapping[str, Any],
  row_length: int,
  num_rows: int,
  num_documents: int = 0,
  base: str = "",
) -> Measure:
  """The loss on text that no stage trained on, in nats per token.

  Of the policy, and of the base with the increase since then.

  Args:
    setting: of the evaluation.
    data: of the text, as `datasets.load` takes it: a corpus with another seed
      than training's, or text files that were held out.
    row_length: tokens that are read together.
    num_rows: of text at a time.
    num_documents: its first ones; 0 for all.
    base: directory of the model that the policy was trained from, or empty.
  """
  found = datasets_lib.load(**data, data_dir=setting.data_dir)
  documents = list(itertools.islice(found, num_documents or len(found)))
  if not all(isinstance(document, str) for document in documents):
    raise errors.ConfigError(
      f"config.probes.forgetting.data names {data['name']!r}, whose records are"
      " no texts; give a corpus or text files."
    )
  sharding.split_rows(setting.mesh, num_rows)
  if base:
    source_lib.require_source(base, "probes.forgetting.base")
    other = tokenizer.load(source_lib.tokenizer_directory(base))
    if any(setting.tok.encode(d) != other.encode(d) for d in documents):
      raise errors.ConfigError(
        f"The model in {base!r} has another tokenizer than config.source; nats"
        " per token cannot be compared."
      )

  def measure(policy, answers, keep):
    del answers, keep
    loss = functools.partial(
      text_loss,
      documents=documents,
      row_length=row_length,
      num_rows=num_rows,
    )
    after, tokens = loss(policy)
    mean = functools.partial(results.measure, weights=tokens, seed=setting.seed)
    rows = {"nats per token": mean(after)}
    if base:
      before, _ = loss(setting.load(base))
      rows["nats per token of the base"] = mean(before)
      rows["nats per token, increase"] = mean(after - before)
    return rows

  return measure


def languages(setting: Setting, *, datasets: Mapping[str, str]) -> Measure:
  """The share of the words of thoughts in the language of the question.

  A policy that was trained in one language tends to think in it whatever it is
  asked in; see `rewards.language.consistency`.

  Args:
    setting: of the evaluation.
    datasets: by name of a dataset of this evaluation the language that it asks
      in, a code of ISO 639-1.
  """
  for name, wanted in datasets.items():
    _known(setting, "languages", name)
    language.consistency([], [], language=wanted)

  def measure(policy, answers, keep):
    del policy, keep
    rows = {}
    for name, wanted in datasets.items():
      asked = answers[name]
      shares = language.consistency(
        asked.problems, asked.texts, language=wanted
      )
      rows[f"{name}: words of thoughts in {wanted}, share"] = results.measure(
        results.by_problem(asked, shares), seed=setting.seed
      )
    return rows

  return measure


def few_shot(
  setting: Setting,
  *,
  dataset: str,
  examples: Mapping[str, Any],
  num_examples: int,
  prompt_slots: int,
) -> Measure:
  """What worked examples in front of the question change.

  The interval of the increase is over problems as pairs.

  Args:
    setting: of the evaluation.
    dataset: its name in this evaluation.
    examples: texts, as `datasets.load` takes them; its first ones are put in
      front of each prompt. A corpus under the same template has them in the
      form of a prompt with its completion.
    num_examples: how many.
    prompt_slots: tokens that a prompt may have with them.
  """
  _known(setting, "few_shot", dataset)
  section = setting.sections[dataset]
  if "accuracy" not in section["rewards"]:
    raise errors.ConfigError(
      f"config.probes.few_shot needs accuracy among the rewards of {dataset!r}."
    )
  texts = datasets_lib.load(**examples, data_dir=setting.data_dir)
  questions = setting.questions(
    section | {"prompt_slots": prompt_slots},
    examples=list(itertools.islice(texts, num_examples)),
  )

  def measure(policy, answers, keep):
    few = setting.ask(policy, questions)
    keep("few_shot", few)
    zero, more = (
      results.by_problem(a, a.rewards.terms["accuracy"])
      for a in (answers[dataset], few)
    )
    mean = functools.partial(results.measure, seed=setting.seed)
    return {
      "pass@1 without examples": mean(zero),
      "pass@1 with examples": mean(more),
      "pass@1, increase": mean(more - zero),
      "length with examples, tokens": mean(
        results.by_problem(few, few.lengths)
      ),
    }

  return measure


PROBES: dict[str, Callable[..., Measure]] = {
  "forgetting": forgetting,
  "languages": languages,
  "few_shot": few_shot,
}


def _known(setting: Setting, probe: str, name: str) -> None:
  if name not in setting.sections:
    raise errors.ConfigError(
      f"config.probes.{probe} names the dataset {name!r}, which is none of"
      f" config.datasets; {errors.nearest(name, setting.sections)}"
    )


def text_loss(
  policy: Policy, documents: Sequence[str], *, row_length: int, num_rows: int
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
  """Returns nats per predicted token of each document, and how many those are.

  A document is read as in training: after bos, if the tokenizer has one, and
  with its end of sequence; in pieces of `row_length`, each of which is a row
  and read by itself. The first token of a piece is not predicted.

  Args:
    policy: what is judged.
    documents: D texts.
    row_length: T.
    num_rows: B, rows at a time; the last batch is filled up.
  """
  params, cfg, tok, mesh, _ = policy
  owners, pieces = [], []
  for index, document in enumerate(documents):
    for piece in text.pieces(tok, document, row_length):
      owners.append(index)
      pieces.append(piece)
  axes = sharding.split_rows(mesh, num_rows)[:1]
  nats, counts = np.zeros((2, len(documents)))
  for start in range(0, len(pieces), num_rows):
    rows = pieces[start : start + num_rows]
    tokens = np.full((num_rows, row_length), tok.pad_id, np.int32)
    inside = np.zeros((num_rows, row_length), bool)
    for row, ids in enumerate(rows):
      tokens[row, : len(ids)] = ids
      inside[row, : len(ids)] = True
    weights = inside.astype(np.float32)
    weights[:, 0] = 0.0
    batch = TextBatch(
      tokens=tokens,
      segments=inside.astype(np.int32),
      positions=np.where(inside, np.arange(row_length, dtype=np.int32), 0),
      weights=weights,
    )
    sums = _nats(params, cfg, sharding.place(mesh, batch, axes))
    owned = owners[start : start + num_rows]
    np.add.at(nats, owned, sharding.to_host(sums)[: len(rows)])
    np.add.at(counts, owned, weights.sum(axis=-1)[: len(rows)])
  return np.divide(nats, counts, out=nats * np.nan, where=counts > 0), counts


@functools.partial(jax.jit, static_argnames="cfg")
def _nats(
  params: Params, cfg: ModelConfig, batch: TextBatch
) -> Float[Array, " B"]:
  logprobs = scoring.score_text(
    params, cfg, batch.tokens, batch.positions, batch.segments
  ).logprobs
  return -jnp.sum(jnp.where(batch.weights > 0, logprobs, 0.0), axis=-1)
