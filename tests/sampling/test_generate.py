"""Completions of many problems: what each batch holds."""

import numpy as np

from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.sampling import generate

TOK = tokenizer.ByteTokenizer()


def test_text_is_of_what_the_mask_holds():
  ids = np.array([[TOK.encode("ab") + [2, 9]], [TOK.encode("cdef")]])
  mask = np.array([[[1, 1, 1, 0]], [[1, 1, 1, 1]]], bool)
  assert generate.decoded(TOK, ids, mask) == ["ab", "cdef"]
