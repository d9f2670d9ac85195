"""Which rule grades the answers to a run's problems, said at its start."""

from collections.abc import Sequence

from grpo_jax import errors, types
from grpo_jax.rewards import answer, length
from grpo_jax.rewards import section as section_lib

# Terms that compare an answer with the reference.
_COMPARING = (answer.accuracy, length.cosine)


def check(
  section: errors.Section, problems: Sequence[types.Problem], where: str
) -> str:
  """Says what grades problems that name no source; "" where all name one.

  Args:
    section: of rewards.
    problems: at random access.
    where: how a sentence names them, such as "config.data".

  Raises:
    ConfigError: the source of a problem whose answer is compared is none of
      ours.
  """
  asked = {
    term.only_for
    for term in section_lib.read(section).values()
    if term.function.func in _COMPARING
  }
  if not asked:
    return ""
  if None in asked:
    return answer.check_sources(problems, where)
  sources = set().union(*filter(None, asked))
  rows = [problem for problem in problems if problem.source in sources]
  return answer.check_sources(rows, where)
