from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from dil_cli.dynamics.alarms import Alarm
from dil_cli.tracking import console as console_module
from dil_cli.tracking.console import LiveConsole, PlainConsole, make_console
from dil_cli.tracking.sink import RunInfo
from dil_cli.tracking.summary import clock

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
ALARM = Alarm("chosen_fall", 40, "the chosen responses lost 0.77 nats per token since step 0", 0.77, 0.5)


def run_info(total_steps=53):
    return RunInfo(
        name="tiny-[gsm8k]", folder=Path("outputs/tiny-0a1b2c3d"), config={}, total_steps=total_steps,
        loss="lsif", reduction="mean", model="tiny", data="gsm8k_pairs", n_train=1705, n_probe=128,
    )  # fmt: skip


def probe_row(step, chosen, rejected, **more):
    row = {
        "step": step, "probe/logps/chosen": -0.75 + chosen, "probe/logps/rejected": -0.85 + rejected,
        "probe/delta/chosen": chosen, "probe/delta/rejected": rejected,
        "probe/delta/margin": chosen - rejected, "probe/accuracy": 0.5 + step / 1000,
    }  # fmt: skip
    return row | {f"probe/{key}": value for key, value in more.items()}


def drive(sink, total=53):
    """A whole run with one alarm, as the loop makes it."""
    with sink.phase("reference log-probs", 1705) as phase:
        for _ in range(5):
            phase.advance(341)
    sink.start(run_info(total))
    sink.note("2 pairs [INST] skipped: identical")
    sink.probe(probe_row(0, 0.0, 0.0))
    for step in range(1, total + 1):
        sink.step({"step": step, "loss": -0.5 - step / 100, "pairs_per_s": 38.21, "tokens_per_s": 4321.0})
        if step == 40:
            sink.alarm(ALARM)
    sink.probe(probe_row(total, -0.1, -0.259, chosen_cost=0.629))
    sink.finish({"seconds": 60})
    sink.close()


def plain_output(total=53):
    stream = io.StringIO()
    drive(PlainConsole(stream), total)
    return stream.getvalue()


def live_output(width, **options):
    stream = io.StringIO()
    drive(LiveConsole(Console(file=stream, force_terminal=True, width=width, highlight=False, **options)))
    return stream.getvalue()


def test_plain_lines_tell_the_run():
    lines = [line.rstrip() for line in plain_output().splitlines()]
    assert lines[:7] == [
        "reference log-probs: 1705 ...",
        "tiny-[gsm8k]: lsif (mean of log-probs), model tiny, data gsm8k_pairs",
        "53 steps over 1705 pairs, measured on 128 held-out pairs",
        "folder outputs/tiny-0a1b2c3d",
        "2 pairs [INST] skipped: identical",
        "probe 0/53  chosen -0.750  rejected -0.850  nats per token",
        "step 3/53  loss -0.5300  38.2 pairs/s  4321 tokens/s  0:00 elapsed  0:00 left",
    ]
    assert lines[-10:] == [
        "probe 53/53  since step 0: chosen -0.100  rejected -0.259  margin +0.159  cost 0.63",
        "held-out pairs          |  start |    end | change",
        "------------------------+--------+--------+-------",
        "chosen, nats per token  | -0.750 | -0.850 | -0.100",
        "rejected                | -0.850 | -1.109 | -0.259",
        "chosen - rejected       |  0.100 |  0.259 | +0.159",
        "pairs whose margin grew |        |    55% |",
        "chosen_cost             |        |   0.63 |",
        "ALARM at step 40: the chosen responses lost 0.77 nats per token since step 0",
        "folder outputs/tiny-0a1b2c3d",
    ]


@pytest.mark.parametrize("total", [1, 7, 20, 53, 5000])
def test_plain_output_is_short_and_free_of_control_characters(total, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = plain_output(total)
    assert all(char == "\n" or char.isprintable() for char in text)
    steps = [line for line in text.splitlines() if line.startswith("step ")]
    assert len(steps) == min(total, 20)
    assert steps[-1].startswith(f"step {total}/{total} ")


def test_time_left_counts_the_steps_of_this_process_only(monkeypatch):
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    sink = PlainConsole(stream)
    sink.start(run_info(total_steps=20))
    for step in (11, 12):  # goes on from a checkpoint at step 10
        now[0] += 30
        sink.step({"step": step})
    assert stream.getvalue().splitlines()[-1].split() == ["step", "12/20", "1:00", "elapsed", "4:00", "left"]


def test_a_long_plain_phase_says_how_far_it_is(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with PlainConsole(stream).phase("tokenising", 100) as phase:
        for _ in range(100):
            now[0] += 0.5
            phase.advance(1)
    assert stream.getvalue().splitlines() == [
        "tokenising: 100 ...",
        "tokenising: 20/100  0:40 left",
        "tokenising: 40/100  0:30 left",
        "tokenising: 60/100  0:20 left",
        "tokenising: 80/100  0:10 left",
        "tokenising: done in 0:50",
    ]


def test_a_phase_that_fails_is_not_called_done():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="bad row"), PlainConsole(stream).phase("reading", None):
        raise ValueError("bad row")
    assert stream.getvalue() == "reading: ...\n"


def test_a_demonstration_run_has_no_margin():
    stream = io.StringIO()
    sink = PlainConsole(stream)
    sink.start(run_info())
    sink.probe({"step": 0, "probe/logps/chosen": -1.0, "probe/delta/chosen": 0.0})
    sink.probe({"step": 53, "probe/logps/chosen": -0.75, "probe/delta/chosen": 0.25})
    sink.finish({})
    text = stream.getvalue()
    assert "since step 0: chosen +0.250\n" in text
    assert "| -1.000 | -0.750 | +0.250" in text
    assert "rejected" not in text
    assert "cost" not in text
    assert "no alarm\n" in text


@pytest.mark.parametrize("width", [60, 120])
def test_the_live_view_fits_its_terminal(width):
    text = ESCAPE.sub("", live_output(width))
    assert max(len(line) for part in text.split("\n") for line in part.split("\r")) <= width
    words = " ".join(text.split())
    assert "2 pairs [INST] skipped: identical" in words
    assert "ALARM at step 40: the chosen responses lost 0.77 nats per token" in words
    assert "chosen, nats per token | -0.750 | -0.850 | -0.100" in words
    assert "chosen_cost | | 0.63 |" in words


def test_the_live_view_shows_progress_numbers_and_change():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, record=True)
    sink = LiveConsole(console)
    sink.start(run_info())
    sink.probe(probe_row(20, -0.1, -0.259, chosen_cost=0.629))
    sink.step({"step": 23, "loss": -0.5123, "pairs_per_s": 38.21})
    console.export_text(clear=True)
    console.print(sink._view())
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    sink.close()
    view = [line for line in lines if line]
    assert view[0].startswith("training ")
    assert "23/53" in view[0]
    assert view[1] == "loss -0.5123  38.2 pairs/s"
    assert " ".join(view[2:]).startswith("probe 20/53  since step 0: chosen -0.100  rejected -0.259")


def test_no_color_means_no_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert COLOUR.search(live_output(100, color_system="standard"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(live_output(100, color_system="standard"))


def test_the_cursor_comes_back_after_an_error():
    stream = io.StringIO()
    sink = LiveConsole(Console(file=stream, force_terminal=True, width=80))
    with pytest.raises(ValueError, match="bad row"), sink.phase("reading", None):
        raise ValueError("bad row")
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")
    sink.start(run_info())
    sink.step({"step": 1, "loss": 0.1})
    sink.close()
    sink.close()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_the_view_follows_the_stream(monkeypatch):
    import pty

    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0), os.fdopen(follower, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(make_console(terminal), LiveConsole)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_console(terminal), PlainConsole)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(make_console(io.StringIO()), PlainConsole)


def test_the_clock():
    assert [clock(s) for s in (0.4, 7, 59.6, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]
