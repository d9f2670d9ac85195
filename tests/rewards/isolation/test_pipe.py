"""Messages: what is sent arrives, in whatever pieces; all else is refused."""

import io
import json

import pytest

from grpo_jax.rewards.isolation import pipe

MESSAGE = {"a": [1, None, "\ud800 \x00"], "b": 0.5}


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_messages_arrive_in_whatever_pieces(piece):
  stream = io.BytesIO(pipe.encode(MESSAGE, 100) + pipe.encode([], 100))

  def read(count):
    return stream.read(min(count, piece))

  assert [pipe.receive(read, 100) for _ in range(2)] == [MESSAGE, []]
  with pytest.raises(pipe.Gone):
    pipe.receive(read, 100)


def test_the_bound_is_of_both_sides():
  message = "x" * 8  # Ten bytes with its quotes.
  data = pipe.encode(message, 10)
  assert pipe.receive(io.BytesIO(data).read, 10) == message
  with pytest.raises(ValueError, match="of 10 bytes is too long"):
    pipe.encode(message, 9)
  with pytest.raises(pipe.Gone):
    pipe.receive(io.BytesIO(data).read, 9)


@pytest.mark.parametrize(
  "content", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000, b"[1] 2"]
)
def test_what_is_no_message_is_the_end(content):
  data = len(content).to_bytes(4, "big") + content
  with pytest.raises(pipe.Gone):
    pipe.receive(io.BytesIO(data).read, 1 << 20)
  cut = pipe.encode(json.dumps(MESSAGE), 100)[:-1]
  with pytest.raises(pipe.Gone):
    pipe.receive(io.BytesIO(cut).read, 1 << 20)
