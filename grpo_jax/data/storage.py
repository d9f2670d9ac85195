"""Records as TFDS datasets of ArrayRecord files: written once, read at random.

No TensorFlow is involved. TFDS writes to a folder of its own and renames it at
the end, so an interrupted preparation is done again.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging

Records = Iterable[Mapping[str, Any]]


class _Info(tfds.core.DatasetInfo):
  """What TFDS knows of a dataset, without asking Google's bucket for it."""

  def initialize_from_bucket(self) -> None:
    """Nothing is there of ours; TFDS would leave an empty folder in /tmp."""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes and reads a TFDS dataset of any records."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    features: Mapping[str, tfds.features.FeatureConnector],
    splits: Callable[[tfds.download.DownloadManager], Mapping[str, Records]],
    origin: str,
    key: str | None = None,
  ):
    """Nothing is written yet.

    Args:
      name: of the dataset.
      data_dir: where TFDS keeps it.
      features: of a record.
      splits: records per split, in their order.
      origin: what they are made from, for messages.
      key: tells apart datasets of one name.
    """
    self.name = name
    self._features = tfds.features.FeaturesDict(features)
    self._splits = splits
    self._origin = origin
    super().__init__(
      data_dir=os.fspath(data_dir),
      config=tfds.core.BuilderConfig(name=key) if key else None,
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    return _Info(builder=self, features=self._features, disable_shuffling=True)

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Any]:
    return {
      split: self._generate_examples(split, records)
      for split, records in self._splits(dl_manager).items()
    }

  def _generate_examples(
    self, split: str, records: Records
  ) -> Iterator[tuple[int, Mapping[str, Any]]]:
    index = -1
    for index, record in enumerate(records):
      yield index, record
    if index < 0:
      raise ValueError(f"{self._origin} has no records for {split!r}.")


def prepare(make: Callable[[], Builder]) -> Builder:
  """A dataset's builder, after its records were written.

  Args:
    make: opens the builder; a second time where another process was faster.
  """
  with quiet():
    builder = make()
    if builder.is_prepared():
      return builder
    try:
      builder.download_and_prepare()
    except OSError:
      # Another process may have finished first; its folder then stands where
      # ours was to go, with the same records.
      builder = make()
      if not builder.is_prepared():
        raise
  return builder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps TFDS from printing bars, banners and a warning about its configs."""
  tfds.disable_progress_bar()
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl_logging.set_verbosity(verbosity)
