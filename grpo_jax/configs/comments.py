"""What the code says above the fields of each stage's config.

`configs.stages` is read as text: a comment above a field, or behind it on its
line, is about that field, so that the page of all fields and `--fields` say
what the code says.
"""

import ast
import functools
import io
import pathlib
import tokenize

_SOURCE = pathlib.Path(__file__).with_name("stages.py")


@functools.cache
def comments(builder: str) -> dict[str, str]:
  """By dotted path of a field what the code says of it.

  Args:
    builder: a function of `configs.stages`; others have no comments.
  """
  functions, lines = _parsed()
  found = {}
  if builder in functions:
    for statement in functions[builder].body:
      if isinstance(statement, ast.Assign):
        for target in statement.targets:
          _read(statement, _path(target), statement.value, lines, found)
  return found


@functools.cache
def _parsed() -> tuple[dict[str, ast.FunctionDef], dict[int, tuple[str, bool]]]:
  """The functions, and by line a comment and whether it stands alone."""
  text = _SOURCE.read_text(encoding="utf-8")
  functions = {
    node.name: node
    for node in ast.parse(text).body
    if isinstance(node, ast.FunctionDef)
  }
  lines = {}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      alone = not token.line[: token.start[1]].strip()
      lines[token.start[0]] = token.string.lstrip("# "), alone
  return functions, lines


def _read(
  node: ast.stmt | ast.keyword,
  path: str,
  value: ast.expr,
  lines: dict[int, tuple[str, bool]],
  found: dict[str, str],
) -> None:
  """Adds what is said of a field, and of those within it."""
  above = []
  line = node.lineno - 1
  while line in lines and lines[line][1]:
    above.insert(0, lines[line][0])
    line -= 1
  behind = lines.get(node.end_lineno, ("", True))
  if not behind[1]:
    above.append(behind[0])
  prefix = f"{path}." if path else ""
  for part in ast.walk(value):
    if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
      if part.func.id == "dict":
        continue
      # What another builder returns, or a section of it.
      _inherit(part.func.id, value, prefix, found)
  if above:
    found[path] = " ".join(above)
  for call in _dicts(value):
    for keyword in call.keywords:
      # On one line with the whole, a comment is about the whole.
      if keyword.arg and keyword.lineno != node.lineno:
        _read(keyword, prefix + keyword.arg, keyword.value, lines, found)


def _inherit(
  builder: str, value: ast.expr, prefix: str, found: dict[str, str]
) -> None:
  section = f"{value.attr}." if isinstance(value, ast.Attribute) else ""
  for path, text in comments(builder).items():
    if path.startswith(section):
      found.setdefault(prefix + path.removeprefix(section), text)


def _dicts(value: ast.expr) -> list[ast.Call]:
  """The `dict(...)` that make a value: alone, or joined by `|`."""
  if isinstance(value, ast.BinOp):
    return _dicts(value.left) + _dicts(value.right)
  is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
  return [value] if is_call and value.func.id == "dict" else []


def _path(target: ast.expr) -> str:
  """The dotted path of `c.a.b`; empty for `c` itself."""
  parts = []
  while isinstance(target, ast.Attribute):
    parts.insert(0, target.attr)
    target = target.value
  return ".".join(parts)
