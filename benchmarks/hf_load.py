"""Peak memory of the host while a checkpoint of Hugging Face is loaded.

  python benchmarks/hf_load.py

makes a Llama of a billion random bf16 numbers in a temporary folder, in one
file, and loads it as bf16 in a process of its own. It prints that process's
peak resident memory (VmHWM of /proc/self/status, hence Linux), less the peak of
a process which imports the same and loads nothing, over the checkpoint's size.
On a CPU the parameters themselves are in this memory: 1 is the least.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from grpo_jax.models import hf
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.hf import config as hf_config

LIMIT = 1.4


def make(directory: pathlib.Path, num_layers: int) -> int:
  """Writes a checkpoint; returns the bytes of its numbers."""
  cfg = ModelConfig(
    vocab_size=32_000,
    num_layers=num_layers,
    d_model=2048,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    d_ff=5632,
  )
  config = hf_config.to_hf(cfg) | {"torch_dtype": "bfloat16"}
  (directory / "config.json").write_text(json.dumps(config))
  rng = np.random.default_rng(0)
  tensors = {}
  for tensor in hf.tensors(cfg):
    x = rng.standard_normal(tensor.shape, np.float32)
    tensors[tensor.name] = x.astype(ml_dtypes.bfloat16)
  file = directory / "model.safetensors"
  safetensors_numpy.save_file(tensors, file, metadata={"format": "pt"})
  return sum(x.nbytes for x in tensors.values())


def measure(directory: pathlib.Path | None) -> dict[str, float]:
  """Returns seconds and peak bytes of a process that loads, or does not."""
  command = [sys.executable, __file__, "--child", str(directory or "")]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def child(directory: str) -> None:
  """Loads the checkpoint, if there is one, and prints what it took."""
  jax.devices()
  start, size = time.perf_counter(), 0
  if directory:
    _, params = hf.load(directory, dtype="bfloat16")
    size = sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(params)))
  status = pathlib.Path("/proc/self/status").read_text()
  peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
  seconds = time.perf_counter() - start
  print(json.dumps(dict(seconds=seconds, peak=peak, size=size)))


def main() -> None:
  """Makes, measures, prints; the exit status tells whether the limit held."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num-layers", type=int, default=20)
  parser.add_argument("--child", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child is not None:
    child(args.child)
    return
  with tempfile.TemporaryDirectory() as directory:
    size = make(pathlib.Path(directory), args.num_layers)
    idle = measure(None)
    loaded = measure(pathlib.Path(directory))
  if loaded["size"] != size:
    sys.exit(f"Loaded {loaded['size']} bytes of {size}.")
  ratio = (loaded["peak"] - idle["peak"]) / size
  print(
    f"checkpoint {size / 1e9:.2f} GB, idle process {idle['peak'] / 1e9:.2f} GB,"
    f" peak {loaded['peak'] / 1e9:.2f} GB: {ratio:.2f} of the checkpoint"
    f" (limit {LIMIT}), {loaded['seconds']:.1f} s"
  )
  sys.exit(ratio >= LIMIT)


if __name__ == "__main__":
  main()
