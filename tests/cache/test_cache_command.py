"""`dil cache`: what it lists is there, what it verifies is recomputed, what it prunes is gone and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dil_cli.cache.command import HELP, VALUES, parse
from dil_cli.errors import DilError
from dil_cli.models.reference_cache import column_files, read_column, write_column

DAY_S = 86_400


@pytest.fixture
def own_model(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def folder(dil_here: Callable, small_run: list[str], own_model: Path, tmp_path: Path) -> Path:
    """The reference's folder that one run has left: 40 pairs of 80 responses, in two files."""
    code, _, err = dil_here("train", *small_run, f"model.path={own_model}", "probe.times=1", "optim.epochs=0.1")
    assert code == 0, err
    (folder,) = (tmp_path / "outputs" / "cache" / "reference").iterdir()
    return folder


@pytest.fixture
def cache(dil_here: Callable) -> Callable[..., tuple[int, str, str]]:
    return lambda *argv: dil_here("cache", *argv)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def falsify(folder: Path, factor: float) -> None:
    """A file that is whole, with every value off by a factor."""
    for path in column_files(folder):
        column = read_column(path, folder.name)
        assert len(column.sample_S) == len(column.logp_N) or len(column.sample_S) == 16
        path.unlink()
        write_column(folder, folder.name, [one._replace(logp=one.logp * factor) for one in column.sample_S])


def test_list_says_what_is_there(cache, folder: Path, own_model: Path):
    code, out, _ = cache("list")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith(f"  {folder.name[:12]}"))
    record = json.loads((folder / "reference.json").read_text())
    assert line.split()[1:6] == [str(own_model), "fp32", f"{record['parameters']:,}", "80", "2"]
    assert record["created"][:10] in line
    tokens = sorted((folder.parent.parent / "tokens").iterdir())
    keys = {path.stem.removeprefix("tokens-")[:12] for path in tokens}
    shown = {words[0]: words[1] for line in out.splitlines() if (words := line.split()) and words[0] in keys}
    assert sorted(shown.values()) == ["36", "4"]
    assert "damaged" not in out


def test_an_empty_cache(cache, tmp_path: Path):
    assert cache("list")[:2] == (0, "nothing is cached in outputs/cache\n")
    assert cache("verify")[:2] == (0, "no reference is cached in outputs/cache\n")
    assert cache("prune", "--all")[:2] == (0, "nothing to remove\n")
    assert not (tmp_path / "outputs").exists()


def test_verify_recomputes_a_sample(cache, folder: Path, monkeypatch):
    from dil_cli.cache import verify

    computed: list[int] = []
    score_pairs = verify.score_pairs

    def counted(model, pairs, compute):
        computed.append(len(pairs))
        return score_pairs(model, pairs, compute)

    monkeypatch.setattr(verify, "score_pairs", counted)
    code, out, _ = cache("verify")
    assert code == 0
    assert out.startswith(f"{folder.name[:12]} (")
    assert "of 80 responses computed again" in out
    assert out.endswith("they agree\n")
    assert cache("verify", folder.name[:5], "--sample", "3")[0] == 0
    assert computed == [8 + 16, 3]  # the file of the probe set has 8 responses in all, that of the pairs a sample


@pytest.mark.parametrize(("factor", "expected"), [(1 + 1e-6, 0), (1 + 2e-3, 1), (float("nan"), 1)])
def test_verify_finds_wrong_values(factor, expected, cache, folder: Path):
    falsify(folder, factor)
    code, out, _ = cache("verify")
    assert code == expected
    assert ("DIFFER by more than 0.0001" in out) == bool(expected)


def test_verify_of_bf16_allows_its_rounding(dil_here, cache, small_run, tmp_path: Path):
    dil_here("train", *small_run, "precision=bf16", "probe.times=1", "optim.epochs=0.1")
    (folder,) = (tmp_path / "outputs" / "cache" / "reference").iterdir()
    code, out, _ = cache("verify")
    assert code == 0
    assert "bf16" in cache("list")[1]
    falsify(folder, 1.05)
    code, out, _ = cache("verify")
    assert code == 1
    assert "DIFFER by more than 0.02" in out


def test_verify_reports_a_damaged_file(cache, folder: Path):
    path = column_files(folder)[0]
    path.write_bytes(path.read_bytes()[:-3])
    code, out, _ = cache("verify")
    assert code == 1
    assert f"{path.name} cannot be used" in out
    assert "1 damaged" in cache("list")[1]


def test_verify_refuses_other_weights(cache, folder: Path, own_model: Path):
    weights = load_file(own_model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, own_model / "model.safetensors", metadata={"format": "pt"})
    code, out, err = cache("verify")
    assert code == 2
    assert err.splitlines() == [
        f"error: {own_model} is not what reference {folder.name[:12]} was computed with (weights_sha256 changed)",
        f"where: outputs/cache/reference/{folder.name}/reference.json",
        f"fix:   put the model back, or dil cache prune {folder.name[:12]}",
    ]
    assert "not verified" in out


def test_verify_says_that_the_model_is_gone(cache, folder: Path, own_model: Path):
    shutil.rmtree(own_model)
    code, _, err = cache("verify")
    assert code == 2
    assert f"there is no model folder {own_model}" in err
    assert len(err.splitlines()) == 3


def test_verify_runs_no_code_of_a_repository_unasked(cache, folder: Path):
    record = json.loads((folder / "reference.json").read_text())
    record["model"]["trust_remote_code"] = True
    (folder / "reference.json").write_text(json.dumps(record))
    code, _, err = cache("verify")
    assert code == 2
    assert f"dil cache verify {folder.name[:12]} --trust-remote-code" in err
    assert cache("verify", "--trust-remote-code")[0] == 0


def test_one_that_cannot_be_verified_hides_no_other(dil_here, cache, small_run, folder: Path, own_model: Path):
    dil_here("train", *small_run, "probe.times=1", "optim.epochs=0.1", "model.dtype=bf16")
    shutil.rmtree(own_model)
    code, out, _ = cache("verify")
    assert code == 2
    assert sorted(line.rpartition(" ")[2] for line in out.splitlines() if "they agree" in line) == ["agree"]
    assert out.count("not verified") == 1


def test_prune_a_key(cache, folder: Path, tmp_path: Path):
    before = files_of(tmp_path / "outputs")
    reference = {name for name in before if folder.name in name}
    code, out, _ = cache("prune", folder.name[:6], "--dry-run")
    assert code == 0
    assert out.startswith(f"would remove reference {folder.name[:12]} (")
    assert "would remove 3 files" in out
    assert files_of(tmp_path / "outputs") == before
    code, out, _ = cache("prune", folder.name[:6])
    assert out.startswith(f"removed reference {folder.name[:12]} (")
    assert files_of(tmp_path / "outputs") == before - reference
    assert not folder.exists()
    tokens = sorted((tmp_path / "outputs" / "cache" / "tokens").iterdir())
    cache("prune", tokens[0].stem.removeprefix("tokens-"))
    assert sorted((tmp_path / "outputs" / "cache" / "tokens").iterdir()) == tokens[1:]


def test_prune_by_last_use(dil_here, cache, small_run, own_model: Path, folder: Path):
    files = [folder / "reference.json", *column_files(folder), *(folder.parent.parent / "tokens").iterdir()]
    for path in files:
        os.utime(path, (time.time() - 40 * DAY_S,) * 2)
    # A run that only reads counts as use, of the reference and of the tokenised splits.
    dil_here("train", *small_run, f"model.path={own_model}", "probe.times=1", "optim.epochs=0.1", "loss=ukl")
    assert cache("prune", "--older-than", "30")[1] == "nothing to remove\n"
    for path in files:
        os.utime(path, (time.time() - 40 * DAY_S,) * 2)
    assert cache("prune", "--older-than=50")[1] == "nothing to remove\n"
    code, out, _ = cache("prune", "--older-than", "30")
    assert code == 0
    assert out.count("removed ") == 4
    assert files_of(folder.parent.parent) == set()


def test_prune_damaged_files_and_what_a_kill_left(cache, folder: Path):
    whole, broken = column_files(folder)
    broken.write_bytes(b"")
    aside = folder / "column-ff.safetensors.damaged"
    old, young = folder / ".column-1.tmp", folder / ".column-2.tmp"
    split = sorted((folder.parent.parent / "tokens").iterdir())[0]
    for path in (aside, old, young, split):
        path.write_text("half")
    os.utime(old, (time.time() - 2 * 3600,) * 2)
    code, out, _ = cache("prune", "--damaged")
    assert code == 0
    assert "removed 4 files" in out
    assert {path.name for path in folder.iterdir()} == {"reference.json", whole.name, young.name}
    assert not split.exists()
    assert cache("prune", "--damaged")[1] == "nothing to remove\n"


def test_prune_all_leaves_what_is_not_its_own(cache, folder: Path, tmp_path: Path):
    (folder / "notes.txt").write_text("mine")
    (folder.parent / "not-a-key").mkdir()
    (folder.parent / "not-a-key" / "column-1.safetensors").write_text("mine")
    runs = {name for name in files_of(tmp_path / "outputs") if not name.startswith("cache")}
    code, _, err = cache("prune", "--all")
    assert code == 0, err
    assert files_of(tmp_path / "outputs") == runs | {
        f"cache/reference/{folder.name}/notes.txt", "cache/reference/not-a-key/column-1.safetensors",
    }  # fmt: skip


def test_a_run_after_prune_computes_again(dil_here, cache, small_run, own_model: Path, folder: Path):
    cache("prune", "--all")
    argv = [*small_run, f"model.path={own_model}", "probe.times=1", "optim.epochs=0.1", "loss=ukl"]
    assert "reference log-probs: all 36 pairs computed" in dil_here("train", *argv)[1]
    assert cache("verify")[0] == 0


def test_another_output_folder(dil_here, cache, folder: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert folder.name[:12] in cache("list", "--output", "../outputs")[1]
    assert cache("verify", "--output=../outputs")[0] == 0
    code, _, err = cache("list", "--output", "nowhere")
    assert (code, err.splitlines()[0]) == (2, "error: there is no folder nowhere")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["frob"], "no action 'frob'"),
        (["list", "abc"], "'abc' is too much"),
        (["verify", "a", "b"], "'b' is too much"),
        (["list", "--all"], "dil cache list has no option --all"),
        (["verify", "--dry-run"], "dil cache verify has no option --dry-run"),
        (["verify", "--sample"], "--sample needs a value"),
        (["verify", "--sample", "0"], "it must be a number, 1 or more"),
        (["verify", "--sample", "many"], "it must be a number, 1 or more"),
        (["prune", "--older-than", "-3"], "it must be a number, 0 or more"),
        (["prune", "--older-than", "nan"], "it must be a number, 0 or more"),
        (["prune"], "say what to remove"),
        (["prune", "--dry-run"], "say what to remove"),
        (["prune", "--all", "--damaged"], "--all takes nothing beside it"),
        (["prune", "--all", "abc"], "--all takes nothing beside it"),
        (["prune", "--all=yes"], "--all takes no value"),
        (["prune", "abc"], "nothing in the cache has a key that begins with abc"),
        (["verify", "abc"], "nothing in the cache has a key that begins with abc"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(argv, says, cache):
    code, out, err = cache(*argv)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 3
    assert out == ""


def test_a_key_that_fits_two_is_refused(dil_here, cache, folder: Path):
    shutil.copytree(folder, folder.with_name(folder.name[:8] + 24 * "0"))
    code, _, err = cache("prune", folder.name[:8])
    assert code == 2
    assert "2 keys begin with" in err


def test_help_says_every_option(cache):
    code, out, _ = cache("--help")
    assert (code, out) == (0, HELP)
    assert cache()[1] == HELP
    assert cache("verify", "--help")[1] == HELP
    for option in (*VALUES, "--damaged", "--all", "--dry-run", "--trust-remote-code"):
        assert option in HELP
    with pytest.raises(DilError):
        parse(["list", "--nothing"])
    assert max(map(len, HELP.splitlines())) <= 120
    assert all(line == line.rstrip() for line in HELP.splitlines())
