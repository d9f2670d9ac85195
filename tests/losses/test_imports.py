import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[2]

# What `pip install jax jaxtyping` brings; nothing else is to be found.
_SCRIPT = """
import importlib.machinery
import sys

allowed = {
  "grpo_jax", "jax", "jaxlib", "jaxtyping", "ml_dtypes", "numpy", "opt_einsum",
  "scipy", "wadler_lindig",
} | set(sys.stdlib_module_names)


class Installed(importlib.machinery.PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    top = name.split(".")[0]
    if top in allowed or top.startswith("_sysconfigdata"):
      return super().find_spec(name, path, target)


finder = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[finder] = Installed
sys.path[:] = [p for p in sys.path if p not in ("", ".")]
sys.path.insert(0, sys.argv[1])

import grpo_jax.losses

for name in sorted(sys.modules):
  if name.split(".")[0] == "grpo_jax":
    print(name)
assert not {"flax", "optax", "orbax", "ml_collections"} & set(sys.modules)

import jax.numpy as jnp

mask = jnp.ones((2, 2, 3), bool)
x = jnp.zeros((2, 2, 3))
losses = grpo_jax.losses
rewards = jnp.arange(4.0).reshape(2, 2)
by_group = losses.advantages.group_advantages(rewards)
by_token = losses.advantages.spread(by_group, mask)
loss, _ = losses.policy.grpo_loss(x, x, x, by_token, x + 1 / 12)
assert jnp.isfinite(loss)
"""


def test_the_losses_need_nothing_but_jax_and_jaxtyping():
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT, str(_ROOT)],
    capture_output=True,
    text=True,
    env={"JAX_PLATFORMS": "cpu", "PATH": ""},
  )
  assert done.returncode == 0, done.stderr
  ours = done.stdout.split()
  losses = _ROOT / "grpo_jax" / "losses"
  modules = {f"grpo_jax.losses.{path.stem}" for path in losses.glob("*.py")}
  modules.remove("grpo_jax.losses.__init__")
  assert set(ours) == modules | {"grpo_jax", "grpo_jax.losses"}
