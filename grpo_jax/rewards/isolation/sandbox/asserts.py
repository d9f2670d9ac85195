"""Tests as numbered assert statements.

The standard library alone: this file is copied into sandboxes.
"""

import ast

TEST = "__test__"


class _Numbering(ast.NodeTransformer):
  """Puts each assert into `with __test__(number):`."""

  def __init__(self):
    self.count, self.in_loops, self._loops = 0, set(), 0

  def visit_Assert(self, node):
    """The assert, in its block."""
    if isinstance(node.test, ast.Constant):
      return node  # It tests nothing.
    number, self.count = self.count, self.count + 1
    if self._loops:
      self.in_loops.add(number)
    call = ast.Call(ast.Name(TEST, ast.Load()), [ast.Constant(number)], [])
    return ast.With([ast.withitem(call)], [node])

  def _visit_loop(self, node):
    self._loops += 1
    self.generic_visit(node)
    self._loops -= 1
    return node

  visit_For = visit_While = _visit_loop


def number(source: str) -> tuple[ast.Module, set[int]]:
  """The tests with numbered asserts; and the numbers of those in loops."""
  numbering = _Numbering()
  tree = numbering.visit(ast.parse(source))
  return ast.fix_missing_locations(tree), numbering.in_loops


def count(source: str) -> int:
  """How many asserts there are that test something."""
  numbering = _Numbering()
  numbering.visit(ast.parse(source))
  return numbering.count
