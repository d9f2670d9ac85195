"""The share of a chain of thought in one language."""

import time

import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.rewards import combine, language

FIVE = ("en", "de", "fr", "zh", "ja")
PROBLEM = types.Problem("How many apples does she have?", "1", "gsm8k", "")
ENGLISH = "We add the apples and then divide them among her friends."
GERMAN = "Wir addieren die Äpfel und teilen sie dann unter ihren Freunden auf."
CHINESE = "我们先把苹果加起来，然后分给她的朋友们。"
JAPANESE = "まずりんごを足して、それから友達に分けます。"


def share(text, code):
  amounts = language.words_by_language(text)
  return amounts.get(code, 0.0) / max(sum(amounts.values()), 1e-9)


def consistency(completion, code="en", problem=PROBLEM):
  (score,) = language.consistency([problem], [completion], language=code)
  return score


@pytest.fixture(scope="module")
def mgsm(shared_data):
  """250 questions in each of five languages, in the same order."""
  return {
    code: [
      line.partition("\t")[0]
      for line in (shared_data / "mgsm" / f"mgsm_{code}.tsv")
      .read_text(encoding="utf-8")
      .splitlines()
    ]
    for code in FIVE
  }


@pytest.mark.parametrize("code", FIVE)
def test_mgsm_is_in_its_own_language_and_in_no_other(mgsm, code):
  shares = [[share(q, other) for other in FIVE] for q in mgsm[code]]
  means = dict(zip(FIVE, np.mean(shares, axis=0), strict=True))
  assert means.pop(code) > 0.95
  assert max(means.values()) < 0.1
  # Not only the mean: nearly every question by itself.
  own = [row[FIVE.index(code)] for row in shares]
  assert sum(value > 0.95 for value in own) >= 0.97 * len(own)
  others = [
    max(row[:i] + row[i + 1 :]) for row in shares for i in [FIVE.index(code)]
  ]
  assert sum(value < 0.1 for value in others) >= 0.97 * len(others)


@pytest.mark.parametrize("first", FIVE)
@pytest.mark.parametrize("second", FIVE)
def test_half_of_mgsm_in_each_of_two_languages_scores_near_a_half(
  mgsm, first, second
):
  if first == second:
    return
  pairs = list(zip(mgsm[first], mgsm[second], strict=True))[::5]
  shares = [share(f"{a} {b}", first) for a, b in pairs]
  assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
  "text,code",
  [
    ("Мы складываем яблоки и делим их между друзьями.", "ru"),
    ("Ми складаємо яблука і ділимо їх між друзями.", "uk"),
    ("우리는 사과를 더한 다음 친구들에게 나누어 줍니다.", "ko"),
    ("हम सेबों को जोड़ते हैं और फिर दोस्तों में बाँट देते हैं।", "hi"),
    ("نجمع التفاحات ثم نقسمها على أصدقائها.", "ar"),
    ("Προσθέτουμε τα μήλα και τα μοιράζουμε.", "el"),
    ("אנחנו מחברים את התפוחים ומחלקים אותם.", "he"),
    ("เรานำแอปเปิลมารวมกันแล้วแบ่งให้เพื่อน", "th"),
    ("Sumamos las manzanas y luego las repartimos entre sus amigos.", "es"),
    ("Somiamo le mele e poi le dividiamo tra i suoi amici.", "it"),
    ("Elmaları topluyoruz ve sonra arkadaşlarına bölüştürüyoruz.", "tr"),
    ("Chúng ta cộng số táo rồi chia cho bạn bè của cô ấy.", "vi"),
  ],
)
def test_other_languages_and_scripts_are_told_apart(text, code):
  assert share(text, code) > 0.95


def test_thai_and_hindi_marks_do_not_cut_words():
  assert language.words_by_language("हिन्दी में") == {"hi": 2.0}


@pytest.mark.parametrize(
  "aside",
  [
    r"$\text{nicht gezählte Wörter in einer Formel}$",
    r"\[ \text{nicht gezählte Wörter in einer Formel} \]",
    r"\( \text{nicht gezählte Wörter} \)",
    "$$ x = \\text{nicht gezählte Wörter} $$",
    "\\begin{align} nicht &= gezählte \\\\ Wörter \\end{align}",
    "```python\nnicht = gezählte + Wörter\n```",
    "```\nnicht gezählte Wörter, die kein Ende haben",
    "`nicht gezählte Wörter`",
    "https://nicht.example/gezählte/wörter",
    "1 234 567.89 % 3/4 x y z + = ≤ ∑ 😀",
    "<b> </b>",
  ],
)
def test_code_formulas_numbers_and_links_are_left_out(aside):
  plain = language.words_by_language(ENGLISH)
  assert language.words_by_language(f"{ENGLISH} {aside}") == plain
  assert plain == {"en": 11.0}


def test_prices_are_no_formulas():
  text = "She pays $2 for each of the apples and $3 for every one of the pears."
  assert language.words_by_language(text) == {"en": 14.0}


def test_short_remarks_take_a_language_that_the_text_has():
  assert share(f"{GERMAN}\nOk, also.\n{GERMAN}\nProbe:", "de") == 1.0
  assert share(f"{JAPANESE}\n合計\n{JAPANESE}", "ja") == 1.0
  assert share(f"{CHINESE}\n合計\n{CHINESE}", "zh") == 1.0


def test_only_the_thoughts_count():
  completion = f"<think>{ENGLISH}</think><answer>{GERMAN}</answer>"
  assert consistency(completion) == 1.0
  assert consistency(completion, "de") == 0.0
  assert consistency(f"<think>{GERMAN}</think>{ENGLISH}") == 0.0


def test_a_thought_without_tags_or_end_is_read_as_far_as_it_goes():
  assert consistency(f"<think>{ENGLISH}") == 1.0
  assert consistency(ENGLISH) == 1.0
  assert consistency(f"{ENGLISH}<answer>{GERMAN}</answer>") == 1.0
  assert consistency(f"{ENGLISH}</think><answer>{GERMAN}</answer>") == 1.0
  prompted = PROBLEM._replace(prompt="Solve it. <think>\n")
  completion = f"{ENGLISH}</think><answer>{GERMAN}</answer>"
  assert consistency(completion, problem=prompted) == 1.0


@pytest.mark.parametrize(
  "completion",
  ["", "<think></think><answer>Hello you all</answer>", "<think>1+1=2</think>"],
)
def test_thoughts_without_words_earn_nothing(completion):
  assert consistency(completion) == 0.0


def test_the_language_can_be_that_of_the_question():
  german = PROBLEM._replace(question="Wie viele Äpfel hat sie am Ende noch?")
  wordless = PROBLEM._replace(question="1+1=?")
  assert language.consistency(
    [PROBLEM, german, german, wordless],
    [ENGLISH, ENGLISH, GERMAN, ENGLISH],
    language="question",
  ) == [1.0, 0.0, 1.0, None]


def test_an_unknown_language_is_one_sentence():
  with pytest.raises(ValueError, match="config.rewards.language: language='x'"):
    combine.check({"language": dict(weight=1.0, language="x")})
  with pytest.raises(ValueError, match="language='english' must be"):
    consistency("a", "english")


@pytest.mark.parametrize(
  "piece",
  [
    *("$a ", "$", r"\[", r"\(", "`", "`\n", "```", "http://", r"\begin{", "<"),
    *("<think", "<think>", "'", "a'", ". ", " \n", "-a", "\u200b", "\u202e"),
    *("\u0301", "\ud800", "中", "の", "ก", "\U0001f600", "a"),
  ],
)
def test_reading_takes_time_in_proportion_to_the_text(piece):
  def seconds(length):
    start = time.process_time()
    consistency((piece * length)[:length])
    return time.process_time() - start

  consistency(piece * 1000)
  assert seconds(200_000) < 10 * max(seconds(40_000), 0.05)


def test_few_words_are_told_apart_between_the_languages_that_occur():
  thoughts = ["1+2=3 ok", "maybe", "1+2=4 no wait 1+3=4 ok", "不 等 ok"]
  completions = [f"<think>{t}</think><answer>3</answer>" for t in thoughts]
  problems = [types.Problem("1+2=?", "3", "addition", "")] * len(thoughts)
  freely = language.consistency(problems, completions, language="en")
  assert freely[:2] == [0, 0]  # Catalan and Turkish have these words too.
  known = language.consistency(
    problems, completions, language="en", among=("en", "zh")
  )
  assert known[:3] == [1, 1, 1]
  assert known[3] == pytest.approx(1 / (1 + 2 / 1.5))


def test_languages_that_occur_must_be_known():
  with pytest.raises(ValueError, match="among=\\('en', 'xx'\\) must be of"):
    language.consistency([], [], among=("en", "xx"))
