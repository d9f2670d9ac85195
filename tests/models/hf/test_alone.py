"""Models and checkpoints without the trainer: what another project imports."""

import pathlib
import re
import subprocess
import sys

import helpers

from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import hf

_FOREIGN = ("grain", "tensorflow_datasets", "orbax", "optax", "ml_collections")
_PAGE = pathlib.Path(__file__).parents[3] / "docs" / "models.md"
_BLOCKS = re.findall(r"```python\n(.*?)```", _PAGE.read_text("utf-8"), re.S)
# Load, sample, score: what the page shows.
(_SHOWN,) = (block for block in _BLOCKS if "hf.load(directory" in block)
_PROGRAM = f"""
import sys

directory = sys.argv[1]
{_SHOWN}
gap = jnp.abs(stats.logprobs - rollout.logprobs)[rollout.completion_mask]
assert 0 < float(gap.max()) < 0.1 and stats.logprobs.shape == (1, 4, 8), gap
print("MODULES")
for name in sorted(sys.modules):
  print(name)
"""


def test_models_and_checkpoints_need_neither_stages_nor_datasets(tmp_path):
  tok = tokenizer.ByteTokenizer()
  cfg = helpers.tiny(vocab_size=264, qkv_bias=False)
  hf.save(tmp_path / "model", cfg, helpers.make_params(cfg), tok)
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, str(tmp_path / "model")],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = set(done.stdout.split("MODULES")[1].split())
  assert "grpo_jax.models.hf" in found
  ours = {name.split(".")[1] for name in found if name.startswith("grpo_jax.")}
  assert ours <= {
    "data",
    "errors",
    "losses",
    "models",
    "sampling",
    "sharding",
    "types",
  }
  data = {name for name in found if name.startswith("grpo_jax.data.")}
  assert "grpo_jax.data.datasets" not in data
  tops = {name.partition(".")[0] for name in found}
  assert tops.isdisjoint({*_FOREIGN, "torch", "transformers"})
