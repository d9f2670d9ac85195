"""Directories that are no sound checkpoint: one clear sentence each."""

import dataclasses
import json
import math

import helpers
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from grpo_jax.models import hf
from grpo_jax.models.hf import tensor_files
from grpo_jax.runs import source

CFG = dataclasses.replace(helpers.FAMILIES["llama"], num_layers=1)


@pytest.fixture
def model(tmp_path):
  hf.save(tmp_path / "model", CFG, helpers.make_params(CFG))
  return tmp_path / "model"


def change_config(directory, **changes):
  file = directory / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def header_of(file):
  content = file.read_bytes()
  length = int.from_bytes(content[:8], "little")
  return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(file, header, numbers):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(hidden_size="64"), "hidden_size='64' .* must be a whole number"),
    (dict(hidden_size=64.0), "hidden_size=64.0 .* must be a whole number"),
    (dict(hidden_size=None), "hidden_size=None .* must be a whole number"),
    (dict(vocab_size=True), "vocab_size=True .* must be a whole number"),
    (dict(num_hidden_layers=0), "num_hidden_layers=0 .* must be positive"),
    (dict(num_key_value_heads=[2]), r"num_key_value_heads=\[2\]"),
    (dict(rms_norm_eps=-1e-6), "rms_norm_eps=-1e-06 .* at least 0"),
    (dict(rms_norm_eps=NAN), "rms_norm_eps=nan .* a finite number"),
    (dict(rms_norm_eps="1e-6"), "rms_norm_eps='1e-6' .* a finite number"),
    (dict(rope_theta=NAN), "rope_theta=nan .* a finite number"),
    (dict(rope_theta=INF), "rope_theta=inf .* a finite number"),
    (dict(rope_theta=-1e4), "rope_theta=-10000.0 .* above 0"),
    (dict(rope_theta=10**400), "rope_theta=1000.* a finite number"),
    (dict(rope_parameters=dict(rope_theta=NAN)), "rope_theta=nan .*rope must"),
    (dict(rope_parameters=dict(rope_theta=0)), "rope_theta=0.0 must be above"),
    (dict(rope_scaling=["linear"]), "rope_scaling=.* must be an object"),
    (
      dict(rope_scaling=dict(rope_type="linear", factor=NAN)),
      "factor=nan of config.json's rope must be a finite number",
    ),
    (dict(tie_word_embeddings="no"), "tie_word_embeddings='no' .* true or"),
    (dict(model_type=["llama"]), r"model_type=\['llama'\] .* not supported"),
    (dict(quantization_config="fp8"), "quantization_config='fp8' .* an object"),
    (
      dict(quantization_config=dict(quant_method="fp8", weight_block_size=[0])),
      r"weight_block_size=\[0\] .* two sizes",
    ),
    (dict(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000, and"),
  ],
  ids=str,
)
def test_a_field_of_another_kind_is_named(model, changes, sentence):
  change_config(model, **changes)
  with pytest.raises(ValueError, match=sentence) as error:
    hf.load(model)
  assert str(error.value).endswith(".")


@pytest.mark.parametrize(
  "content, sentence",
  [
    ("[]", "config.json holds a list and no object"),
    ('"model_type"', "config.json holds a str and no object"),
    ('{"hidden_size": 64}', "config.json has no model_type"),
    ('{"model_type": "lla', "config.json is not JSON"),
    ("[" * 100_000, "config.json is not JSON"),
  ],
  ids=lambda text: text[:20],
)
def test_a_config_that_is_none_is_said_as_it_is(model, content, sentence):
  (model / "config.json").write_text(content)
  with pytest.raises(ValueError, match=sentence):
    source.require_source(model)


def test_a_directory_of_a_run_without_checkpoint_says_what_to_run(tmp_path):
  for content in (None, '{"stage": "rl"}'):
    if content:
      (tmp_path / "config.json").write_text(content)
    with pytest.raises(FileNotFoundError, match="run `python -m grpo_jax"):
      source.require_source(tmp_path)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(model, dtype, number):
  file = model / tensor_files.SINGLE
  found = {
    name: x.astype(dtype)
    for name, x in safetensors.numpy.load_file(file).items()
  }
  safetensors.numpy.save_file(found, file)
  hf.load(model)
  name = "model.layers.0.mlp.up_proj.weight"
  found[name][3, 5] = number
  safetensors.numpy.save_file(found, file)
  for target in ("float32", "bfloat16"):
    with pytest.raises(ValueError, match=f"{name}' in .* NaN or infinite"):
      hf.load(model, dtype=target)


def all_at_zero(header, numbers):
  for entry in header.values():
    begin, end = entry.get("data_offsets", (0, 0))
    if "dtype" in entry:
      entry["data_offsets"] = [0, end - begin]
  return header, numbers


def set_entry(**changes):
  def change(header, numbers):
    header["model.norm.weight"] |= changes
    return header, numbers

  return change


@pytest.mark.parametrize(
  "change, sentence",
  [
    (all_at_zero, "which overlaps another"),
    (lambda header, x: (header, x + b"\0" * 8), "8 bytes after its tensors"),
    (lambda header, x: ([], x), "its header is a list and no object"),
    (lambda header, x: (7, x), "its header is a int and no object"),
    (lambda header, x: (header | {"w": 3}, x), "broken at tensor 'w'"),
    (lambda header, x: (b"{", x), "is not a safetensors file"),
    (lambda header, x: (b"[" * 100_000, x), "is not a safetensors file"),
    (set_entry(data_offsets=None), "broken at tensor 'model.norm.weight'"),
    (set_entry(data_offsets=[0]), "broken at tensor 'model.norm.weight'"),
    (set_entry(data_offsets=["0", "4"]), "broken at tensor 'model.norm"),
    (set_entry(shape=[-1]), "broken at tensor 'model.norm.weight'"),
    (set_entry(shape="32"), "broken at tensor 'model.norm.weight'"),
    (set_entry(dtype=3), "broken at tensor 'model.norm.weight'"),
    (set_entry(dtype="I64"), "is of type I64"),
  ],
)
def test_a_header_that_is_none_is_one_sentence(model, change, sentence):
  file = model / tensor_files.SINGLE
  write(file, *change(*header_of(file)))
  with pytest.raises(ValueError, match=sentence) as error:
    hf.load(model)
  assert len(str(error.value)) < 500


def test_what_the_reference_library_refuses_is_refused(model):
  file = model / tensor_files.SINGLE
  content = header_of(file)
  for change in (all_at_zero, lambda header, x: (header, x + b"\0" * 8)):
    write(file, *change(*json.loads(json.dumps(content[0])) and content))
    with pytest.raises(Exception, match="header"):
      safetensors.numpy.load_file(file)


@pytest.mark.parametrize(
  "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{"]
)
def test_an_index_that_is_none_is_one_sentence(model, content):
  (model / tensor_files.INDEX).write_text(content)
  with pytest.raises(ValueError, match="index.json .*(weight_map|not JSON)"):
    hf.load(model)
