"""FLOPs of the compiled sampler and update: a prompt is computed once a group.

  python benchmarks/shared_prompt.py

XLA's cost analysis counts the body of a loop once, so "sample" is the prefill
and one decoded token per row; the update has no loop (layers are unstacked by
`num_layers=1`). If each completion carried its own prompt, FLOPs would grow
with G throughout; here they grow by the completions alone.
"""

import functools

import jax
import jax.numpy as jnp

from grpo_jax.losses import policy
from grpo_jax.models import config, params, scoring
from grpo_jax.sampling import decode
from grpo_jax.types import PromptBatch

PROMPT, COMPLETION = 512, 64
CFG = config.ModelConfig(
  vocab_size=512,
  num_layers=1,
  d_model=256,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  d_ff=1024,
)


def flops(function, *args, **kwargs) -> float:
  """Returns the FLOPs that XLA counts in the compiled program."""
  lowered = jax.jit(function, **kwargs).lower(*args)
  return lowered.compile().cost_analysis()["flops"]


def sampler(prompt: int, group: int) -> float:
  """Returns FLOPs of one prompt's prefill and G rows' decode steps."""
  sampling = decode.SamplingParams(
    group_size=group, max_new_tokens=COMPLETION, cache_chunk=COMPLETION
  )
  batch = PromptBatch(
    jnp.zeros((1, prompt), jnp.int32), jnp.ones((1, prompt), bool)
  )
  draw = functools.partial(
    decode.sample, cfg=CFG, sampling=sampling, eos_ids=(1,)
  )
  return flops(
    lambda p, b, k: draw(p, prompts=b, key=k), tree(), batch, jax.random.key(0)
  )


def update(prompt: int, group: int, length: int = COMPLETION) -> float:
  """Returns FLOPs of the gradient of the GRPO loss of one group."""
  tokens = jnp.zeros((1, group, length), jnp.int32)
  mask = jnp.ones(tokens.shape, bool)
  prompts = jnp.zeros((1, prompt), jnp.int32)

  def loss(tree):
    stats = scoring.score_completions(
      tree, CFG, prompts, jnp.ones(prompts.shape, bool), tokens, mask
    )
    old = jax.lax.stop_gradient(stats.logprobs)
    ones = jnp.ones(tokens.shape)
    return policy.grpo_loss(stats.logprobs, old, None, ones, ones)[0]

  return flops(jax.grad(loss), tree())


@functools.cache
def tree():
  """Returns the parameters."""
  return params.init_params(jax.random.key(0), params.param_specs(CFG))


def main() -> None:
  """Prints the table."""
  print(
    f"One prompt of {PROMPT} tokens, {COMPLETION} completion slots; MFLOPs."
  )
  print(
    f"{'':<8}{'G = 1':>9}{'G = 16':>9}{'no prompt, G = 16':>19}{'16 x own':>10}"
  )
  for name, count in (("sample", sampler), ("update", update)):
    one, many, alone = count(PROMPT, 1), count(PROMPT, 16), count(1, 16)
    cells = (one, many, alone, 16 * one)
    widths = (9, 9, 19, 10)
    text = "".join(
      f"{cell / 1e6:>{width},.0f}"
      for cell, width in zip(cells, widths, strict=True)
    )
    print(f"{name:<8}{text}")


if __name__ == "__main__":
  main()
