"""Completions from parameters: prefill once per group, then the decode loop.

P prompts, G completions each, S prompt slots, N completion slots, V vocabulary.
The whole loop is one program on the device. A token is drawn with a key that is
folded in from its row and its position, so that what is drawn depends neither
on how rows are laid out over devices, nor on the cache's chunks, nor on which
batch a row came in.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from grpo_jax import sharding
from grpo_jax.models import heads, transformer
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.sampling import logits as logits_lib
from grpo_jax.types import PromptBatch, Rollout


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """How completions are drawn.

  Attributes:
    group_size: completions per prompt, G.
    max_new_tokens: completion slots, N; the stop token needs one.
    temperature: 0 takes the most probable token.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the fewest tokens that reach this probability; 1 keeps all.
    min_p: keep tokens at least this share of the top probability; 0 keeps all.
    cache_chunk: slots by which the cache of completions grows.
  """

  group_size: int = 8
  max_new_tokens: int = 256
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  cache_chunk: int = 256

  def __post_init__(self):
    if self.group_size < 1 or self.max_new_tokens < 1 or self.cache_chunk < 1:
      raise ValueError(
        "group_size, max_new_tokens and cache_chunk must be at least 1: got"
        f" {self.group_size}, {self.max_new_tokens}, {self.cache_chunk}."
      )
    if self.temperature < 0:
      raise ValueError(f"temperature={self.temperature} must not be negative.")
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k} must not be negative.")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1].")
    if not 0 <= self.min_p < 1:
      raise ValueError(f"min_p={self.min_p} must be in [0, 1).")

  @property
  def full_support(self) -> bool:
    """Whether every token can be drawn, so that samples may be trained on."""
    whole = self.top_k == 0 and self.top_p == 1 and self.min_p == 0
    return whole and self.temperature > 0


@flax.struct.dataclass
class DrawState:
  """What rows have drawn so far.

  Attributes:
    tokens: 0 where nothing is drawn.
    logprobs: of the tokens, in nats; 0 where nothing is drawn.
    mask: which slots hold a token, a row's stop token included.
    last: each row's latest draw; it means nothing once the row has ended.
    alive: which rows have drawn no stop token.
  """

  tokens: Int[Array, "P G N"]
  logprobs: Float[Array, "P G N"]
  mask: Bool[Array, "P G N"]
  last: Int[Array, "P G"]
  alive: Bool[Array, "P G"]


def draw(
  logits: Float[Array, "P G V"],
  keys: Key[Array, "P G"],
  n: int | Int[Array, ""],
  *,
  sampling: SamplingParams,
) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
  """Returns a token for each row, and its log-probability in nats.

  Args:
    logits: of the model.
    keys: one for each row, the same at every slot.
    n: slot that is drawn for; folded into the keys.
    sampling: the distribution; the log-probability is of what its filters and
      its temperature leave.
  """
  logprobs = logits_lib.process(
    logits,
    temperature=sampling.temperature,
    top_k_=sampling.top_k,
    top_p_=sampling.top_p,
    min_p_=sampling.min_p,
  )

  def one(key, logprobs):
    token = jax.random.categorical(jax.random.fold_in(key, n), logprobs)
    return token.astype(jnp.int32), logprobs[token]

  return jax.vmap(jax.vmap(one))(keys, logprobs)


def record(
  state: DrawState,
  token: Int[Array, "P G"],
  logprob: Float[Array, "P G"],
  n: int | Int[Array, ""],
  *,
  eos_ids: tuple[int, ...],
) -> DrawState:
  """Returns the state with what rows that are alive have drawn in slot n.

  A stop token is recorded, and ends its row.
  """

  def put(x, value):
    return jax.lax.dynamic_update_slice_in_dim(x, value[..., None], n, axis=2)

  return DrawState(
    tokens=put(state.tokens, jnp.where(state.alive, token, 0)),
    logprobs=put(state.logprobs, jnp.where(state.alive, logprob, 0.0)),
    mask=put(state.mask, state.alive),
    last=token,
    alive=state.alive & ~_is_any(token, eos_ids),
  )


@functools.partial(jax.jit, static_argnames=("cfg", "sampling", "eos_ids"))
def sample(
  params: Params,
  cfg: ModelConfig,
  prompts: PromptBatch,
  key: Key[Array, ""],
  *,
  sampling: SamplingParams,
  eos_ids: tuple[int, ...],
  first_row: int | Int[Array, ""] = 0,
) -> Rollout:
  """Returns G completions of each prompt.

  The loop ends early when every row has drawn a stop token.

  Args:
    params: parameters as training holds them; they are cast to the compute
      dtype and gathered over `fsdp` once, here.
    cfg: the model.
    prompts: padded on the left. With a mesh, split over its batch axes as
      `sharding.split_rows` says for P and G.
    key: one for the whole batch.
    sampling: G, N and the distribution.
    eos_ids: a row ends with the first of these that it draws.
    first_row: number of the first row, where a larger set of rows comes in
      several batches under one key.
  """
  num_prompts, group = prompts.tokens.shape[0], sampling.group_size
  length = sampling.max_new_tokens
  params = transformer.unstack(params, cfg)
  ids, mask = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
  hidden, prompt = transformer.prefill(params, cfg, ids, mask)
  rows = first_row + jnp.arange(num_prompts * group, dtype=jnp.int32)
  rows = _split_group(rows.reshape(num_prompts, group), ids)
  keys = jax.vmap(jax.vmap(lambda row: jax.random.fold_in(key, row)))(rows)
  starts = transformer.completion_positions(mask, group, 1)

  def draw_at(hidden, n):
    return draw(heads.logits(params, cfg, hidden), keys, n, sampling=sampling)

  hidden = _split_group(
    jnp.broadcast_to(hidden[:, None], (num_prompts, group, hidden.shape[-1])),
    ids,
  )
  state = record(
    _nothing_drawn(rows, length, ids),
    *draw_at(hidden, 0),
    0,
    eos_ids=eos_ids,
  )

  def step(carry):
    state, cache, n = carry
    hidden, trace = transformer.forward(
      params,
      cfg,
      state.last[..., None],
      starts + (n - 1),
      state.alive[..., None],
      prompt=prompt,
      cache=cache,
    )
    state = record(state, *draw_at(hidden[:, :, 0], n), n, eos_ids=eos_ids)
    return state, transformer.Cache(trace.layers, cache.length + 1), n + 1

  # One loop for each size of the cache; a loop with no row alive ends at once.
  chunk = sampling.cache_chunk
  cache = transformer.empty_cache(cfg, rows, min(chunk, length - 1))
  n = jnp.int32(1)
  for slots in range(chunk, length - 1 + chunk, chunk):
    slots = min(slots, length - 1)
    cache = transformer.grow(cache, slots)
    state, cache, n = jax.lax.while_loop(
      lambda carry, slots=slots: (carry[2] <= slots) & jnp.any(carry[0].alive),
      step,
      (state, cache, n),
    )
  return Rollout(
    prompts=prompts,
    tokens=state.tokens,
    completion_mask=state.mask,
    logprobs=state.logprobs,
    truncated=state.alive,
  )


def _nothing_drawn(
  rows: Int[Array, "P G"], length: int, prompts: Int[Array, "P S"]
) -> DrawState:
  def empty(dtype):
    return _split_group(jnp.zeros((*rows.shape, length), dtype), prompts)

  return DrawState(
    tokens=empty(jnp.int32),
    logprobs=empty(jnp.float32),
    mask=empty(jnp.bool),
    last=jnp.zeros_like(rows),
    alive=rows >= 0,
  )


def _is_any(
  token: Int[Array, "P G"], ids: tuple[int, ...]
) -> Bool[Array, "P G"]:
  return functools.reduce(
    jnp.logical_or, (token == i for i in ids), jnp.zeros_like(token, bool)
  )


def _split_group(x: Array, prompts: Int[Array, "P S"]) -> Array:
  """Returns [P, G, ...] split over the batch axes that P leaves to G."""
  if not sharding.has_mesh():
    return x
  mesh = jax.sharding.get_abstract_mesh()
  axes = sharding.split_rows(mesh, *x.shape[:2])
  (given,) = sharding.row_spec(prompts) or (None,)
  if given != axes[0]:
    raise ValueError(
      f"Prompts are split over {given}, and"
      f" {x.shape[0]} prompts x {x.shape[1]} completions need {axes[0]}."
    )
  return sharding.reshard(x, (*axes, *(None,) * (x.ndim - 2)))
