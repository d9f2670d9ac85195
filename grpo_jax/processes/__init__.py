"""The processes of one run: one on each host, or several on one machine."""

from grpo_jax.processes.exchange import (
  asked_to_stop,
  count,
  first,
  from_first,
  gather,
  index,
  is_first,
  largest,
  wait,
)

__all__ = [
  "asked_to_stop",
  "count",
  "first",
  "from_first",
  "gather",
  "index",
  "is_first",
  "largest",
  "wait",
]
