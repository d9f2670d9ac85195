import pathlib
import re

import jax
import jax.numpy as jnp

_README = pathlib.Path(__file__).parents[1] / "README.md"


def _blocks():
  """The fenced Python under the heading, in order."""
  text = _README.read_text(encoding="utf-8")
  section = text.split("## Losses in your own code\n", 1)[1]
  section = re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0]
  return re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def _is_learning_signal(namespace):
  loss, grads = namespace["loss"], jax.tree.leaves(namespace["grads"])
  return jnp.isfinite(loss) and any(jnp.any(grad != 0) for grad in grads)


def test_the_readmes_losses_run_in_flax_nnx_and_in_equinox():
  setup, *examples = _blocks()
  libraries = []
  for example in examples:
    namespace = {"__name__": "readme"}
    exec(setup, namespace)
    exec(example, namespace)
    assert _is_learning_signal(namespace)
    libraries += [name for name in ("nnx", "eqx") if name in namespace]
  assert libraries == ["nnx", "eqx"]
