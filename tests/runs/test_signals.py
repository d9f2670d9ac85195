"""A signal asks, the loop finishes its step."""

import os
import signal

import pytest

from grpo_jax.runs import signals


@pytest.mark.parametrize("number", signals.StopRequest.SIGNALS)
def test_a_signal_asks_and_the_block_goes_on(number, capsys):
  with signals.StopRequest() as stop:
    assert not stop
    os.kill(os.getpid(), number)
    assert stop
  assert f"{signal.Signals(number).name}: stopping" in capsys.readouterr().out


@pytest.fixture
def interruptible():
  """Python's own handler, which a runner of tests may have switched off."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_not_caught(interruptible):
  with pytest.raises(KeyboardInterrupt), signals.StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_after_the_block_signals_mean_what_they_did():
  before = [signal.getsignal(s) for s in signals.StopRequest.SIGNALS]
  with signals.StopRequest():
    assert signal.getsignal(signal.SIGTERM) != before[1]
  after = [signal.getsignal(s) for s in signals.StopRequest.SIGNALS]
  assert after == before
