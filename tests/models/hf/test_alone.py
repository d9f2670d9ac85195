"""Models and checkpoints without the trainer: what another project imports."""

import subprocess
import sys

import helpers

from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import hf

_FOREIGN = ("grain", "tensorflow_datasets", "orbax", "optax", "ml_collections")
# Load, sample, score: the README shows these lines.
_PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import hf, scoring, transformer
from grpo_jax.sampling import decode
from grpo_jax.types import PromptBatch

directory = sys.argv[1]
cfg, params = hf.load(directory, dtype="bfloat16")
tok = tokenizer.load(directory)
ids = jnp.array([tok.encode("The capital of France is")])  # [P, S]
prompts = PromptBatch(ids, jnp.ones(ids.shape, bool))
sampling = decode.SamplingParams(group_size=4, max_new_tokens=8)
rollout = decode.sample(
  params, cfg, prompts, jax.random.key(0), sampling=sampling,
  eos_ids=tok.eos_ids,
)
stats = scoring.score_completions(
  params, cfg, prompts.tokens, prompts.mask, rollout.tokens,
  rollout.completion_mask,
)
print([tok.decode(row) for row in rollout.tokens[0]])

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
