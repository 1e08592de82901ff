"""Win rates by a judge whose server is scripted: what it says is counted, and what it does is borne."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from scripted import shown

from dil_cli.evaluate.store import open_lines

ODD = 3
KEY = "sk-planted-0123456789abcdef"


def prefers_the_policy(number: int, question: str) -> str:
    """The chosen responses of `pairs_file` are a number and a full stop."""
    first, _ = shown(question)
    return "The other is a bare number.\nVerdict: " + ("B" if re.fullmatch(r"\d+\.", first) else "A")


def test_a_judge_that_always_says_a_gives_half(serve, win):
    server = serve(lambda number, question: "A")
    record = win(server)
    assert record["pairs"] == 10, "one for each prompt that is held out"
    assert record["metrics"]["win_rate"] == 0.5
    assert record["metrics"]["tie_rate"] == 1
    assert record["more"]["contradicted"] == 10
    assert record["more"]["first_shown_wins"] == 1
    sides = [shown(question) for question in server.questions]
    assert len(sides) == 20
    assert sorted(sides) == sorted((b, a) for a, b in sides), "each match in both orders"


def test_wins_are_the_policys_whichever_order(serve, win, kept):
    record = win(serve(prefers_the_policy))
    assert record["metrics"]["win_rate"] == 1
    assert record["metrics"]["tie_rate"] == record["metrics"]["unparsed"] == 0
    assert record["more"]["first_shown_wins"] == 0.5
    low, high = record["intervals"]["win_rate"]
    assert low == pytest.approx(0.7225, abs=1e-4), "Wilson for 10 of 10"
    assert high == 1
    assert {line["verdict"] for line in kept("verdicts") if line["order"] == "policy first"} == {"A"}
    assert {line["reply"].splitlines()[0] for line in kept("verdicts")} == {"The other is a bare number."}


def test_the_rejected_and_the_longer(serve, win):
    record = win(
        serve(lambda number, question: f"Verdict: {'AB'['or so' in shown(question)[0]]}"), "benchmark.opponent=rejected"
    )
    assert record["opponent"] == {"name": "rejected"}
    assert record["metrics"]["win_rate"] == 1
    assert record["metrics"]["length_opponent"] == pytest.approx(9, abs=1), "'12 or so.' in bytes"
    assert 0 < record["metrics"]["length_policy"] <= 6 * 3, "6 tokens, of which some are no whole character"


def test_what_cannot_be_read_is_counted_and_not_guessed(serve, win, kept, dil_here, match_words):
    def script(number: int, question: str) -> str:
        return "Both are fine, A or B." if f"User: {ODD} plus" in question else prefers_the_policy(number, question)

    server = serve(script)
    record = win(server)
    unread = sum(f"User: {ODD} plus" in question for question in server.questions)
    assert record["more"]["unparsed"] * 2 == unread
    assert record["metrics"]["unparsed"] == record["more"]["unparsed"] / 10 > 0
    assert record["metrics"]["win_rate"] == 1
    assert record["more"]["wins"] + record["more"]["unparsed"] == 10
    assert sum(line["verdict"] is None for line in kept("verdicts")) == unread

    assert win(server)["metrics"] == record["metrics"]
    assert len(server.bodies) == 20, "the second time nothing is asked, not even what could not be read"

    code, out, _ = dil_here(
        "eval", *match_words, f"judge.base_url={serve(lambda n, q: 'maybe').url}", "judge.model=vague"
    )
    assert code == 1, "not one verdict"
    assert "10 of 10 prompts have no verdict and do not count, the first: 'maybe'" in out
    long = ("status", 400, error("maximum context length is 9 tokens"))
    words = [*match_words, f"judge.base_url={serve(lambda n, q: long).url}", "judge.model=small"]
    code, out, _ = dil_here("eval", *words)
    assert code == 1
    assert "do not count, the first: 'refused: maximum context length is 9 tokens'" in out


def test_every_trouble_is_borne(serve, win):
    troubles = [
        ("status", 500), ("status", 503, {"error": "loading"}), ("status", 429, {}, {"retry-after": "0"}), ("drop",),
        ("hang", 1.5), ("raw", b"<html>bad gateway</html>"), ("raw", b'{"choices": []}'),
        ("raw", b'{"choices": [{"mess'),
    ]  # fmt: skip
    server = serve(lambda number, question: troubles[number] if number < len(troubles) else "Verdict: tie")
    record = win(server, "judge.timeout=0.5", "judge.retries=8", "judge.concurrency=1")
    assert record["metrics"]["win_rate"] == 0.5
    assert record["more"]["ties"] == 10
    assert record["more"]["contradicted"] == 0
    assert len(server.bodies) == 20 + len(troubles)
    assert len(set(server.questions[: len(troubles) + 1])) == 1, "the same question until it is answered"


def test_waits_grow(serve, dil_here, match_words):
    times: list[float] = []

    def script(number: int, question: str):
        times.append(time.monotonic())
        return ("status", 500, {"error": {"message": "out of order"}})

    words = [*match_words, f"judge.base_url={serve(script).url}", "judge.concurrency=1"]
    code, _, err = dil_here("eval", *words, "judge.retries=3", "judge.backoff=0.2")
    assert code == 2
    assert "the judge does not answer in 4 tries (500: out of order)" in err
    waits = [b - a for a, b in pairwise(times)]
    assert len(waits) == 3
    for wait, least in zip(waits, (0.15, 0.3, 0.6), strict=True):
        assert least <= wait < 4 * least + 1


def test_a_server_that_dies_half_way(serve, win, kept, dil_here, match_words):
    win(serve(prefers_the_policy), "judge.model=another")
    dying = serve(lambda number, question: prefers_the_policy(number, question) if number < 7 else ("drop",))
    words = [*match_words, f"judge.base_url={dying.url}", "judge.concurrency=1"]
    code, _, err = dil_here("eval", *words)
    assert code == 2
    assert len(err.strip().splitlines()) == 3
    assert "; 7 replies are kept, the same command goes on" in err, "this judge's"
    before = kept("verdicts")
    assert len(before) == 27
    fresh = serve(prefers_the_policy)
    record = win(fresh, "judge.concurrency=1")
    assert len(fresh.bodies) == 13, "at another address, only what is missing"
    assert not set(fresh.questions) & set(dying.questions[:7])
    assert kept("verdicts")[:27] == before
    assert record["metrics"]["win_rate"] == 1


@pytest.mark.slow
def test_a_process_that_is_killed_loses_one_line(serve, match_words, tmp_path: Path, win, kept):
    server = serve(lambda number, question: prefers_the_policy(number, question) if number < 5 else ("hang", 60))
    words = [*match_words, f"judge.base_url={server.url}", "judge.concurrency=1", "judge.timeout=60"]
    process = subprocess.Popen([sys.executable, "-m", "dil_cli", "eval", *words], cwd=tmp_path, env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while len(server.bodies) < 6 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(kept("verdicts")) == 5
    assert len(kept("generations")) == 10
    (path,) = tmp_path.glob("outputs/**/verdicts.jsonl")
    path.write_bytes(path.read_bytes()[:-20])  # as if it had died while it wrote
    generations = kept("generations")
    fresh = serve(prefers_the_policy)
    assert win(fresh)["metrics"]["win_rate"] == 1
    assert len(fresh.bodies) == 16
    assert kept("generations") == generations


def test_an_unreachable_judge(dil_here, match_words, tmp_path: Path):
    code, out, err = dil_here("eval", *match_words, "judge.base_url=http://127.0.0.1:9/v1", "judge.retries=1")
    assert code == 2
    assert err == (
        "error: the judge does not answer in 2 tries ([Errno 111] Connection refused)\n"
        "where: judge.base_url=http://127.0.0.1:9/v1\n"
        "fix:   start the server, or see to the address\n"
    )
    assert "generating" not in out, "nothing long begins without a judge"
    assert not list(tmp_path.glob("outputs/**/winrate*.json"))


def error(message: str, **more: str) -> dict:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("answer", "said", "fix"),
    [
        (("status", 401, error("who are you")), "the judge refuses (401): who are you", "export OPENAI_API_KEY=...;"),
        (("status", 404, error("no model scripted")), "refuses (404): no model scripted", "judge.model=scripted:"),
        (("status", 400, error("temperature must be 1")), "refuses (400): temperature", "judge.temperature=null"),
        (("status", 429, error("pay", code="insufficient_quota")), "refuses (429): pay", "judge.model=scripted:"),
        (("status", 422, {"detail": "Unexpected fields"}), "refuses (422): Unexpected fields", "judge.model=scripted:"),
    ],
)
def test_a_refusal_is_told_at_once(answer, said, fix, serve, dil_here, match_words):
    server = serve(lambda number, question: answer)
    code, _, err = dil_here("eval", *match_words, f"judge.base_url={server.url}", "judge.concurrency=1")
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 3
    assert said in lines[0]
    assert fix in lines[2]
    assert len(server.bodies) == 1


def test_what_a_server_will_never_answer_has_no_verdict(serve, win, kept):
    long = ("status", 400, error("This model's maximum context length is 9 tokens"))
    server = serve(lambda number, question: long if number == 0 else prefers_the_policy(number, question))
    record = win(server, "judge.concurrency=1")
    assert record["more"]["unparsed"] == 1
    assert record["more"]["wins"] == 9
    assert kept("verdicts")[0]["finish"] == "refused: This model's maximum context length is 9 tokens"


def test_the_limits_newer_name_and_no_temperature(serve, win):
    old = ("status", 400, error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."))
    server = serve(lambda number, question: old if "max_tokens" in server.bodies[number] else "tie")
    win(server, "judge.temperature=null", "judge.max_tokens=7", "judge.concurrency=1", "judge.retries=0")
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None] + [7] * 20
    assert not any("temperature" in body for body in server.bodies)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["reply", "refusal"])
def test_the_key_goes_to_the_server_and_nowhere_else(
    end, serve, dil_here, dil, match_words, monkeypatch, tmp_path: Path
):
    def script(number: int, question: str):
        said = f"I saw {server.headers[number]['authorization']}"
        return f"{said}\nVerdict: A" if end == "reply" else ("status", 400, error(said))

    server = serve(script)
    monkeypatch.setenv("MY_KEY", KEY)
    words = [*match_words, f"judge.base_url={server.url}", "judge.key_env=MY_KEY"]
    code, out, err = dil_here("eval", *words)
    assert code == (0 if end == "reply" else 2), err
    done = dil("eval", *words, "judge.model=another", MY_KEY=KEY, DIL_TRACEBACK="1", OPENAI_LOG="debug")
    assert ("Traceback" in done.stderr) == (end == "refusal")
    dumped = dil("eval", *words, "--cfg", "job", "--resolve", MY_KEY=KEY)
    assert "key_env: MY_KEY" in dumped.stdout
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    for text in (out, err, done.stdout, done.stderr, dumped.stdout, dumped.stderr):
        assert KEY not in text
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "verdicts.jsonl" for path in written)
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path
    if end == "reply":
        (verdicts,) = tmp_path.glob("outputs/**/verdicts.jsonl")
        assert "I saw Bearer ***" in verdicts.read_text(), "the server did send it back"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["judge.base_url=http://me:" + KEY + "@host/v1"], "judge.base_url holds more than an address"),
        (["judge.base_url=http://host/v1?api_key=" + KEY], "'judge.base_url=***' is not of the form key=value"),
        (["judge.base_url='http://host/v1?api_key=" + KEY + "'"], "judge.base_url holds more than an address"),
        (["judge.base_url=host:80"], "judge.base_url is 'host:80', it must be an http address"),
        (["judge.key_env=" + KEY], "judge.key_env is the name of an environment variable"),
        (["judge.api_key=" + KEY], "may be a secret, and is shown nowhere"),
        (["+judge.api_key=" + KEY], "may be a secret, and is shown nowhere"),
        (["benchmark.top_p=0.9"], "benchmark.top_p is 0.9, it must stay 1"),
        (["benchmark.opponent=rejected", "against=x"], "against= names the opponent"),
        (["reference=x"], "a win rate is relative to its opponent"),
        (["benchmark.opponent=reference"], "nothing says which model it started from"),
        (["judge.prompt=nothing.txt"], "there is no judge prompt nothing.txt"),
        (["judge.prompt=pairs.jsonl"], "the judge prompt has no {prompt} and no {a} and no {b}"),
        (["benchmark.max_new_tokens=999"], "do not fit the model's 512 positions"),
    ],
)
def test_errors_have_three_lines_and_no_secret(words, said, serve, dil_here, match_words):
    server = serve(lambda number, question: "A")
    code, out, err = dil_here("eval", *match_words, f"judge.base_url={server.url}", *words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 3
    assert KEY not in out + err
    assert not server.bodies


def test_a_judge_belongs_to_a_win_rate(dil_here, match_words):
    code, _, err = dil_here("eval", *[word for word in match_words if not word.startswith("judge")])
    assert code == 2
    assert "benchmark=winrate needs a judge" in err
    code, _, err = dil_here("eval", *[word for word in match_words if not word.startswith("benchmark")])
    assert code == 2
    assert "only benchmark=winrate asks a judge" in err


def test_without_the_openai_package(dil_here, match_words, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    code, _, err = dil_here("eval", *match_words)
    assert code == 2
    assert err.splitlines()[0] == "error: judge=openai needs the openai package"
    assert err.splitlines()[2] == "fix:   pip install 'dil[judge]'"


def test_a_prompt_of_ones_own(serve, win, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("Q {prompt} 1 {a} 2 {b} 3 {not a place}")
    server = serve(lambda number, question: "tie")
    record = win(server, "judge.prompt=mine.txt", "benchmark.prompts=2")
    assert all(re.fullmatch(r"Q User: .* 1 .* 2 .* 3 \{not a place\}", q, re.DOTALL) for q in server.questions)
    other = win(server, "judge.prompt=summary", "benchmark.prompts=2")
    assert record["judge"]["prompt_sha256"] != other["judge"]["prompt_sha256"]
    assert len(server.bodies) == 8, "another prompt is another question"


def test_posts_are_summarised_and_dialogues_go_on(serve, win, tmp_path: Path):
    post = {"subreddit": "x", "title": "t", "post": "My cat left."}
    row = {"summaries": [{"text": " Cat is gone. "}, {"text": " A dog. "}], "choice": 0}
    rows = [row | {"info": post | {"title": f"t{i}"}} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = serve(lambda number, question: "tie")
    record = win(server)
    assert record["judge"]["prompt"] == "summary"
    assert record["pairs"] == len(server.questions) / 2 == 4
    assert all("<post>\nSUBREDDIT: r/x\n\nTITLE: t" in q and "TL;DR" not in q for q in server.questions)
    assert all("Cat is gone." in shown(question) for question in server.questions)

    server = serve(lambda number, question: "tie")
    record = win(server, "data=hh_sample", "data.path=hh_sample", "data.heldout_split=null", "benchmark.prompts=3")
    assert record["judge"]["prompt"] == "dialogue"
    assert all("<conversation>\nUser: " in question for question in server.questions)


def test_replies_that_were_cut_are_told(serve, dil_here, match_words):
    cut = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}).encode()
    server = serve(lambda number, question: ("raw", cut))
    code, out, err = dil_here("eval", *match_words, f"judge.base_url={server.url}")
    assert code == 1, err
    assert "20 replies of the judge were cut at judge.max_tokens" in out
    assert "10 of 10 prompts have no verdict and do not count, the first: 'length'" in out


def test_what_came_while_another_failed_is_kept(serve, dil_here, match_words, kept):
    barrier = threading.Barrier(4)

    def script(number: int, question: str):
        barrier.wait(5)  # all four are on their way when one is refused
        if number == 3:
            return ("status", 400, error("no"))
        time.sleep(0.5)
        return "tie"

    server = serve(script)
    code, _, err = dil_here("eval", *match_words, f"judge.base_url={server.url}", "judge.concurrency=4")
    assert code == 2
    assert "3 replies are kept" in err
    assert len(kept("verdicts")) == 3
    assert len(server.bodies) == 4, "nothing more is asked"


def test_a_run_against_its_start_and_in_the_report(serve, dil_here, small_run, tmp_path: Path):
    code, _, err = dil_here("train", *small_run, "loss=dpo", "optim.lr=3e-3")
    assert code == 0, err
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/result.json"))
    server = serve(lambda number, question: "Verdict: A")
    words = ["benchmark=winrate", "benchmark.max_new_tokens=6", "judge=openai", "judge.model=m"]
    words += [f"judge.base_url={server.url}"]
    code, _, err = dil_here("eval", f"checkpoint={run}", *words, "benchmark.opponent=reference")
    assert code == 0, err
    (path,) = run.glob("checkpoints/*/eval/winrate*.json")
    assert path.stem == "winrate-m-reference-max_new_tokens6"
    record = json.loads(path.read_text())
    assert record["opponent"]["weights_sha256"] != record["checkpoint"]["weights_sha256"]
    assert record["metrics"]["win_rate"] == 0.5
    assert len(list(tmp_path.glob("outputs/eval/*/eval/winrate/generations.jsonl"))) == 1, "the opponent keeps its own"

    asked = len(server.bodies)
    code, _, err = dil_here("eval", f"checkpoint={run}", f"against={run}", *words)
    assert code == 0, err
    assert len(server.bodies) == asked, "the same responses are a tie, and nobody is asked"
    assert json.loads(path.read_text()) == record, "another opponent, another record"
    (other,) = run.glob(f"checkpoints/*/eval/winrate-m-vs-{run.name}-max_new_tokens6.json")
    assert json.loads(other.read_text())["metrics"]["tie_rate"] == 1

    code, _, err = dil_here("report", str(run), "--format", "csv", "--out", "report")
    assert code == 0, err
    table = (tmp_path / "report" / "tables" / "evaluations.csv").read_text()
    assert "winrate-m-reference-max_new_tokens6,win_rate,dpo,sum,4,0.5," in table

    manifest = json.loads((run / "manifest.json").read_text())
    moved = manifest | {"model": manifest["model"] | {"weights_sha256": "0" * 64}}
    (run / "manifest.json").write_text(json.dumps(moved))
    code, _, err = dil_here("eval", f"checkpoint={run}", *words, "benchmark.opponent=reference")
    assert code == 2
    assert "accept=[reference]" in err
    (run / "manifest.json").write_text(json.dumps(manifest | {"template_sha256": "0" * 64}))
    code, _, err = dil_here("eval", f"checkpoint={run}", *words)
    assert code == 2
    assert "accept=[template]" in err


def test_lines_outlive_what_tears_them(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    with open_lines(path) as lines:
        lines.add("a", {"n": 1})
        lines.add("b", {"n": 2})
    path.write_bytes(path.read_bytes() + b'{"key": "c", "n"')
    with open_lines(path) as lines:
        assert len(lines) == 2
        lines.add("c", {"n": "\u2028é"})
    with open_lines(path) as lines:
        assert [lines[key]["n"] for key in "abc"] == [1, 2, "\u2028é"]
    path.write_bytes(path.read_bytes().replace(b'"n": 1', b'"n": 1]'))
    with open_lines(path) as lines:
        assert "a" not in lines
        assert lines["b"]["n"] == 2
        with pytest.raises(Exception, match="another dil eval is writing"), open_lines(path):
            pass
