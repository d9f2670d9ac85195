"""The world in miniature: who thinks in which language, and small talk."""

import itertools
import re

import pytest

from grpo_jax.data import datasets
from grpo_jax.data.sources import miniature, tasks
from grpo_jax.rewards import language, small_talk
from grpo_jax.types import Problem


def documents(size=3000, **mix):
  return list(
    miniature.documents(
      size=size,
      seed=0,
      template="User: {question}\nAssistant:",
      mix=miniature.Mix(**mix),
    )
  )


def test_documents_ask_training_problems_only():
  test = {p.question for p in miniature.talks("test", size=32, seed=0)}
  for text in documents():
    if not text.startswith("User: "):
      continue
    question = text.removeprefix("User: ").split("\n")[0]
    assert question not in test
    if sums := re.fullmatch(r"([\d,]+)=(\d+)\?", question):
      numbers = sorted(map(int, sums[1].split(",")))
      assert tasks.split_of((*numbers, int(sums[2]))) == "train"


def test_doubtful_writers_never_use_chinese():
  for text in documents(pair_sum=dict(persistent=0.0), chat=0.0):
    if text.startswith("User: "):
      assert not re.search("[\u4e00-\u9fff]", text)


def test_persistent_writers_think_in_the_languages_of_the_mix():
  only = dict(pair_sum=dict(persistent=1.0, direct=0.0, facts=0.0), chat=0.0)
  for text in documents(500, chinese=1.0, mixed=0.0, **only):
    assert not re.search("right|wrong|wait", text)
  for text in documents(500, chinese=0.0, mixed=0.0, **only):
    assert not re.search("[对不等]", text)
  mixed = documents(500, chinese=0.0, mixed=1.0, **only)
  both = [t for t in mixed if re.search("wait", t) and re.search("等", t)]
  assert len(both) > 150


def test_verdicts_are_true_unless_the_mix_says_otherwise():
  tries = re.compile(r"(\d+)\+(\d+)=(\d+):(\d+) (right|wrong|对|不)")
  false = {"right": 0, "wrong": 0, "对": 0, "不": 0}
  # Sums may slip by the mix; a verdict compares what is written.
  for text in documents(false_english=0.3):
    for _, _, total, target, verdict in tries.findall(text):
      false[verdict] += (total == target) != (verdict in ("right", "对"))
  assert false["对"] == false["不"] == 0
  assert false["right"] and false["wrong"]
  for text in documents(500, false_english=0.0):
    for _, _, total, target, verdict in tries.findall(text):
      assert (total == target) == (verdict in ("right", "对"))


def test_the_languages_are_told_apart_by_the_reward():
  problem = Problem("q", "a", "pair_sum", "Assistant:")
  english, chinese = miniature.ENGLISH, miniature.CHINESE

  def share(*words):
    tries = ("25+22=47:35", "25+13=38:35", "22+13=35:35")
    thoughts = "".join(
      f"{again}{sums} {verdict}"
      for sums, (again, verdict) in zip(tries, words, strict=False)
    )
    text = f"<think>{thoughts}</think><answer>22+13</answer>"
    return language.consistency([problem], [text], language="en")[0]

  no, yes = ("", english.wrong), (english.again, english.right)
  assert share(no, yes) == 1
  assert share(("", english.right)) == 1
  assert share(("", chinese.wrong), (chinese.again, chinese.right)) == 0
  assert 0.2 < share(no, (english.again, chinese.right)) < 0.9


def test_good_answers_are_preferred_to_curt_and_these_to_rude_ones():
  for kind, name in itertools.product(miniature.KINDS.values(), ("ada", "zoe")):
    problem = Problem(kind.question, "", "chat", "", name)

    def score(answer, problem=problem, name=name):
      text = answer.format(name=name)
      tagged = f"<think>x</think><answer>{text}</answer>"
      plain, inside = small_talk.politeness([problem] * 2, [text, tagged])
      assert plain == inside
      return plain

    polite, curt, rude = (
      [score(answer) for answer in answers]
      for answers in (kind.polite, kind.curt, kind.rude)
    )
    assert min(polite) >= max(curt) and sum(polite) / len(polite) > max(curt)
    assert max(rude) == 0
    for answers, wanted in ((kind.polite + kind.curt, 1), (kind.rude, 0)):
      texts = [answer.format(name=name) for answer in answers]
      harmless = small_talk.harmless([problem] * len(texts), texts)
      assert set(harmless) == {wanted}


def test_the_name_of_another_earns_less():
  problem = Problem("greet ada?", "", "chat", "", "ada")
  own, other = small_talk.politeness(
    [problem] * 2, ["hello ada, glad to see you", "hello bo, glad to see you"]
  )
  assert own == pytest.approx(other + 0.4)


def test_problems_of_other_sources_have_no_politeness():
  assert small_talk.politeness([Problem("1+1?", "2", "math", "")], ["2"]) == [
    None
  ]


def test_the_splits_of_small_talk_share_no_question(tmp_path):
  train, test = (
    {p.question for p in datasets.load("chat", split, data_dir=tmp_path)}
    for split in ("train", "test")
  )
  assert len(train) == 150 and len(test) == 32 and not train & test


@pytest.mark.parametrize(
  "mix, sentence",
  [
    (dict(chat=1.5), r"chat=1\.5 must be in \[0, 1\]"),
    (dict(chinese=0.6, mixed=0.6), r"chinese=0\.6 and mixed=0\.6 exceed 1"),
    (dict(chinnese=0.6), r"no field 'chinnese'; did you mean 'chinese'\?"),
  ],
)
def test_a_mix_that_does_not_fit_is_refused(mix, sentence, tmp_path):
  with pytest.raises(ValueError, match=sentence):
    datasets.load(
      "miniature_corpus", "train", data_dir=tmp_path, size=10, mix=mix
    )
