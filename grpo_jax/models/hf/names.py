"""What tensors are called in files, and where they are in our tree."""

import dataclasses
import math

import numpy as np
from flax import traverse_util

from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.hf import config as config_lib

# Our path within the tree, or within a layer, to the tensor's name and how many
# axes of ours are inputs: those come first here and last in a file, where a
# matrix is [outputs, inputs]. 0 is for what is the same in both.
TOP = {
  "embed": ("model.embed_tokens.weight", 0),
  "norm": ("model.norm.weight", 0),
  "head": ("lm_head.weight", 1),
}
LAYER = "model.layers.{layer}."
_GROUPED = {
  "attention.norm": (LAYER + "input_layernorm.weight", 0),
  "attention.q": (LAYER + "self_attn.q_proj.weight", 1),
  "attention.k": (LAYER + "self_attn.k_proj.weight", 1),
  "attention.v": (LAYER + "self_attn.v_proj.weight", 1),
  "attention.o": (LAYER + "self_attn.o_proj.weight", 3),
}
_BIASES = {
  "attention.q_bias": (LAYER + "self_attn.q_proj.bias", 0),
  "attention.k_bias": (LAYER + "self_attn.k_proj.bias", 0),
  "attention.v_bias": (LAYER + "self_attn.v_proj.bias", 0),
}
_QK_NORMS = {
  "attention.q_norm": (LAYER + "self_attn.q_norm.weight", 0),
  "attention.k_norm": (LAYER + "self_attn.k_norm.weight", 0),
}
_LATENT = {
  "attention.norm": (LAYER + "input_layernorm.weight", 0),
  "attention.q": (LAYER + "self_attn.q_proj.weight", 1),
  "attention.q_down": (LAYER + "self_attn.q_a_proj.weight", 1),
  "attention.q_norm": (LAYER + "self_attn.q_a_layernorm.weight", 0),
  "attention.q_up": (LAYER + "self_attn.q_b_proj.weight", 1),
  "attention.kv_down": (LAYER + "self_attn.kv_a_proj_with_mqa.weight", 1),
  "attention.kv_norm": (LAYER + "self_attn.kv_a_layernorm.weight", 0),
  "attention.kv_up": (LAYER + "self_attn.kv_b_proj.weight", 1),
  "attention.o": (LAYER + "self_attn.o_proj.weight", 2),
}
_DENSE = {
  "mlp.norm": (LAYER + "post_attention_layernorm.weight", 0),
  "mlp.gate": (LAYER + "mlp.gate_proj.weight", 1),
  "mlp.up": (LAYER + "mlp.up_proj.weight", 1),
  "mlp.down": (LAYER + "mlp.down_proj.weight", 1),
}
_EXPERTS = {
  "moe.norm": (LAYER + "post_attention_layernorm.weight", 0),
  "moe.router": (LAYER + "mlp.gate.weight", 1),
  "moe.gate": (LAYER + "mlp.experts.{expert}.gate_proj.weight", 1),
  "moe.up": (LAYER + "mlp.experts.{expert}.up_proj.weight", 1),
  "moe.down": (LAYER + "mlp.experts.{expert}.down_proj.weight", 1),
}
_SHARED = {
  "moe.router_bias": (LAYER + "mlp.gate.e_score_correction_bias", 0),
  "moe.shared.gate": (LAYER + "mlp.shared_experts.gate_proj.weight", 1),
  "moe.shared.up": (LAYER + "mlp.shared_experts.up_proj.weight", 1),
  "moe.shared.down": (LAYER + "mlp.shared_experts.down_proj.weight", 1),
}
_LLAMA = TOP | _GROUPED | _DENSE
TABLES = {
  "llama": _LLAMA,
  "mistral": _LLAMA,
  "qwen2": _LLAMA | _BIASES,
  "qwen3": _LLAMA | _QK_NORMS,
  "qwen3_moe": _LLAMA | _QK_NORMS | _EXPERTS,
  "deepseek_v3": TOP | _LATENT | _DENSE | _EXPERTS | _SHARED,
}

# Steers the choice of experts and is moved by steps of 1e-3: bf16 loses them.
ALWAYS_FLOAT32 = "router_bias"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file, and where it is in our tree.

  Attributes:
    name: in the file.
    shape: in the file.
    path: of the parameter.
    index: of the layer in its stack, and of the expert; none at the top.
    ours: shape in the parameter, without the axes of `index`.
    inputs: how many axes of `ours` are inputs.
  """

  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  index: tuple[int, ...]
  ours: tuple[int, ...]
  inputs: int

  def to_ours(self, x: np.ndarray) -> np.ndarray:
    """Returns the file's array in our layout; a view."""
    return (x.T if self.inputs else x).reshape(self.ours)

  def to_file(self, x: np.ndarray) -> np.ndarray:
    """Returns our array in the file's layout; a view."""
    if self.inputs:
      return x.reshape(self.shape[::-1]).T
    return x.reshape(self.shape)


def layer_table(cfg: ModelConfig) -> dict[str, tuple[str, int]]:
  """Returns the names in files of all that a model's layers can have.

  By path within a layer: the tensor's name, and how many axes are inputs. Of
  one family or of none, such as a base of our own.
  """
  attention = _LATENT if cfg.latent_dim else _GROUPED | _BIASES | _QK_NORMS
  return attention | _DENSE | _EXPERTS | _SHARED


def tensors(cfg: ModelConfig) -> list[Tensor]:
  """Returns the tensors of a model's files, layer by layer.

  Raises:
    ValueError: no family of `TABLES` has such a model.
  """
  table = TABLES[config_lib.family(cfg)]
  found, first = [], 0
  specs = params_lib.param_specs(cfg)
  top = {
    name: specs.pop(name) for name in ("embed", "norm", "head") if name in specs
  }
  for name, spec in top.items():
    found.append(make_tensor(table[name], (name,), spec.shape))
  for stack in cfg.stacks:
    flat = traverse_util.flatten_dict(specs[stack.name])
    for layer in range(stack.num_layers):
      for path, spec in flat.items():
        entry = table[".".join(path)]
        experts = (None,)
        if "{expert}" in entry[0]:
          experts = range(cfg.num_experts)
        for expert in experts:
          index = (layer,) if expert is None else (layer, expert)
          found.append(
            make_tensor(
              entry,
              (stack.name, *path),
              spec.shape[len(index) :],
              index,
              layer=first + layer,
              expert=expert,
            )
          )
    first += stack.num_layers
  return found


def make_tensor(
  entry: tuple[str, int],
  path: tuple[str, ...],
  ours: tuple[int, ...],
  index: tuple[int, ...] = (),
  **numbers: int | None,
) -> Tensor:
  """Returns the tensor of an entry of a table, with its numbers filled in."""
  name, inputs = entry
  shape = ours
  if inputs:
    shape = math.prod(ours[inputs:]), math.prod(ours[:inputs])
  elif name.endswith(".bias"):
    shape = (math.prod(ours),)
  return Tensor(name.format(**numbers), shape, path, index, ours, inputs)
