"""Rewards that a model of ours gives, loaded from the directory of its run.

These terms compute where the policy does, on the mesh in force, between its own
programs. A model is loaded when it is first asked, and stays.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from grpo_jax import errors, types
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.reward_models import judge_local, learned, saved
from grpo_jax.rewards import terms
from grpo_jax.rewards.judges import judge as judge_lib
from grpo_jax.runs import directory
from grpo_jax.runs import source as source_lib
from grpo_jax.sampling import decode, generate


@terms.on_device
@terms.checked_empty
def outcome(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  source: str,
  max_length: int = 2048,
  rows_per_batch: int = 32,
  dtype: str = "bfloat16",
) -> terms.Result:
  """Scores of an outcome reward model, see `learned.outcome`.

  Args:
    problems: B problems.
    completions: B texts.
    source: the directory of the model's run.
    max_length: tokens of question and completion; a longer text has no score.
    rows_per_batch: texts that are scored at one time.
    dtype: of the computation; scores are float32.

  Raises:
    FileNotFoundError: there is no reward model in `source`.
    ValueError: it is of another kind, or the rows do not divide over the mesh.
  """
  if not problems:
    return _nothing(source, "outcome")
  model = _reward_model(source, max_length, rows_per_batch, dtype)
  return learned.outcome(model, problems, completions)


@terms.on_device
@terms.checked_empty
def process(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  source: str,
  aggregate: str = "min",
  max_length: int = 2048,
  rows_per_batch: int = 32,
  dtype: str = "bfloat16",
) -> terms.Result:
  """Scores of a process reward model, see `learned.process`.

  Args:
    problems: B problems.
    completions: B texts.
    source: the directory of the model's run.
    aggregate: of a completion's steps: min, mean, last or product.
    max_length: as for `outcome`.
    rows_per_batch: as for `outcome`.
    dtype: as for `outcome`.

  Raises:
    FileNotFoundError: there is no reward model in `source`.
    ValueError: it is of another kind, or the rows do not divide over the mesh.
  """
  learned.check_aggregate(aggregate)
  if not problems:
    return _nothing(source, "process")
  model = _reward_model(source, max_length, rows_per_batch, dtype)
  return learned.process(model, problems, completions, aggregate=aggregate)


@terms.on_device
@terms.checked_empty
def judge(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  source: str,
  template: str = "correctness",
  scale: Sequence[float] | None = None,
  reads: str = "completion",
  votes: int = 1,
  chat: str = "plain",
  temperature: float = 0.6,
  max_new_tokens: int = 1024,
  prompt_slots: int = 2048,
  prompts_per_batch: int = 32,
  seed: int = 0,
  dtype: str = "bfloat16",
) -> terms.Result:
  """The verdicts of a generative model of ours.

  What they are is said in `rewards.judges.judge.judge`.

  Args:
    problems: B problems.
    completions: B texts.
    source: the directory of the model's run.
    template: what the judge is told: a name in `judge_prompts` or a file.
    scale: the least and the greatest score; None for correct or wrong.
    reads: "completion", or "answer" for what stands after the thinking.
    votes: verdicts per completion.
    chat: how the model is asked: a name in `prompts.TEMPLATES` or a file.
    temperature: of the judge; above 0 where there are several votes.
    max_new_tokens: of a reply; one that is cut there is none.
    prompt_slots: tokens of a prompt; a longer one has no reply.
    prompts_per_batch: prompts that are answered at one time.
    seed: of the replies.
    dtype: of the computation.

  Raises:
    FileNotFoundError: there is no model in `source`.
    ValueError: an option does not fit.
  """
  judge_lib.check_votes(votes, temperature)
  scale = None if scale is None else tuple(scale)
  judge_lib.check(template=template, scale=scale, reads=reads, votes=votes)
  if not problems:
    return _nothing(source)
  mesh = _mesh()
  cfg, params, _, tok = _loaded(source_lib.load_policy, source, mesh, dtype)
  model = judge_local.Judge(
    policy=generate.Policy(params, cfg, tok, mesh),
    template=prompts.read_template(chat),
    sampling=decode.SamplingParams(
      max_new_tokens=max_new_tokens, temperature=temperature
    ),
    prompt_slots=prompt_slots,
    prompts_per_batch=prompts_per_batch,
    seed=seed,
  )
  return judge_lib.judge(
    lambda prompts, votes: judge_local.ask(model, prompts, votes),
    problems,
    completions,
    template=template,
    scale=scale,
    reads=reads,
    votes=votes,
  )


def _nothing(source: str, kind: str | None = None) -> terms.Result:
  """The scores of no completions, where `source` holds a model of the kind."""
  if not (pathlib.Path(source) / directory.CHECKPOINTS).is_dir():
    command = errors.run_behind(source)
    todo = f"run `{command}` first" if command else "name another directory"
    raise FileNotFoundError(f"No checkpoint of a model in {source}: {todo}.")
  if kind is not None:
    learned.check_kind(saved.read(source)[0], kind)
  return terms.Result([], {})


def _mesh() -> Mesh:
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    raise ValueError("A reward of a model of ours needs jax.set_mesh(mesh).")
  return mesh


def _reward_model(
  source: str, max_length: int, rows_per_batch: int, dtype: str
) -> learned.RewardModel:
  mesh = _mesh()
  cfg, params, reading, tok = _loaded(saved.load, source, mesh, dtype)
  return learned.RewardModel(
    params, cfg, tok, mesh, reading, max_length, rows_per_batch
  )


@functools.cache
def _loaded(
  load_model: Callable[..., tuple], source: str, mesh: Mesh, dtype: str
) -> tuple:
  """What `load_model` returns of a source, and its tokenizer; once for all."""
  tok = tokenizer.load(source_lib.tokenizer_directory(source))
  return *load_model(source, mesh, dtype=dtype), tok
