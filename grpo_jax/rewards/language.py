"""Language consistency: the share of a chain of thought in one language.

Text is cut into windows, sentences or parts of long ones. The script says the
language of a word where it can (Hangul is Korean, Han beside kana Japanese);
words in scripts that many languages share are given, window by window, to the
language that py3langid finds, a naive Bayes classifier over byte n-grams
(https://github.com/adbar/py3langid). Single words are too short for that.

Chinese, Japanese and others write no blanks between words; there a number of
characters counts as a word, so that a mixture is weighed evenly. Code,
formulas, numbers, links and single letters of spaced scripts are no words.

All work is linear in the text. Text in none of the languages known here counts
as one that it resembles.
"""

import collections
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from py3langid import langid

from grpo_jax import types
from grpo_jax.rewards import format, terms

# Languages between which a script does not decide.
_SHARED = {
  "LATIN": (
    *("ca", "cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "id"),
    *("it", "lt", "lv", "nl", "no", "pl", "pt", "ro", "sk", "sl", "sv", "sw"),
    *("tr", "vi"),
  ),
  "CYRILLIC": ("be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "uk"),
  "ARABIC": ("ar", "fa", "ps", "ug", "ur"),
  "DEVANAGARI": ("hi", "mr", "ne"),
}
_OWN = {
  "ARMENIAN": "hy",
  "BENGALI": "bn",
  "ETHIOPIC": "am",
  "GEORGIAN": "ka",
  "GREEK": "el",
  "GUJARATI": "gu",
  "GURMUKHI": "pa",
  "HANGUL": "ko",
  "HEBREW": "he",
  "KANNADA": "kn",
  "KHMER": "km",
  "LAO": "lo",
  "MALAYALAM": "ml",
  "MYANMAR": "my",
  "ORIYA": "or",
  "SINHALA": "si",
  "TAMIL": "ta",
  "TELUGU": "te",
  "THAI": "th",
}
_EAST_ASIA = ("ja", "zh")
LANGUAGES = tuple(
  sorted(
    {*_EAST_ASIA, *_OWN.values(), *(x for s in _SHARED.values() for x in s)}
  )
)

# Measured on the questions of MGSM: 16,235 characters of Chinese and 23,641 of
# Japanese say what 10,788 English words say. Others: roughly.
_CHARACTERS_PER_WORD = collections.defaultdict(lambda: 4.0, zh=1.5, ja=2.2)
# Chinese text may quote a kana or two; Japanese has one in two characters.
_KANA_SHARE = 0.1
# Windows of fewer units than this take a language that longer ones have.
_SURE = 5
_WINDOW = 20

_KANA = r"\u3041-\u309f\u30a1-\u30ff\uff66-\uff9f"
_HAN = (
  r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = r"\u0e01-\u0e4e\u0e80-\u0ece\u1000-\u103f\u1780-\u17d3"
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0900-\u0963\u0980-\u0dff"
_LETTER = rf"(?:[^\W\d_{_KANA}{_HAN}{_UNSPACED}]|(?!\d)[{_MARKS}])"
_UNITS = re.compile(
  rf"(?P<east>[{_KANA}{_HAN}]+)|(?P<unspaced>[{_UNSPACED}]+)"
  rf"|(?P<word>{_LETTER}+(?:['’-]{_LETTER}+)*)"
)
_KANA_CHARACTER = re.compile(f"[{_KANA}]")
_SENTENCES = re.compile(r"(?<=[.!?:;])\s+|[\n。！？；]+")

_OPENING = re.compile(
  r"```|`|\$\$|\$(?=\S)|\\\[|\\\(|\\begin\{|https?://|\\[A-Za-z]+|</?\w+>"
)
_CLOSING = {
  "```": re.compile("```"),
  "`": re.compile("`"),
  "$$": re.compile(r"\$\$"),
  # Between two prices no formula stands: `$2 each and $3 for two`.
  "$": re.compile(r"(?<=\S)\$(?!\d)"),
  "\\[": re.compile(r"\\\]"),
  "\\(": re.compile(r"\\\)"),
  "\\begin{": re.compile(r"\\end\{\w*\*?\}"),
  "http://": re.compile(r"(?=\s)|$"),
  "https://": re.compile(r"(?=\s)|$"),
}
# Formulas and code within a line are no longer than this.
_INLINE = {"$": 300, "`": 300}


@terms.checked_empty
def consistency(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  language: str = "en",
  among: Sequence[str] = (),
) -> list[float | None]:
  """The share of words of the chain of thought in the language, 0 to 1.

  DeepSeek-R1, https://arxiv.org/abs/2501.12948 section 3: the proportion of
  target language words in the chain of thought. A thought without words scores
  0, so nothing is earned by not writing.

  Args:
    problems: B problems.
    completions: B texts. The chain of thought is what stands between the think
      tags, to the end if it is not closed; without such tags what stands before
      the answer tags; without any the whole text.
    language: a code of ISO 639-1 in `LANGUAGES`, or "question" for the
      language that most words of the problem's question are in. None is the
      score where the question has no words.
    among: the languages that occur, where that is known; see
      `words_by_language`.

  Raises:
    ValueError: a language is not known here.
  """
  for name in among:
    if name not in LANGUAGES:
      raise ValueError(f"{among=} must be of {', '.join(LANGUAGES)}.")
  if language not in (*LANGUAGES, "question"):
    raise ValueError(
      f'{language=} must be "question" or one of {", ".join(LANGUAGES)}.'
    )

  @functools.cache
  def target(question):
    found = words_by_language(question, among)
    return max(found, key=found.__getitem__) if found else None

  shares = []
  for problem, completion in zip(problems, completions, strict=True):
    wanted = target(problem.question) if language == "question" else language
    found = words_by_language(thinking(problem, completion), among)
    total = sum(found.values())
    if wanted is None:
      shares.append(None)
    else:
      shares.append(found.get(wanted, 0.0) / total if total else 0.0)
  return shares


def thinking(problem: types.Problem, completion: str) -> str:
  """The chain of thought; see `consistency`."""
  pieces = format.split_tags(problem, completion)
  tags = pieces[1::2]
  if "<think>" not in tags and "</think>" not in tags:
    return pieces[0]
  depth, inside = 0, []
  if "<think>" not in tags:
    depth = 1  # It was begun by the prompt, or without a tag.
  for tag, text in zip(["", *tags], pieces[::2], strict=True):
    depth += {"<think>": 1, "</think>": -1}.get(tag, 0)
    if depth > 0:
      inside.append(text)
  return "\n".join(inside)


def words_by_language(text: str, among: Sequence[str] = ()) -> dict[str, float]:
  """How many words of each language the text has.

  Languages are named by their ISO 639-1 codes; scripts of languages that are
  not known here by their Unicode names, in capitals.

  Args:
    text: of any languages.
    among: the languages between which a shared script is told apart; all where
      empty. A text of a few words, such as "ok", is in many languages.
  """
  windows = list(_windows(without_formulas(text)))
  amounts = collections.defaultdict(float)
  # First the windows that are long enough to be sure of, then the others.
  for long in (True, False):
    seen = set(among or amounts)
    for script, texts in windows:
      size = sum(map(len, texts)) if script == "EAST" else len(texts)
      if (size >= _SURE) == long:
        language = _language(script, texts, among if long else seen)
        amounts[language] += _amount(script, language, texts)
  return dict(amounts)


def _windows(text: str) -> Iterator[tuple[str, list[str]]]:
  """Scripts with the words or runs of characters of one window in them."""
  for sentence in _SENTENCES.split(text):
    window, count = collections.defaultdict(list), 0
    for match in _UNITS.finditer(sentence):
      unit = unicodedata.normalize("NFKC", match.group())
      if match.lastgroup == "word" and len(unit) == 1:
        continue  # A variable, more often than a word.
      script = "EAST" if match.lastgroup == "east" else _script(unit[0])
      window[script].append(unit)
      count += 1
      if count == _WINDOW:
        yield from window.items()
        window, count = collections.defaultdict(list), 0
    yield from window.items()


def _amount(script: str, language: str, texts: list[str]) -> float:
  if script == "EAST" or script in ("KHMER", "LAO", "MYANMAR", "THAI"):
    return sum(map(len, texts)) / _CHARACTERS_PER_WORD[language]
  return float(len(texts))


def _language(script: str, texts: list[str], preferred) -> str:
  """The language of a window's words in one script.

  Args:
    script: "EAST" for Han and kana, or the Unicode name of a script.
    texts: the words or runs of characters.
    preferred: languages to choose among, where any of them has the script.
  """
  if script == "EAST":
    text = "".join(texts)
    kana = len(_KANA_CHARACTER.findall(text))
    if kana == 0 and "ja" in preferred and "zh" not in preferred:
      return "ja"
    return "ja" if kana >= _KANA_SHARE * len(text) else "zh"
  if script not in _SHARED:
    return _OWN.get(script, script)
  ranked = _identifier(script).rank(" ".join(texts))
  chosen = [name for name, _ in ranked if name in preferred]
  return chosen[0] if chosen else ranked[0][0]


@functools.cache
def _identifier(script: str) -> langid.LanguageIdentifier:
  identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
  identifier.set_languages(_SHARED[script])
  return identifier


@functools.lru_cache(maxsize=4096)
def _script(character: str) -> str:
  """The first word of the character's Unicode name, such as LATIN or HANGUL."""
  return unicodedata.name(character, "UNKNOWN").split()[0]


def without_formulas(text: str) -> str:
  """The text with a blank for each piece of code, formula, link and command.

  A code block that is not closed reaches to the end; other signs that are not
  closed are left as they are.
  """
  kept, position, unclosed = [], 0, set()
  while opening := _OPENING.search(text, position):
    kept.append(text[position : opening.start()])
    sign, position = opening.group(), opening.end()
    if sign not in _CLOSING:
      kept.append(" ")
      continue
    if sign in unclosed:
      continue
    limit = position + _INLINE.get(sign, len(text))
    if sign in _INLINE:
      line_end = text.find("\n", position, limit)
      limit = line_end if line_end >= 0 else limit
    closing = _CLOSING[sign].search(text, position, limit)
    if closing:
      kept.append(" ")
      position = closing.end()
    elif sign == "```":
      position = len(text)
    elif sign not in _INLINE:
      unclosed.add(sign)  # So that it is not searched for again.
  kept.append(text[position:])
  return "".join(kept)
