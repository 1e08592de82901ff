from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import write_run, write_sweep

from dil_cli.dynamics.style import LOSS_COLOURS, series_lines
from dil_cli.errors import DilError
from dil_cli.report import build as building
from dil_cli.report import record as recording
from dil_cli.report.build import ALL_FORMATS, build
from dil_cli.report.command import run

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """What a check of a page needs: ids, references, images without words, headings, tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.wordless: list[str] = []
        self.headings: list[int] = []
        self.tags: Counter[str] = Counter()
        self._open: list[str] = []
        self.labels: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags[tag] += 1
        if tag not in VOID:
            self._open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        self.references += [found[key] for key in ("href", "src", "xlink:href") if key in found]
        self.references += [f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", " ".join(found.values()))]
        self.labels += found.get("aria-labelledby", "").split()
        if tag in {"img", "svg"} and not (found.get("alt") or found.get("aria-label") or found.get("aria-labelledby")):
            self.wordless.append(str(found))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def check(text: str) -> Page:
    page = Page(text)
    assert max(Counter(page.ids).values()) == 1
    broken = [ref for ref in page.references if not ref.startswith("data:") and ref[1:] not in page.ids]
    assert not broken
    assert all(ref.startswith(("#", "data:")) for ref in page.references)
    assert not set(page.labels) - set(page.ids)
    assert page.wordless == []
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.tags["script"] == 0
    assert not re.search(r"https?://|@import", text.replace("http://www.w3.org/", ""))
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    return page


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lsif and dpo under two noises, two seeds; one run missing, one unfinished, one failed, one damaged."""
    root = tmp_path_factory.mktemp("sweep")
    jobs = []
    for loss in ("lsif", "dpo"):
        for noise in (0.0, 0.25):
            for seed in range(2):
                folder = write_run(root, loss, seed, data__label_noise=noise)
                jobs.append(([f"loss={loss}", f"data.label_noise={noise}", f"seed={seed}"], folder))
    (jobs[0][1] / "eval").mkdir()
    (jobs[0][1] / "eval" / "gsm8k.json").write_text(json.dumps({"benchmark": "gsm8k", "metrics": {"em": 0.125}}))
    (jobs[1][1] / "eval").mkdir()
    (jobs[1][1] / "eval" / "broken.json").write_text("[")
    result = json.loads((jobs[2][1] / "result.json").read_text())
    result["alarms"] = [{"name": "chosen_cost", "step": 25, "message": "a < b & <i>c</i>", "value": 3, "limit": 2}]
    (jobs[2][1] / "result.json").write_text(json.dumps(result))
    unfinished, failed, damaged = (write_run(root, "bce", seed) for seed in range(3))
    (unfinished / "result.json").unlink()
    (failed / "result.json").unlink()
    (failed / "failure.json").write_text(json.dumps({"step": 7, "what": "the loss is not finite"}))
    (damaged / "probe" / "step-000050.parquet").write_bytes(b"PAR1")
    jobs += [([f"loss=bce seed={i}"], folder) for i, folder in enumerate((unfinished, failed, damaged))]
    jobs.append((["loss=kto"], root / "tiny-kto-00000000"))
    return write_sweep(
        root / "sweeps" / "noise-1a2b3c4d", jobs, question="Does <noise> matter?", x="data.label_noise",
        swept=["loss", "data.label_noise", "seed"], baseline="loss=dpo",
    )  # fmt: skip


@pytest.fixture(scope="module")
def reported(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    build([sweep], out, None, ALL_FORMATS)
    return out


def test_the_page_stands_alone_and_is_whole(reported: Path):
    text = (reported / "index.html").read_text()
    page = check(text)
    assert page.tags["table"] >= 7
    assert page.tags["svg"] > 12
    assert "Does &lt;noise&gt; matter?" in text
    assert "a &lt; b &amp; &lt;i&gt;c&lt;/i&gt;" in text
    sections = re.findall(r'<h2 id="([^"]+)"', text)
    assert sections == [
        "answer", "dynamics", "numbers", "pair-by-pair", "across", "numerics", "evals", "costs", "config", "alarms",
        "environment", "left-out",
    ]  # fmt: skip


def test_what_is_left_out_is_named_with_its_reason(reported: Path):
    text = (reported / "tables" / "left_out.md").read_text()
    assert "missing; the sweep's job is loss=kto" in text
    assert "unfinished; 50 steps were planned" in text
    assert "failed at step 7: the loss is not finite" in text
    assert "probe/step-000050.parquet is damaged" in text
    assert "eval/broken.json is no evaluation result" in text


def test_no_path_of_the_machine_and_no_date_in_any_file(reported: Path, sweep: Path):
    for name, content in files_of(reported).items():
        assert str(sweep.parent.parent).encode() not in content, name
        assert b"CreationDate" not in content, name


def test_the_same_runs_give_the_same_bytes(reported: Path, sweep: Path, tmp_path: Path):
    build([sweep], tmp_path / "again", None, ALL_FORMATS)
    first, second = files_of(reported), files_of(tmp_path / "again")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    kinds = Counter(Path(name).suffix for name in first)
    assert kinds == {".html": 1, ".png": 5, ".pdf": 5, ".md": 10, ".csv": 10, ".tex": 10}


def test_evaluations_are_joined_to_their_runs(reported: Path):
    rows = (reported / "tables" / "evaluations.csv").read_text().splitlines()
    assert rows[0] == "benchmark,metric,group,reduction,questions,score,score_low,score_high,score_n,score_over"
    assert rows[1:] == ['gsm8k,em,"lsif, label_noise 0",mean,,0.125,,,1,seeds']


def test_one_run_alone(tmp_path: Path):
    folder = write_run(tmp_path, "lsif", 0)
    report = build([folder], tmp_path / "out", None, ["html"])
    check((tmp_path / "out" / "index.html").read_text())
    assert files_of(tmp_path / "out").keys() == {"index.html"}
    assert report.left_out == []


def test_demonstrations_have_no_margin_and_break_nothing(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    folder = write_run(tmp_path, "sft", 0)
    for path in (folder / "probe").glob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        for name in ("rejected_logp_sum", "reference_rejected_sum", "delta_rejected", "delta_margin"):
            nothing = pyarrow.nulls(len(table), pyarrow.float64())
            table = table.set_column(table.column_names.index(name), name, nothing)
        zeros = pyarrow.array([0] * len(table), pyarrow.int64())
        table = table.set_column(table.column_names.index("rejected_tokens"), "rejected_tokens", zeros)
        pyarrow.parquet.write_table(table, path)
    keep = ("probe/logps/chosen", "probe/delta/chosen", "step", "probe/loss")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key in keep} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result["end"] = rows[-1]
    (folder / "result.json").write_text(json.dumps(result))
    build([tmp_path], tmp_path / "out", None, ["html", "md", "tex"])
    check((tmp_path / "out" / "index.html").read_text())
    assert "| sft | mean | 1 |" in (tmp_path / "out" / "tables" / "final.md").read_text()


def test_names_with_marks_of_html_tex_and_matplotlib(tmp_path: Path):
    for path in ("a<b>$x$&_%", "c|d*e*\\f"):
        write_run(tmp_path / "runs", "lsif", 0, data__path=path)
    build([tmp_path / "runs"], tmp_path / "out", None, ["html", "md", "tex"])
    text = (tmp_path / "out" / "index.html").read_text()
    check(text)
    assert "a&lt;b&gt;$x$&amp;_%" in text
    assert "a<b>\\$x\\$\\&\\_\\%" in (tmp_path / "out" / "tables" / "final.tex").read_text()
    assert "c\\|d\\*e\\*\\\\f" in (tmp_path / "out" / "tables" / "final.md").read_text()


def test_the_command_says_where_and_what(sweep: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run([str(sweep), "--format", "md,html"]) == 0
    out = capsys.readouterr().out
    folder = re.search(r"report (outputs/reports/noise-[0-9a-f]{8})/index\.html", out)
    assert folder
    assert (tmp_path / folder[1] / "tables" / "final.md").is_file()
    assert not (tmp_path / folder[1] / "figures").exists()
    assert "Does <noise> matter?" in out
    assert "left out: tiny-kto-00000000: missing; the sweep's job is loss=kto" in out
    assert "8 runs in " in out


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["nowhere"], "nowhere is not there"),
        (["runs", "--out"], "--out needs a value"),
        (["runs", "--format", "docx"], "no format docx"),
        (["runs", "--fast"], "no option --fast"),
        (["--out", "x"], "no folder is named"),
        (["runs", "--compare"], "--compare takes two runs, not 1"),
        (["a", "b", "--compare", "--format", "md"], "--compare takes no --format"),
        (["runs", "--out", "file"], "no report can be written to file"),
        (["runs", "--out", "file/below"], "no report can be written to file/below"),
        (["runs", "--baseline", "loss=kto"], "no run here has loss=kto"),
        (["begun"], "none of 1 runs is finished and whole"),
    ],
)
def test_errors_have_three_lines(tmp_path: Path, argv: list[str], what: str):
    write_run(tmp_path / "runs", "lsif", 0)
    (write_run(tmp_path / "begun", "lsif", 0) / "result.json").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(DilError) as raised:
        run(argv)
    assert raised.value.exit_code == 2
    assert raised.value.what == what
    assert len(str(raised.value).splitlines()) == 3


def test_a_folder_that_cannot_be_written_halfway(tmp_path: Path):
    write_run(tmp_path / "runs", "lsif", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tables").write_text("a file")
    with pytest.raises(DilError, match="the report cannot be written: Not a directory"):
        build([tmp_path / "runs"], tmp_path / "out", None, ["md"])


def test_a_second_report_leaves_nothing_of_the_first_and_nothing_else_alone(tmp_path: Path):
    write_run(tmp_path / "runs", "lsif", 0)
    write_run(tmp_path / "runs", "dpo", 0)
    build([tmp_path / "runs"], tmp_path / "out", None, ["md", "html"])
    (tmp_path / "out" / "tables" / "mine.md").write_text("kept")
    assert (tmp_path / "out" / "tables" / "differences.md").is_file()
    write_run(tmp_path / "other", "lsif", 0)
    build([tmp_path / "other"], tmp_path / "out", None, ["md"])
    assert not (tmp_path / "out" / "tables" / "differences.md").exists()
    assert (tmp_path / "out" / "tables" / "mine.md").read_text() == "kept"


def test_every_loss_has_a_line_of_its_own():
    names = sorted(path.stem for path in (Path(building.__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
    assert len(names) > 30
    lines = series_lines([(name, name) for name in [*LOSS_COLOURS, *names]])
    assert len(set(lines.values())) == len(names)
    assert all(lines[name].colour == colour and lines[name].dash == "-" for name, colour in LOSS_COLOURS.items())
    # What remains in grey print tells the losses that have a colour of their own apart.
    assert len({(lines[name].dash, lines[name].marker) for name in LOSS_COLOURS}) == len(LOSS_COLOURS)
    two = series_lines([("dpo", "dpo, beta 0.1"), ("lsif", "lsif"), ("dpo", "dpo, beta 0.01")])
    assert two["dpo, beta 0.1"].colour == two["dpo, beta 0.01"].colour
    assert two["dpo, beta 0.1"].dash != two["dpo, beta 0.01"].dash


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]):
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--out", "--baseline", "--format", "--compare"))
    assert run([]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_hundreds_of_runs_are_read_once(seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The seconds are printed; what is counted is the work: a parquet and a record a run, a picture a figure."""
    import pyarrow.parquet

    for loss in ("lsif", "bce", "ukl", "dpo", "simpo", "slic"):
        for noise in range(10):
            for seed in range(seeds):
                write_run(tmp_path / "runs", loss, seed, data__label_noise=noise / 10)
    counted: Counter[str] = Counter()

    def counting(name, function):
        def count(*args, **kwargs):
            counted[name] += 1
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", counting("parquet", pyarrow.parquet.ParquetFile))
    monkeypatch.setattr(recording, "read_metrics", counting("metrics", recording.read_metrics))
    monkeypatch.setattr(building.Figure, "save", counting("figure", building.Figure.save))
    started = time.perf_counter()
    report = build([tmp_path / "runs"], tmp_path / "out", None, ALL_FORMATS)
    print(f"{60 * seeds} runs in {time.perf_counter() - started:.1f} s")
    assert report.finished == 60 * seeds
    assert counted == {"parquet": 60 * seeds, "metrics": 60 * seeds, "figure": 5}


def test_neither_torch_nor_a_config_is_loaded(tmp_path: Path):
    write_run(tmp_path / "runs", "lsif", 0)
    code = f"""
import sys
from dil_cli.report.command import run
assert run([{str(tmp_path / "runs")!r}, "--format", "html,png,csv"]) == 0
heavy = [name for name in ("torch", "transformers", "hydra", "omegaconf", "datasets", "wandb", "scipy", "pandas",
    "matplotlib.pyplot") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
