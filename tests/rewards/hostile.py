"""Completions that want to hang, crash or take over whoever grades them.

Shared by the tests and `benchmarks/grading.py`. No text here is ever run by a
test; if a grader runs it, it leaves a file behind.
"""

import pathlib
import random
import tempfile

SENTINEL = pathlib.Path(tempfile.gettempdir()) / "grpo_jax_hostile_sentinel"
REFERENCES = (
  "5",
  r"\frac{1}{2}",
  r"\sqrt{2}",
  "x^2+2x+1",
  "(1,2)",
  r"\{1,2,3\}",
  r"[0,\infty)",
  r"\begin{pmatrix} 1 & \sqrt{2} \\ 3 & 4 \end{pmatrix}",
  r"\text{Evelyn}",
  r"\text{(C)}",
  "y=2x+3",
  "1, 2, 3",
)
_TOUCH = f"__import__('os').system('touch {SENTINEL}')"
PYTHON = (
  _TOUCH,
  f"open('{SENTINEL}','w')",
  f"exec(\"open('{SENTINEL}','w')\")",
  f"eval(compile(\"open('{SENTINEL}','w')\",'','exec'))",
  f"Integer({_TOUCH})",
  f"().__class__.__base__.__subclasses__()[-1]({_TOUCH})",
  f"(lambda: {_TOUCH})()",
  f"x if {_TOUCH} else 2",
  "while True: pass",
  "os.fork()",
  "'a'*10**10",
)
_BOMBS = (
  "9**9**9**9",
  "9^{9^{9^9}}",
  "9^9^9^9",
  "10^{10^{10}}",
  "2^{2^{2^{2^{2^{2}}}}}",
  "(10^{100000})!",
  "99999999!",
  "9!!!!!!!!",
  r"\binom{10^9}{5 \cdot 10^8}",
  r"\sum_{k=1}^{10^{12}} \frac{1}{k^k}",
  r"\prod_{k=1}^{10^9} k",
  r"\int_0^1 e^{e^{e^{x^x}}} dx",
  r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^7}",
  r"\sqrt[999999]{2^{999999}+1}",
  r"(x+y+z+w)^{5000}",
  r"\frac{(x+1)^{3000}-1}{(y+1)^{3000}-1}",
  r"\log_{2^{-99999999}} 3",
  r"1.0 \times 10^{999999999}",
  "1e999999999",
  r"0." + "1" * 900,
  "x^{x^{x^{x^{x^x}}}}=3",
  r"\sin(\cos(\tan(\sin(\cos(\tan(9^{99}))))))",
  r"\{1,2,3\}^{\{1,2\}^{9}}",
  r"\{" + ",".join(f"{k}^{{{k}^{{{k}}}}}" for k in range(2, 40)) + r"\}",
  r"[0,9^{9^{9^9}})",
  r"(1,9^{9^{9}})",
  r"\begin{pmatrix} 9^{9^{9^9}} & 1 \\ 2 & 3 \end{pmatrix}",
  r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{999999999}",
  r"\begin{pmatrix}" + "1 & " * 300 + r"1 \end{pmatrix}",
  r"|x|+||x||+|||x|||",
  r"\infty-\infty",
  r"\frac{1}{0}",
  r"\frac{0}{0}",
  r"10^{99999999} \% ",
  r"12345678901234567890 \bmod 0",
)
_PIECES = (
  "{", "}", "(", ")", "[", "]", "\\{", "\\}", "\\", "$", "^", "_", "&", "\\\\",
  "\\frac", "\\sqrt", "\\boxed{", "\\text{", "\\left(", "\\right)", "\\begin{",
  "\\begin{pmatrix}", "\\end{pmatrix}", "<think>", "</think>", "<answer>",
  "</answer>", "####", "answer is", ",", "=", "\\pm", "\\cup", "!", "%",
  "9" * 9,
  "\u200b", "\u202e", "\u2066", "\ufeff", "\ud800", "\udfff", "\x00", "\x1b[2J",
  "\u0665", "\uff15", "\u00b2", "\U0001d7d3", "e", "i", "x", "\n", "or",
)  # fmt: skip


def _wrapped(rng: random.Random, text: str) -> str:
  """The text as an answer, in one of the places where one is looked for."""
  return rng.choice(
    (
      f"<think>hm</think><answer>{text}</answer>",
      f"\\boxed{{{text}}}",
      f"<answer>\\boxed{{{text}}}</answer>",
      f"so the answer is ${text}$.",
      f"#### {text}",
      f"it is \\({text}\\)",
      text,
    )
  )


def _flood(rng: random.Random) -> str:
  """Up to a megabyte of one thing."""
  unit = rng.choice((*_PIECES, "1", "-1", "1,", "\\boxed{1}", "((", "x+", "1/"))
  size = rng.choice((500, 990, 5_000, 100_000, 1_000_000))
  return unit * max(1, size // len(unit))


def _mutated(rng: random.Random, text: str) -> str:
  """The text with pieces put in, taken out or repeated."""
  for _ in range(rng.randint(1, 6)):
    i, j = sorted(rng.choices(range(len(text) + 1), k=2))
    text = rng.choice(
      (
        text[:i] + rng.choice(_PIECES) + text[i:],
        text[:i] + text[j:],
        text[:j] + text[i:],
        text[:i] + text[i:j][::-1] + text[j:],
        text[:i] + rng.choice(PYTHON) + text[i:],
      )
    )[:2000]
  return text


def _half_bytes(rng: random.Random) -> str:
  """UTF-8 that was cut, as it comes out of a decoder that keeps such bytes."""
  data = "5\u00bd\u03c0\U0001d7d3".encode()
  return data[: rng.randint(1, len(data))].decode("utf-8", "surrogateescape")


def corpus(count: int, seed: int) -> list[tuple[str, str]]:
  """Pairs of a reference and a hostile completion; the same for equal seeds."""
  rng = random.Random(seed)
  cases = []
  for number in range(count):
    reference = rng.choice(REFERENCES)
    kind = number % 10
    if kind == 0:
      text = _wrapped(rng, rng.choice(_BOMBS))
    elif kind == 1:
      i = rng.randint(0, len(reference))
      python = rng.choice(PYTHON)
      text = _wrapped(rng, reference[:i] + python + reference[i:])
    elif kind == 2:
      text = _wrapped(rng, _flood(rng)) if number % 100 == 2 else _half(rng)
    elif kind == 3:
      text = _wrapped(rng, "".join(rng.choices(_PIECES, k=rng.randint(1, 60))))
    elif kind == 4:
      depth = rng.choice((3, 30, 90, 200))
      opening, closing = rng.choice(
        (("{", "}"), ("(", ")"), ("\\sqrt{", "}"), ("\\frac{1}{", "}"))
      )
      closed = rng.choice((depth, depth - 1, 0))
      text = _wrapped(rng, opening * depth + reference + closing * closed)
    else:
      text = _mutated(rng, _wrapped(rng, reference))
    cases.append((reference, text))
  return cases


def _half(rng: random.Random) -> str:
  return _wrapped(rng, _half_bytes(rng) + rng.choice(REFERENCES))
