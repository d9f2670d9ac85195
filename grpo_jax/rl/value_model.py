"""The value model of PPO: a network of its own that predicts returns.

Its parameters are those of a reward model (`learned.param_specs`): a decoder
with a scalar head, which is read before each token of a completion.

P prompts, G completions each, N completion slots.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.losses import value as value_lib
from grpo_jax.models import heads, scoring
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.reward_models import saved
from grpo_jax.rl import programs
from grpo_jax.runs import source as source_lib
from grpo_jax.train.state import TrainState
from grpo_jax.train.update import make_update
from grpo_jax.types import Experience, PromptBatch


class ValueModel(NamedTuple):
  """What stays as it is of a value model throughout a run.

  Attributes:
    score: jitted, `(params, prompts, tokens, mask) -> values [P, G, N]`.
    update: `(state, experience) -> (state, metrics)`, all of them `value/...`;
      the state is donated.
  """

  score: Callable[..., Float[Array, "P G N"]]
  update: Callable[..., tuple[TrainState, Mapping[str, Any]]]


def start(
  source: str | os.PathLike,
  cfg: ModelConfig,
  policy: Params,
  tok: tokenizer.Tokenizer,
  mesh: Mesh,
  **overrides: Any,
) -> tuple[ModelConfig, Params]:
  """Returns model and parameters before the first update, in float32.

  Args:
    source: directory of a reward model's run, whose head predicts from the
      start; empty for a copy of the policy with a head of 0.
    cfg: the policy's model.
    policy: its parameters.
    tok: its tokenizer.
    mesh: to place the parameters on.
    **overrides: as for `runs.source.load_policy`.

  Raises:
    FileNotFoundError: there is no reward model in `source`.
    ValueError: it was trained on other tokens than the policy's.
  """
  if source:
    cfg, params, _ = saved.load(source, mesh, **overrides)
    theirs = tokenizer.load(source_lib.tokenizer_directory(source))
    if not _same(tok, theirs):
      raise ValueError(
        f"The reward model in {source} has another tokenizer than the policy;"
        " config.value.source needs one of the same vocabulary."
      )
    return cfg, params
  trunk = {name: x for name, x in policy.items() if name != "head"}
  trunk = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trunk)
  head = {"reward": heads.scalar_specs(cfg)}
  return cfg, trunk | params_lib.init_params(jax.random.key(0), head, mesh)


def _same(one: tokenizer.Tokenizer, other: tokenizer.Tokenizer) -> bool:
  ids = [[i] for i in range(one.vocab_size)]
  return one.vocab_size == other.vocab_size and all(
    one.decode(i) == other.decode(i) for i in ids
  )


def make(
  cfg: ModelConfig,
  tx: optax.GradientTransformation,
  *,
  num_pieces: int,
  num_microbatches: int,
  **loss: Any,
) -> ValueModel:
  """Returns the compiled parts of a value model.

  Args:
    cfg: the model.
    tx: its optimizer.
    num_pieces: prompts are scored in this many pieces, one after the other.
    num_microbatches: gradients of an update.
    **loss: of `losses.value.value_loss`.
  """

  def score(
    params: Params,
    prompts: PromptBatch,
    tokens: Int[Array, "P G N"],
    mask: Bool[Array, "P G N"],
  ) -> Float[Array, "P G N"]:
    return scoring.score_values(
      params, cfg, params["reward"], prompts.tokens, prompts.mask, tokens, mask
    )

  update = make_update(
    functools.partial(loss_fn, cfg=cfg, **loss),
    tx,
    num_microbatches=num_microbatches,
  )

  def named(state: TrainState, batch: Experience) -> Any:
    state, metrics = update(state, batch)
    own = {f"value/{name}": metrics[name] for name in ("loss", "grad_norm")}
    return state, own | {k: x for k, x in metrics.items() if "/" in k}

  return ValueModel(jax.jit(programs.in_pieces(score, num_pieces)), named)


def loss_fn(
  params: Params, batch: Experience, *, cfg: ModelConfig, **loss: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the value model's loss on experience, additive over rows."""
  values = scoring.score_values(
    params,
    cfg,
    params["reward"],
    batch.prompts.tokens,
    batch.prompts.mask,
    batch.tokens,
    batch.completion_mask,
  )
  known = ~jnp.isnan(batch.returns)
  weights = jnp.where(known, batch.weights, 0.0)
  return value_lib.value_loss(
    values, batch.values, batch.returns, weights, **loss
  )
