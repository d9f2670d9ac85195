"""Which answers are equal, in LaTeX and in plain text."""

import re

import pytest

from grpo_jax.rewards import equality

EQUAL = [
  ("1/2", "0.5"),
  (r"\frac12", "1/2"),
  (r"-\frac{1}{2}", "-.5"),
  (r"1\frac12", "3/2"),
  (r"2\frac{1}{4}", "2 1/4"),
  ("1,234", "1234.0"),
  ("335{,}670", "335,670"),
  (r"11,\! 111", "11111"),
  (r"6 \times 10^{3}", "6000"),
  ("1/3", "0.333333"),
  ("50\\%", "50"),
  ("50\\%", r"\frac12"),
  ("0.5", "50 percent"),
  (r"\$5", "5 dollars"),
  (r"864 \mbox{ inches}^2", "864 square inches"),
  (r"\frac{270}7\text{ degrees}", "270/7\u00b0"),
  (r"12\sqrt{13}\text{ feet}", "12sqrt(13) feet"),
  ("5", "x=5"),
  ("5", r"5 \approx 5.01"),
  ("K=8", "8"),
  (r"\sqrt{2}", "2^{1/2}"),
  (r"\sqrt{2}", "1.41421356"),
  (r"2\sqrt{19}", "2*sqrt(19)"),
  (r"\frac{\pi}{2}", "\u03c0/2"),
  (r"32+16\sqrt{3}", "16(2+\u221a3)"),
  ("6+3i", "3i + 6"),
  (r"\frac{2ab}{a^2+b^2}", "2ab/(a^2+b^2)"),
  ("x^4-4", "(x^2-2)(x^2+2)"),
  (r"\tan \frac{x}{2}", "tan(x/2)"),
  ("y=2x+3", "2x-y+3=0"),
  ("y=10x-4", "10x-4"),
  ("(0.5,0.6)", r"\left( \frac{1}{2}, \dfrac35 \right)"),
  ("(1,2)", "x = (1, 2)"),
  (r"2, 3, \text{ and } 4", "4, 3, 2"),
  (r"\{4,5,7\}", "{7, 4, 5}"),
  (r"-2 \text{ or } -12", "x=-12 or x=-2"),
  (r"3 \pm \sqrt2", r"3-\sqrt{2}, 3+\sqrt{2}"),
  (r"[2,\infty)", "x >= 2"),
  (r"x \ge 2", r"[2, \infty)"),
  (r"(-\infty,2)\cup(3,\infty)", "(3,oo) U (-inf,2)"),
  (r"x \in [-2,7]", "[-2,7]"),
  (r"\begin{pmatrix} -2 & 1/2 \\ 5 & -7 \end{pmatrix}", "[[-2,0.5],[5,-7]]"),
  (r"\begin{pmatrix} 1 \\ \sqrt{4} \end{pmatrix}",
   r"\begin{bmatrix}1\\2\end{bmatrix}"),
  ("2516_8", "2516"),
  ("2516_8", "2516_{8}"),
  (r"\text{Evelyn}", "evelyn"),
  (r"\text{(C)}", "C"),
  (r"\text{(C)}", "(C) Paris"),
  (r"\text{A, D, F}", "F, D, A"),
  (r"4\!:\!51\!:\!06 \text{ p.m.}", "4:51:06 p.m."),
]  # fmt: skip
DIFFERENT = [
  ("5", "-5"),
  ("5", "6"),
  ("5", "5 or 6"),
  ("5", "5, 6"),
  ("5", "5x"),
  ("5", "5 million"),
  ("5", ""),
  ("", "5"),
  ("1/3", "0.3333"),
  ("1/3", "0.333334"),
  (r"\sqrt{2}", "1.4142"),
  (r"\frac{1}{2^{98}}", r"\frac{3}{2^{98}}"),
  # What is left to compute is no answer to a question for a number.
  ("391", r"17 \cdot 23"),
  ("391", "17*23"),
  ("2", r"\sqrt{4}"),
  ("24", "4!"),
  (r"\frac12", "1-1/2"),
  ("(5,3)", "(3,5)"),
  ("(1,2)", "1,2"),
  ("[1,2)", "[1,2]"),
  ("1,2", "1,2,2"),
  ("1,2,2", "1,1,2"),
  (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2)\cup(4,\infty)"),
  (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2,3,4]]"),
  (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,5]]"),
  ("x+y", "a+b"),
  ("x^2+1", "x^2+2"),
  ("y=2x+3", "y=2x+4"),
  ("r=6.2", "r=6.3"),
  ("2516_8", "2516_7"),
  ("3:1", "6:2"),
  ("even", "neve"),
  (r"\text{Navin}", "Nivan"),
  (r"\text{(C)}", "(C) (D)"),
  (r"\text{(C)}", "(C) or (D)"),
  (r"\text{(C)}", "C, D"),
  ("5", r"\infty"),
  (r"\infty", "5"),
  ("5", "\u0665"),
]  # fmt: skip


@pytest.mark.parametrize("reference, answer", EQUAL)
def test_are_equal(reference, answer):
  assert equality.equal(reference, answer)
  assert equality.decide(reference, answer) in (True, None)


@pytest.mark.parametrize("reference, answer", DIFFERENT)
def test_are_different(reference, answer):
  assert not equality.equal(reference, answer)
  assert equality.decide(reference, answer) in (False, None)


@pytest.mark.parametrize("reference", [pair[0] for pair in EQUAL])
def test_every_answer_is_equal_to_itself_at_once(reference):
  assert equality.decide(reference, reference) is True


def test_a_long_answer_is_wrong_at_once():
  assert equality.decide(r"\sqrt{2}", "1" * 1001) is False
  assert equality.decide("5", "5" + " " * 996) is True


def test_numbers_and_letters_are_told_from_other_answers():
  assert equality.is_number(r"-\frac{1}{2}") and equality.is_number("1,000")
  assert not equality.is_number("1+1") and not equality.is_number(r"\pi")
  assert equality.is_choice(r"\text{(C)}") and not equality.is_choice("c")


def test_no_numeral_passes_through_eval(monkeypatch):
  """Sympy's own way from text to numbers is `eval`; it is never taken."""

  def refuse(*_, **__):
    raise AssertionError("parse_expr was called.")

  monkeypatch.setattr("sympy.parsing.sympy_parser.parse_expr", refuse)
  monkeypatch.setattr("latex2sympy2_extended.latex2sympy2.parse_expr", refuse)
  monkeypatch.setattr("math_verify.parser.parse_expr", refuse)
  for reference, answer in EQUAL:
    # Inequalities are solved, and sympy's solvers evaluate text of their own.
    if not re.search(r"\\ge", reference):
      assert equality.equal(reference, answer)
