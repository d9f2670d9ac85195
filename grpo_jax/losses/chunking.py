"""Walks over the tokens of each device in chunks, sharded or not.

What `vocabulary.py` and `distill.py` share. Arrays of tokens are
[*rows, T, ...]; inside `Layout.run` they are those of one device, flattened to
[L, ...]. Dimension key: T positions, D model width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

# What one device takes at a time: logits of 256 MiB in float32, and no more
# tokens than keep a matrix unit busy, so that small ones stay in its cache.
_CHUNK_LOGITS = 2**26
_CHUNK_TOKENS = 2048

Kind = Literal["tokens", "logits", "head"]


class Layout(NamedTuple):
  """How explicit mesh axes split the tokens and the vocabulary.

  Attributes:
    rows: spec entries of the axes [*rows, T].
    vocab: spec entry of V.
    row_axes: mesh axes that split tokens; () without explicit sharding.
    vocab_axes: mesh axes that split V.
    local_tokens: tokens on one device.
    local_vocab: entries of the vocabulary on one device.
  """

  rows: tuple
  vocab: str | tuple[str, ...] | None
  row_axes: tuple[str, ...]
  vocab_axes: tuple[str, ...]
  local_tokens: int
  local_vocab: int

  def run(
    self,
    local: Callable[..., tuple],
    args: Sequence[Array],
    inputs: Sequence[Kind],
    outputs: Sequence[Kind],
  ) -> tuple[Array, ...]:
    """Calls `local` on each device's part, token axes flattened to one.

    The kinds of arrays are "tokens" [*rows, T, ...], "logits" [*rows, T, V] and
    "head" [D, V]. `local` itself sums over the shards, with the methods below.
    """
    lead = len(self.rows)
    specs = {
      "tokens": PartitionSpec(*self.rows),
      "logits": PartitionSpec(*self.rows, self.vocab),
      "head": PartitionSpec(None, self.vocab),
    }

    def on_device(*args):
      flat, shape = [], ()
      for x, kind in zip(args, inputs, strict=True):
        if kind != "head":
          shape = x.shape[:lead]
          x = x.reshape(-1, *x.shape[lead:])
        flat.append(x)
      return tuple(
        x if kind == "head" else x.reshape(*shape, *x.shape[1:])
        for x, kind in zip(local(*flat), outputs, strict=True)
      )

    if not self.row_axes and not self.vocab_axes:
      return on_device(*args)
    in_specs = tuple(specs[kind] for kind in inputs)
    args = [jax.reshard(x, s) for x, s in zip(args, in_specs, strict=True)]
    return jax.shard_map(
      on_device,
      in_specs=in_specs,
      out_specs=tuple(specs[kind] for kind in outputs),
      check_vma=False,  # Never differentiated: both passes are written out.
    )(*args)

  def sum_vocab(self, x: Array) -> Array:
    """Adds the shards of the vocabulary; inside `run`."""
    return jax.lax.psum(x, self.vocab_axes) if self.vocab_axes else x

  def max_vocab(self, x: Array) -> Array:
    """The largest over the shards of the vocabulary; inside `run`."""
    return jax.lax.pmax(x, self.vocab_axes) if self.vocab_axes else x

  def sum_rows(self, x: Array) -> Array:
    """Adds the shards of the rows; inside `run`."""
    return jax.lax.psum(x, self.row_axes) if self.row_axes else x

  def first_id(self) -> Array | int:
    """The id of this device's first vocabulary entry; inside `run`."""
    if not self.vocab_axes:
      return 0
    return jax.lax.axis_index(self.vocab_axes) * self.local_vocab

  def num_chunks(self, chunk_size: int | None) -> int:
    """How many chunks of at most `chunk_size` tokens; at least 1.

    Raises:
      ValueError: `chunk_size` is below 1.
    """
    if chunk_size is None:
      chunk_size = min(_CHUNK_TOKENS, _CHUNK_LOGITS // self.local_vocab)
      chunk_size = max(chunk_size, 1)
    if chunk_size < 1:
      raise ValueError(f"{chunk_size=} must be at least 1 token.")
    return max(1, -(-self.local_tokens // chunk_size))


def gather_width(hidden: Array, head: Array) -> tuple[Array, Array]:
  """Undoes a sharding along D, as fsdp has it on the head."""
  *rows, width = _spec(hidden)
  if width is not None:
    hidden = jax.reshard(hidden, PartitionSpec(*rows, None))
  width, vocab = _spec(head)
  if width is not None:
    head = jax.reshard(head, PartitionSpec(None, vocab))
  return hidden, head


def layout_of(hidden: Array, head: Array) -> Layout:
  """The layout in the types of `hidden` and `head`.

  Raises:
    ValueError: one mesh axis splits rows and vocabulary.
  """
  rows, vocab = _spec(hidden)[:-1], _spec(head)[-1]
  row_axes, vocab_axes = _axes(*rows), _axes(vocab)
  if set(row_axes) & set(vocab_axes):
    raise ValueError(
      f"Rows over {row_axes} and vocabulary over {vocab_axes} must not share"
      " a mesh axis."
    )
  sizes = jax.typeof(hidden).sharding.mesh.shape
  return Layout(
    rows=tuple(rows),
    vocab=vocab,
    row_axes=row_axes,
    vocab_axes=vocab_axes,
    local_tokens=math.prod(hidden.shape[:-1])
    // math.prod(sizes[axis] for axis in row_axes),
    local_vocab=head.shape[-1] // math.prod(sizes[axis] for axis in vocab_axes),
  )


def scan_chunks(
  body: Callable[..., tuple],
  carry,
  arrays: Sequence[Array],
  chunks: int,
) -> tuple:
  """`lax.scan` of `body(carry, arrays)` over equal chunks of the first axis.

  The last chunk is filled up with zeros, whose results are cut off again.
  """
  if chunks == 1:
    return body(carry, arrays)
  tokens = arrays[0].shape[0]
  size = -(-tokens // chunks)

  def split(x):
    pad = [(0, size * chunks - tokens)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(chunks, size, *x.shape[1:])

  carry, results = jax.lax.scan(body, carry, [split(x) for x in arrays])
  return carry, tuple(x.reshape(-1, *x.shape[2:])[:tokens] for x in results)


def _spec(x: Array) -> tuple:
  spec = tuple(jax.typeof(x).sharding.spec)
  return spec + (None,) * (x.ndim - len(spec))


def _axes(*entries) -> tuple[str, ...]:
  names = []
  for entry in entries:
    if isinstance(entry, str):
      names.append(entry)
    elif isinstance(entry, tuple):
      names.extend(entry)
  return tuple(names)
