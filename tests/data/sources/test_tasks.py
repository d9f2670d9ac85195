"""Built-in tasks: splits that cannot meet, documents as their mix says."""

import itertools
import re

import pytest

from grpo_jax.data import prompts
from grpo_jax.data.sources import tasks

TEMPLATE = prompts.TEMPLATES["plain"]
QUESTION = re.compile(r"(\d+),(\d+),(\d+),(\d+)=(\d+)\?")
ASKED = {
  "pair_sum": re.compile(r"\d+,\d+,\d+,\d+=\d+\?"),
  "addition": re.compile(r"\d+\+\d+=\?"),
}
TRY = re.compile(r"(\d+)\+(\d+)=(\d+):(\d+) (ok|no)")


def canonical(task, question):
  numbers = list(map(int, re.findall(r"\d+", question)))
  if task == "pair_sum":
    return (*sorted(numbers[:4]), numbers[4])
  return tuple(sorted(numbers))


def documents(size=4000, seed=0, **mix):
  return list(
    tasks.corpus(
      "pair_sum",
      size=size,
      seed=seed,
      template=TEMPLATE,
      mix=tasks.PairSumMix(**mix),
    )
  )


@pytest.mark.parametrize("task", tasks.TASKS)
def test_splits_of_different_seeds_have_no_problem_in_common(task):
  seen = {}
  for split, size in (("train", 3000), ("test", 400)):
    seen[split] = set()
    for seed in range(3):
      posed = tasks.problems(task, split, size=size, seed=seed)
      seen[split] |= {canonical(task, p.question) for p in posed}
  assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_document_asks_a_test_problem(task):
  asked = 0
  for seed in range(2):
    for text in tasks.corpus(task, size=5000, seed=seed, template=TEMPLATE):
      for question in ASKED[task].findall(text):
        asked += 1
        assert tasks.split_of(canonical(task, question)) == "train"
  assert asked > 5000


def test_the_splits_hold_nine_tenths_and_one():
  every = list(itertools.islice(tasks.TASKS["pair_sum"].canonical(), 20000))
  share = sum(tasks.split_of(c) == "test" for c in every) / len(every)
  assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("split", tasks.SPLITS)
def test_problems_differ_and_follow_their_seed(task, split):
  posed = tasks.problems(task, split, size=400, seed=1)
  assert len({canonical(task, p.question) for p in posed}) == 400
  assert posed == tasks.problems(task, split, size=400, seed=1)
  assert posed != tasks.problems(task, split, size=400, seed=2)
  assert all(p.source == task and p.prompt == "" for p in posed)


def test_the_reference_answer_of_pair_sum_is_right():
  for problem in tasks.problems("pair_sum", "train", size=1000, seed=0):
    *numbers, target = map(int, QUESTION.fullmatch(problem.question).groups())
    a, b = map(int, problem.answer.split("+"))
    assert len(set(numbers)) == 4 and all(10 <= n < 40 for n in numbers)
    assert a in numbers and b in numbers and a != b and a + b == target


def test_the_reference_answer_of_addition_is_right():
  for problem in tasks.problems("addition", "test", size=300, seed=0):
    a, b = map(int, re.fullmatch(r"(\d+)\+(\d+)=\?", problem.question).groups())
    assert int(problem.answer) == a + b


def test_more_problems_than_there_are_is_an_error():
  with pytest.raises(ValueError, match="test split of addition has 413"):
    tasks.problems("addition", "test", size=10**6, seed=0)
  with pytest.raises(ValueError, match="'dev'"):
    tasks.problems("addition", "dev", size=1, seed=0)


def test_a_corpus_follows_its_seed():
  assert documents(seed=3, size=100) == documents(seed=3, size=100)
  assert documents(seed=3, size=100) != documents(seed=4, size=100)


def test_without_slips_every_sum_and_every_verdict_is_right():
  for text in documents(slips=0.0, truncated=0.0):
    for a, b, total, target, verdict in TRY.findall(text):
      assert int(a) + int(b) == int(total)
      assert (verdict == "ok") == (total == target)


def test_verdicts_follow_the_sum_as_written_also_after_a_slip():
  slips = tries = 0
  for text in documents(facts=0.0, direct=0.0, slips=0.2, truncated=0.0):
    for a, b, total, target, verdict in TRY.findall(text):
      tries += 1
      slips += int(a) + int(b) != int(total)
      assert (verdict == "ok") == (total == target)
  assert slips / tries == pytest.approx(0.2, abs=0.02)


def test_the_proportions_are_those_of_the_mix():
  mix = dict(
    facts=0.3,
    direct=0.5,
    persistent=0.2,
    go_on_doubtful=0.0,
    go_on_persistent=1.0,
    bad_direct=0.4,
    bad_thinking=0.4,
    truncated=0.0,
    slips=0.0,
  )
  texts = documents(size=10000, **mix)
  asking = [t for t in texts if t.startswith("User:")]
  share = 1 - len(asking) / len(texts)
  assert share == pytest.approx(0.3, abs=0.02)
  direct = [t for t in asking if "maybe" in t]
  assert len(direct) / len(asking) == pytest.approx(0.5, abs=0.02)
  # Doubtful writers never go on here, so whoever waits is persistent, and
  # persistent ones stop at the first try only if it is right.
  waiting = [t for t in asking if " wait " in t]
  assert 0.14 < len(waiting) / len(asking) < 0.2
  good = re.compile(r"Assistant:<think>[^<]+</think><answer>[^<]+</answer>$")
  share = sum(bool(good.search(t)) for t in asking) / len(asking)
  assert share == pytest.approx(0.6, abs=0.02)
  facts = [t for t in texts if not t.startswith("User:")]
  verdicts = [v for t in facts for *_, v in TRY.findall(t)]
  assert verdicts.count("ok") / len(verdicts) == pytest.approx(0.5, abs=0.02)
  counts = {len(TRY.findall(t)) for t in facts}
  assert counts == set(range(1, tasks.PairSumMix().facts_per_document + 1))


def test_a_right_sum_ends_the_search_and_is_the_answer():
  for text in documents(facts=0.0, direct=0.0, bad_thinking=0.0, truncated=0.0):
    tries = TRY.findall(text)
    assert all(verdict == "no" for *_, verdict in tries[:-1])
    a, b, _, _, verdict = tries[-1]
    answer = re.search(r"<answer>(\d+)\+(\d+)</answer>$", text).groups()
    if verdict == "ok":
      assert answer == (a, b)


def test_persistent_writers_always_find_the_pair():
  sure = dict(direct=0.0, persistent=1.0, go_on_persistent=1.0, slips=0.0)
  for text in documents(facts=0.0, truncated=0.0, **sure):
    assert TRY.findall(text)[-1][-1] == "ok"


@pytest.mark.parametrize(
  ("field", "value"),
  [("facts", 1.2), ("slips", -0.1), ("facts_per_document", 0)],
)
def test_a_proportion_out_of_range_is_named(field, value):
  with pytest.raises(ValueError, match=field):
    tasks.PairSumMix(**{field: value})


def test_writers_that_exceed_the_whole_are_an_error():
  with pytest.raises(ValueError, match="exceed 1"):
    tasks.PairSumMix(direct=0.7, persistent=0.5)
