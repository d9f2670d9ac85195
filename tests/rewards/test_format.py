"""The format rule, and words of reflection."""

import itertools

import pytest

from grpo_jax import types
from grpo_jax.rewards import format

PROBLEM = types.Problem("q", "a", "any", "User: q\nAssistant:")


def well_formed(completion, problem=PROBLEM):
  (value,) = format.well_formed([problem], [completion])
  return value


@pytest.mark.parametrize(
  "completion",
  [
    "<think>a</think><answer>b</answer>",
    " <think> a\nb </think>\n\n<answer> c </answer>\n",
    "<think>a < b > c <b>bold</b></think> <answer>1<2</answer>",
  ],
)
def test_thinking_and_then_an_answer_is_well_formed(completion):
  assert well_formed(completion) == 1.0


@pytest.mark.parametrize(
  "completion",
  [
    "",
    "a",
    "<think>a</think>",
    "<answer>b</answer>",
    "<think>a<answer>b</answer>",
    "a</think><answer>b</answer>",
    "<think></think><answer>b</answer>",
    "<think> \n </think><answer>b</answer>",
    "<think>a</think><answer> </answer>",
    "<answer>b</answer><think>a</think>",
    "so <think>a</think><answer>b</answer>",
    "<think>a</think> so <answer>b</answer>",
    "<think>a</think><answer>b</answer> so",
    "<think>a</think><answer>b</answer><answer>b</answer>",
    "<think>a</think><think>a</think><answer>b</answer>",
    "<think><think>a</think></think><answer>b</answer>",
    "<think>a<answer>b</answer></think>",
    "<think>a</think><answer><think>b</think></answer>",
    "<think>a</think><answer>b</answer></answer>",
    "<Think>a</Think><answer>b</answer>",
    "<think >a</think><answer>b</answer>",
    "< think>a</think><answer>b</answer>",
  ],
)
def test_anything_else_is_not(completion):
  assert well_formed(completion) == 0.0


def test_a_tag_that_the_prompt_opened_belongs_to_the_completion():
  problem = PROBLEM._replace(prompt="User: q\nAssistant: <think>\n")
  assert well_formed("a</think><answer>b</answer>", problem) == 1.0
  assert well_formed("<think>a</think><answer>b</answer>", problem) == 0.0


def test_a_prompt_that_only_explains_the_tags_opens_none():
  problem = PROBLEM._replace(prompt="Write <think> first. User: q\nAssistant:")
  assert well_formed("<think>a</think><answer>b</answer>", problem) == 1.0


def test_cutting_at_the_tags_loses_no_text():
  text = "a<think>b</think></answer> c <answer>"
  pieces = format.split_tags(PROBLEM, text)
  assert "".join(pieces) == text
  assert pieces[1::2] == ["<think>", "</think>", "</answer>", "<answer>"]


def test_words_of_reflection_are_counted_whole_and_in_any_case():
  text = "Wait, wait... However: re-check? CHECK! checked, waiting, butter but"
  assert format.reflection_words(text) == 6
  assert format.reflection_words("35+22=57:35 no wait 22+13=35:35 ok") == 1
  assert format.reflection_words("") == 0


def tag_count(completion):
  (value,) = format.tag_count([PROBLEM], [completion])
  return value


@pytest.mark.parametrize(
  "completion,value",
  [
    ("", 0.0),
    ("a", 0.0),
    ("<think>a", 0.25),
    ("<think>a</think>", 0.5),
    ("<think>a</think><answer>b", 0.75),
    ("<think>a</think><answer>b</answer>", 1.0),
    ("so <think>a</think><answer>b</answer>", 0.75),
    ("<think>a</think> so <answer>b</answer>", 0.5),
    ("<think>a</think><answer>b</answer> so", 0.75),
    ("<think></think><answer>b</answer>", 0.5),
    ("<think>a</think><answer> </answer>", 0.5),
    ("<think>a</think><answer>b</answer><answer>b</answer>", 0.5),
    ("<think>a<think>a</think></think><answer>b</answer>", 0.5),
    ("<answer>b</answer><think>a</think>", 0.5),
    ("<think><answer></answer></think>", 0.0),
    ("</answer></think><answer><think>", 0.0),
    ("<think>" * 9, 0.0),
  ],
)
def test_each_tag_in_its_place_counts_a_quarter(completion, value):
  assert tag_count(completion) == value


def test_all_tags_are_in_their_places_exactly_where_the_form_is_right():
  """Over every order of up to five tags, with and without text between."""
  tags = ["<think>", "</think>", "<answer>", "</answer>"]
  for count in range(6):
    for chosen in itertools.product(tags, repeat=count):
      for filled in (itertools.product if count < 5 else zip)(
        *[("", "x")] * (count + 1)
      ):
        text = filled[0] + "".join(
          map("".join, zip(chosen, filled[1:], strict=True))
        )
        assert (tag_count(text) == 1.0) == (well_formed(text) == 1.0), text


@pytest.mark.parametrize("blank", [".", "\u200b", "...", "\u2060 -", "、。"])
def test_a_thought_without_a_letter_or_digit_is_none(blank):
  text = f"<think>{blank}</think><answer>b</answer>"
  assert well_formed(text) == 0.0 and tag_count(text) == 0.5
  think = f"<think>{blank}</think>\n\nIt is 4."
  assert styled("think", think) == (0.0, 0.0)


@pytest.mark.parametrize("answer", ["\u200b", " \ufeff ", "\x00"])
def test_an_answer_that_cannot_be_seen_is_none(answer):
  assert well_formed(f"<think>a</think><answer>{answer}</answer>") == 0.0
  assert styled("think", f"<think>a</think>{answer}")[0] == 0.0


def test_answers_of_signs_and_thoughts_in_any_script_count():
  for answer in ("∅", "+", "√"):
    assert well_formed(f"<think>对</think><answer>{answer}</answer>") == 1.0


def styled(style, completion, prompt="User: q\nAssistant:"):
  """The reward of form and its softer version."""
  problems = [PROBLEM._replace(prompt=prompt)]
  (whole,) = format.well_formed(problems, [completion], style=style)
  (share,) = format.tag_count(problems, [completion], style=style)
  auto = [problems[0]._replace(form=style)]
  assert format.well_formed(auto, [completion]) == [whole]
  assert format.tag_count(auto, [completion]) == [share]
  assert (whole == 1.0) == (share == 1.0)
  return whole, share


@pytest.mark.parametrize(
  ("completion", "value"),
  [
    ("<think>\nso 4\n</think>\n\nThe answer is \\boxed{4}.", (1.0, 1.0)),
    ("<think>so</think><answer>4</answer>", (1.0, 1.0)),
    ("<think>so</think>", (0.0, 0.5)),
    ("<think>so", (0.0, 0.5)),
    ("<think></think>4", (0.0, 0.0)),
    ("so</think>4", (0.0, 0.5)),
    ("well <think>so</think>4", (0.0, 0.5)),
    ("<think>so</think>4<think>so</think>4", (0.0, 0.0)),
    ("<think><think>so</think></think>4", (0.0, 0.0)),
    ("The answer is 4.", (0.0, 0.0)),
  ],
)
def test_thinking_and_then_an_answer_in_no_tags(completion, value):
  """As DeepSeek-R1 and Qwen3 write by themselves."""
  assert styled("think", completion) == value


def test_thinking_that_the_prompt_has_begun_or_ended():
  opened = "<｜Assistant｜><think>\n"
  assert styled("think", "so\n</think>\n\n4", opened) == (1.0, 1.0)
  assert styled("think", "<think>so</think>4", opened)[0] == 0.0
  assert styled("think", "no end", opened) == (0.0, 0.5)
  ended = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
  assert styled("think", "It is 4.", ended) == (1.0, 1.0)
  assert styled("think", "so</think>4", ended) == (0.0, 0.0)
  assert styled("think", " ", ended) == (0.0, 0.0)
  assert styled("box", "\\boxed{4}", ended) == (1.0, 1.0)
  assert styled("box", "<think>so</think>\\boxed{4}", ended) == (0.0, 0.0)


@pytest.mark.parametrize(
  ("completion", "value"),
  [
    ("So it is \\boxed{4}.", (1.0, 1.0)),
    ("<think>so</think>It is \\boxed {\\frac{1}{2}}.", (1.0, 1.0)),
    ("It is 4.", (0.0, 0.0)),
    ("It is \\boxed{ }.", (0.0, 0.0)),
    ("<think>\\boxed{4}</think>It is 4.", (0.0, 2 / 3)),
    ("<think>\\boxed{4}", (0.0, 1 / 3)),
  ],
)
def test_an_answer_in_a_box(completion, value):
  whole, share = styled("box", completion)
  assert (whole, share) == (value[0], pytest.approx(value[1]))


def test_without_a_form_it_is_that_of_r1_zero():
  text = "<think>so</think>It is 4."
  assert format.well_formed([PROBLEM], [text]) == [0.0]
  assert format.well_formed([PROBLEM], [text], style="think") == [1.0]
