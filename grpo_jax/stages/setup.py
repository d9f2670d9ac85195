"""What every stage begins with: a mesh in force, what its config names."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import errors, processes, sharding, stages
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import ask
from grpo_jax.models import lora, moe
from grpo_jax.models import params as params_lib
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.rewards import combine, references
from grpo_jax.runs import directory, progress
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import claim, prompting
from grpo_jax.train import loop
from grpo_jax.types import Problem


class Run:
  """A run of a stage; what its config names is read when it is asked for.

  Attributes:
    config: of the stage, checked; with sizes for those that it left open.
    workdir: the run's directory; claimed by `claim`, not before.
    mesh: in force.
    source: directory of the model that the run begins with.
    fitted: what of the sizes that were left open the run keeps.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path, mesh: Mesh):
    """Reads nothing yet."""
    self.config = self._named = config
    self.workdir = pathlib.Path(workdir)
    self.mesh = mesh
    self.source = pathlib.Path(config.get("source") or "")
    self.fitted: dict[str, int] = {}

  @functools.cached_property
  def data_dir(self) -> pathlib.Path:
    """Where prepared datasets are kept."""
    return pathlib.Path(self.config.data_dir).expanduser()

  @functools.cached_property
  def template(self) -> prompts.Template:
    """In which prompts are asked."""
    return prompting.template_of(self.config, self.workdir, self.source)

  @functools.cached_property
  def tok(self) -> tokenizer.Tokenizer:
    """Of the source, with the stop tokens that the template asks for."""
    template = self.template if "prompts" in self.config else ""
    return prompting.tokenizer_of(self.source, template)

  @functools.cached_property
  def lora(self) -> lora.LoraConfig:
    """The adapters that are trained; of rank 0 where all is."""
    return lora.LoraConfig(**(self.config.get("lora") or {}))

  @functools.cached_property
  def cfg(self) -> ModelConfig:
    """The source's model, computed as the config says."""
    cfg = source_lib.read_model(self.source, **self.config.model)
    self._check_mesh(cfg)
    return cfg

  def _check_mesh(self, cfg: ModelConfig) -> None:
    experts = self.config.mesh.get("expert", 1)
    moe.check(cfg, experts, self.config.get("router_bias_rate", 0.0))
    params_lib.shardings(params_lib.param_specs(cfg), self.mesh)

  def key(self, purpose: int) -> jax.Array:
    """Returns the key of a stage's draws for one purpose."""
    return jax.random.fold_in(jax.random.key(self.config.seed), purpose)

  def rows(self, count: int) -> tuple:
    """Returns the mesh axes of `count` rows; ValueError if they do not fit."""
    return sharding.split_rows(self.mesh, count)[:1]

  def questions(self, said: Sequence[str] = ()) -> ask.Questions | None:
    """Returns the held-out problems of `config.evaluate`; None without any.

    Args:
      said: what was said already of what cannot be measured.
    """
    if not self.config.evaluate:
      return None
    questions = ask.make_questions(
      self.config.evaluate.to_dict(),
      self.tok,
      self.template,
      self.data_dir,
      tell=progress.say,
    )
    progress.warn(note for note in questions.notes if note not in said)
    return questions

  def load(self, frozen: bool = False) -> Params:
    """Returns the parameters of the source."""
    return source_lib.load_policy(
      self.source, self.mesh, frozen=frozen, **self.config.model
    )[1]

  def make_base(self) -> bool:
    """Makes the base model where the config says how; False if stopped."""
    if not self.config.pretrain:
      return True
    pretrain = stages.load("pretrain")
    # Its own mesh may be another; what comes after it is on this one.
    self._check_mesh(pretrain.model_of(self.config.pretrain))
    self.claim()
    self.source = self.workdir / "base"
    progress.say(f"The base model, in {self.source}:")
    made = pretrain.run(self.config.pretrain, self.source)
    return made is Outcome.FINISHED

  def claim(self) -> None:
    """Makes the directory this run's own; see `claim.claim`."""
    claim.claim(self._named, self.workdir)
    path = self.workdir / directory.FITTED
    if self.fitted and not path.exists() and processes.is_first():
      directory.write_text(path, json.dumps(self.fitted) + "\n")
    if "prompts" in self.config:
      prompting.keep(self.workdir, self.template)

  def describe(self, cfg: ModelConfig, tok: tokenizer.Tokenizer) -> None:
    """Claims the directory and writes what its parameters mean."""
    self.claim()
    processes.first("tok", lambda: tok.save(self.workdir / "tokenizer"))
    directory.save_model(self.workdir, cfg)
    if self.lora.rank:
      directory.save_lora(self.workdir, self.lora, self.source)

  def schedule(
    self, total_steps: int, evaluate_every: int = 0
  ) -> loop.Schedule:
    """Returns how long the run is, and what happens every so many steps."""
    return loop.Schedule(
      total_steps=total_steps,
      log_every=self.config.get("log_every", 1),
      checkpoint_every=self.config.checkpoint.every,
      keep=self.config.checkpoint.keep,
      evaluate_every=evaluate_every,
    )

  def is_finished(self, total_steps: int) -> bool:
    """Returns whether all steps are done already, and says so."""
    if not loop.is_finished(self.workdir, total_steps):
      return False
    self.claim()
    progress.say(f"{self.workdir} already holds all {total_steps} steps.")
    return True


def check_references(
  rewards: errors.Section, problems: Sequence[Problem], **options: Any
) -> list[str]:
  """Returns, and says, what of problems could not be rewarded.

  Args:
    rewards: a section of terms.
    problems: at random access.
    **options: of `references.check`.

  Raises:
    ConfigError: not one of them could, or a reward asks for a column that they
      do not have.
  """
  combine.check_columns(rewards, references.sample(problems))
  notes = references.check(rewards, problems, where="config.data", **options)
  progress.warn(notes)
  return notes


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: pathlib.Path) -> Iterator[Run]:
  """Puts the config's mesh in force for a stage.

  Raises:
    ValueError: the mesh does not fit the devices.
  """
  mesh = sharding.make_mesh(config.mesh.to_dict())
  with jax.set_mesh(mesh):
    yield Run(config, workdir, mesh)
