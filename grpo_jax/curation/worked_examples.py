"""Worked examples with long chains of thought, for few-shot prompting.

The first of the three ways of DeepSeek-R1, https://arxiv.org/abs/2501.12948
section 2.3.1, to come by cold-start data. Written for this project; no question
is of a test set.
"""

import os

from grpo_jax.data import prompts, records

_RECIPES = prompts.Shot(
  "A baker has 14 eggs. A cake takes 3 eggs and a tart takes 2. She bakes 2"
  " cakes and then as many tarts as she can. How many tarts does she bake?",
  "<think>She has 14 eggs. First the cakes: 2 cakes take 2 x 3 = 6 eggs.\n\n"
  "So 14 - 6 = 9 eggs are left. Wait, let me check: 6 + 9 = 15, and that is not"
  " 14. So 14 - 6 = 8 eggs are left.\n\n"
  "A tart takes 2 eggs, so 8 / 2 = 4 tarts.\n\n"
  "Let me verify by counting eggs: 2 cakes take 6, 4 tarts take 8, together 14."
  " That is all of them, and a fifth tart is not possible. The answer is"
  " 4.</think>\n<answer>4</answer>",
)
_TRAINS = prompts.Shot(
  "A train leaves at 9:40 and arrives at 12:25. It stands still for 15 minutes"
  " on the way and covers 300 km. What is its mean speed in km/h while it"
  " moves?",
  "<think>First the time on the way. From 9:40 to 12:40 are 3 hours, and 12:25"
  " is 15 minutes earlier, so it takes 2 hours and 45 minutes.\n\n"
  "My first idea is 300 / 2.75, about 109. But the question asks for the speed"
  " while it moves, so the 15 minutes of standing do not count. Let me go"
  " back.\n\n"
  "It moves for 2 h 45 min - 15 min = 2 h 30 min, which is 2.5 hours. Then the"
  " speed is 300 / 2.5 = 120 km/h.\n\n"
  "Check: 120 km in one hour, 240 km in two, and 60 km in the last half hour;"
  " 240 + 60 = 300. That agrees.</think>\n<answer>120</answer>",
)
_PAIRS = (
  prompts.Shot(
    "25,22,13,19=35?",
    "<think>25+22=47:35 wrong wait 25+13=38:35 wrong wait 25+19=44:35 wrong"
    " wait 22+13=35:35 right</think><answer>22+13</answer>",
  ),
  prompts.Shot(
    "11,28,16,20=44?",
    "<think>11+28=39:44 wrong wait 11+16=27:44 wrong wait 11+20=31:44 wrong"
    " wait 28+16=44:44 right</think><answer>28+16</answer>",
  ),
)

EXAMPLES: dict[str, tuple[prompts.Shot, ...]] = {
  "word_problems": (_RECIPES, _TRAINS),
  "pair_sum": _PAIRS,
}


def load(
  name_or_directory: str | os.PathLike, count: int
) -> tuple[prompts.Shot, ...]:
  """The first `count` worked examples of a name in `EXAMPLES`, or of records.

  Args:
    name_or_directory: a name, or the directory of a dataset of records with
      `question` and `completion`.
    count: how many.

  Raises:
    ValueError: neither a name nor a dataset, or too few examples.
  """
  if name_or_directory in EXAMPLES:
    found = EXAMPLES[str(name_or_directory)]
  elif records.is_dataset(name_or_directory):
    rows = records.read(name_or_directory)[:count]
    if not {"question", "completion"} <= rows[0].keys():
      raise ValueError(
        f"The records of {name_or_directory} have no question and completion."
      )
    found = [prompts.Shot(row["question"], row["completion"]) for row in rows]
  else:
    raise ValueError(
      f"Worked examples {str(name_or_directory)!r} are neither a dataset of"
      f" records nor one of {', '.join(EXAMPLES)}."
    )
  if not 0 < count <= len(found):
    raise ValueError(
      f"{name_or_directory} has {len(found)} worked examples, and num_shots is"
      f" {count}."
    )
  return tuple(found[:count])
