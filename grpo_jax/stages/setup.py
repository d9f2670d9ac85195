"""What every stage begins with: a mesh in force, what its config names."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grpo_jax import processes, sharding, stages
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import ask
from grpo_jax.models import lora, moe
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.params import Params
from grpo_jax.runs import directory, progress
from grpo_jax.runs import source as source_lib
from grpo_jax.runs.signals import Outcome
from grpo_jax.stages import claim
from grpo_jax.train import loop


class Run:
  """A run of a stage; what its config names is read when it is asked for.

  Attributes:
    config: of the stage, checked.
    workdir: the run's directory; claimed by `claim`, not before.
    mesh: in force.
    source: directory of the model that the run begins with.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path, mesh: Mesh):
    """Reads nothing yet."""
    self.config = config
    self.workdir = pathlib.Path(workdir)
    self.mesh = mesh
    self.source = pathlib.Path(config.get("source") or "")

  @functools.cached_property
  def data_dir(self) -> pathlib.Path:
    """Where prepared datasets are kept."""
    return pathlib.Path(self.config.data_dir).expanduser()

  @functools.cached_property
  def template(self) -> str:
    """In which prompts are asked."""
    return prompts.read_template(self.config.prompts.template, chat_too=True)

  @functools.cached_property
  def tok(self) -> tokenizer.Tokenizer:
    """Of the source."""
    return tokenizer.load(source_lib.tokenizer_directory(self.source))

  @functools.cached_property
  def lora(self) -> lora.LoraConfig:
    """The adapters that are trained; of rank 0 where all is."""
    return lora.LoraConfig(**(self.config.get("lora") or {}))

  @functools.cached_property
  def cfg(self) -> ModelConfig:
    """The source's model, computed as the config says."""
    cfg = source_lib.read_model(self.source, **self.config.model)
    experts = self.config.mesh.get("expert", 1)
    moe.check(cfg, experts, self.config.get("router_bias_rate", 0.0))
    return cfg

  def key(self, purpose: int) -> jax.Array:
    """Returns the key of a stage's draws for one purpose."""
    return jax.random.fold_in(jax.random.key(self.config.seed), purpose)

  def rows(self, count: int) -> tuple:
    """Returns the mesh axes of `count` rows; ValueError if they do not fit."""
    return sharding.split_rows(self.mesh, count)[:1]

  def questions(self) -> ask.Questions | None:
    """Returns the held-out problems of `config.evaluate`; None without any."""
    if not self.config.evaluate:
      return None
    return ask.make_questions(
      self.config.evaluate.to_dict(), self.tok, self.template, self.data_dir
    )

  def load(self, frozen: bool = False) -> Params:
    """Returns the parameters of the source."""
    return source_lib.load_policy(
      self.source, self.mesh, frozen=frozen, **self.config.model
    )[1]

  def make_base(self) -> bool:
    """Makes the base model where the config says how; False if stopped."""
    if not self.config.pretrain:
      return True
    self.claim()
    self.source = self.workdir / "base"
    progress.say(f"The base model, in {self.source}:")
    pretrain = stages.load("pretrain")
    made = pretrain.run(self.config.pretrain, self.source)
    return made is Outcome.FINISHED

  def claim(self) -> None:
    """Makes the directory this run's own; see `claim.claim`."""
    claim.claim(self.config, self.workdir)

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


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: pathlib.Path) -> Iterator[Run]:
  """Puts the config's mesh in force for a stage.

  Raises:
    ValueError: the mesh does not fit the devices.
  """
  mesh = sharding.make_mesh(config.mesh.to_dict())
  with jax.set_mesh(mesh):
    yield Run(config, workdir, mesh)
