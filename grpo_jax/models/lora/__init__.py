"""Low-rank adapters (LoRA, arXiv 2106.09685): a second tree beside the first.

An adapted matrix acts as weight + scale * down up. The weights are frozen;
the adapters, a nested dict of `down` and `up` where the model has the matrix,
are what is trained. `attach` puts both together into one tree that every
function of the model takes. Files are those of PEFT, which calls `down` lora_A
and `up` lora_B.
"""

from grpo_jax.models.lora.adapters import (
  ALL,
  LoraConfig,
  Trainable,
  adapter_specs,
  attach,
  merge,
  trainable,
)
from grpo_jax.models.lora.peft import CONFIG, WEIGHTS, load, save

__all__ = [
  "ALL",
  "CONFIG",
  "WEIGHTS",
  "LoraConfig",
  "Trainable",
  "adapter_specs",
  "attach",
  "load",
  "merge",
  "save",
  "trainable",
]
