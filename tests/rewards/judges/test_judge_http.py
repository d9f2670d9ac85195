"""A judge behind a real HTTP server on this machine, which misbehaves."""

import asyncio
import email.utils
import json
import logging
import os
import socket
import time

import pytest
from judge_server import chat, honest, serving, verdict

from grpo_jax import errors, types
from grpo_jax.rewards import combine
from grpo_jax.rewards.judges import judge_http

PROBLEM = types.Problem("What is 6 x 7?", "42", "mine", "What is 6 x 7?")
FAST = dict(model="judge-1", deadline=10.0, backoff=0.01, concurrency=8)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  for name in list(os.environ):
    if name.lower().endswith("_proxy"):
      monkeypatch.delenv(name)


def ask(server, completions, **options):
  return judge_http.judge(
    [PROBLEM] * len(completions),
    completions,
    url=server.url,
    **FAST | options,
  )


def test_each_completion_has_its_own_verdict():
  completions = [f"It is {n}." for n in (42, 41, 142, 7)] * 8
  with serving(honest) as server:
    result = ask(server, completions, temperature=0.3, max_tokens=99)
  assert result.scores == [1, 0, 1, 0] * 8
  assert result.metrics["unreachable"] == [0] * 32
  path, headers, body = server.requests[0]
  assert path == "/v1/chat/completions"
  assert "Authorization" not in headers
  assert {k: body[k] for k in ("model", "temperature", "max_tokens")} == {
    "model": "judge-1",
    "temperature": 0.3,
    "max_tokens": 99,
  }


def test_no_more_requests_run_at_one_time_than_are_allowed():
  def slow(handler, prompt, number):
    time.sleep(0.02)
    honest(handler, prompt, number)

  with serving(slow) as server:
    ask(server, ["42"] * 30, concurrency=3)
    assert server.most == 3
    ask(server, ["42"] * 30, concurrency=8)
    assert 3 < server.most <= 8


FAILURES = {
  "429": lambda h: h.answer(b"busy", 429, Retry_After="0"),
  "500": lambda h: h.answer(b"oh", 500),
  "503": lambda h: h.answer(b"", 503, Retry_After="soon"),
  "no JSON": lambda h: h.answer(b"<html>"),
  "half JSON": lambda h: h.answer(chat("Verdict")[:-9]),
  "other JSON": lambda h: h.answer(b'{"choices": []}'),
  "a list": lambda h: h.answer(b"[[]]"),
  "deep JSON": lambda h: h.answer(b"[" * 10**5),
  "a long number": lambda h: h.answer(b"9" * 10**5),
  "no UTF-8": lambda h: h.answer(b"\xff\xfe"),
  "no text": lambda h: h.answer(chat(None)),
  "no answer": lambda h: h.connection.shutdown(socket.SHUT_RDWR),
  "no HTTP": lambda h: h.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n"),
  "a dropped body": lambda h: (
    h.send_response(200),
    h.send_header("Content-Length", "1000"),
    h.end_headers(),
    h.wfile.write(b"{"),
    h.wfile.flush(),
    h.connection.shutdown(socket.SHUT_RDWR),
  ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_twice_is_tried_a_third_time(failure):
  def behave(handler, prompt, number):
    if number <= 2:
      handler.close_connection = True
      FAILURES[failure](handler)
    else:
      honest(handler, prompt, number)

  with serving(behave) as server:
    assert ask(server, ["42"], attempts=3).scores == [1.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_what_always_fails_has_no_score_and_is_not_tried_without_end(failure):
  def behave(handler, prompt, number):
    handler.close_connection = True
    FAILURES[failure](handler)

  with serving(behave) as server:
    result = ask(server, ["42"] * 2, attempts=2)
    assert result.scores == [None, None]
    assert result.metrics["unreachable"] == [1, 1]
    assert len(server.requests) == 4


def test_a_server_that_is_not_there_gives_no_scores_and_says_so(caplog):
  with socket.create_server(("127.0.0.1", 0)) as closed:
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
  result = judge_http.judge(
    [PROBLEM] * 3, ["42"] * 3, url=url, **FAST, attempts=2
  )
  assert result.scores == [None] * 3
  assert "did not reply to any of 3 completions" in caplog.text
  assert "ConnectError" in caplog.text


@pytest.mark.parametrize("status", [400, 401, 404, 301])
def test_a_refusal_is_not_asked_again_and_its_reason_is_told(status, caplog):
  def behave(handler, prompt, number):
    handler.answer(b"model judge-1 does not exist", status)

  with serving(behave) as server:
    assert ask(server, ["42"], votes=3).scores == [None]
    assert len(server.requests) == 1
  assert f"HTTP {status} model judge-1 does not exist" in caplog.text


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form):
  times = []

  def behave(handler, prompt, number):
    times.append(time.monotonic())
    if number > 1:
      return honest(handler, prompt, number)
    # A date has whole seconds: three from now are at least two.
    date = email.utils.formatdate(time.time() + 3, usegmt=True)
    handler.answer(b"", 429, Retry_After=date if form == "date" else "1.5")

  with serving(behave) as server:
    assert ask(server, ["42"]).scores == [1.0]
  assert times[1] - times[0] >= 1.4


def test_a_wait_beyond_the_deadline_is_not_begun():
  with serving(lambda h, *_: h.answer(b"", 429, Retry_After="3600")) as server:
    start = time.monotonic()
    assert ask(server, ["42"], deadline=30.0).scores == [None]
    assert time.monotonic() - start < 10
    assert len(server.requests) == 1


def drip(handler):
  """A body that never ends, but never pauses for long either."""
  handler.send_response(200)
  handler.send_header("Content-Length", str(10**6))
  handler.end_headers()
  while not handler.server.released.wait(0.05):
    handler.wfile.write(b" ")


@pytest.mark.parametrize(
  "stall",
  [
    lambda h: h.server.released.wait(60),
    drip,
    lambda h: (h.wfile.write(b"HTTP/1.1 "), h.server.released.wait(60)),
  ],
  ids=["no answer", "a slow body", "half a status"],
)
def test_the_deadline_holds_and_others_have_their_verdict(stall):
  def behave(handler, prompt, number):
    if "wait" in prompt:
      handler.close_connection = True
      stall(handler)
    else:
      honest(handler, prompt, number)

  with serving(behave) as server:
    start = time.monotonic()
    result = ask(server, ["42", "wait", "41", "wait"], deadline=1.0)
    seconds = time.monotonic() - start
  assert result.scores == [1, None, 0, None]
  assert 0.9 < seconds < 6  # One deadline, as both wait at the same time.


def test_the_deadline_is_of_all_votes_and_those_that_came_count():
  def behave(handler, prompt, number):
    if number > 2:
      handler.server.released.wait(60)
    honest(handler, prompt, number)

  with serving(behave) as server:
    result = ask(server, ["42"], votes=4, deadline=1.0)
  assert result.scores == [1.0]
  assert result.metrics["unreachable"] == [0.5]


def test_an_endless_answer_ends():
  def behave(handler, prompt, number):
    handler.close_connection = True
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.released.is_set():
      handler.wfile.write(b" " * 2**20)

  with serving(behave) as server:
    assert ask(server, ["42"], attempts=1, deadline=60.0).scores == [None]


def test_a_reply_that_was_cut_has_no_verdict_even_if_it_ends_like_one():
  def behave(handler, prompt, number):
    handler.answer(chat(verdict(prompt), "length"))

  with serving(behave) as server:
    assert ask(server, ["42"]).scores == [None]
    assert len(server.requests) == 1


def test_a_judge_that_is_down_is_not_asked_about_every_completion():
  with serving(lambda h, *_: h.answer(b"", 404)) as server:
    result = ask(server, ["42"] * 200, concurrency=4)
  assert result.scores == [None] * 200
  assert len(server.requests) <= 2 * 4 + 3


def test_repeated_verdicts_are_averaged_and_their_disagreement_reported():
  def behave(handler, prompt, number):
    said = ("correct", "wrong", "correct", "correct")[number - 1]
    handler.answer(chat(verdict(prompt, said)))

  with serving(behave) as server:
    result = ask(server, ["42"], votes=4)
  assert result.scores == [0.75]
  assert result.metrics["disagreement"] == [pytest.approx(0.5)]


class TestCache:
  def test_replies_are_kept_and_asked_for_once(self, tmp_path):
    with serving(honest) as server:
      options = dict(cache=str(tmp_path / "kept"), votes=2)
      first = ask(server, ["42", "41"], **options)
      assert len(server.requests) == 4
      assert ask(server, ["41", "42"], **options).scores == [0, 1]
      assert len(server.requests) == 4
    # Also where the server is gone, and in another process: it is on disk.
    assert ask(server, ["42", "41"], **options).scores == first.scores

  def test_whatever_decides_a_verdict_is_part_of_its_key(self, tmp_path):
    cache = str(tmp_path)
    with serving(honest) as server:
      for number, options in enumerate(
        [
          {},
          dict(model="judge-2"),
          dict(temperature=0.1),
          dict(max_tokens=7),
          dict(request=dict(top_p=0.9)),
          dict(template="safety"),
          dict(votes=2),  # One more.
        ],
        start=1,
      ):
        ask(server, ["42"], cache=cache, **options)
        assert len(server.requests) == number
      ask(server, ["42 "], cache=cache)
      assert len(server.requests) == number + 1
    with serving(honest) as other:
      ask(other, ["42"], cache=cache)
      assert len(other.requests) == 1

  def test_failures_are_not_kept_and_damaged_files_are_asked_again(
    self, tmp_path
  ):
    down = [True]

    def behave(handler, prompt, number):
      if down[0]:
        handler.answer(b"", 500)
      else:
        honest(handler, prompt, number)

    with serving(behave) as server:
      options = dict(cache=str(tmp_path), attempts=1)
      assert ask(server, ["42"], **options).scores == [None]
      down[0] = False
      assert ask(server, ["42"], **options).scores == [1.0]
      (file,) = tmp_path.rglob("*.json")
      for damage in ("", "{", "[]", '{"reply": 1}', "9" * 10**4):
        file.write_text(damage)
        assert ask(server, ["42"], **options).scores == [1.0]
      assert len(server.requests) == 2 + 5


class TestKey:
  KEY = "sk-very-secret-0123456789"

  def test_is_sent_and_never_kept_or_told(self, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MY_JUDGE_KEY", self.KEY)
    caplog.set_level(logging.DEBUG)
    answers = [
      lambda h, p: h.answer(f"Wrong key {self.KEY}!".encode(), 401),
      lambda h, p: h.answer(chat(verdict(p))),
    ]

    def behave(handler, prompt, number):
      answers[number - 1](handler, prompt)

    with serving(behave) as server:
      options = dict(cache=str(tmp_path), api_key_env="MY_JUDGE_KEY")
      assert ask(server, ["42"], **options).scores == [None]
      assert ask(server, ["42"], **options).scores == [1.0]
    for _, headers, body in server.requests:
      assert headers["Authorization"] == f"Bearer {self.KEY}"
      assert self.KEY not in json.dumps(body)
    assert "Wrong key ***!" in caplog.text
    assert self.KEY not in caplog.text
    for file in tmp_path.rglob("*"):
      assert self.KEY not in str(file)
      assert file.is_dir() or self.KEY not in file.read_text()

  @pytest.mark.parametrize(
    "value", [None, "", " ", "two words", "a\nb", "ключ"]
  )
  def test_that_is_not_set_is_one_sentence(self, monkeypatch, value):
    monkeypatch.delenv("MY_JUDGE_KEY", raising=False)
    if value is not None:
      monkeypatch.setenv("MY_JUDGE_KEY", value)
    with pytest.raises(ValueError, match="MY_JUDGE_KEY holds no API key"):
      judge_http.judge(
        [PROBLEM], ["42"], url="http://x/v1", api_key_env="MY_JUDGE_KEY", **FAST
      )

  @pytest.mark.parametrize("given", ["sk-very-secret-0123456789", "a b"])
  def test_in_place_of_its_name_is_refused_without_being_repeated(self, given):
    with pytest.raises(ValueError, match="and not the key") as error:
      judge_http.Server(url="http://x/v1", model="m", api_key_env=given)
    assert given not in str(error.value)

  @pytest.mark.parametrize(
    "url", ["http://me:secret@x/v1", "http://x/v1?key=secret"]
  )
  def test_in_the_url_is_refused_without_being_repeated(self, url):
    with pytest.raises(ValueError, match="no password") as error:
      judge_http.Server(url=url, model="m")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (dict(url="127.0.0.1:80"), "http://HOST:PORT"),
    (dict(url="ftp://x/v1"), "http://HOST:PORT"),
    (dict(url="http://x:ab/v1"), "no URL"),
    (dict(url="http://x/v1", deadline=0.0), "deadline"),
    (dict(url="http://x/v1", concurrency=0), "concurrency"),
    (dict(url="http://x/v1", votes=3, temperature=0.0), "same verdict"),
  ],
)
def test_options_that_do_not_fit_are_one_sentence(options, says):
  with pytest.raises(ValueError) as error:
    judge_http.judge([PROBLEM], ["42"], **FAST | options)
  assert says in str(error.value) and str(error.value).endswith(".")


def test_options_and_the_key_are_checked_before_a_run(monkeypatch):
  monkeypatch.delenv("MY_JUDGE_KEY", raising=False)
  fields = dict(weight=1.0, url="http://127.0.0.1:1/v1", model="judge-1")
  combine.check(dict(judge=fields))
  for options, says in (
    (dict(api_key_env="MY_JUDGE_KEY"), "MY_JUDGE_KEY holds no API key"),
    (dict(template="corectness"), "one of correctness"),
    (dict(url="somewhere"), "http://HOST:PORT"),
  ):
    with pytest.raises(errors.ConfigError, match=says) as error:
      combine.check(dict(judge=fields | options))
    assert str(error.value).startswith("config.rewards.judge: ")


def test_can_be_called_where_an_event_loop_runs():
  async def caller(server):
    return ask(server, ["42"])

  with serving(honest) as server:
    assert asyncio.run(caller(server)).scores == [1.0]


def test_is_a_reward_by_name():
  with serving(honest) as server:
    section = dict(judge=dict(weight=2.0, url=server.url, **FAST))
    combine.check(section)
    scores = combine.score(section, [PROBLEM] * 2, ["42", "41"])
  assert scores.total.tolist() == [2, 0]
  assert scores.metrics["judge/unreachable"].tolist() == [0, 0]
