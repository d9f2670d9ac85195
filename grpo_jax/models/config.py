"""What a model is: one frozen record, and a table of published ones."""

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
    head_chunk: positions whose vocabulary logits exist at one time.
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
  head_chunk: int = 512

  def __post_init__(self):
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
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, "int") and value < 1:
        raise ValueError(f"{field.name}={value} must be at least 1.")

  @property
  def queries_per_kv(self) -> int:
    """R, the query heads that share one key/value head."""
    return self.num_heads // self.num_kv_heads


def _qwen2(layers, d_model, heads, kv_heads, d_ff, vocab, tied, head_dim=128):
  return dict(
    vocab_size=vocab,
    num_layers=layers,
    d_model=d_model,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    d_ff=d_ff,
    rope_theta=1e6,
    qkv_bias=True,
    tied_head=tied,
  )


def _qwen3(layers, d_model, heads, kv_heads, d_ff, tied):
  return _qwen2(layers, d_model, heads, kv_heads, d_ff, 151936, tied) | dict(
    qkv_bias=False, qk_norm=True
  )


# Fields as published in each model's config.json.
PRESETS = {
  "qwen2.5-0.5b": _qwen2(24, 896, 14, 2, 4864, 151936, True, head_dim=64),
  "qwen2.5-1.5b": _qwen2(28, 1536, 12, 2, 8960, 151936, True),
  "qwen2.5-7b": _qwen2(28, 3584, 28, 4, 18944, 152064, False),
  "qwen2.5-32b": _qwen2(64, 5120, 40, 8, 27648, 152064, False)
  | dict(norm_eps=1e-5),
  "qwen3-0.6b": _qwen3(28, 1024, 16, 8, 3072, True),
  "qwen3-1.7b": _qwen3(28, 2048, 16, 8, 6144, True),
  "qwen3-8b": _qwen3(36, 4096, 32, 8, 12288, False),
}
