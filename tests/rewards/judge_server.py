"""A real HTTP server on this machine that judges as a test says."""

import contextlib
import http.server
import json
import threading


def chat(text, finish_reason="stop"):
  choice = {"message": {"content": text}, "finish_reason": finish_reason}
  return json.dumps({"choices": [choice]}).encode()


class Server(http.server.ThreadingHTTPServer):
  """Answers requests as `behave(handler, prompt, number)` says.

  Attributes:
    requests: path, headers and body of each, in order.
    most: how many were in work at one time.
  """

  daemon_threads = True
  request_queue_size = 64

  def __init__(self, behave):
    super().__init__(("127.0.0.1", 0), Handler)
    self.behave = behave
    self.lock = threading.Lock()
    self.requests, self.now, self.most = [], 0, 0
    self.released = threading.Event()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"

  def handle_error(self, request, client_address):
    pass  # Clients that hang up are what is tested.


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    server = self.server
    with server.lock:
      server.requests.append((self.path, dict(self.headers), body))
      number = len(server.requests)
      server.now += 1
      server.most = max(server.most, server.now)
    try:
      server.behave(self, body["messages"][0]["content"], number)
    finally:
      with server.lock:
        server.now -= 1

  def answer(self, content, status=200, **headers):
    self.send_response(status)
    self.send_header("Content-Length", str(len(content)))
    if self.close_connection:  # Or the client may ask on a closed connection.
      self.send_header("Connection", "close")
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serving(behave):
  server = Server(behave)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield server
  finally:
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def verdict(prompt, said=None):
  """What an honest judge says: 42 is right."""
  tag = prompt.partition("\nBEGIN ")[2].partition("\n")[0]
  body = prompt.partition(f"BEGIN {tag}\n")[2].partition(f"\nEND {tag}\n")[0]
  said = said or ("correct" if "42" in body else "wrong")
  return f"I compared.\nVerdict {tag}: {said}"


def honest(handler, prompt, number):
  handler.answer(chat(verdict(prompt)))
