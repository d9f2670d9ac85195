"""Time and memory of the chunked vocabulary head against all logits at once.

Log-prob, entropy and both gradients of T tokens of width D, each in a process
of its own, so that its peak memory is its own:

  python benchmarks/chunked_head.py
  python benchmarks/chunked_head.py --vocabularies 32768 --tokens 4096

"all logits" is what one writes first: log_softmax(hidden @ head) in float32.
The columns are the median seconds of a call, the temporary memory that the
compiler plans, and the process's peak memory above what it had with its inputs
in place (the peak of the device instead, on a device that counts).
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.losses import vocabulary

MIB = 2**20


def all_logits(hidden, head, targets, _):
  """Log-probs and entropies from an array of all logits."""
  logprobs = jax.nn.log_softmax(hidden @ head)
  chosen = jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]
  return chosen, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def chunked(hidden, head, targets, chunk_size):
  """The same from `vocabulary.token_stats`."""
  stats = vocabulary.token_stats(hidden, head, targets, chunk_size=chunk_size)
  return stats.logprobs, stats.entropy


HEADS = {"all logits": all_logits, "chunked": chunked}


def peak_mib() -> float:
  """The largest memory so far, of the device or else of this process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats["peak_bytes_in_use"] / MIB
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
  name, vocab, tokens, width, chunk_size, repeats
) -> dict[str, float]:
  """Seconds and memory of one head, in this process."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(tokens, width)), jnp.float32)
  head = jnp.asarray(
    0.02 * rng.standard_normal((width, vocab), dtype=np.float32)
  )
  targets = jnp.asarray(rng.integers(0, vocab, tokens))

  def loss(hidden, head):
    logprobs, entropy = HEADS[name](hidden, head, targets, chunk_size)
    return -jnp.mean(logprobs) - 0.01 * jnp.mean(entropy)

  step = jax.jit(jax.value_and_grad(loss, (0, 1)))
  compiled = step.lower(hidden, head).compile()
  before = peak_mib()
  value, _ = jax.block_until_ready(compiled(hidden, head))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(hidden, head))
    seconds.append(time.perf_counter() - start)
  return {
    "loss": float(value),
    "seconds": float(np.median(seconds)),
    "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / MIB,
    "peak_mib": peak_mib() - before,
  }


def main():
  """Runs every head at every vocabulary and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--vocabularies", type=int, nargs="+", default=[32_768, 151_936]
  )
  parser.add_argument("--tokens", type=int, default=1024)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--chunk_size", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--only", choices=HEADS, help="measure here, print JSON")
  args = parser.parse_args()
  if args.only:
    (vocab,) = args.vocabularies
    result = measure(
      args.only, vocab, args.tokens, args.width, args.chunk_size, args.repeats
    )
    print(json.dumps(result))
    return
  print(
    f"T = {args.tokens}, D = {args.width}, chunks of {args.chunk_size} tokens,"
    f" {jax.default_backend()}"
  )
  print("| V | head | seconds | temporary MiB | peak MiB | loss |")
  print("|---|---|---|---|---|---|")
  for vocab in args.vocabularies:
    for name in HEADS:
      sizes = {
        "--vocabularies": vocab,
        "--tokens": args.tokens,
        "--width": args.width,
        "--chunk_size": args.chunk_size,
        "--repeats": args.repeats,
      }
      flags = [str(x) for item in sizes.items() for x in item]
      done = subprocess.run(
        [sys.executable, __file__, "--only", name, *flags],
        check=True,
        capture_output=True,
        text=True,
      )
      result = json.loads(done.stdout.splitlines()[-1])
      print(
        f"| {vocab} | {name} | {result['seconds']:.2f}"
        f" | {result['temporary_mib']:.0f} | {result['peak_mib']:.0f}"
        f" | {result['loss']:.5f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
