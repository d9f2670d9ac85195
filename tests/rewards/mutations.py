"""Programs with one small mistake."""

import ast
import copy
import random
from collections.abc import Iterator

_OPERATORS = {
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Add,
  ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult,
  ast.Mod: ast.FloorDiv,
  ast.Lt: ast.LtE,
  ast.LtE: ast.Lt,
  ast.Gt: ast.GtE,
  ast.GtE: ast.Gt,
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.And: ast.Or,
  ast.Or: ast.And,
}


def mutants(source: str, count: int, seed: int = 0) -> list[str]:
  """Up to `count` different programs, each with one operator or number changed.

  A number grows by one; an operator becomes its neighbor, such as `<` to `<=`.
  """
  tree = ast.parse(source)
  places = list(_places(tree))
  random.Random(seed).shuffle(places)
  original, found = ast.unparse(tree), []
  for place in places:
    changed = copy.deepcopy(tree)
    node = list(ast.walk(changed))[place]
    if isinstance(node, ast.Constant):
      node.value += 1
    elif isinstance(node, ast.Compare):
      node.ops[0] = _OPERATORS[type(node.ops[0])]()
    else:
      node.op = _OPERATORS[type(node.op)]()
    text = ast.unparse(changed)
    if text != original and text not in found:
      found.append(text)
    if len(found) == count:
      break
  return found


def _places(tree: ast.AST) -> Iterator[int]:
  """Positions, in the order of `ast.walk`, of what can be changed."""
  for place, node in enumerate(ast.walk(tree)):
    if isinstance(node, ast.Constant):
      if type(node.value) in (int, float):
        yield place
    elif isinstance(node, ast.Compare):
      if type(node.ops[0]) in _OPERATORS:
        yield place
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
      if type(node.op) in _OPERATORS:
        yield place
