"""Log-probabilities of given tokens: what training and the sampler agree on.

P prompts, G completions each, S prompt slots, N completion slots; B rows of
text, T positions.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models import heads, moe, transformer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params


class TokenScores(NamedTuple):
  """What the losses read about each token, and the experts that it took.

  Attributes:
    logprobs: of the tokens, in nats.
    entropy: of what they were drawn from, in nats.
    log_normalizer: log sum_v exp(logits_v / temperature).
    load: by stack of experts, tokens per expert, [L, E]; a prompt counts once.
  """

  logprobs: Float[Array, "*rows T"]
  entropy: Float[Array, "*rows T"]
  log_normalizer: Float[Array, "*rows T"]
  load: moe.Load


def score_completions(
  params: Params,
  cfg: ModelConfig,
  prompt_tokens: Int[Array, "P S"],
  prompt_mask: Bool[Array, "P S"],
  tokens: Int[Array, "P G N"],
  completion_mask: Bool[Array, "P G N"],
  *,
  temperature: float = 1.0,
  parts: int = 1,
) -> TokenScores:
  """Returns log-probs and entropy [P, G, N], in nats, of completions.

  A prompt goes through the network once, in the gradient too: its G completions
  attend to its keys and values. Values outside `completion_mask` mean nothing.

  Args:
    params: parameters.
    cfg: the model.
    prompt_tokens: padded on the left.
    prompt_mask: which prompt slots hold a token.
    tokens: completions, from slot 0.
    completion_mask: which of them the policy chose.
    temperature: logits are divided by it, as they were in sampling.
    parts: how often each prompt stands here; the load counts it once.
  """
  prompt_hidden, prompt = transformer.prefill(
    params, cfg, prompt_tokens, prompt_mask
  )
  positions = transformer.completion_positions(prompt_mask, *tokens.shape[1:])
  hidden, trace = transformer.forward(
    params, cfg, tokens, positions, completion_mask, prompt=prompt
  )
  stats = heads.completion_stats(
    params, cfg, prompt_hidden, hidden, tokens, temperature
  )
  load = jax.tree.map(lambda x, y: x / parts + y, prompt.load, trace.load)
  return TokenScores(*stats, load)


def score_values(
  params: Params,
  cfg: ModelConfig,
  head: Params,
  prompt_tokens: Int[Array, "P S"],
  prompt_mask: Bool[Array, "P S"],
  tokens: Int[Array, "P G N"],
  completion_mask: Bool[Array, "P G N"],
) -> Float[Array, "P G N"]:
  """Returns what a scalar head predicts before each token of completions.

  Arguments are those of `score_completions`; a value has no temperature.
  """
  prompt_hidden, prompt = transformer.prefill(
    params, cfg, prompt_tokens, prompt_mask
  )
  positions = transformer.completion_positions(prompt_mask, *tokens.shape[1:])
  hidden, _ = transformer.forward(
    params, cfg, tokens, positions, completion_mask, prompt=prompt
  )
  return heads.completion_values(head, prompt_hidden, hidden)


def score_text(
  params: Params,
  cfg: ModelConfig,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  segments: Int[Array, "B T"],
) -> TokenScores:
  """Returns log-probs and entropy [B, T], in nats, of packed text."""
  hidden, trace = transformer.forward(params, cfg, tokens, positions, segments)
  return TokenScores(*heads.text_stats(params, cfg, hidden, tokens), trace.load)


def score_scalars(
  params: Params,
  cfg: ModelConfig,
  head: Params,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  segments: Int[Array, "B T"],
) -> Float[Array, "B T"]:
  """Returns what a scalar head says of packed text after each token."""
  hidden, _ = transformer.forward(params, cfg, tokens, positions, segments)
  return heads.scalar(head, hidden)
