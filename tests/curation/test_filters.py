"""Each filter drops what it is named for, and nothing beside it."""

import json

import pytest

from grpo_jax import errors, types
from grpo_jax.curation import filters

PROBLEM = types.Problem("25,22,13,19=35?", "22+13", "pair_sum", "")
GOOD = "<think>We add and check.\n\nIt holds.</think> <answer>22+13</answer>"
ENGLISH = "First we add the two numbers, and then we compare with the target."
CHINESE = "我们先把两个数加起来，然后再检查结果是不是对的，最后写出答案。"


def dropped(name, completion, options=True, problem=PROBLEM, **given):
  (rule,) = filters.read({name: options})
  return filters.dropped_by([rule], problem, completion, given) == name


def thought(text, answer="4"):
  return f"<think>{text}</think><answer>{answer}</answer>"


def test_a_good_completion_passes_all():
  every = filters.read(dict.fromkeys(filters.FILTERS, True))
  text = thought(" ".join([ENGLISH] * 5))
  given = dict(truncated=False, kept=["another"])
  assert filters.dropped_by(every, PROBLEM, text, given) is None
  assert [rule.name for rule in every] == list(filters.FILTERS)


def test_what_ran_out_of_room_is_dropped():
  assert dropped("truncated", GOOD, truncated=True)
  assert not dropped("truncated", GOOD, truncated=False)


@pytest.mark.parametrize(
  "text, unreadable, bad_format",
  [
    (GOOD, False, False),
    ("<think>So.</think>\n\nThe answer is 4.", False, True),
    ("<think>So.<answer>4</answer>", True, True),
    ("So.</think><answer>4</answer>", True, True),
    ("<think> </think><answer>4</answer>", True, True),
    ("<think>So.</think>", True, True),
    ("<think>So.</think><answer> </answer>", True, True),
    ("<think>a</think><think>b</think><answer>4</answer>", True, True),
    ("4", True, True),
    ("<think>So \ufffd.</think><answer>4</answer>", True, False),
    ("<think>So \x1b[1m.</think><answer>4</answer>", True, False),
    ("<think>所以\n\t是四 🙂</think><answer>4</answer>", False, False),
    (GOOD + " And more.", False, True),
  ],
)
def test_thinking_and_then_an_answer_is_readable(text, unreadable, bad_format):
  assert dropped("unreadable", text) == unreadable
  assert dropped("bad_format", text) == bad_format


def test_thinking_that_the_prompt_began_is_readable():
  problem = PROBLEM._replace(prompt="User: 1+1?\nAssistant:<think>")
  text = GOOD.removeprefix("<think>")
  assert not dropped("unreadable", text, problem=problem)
  assert dropped("unreadable", text)


def test_few_words_of_thinking_are_brief():
  options = dict(least=5)
  assert dropped("brief", thought("just a guess"), options)
  assert not dropped("brief", thought("25+22=47:47 right"), options)
  # Words of the answer do not count.
  assert dropped("brief", thought("a guess", "one two three four"), options)


@pytest.mark.parametrize(
  "text, mixed",
  [
    (ENGLISH, False),
    (CHINESE, True),
    (f"{ENGLISH} {CHINESE}", True),
    (f"{ENGLISH} 3+4=7", False),
    ("3+4=7", False),  # No words, nothing mixed.
  ],
)
def test_mixed_languages_are_dropped(text, mixed):
  assert dropped("mixed_language", thought(text)) == mixed
  # What is said in the answer is not asked.
  assert not dropped("mixed_language", thought(ENGLISH, CHINESE))


def test_the_share_and_the_language_can_be_chosen():
  text = thought(f"{ENGLISH} {CHINESE}")
  assert not dropped("mixed_language", text, dict(least=0.3))
  question = PROBLEM._replace(question=CHINESE)
  options = dict(language="question")
  assert not dropped("mixed_language", thought(CHINESE), options, question)
  assert dropped("mixed_language", thought(ENGLISH), options, question)
  few = thought("1+1=3 不 等 1+2=3 right")
  assert dropped("mixed_language", few, dict(among=("en", "zh")))


def test_paragraphs_are_measured_between_blank_lines():
  paragraph = "x" * 60
  options = dict(most=100)
  assert not dropped("long_paragraph", f"{paragraph}\n \n{paragraph}", options)
  assert dropped("long_paragraph", f"{paragraph}\n{paragraph}", options)


@pytest.mark.parametrize(
  "text, code",
  [
    ("We run\n```python\nprint(1)\n```", True),
    ("  ~~~\nx\n~~~", True),
    ("The sign `x` and x ``` y stand within a line.", False),
  ],
)
def test_fenced_code_is_dropped(text, code):
  assert dropped("code_block", text) == code


def test_a_kept_completion_comes_once():
  kept = ["It is  4.", "No: ５."]
  assert dropped("duplicate", "it IS 4.\n", kept=kept)
  assert dropped("duplicate", "no: 5.", kept=kept)
  assert not dropped("duplicate", "it is 4", kept=kept)
  assert not dropped("duplicate", "it is 4.", kept=[])


@pytest.mark.parametrize("most", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_near_duplicates_are_told_by_their_runs_of_words(most):
  """Two texts that share three of five pairs of words."""
  texts = "a b c d e", "a b c d f"
  pairs = [{tuple(text.split()[i : i + 2]) for i in range(4)} for text in texts]
  similarity = len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
  assert similarity == 3 / 5
  options = dict(n=2, most=most)
  for one, other in (texts, reversed(texts)):
    found = dropped("near_duplicate", one, options, kept=["z", other])
    assert found == (similarity > most)


def test_texts_shorter_than_a_run_are_alike_if_their_words_are():
  assert dropped("near_duplicate", "A b!", kept=["a b"])
  assert not dropped("near_duplicate", "a c", kept=["a b"])
  assert dropped("near_duplicate", "?", kept=["!"])
  assert not dropped("near_duplicate", "a", kept=["!"])


def test_options_may_be_left_to_their_defaults():
  (rule,) = filters.read({"code_block": {}})
  assert rule.name == "code_block"
  assert filters.read({"code_block": False}) == []


def test_filters_that_compare_come_last():
  given = dict.fromkeys(reversed(filters.FILTERS), True)
  names = [rule.name for rule in filters.read(given)]
  assert names[-2:] == ["duplicate", "near_duplicate"]
  assert filters.read(given | {"truncated": False})[0].name == "unreadable"


@pytest.mark.parametrize(
  "section, sentence",
  [
    (
      {"code_blocks": True},
      "no filter 'code_blocks'; did you mean",
    ),
    ({"truncated": dict(truncated=True)}, "truncated has no field 'truncated'"),
    ({"bad_format": dict(most=1)}, "bad_format has no field 'most'"),
    ({"long_paragraph": 5}, "must be True, False or a section"),
    ({"mixed_language": dict(lang="en")}, "did you mean"),
    ({"mixed_language": dict(language="xx")}, "filters.mixed_language: lang"),
    ({"near_duplicate": dict(most=2)}, "filters.near_duplicate: n=5 must"),
  ],
)
def test_what_does_not_fit_is_one_sentence(section, sentence):
  with pytest.raises(errors.ConfigError, match=sentence):
    filters.read(section)


def test_real_chains_of_thought_have_no_long_paragraphs(shared_data):
  """125 of Marco-o1 and 56 of a distilled R1, none of which has code."""
  path = shared_data / "long_cot" / "marco_o1_CoT_demo.json"
  texts = [r["response"] for r in json.loads(path.read_text("utf-8"))]
  path = shared_data / "rollouts" / "graded_groups.jsonl"
  lines = path.read_text("utf-8").splitlines()
  texts += [json.loads(line)["completion"] for line in lines]
  assert len(texts) == 181
  assert not any(dropped("long_paragraph", text) for text in texts)
  long = [dropped("long_paragraph", text, dict(most=500)) for text in texts]
  assert 20 < sum(long) < 120
