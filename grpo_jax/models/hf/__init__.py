"""Checkpoints of Hugging Face in and out: one name table, read both ways.

`load` takes a directory with `config.json` and safetensors, `save` writes one
that `transformers` and vLLM load. Tensors pass through the host one at a time,
from the file straight to their place on the mesh. Nothing is unpickled and no
code of the directory is run.
"""

from grpo_jax.models.hf.names import (
  TABLES,
  Tensor,
  layer_table,
  make_tensor,
  tensors,
)
from grpo_jax.models.hf.read import (
  check_stored,
  fault,
  is_checkpoint,
  load,
  read_config,
)
from grpo_jax.models.hf.write import Tokenizer, check_target, save

__all__ = [
  "TABLES",
  "Tensor",
  "Tokenizer",
  "check_stored",
  "check_target",
  "fault",
  "is_checkpoint",
  "layer_table",
  "load",
  "make_tensor",
  "read_config",
  "save",
  "tensors",
]
