"""What two processes see of each other: `python agreement.py PROCESS ...`.

Prints what `test_processes` compares. The rewards tell the processes apart.
"""

import hashlib
import os
import pathlib
import sys
import time

import jax
import numpy as np

from grpo_jax import processes, sharding, stages
from grpo_jax.processes import launch
from grpo_jax.rewards import combine
from grpo_jax.train import checkpoint
from grpo_jax.types import Problem

_GRADED = []


def by_the_clock(problems, completions):
  """A reward that no two processes, and no two calls, agree on."""
  del problems
  _GRADED.extend(completions)
  process = int(os.environ["PROCESS"])
  return [time.time_ns() % 1000 / 1000 + process] * len(completions)


def breaks_in_one(problems, completions):
  """A reward that raises an error in the second process, at its second call."""
  del problems
  _GRADED.append(len(completions))
  if os.environ["PROCESS"] == "1" and len(_GRADED) > 1:
    raise RuntimeError("This reward is broken.")
  return [float(len(text)) for text in completions]


def digest(tree) -> str:
  """Of what this process's devices hold."""
  found = hashlib.blake2b()
  for x in jax.tree.leaves(tree):
    for shard in sorted(x.addressable_shards, key=lambda s: str(s.index)):
      found.update(np.asarray(shard.data).tobytes())
  return found.hexdigest()


def same(value) -> bool:
  found = processes.gather(value)
  return all(each == found[0] for each in found)


def check_exchange(folder: pathlib.Path) -> None:
  own = processes.index()
  assert processes.gather({"process": own}) == [{"process": 0}, {"process": 1}]
  assert processes.from_first(lambda: own) == 0
  assert processes.largest({"a": own, "b": -own}) == {"a": 1, "b": 0}
  # The others find what the first one made.
  found = processes.first("file", lambda: (folder / "file").exists())
  assert found is False
  processes.wait("all have looked")
  processes.first("file", lambda: (folder / "file").touch())
  assert (folder / "file").exists()

  mesh = sharding.make_mesh(dict(data=2, fsdp=2))
  rows = np.arange(12.0).reshape(4, 3)
  placed = sharding.place(mesh, rows, (("data", "fsdp"),))
  assert not placed.is_fully_addressable
  np.testing.assert_array_equal(sharding.to_host({"x": placed})["x"], rows)


def check_rewards() -> None:
  problems = [
    Problem(f"{group}+1=?", "", "addition", "") for group in (0, 0, 1, 2, 2)
  ]
  texts = [f"text {row}" for row in range(5)]
  scores = combine.score(
    {"mine": dict(weight=1.0, function="agreement:by_the_clock")},
    problems,
    texts,
    truncated=np.zeros(5, bool),
  )
  assert same(scores.total.tolist())
  # Whole groups, and each row once.
  shares = processes.gather(list(_GRADED))
  assert shares == [["text 0", "text 1"], ["text 2", "text 3", "text 4"]]


def check_training(folder: pathlib.Path, source: str) -> None:
  import test_every_name

  states, save = [], checkpoint.Checkpointer.save

  def keep(self, step, state, **more):
    states.append(digest((state.params, state.opt_state)))
    save(self, step, state, **more)

  checkpoint.Checkpointer.save = keep
  c = test_every_name.make_config(source)
  c.data_dir, c.mesh = str(folder / "data"), dict(data=2, fsdp=2)
  c.rewards = dict(mine=dict(weight=1.0, function="agreement:by_the_clock"))
  c.dynamic_sampling = dict(term="mine", max_rounds=2)
  c.curriculum = dict(term="mine", share=0.5)
  stages.load("rl").run(c, folder / "run")
  # Parameters are replicated over `data`, so each process has all of them.
  assert len(states) == 1 and same(states)


def main(coordinator: str, process: str, folder: str, source: str) -> None:
  sys.modules["agreement"] = sys.modules["__main__"]
  others = launch.Launch(coordinator, 2, int(process), timeout=120)
  with launch.joined(others, lambda error: None):
    check_exchange(pathlib.Path(folder))
    check_rewards()
    check_training(pathlib.Path(folder), source)
  print(f"Process {process} agrees.")


if __name__ == "__main__":
  main(*sys.argv[1:])
