"""The same answer written in many ways, and answers that differ from it a bit.

Shared by the tests and `benchmarks/grading.py`.
"""

import json
import pathlib
import re
from collections.abc import Iterator

from grpo_jax.rewards import equality

THOUGHT = "<think>7 is tempting, but no.</think>"
_TEXT = re.compile(r"\\(?:text|mbox|textnormal)\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[0-9)}])\s*\\(?:text|mbox)\{[a-z .]*\}(?:\^2)?$")
_PLAIN = (
  (r"\^\s*\{?\\circ\}?", "\u00b0"),
  (r",\\!\s*", ","),
  (r"(?<=[0-9])\\[dt]?frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}", r" \1/\2"),
  (r"\\begin\{[pb]matrix\}\s*(.*?)\s*\\end\{[pb]matrix\}", r"[[\1]]"),
  (r"\s*\\\\\s*", "],["),
  (r"\s*&\s*", ","),
  (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r"(\1)/(\2)"),
  (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)"),
  (r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)"),
  (r"\\sqrt\s*([0-9])", r"sqrt(\1)"),
  (r"\^\s*\{([^{}]*)\}", r"^(\1)"),
  (r"\\(?:left|right)\s*", ""),
  (r"(?<!\\)\\[!,;: ]", " "),
  (r"\\(pi|sin|cos|tan|log)(?![a-z])", r"\1 "),
  (r"\\infty", "infinity"),
  (r"\\cup", "U"),
  (r"\\le(?:q)?(?![a-z])", "<="),
)


def math_references(folder: pathlib.Path) -> list[str]:
  """The distinct final answers of MATH-500 and of MATH's training problems."""
  lines = (folder / "math" / "math500.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  records += json.loads((folder / "math" / "train.json").read_text())
  return list(dict.fromkeys(r["answer"] for r in records if r["answer"]))


def gsm8k_references(folder: pathlib.Path) -> list[str]:
  """All answers of GSM8K, training and test, with their solutions."""
  return [
    json.loads(line)["answer"]
    for split in ("train", "test")
    for line in (folder / "gsm8k" / f"{split}.jsonl").read_text().splitlines()
  ]


def _sub(rules, text: str) -> str:
  for pattern, replacement in rules:
    # Innermost first, so that nested braces are rewritten too.
    while (new := re.sub(pattern, replacement, text)) != text:
      text = new
  return text


def plain(reference: str) -> str:
  """The answer as one types it without LaTeX."""
  return _TEXT.sub(r"\1", _sub(_PLAIN, reference))


def math_forms(reference: str) -> dict[str, str]:
  """Completions whose final answer is the reference, by the form's name."""
  r = reference
  forms = {
    "boxed": f"{THOUGHT} So it is \\boxed{{{r}}}.",
    "boxed in dollars": f"First \\boxed{{7}}?\nNo: $$\\boxed{{ {r} }}$$",
    "tags": f"{THOUGHT}<answer>{r}</answer>",
    "tags and dollars": f"{THOUGHT}\n<answer> ${r}$ </answer>\n",
    "tags and box": f"{THOUGHT}<answer>It is $\\boxed{{{r}}}$.</answer>",
    "marks": f"{THOUGHT} 7 is wrong\n#### {r}",
    "said": f"{THOUGHT} Hence the answer is ${r}$.",
    "said after a colon": f"so...\n**Final Answer:** {r}\n",
    "parentheses of LaTeX": f"{THOUGHT}<answer>\\({r}\\)</answer>",
    "large fractions": _boxed(re.sub(r"\\[dt]?frac", r"\\dfrac", r)),
    # Not around the commas of thousands, which would make a list of them.
    "spaces": _boxed(
      re.sub(r"(?<![\\a-zA-Z{])([-+=()]|,(?![0-9]{3}(?![0-9])))", r" \1 ", r)
    ),
    "no units": _boxed(_UNIT.sub("", r)),
    "true minus signs": _boxed(r.replace("-", "\u2212")),
    "plain": f"{THOUGHT}<answer>{plain(r)}</answer>",
  }
  if re.fullmatch(r"-?[0-9]+", r):
    forms["point zero"] = _boxed(f"{r}.0")
    forms["commas"] = _boxed(f"{int(r):,}")
    forms["a unit"] = _boxed(f"{r} \\text{{ cm}}")
    forms["a fraction"] = _boxed(f"\\frac{{{2 * int(r)}}}{{2}}")
  if equality.decide(r, "x") is None and not re.search(r"=|\\in |text", r):
    forms["named"] = _boxed(f"w = {r}")
  return forms


def math_perturbed(reference: str) -> Iterator[tuple[str, str]]:
  """Answers near the reference that are not equal to it, with a name."""
  r = reference
  digits = list(re.finditer(r"[0-9]", _TEXT.sub("", r)))
  if digits and not _TEXT.search(r):
    for name, at in (("first digit", 0), ("last digit", -1)):
      i = digits[at].start()
      yield name, f"{r[:i]}{(int(r[i]) + 1) % 9 + 1}{r[i + 1 :]}"
  if re.fullmatch(r"-?[0-9.]*[1-9][0-9.]*", r):
    yield "sign", r[1:] if r.startswith("-") else f"-{r}"
    yield "a sum", f"{r}+0"
    yield "ten times", f"{r} \\cdot 10"
  yield "two answers", f"{r} \\text{{ or }} 777"
  if not equality.is_choice(r):
    yield "a variable more", f"{r} + q"
  words = _TEXT.fullmatch(r)
  if words:
    yield "another word", f"\\text{{un{words[1]}}}"
    if re.fullmatch("[A-Za-z]{2,}", words[1]):
      yield "its letters turned", f"\\text{{{words[1][::-1]}}}"
  pair = re.fullmatch(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])", r)
  if pair:
    left, a, b, right = pair.groups()
    if a.strip() != b.strip():
      yield "swapped", f"{left}{b},{a}{right}"
    yield "other brackets", f"{'[' if left == '(' else '('}{a},{b}{right}"
    yield "a part more", f"{left}{a},{b},{b}{right}"


def gsm8k_forms(reference: str) -> dict[str, str]:
  """Completions whose final answer is that of a GSM8K solution."""
  n = reference.rpartition("####")[2].strip().replace(",", "")
  return {
    "solution": reference,
    "tags": f"{THOUGHT}<answer>{n}</answer>",
    "tags and blanks": f"{THOUGHT}\n<answer>\n{n}\n</answer>\n",
    "commas": f"{THOUGHT}<answer>{int(n):,}</answer>",
    "dollars": f"{THOUGHT}<answer>${int(n):,}.00</answer>".replace("$-", "-$"),
    "a unit": f"{THOUGHT}<answer>{n} apples</answer>",
    "point zero": f"{THOUGHT}<answer>{n}.0</answer>",
    "box": f"{THOUGHT}<answer>\\boxed{{{n}}}</answer>",
    "marks": f"so 3 + 4\n#### {n}",
    "a sentence": f"{THOUGHT} She has 7, so the answer is {n}.",
    "at the end": f"7 + 1 = {n}",
  }


def gsm8k_perturbed(reference: str) -> Iterator[tuple[str, str]]:
  """Answers near the reference that are not equal to it, with a name."""
  n = int(reference.rpartition("####")[2].replace(",", ""))
  yield "one more", str(n + 1)
  yield "sign", str(-n) if n else "1"
  yield "digit more", f"{n}0" if n else "10"
  yield "half", f"{n}.5"
  yield "two answers", f"{n} or {n + 1}"


def _boxed(text: str) -> str:
  return f"\\boxed{{{text}}}"
