"""A judge behind an OpenAI-compatible server, asked over HTTP.

One event loop in a thread of its own asks for a bounded number of completions
at a time. Each completion has one deadline for all of its verdicts, retries and
waiting included; it begins when the completion's turn comes. Replies are kept
on disk by a hash of all that decides them, so that a run that is started again
pays for none twice.
"""

import asyncio
import dataclasses
import datetime
import email.utils
import hashlib
import json
import os
import pathlib
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

try:
  import httpx
except ImportError as missing:
  raise ImportError(
    "a judge on a server needs httpx: pip install 'grpo_jax[judge]'"
  ) from missing

from grpo_jax import types
from grpo_jax.rewards import terms
from grpo_jax.rewards.judges import judge as judge_lib
from grpo_jax.rewards.judges.judge import Reply

# Of a reply; more is no verdict.
_MAX_BYTES = 1 << 22
_RETRIED = (408, 409, 425, 429)  # And all from 500.
_LONGEST_BACKOFF = 60.0  # Seconds.


@dataclasses.dataclass(frozen=True)
class Server:
  """Where and how a judge is asked.

  Attributes:
    url: of the API, such as http://127.0.0.1:8000/v1.
    model: its name there.
    api_key_env: name of the environment variable that holds the API key; empty
      where none is needed. The key itself is in no config, file or message.
    request: further fields of a request, such as temperature and max_tokens.
    concurrency: completions that are asked about at one time.
    deadline: seconds for all verdicts on one completion.
    attempts: requests per verdict, at most.
    backoff: seconds before the second attempt; doubled before each further one,
      and multiplied by a random number from 0.5 to 1.5. A server's Retry-After
      is waited for where it is longer.
    cache: the folder of replies; empty keeps none.
  """

  url: str
  model: str
  api_key_env: str = ""
  request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  concurrency: int = 16
  deadline: float = 120.0
  attempts: int = 5
  backoff: float = 1.0
  cache: str = ""

  def __post_init__(self):
    try:
      url = httpx.URL(self.url)
    except httpx.InvalidURL as error:
      raise ValueError(f"The judge's url is no URL: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
      raise ValueError("The judge's url must be like http://HOST:PORT/v1.")
    if url.userinfo or url.query:
      raise ValueError(
        "The judge's url must hold no password and no query; name the"
        " environment variable of an API key in api_key_env."
      )
    if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]{0,99})?", self.api_key_env):
      raise ValueError(
        "The judge's api_key_env must be the name of an environment variable"
        " that holds the key, and not the key."
      )
    for field in ("concurrency", "deadline", "attempts", "backoff"):
      if getattr(self, field) <= 0:
        raise ValueError(f"The judge's {field} must be above 0.")

  def api_key(self) -> str:
    """The key, from the environment; ValueError where it is not set."""
    if not self.api_key_env:
      return ""
    key = os.environ.get(self.api_key_env, "").strip()
    if not re.fullmatch(r"[!-~]+", key):
      raise ValueError(
        f"The environment variable {self.api_key_env} holds no API key of the"
        " judge: export it, or leave api_key_env empty for a server that needs"
        " none."
      )
    return key


@terms.checked_empty
def judge(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  url: str,
  model: str,
  api_key_env: str = "",
  template: str = "correctness",
  scale: Sequence[float] | None = None,
  reads: str = "completion",
  votes: int = 1,
  temperature: float = 0.6,
  max_tokens: int = 1024,
  request: Mapping[str, Any] | None = None,
  concurrency: int = 16,
  deadline: float = 120.0,
  attempts: int = 5,
  backoff: float = 1.0,
  cache: str = "",
) -> terms.Result:
  """The verdicts of a judge on a server, see `judge.judge` and `Server`.

  Args:
    problems: B problems.
    completions: B texts.
    url: see `Server`.
    model: see `Server`.
    api_key_env: see `Server`.
    template: of the prompt: a name in `judge_prompts` or a file.
    scale: the least and the greatest score that the template asks for; None for
      a verdict of correct or wrong.
    reads: "completion", or "answer" for what stands after the thinking.
    votes: verdicts per completion; their mean is the score.
    temperature: of the judge; above 0 where there are several votes.
    max_tokens: of a reply. A reply that is cut there is none.
    request: further fields of a request; None leaves out one that is named
      here, as in `max_tokens=None`.
    concurrency: see `Server`.
    deadline: see `Server`.
    attempts: see `Server`.
    backoff: see `Server`.
    cache: see `Server`.

  Raises:
    ValueError: an option does not fit, or the API key is not set.
  """
  judge_lib.check_votes(votes, temperature)
  fields = dict(temperature=temperature, max_tokens=max_tokens)
  fields |= dict(request or {})
  server = Server(
    url=url,
    model=model,
    api_key_env=api_key_env,
    request={k: v for k, v in fields.items() if v is not None},
    concurrency=concurrency,
    deadline=deadline,
    attempts=attempts,
    backoff=backoff,
    cache=cache,
  )
  return judge_lib.judge(
    lambda prompts, votes: ask(server, prompts, votes),
    problems,
    completions,
    template=template,
    scale=None if scale is None else (scale[0], scale[1]),
    reads=reads,
    votes=votes,
  )


def ask(
  server: Server, prompts: Sequence[str], votes: int = 1
) -> list[list[Reply]]:
  """`votes` replies to each prompt.

  Refused and broken connections, answers 408, 409, 425, 429 and from 500, and
  bodies that are no reply are tried again; other answers are not. Once twice
  `concurrency` completions have failed and none has had a reply, the others are
  not asked about: then the judge is down.

  Raises:
    ValueError: the API key is not set.
  """
  key = server.api_key()
  # A thread of its own, because the caller's may run an event loop already.
  with futures.ThreadPoolExecutor(1, "judge") as thread:
    call = _ask_all(server, key, prompts, votes)
    return thread.submit(asyncio.run, call).result()


async def _ask_all(
  server: Server, key: str, prompts: Sequence[str], votes: int
) -> list[list[Reply]]:
  turns = asyncio.Semaphore(server.concurrency)
  failed, answered = 0, 0
  headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
  if key:
    headers["Authorization"] = f"Bearer {key}"

  async def one(prompt: str) -> list[Reply]:
    nonlocal failed, answered
    async with turns:
      if not answered and failed >= 2 * server.concurrency:
        return [Reply(None, "The judge is down.")] * votes
      replies = await _ask_one(client, server, key, prompt, votes)
      if replies[0].text is None:
        failed += 1
      else:
        answered += 1
      return replies

  # The deadline is the only time limit.
  async with httpx.AsyncClient(
    headers=headers,
    timeout=None,
    limits=httpx.Limits(max_connections=server.concurrency),
  ) as client:
    return list(await asyncio.gather(*map(one, prompts)))


async def _ask_one(
  client: httpx.AsyncClient, server: Server, key: str, prompt: str, votes: int
) -> list[Reply]:
  """Replies to one prompt; what has not come by the deadline is missing."""
  late = Reply(None, f"No reply within the deadline of {server.deadline} s.")
  replies = []
  end = asyncio.get_running_loop().time() + server.deadline
  try:
    async with asyncio.timeout_at(end):
      for vote in range(votes):
        replies.append(await _reply(client, server, key, prompt, vote, end))
        if replies[-1].text is None:
          late = replies[-1]  # As this one failed, so would the others.
          break
  except TimeoutError:
    pass
  return replies + [late] * (votes - len(replies))


async def _reply(
  client: httpx.AsyncClient,
  server: Server,
  key: str,
  prompt: str,
  vote: int,
  end: float,
) -> Reply:
  body = {
    "model": server.model,
    "messages": [{"role": "user", "content": prompt}],
    **server.request,
  }
  kept = _path(server, body, vote)
  if (text := _read(kept)) is not None:
    return Reply(text)
  clock = asyncio.get_running_loop().time
  for attempt in range(server.attempts):
    wait = server.backoff * 2**attempt * random.uniform(0.5, 1.5)
    wait = min(wait, _LONGEST_BACKOFF)
    try:
      status, retry_after, content = await _post(client, server, body)
    except httpx.HTTPError as error:
      problem = f"{type(error).__name__}: {error}"
    else:
      if status == 200:
        text, problem = _message(content)
        if text is not None:
          _write(kept, text)
          return Reply(text)
        if problem == _CUT:
          return Reply(None, problem)
      else:
        said = content[:300].decode("utf-8", "replace").strip()
        problem = f"HTTP {status} {said.replace(key, '***') if key else said}"
        if status < 500 and status not in _RETRIED:
          return Reply(None, problem)
        wait = max(wait, retry_after)
    if attempt + 1 == server.attempts or clock() + wait >= end:
      break
    await asyncio.sleep(wait)
  return Reply(None, f"{problem} ({attempt + 1} attempts)")


async def _post(
  client: httpx.AsyncClient, server: Server, body: Mapping[str, Any]
) -> tuple[int, float, bytes]:
  """Status, seconds of Retry-After and body of one answer."""
  content = bytearray()
  async with client.stream(
    "POST",
    server.url.rstrip("/") + "/chat/completions",
    content=json.dumps(body).encode(),
  ) as response:
    async for part in response.aiter_bytes():
      content += part
      if len(content) > _MAX_BYTES:
        break
    seconds = _seconds(response.headers.get("Retry-After", ""))
    return response.status_code, seconds, bytes(content)


_CUT = "The reply was cut at max_tokens."


def _message(content: bytes) -> tuple[str | None, str]:
  """The text of a chat completion, or what is wrong with it."""
  try:
    choice = json.loads(content)["choices"][0]
    text, reason = choice["message"]["content"], choice.get("finish_reason")
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    return None, "The server's answer is no chat completion."
  if reason == "length":
    return None, _CUT
  if not isinstance(text, str):
    return None, "The server's answer holds no text."
  return text, ""


def _seconds(retry_after: str) -> float:
  """What a Retry-After header asks to wait: seconds, or until a date."""
  if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", retry_after):
    return float(retry_after)
  try:
    date = email.utils.parsedate_to_datetime(retry_after)
  except (ValueError, TypeError):
    return 0.0
  if date.tzinfo is None:
    date = date.replace(tzinfo=datetime.UTC)
  return max(0.0, date.timestamp() - time.time())


def _path(
  server: Server, body: Mapping[str, Any], vote: int
) -> pathlib.Path | None:
  """Where the reply to this request is kept."""
  if not server.cache:
    return None
  content = json.dumps([server.url, body, vote], sort_keys=True).encode()
  name = hashlib.blake2b(content, digest_size=16).hexdigest()
  folder = pathlib.Path(server.cache).expanduser()
  return folder / name[:2] / f"{name[2:]}.json"


def _read(path: pathlib.Path | None) -> str | None:
  if path is None or not path.is_file():
    return None
  try:
    text = json.loads(path.read_bytes())["reply"]
  except (ValueError, LookupError, TypeError):
    return None  # Not a file of ours, or a damaged one: ask again.
  return text if isinstance(text, str) else None


def _write(path: pathlib.Path | None, reply: str) -> None:
  if path is None:
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(
    "w", dir=path.parent, delete=False, encoding="utf-8"
  ) as file:
    json.dump({"reply": reply}, file)
  os.replace(file.name, path)
