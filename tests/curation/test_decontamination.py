"""Texts that share words in a row with test sets."""

import itertools
import json
import random

import pytest

from grpo_jax.curation import decontamination
from grpo_jax.data import datasets


def shares(text, questions, n):
  """Slow: any n words in a row of a question are in the text; or all of few."""
  words = decontamination.words(text)
  for question in questions:
    other = decontamination.words(question)
    if len(other) < n:
      if other == words:
        return True
      continue
    for i, j in itertools.product(range(len(words)), range(len(other))):
      run = words[i : i + n]
      if len(run) == n and run == other[j : j + n]:
        return True
  return False


@pytest.mark.parametrize("n", [1, 3, 4])
def test_finds_what_a_slow_search_finds(n):
  rng = random.Random(n)
  texts = [
    " ".join(rng.choices("abcdef", k=rng.randint(1, 9))) for _ in range(150)
  ]
  tests, others = texts[:20], texts[20:]
  index = decontamination.make_index({"t": tests}, n)
  found = [decontamination.find(index, text) == "t" for text in others]
  assert found == [shares(text, tests, n) for text in others]
  assert 0 < sum(found) < len(found) or n == 1


def test_case_signs_and_width_do_not_matter():
  index = decontamination.make_index({"a": ["What is 17 + 25, Ann?"]}, 5)
  assert decontamination.find(index, "so: WHAT IS “17”－２５ ann!") == "a"
  assert decontamination.find(index, "what is 17 + 26, Ann?") is None


def test_a_short_question_is_found_by_all_its_words_only():
  index = decontamination.make_index({"a": ["25,22,13,19=35?"]})
  assert decontamination.find(index, "25, 22, 13, 19 = 35 ?") == "a"
  assert decontamination.find(index, "25,22,13,19=38?") is None
  assert decontamination.find(index, "so 25,22,13,19=35? it is") is None


def test_the_first_set_that_has_the_wording_is_named():
  index = decontamination.make_index({"a": ["x y z"], "b": ["x y z", "p q"]}, 2)
  assert decontamination.find(index, "w x y") == "a"
  assert decontamination.find(index, "p q r") == "b"


def test_words_of_scripts_without_blanks_are_characters():
  assert decontamination.words("今天3个苹果 apples") == [
    *"今天3个苹果",
    "apples",
  ]


def test_words_in_a_row_must_be_at_least_one():
  with pytest.raises(ValueError, match="n=0 must be at least 1"):
    decontamination.make_index({}, 0)


def test_mgsm_in_english_is_all_of_gsm8k_s_test_split(shared_data, tmp_path):
  load = datasets.load
  gsm8k = load(
    "gsm8k", split="test", path=str(shared_data / "gsm8k"), data_dir=tmp_path
  )
  index = decontamination.make_index({"gsm8k": [p.question for p in gsm8k]})
  for language, expected in (("en", 250), ("de", 0), ("zh", 0)):
    problems = load(
      "mgsm",
      split="test",
      language=language,
      path=str(shared_data / "mgsm"),
      data_dir=tmp_path,
    )
    found = [decontamination.find(index, p.question) for p in problems]
    assert found.count("gsm8k") == expected


def test_figures_of_the_docstring(shared_data):
  """Training questions that share n words in a row with their test split."""

  def lines(name, field):
    path = shared_data / name
    return [json.loads(x)[field] for x in path.read_text("utf-8").splitlines()]

  math = json.loads((shared_data / "math/train.json").read_text("utf-8"))
  sets = {
    "GSM8K": (
      lines("gsm8k/train.jsonl", "question"),
      lines("gsm8k/test.jsonl", "question"),
    ),
    "MATH": (
      [record["problem"] for record in math],
      lines("math/math500.jsonl", "problem"),
    ),
  }
  for name, (train, test) in sets.items():
    row = next(
      line
      for line in decontamination.__doc__.splitlines()
      if line.strip().startswith(f"{name}, {len(train):,}")
    )
    index = decontamination.make_index({"test": test}, 10)
    found = sum(decontamination.find(index, text) is not None for text in train)
    assert row.split()[-4:][1] == str(found)
