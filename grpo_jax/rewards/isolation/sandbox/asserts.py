"""Tests as numbered cases.

A case is a statement that tests something, by an assert or by a function of the
tests that has one: each assert by itself; a loop, a `try` or a `with` as a
whole, for it holds where it holds to its end. The statements are those of the
source and of functions that it calls once, by name and as a statement
(HumanEval's `check(candidate)`).

The standard library alone: this file is copied into sandboxes.
"""

import ast
from collections.abc import Iterable
from typing import NamedTuple

# What the tests call without knowing; `examiner` defines them.
CASE, GROUP, TEST, FAILURE, RAN = (
  f"__{name}__" for name in ("case", "group", "test", "failure", "ran")
)
STOPPED = "__stopped__"

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NO_CASES = (
  *_DEFINITIONS,
  ast.Import,
  ast.ImportFrom,
  ast.Global,
  ast.Nonlocal,
)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_SCOPES = (*_DEFINITIONS, ast.Lambda)


class Cases(NamedTuple):
  """Tests that tell of themselves.

  Attributes:
    preamble: its source, whose asserts tell of themselves.
    tree: the tests, with each case in `with __case__(number, goes_on, idle):`.
      The tests go on after a case that fails unless it assigns a name, which
      they would find with an older value. What it is where no assert of it was
      run is `idle`: "-" failed; "+" held, for it is to fail where it runs an
      `assert False`; "?" none, as it may only mention what tests.
    count: the number of cases, those included.
  """

  preamble: ast.Module
  tree: ast.Module
  count: int


def number(source: str, preamble: str = "") -> Cases:
  """The tests as numbered cases; raises SyntaxError.

  Args:
    source: of the tests.
    preamble: what runs before them, such as functions that have asserts.
  """
  before, tree = ast.parse(preamble), ast.parse(source)
  numbering = _Numbering(before, tree)
  tree.body = numbering.block(tree.body)
  before = _Marking().visit(before)
  for made in (before, tree):
    ast.fix_missing_locations(made)
  return Cases(before, tree, numbering.count)


class _Numbering:
  """Puts statements of blocks that run once into `with __case__(...):`."""

  def __init__(self, preamble: ast.Module, tree: ast.Module):
    self.count = 0
    nodes = [*ast.walk(preamble), *ast.walk(tree)]
    self._testers = _testers(nodes)
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    self._functions = self._testers - classes
    self._once = _called_once(tree)
    self._marking = _Marking()

  def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a block that runs once."""
    return [self._statement(statement) for statement in statements]

  def _statement(self, node):
    if isinstance(node, ast.FunctionDef) and node.name in self._once:
      node.body = self.block(node.body)
      return node
    if isinstance(node, _NO_CASES):
      return self._marking.statement(node)[0]
    called = _called(node)
    if called in self._once and called in self._testers:
      return _within(GROUP, [], node)
    parts = list(_walk(node))
    asserts = any(_tests_a_value(part) for part in parts)
    failures = any(_is_failure(part) for part in parts)
    calls = any(
      isinstance(x, ast.Call) and _names(x.func) in self._functions
      for x in ast.walk(node)
    )
    mentions = any(_names(x) in self._testers for x in ast.walk(node))
    node, entered = self._marking.statement(node)
    if not (asserts or failures or mentions):
      return node
    idle = "-" if asserts or calls or entered else "+" if failures else "?"
    goes_on = not isinstance(node, _ASSIGNMENTS)
    arguments = [ast.Constant(x) for x in (self.count, goes_on, idle)]
    self.count += 1
    return _within(CASE, arguments, node)


class _Marking(ast.NodeTransformer):
  """Has asserts, failures and handlers tell of themselves."""

  def __init__(self):
    self._failures = self._repeated = False

  def statement(self, node: ast.stmt) -> tuple[ast.stmt, bool]:
    """The statement; and whether a failure stands in a loop of it."""
    self._failures = self._repeated = False
    return self.visit(node), self._repeated

  def visit_Assert(self, node):
    """The assert, in `with __test__:`."""
    if _is_failure(node):
      return self._failure(node)
    return _within(TEST, None, node) if _tests_a_value(node) else node

  def visit_Raise(self, node):
    """What raises an AssertionError is an assert that fails."""
    return self._failure(node) if _is_failure(node) else node

  def visit_ExceptHandler(self, node):
    """Who expects StopIteration of a program gets what stands for it."""
    self.generic_visit(node)
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    if any(getattr(kind, "id", "") == "StopIteration" for kind in kinds):
      stopped = ast.Name(STOPPED, ast.Load())
      node.type = ast.Tuple([*kinds, stopped], ast.Load())
    return node

  def _failure(self, node):
    self._failures = True
    return _within(FAILURE, None, node)

  def _repeat(self, node):
    """Where there are failures alone, that the block was entered is a test."""
    before, self._failures = self._failures, False
    self.generic_visit(node)
    if self._failures:
      node.body.insert(0, ast.Expr(_call(RAN, [])))
      self._repeated = True
    self._failures = before
    return node

  visit_For = visit_AsyncFor = visit_While = _repeat
  visit_FunctionDef = visit_AsyncFunctionDef = _repeat


def _testers(nodes: list[ast.AST]) -> set[str]:
  """Names of what tests when it is called, or may."""
  found: set[str] = set()
  while True:
    before = len(found)
    for node in nodes:
      if isinstance(node, _DEFINITIONS):
        names, parts = [node.name], ast.walk(node)
      elif isinstance(node, _ASSIGNMENTS) and node.value is not None:
        targets = (
          node.targets if isinstance(node, ast.Assign) else [node.target]
        )
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        parts = ast.walk(node.value)
      else:
        continue
      if any(_is_test(part) or _names(part) in found for part in parts):
        found.update(names)
    if len(found) == before:
      return found


def _called_once(tree: ast.Module) -> set[str]:
  """Functions that run once: their statements may be cases of their own."""
  used = [_names(node) for node in ast.walk(tree)]
  defined = [getattr(node, "name", None) for node in ast.walk(tree)]
  functions = {
    node.name: node
    for node in tree.body
    if isinstance(node, ast.FunctionDef)
    and not node.decorator_list
    and defined.count(node.name) == 1
    and not any(isinstance(x, ast.Yield | ast.YieldFrom) for x in _walk(node))
  }
  found: set[str] = set()

  def search(block: Iterable[ast.stmt]) -> None:
    for statement in block:
      name = _called(statement)
      if name in functions and used.count(name) == 1:
        found.add(name)
        search(functions[name].body)

  search(tree.body)
  return found


def _called(node: ast.stmt) -> str | None:
  """The name of the function that a statement calls and nothing else."""
  if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
    return _names(node.value.func)
  return None


def _names(node: ast.AST) -> str | None:
  """The name that an expression reads."""
  if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
    return node.id
  return None


def _tests_a_value(node: ast.AST) -> bool:
  return isinstance(node, ast.Assert) and not isinstance(
    node.test, ast.Constant
  )


def _is_failure(node: ast.AST) -> bool:
  """Whether it fails where it is run: `assert False` and its kin."""
  if isinstance(node, ast.Assert):
    return isinstance(node.test, ast.Constant) and not node.test.value
  if not isinstance(node, ast.Raise):
    return False
  raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
  return isinstance(raised, ast.Name) and raised.id == "AssertionError"


def _is_test(node: ast.AST) -> bool:
  return _tests_a_value(node) or _is_failure(node)


def _walk(node: ast.AST) -> Iterable[ast.AST]:
  """The node and all below it that runs when it runs."""
  yield node
  for child in ast.iter_child_nodes(node):
    if not isinstance(child, _SCOPES):
      yield from _walk(child)


def _call(name: str, arguments: list[ast.expr]) -> ast.Call:
  return ast.Call(ast.Name(name, ast.Load()), arguments, [])


def _within(name, arguments, node) -> ast.With:
  context = (
    ast.Name(name, ast.Load()) if arguments is None else _call(name, arguments)
  )
  return ast.With([ast.withitem(context)], [node])
