"""Completions made readable say what they said."""

import os

import pytest
from judge_server import chat, serving

from grpo_jax import errors, types
from grpo_jax.curation import rewriting
from grpo_jax.rewards import format

PROBLEM = types.Problem("25,22,13,19=35?", "22+13", "pair_sum", "")
WORDS = (("不", "wrong"), ("等", "wait"), ("对", "right"), ("不对", "no"))


@pytest.mark.parametrize(
  "text, expected",
  [
    (
      "25+22=47:35 不 等 22+13=35:35 对",
      "25+22=47:35 wrong wait 22+13=35:35 right",
    ),
    ("35对</think>", "35right</think>"),
    ("不对, 不", "no, wrong"),
    ("不是", "不是"),  # Another word.
    ("等 等等", "wait 等等"),
  ],
)
def test_words_are_replaced_where_they_stand_alone(text, expected):
  assert rewriting.rewrite([PROBLEM], [text], words=WORDS) == [expected]


def test_nothing_is_replaced_twice():
  table = {"a": "b", "b": "c"}
  assert rewriting.with_words("a b a", table) == "b c b"


WHOLE = "<think>T</think><answer>A</answer>"


@pytest.mark.parametrize(
  "text",
  [
    WHOLE,
    " <think> T </think>\n<answer> A </answer> ",
    "T</think><answer>A</answer>",
    "<think>T<answer>A</answer>",
    "<think>T</think>A",
    "<think>T</think>A</answer>",
    "<think>T</think><answer>A",
    "T<answer>A</answer>",
    "T</think>A",
    "<think>T<answer>A",
  ],
)
def test_missing_tags_are_put_in(text):
  assert rewriting.retagged(text) == WHOLE
  assert rewriting.rewrite([PROBLEM], [text], retag=True) == [WHOLE]
  assert format.well_formed([PROBLEM], [WHOLE]) == [1.0]


@pytest.mark.parametrize(
  "text",
  [
    "T so A",
    "<think>T",
    "T</answer>",
    "x<think>T</think><answer>A</answer>",
    "<think>T</think>x<answer>A</answer>",
    "<think>T</think><answer>A</answer>x",
    "<think>T</think><think>T</think><answer>A</answer>",
    "<answer>A</answer><think>T</think>",
    "<think></think><answer>A</answer>",
    "<think>T</think><answer></answer>",
    "",
  ],
)
def test_what_cannot_be_told_is_left_as_it_is(text):
  assert rewriting.retagged(text) == text


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  for name in list(os.environ):
    if name.lower().endswith("_proxy"):
      monkeypatch.delenv(name)


def shown(prompt):
  """The mark and the text that the model is shown."""
  tag = prompt.partition("\nBEGIN ")[2].partition("\n")[0]
  return tag, prompt.partition(f"BEGIN {tag}\n")[2].partition(f"\nEND {tag}")[0]


def test_a_model_writes_anew_between_its_marks():
  def behave(handler, prompt, number):
    tag, text = shown(prompt)
    assert PROBLEM.question in prompt
    new = f"BEGIN {tag}\n{text.upper()}\nin two lines\nEND {tag}\nDone."
    reply = {
      "good": new,
      "cut": new.partition("\nEND")[0],
      "twice": f"{new}\n{new}",
      "other mark": new.replace(tag, "0" * len(tag)),
      "empty": f"BEGIN {tag}\n\nEND {tag}",
    }[text]
    handler.answer(chat(f"I think.\n{reply}"))

  texts = ["good", "cut", "twice", "other mark", "empty"]
  with serving(behave) as server:
    model = dict(url=server.url, model="m", deadline=10.0, backoff=0.01)
    model["request"] = dict(temperature=0.0)
    found = rewriting.rewrite([PROBLEM] * 5, texts, model=model)
    assert server.requests[0][2]["temperature"] == 0.0
  assert found == ["GOOD\nin two lines", None, None, None, None]


def test_a_model_that_is_not_there_gives_none():
  with serving(lambda handler, prompt, number: None) as server:
    url = server.url
  model = dict(url=url, model="m", deadline=1.0, attempts=1)
  assert rewriting.rewrite([PROBLEM], ["x"], model=model) == [None]


@pytest.mark.parametrize(
  "section, sentence",
  [
    (dict(word=()), "no field 'word'; did you mean 'words'"),
    (
      dict(words=("不", "no")),
      "must be pairs of a word and what stands",
    ),
    (dict(words=((" ", "no"),)), "must be pairs"),
    (dict(model=dict(url="http://x/v1")), "model lacks the field 'model'"),
    (dict(model=dict(url="x", model="m")), r"rewrite.model: The judge's url"),
    (dict(model=dict(url="http://x/v1", modle="m")), "no field 'modle'"),
  ],
)
def test_what_does_not_fit_is_one_sentence(section, sentence):
  with pytest.raises(errors.ConfigError, match=sentence):
    rewriting.check(section, "ways.zero.rewrite")


def test_a_template_must_show_what_is_rewritten(tmp_path):
  path = tmp_path / "t.txt"
  path.write_text("{question} {tag}")
  model = dict(url="http://127.0.0.1:9/v1", model="m", template=str(path))
  with pytest.raises(errors.ConfigError, match=r"no \{completion\}"):
    rewriting.check(dict(model=model), "ways.zero.rewrite")
