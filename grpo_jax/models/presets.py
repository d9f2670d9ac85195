"""Published models by name, as their `config.json` has them.

Where a directory is loaded its own config.json decides, and not this table.
The sizes of a family differ in few numbers; each line below is one model.
"""

import dataclasses

from grpo_jax.models.config import ModelConfig, RopeScaling

_LLAMA31_ROPE = RopeScaling(
  kind="llama3",
  factor=8.0,
  original_length=8192,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
)
_LLAMA32_ROPE = dataclasses.replace(_LLAMA31_ROPE, factor=32.0)


def _qwen25(num_layers, d_model, num_heads, num_kv_heads, d_ff, **changes):
  fields = dict(
    vocab_size=152_064,
    num_layers=num_layers,
    d_model=d_model,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=d_model // num_heads,
    d_ff=d_ff,
    rope_theta=1e6,
    norm_eps=1e-6,
    qkv_bias=True,
    tied_head=False,
    max_positions=131_072,
  )
  return ModelConfig(**fields | changes)


def _qwen3(num_layers, d_model, num_heads, num_kv_heads, d_ff, **changes):
  fields = dict(
    vocab_size=151_936,
    num_layers=num_layers,
    d_model=d_model,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=128,
    d_ff=d_ff,
    rope_theta=1e6,
    norm_eps=1e-6,
    qk_norm=True,
    tied_head=False,
    max_positions=40_960,
  )
  return ModelConfig(**fields | changes)


def _llama3(num_layers, d_model, num_heads, d_ff, **changes):
  fields = dict(
    vocab_size=128_256,
    num_layers=num_layers,
    d_model=d_model,
    num_heads=num_heads,
    num_kv_heads=8,
    head_dim=d_model // num_heads,
    d_ff=d_ff,
    rope_theta=5e5,
    rope_scaling=_LLAMA31_ROPE,
    norm_eps=1e-5,
    tied_head=False,
    max_positions=131_072,
  )
  return ModelConfig(**fields | changes)


_SMALL = dict(vocab_size=151_936, tied_head=True)
_MATH = dict(rope_theta=1e4)  # Distilled from Qwen2.5-Math.
_EXPERTS = dict(num_experts=128, experts_per_token=8)

_DEEPSEEK_V3 = ModelConfig(
  vocab_size=129_280,
  num_layers=61,
  d_model=7168,
  num_heads=128,
  num_kv_heads=128,
  head_dim=192,
  d_ff=18_432,
  rope_theta=1e4,
  rope_scaling=RopeScaling(
    kind="yarn",
    factor=40.0,
    original_length=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
  ),
  rope_interleaved=True,
  norm_eps=1e-6,
  tied_head=False,
  latent_dim=512,
  query_latent_dim=1536,
  rope_dim=64,
  value_dim=128,
  num_experts=256,
  experts_per_token=8,
  d_expert=2048,
  num_shared_experts=1,
  num_dense_layers=3,
  router="sigmoid",
  router_groups=8,
  router_top_groups=4,
  routed_scale=2.5,
  max_positions=163_840,
)

PRESETS: dict[str, ModelConfig] = {
  "qwen2.5-0.5b": _qwen25(24, 896, 14, 2, 4864, **_SMALL, max_positions=32_768),
  "qwen2.5-1.5b": _qwen25(28, 1536, 12, 2, 8960, **_SMALL),
  "qwen2.5-3b": _qwen25(
    36, 2048, 16, 2, 11_008, **_SMALL, max_positions=32_768
  ),
  "qwen2.5-7b": _qwen25(28, 3584, 28, 4, 18_944),
  "qwen2.5-14b": _qwen25(48, 5120, 40, 8, 13_824, norm_eps=1e-5),
  "qwen2.5-32b": _qwen25(64, 5120, 40, 8, 27_648, norm_eps=1e-5),
  "qwen2.5-72b": _qwen25(80, 8192, 64, 8, 29_568, norm_eps=1e-5),
  "qwen3-0.6b": _qwen3(28, 1024, 16, 8, 3072, tied_head=True),
  "qwen3-1.7b": _qwen3(28, 2048, 16, 8, 6144, tied_head=True),
  "qwen3-4b": _qwen3(36, 2560, 32, 8, 9728, tied_head=True),
  "qwen3-8b": _qwen3(36, 4096, 32, 8, 12_288),
  "qwen3-14b": _qwen3(40, 5120, 40, 8, 17_408),
  "qwen3-32b": _qwen3(64, 5120, 64, 8, 25_600),
  "qwen3-30b-a3b": _qwen3(48, 2048, 32, 4, 6144, d_expert=768, **_EXPERTS),
  "qwen3-235b-a22b": _qwen3(94, 4096, 64, 4, 12_288, d_expert=1536, **_EXPERTS),
  "llama-3.1-8b": _llama3(32, 4096, 32, 14_336),
  "llama-3.1-70b": _llama3(80, 8192, 64, 28_672),
  "llama-3.2-1b": _llama3(
    16, 2048, 32, 8192, tied_head=True, rope_scaling=_LLAMA32_ROPE
  ),
  "llama-3.2-3b": _llama3(
    28, 3072, 24, 8192, tied_head=True, rope_scaling=_LLAMA32_ROPE
  ),
  "mistral-7b-v0.1": ModelConfig(
    vocab_size=32_000,
    num_layers=32,
    d_model=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    d_ff=14_336,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied_head=False,
    sliding_window=4096,
    max_positions=32_768,
  ),
  "deepseek-v3": _DEEPSEEK_V3,
  "deepseek-r1": _DEEPSEEK_V3,
  "r1-distill-qwen-1.5b": _qwen25(
    28, 1536, 12, 2, 8960, vocab_size=151_936, **_MATH
  ),
  "r1-distill-qwen-7b": _qwen25(28, 3584, 28, 4, 18_944, **_MATH),
  "r1-distill-qwen-14b": _qwen25(48, 5120, 40, 8, 13_824, norm_eps=1e-5),
  "r1-distill-qwen-32b": _qwen25(64, 5120, 40, 8, 27_648, norm_eps=1e-5),
  "r1-distill-llama-8b": _llama3(32, 4096, 32, 14_336),
  "r1-distill-llama-70b": _llama3(80, 8192, 64, 28_672),
}
