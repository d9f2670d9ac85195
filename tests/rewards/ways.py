"""Ways of writing an answer in a completion, right ones and near misses.

For numbers, and for any other answer of mathematics. Each yields a name, a
completion, and whether it is right. What is right here is decided without the
grader: a number is computed with, and another answer is only wrapped.
"""

import fractions
import re
from collections.abc import Iterator

from grpo_jax.rewards import equality

Way = tuple[str, str, bool]
_PLAIN = re.compile(r"(-?)([0-9]*)(?:\.([0-9]+))?")
_WIDE = {ord(c): chr(ord(c) + 0xFEE0) for c in "0123456789.,-%"}
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_RELATION = re.compile(r"=|<|>|\\(?:le|ge|in|pm|approx|cup|text|mbox)")

# Formulas that have the digits of a number in them and are another number, or
# none: what stands for `{}` is not an integer's own value in any of them.
FORMULAS = {
  "a root": r"\sqrt{{{}}}",
  "an exponent": r"x^{{{}}}",
  "a power of two": r"2^{{{}}}",
  "a reciprocal": r"\frac{{1}}{{{}}}",
  "a negative fraction": r"-\frac{{{}}}{{7}}",
  "a mean": r"\frac{{1+\sqrt{{{}}}}}{{2}}",
  "a pair": r"(1, {})",
  "an interval": r"[0,{})",
  "a set": r"\{{1, {}\}}",
  "a ratio": r"5:{}",
  "an index": r"a_{{{}}}",
  "a logarithm": r"\log_{{2}} {}",
  "a function": r"f({})",
  "a coefficient": r"{}x",
  "an imaginary part": r"3+{}i",
  "a multiple of pi": r"{}\pi",
  "a binomial": r"\binom{{{}}}{{2}}",
  "an absolute value": r"|x-{}|",
  "a sum": r"n+{}",
  "a product": r"17 \cdot {}",
  "a power of ten": r"{} \times 10^{{3}}",
  "a bound": r"x < {}",
  "another base": r"{}_{{7}}",
  "a congruence": r"x \equiv 1 \pmod{{{}}}",
}
# The same without LaTeX.
PLAIN_FORMULAS = {
  "a plain root": "sqrt({})",
  "a plain power": "2^{}",
  "a plain pair": "(1, {})",
  "a plain ratio": "5:{}",
  "a plain fraction": "1/{}",
  "a plain product": "17*{}",
  "a plain coefficient": "{}x",
  "a name": "x{}",
  "a code": "AB{}C",
  "a list": "1 2 {}",
  "a plain bound": "x < {}",
  "a power of ten": "{}e3",
}
# Where a formula may stand; the answer is read in each of them.
PLACES = {
  "in a box": r"So it is \boxed{{{}}}.",
  "in dollars": "Therefore the length is ${}$.",
  "in parentheses": r"Hence we get \({}\)",
  "in a display": "Then\n\\[{}\\]",
  "said": "The answer is ${}$.",
  "said in a sentence": "Final Answer: The value of $k$ is ${}$.",
  "marks": "#### ${}$",
  "tags": "<answer>${}$</answer>",
}
PLAIN_PLACES = {
  "at the end": "Therefore it is {}",
  "said": "The answer is {}.",
  "marks": "#### {}",
  "tags": "<answer>{}</answer>",
}


def formulas(number: str) -> Iterator[Way]:
  """Completions with the digits of an integer in a formula; all are wrong."""
  digits = number.lstrip("-")
  if digits in ("0", "1"):  # 1/1 is 1, and 0 x 10^3 is 0.
    return
  for table, places in ((FORMULAS, PLACES), (PLAIN_FORMULAS, PLAIN_PLACES)):
    for form, formula in table.items():
      for place, text in places.items():
        yield f"{form}, {place}", text.format(formula.format(digits)), False


def of_number(reference: str) -> Iterator[Way]:
  """Ways for a decimal number, such as -1234.5."""
  value = fractions.Fraction(reference)
  sign, whole, part = _PLAIN.fullmatch(reference).groups(default="")
  n = reference
  for name, text in _right_number(n, sign, whole or "0", part).items():
    yield name, text, True
  for name, text in _wrong_number(n, sign, whole or "0", part, value).items():
    yield name, text, False


def _right_number(n: str, sign: str, whole: str, part: str) -> dict[str, str]:
  point = f".{part}" if part else ""
  grouped = f"{sign}{int(whole):,}{point}"
  mantissa, exponent = _scientific(sign, whole, part)
  found = {
    "a box": rf"\boxed{{{n}}}",
    "a box in a sentence": rf"Thus, $x = \boxed{{{n}}}$ is what we want.",
    "a box with blanks": rf"$$\boxed{{ {n} }}$$",
    "a box and a check": rf"\boxed{{{n}}} since 5 + 3 = 8.",
    "a box of another style": rf"\fbox{{{n}}}",
    "a bold box": rf"\boxed{{\mathbf{{{n}}}}}",
    "a text box": rf"\boxed{{\text{{{n}}}}}",
    "two equal boxes": rf"$\boxed{{{n}}}$" + "\n\n" + rf"$\boxed{{{n}}}$",
    "a unit": rf"\boxed{{{n} \text{{ cm}}^2}}",
    "a unit of physics": rf"\boxed{{{n}~\mathrm{{m}}/\mathrm{{s}}}}",
    "a name": rf"\boxed{{n = {n}}}",
    "a point at the end": rf"\boxed{{{n}.}}"
    if not part
    else rf"\boxed{{{n}0}}",
    "tags": f"<think>7?</think><answer>{n}</answer>",
    "tags and words": f"<answer>{n} apples</answer>",
    "tags and a sentence": f"<answer>The total is {n}.</answer>",
    "tags and dollars": f"<answer>${n}$</answer>",
    "marks": f"3 + 4 = 7\n#### {n}",
    "said": f"So 7 is wrong. The answer is {n}.",
    "said in bold": f"**Answer:** **{n}**",
    "said in a sentence": f"Final Answer: The largest $k$ is {n}.",
    "said as Minerva": (
      f"Final Answer: The final answer is ${n}$. I hope it is correct."
    ),
    "said with a reason": f"The answer is {n} because 3 + 4 = 7.",
    "the end": f"She has 7 and so she gets {n} in all.",
    "a formula at the end": f"Hence we find $x={n}$.",
    "a display at the end": f"so that\n\\[\nx = {n}\n\\]",
    "parentheses of LaTeX": rf"We have \({n}\).",
    "thousands": rf"\boxed{{{grouped}}}",
    "thousands of LaTeX": _box(grouped.replace(",", "{,}")),
    "thin thousands": _box(grouped.replace(",", "\\,")),
    "said with thousands": f"The answer is {grouped}.",
    "scientific": rf"\boxed{{{mantissa} \times 10^{{{exponent}}}}}",
    "scientific without blanks": rf"${mantissa}\times10^{{{exponent}}}$",
    "e notation": f"The answer is {mantissa}e{exponent}",
    "a fraction": rf"\boxed{{{_doubled(sign, whole, part)}}}",
    "a true minus": _box(n.replace("-", "\u2212")),
    "full width": f"<answer>{n.translate(_WIDE)}</answer>",
    "Chinese": f"\u6240\u4ee5\u7b54\u6848\u662f{n}\u3002",
    "a Chinese unit": _box(n + "\u5143"),
    "a Chinese point": f"<answer>{n}\u3002</answer>",
    "Chinese full width": f"\u7b54\u6848\uff1a{n.translate(_WIDE)}\u4e2a",
    "percent": f"{n} is what remains, so the answer is {n}%",
  }
  if not sign:
    found["dollars"] = f"She pays ${grouped}."
    found["escaped dollars"] = rf"\boxed{{\${grouped}}}"
    found["a plus"] = rf"\boxed{{+{n}}}"
    found["an equation"] = f"5 + 3 = 8 apples, then {n} * 1 = {n} apples"
  if part and whole == "0":
    found["a leading point"] = rf"\boxed{{{sign}.{part}}}"
  if not part:
    found["point zero"] = rf"\boxed{{{n}.0}}"
  return found


def _wrong_number(
  n: str, sign: str, whole: str, part: str, value: fractions.Fraction
) -> dict[str, str]:
  point = f".{part}" if part else ""
  other = f"{sign}{int(whole) + 1}{point}"
  found = {
    "one more": rf"\boxed{{{other}}}",
    "one more said": f"The answer is {other}.",
    "one more in full width": f"<answer>{other.translate(_WIDE)}</answer>",
    "a digit more": rf"\boxed{{{n}{'' if part else '.'}5}}",
    "a digit before": rf"\boxed{{{sign}1{whole}{point}}}",
    "two answers": f"The answer is {n} or {other}.",
    "two boxes": rf"\boxed{{{other}}} or \boxed{{{n}}}",
    "two boxes side by side": rf"\boxed{{{other}}} \boxed{{{n}}}",
    "two in a box": rf"\boxed{{{n}, {other}}}",
    "a text with another": rf"\boxed{{{n} \text{{ or {other}}}}}",
    "another in words": f"<answer>{n} or seventeen</answer>",
    "another after blanks": f"<answer>{n} {other}</answer>",
    "several equal": rf"\boxed{{{other} = {n}}}",
    "several named": rf"\boxed{{x = {other} = {n}}}",
    "negated": f"The answer is not {n}.",
    "negated at the end": f"So it cannot be {n}.",
    "negated in a box": rf"It is not \boxed{{{n}}}.",
    "taken back": f"The answer is {n}. No, {other}.",
    "called wrong": f"{n} is wrong.",
    "a bound": f"The answer is at least {n}.",
    "a question": f"Is it {n}?",
    "instead": f"The answer is {other} instead of {n}.",
    "a tuple": rf"\boxed{{({n}, {other})}}",
    "plus or minus": rf"\boxed{{{n} \pm 1}}",
    "to compute": rf"\boxed{{{n}+0}}",
    "Chinese, negated": f"\u7b54\u6848\u4e0d\u662f{n}\u3002",
    "Chinese, or": f"<answer>{n}\u6216{other}</answer>",
    "Chinese, ten thousands": f"<answer>{n}\u4e07</answer>",
    "millions": f"<answer>{n} million</answer>",
    "about another": rf"\boxed{{{n} \approx {other}00}}",
  }
  if value:
    turned = n[1:] if sign else f"-{n}"
    found |= {
      "the sign": rf"\boxed{{{turned}}}",
      "the sign in words": f"The answer is negative {n.lstrip('-')}."
      if not sign
      else f"The answer is {n.lstrip('-')}.",
      "the sign of a fraction": rf"\boxed{{{turned}/1}}",
      "a power of ten": rf"\boxed{{{n} \times 10^{{1}}}}",
      "a power of ten less": f"The answer is {n}e-1.",
      "thousands of it": rf"\boxed{{{n} \times 10^{{3}}}}",
    }
    if not part:
      found["a leading point"] = rf"\boxed{{{sign}.{whole}}}"
      found["a tenth in words"] = f"The answer is {n} tenths."
  if len(whole) > 3:
    found["a list, not thousands"] = (
      rf"\boxed{{{sign}{whole[:-3]}, {whole[-3:]}}}"
    )
    found["its last digits"] = rf"\boxed{{{sign}{int(whole[-3:])}}}"
  return found


def of_formula(reference: str) -> Iterator[Way]:
  """Ways for an answer that is no plain number."""
  r = reference
  right = {
    "a box": rf"\boxed{{{r}}}",
    "a box in a sentence": rf"Thus it is $\boxed{{{r}}}$, as we saw.",
    "two equal boxes": rf"$\boxed{{{r}}}$" + "\n\n" + rf"$\boxed{{{r}}}$",
    "tags": f"<think>7?</think><answer>{r}</answer>",
    "tags and dollars": f"<answer>${r}$</answer>",
    "marks": f"so\n#### {r}",
    "said": f"The answer is ${r}$.",
    "said in bold": f"**Answer:** ${r}$",
    "said as Minerva": (
      f"Final Answer: The final answer is ${r}$. I hope it is correct."
    ),
    "a formula at the end": f"Hence we find ${r}$.",
  }
  right = {k: t for k, t in right.items() if "\n" not in r or "\\boxed" in t}
  for name, text in right.items():
    yield name, text, True
  wrong = {
    "two answers": f"The answer is ${r}$ or $777$.",
    "two boxes": rf"\boxed{{{r}}} or \boxed{{777}}",
    "negated": f"The answer is not ${r}$.",
    "called wrong": f"${r}$ is wrong.",
    "taken back": f"The answer is ${r}$. No, $777$.",
    "a sum more": rf"\boxed{{{r} + q}}",
    "another number": r"\boxed{777}",
  }
  fraction = _FRACTION.fullmatch(r)
  if fraction:
    sign, over, under = fraction.groups()
    wrong |= {
      "the sign": rf"\boxed{{{r[1:] if sign else '-' + r}}}",
      "turned": rf"\boxed{{{sign}\frac{{{under}}}{{{over}}}}}",
      "one more above": rf"\boxed{{{sign}\frac{{{int(over) + 1}}}{{{under}}}}}",
      "its digits": f"The answer is {over}.",
      "a root of it": rf"the length is $\sqrt{{{r}}}$",
      "ten of it": rf"\boxed{{{r} \cdot 10}}",
    }
    if over == under:
      wrong = {k: v for k, v in wrong.items() if k not in ("turned",)}
    yield "plain", f"<answer>{sign}{over}/{under}</answer>", True
    yield (
      "doubled",
      rf"\boxed{{{sign}\frac{{{2 * int(over)}}}{{{2 * int(under)}}}}}",
      True,
    )
  elif not _RELATION.search(r) and not equality.is_words(r):
    if not equality.is_choice(r) and not equality.is_list(r):
      wrong["a contradiction"] = rf"\boxed{{777 = {r}}}"
  elements = r.strip("\\{} ").split(",")
  if equality.is_list(r) and not re.search(r"[()\[\]=]|\\[^{}]", r):
    if len(elements) > 1 and re.fullmatch(r"\s*-?[0-9]+\s*", elements[0]):
      changed = [f"{int(elements[0]) + 1000}", *elements[1:]]
      wrong["one element changed"] = rf"\boxed{{{','.join(changed)}}}"
      wrong["one element less"] = rf"\boxed{{{','.join(elements[1:])}}}"
      joined = " and ".join(rf"$\boxed{{{e}}}$" for e in elements)
      yield "a box for each", joined, True
      yield (
        "and",
        f"The answers are {' and '.join(f'${e}$' for e in elements)}.",
        True,
      )
  for name, text in wrong.items():
    yield name, text, False


def of(reference: str) -> Iterator[Way]:
  """Ways for any answer; see `of_number` and `of_formula`."""
  plain = reference.replace(",\\!", ",").replace("{,}", ",")
  if re.fullmatch(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", plain):
    plain = plain.replace(",", "")
  if _PLAIN.fullmatch(plain):
    yield from of_number(plain)
  else:
    yield from of_formula(reference)


def _box(text: str) -> str:
  return f"\\boxed{{{text}}}"


def _scientific(sign: str, whole: str, part: str) -> tuple[str, int]:
  digits = (whole + part).lstrip("0") or "0"
  exponent = len((whole + part).lstrip("0")) - 1 - len(part)
  kept = digits.rstrip("0") or "0"
  rest = f".{kept[1:]}" if kept[1:] else ""
  return f"{sign}{kept[0]}{rest}", max(exponent, -99) if digits != "0" else 0


def _doubled(sign: str, whole: str, part: str) -> str:
  over, under = int(whole + part), 10 ** len(part)
  return rf"{sign}\frac{{{2 * over}}}{{{2 * under}}}"
