r"""The newest checkpoint of a run as a directory of Hugging Face.

  python -m grpo_jax.main --config=experiments/export.py:runs/r1_zero \
    --workdir=exports/r1_zero

writes config.json, safetensors in bf16 and the tokenizer, for `transformers`,
vLLM and `config.source` of another run. `--config.save.dtype=float32` keeps
every bit of the master weights.
"""

from grpo_jax import configs


def get_config(arg=None):
  c = configs.export()
  c.source = arg or "runs/r1_zero"
  return c
