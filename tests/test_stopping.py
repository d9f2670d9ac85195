"""A signal asks, the loop finishes its step."""

import os
import signal

import pytest

from grpo_jax import stopping


@pytest.mark.parametrize("number", stopping.StopRequest.SIGNALS)
def test_a_signal_asks_and_the_block_goes_on(number, capsys):
  with stopping.StopRequest() as stop:
    assert not stop
    os.kill(os.getpid(), number)
    assert stop
  assert f"{signal.Signals(number).name}: stopping" in capsys.readouterr().out


def test_a_second_signal_is_not_caught():
  with pytest.raises(KeyboardInterrupt), stopping.StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_after_the_block_signals_mean_what_they_did():
  before = [signal.getsignal(s) for s in stopping.StopRequest.SIGNALS]
  with stopping.StopRequest():
    assert signal.getsignal(signal.SIGTERM) != before[1]
  after = [signal.getsignal(s) for s in stopping.StopRequest.SIGNALS]
  assert after == before
