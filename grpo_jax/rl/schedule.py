"""How completions are drawn as a run goes on."""

from grpo_jax import errors
from grpo_jax.sampling import decode


def sampling_at(
  sampling: errors.Section,
  schedule: errors.Section,
  step: int,
) -> decode.SamplingParams:
  """Returns how completions are drawn when `step` steps are done.

  Args:
    sampling: fields at the beginning.
    schedule: by steps done, the fields that change then.
    step: steps done.
  """
  fields = dict(sampling)
  for first in sorted(schedule):
    if step >= first:
      fields |= dict(schedule[first])
  return decode.SamplingParams(**fields)
