"""From hidden states to numbers about tokens: logits, log-probs, entropy.

The shift by one lives here and nowhere else: what these functions return for
position t belongs to `tokens[..., t]` and was predicted from the position
before it. P prompts, G completions each, N completion slots; D width, V
vocabulary. A scalar head has no shift: its number belongs to the token whose
hidden state it reads; but a value is that of the state before its token.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax import sharding
from grpo_jax.losses import vocabulary
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params, ParamSpec, Specs, zeros


def head_matrix(params: Params, cfg: ModelConfig) -> Float[Array, "D V"]:
  """Returns the output head in the compute dtype, split over V alone."""
  if cfg.tied_head:
    return sharding.to_use(params["embed"], ("vocab", "embed"), cfg.dtype).T
  return sharding.to_use(params["head"], ("embed", "vocab"), cfg.dtype)


def logits(
  params: Params, cfg: ModelConfig, hidden: Float[Array, "*rows D"]
) -> Float[Array, "*rows V"]:
  """Returns float32 logits of the next token, gathered over the vocabulary."""
  rows = sharding.row_spec(hidden, hidden.ndim - 1)
  y = jnp.einsum(
    "...D,DV->...V",
    hidden,
    head_matrix(params, cfg),
    preferred_element_type=jnp.float32,
  )
  if rows is None:
    return y
  return sharding.reshard(y, (*rows, None))


def completion_stats(
  params: Params,
  cfg: ModelConfig,
  prompt_hidden: Float[Array, "P D"],
  hidden: Float[Array, "P G N D"],
  tokens: Int[Array, "P G N"],
  temperature: float = 1.0,
) -> vocabulary.TokenStats:
  """Returns log-probs and entropy [P, G, N] of completion tokens, in nats.

  Args:
    params: parameters.
    cfg: the model.
    prompt_hidden: after each prompt; predicts the first token of all G.
    hidden: at each completion token; predicts the one after it.
    tokens: the completions.
    temperature: logits are divided by it, as they were in sampling.
  """
  return vocabulary.token_stats(
    _predictors(prompt_hidden, hidden),
    head_matrix(params, cfg),
    tokens,
    temperature=temperature,
    chunk_size=cfg.head_chunk,
  )


def completion_values(
  head: Params,
  prompt_hidden: Float[Array, "P D"],
  hidden: Float[Array, "P G N D"],
) -> Float[Array, "P G N"]:
  """Returns what a scalar head predicts before each completion token.

  Args:
    head: of `scalar_specs`.
    prompt_hidden: as in `completion_stats`.
    hidden: as in `completion_stats`.
  """
  return scalar(head, _predictors(prompt_hidden, hidden))


def _predictors(
  prompt_hidden: Float[Array, "P D"], hidden: Float[Array, "P G N D"]
) -> Float[Array, "P G N D"]:
  """The hidden state before each completion token."""
  first = jnp.broadcast_to(
    prompt_hidden[:, None, None], (*hidden.shape[:2], 1, hidden.shape[-1])
  )
  first = sharding.reshard_like(first, hidden)
  return jnp.concatenate([first, hidden[:, :, :-1]], axis=2)


def text_stats(
  params: Params,
  cfg: ModelConfig,
  hidden: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
) -> vocabulary.TokenStats:
  """Returns log-probs and entropy [B, T] of text; position 0 has no predictor.

  Its log-prob and entropy are zero. The first token of a packed document is
  predicted from the document before it and must have weight 0.
  """
  stats = vocabulary.token_stats(
    hidden[:, :-1],
    head_matrix(params, cfg),
    tokens[:, 1:],
    chunk_size=cfg.head_chunk,
  )
  return vocabulary.TokenStats(
    *(None if x is None else jnp.pad(x, ((0, 0), (1, 0))) for x in stats)
  )


def text_predictors(hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Returns the hidden state that predicts each token; 0 at position 0.

  As for `text_stats`, a packed document's first token must have weight 0.
  """
  return jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))


def scalar_specs(cfg: ModelConfig) -> Specs:
  """Returns the parameters of a scalar head: a reward or a value per token.

  It starts at 0: a reward model that prefers nothing, a value of nothing known.
  """
  return {
    "weight": ParamSpec((cfg.d_model,), (None,), zeros),
    "bias": ParamSpec((), (), zeros),
  }


def scalar(
  head: Params, hidden: Float[Array, "*rows D"]
) -> Float[Array, "*rows"]:
  """Returns a scalar head's number at each hidden state, in float32."""
  weight = head["weight"].astype(jnp.float32)
  y = jnp.sum(hidden.astype(jnp.float32) * weight, axis=-1)
  return y + head["bias"]
