"""What the sections of a config may hold; see `schema.nodes`."""

from grpo_jax.schema.nodes import (
  Chosen,
  Fields,
  Free,
  Kind,
  Named,
  Node,
  Optional,
  Options,
  check,
  completed,
)
from grpo_jax.schema.signatures import (
  REQUIRED,
  UNKNOWN,
  Option,
  documented,
  options_of,
  title,
)

__all__ = [
  "Chosen",
  "Fields",
  "Free",
  "Kind",
  "Named",
  "Node",
  "Option",
  "Optional",
  "Options",
  "REQUIRED",
  "UNKNOWN",
  "check",
  "completed",
  "documented",
  "options_of",
  "title",
]
