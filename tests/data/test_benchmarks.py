"""MGSM, HumanEval, MBPP and AIME: what is asked and how it is graded."""

import gzip
import json

import pytest

from grpo_jax.data import datasets
from grpo_jax.rewards import answer, language
from grpo_jax.rewards.isolation import sandbox


@pytest.fixture
def load(tmp_path):
  def load(name, split="test", **options):
    return datasets.load(name, split, data_dir=tmp_path / "kept", **options)

  return load


def write(path, *records):
  text = "".join(json.dumps(record) + "\n" for record in records)
  path.write_text(text, encoding="utf-8")
  return str(path)


def test_mgsm_asks_the_same_in_five_languages(load, shared_data):
  asked = {
    name: load("mgsm", language=name, path=str(shared_data / "mgsm"))
    for name in ("en", "de", "fr", "ja", "zh")
  }
  for name, problems in asked.items():
    assert len(problems) == 250
    assert [p.answer for p in problems] == [p.answer for p in asked["en"]]
    words = language.words_by_language(problems[3].question)
    assert max(words, key=words.get) == name
  assert asked["ja"][0].answer == "18"
  assert {p.source for p in asked["de"]} == {"mgsm"}
  right = answer.grades(asked["fr"][:2], ["#### 18", "<answer>3</answer>"])
  assert [g.score for g in right] == [1.0, 1.0]


def test_mgsm_is_found_by_the_variable(load, shared_data, monkeypatch):
  monkeypatch.setenv("GRPO_JAX_DATA", str(shared_data))
  assert len(load("mgsm", language="zh")) == 250
  with pytest.raises(ValueError, match="no MGSM in 'fe'.*'fr'"):
    load("mgsm", language="fe")


@pytest.mark.parametrize("name", ["mgsm", "humaneval", "mbpp"])
def test_what_is_not_downloaded_says_where_it_is_looked_for(
  name, load, monkeypatch
):
  monkeypatch.delenv("GRPO_JAX_DATA", raising=False)
  with pytest.raises(FileNotFoundError, match="option path, or set GRPO_JAX"):
    load(name)
  with pytest.raises(FileNotFoundError, match="is not a file"):
    load(name, path="nowhere")


def test_a_line_of_mgsm_without_an_answer_names_itself(load, tmp_path):
  (tmp_path / "mgsm_en.tsv").write_text("How many?\t3\nno answer here\n")
  with pytest.raises(ValueError, match="line 2: there must be"):
    load("mgsm", path=str(tmp_path))


def solutions(shared_data):
  """Question of HumanEval and code of MBPP to the right programs."""
  folder = shared_data / "code"
  with gzip.open(folder / "HumanEval.jsonl.gz", "rt") as file:
    right = [
      r["prompt"] + r["canonical_solution"] for r in map(json.loads, file)
    ]
  lines = (folder / "mbpp.jsonl").read_text().splitlines()
  records = [r for r in map(json.loads, lines) if 11 <= r["task_id"] <= 510]
  return right, [r["code"] for r in records]


def test_programs_are_right_where_they_pass_their_tests(load, shared_data):
  try:
    sandbox.check("namespaces")
  except sandbox.IsolationError as error:
    pytest.skip(str(error))
  path = str(shared_data / "code")
  problems = load("humaneval", path=path), load("mbpp", path=path)
  assert tuple(map(len, problems)) == (164, 500)
  for asked, right in zip(problems, solutions(shared_data), strict=True):
    fenced = [f"```python\n{p}\n```" for p in (right[3], right[5], "x = 1")]
    graded = answer.grades(
      [asked[3], asked[5], asked[3], asked[3]], [*fenced, "none"]
    )
    outcomes = [g.outcome for g in graded]
    assert outcomes == ["correct", "correct", "wrong", "no_answer"]
    answer.check(asked)


def test_mbpp_trains_on_other_problems_than_it_tests(load, shared_data):
  path = str(shared_data / "code")
  train, test = (load("mbpp", s, path=path) for s in ("train", "test"))
  assert (len(train), len(test)) == (374, 500)
  assert "assert remove_Occ(" in test[0].question
  assert not {p.answer for p in train} & {p.answer for p in test}


def test_humaneval_shows_the_start_and_not_the_tests(load, shared_data):
  problems = load("humaneval", path=str(shared_data / "code"))
  for problem in problems:
    assert "def " in problem.question
    assert "def check(" not in problem.question


def test_a_record_without_a_field_names_itself(load, tmp_path):
  write(tmp_path / "mbpp.jsonl", {"text": "Write.", "code": "pass"})
  with pytest.raises(ValueError, match="line 1: no field 'task_id'"):
    load("mbpp", path=str(tmp_path))


def test_aime_reads_integers_and_grades_boxes(load, tmp_path):
  path = write(
    tmp_path / "aime.jsonl",
    {"problem": "Find m+n.", "answer": 73},
    {"problem": "Find n.", "answer": "033"},
  )
  problems = load("aime", path=path)
  assert [p.answer for p in problems] == ["73", "33"]
  texts = [r"m=70, so \boxed{073}.", "<think>1</think> The answer is 34."]
  assert [g.score for g in answer.grades(problems, texts)] == [1.0, 0.0]


@pytest.mark.parametrize("bad", ["1000", "-3", "1/2", "$5$"])
def test_answers_that_no_aime_has_are_refused(bad, load, tmp_path):
  path = write(tmp_path / "a.jsonl", {"problem": "Find n.", "answer": bad})
  with pytest.raises(ValueError, match="line 1: 'answer' is .* 0 to 999"):
    load("aime", path=path)


def test_aime_needs_a_file(load):
  with pytest.raises(ValueError, match="aime needs the option 'path'"):
    load("aime")


def test_math_500_and_a_file_of_the_users_are_graded(
  load, shared_data, tmp_path
):
  """Both were readable before; here they are asked and graded."""
  problems = load("math", path=str(shared_data / "math"))
  assert len(problems) == 500
  assert (
    answer.grades(problems[:1], [rf"\boxed{{{problems[0].answer}}}"])[0].score
    == 1.0
  )
  path = write(tmp_path / "mine.jsonl", {"question": "2+2?", "answer": 4})
  mine = load("jsonl", "train", path=path)
  texts = ["It is 4.", "It is 5."]
  graded = answer.grades([mine[0], mine[0]], texts)
  assert [g.score for g in graded] == [1.0, 0.0]
