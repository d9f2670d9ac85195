"""Trained weights: the text that their author published, in every detail."""

import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from grpo_jax.models import heads, hf, transformer
from grpo_jax.sampling import decode
from grpo_jax.types import PromptBatch


def convert_llama2c(path, directory):
  """A Hugging Face directory from a file of llama2.c, in float32."""
  content = path.read_bytes()
  d, f, layers, heads_, kv_heads, vocab, length = struct.unpack_from(
    "7i", content
  )
  numbers = np.frombuffer(content, np.float32, offset=28)
  used = 0

  def take(*shape):
    nonlocal used
    x = numbers[used : used + np.prod(shape)].reshape(shape)
    used += x.size
    return x

  def halves(x):
    # A head's rows are pairs (2i, 2i + 1) there and (i, i + H / 2) here.
    x = x.reshape(-1, d // heads_ // 2, 2, d)
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(-1, d)

  kv = d // heads_ * kv_heads
  stacked = {}
  tensors = {"model.embed_tokens.weight": take(vocab, d)}
  for name, shape in {
    "input_layernorm": (d,),
    "self_attn.q_proj": (d, d),
    "self_attn.k_proj": (kv, d),
    "self_attn.v_proj": (kv, d),
    "self_attn.o_proj": (d, d),
    "post_attention_layernorm": (d,),
    "mlp.gate_proj": (f, d),
    "mlp.down_proj": (d, f),
    "mlp.up_proj": (f, d),
  }.items():
    stacked[name] = take(layers, *shape)
  tensors["model.norm.weight"] = take(d)
  assert numbers.size - used == length * d // heads_  # Cosines and sines.
  for name, x in stacked.items():
    for i in range(layers):
      turned = name in ("self_attn.q_proj", "self_attn.k_proj")
      tensors[f"model.layers.{i}.{name}.weight"] = (
        halves(x[i]) if turned else x[i]
      )
  config = dict(
    model_type="llama",
    vocab_size=vocab,
    num_hidden_layers=layers,
    hidden_size=d,
    num_attention_heads=heads_,
    num_key_value_heads=kv_heads,
    intermediate_size=f,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=True,
    max_position_embeddings=length,
  )
  (directory / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")


def read_pieces(path):
  """The pieces of a tokenizer of llama2.c, as bytes."""
  content, offset, pieces = path.read_bytes(), 4, []
  while offset < len(content):
    _, size = struct.unpack_from("fi", content, offset)
    pieces.append(content[offset + 8 : offset + 8 + size])
    offset += 8 + size
  return pieces


def text_of(tokens, pieces):
  """Text after the beginning of a sequence, without its first blank."""
  parts = []
  for token in tokens:
    byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", pieces[token])
    parts.append(bytes([int(byte[1], 16)]) if byte else pieces[token])
  return b"".join(parts).decode().removeprefix(" ")


def greedy(params, cfg, tokens, count, eos_ids=()):
  """The most probable completion of each row, [P, N], and its mask."""
  tokens = jnp.asarray(tokens, jnp.int32)
  rollout = decode.sample(
    params,
    cfg,
    PromptBatch(tokens, jnp.ones(tokens.shape, bool)),
    jax.random.key(0),
    sampling=decode.SamplingParams(
      group_size=1, max_new_tokens=count, temperature=0.0
    ),
    eos_ids=eos_ids,
  )
  return np.asarray(rollout.tokens[:, 0]), rollout.completion_mask[:, 0]


def test_stories260k_tells_its_published_story(shared_data, tmp_path):
  folder = shared_data / "weights" / "stories260K"
  convert_llama2c(folder / "stories260K.bin", tmp_path)
  cfg, params = hf.load(tmp_path)
  assert sum(x.size for x in jax.tree.leaves(params)) == 260_032
  pieces = read_pieces(folder / "tok512.bin")
  assert len(pieces) == cfg.vocab_size
  page = (folder / "stories260K.md").read_text()
  story = page.split("-t 0.0\n")[1].split("\n```")[0]
  # Its program takes 256 steps, the first of which reads the beginning.
  tokens, _ = greedy(params, cfg, [[1]], 256)
  assert text_of(tokens[0], pieces) == story


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_verl_arithmetic_llama_loads_from_bf16(dtype, shared_data, tmp_path):
  folder = shared_data / "weights" / "verl_arithmetic_llama"
  cfg, params = hf.load(folder, dtype=dtype)
  assert sum(x.size for x in jax.tree.leaves(params)) == 795_776
  hf.save(tmp_path / "saved", cfg, params, dtype="bfloat16")
  name = "model.safetensors"
  expected = safetensors.numpy.load_file(folder / name)
  actual = safetensors.numpy.load_file(tmp_path / "saved" / name)
  assert sorted(actual) == sorted(expected)
  for key, x in expected.items():
    assert actual[key].tobytes() == x.tobytes(), key
  if dtype == "bfloat16":
    return
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  tokens = np.random.default_rng(0).integers(3, 16, (4, 10))
  positions = np.broadcast_to(np.arange(10), tokens.shape)
  rows = (jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32))
  hidden, _ = transformer.forward(
    params, cfg, *rows, jnp.ones(tokens.shape, bool)
  )
  with torch.no_grad():
    logits = model(torch.tensor(tokens)).logits.numpy()
  ours = heads.logits(params, cfg, hidden)
  np.testing.assert_allclose(ours, logits, atol=1e-4, rtol=0)
  drawn, mask = greedy(params, cfg, tokens, 20, eos_ids=(1,))
  expected = model.generate(
    torch.tensor(tokens), max_new_tokens=20, do_sample=False
  )[:, 10:].numpy()
  for row, inside, want in zip(drawn, np.asarray(mask), expected, strict=True):
    np.testing.assert_array_equal(row[inside], want[: inside.sum()])
