"""Log-probabilities of given tokens: what training and the sampler agree on.

P prompts, G completions each, S prompt slots, N completion slots; B rows of
text, T positions.
"""

from jaxtyping import Array, Bool, Int

from grpo_jax.losses.vocabulary import TokenStats
from grpo_jax.models import heads, transformer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params


def score_completions(
  params: Params,
  cfg: ModelConfig,
  prompt_tokens: Int[Array, "P S"],
  prompt_mask: Bool[Array, "P S"],
  tokens: Int[Array, "P G N"],
  completion_mask: Bool[Array, "P G N"],
  *,
  temperature: float = 1.0,
) -> TokenStats:
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
  """
  prompt_hidden, prompt = transformer.prefill(
    params, cfg, prompt_tokens, prompt_mask
  )
  positions = transformer.completion_positions(prompt_mask, *tokens.shape[1:])
  hidden, _ = transformer.forward(
    params, cfg, tokens, positions, completion_mask, prompt=prompt
  )
  return heads.completion_stats(
    params, cfg, prompt_hidden, hidden, tokens, temperature
  )


def score_text(
  params: Params,
  cfg: ModelConfig,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  segments: Int[Array, "B T"],
) -> TokenStats:
  """Returns log-probs and entropy [B, T], in nats, of packed text."""
  hidden, _ = transformer.forward(params, cfg, tokens, positions, segments)
  return heads.text_stats(params, cfg, hidden, tokens)
