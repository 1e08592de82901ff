"""A signal is lost at no moment, and processes stop together."""

from __future__ import annotations

import os
import signal

import pytest

from dil_cli.errors import Stopped
from dil_cli.train.stop import StopSignals


def test_a_signal_that_comes_while_processes_agree_stops_at_their_next_agreement():
    def interrupted(number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    with StopSignals() as signals:
        signals.deferring = True
        signals.agree(interrupted)
        assert not signals.asked, "the others do not know of it"
        signals.obey("")
        signals.agree(lambda number: number)
        assert signals.asked
        with pytest.raises(Stopped):
            signals.obey("saved")


def test_what_another_process_heard_stops_this_one():
    with StopSignals() as signals:
        signals.deferring = True
        signals.agree(lambda number: max(number, signal.SIGUSR1))
        with pytest.raises(Stopped) as stopped:
            signals.obey("saved")
    assert stopped.value.exit_code == 75


@pytest.mark.parametrize(("sent", "times"), [(signal.SIGUSR2, 1), (signal.SIGTERM, 0)])
def test_the_launcher_hears_its_own_signal_once_the_run_has_stopped(sent, times):
    heard: list[str] = []

    def run() -> None:
        with StopSignals() as signals:
            signals.deferring = True
            os.kill(os.getpid(), sent)
            assert not heard, "it would end the run before the state is saved"
            signals.agree(lambda number: number)
            signals.obey("saved")

    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append("launcher"))
    try:
        with pytest.raises(Stopped):
            run()
        assert heard == ["launcher"] * times
    finally:
        signal.signal(signal.SIGUSR2, before)
