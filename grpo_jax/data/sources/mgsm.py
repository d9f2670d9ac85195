"""MGSM: https://github.com/google-research/url-nlp, CC BY-SA 4.0."""

from collections.abc import Iterator, Mapping

from grpo_jax import errors
from grpo_jax.data import recipes
from grpo_jax.data.sources import local


def problems(
  *, language: str = "en", path: str | None = None
) -> recipes.Recipe:
  """250 problems of GSM8K's test split in one language; test split only.

  arXiv 2210.03057. Graded as GSM8K is: a number with a comma for the decimal
  point, or points or blanks between thousands, as German and French write them,
  is not understood. English problems are a part of GSM8K's test split.

  Args:
    language: as in the file's name, such as "de".
    path: a folder with mgsm_<language>.tsv; None looks in $GRPO_JAX_DATA/mgsm.
  """
  name = f"mgsm_{language}.tsv"
  folder = local.folder("MGSM", path, "mgsm", name)
  file = folder / name
  found = [f.stem.removeprefix("mgsm_") for f in folder.glob("mgsm_*.tsv")]
  if found and language not in found:
    raise ValueError(
      f"{folder} has no MGSM in {language!r}; {errors.nearest(language, found)}"
    )

  def records() -> Iterator[Mapping[str, str]]:
    with file.open(encoding="utf-8") as lines:
      for number, line in enumerate(lines, start=1):
        question, _, answer = line.strip().rpartition("\t")
        if not (question and answer):
          raise ValueError(
            f"{file}, line {number}: there must be a question, a tab and an"
            " answer."
          )
        yield {"question": question, "answer": answer}

  return recipes.Recipe(
    key=f"{language}-{recipes.content_hash([file])}",
    origin=str(file),
    fields=("question", "answer"),
    splits=lambda _: {"test": records()},
    convert=recipes.problem("mgsm"),
  )
