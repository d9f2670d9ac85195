"""Checkpoints: what transformers saves we load, and the other way round.

The models of `CONFIGS` are built, filled at random and saved by transformers.
"""

import json
import logging
import pathlib
import shutil

import helpers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from grpo_jax.losses import weighting
from grpo_jax.models import heads, hf, transformer
from grpo_jax.models.hf import tensor_files
from grpo_jax.sampling import decode
from grpo_jax.types import PromptBatch

_SIZES = dict(
  vocab_size=96,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  bos_token_id=None,
  eos_token_id=None,
  pad_token_id=None,
)
_EXPERTS = dict(
  num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True
)
_LATENT = dict(
  num_key_value_heads=4,
  kv_lora_rank=16,
  q_lora_rank=24,
  qk_nope_head_dim=8,
  qk_rope_head_dim=4,
  v_head_dim=12,
  n_routed_experts=8,
  n_shared_experts=2,
  n_group=4,
  topk_group=2,
  routed_scaling_factor=2.5,
  first_k_dense_replace=1,
)
_YARN = dict(
  rope_type="yarn",
  rope_theta=1e4,
  factor=4.0,
  original_max_position_embeddings=16,
)
CONFIGS = {
  "llama": transformers.LlamaConfig(**_SIZES, tie_word_embeddings=False),
  "llama_tied_wide_heads": transformers.LlamaConfig(
    **_SIZES, head_dim=16, tie_word_embeddings=True
  ),
  "llama_linear": transformers.LlamaConfig(
    **_SIZES,
    rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0),
  ),
  "llama_llama3": transformers.LlamaConfig(
    **_SIZES,
    rope_parameters=dict(
      rope_type="llama3",
      rope_theta=1e4,
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=16,
    ),
  ),
  "llama_yarn": transformers.LlamaConfig(**_SIZES, rope_parameters=_YARN),
  "mistral": transformers.MistralConfig(**_SIZES, sliding_window=4),
  "mistral_no_window": transformers.MistralConfig(
    **_SIZES, sliding_window=None
  ),
  "qwen2": transformers.Qwen2Config(**_SIZES, tie_word_embeddings=True),
  "qwen3": transformers.Qwen3Config(
    **_SIZES, head_dim=12, tie_word_embeddings=True
  ),
  "qwen3_moe": transformers.Qwen3MoeConfig(
    **_SIZES, **_EXPERTS, head_dim=8, num_experts=6
  ),
  "deepseek_v3": transformers.DeepseekV3Config(
    **_SIZES | _EXPERTS | _LATENT,
    rope_parameters=_YARN | dict(mscale=1.0, mscale_all_dim=0.7),
  ),
  "deepseek_v3_no_query_latent": transformers.DeepseekV3Config(
    **_SIZES | _EXPERTS | _LATENT | dict(q_lora_rank=None)
  ),
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3")
LENGTHS = (9, 3, 12, 1)


def build(name, directory, dtype=torch.float32, **options):
  """A model of transformers with no two numbers alike, saved."""
  torch.manual_seed(sum(map(ord, name)))
  model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
  with torch.no_grad():
    for tensor in (*model.parameters(), *model.buffers()):
      if tensor.is_floating_point():
        tensor.add_(0.1 * torch.randn_like(tensor))
  # Frequencies are no parameters: made again from the config.
  model.to(dtype).save_pretrained(directory, **options)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, attn_implementation="eager", dtype=dtype
  )
  return model.eval()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A function from a name to the model and its directory; made once."""
  made = {}

  def get(name):
    if name not in made:
      directory = tmp_path_factory.mktemp(name)
      # Several files, so that the index is read.
      made[name] = build(name, directory, max_shard_size="40KB"), directory
    return made[name]

  return get


def prompts():
  return helpers.make_prompts(LENGTHS, slots=12, vocab_size=96)


def tensors(directory):
  """All tensors of a directory, by the safetensors library."""
  found = {}
  for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
    found |= safetensors.numpy.load_file(path)
  return found


def assert_same_tensors(actual, expected):
  assert sorted(actual) == sorted(expected)
  for name, x in expected.items():
    assert actual[name].dtype == x.dtype, name
    assert actual[name].shape == x.shape, name
    assert actual[name].tobytes() == x.tobytes(), name


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, built):
  model, directory = built(name)
  batch = prompts()
  cfg, params = hf.load(directory)
  positions = np.asarray(weighting.positions(jnp.asarray(batch.mask)))
  hidden, _ = transformer.forward(
    params,
    cfg,
    jnp.asarray(batch.tokens),
    jnp.asarray(positions),
    jnp.asarray(batch.mask),
  )
  logits = np.asarray(heads.logits(params, cfg, hidden))
  with torch.no_grad():
    expected = model(
      torch.tensor(batch.tokens, dtype=torch.long),
      attention_mask=torch.tensor(batch.mask, dtype=torch.long),
      position_ids=torch.tensor(positions, dtype=torch.long),
    ).logits.numpy()
  real = batch.mask
  assert np.abs(expected[real]).max() > 0.5
  np.testing.assert_allclose(logits[real], expected[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_completions_are_those_of_transformers(name, built):
  model, directory = built(name)
  batch = prompts()
  cfg, params = hf.load(directory)
  rollout = decode.sample(
    params,
    cfg,
    PromptBatch(jnp.asarray(batch.tokens), jnp.asarray(batch.mask)),
    jax.random.key(0),
    sampling=decode.SamplingParams(
      group_size=1, max_new_tokens=12, temperature=0.0
    ),
    eos_ids=(),
  )
  expected = model.generate(
    torch.tensor(batch.tokens, dtype=torch.long),
    attention_mask=torch.tensor(batch.mask, dtype=torch.long),
    do_sample=False,
    max_new_tokens=12,
    pad_token_id=0,
    eos_token_id=None,
  )[:, batch.tokens.shape[1] :]
  np.testing.assert_array_equal(rollout.tokens[:, 0], expected.numpy())


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_loaded_is_saved_bit_for_bit(name, built, tmp_path):
  model, directory = built(name)
  cfg, params = hf.load(directory)
  out = tmp_path / "saved"
  hf.save(out, cfg, params, max_shard_bytes=30_000)
  assert_same_tensors(tensors(out), tensors(directory))
  assert len(list(out.glob("*.safetensors"))) > 1
  again, info = type(model).from_pretrained(out, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert not info["mismatched_keys"]
  saved = model.state_dict()
  for key, x in again.state_dict().items():
    assert torch.equal(x, saved[key]), key
  assert hf.read_config(out) == hf.read_config(directory)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_goes_through_float32_and_back_bit_for_bit(name, built, tmp_path):
  build(name, tmp_path / "bf16", torch.bfloat16)
  expected = tensors(tmp_path / "bf16")
  for dtype, out in (("bfloat16", None), ("float32", "bfloat16")):
    cfg, params = hf.load(tmp_path / "bf16", dtype=dtype)
    assert params["embed"].dtype == cfg.dtype == dtype
    hf.save(tmp_path / dtype, cfg, params, dtype=out or dtype)
    bits = tensors(tmp_path / dtype)
    for key in bits:  # The router's bias is float32, whatever the rest is.
      if key.endswith("e_score_correction_bias"):
        assert bits[key].dtype == np.float32
        bits[key] = bits[key].astype(expected[key].dtype)
    assert_same_tensors(bits, expected)


@pytest.mark.parametrize("name", ("qwen2", "qwen3_moe", "deepseek_v3"))
def test_on_eight_devices_the_same_parameters_lie_where_they_belong(
  name, built, tmp_path
):
  _, directory = built(name)
  _, one = hf.load(directory)
  mesh = helpers.make_mesh(**helpers.eight(hf.read_config(directory)))
  cfg, params = hf.load(directory, mesh=mesh)
  helpers.assert_trees_close(params, one, rtol=0, atol=0)
  gate = params["layers"]["mlp" if name == "qwen2" else "moe"]["gate"]
  split = 4 if name == "qwen2" else 8  # Over data it is replicated.
  assert gate.addressable_shards[0].data.size == gate.size // split
  hf.save(tmp_path / "saved", cfg, params)
  assert_same_tensors(tensors(tmp_path / "saved"), tensors(directory))


def rewrite(directory, change, target):
  """A copy of a checkpoint as one file, with other tensors."""
  found = tensors(directory)
  change(found)
  target.mkdir()
  shutil.copy(directory / "config.json", target)
  safetensors.numpy.save_file(found, target / "model.safetensors")
  return target


def test_a_tied_head_may_have_either_name(built, tmp_path):
  _, directory = built("qwen2")
  _, expected = hf.load(directory)

  def rename(found):
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")

  def both(found):
    found["lm_head.weight"] = found["model.embed_tokens.weight"]

  def differ(found):
    found["lm_head.weight"] = found["model.embed_tokens.weight"] + 1

  for change in (rename, both):
    target = rewrite(directory, change, tmp_path / change.__name__)
    _, params = hf.load(target)
    helpers.assert_trees_close(params, expected, rtol=0, atol=0)
  with pytest.raises(ValueError, match="ties the head .*'lm_head.weight'"):
    hf.load(rewrite(directory, differ, tmp_path / "differ"))


def test_all_faults_are_one_error_that_names_tensors_shapes_and_files(
  built, tmp_path
):
  _, directory = built("llama")

  def change(found):
    del found["model.layers.1.mlp.up_proj.weight"]
    found["model.layers.0.mlp.extra"] = np.zeros((2, 3), np.float32)
    found["model.norm.weight"] = np.zeros(31, np.float32)
    # An old file's buffer, which is no fault.
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    found[name] = np.zeros(4, np.float32)

  target = rewrite(directory, change, tmp_path / "changed")
  with pytest.raises(ValueError) as error:
    hf.load(target)
  text = str(error.value)
  for phrase in (
    str(target),
    "'model.layers.1.mlp.up_proj.weight' of shape [48, 32] is missing",
    "'model.layers.0.mlp.extra' in model.safetensors has shape [2, 3] and is"
    " no tensor of this model",
    "'model.norm.weight' in model.safetensors has shape [31] and should have"
    " [32]",
  ):
    assert phrase in text
  assert "inv_freq" not in text


def test_files_that_are_missing_or_broken_are_named(built, tmp_path):
  _, directory = built("llama")
  copy = tmp_path / "copy"
  shutil.copytree(directory, copy)
  first = sorted(copy.glob("*.safetensors"))[0]
  content = first.read_bytes()
  first.write_bytes(content[:-100])
  with pytest.raises(ValueError, match=f"{first.name} is cut off"):
    hf.load(copy)
  first.write_bytes(b"\xff" * 100)
  with pytest.raises(ValueError, match=f"{first.name} is not a whole"):
    hf.load(copy)
  first.unlink()
  with pytest.raises(FileNotFoundError, match=first.name):
    hf.load(copy)
  (copy / tensor_files.INDEX).unlink()
  with pytest.raises(FileNotFoundError, match="No weights in .*safetensors"):
    hf.load(copy)
  (copy / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"No config\.json in"):
    hf.load(copy)


def test_a_directory_that_holds_something_is_not_overwritten(built, tmp_path):
  _, directory = built("llama")
  cfg, params = hf.load(directory)
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="is not empty"):
    hf.save(tmp_path, cfg, params)
  assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def quantize(found, name, block):
  """Puts a matrix into float8 with a scale for each block, as DeepSeek does."""
  x = found[name].astype(np.float32)
  rows, columns = (-(-size // block) for size in x.shape)
  scale = np.empty((rows, columns), np.float32)
  y = np.empty(x.shape, ml_dtypes.float8_e4m3fn)
  back = np.empty(x.shape, np.float32)
  for i in range(rows):
    for j in range(columns):
      at = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
      scale[i, j] = np.abs(x[at]).max() / 448
      y[at] = (x[at] / scale[i, j]).astype(y.dtype)
      back[at] = y[at].astype(np.float32) * scale[i, j]
  found[name], found[name + "_scale_inv"] = y, scale
  return back


def test_float8_in_blocks_is_scaled_back_and_predictors_left_out(
  built, tmp_path, caplog
):
  _, directory = built("deepseek_v3")
  expected = {}

  def change(found):
    for name in list(found):
      if "_proj" in name or "_a_" in name and "norm" not in name:
        expected[name] = quantize(found, name, 7)
    found["model.layers.3.eh_proj.weight"] = np.ones((32, 64), np.float32)
    found["model.layers.3.mlp.gate.weight"] = np.ones((8, 32), np.float32)

  target = rewrite(directory, change, tmp_path / "float8")
  config = json.loads((target / "config.json").read_text())
  config["num_nextn_predict_layers"] = 1
  (target / "config.json").write_text(json.dumps(config))
  with pytest.raises(
    ValueError, match="is float8, and .* no quantization_config"
  ):
    hf.load(target)
  quantization = {"quant_method": "fp8", "weight_block_size": [7, 7]}
  config["quantization_config"] = quantization
  (target / "config.json").write_text(json.dumps(config))
  with caplog.at_level(logging.WARNING, "absl"):
    cfg, params = hf.load(target)
  assert "Left out: 2 tensors" in caplog.text
  assert "model.layers.3.*" in caplog.text
  hf.save(tmp_path / "saved", cfg, params)
  saved, plain = tensors(tmp_path / "saved"), tensors(directory)
  assert len(expected) > 20
  for name, x in saved.items():
    np.testing.assert_array_equal(x, expected.get(name, plain[name]), name)
  config["quantization_config"] = {"quant_method": "awq"}
  (target / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="quantized by 'awq'"):
    hf.load(target)
