"""What is compiled of reinforcement learning, from plain arguments.

P prompts, G completions each, N completion slots.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Bool, Int

from grpo_jax.losses import policy
from grpo_jax.models import lora, scoring
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.train import update
from grpo_jax.types import Array, Experience, PromptBatch

ScoreFn = Callable[..., scoring.TokenScores]


class Programs(NamedTuple):
  """Programs for completions that were drawn at one temperature.

  Attributes:
    score: `(params, prompts, tokens, mask) -> TokenScores`.
    update: `(state, experience, coefs, *frozen) -> (state, metrics)`; `coefs`
      are options of the loss that change from step to step, by name. The state
      is donated.
  """

  score: ScoreFn
  update: Callable[..., Any]


def make_programs(
  cfg: ModelConfig,
  tx: optax.GradientTransformation,
  trainable: lora.Trainable | None = None,
  temperature: float = 1.0,
  *,
  objective: str = "grpo",
  loss: Any = (),
  num_minibatches: int = 1,
  num_microbatches: int = 1,
  router_bias_rate: float = 0.0,
) -> Programs:
  """Returns the scorer and the update of a policy.

  Args:
    cfg: the model.
    tx: its optimizer.
    trainable: what of the policy is trained; None for all.
    temperature: of sampling.
    objective: a name in `losses.policy.LOSSES`.
    loss: its options.
    num_minibatches: updates of a step.
    num_microbatches: gradients of an update.
    router_bias_rate: see `moe.balance`.
  """
  of_policy = functools.partial(
    loss_fn,
    cfg=cfg,
    temperature=temperature,
    policy_loss=functools.partial(policy.LOSSES[objective], **dict(loss)),
  )

  def of_part(part: Params, batch: Experience, coefs: Any, *frozen: Any) -> Any:
    loss = functools.partial(of_policy, coefs=coefs)
    whole = trainable.loss(loss) if trainable else loss
    return whole(part, batch, *frozen)

  return Programs(
    make_score(cfg, temperature, num_minibatches * num_microbatches),
    update.make_update(
      of_part,
      tx,
      num_microbatches=num_microbatches,
      router_bias_rate=router_bias_rate,
    ),
  )


def loss_fn(
  params: Params,
  batch: Experience,
  *,
  cfg: ModelConfig,
  temperature: float,
  policy_loss: Callable[..., Any],
  coefs: Mapping[str, Any] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the policy's loss on experience, additive over rows.

  Args:
    params: of the policy.
    batch: what it is learned from.
    cfg: the model.
    temperature: of sampling.
    policy_loss: a value of `losses.policy.LOSSES`, its options bound.
    coefs: options that change from step to step.
  """
  scores = scoring.score_completions(
    params,
    cfg,
    batch.prompts.tokens,
    batch.prompts.mask,
    batch.tokens,
    batch.completion_mask,
    temperature=temperature,
    parts=batch.prompts.parts,
  )
  loss, metrics = policy_loss(
    scores.logprobs,
    batch.old_logprobs,
    batch.ref_logprobs,
    batch.advantages,
    batch.weights,
    entropy=scores.entropy,
    correction=batch.correction,
    sampler_logprobs=batch.sampler_logprobs,
    **(coefs or {}),
  )
  return loss, metrics | {"expert_load": scores.load}


def make_score(
  cfg: ModelConfig, temperature: float, num_pieces: int
) -> ScoreFn:
  """Returns the jitted `(params, prompts, tokens, mask) -> TokenScores`.

  Their load is empty: it is told of the pass that has a gradient.

  Args:
    cfg: the model.
    temperature: of sampling.
    num_pieces: prompts are scored in this many pieces, one after the other.
  """

  def score(
    params: Params,
    prompts: PromptBatch,
    tokens: Int[Array, "P G N"],
    mask: Bool[Array, "P G N"],
  ) -> scoring.TokenScores:
    scores = scoring.score_completions(
      params,
      cfg,
      prompts.tokens,
      prompts.mask,
      tokens,
      mask,
      temperature=temperature,
    )
    return scores._replace(load={})

  return jax.jit(in_pieces(score, num_pieces))


def in_pieces(score: Callable[..., Any], num_pieces: int) -> Callable[..., Any]:
  """Returns `score(params, *rows)`, computed in pieces of rows."""

  def whole(params: Params, *rows: Any) -> Any:
    if num_pieces == 1:
      return score(params, *rows)
    pieces = update.cut(rows, num_pieces)
    return update.join(jax.lax.map(lambda piece: score(params, *piece), pieces))

  return whole
