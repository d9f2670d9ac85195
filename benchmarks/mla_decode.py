r"""What one decode step of latent attention costs, absorbed against expanded.

  python benchmarks/mla_decode.py               # DeepSeek-V3's sizes
  python benchmarks/mla_decode.py --prompt=8192 --cached=8192

Compiles one attention layer of one row for one new token, by both paths, and
prints the compiler's count of floating-point operations and of bytes, and what
a position takes in the cache. Nothing is run and no parameter exists, so that
it needs little memory. The absorbed path is the one that the sampler compiles;
the expanded path makes keys and values of all positions from the same latents.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from grpo_jax.models import mla, params, presets

CFG = dataclasses.replace(presets.PRESETS["deepseek-v3"], dtype="bfloat16")


def main() -> None:
  """Counts the operations of both paths and prints them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--prompt", type=int, default=1024, help="prompt tokens")
  parser.add_argument("--cached", type=int, default=1024, help="decoded tokens")
  args = parser.parse_args()
  n, width = CFG.num_heads, CFG.latent_dim + CFG.rope_dim
  weights = {
    name: jax.ShapeDtypeStruct(spec.shape[1:], jnp.bfloat16)
    for name, spec in params.param_specs(CFG)["layers"]["attention"].items()
  }
  x = jax.ShapeDtypeStruct((1, 1, 1, CFG.d_model), jnp.bfloat16)
  angle = jax.ShapeDtypeStruct((1, 1, 1, CFG.rope_dim // 2), jnp.float32)
  cache = latents(1, 1, 1, args.cached)

  def absorbed(weights, x, cos, sin, prompt, cache):
    return mla.attention(
      weights,
      CFG,
      x,
      (cos, sin),
      jnp.ones(args.cached, bool),
      prompt=(prompt, jnp.ones((1, 1, 1, args.prompt), bool)),
      cache=(cache, jnp.int32(args.cached - 1)),
    )

  def expanded(weights, x, cos, sin, earlier):
    return mla.attention(
      weights,
      CFG,
      x,
      (cos, sin),
      jnp.ones((1, 1, 1, 1), bool),
      prompt=(earlier, jnp.ones((1, 1, 1, earlier.latents.shape[2]), bool)),
    )

  earlier = {
    absorbed: (latents(1, 1, args.prompt), cache),
    expanded: (latents(1, 1, args.prompt + args.cached - 1),),
  }
  print(
    f"One layer of DeepSeek-V3, one row, one token after {args.prompt} +"
    f" {args.cached}:"
  )
  flops = {}
  for path in (expanded, absorbed):
    lowered = jax.jit(path).lower(weights, x, angle, angle, *earlier[path])
    cost = lowered.compile().cost_analysis()
    flops[path] = cost["flops"]
    print(
      f"  {path.__name__:9} {cost['flops'] / 1e9:9.3f} GFLOP"
      f" {cost['bytes accessed'] / 1e9:8.3f} GB read and written"
    )
  print(f"  expanded / absorbed: {flops[expanded] / flops[absorbed]:.1f}")
  print(
    f"  cache per position: {2 * width} bytes of latents,"
    f" {2 * n * (CFG.head_dim + CFG.value_dim)} of keys and values"
  )


def latents(*rows: int) -> mla.LatentKV:
  """Returns the shapes of latents of these rows and positions."""
  width = CFG.latent_dim + CFG.rope_dim
  return mla.LatentKV(jax.ShapeDtypeStruct((*rows, width), jnp.bfloat16))


if __name__ == "__main__":
  main()
