"""MATH: https://github.com/hendrycks/math, MIT licence."""

import json
from collections.abc import Iterator, Mapping

from grpo_jax.data import recipes
from grpo_jax.data.sources import local, user_files


def problems(*, path: str | None = None) -> recipes.Recipe:
  """Competition problems with final answers: MATH's, tested on MATH-500.

  Training problems that are also in MATH-500, repeat an earlier one or have no
  answer are left out.

  Args:
    path: a folder with train.json, a list of objects with "problem" and
      "answer", and math500.jsonl, one such object per line; None looks in
      $GRPO_JAX_DATA/math.
  """
  folder = local.folder("MATH", path, "math", "train.json and math500.jsonl")
  files = {"train": folder / "train.json", "test": folder / "math500.jsonl"}
  key = f"local-{recipes.content_hash(files.values())}"

  def records(split: str) -> Iterator[Mapping[str, str]]:
    lines = user_files.read_jsonl(files["test"], ("problem", "answer"))
    test = [record for _, record in lines]
    if split == "test":
      chosen = test
    else:
      chosen = json.loads(files["train"].read_text(encoding="utf-8"))
    seen = set() if split == "test" else {r["problem"].strip() for r in test}
    for record in chosen:
      if record["answer"] and record["problem"].strip() not in seen:
        seen.add(record["problem"].strip())
        yield {"question": record["problem"], "answer": record["answer"]}

  return recipes.Recipe(
    key=key,
    origin=str(folder),
    fields=("question", "answer"),
    splits=lambda _: {split: records(split) for split in files},
    convert=recipes.problem("math"),
  )
