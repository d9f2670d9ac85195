"""What a model is: one frozen record, whatever its family.

`models.presets` has published models by name, `models.hf.config` reads and
writes a `config.json`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")
ROUTERS = ("softmax", "sigmoid")
ROPE_SCALINGS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched for contexts longer than trained on.

  Attributes:
    kind: "linear" divides all of them by `factor`; "llama3" and "yarn" (arXiv
      2309.00071) divide the slow ones and leave the fast ones.
    factor: of the stretch, at least 1.
    original_length: positions of the training before the stretch.
    low_freq_factor: llama3: a frequency with fewer turns than this in
      `original_length` is divided.
    high_freq_factor: llama3: one with more turns than this is left.
    beta_fast: yarn: a frequency with more turns than this in `original_length`
      is left.
    beta_slow: yarn: one with fewer turns than this is divided.
    attention_factor: yarn: what cosines and sines are multiplied by; 0 for
      0.1 log(factor) + 1, or what the next two say.
    mscale: yarn: with `mscale_all_dim`, cosines and sines are multiplied by
      (0.1 mscale log(factor) + 1) / (0.1 mscale_all_dim log(factor) + 1).
    mscale_all_dim: yarn: latent attention multiplies its scores by
      (0.1 mscale_all_dim log(factor) + 1)^2; 0 for 1.
  """

  kind: str
  factor: float
  original_length: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float = 0.0
  mscale: float = 0.0
  mscale_all_dim: float = 0.0

  def __post_init__(self):
    _check_numbers(self, "rope_scaling.")
    if self.kind not in ROPE_SCALINGS:
      raise ValueError(
        f"rope_scaling.kind={self.kind!r} must be one of {ROPE_SCALINGS}."
      )
    if self.factor < 1:
      raise ValueError(f"rope_scaling.factor={self.factor} must be at least 1.")
    if self.kind != "linear" and self.original_length < 1:
      raise ValueError(
        f"rope_scaling.original_length={self.original_length} must be the"
        f" positions of the first training: {self.kind!r} needs it."
      )


@dataclasses.dataclass(frozen=True)
class Stack:
  """Equal layers, one after the other: one entry of the parameters.

  Attributes:
    name: its key in the tree of parameters.
    num_layers: how many.
    mlp: "mlp" or "moe", what follows the attention, and its key in a layer.
  """

  name: str
  num_layers: int
  mlp: str


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder: rotary attention, RMSNorm, gated MLP or a mixture of experts.

  Attention is grouped-query, or latent (MLA, arXiv 2405.04434) where
  `latent_dim` is given; there are experts where `num_experts` is. Numbers whose
  default is 0 turn their part off.

  Attributes:
    vocab_size: rows of the embedding, V. May exceed what a tokenizer uses.
    num_layers: L.
    d_model: width, D.
    num_heads: query heads, N.
    num_kv_heads: key/value heads, K; divides N, and is N in latent attention.
    head_dim: width of queries and keys, H; even. In latent attention its last
      `rope_dim` are rotary.
    d_ff: feed-forward width of dense layers, F.
    rope_theta: base of the rotary frequencies.
    rope_scaling: their stretch; a mapping of RopeScaling's fields will do.
    rope_interleaved: neighbours (2i, 2i + 1) are rotated together (DeepSeek),
      and not (i, i + H / 2).
    norm_eps: added to the mean square in RMSNorm.
    qkv_bias: q, k and v have biases (Qwen2).
    qk_norm: q and k are normalized per head (Qwen3).
    tied_head: the output head is the embedding, transposed.
    sliding_window: positions that a query sees, its own among them (Mistral).
    latent_dim: width of the latent that keys and values are made of, C.
    query_latent_dim: width of the latent of queries; 0 projects them directly.
    rope_dim: rotary width of latent attention's heads, U; even.
    value_dim: width of latent attention's values.
    num_experts: routed experts, E.
    experts_per_token: X.
    d_expert: feed-forward width of one expert.
    num_shared_experts: that every token takes, as one MLP this many times as
      wide as an expert.
    num_dense_layers: first layers that have a dense MLP and no experts.
    router: "softmax" over all experts (Qwen3-MoE), or "sigmoid" of each with a
      bias that decides the choice and not the weight (DeepSeek-V3).
    router_groups: groups of neighbouring experts; only experts of the best
      groups, by their two best experts each, are chosen.
    router_top_groups: how many groups those are.
    normalize_experts: the weights of the chosen experts are made to sum to 1.
    routed_scale: what the sum of routed experts is multiplied by.
    max_positions: that the model was trained for, as config.json says it.
    dtype: of activations and of weights in use; masters stay float32.
    remat: what the backward pass recomputes: nothing, all but the products of
      matrices, everything.
    head_chunk: tokens of a device whose vocabulary logits exist at one time.
  """

  vocab_size: int
  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  rope_theta: float = 1e4
  rope_scaling: RopeScaling | Mapping[str, Any] | None = None
  rope_interleaved: bool = False
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  qk_norm: bool = False
  tied_head: bool = True
  sliding_window: int = 0
  latent_dim: int = 0
  query_latent_dim: int = 0
  rope_dim: int = 0
  value_dim: int = 0
  num_experts: int = 0
  experts_per_token: int = 0
  d_expert: int = 0
  num_shared_experts: int = 0
  num_dense_layers: int = 0
  router: str = "softmax"
  router_groups: int = 1
  router_top_groups: int = 1
  normalize_experts: bool = True
  routed_scale: float = 1.0
  max_positions: int = 0
  dtype: str = "float32"
  remat: str = "none"
  head_chunk: int = 2048

  def __post_init__(self):
    scaling = self.rope_scaling
    if scaling is not None and not isinstance(scaling, RopeScaling):
      object.__setattr__(self, "rope_scaling", RopeScaling(**scaling))
    _check_numbers(self)
    if self.rope_theta <= 0:
      raise ValueError(f"rope_theta={self.rope_theta} must be above 0.")
    if self.norm_eps < 0:
      raise ValueError(f"norm_eps={self.norm_eps} must be at least 0.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} must divide by"
        f" num_kv_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even.")
    for name, choices in (
      ("router", ROUTERS),
      ("dtype", DTYPES),
      ("remat", REMAT),
    ):
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {choices}.")
    self._check_latent()
    self._check_experts()

  def _check_latent(self):
    if not self.latent_dim:
      for name in ("query_latent_dim", "rope_dim", "value_dim"):
        if getattr(self, name):
          raise ValueError(
            f"{name}={getattr(self, name)} is of latent attention, which needs"
            " latent_dim."
          )
      return
    if self.value_dim < 1:
      raise ValueError("Latent attention (latent_dim) needs value_dim.")
    if not 0 < self.rope_dim < self.head_dim or self.rope_dim % 2:
      raise ValueError(
        f"rope_dim={self.rope_dim} must be even, at least 2 and below"
        f" head_dim={self.head_dim}."
      )
    if self.num_kv_heads != self.num_heads:
      raise ValueError(
        f"num_kv_heads={self.num_kv_heads} must equal"
        f" num_heads={self.num_heads} in latent attention."
      )
    if self.qkv_bias or self.qk_norm:
      raise ValueError("Latent attention has neither qkv_bias nor qk_norm.")

  def _check_experts(self):
    e, x = self.num_experts, self.experts_per_token
    if not e:
      for name in (
        "experts_per_token",
        "d_expert",
        "num_shared_experts",
        "num_dense_layers",
      ):
        if getattr(self, name):
          raise ValueError(
            f"{name}={getattr(self, name)} is of a mixture of experts, which"
            " needs num_experts."
          )
      return
    if self.d_expert < 1:
      raise ValueError("A mixture of experts (num_experts) needs d_expert.")
    if self.num_dense_layers >= self.num_layers:
      raise ValueError(
        f"num_dense_layers={self.num_dense_layers} must be below"
        f" num_layers={self.num_layers}."
      )
    groups, top = self.router_groups, self.router_top_groups
    if groups > 1 and (
      self.router != "sigmoid" or e % groups or e < 2 * groups
    ):
      raise ValueError(
        f"router_groups={groups} needs router='sigmoid' and at least two of"
        f" num_experts={e} experts in each group."
      )
    if top > groups:
      raise ValueError(
        f"router_top_groups={top} must not exceed router_groups={groups}."
      )
    if not 1 <= x <= e // groups * top:
      raise ValueError(
        f"experts_per_token={x} must be between 1 and the"
        f" {e // groups * top} experts that can be chosen from."
      )

  @property
  def queries_per_kv(self) -> int:
    """R, the query heads that share one key/value head."""
    return self.num_heads // self.num_kv_heads

  @property
  def rotary_dim(self) -> int:
    """The part of a head that is rotated."""
    return self.rope_dim or self.head_dim

  @property
  def stacks(self) -> tuple[Stack, ...]:
    """The layers, from the first to the last, as stacks of equal ones."""
    if not self.num_experts:
      return (Stack("layers", self.num_layers, "mlp"),)
    dense = self.num_dense_layers
    sparse = Stack("layers", self.num_layers - dense, "moe")
    return (Stack("dense_layers", dense, "mlp"), sparse) if dense else (sparse,)


def is_finite(value: Any) -> bool:
  """Whether a value is a number that a float can be."""
  try:
    return isinstance(value, int | float) and math.isfinite(value)
  except OverflowError:  # A whole number beyond all floats.
    return False


def _check_numbers(record: Any, prefix: str = "") -> None:
  """Raises ValueError where a field is no number of its kind."""
  for field in dataclasses.fields(record):
    value, name = getattr(record, field.name), f"{prefix}{field.name}"
    if field.type in (int, "int"):
      # Those whose default is 0 are turned off by it.
      least = 0 if field.default == 0 else 1
      if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r} must be a whole number.")
      if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")
    if field.type in (float, "float") and not is_finite(value):
      raise ValueError(f"{name}={value!r} must be a finite number.")
