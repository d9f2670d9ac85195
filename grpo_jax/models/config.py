"""What a model is: one frozen record."""

import dataclasses

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A dense decoder: grouped-query attention, rotary, RMSNorm, gated MLP.

  Attributes:
    vocab_size: rows of the embedding, V. May exceed what a tokenizer uses.
    num_layers: L.
    d_model: width, D.
    num_heads: query heads, N.
    num_kv_heads: key/value heads, K; divides N.
    head_dim: head width, H; even.
    d_ff: feed-forward width, F.
    rope_theta: base of the rotary frequencies.
    norm_eps: added to the mean square in RMSNorm.
    qkv_bias: q, k and v have biases (Qwen2).
    qk_norm: q and k are normalized per head (Qwen3).
    tied_head: the output head is the embedding, transposed.
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
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  qk_norm: bool = False
  tied_head: bool = True
  dtype: str = "float32"
  remat: str = "none"
  head_chunk: int = 2048

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, "int") and value < 1:
        raise ValueError(f"{field.name}={value} must be at least 1.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} must divide by"
        f" num_kv_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even.")
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype={self.dtype!r} must be one of {DTYPES}.")
    if self.remat not in REMAT:
      raise ValueError(f"remat={self.remat!r} must be one of {REMAT}.")

  @property
  def queries_per_kv(self) -> int:
    """R, the query heads that share one key/value head."""
    return self.num_heads // self.num_kv_heads
