"""Tiny models, prompts and meshes that tests of several modules share.

P prompts, G completions each, S prompt slots, N completion slots.
"""

import math
import zlib

import jax
import numpy as np
from flax import traverse_util

from grpo_jax import sharding
from grpo_jax.models import lora
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig, RopeScaling
from grpo_jax.types import Completions, Problem, PromptBatch, Rewards, Rollout

EIGHT = dict(data=2, fsdp=2, tensor=2)


def tiny(**changes) -> ModelConfig:
  """A model whose every part does something."""
  fields = dict(
    vocab_size=32,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    d_ff=24,
    qkv_bias=True,
    qk_norm=True,
  )
  return ModelConfig(**fields | changes)


_TINY = dict(
  vocab_size=32,
  num_layers=2,
  d_model=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  d_ff=48,
  tied_head=False,
  max_positions=64,
)
_TINY_EXPERTS = dict(num_experts=8, experts_per_token=3, d_expert=12)
_TINY_LATENT = dict(
  num_kv_heads=4, head_dim=12, latent_dim=16, rope_dim=4, value_dim=6
)
# One small model of each family; between them every rope scaling. Windows and
# original lengths are short, so that a few tokens reach beyond them.
FAMILIES = {
  "qwen2": ModelConfig(**_TINY | dict(qkv_bias=True, tied_head=True)),
  "qwen3": ModelConfig(
    **_TINY,
    qk_norm=True,
    rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_length=16),
  ),
  "qwen3_moe": ModelConfig(**_TINY | _TINY_EXPERTS, qk_norm=True),
  "llama": ModelConfig(
    **_TINY,
    norm_eps=1e-5,
    rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_length=16),
  ),
  "mistral": ModelConfig(
    **_TINY,
    sliding_window=4,
    rope_scaling=RopeScaling(kind="linear", factor=2.0),
  ),
  "deepseek_v3": ModelConfig(
    **_TINY | _TINY_EXPERTS | _TINY_LATENT | dict(num_layers=3),
    query_latent_dim=8,
    rope_interleaved=True,
    rope_scaling=RopeScaling(
      kind="yarn",
      factor=40.0,
      original_length=16,
      mscale=1.0,
      mscale_all_dim=0.8,
    ),
    num_shared_experts=1,
    num_dense_layers=1,
    router="sigmoid",
    router_groups=4,
    router_top_groups=2,
    routed_scale=2.5,
  ),
  # As DeepSeek-V2-Lite has it: queries are projected directly.
  "deepseek_v3_direct": ModelConfig(
    **_TINY | _TINY_EXPERTS | _TINY_LATENT,
    num_shared_experts=2,
    router="sigmoid",
    normalize_experts=False,
  ),
}


def eight(cfg: ModelConfig) -> dict[str, int]:
  """A mesh of eight devices that splits all that the model can split."""
  if cfg.num_experts:
    return dict(fsdp=2, tensor=2, expert=2)
  return dict(data=2, fsdp=2, tensor=2)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, expert: int = 1):
  """A mesh over as many of the eight CPU devices as it needs."""
  shape = (data, fsdp, tensor, expert)
  sizes = dict(zip(sharding.MESH_AXES, shape, strict=True))
  return sharding.make_mesh(sizes, jax.devices()[: math.prod(shape)])


def make_params(cfg: ModelConfig, mesh=None, seed: int = 0):
  """The same parameters on any mesh; biases and norm scales are not trivial.

  Made by NumPy, which spares every test the seconds of compiling `init_params`.
  """
  specs = params_lib.param_specs(cfg)
  flat = {}
  for path, spec in traverse_util.flatten_dict(specs).items():
    rng = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    x = 0.25 * rng.standard_normal(spec.shape, np.float32)
    flat[path] = x + 1 if path[-1].endswith("norm") else x
  tree = traverse_util.unflatten_dict(flat)
  if mesh is None:
    return jax.tree.map(jax.numpy.asarray, tree)
  return jax.device_put(tree, params_lib.shardings(specs, mesh))


def make_adapters(
  cfg: ModelConfig, settings: lora.LoraConfig, mesh=None, up=0.25
):
  """Random adapters, the same on any mesh; `up` says how large."""
  specs = lora.adapter_specs(cfg, settings)
  flat = {}
  for path, spec in traverse_util.flatten_dict(specs).items():
    rng = np.random.default_rng(zlib.crc32("/".join(path).encode()))
    size = up if path[-1] == "up" else 0.25
    flat[path] = size * rng.standard_normal(spec.shape, np.float32)
  tree = traverse_util.unflatten_dict(flat)
  if mesh is None:
    return jax.tree.map(jax.numpy.asarray, tree)
  return jax.device_put(tree, params_lib.shardings(specs, mesh))


def make_prompts(lengths, slots: int, vocab_size: int = 32, seed: int = 0):
  """Random prompts of the given lengths, padded on the left: a PromptBatch.

  A prompt does not depend on `slots` or on the prompts beside it; what fills
  the padding does.
  """
  tokens = np.random.default_rng([seed, slots]).integers(
    0, vocab_size, (len(lengths), slots), dtype=np.int32
  )
  mask = np.zeros((len(lengths), slots), bool)
  for row, length in enumerate(lengths):
    rng = np.random.default_rng([seed, row, length])
    tokens[row, slots - length :] = rng.integers(0, vocab_size, length)
    mask[row, slots - length :] = True
  return PromptBatch(tokens=tokens, mask=mask)


def make_completions(lengths, slots: int, vocab_size: int = 32, seed: int = 0):
  """Random completions [P, G, N] of lengths [P, G], and their mask."""
  lengths = np.asarray(lengths)
  tokens = np.random.default_rng([seed, 7]).integers(
    0, vocab_size, (*lengths.shape, slots), dtype=np.int32
  )
  return tokens, np.arange(slots) < lengths[..., None]


def earning(rollout: Rollout, rewards: Rewards) -> Completions:
  """Completions of a rollout, without text, that earned these rewards."""
  rows = rollout.completion_mask.shape[0] * rollout.completion_mask.shape[1]
  return Completions(
    [Problem("q", "a", "pair_sum", "q")] * rows,
    [""] * rows,
    rollout.completion_mask.sum(axis=-1).ravel(),
    np.asarray(rollout.truncated).ravel(),
    rollout.completion_mask.shape[1],
    rewards,
    rollout,
  )


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
  """Equal structure, and leaves that agree; names the leaf where not."""
  paths = jax.tree_util.tree_leaves_with_path(expected)
  leaves = jax.tree.leaves(actual)
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, want), got in zip(paths, leaves, strict=True):
    np.testing.assert_allclose(
      np.asarray(got, np.float32),
      np.asarray(want, np.float32),
      rtol=rtol,
      atol=atol,
      err_msg=jax.tree_util.keystr(path),
    )


def even_characters(problems, completions):
  """A reward of a user's own: the share of characters of an even code."""
  del problems
  return [
    sum(ord(c) % 2 == 0 for c in text) / max(len(text), 1)
    for text in completions
  ]
