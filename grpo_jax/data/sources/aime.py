"""AIME: fifteen problems a paper, whose answers are integers from 0 to 999."""

import pathlib
from collections.abc import Iterator, Mapping

from grpo_jax.data import recipes
from grpo_jax.data.sources import user_files


def problems(
  *, path: str, question: str = "problem", answer: str = "answer"
) -> recipes.Recipe:
  r"""Problems of the American Invitational Mathematics Examination; test only.

  They are not downloaded: the organizers publish them as pages and not as a
  file, so a file of yours is needed. Graded as MATH is, which reads `\boxed{}`.

  Args:
    path: a file of JSON lines.
    question: name of the field with the problem.
    answer: name of the field with the answer, such as 73 or "073".
  """
  file = pathlib.Path(path)

  def records() -> Iterator[Mapping[str, str]]:
    for line, record in user_files.read_jsonl(file, (question, answer)):
      value = record[answer].strip()
      if not (value.isascii() and value.isdigit() and int(value) <= 999):
        raise ValueError(
          f"{file}, line {line}: {answer!r} is {value!r}; answers of AIME are"
          " integers from 0 to 999."
        )
      yield {"question": record[question], "answer": str(int(value))}

  options = recipes.fingerprint(question, answer)
  return recipes.Recipe(
    key=f"{recipes.content_hash([file])}-{options}",
    origin=path,
    fields=("question", "answer"),
    splits=lambda _: {"test": records()},
    convert=recipes.problem("aime"),
  )
