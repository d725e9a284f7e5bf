"""The paper's experiment by its command line: a run that goes on where it was, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.datasets import DATASETS
from benchmarks.paper import __main__ as command
from benchmarks.paper import methods
from benchmarks.paper.methods import LORA, QUICK, SETTINGS, TASKS, TITLES, VARIANTS, Plan, runs_on
from benchmarks.paper.store import CellMismatch, CellStore
from benchmarks.tests.conftest import DEFAULT_SETTINGS
from benchmarks.tests.sample_cells import RATES, adapters, run, wire
from benchmarks.tests.test_convergence import folder_of_texts
from testing.random_models import build_model, build_tokenizer


def test_a_cell_of_another_plan_model_or_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CellStore(tmp_path, QUICK, "tiny")
    store.write("subj", "ours-0", run("ours", 0.5))
    store.write("subj", "lora-0.001-0", run("lora", 0.5))
    store.write_byte_counts("subj", {"ours": wire(10), "compact": wire(5)})
    assert CellStore(tmp_path, QUICK, "tiny").has("subj", "ours-0")
    with pytest.raises(CellMismatch, match="differs in plan and setting from this run; name another folder"):
        CellStore(tmp_path, replace(QUICK, rounds=9), "tiny").has("subj", "ours-0")
    with pytest.raises(CellMismatch, match="differs in model from this run"):
        CellStore(tmp_path, QUICK, "large").has("subj", "ours-0")
    ours = SETTINGS["ours"]
    changed = replace(ours, policy={"learning_rate": 0.03})
    monkeypatch.setitem(SETTINGS, "ours", changed)
    monkeypatch.setitem(LORA, "lora", changed)
    for name in ("ours-0", "lora-0.001-0"):
        with pytest.raises(CellMismatch, match=f"{name}.json differs in setting"):
            CellStore(tmp_path, QUICK, "tiny").has("subj", name)
    assert CellStore(tmp_path, QUICK, "tiny").byte_counts("subj") == {"compact": wire(5)}, "bytes are counted again, not refused"
    monkeypatch.setitem(SETTINGS, "ours", replace(ours, policy={"deadline_seconds": 60.0}))
    assert CellStore(tmp_path, QUICK, "tiny").has("subj", "ours-0")


def test_the_best_rate_is_chosen_on_development_texts_once_all_were_tried(tmp_path: Path) -> None:
    store = CellStore(tmp_path, QUICK, "tiny")
    store.write("subj", "lora-8-0.001-0", adapters(0.7, rate=0.001))
    assert store.best_rate("subj", RATES) is None
    assert store.best_rate("subj", (0.001,)) == 0.001, "a single one is given"
    assert store.collect(RATES)["data"]["subj"]["runs"]["lora-8"] == []
    store.write("subj", "lora-8-0.01-0", adapters(0.8))
    store.write("subj", "lora-8-0.01-1", adapters(0.9, seed=1))
    assert store.best_rate("subj", RATES) == 0.01
    better = adapters(0.7, rate=0.001)
    better["readings"]["matched"]["development"]["accuracy"] = 0.78
    store.write("subj", "lora-8-0.001-0", better)
    assert store.best_rate("subj", (0.01, 0.001)) == 0.001, "of level ones the lowest, in the better reading"
    del better["readings"]["plain"]["development"], better["readings"]["matched"]["development"]
    store.write("subj", "lora-8-0.001-0", better)
    assert store.best_rate("subj", RATES) is None, "not chosen on the test texts"


def test_the_rate_of_stored_cells_of_the_first_release_is_that_of_texts_a(tmp_path: Path) -> None:
    store = CellStore(tmp_path, replace(QUICK, test=30), "tiny")
    store.write("subj", "lora-0.001-0", run("lora", 0.7))
    store.write("subj", "lora-0.01-0", run("lora", 0.8, rate=0.01))
    assert CellStore(tmp_path, QUICK, "tiny").best_rate("subj", RATES, "lora") == 0.01


def test_a_cell_of_texts_a_alone_is_valid_in_a_plan_of_the_same_texts_a(tmp_path: Path) -> None:
    old = CellStore(tmp_path, replace(QUICK, test=30), "tiny")
    old.texts["subj"] = "digest of A", "not read"
    old.write("subj", "ours-0", run("ours", 0.5))
    new = CellStore(tmp_path, QUICK, "tiny")
    new.texts["subj"] = "digest of A and B", "digest of A"
    assert new.has("subj", "ours-0")
    new.texts["subj"] = "digest of A and B", "digest of other texts"
    with pytest.raises(CellMismatch, match="differs in texts"):
        new.has("subj", "ours-0")
    with pytest.raises(CellMismatch, match="differs in plan"):
        CellStore(tmp_path, replace(QUICK, test=80), "tiny").has("subj", "ours-0")


def test_later_defaults_of_the_product_change_no_cell_of_the_first_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CellStore(tmp_path, QUICK, "tiny")
    store.write("subj", "ours-0", run("ours", 0.5))
    store.write("subj", "second-0", {"method": "second", "rows": []})
    monkeypatch.setitem(TASKS, "second", replace(TASKS["second"], policy={"head_rounds": 3}))
    assert store.has("subj", "ours-0")
    with pytest.raises(CellMismatch, match=r"second-0.json differs in setting"):
        store.has("subj", "second-0")


def start(monkeypatch: pytest.MonkeyPatch, data: Path, model: Path, *more: str) -> None:
    """Run the command on a small Qwen 2 from a folder, as a larger one would come from a hub."""
    small = {"clients": 2, "rounds": 2, "local-steps": 1, "batch-size": 2, "training": 64, "test": 8, "shots": 1, "few": 4}
    sizes = [word for name, size in (small | {"lora-rank": 2}).items() for word in (f"--{name}", str(size))]
    arguments = ["--data", str(data), "--out", str(data / "out"), "--sources", "subj", "--lora-rates", "0.001", "0.01", *sizes]
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", *arguments, "--model", str(model), "--device", "cpu", *more])
    command.main()


def test_the_command_runs_every_method_on_a_qwen2_from_a_folder_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = folder_of_texts(tmp_path), small_qwen2(tmp_path)
    start(monkeypatch, data, model, "--seeds", "1", "--methods", "lora-8", "ours")
    progress = capsys.readouterr().err
    assert "SUBJ: FedAvg-LoRA, 8 steps, seed 1, waits for all learning rates of FedAvg-LoRA, 8 steps on seed 0" in progress
    cells = data / "out" / "cells" / "subj"
    first = (cells / "ours-1.json").read_bytes()
    chosen = ("zero-shot", "icl", "ours", "published", "lora-8", "lora-16", "head", "second", "second-sums")
    start(monkeypatch, data, model, "--seeds", "0", "1", "--methods", *chosen)
    assert (cells / "ours-1.json").read_bytes() == first
    (best,) = (rate for rate in RATES if (cells / f"lora-8-{rate:g}-1.json").exists())
    names = {path.stem for path in cells.glob("*.json")}
    both = {f"{method}-{seed}" for method in ("icl", "ours", "published", "head", "second") for seed in (0, 1)}
    of_lora = {f"lora-8-{best:g}-1", *(f"lora-8-{rate:g}-0" for rate in RATES), *(f"lora-16-{best:g}-{seed}" for seed in (0, 1))}
    assert names == both | {"zero-shot-0", "second-sums-0", "wire"} | of_lora
    losses = [
        json.loads((cells / f"{method}-{best:g}-0.json").read_text(encoding="utf-8"))["rows"][-1]["loss"]
        for method in ("lora-8", "lora-16")
    ]
    assert losses[0] != losses[1], "more steps end elsewhere"
    assert all(
        set(by_set) == {"A", "B", "A+B"}
        for name in ("zero-shot-0", "icl-0", "ours-0", "head-0", "second-0")
        for by_set in json.loads((cells / f"{name}.json").read_text(encoding="utf-8"))["readings"].values()
    )
    assert "### Goals" in (data / "out" / "tables.md").read_text(encoding="utf-8")
    stored = json.loads((data / "out" / "paper.json").read_text(encoding="utf-8"))
    (ran_on,) = stored["machines"]
    assert (ran_on["device"], ran_on["dtype"] in ("float32", "bfloat16")) == ("cpu", True)
    assert len(stored["data"]["subj"]["runs"]["ours"]) == 2
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    start(monkeypatch, data, model, "--report")
    assert before == {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert capsys.readouterr().out.count("### Goals") == 2
    written = (data / "out" / "tables.md").read_text(encoding="utf-8")
    assert written.startswith(f"Generated by `python -m benchmarks.paper --report --out {data / 'out'} --lora-rates 0.001 0.01`")
    for name in ("paper-accuracy.svg", "paper-local.svg"):
        assert f"]({name})" in written
        assert (data / "out" / name).exists()
    titles = [table["title"] for table in stored["tables"]]
    assert titles[:3] == ["Accuracy", "Costs of one client", "Goals of ours"]


def test_a_run_of_another_size_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CellStore(tmp_path / "out", QUICK, "tiny").write("subj", "ours-0", run("ours", 0.5))
    with pytest.raises(SystemExit, match="differs in plan and model and setting"):
        report(monkeypatch, tmp_path / "out")


def report(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", "--out", str(out), "--report", *more])
    command.main()


def test_a_report_without_cells_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no cells under .*; run without --report, or name another folder with --out"):
        report(monkeypatch, tmp_path / "out")


def test_lora_on_other_seeds_waits_for_its_rates_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CellStore(tmp_path, Plan(), command.MODEL)
    store.write("subj", "lora-8-0.001-0", adapters(0.7, rate=0.001))
    report(monkeypatch, tmp_path)
    assert (
        "SUBJ: FedAvg-LoRA has no accuracy and no seconds until all of its learning rates have run on seed 0"
        in capsys.readouterr().err
    )


def small_qwen2(folder: Path) -> Path:
    build_model("qwen2").save_pretrained(folder / "qwen2")
    build_tokenizer().save_pretrained(folder / "qwen2")
    return folder / "qwen2"


def test_a_setting_whose_groups_do_not_divide_the_channels_is_left_out_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETTINGS, "long", replace(SETTINGS["long"], groups=24))
    data, model = folder_of_texts(tmp_path), small_qwen2(tmp_path)
    start(monkeypatch, data, model, "--seeds", "0", "--methods", "long", "compact")
    progress = capsys.readouterr().err
    assert f"{TITLES['long']}: left out, 24 groups do not divide the 32 channels of" in progress
    cells = data / "out" / "cells" / "subj"
    assert {path.stem for path in cells.glob("*.json")} == {"compact-0", "wire"}
    assert "long" not in json.loads((cells / "wire.json").read_text(encoding="utf-8"))


def test_cells_of_other_texts_or_weights_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = folder_of_texts(tmp_path), small_qwen2(tmp_path)
    start(monkeypatch, data, model, "--seeds", "0", "--methods", "compact")
    cells = set((data / "out").rglob("*.json"))

    def refused(words: str, *more: str) -> None:
        with pytest.raises(SystemExit, match=rf"compact-0.json differs in {words} from this run; name another folder"):
            start(monkeypatch, data, model, "--seeds", "0", *more)
        assert set((data / "out").rglob("*.json")) == cells

    refused("dtype", "--dtype", "float16")
    build_model("qwen2", seed=1).save_pretrained(model)
    refused("fingerprint")
    train = data / "subj.train.jsonl"
    train.write_text(train.read_text(encoding="utf-8").replace("film", "movie"), encoding="utf-8")
    refused("texts")


def test_bytes_are_counted_only_for_new_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = folder_of_texts(tmp_path), small_qwen2(tmp_path)
    start(monkeypatch, data, model, "--seeds", "0", "--methods", "ours", "compact")
    path = data / "out" / "cells" / "subj" / "wire.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["compact"]["bodies"]["update"], old = 1, stored.pop("ours")
    path.write_text(json.dumps(stored), encoding="utf-8")
    start(monkeypatch, data, model, "--seeds", "0", "--methods", "ours", "compact")
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["compact"] == stored["compact"]
    assert again["ours"]["bodies"] == old["bodies"]


def test_quick_leaves_methods_out() -> None:
    assert set(methods.QUICK_METHODS) < set(methods.DEFAULT_METHODS) < set(TITLES)
    assert not set(methods.DEFAULT_METHODS) & {"lora", *VARIANTS}, "what was measured once is not measured again"


def test_a_method_of_one_seed_says_so_when_requested_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = folder_of_texts(tmp_path), small_qwen2(tmp_path)
    start(monkeypatch, data, model, "--seeds", "1", "--methods", "wide", "zero-shot", "compact")
    progress = capsys.readouterr().err
    assert f"{TITLES['wide']}: left out, it runs on seed 0 of SUBJ and EmoContext alone" in progress
    assert "zero-shot: left out, it runs on seed 0 alone" in progress
    cells = data / "out" / "cells" / "subj"
    assert {path.stem for path in cells.glob("*.json")} == {"compact-1", "wire"}
    assert "wide" not in json.loads((cells / "wire.json").read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match=r"there are no cells under .*; all requested methods are left out"):
        start(monkeypatch, data, model, "--seeds", "1", "--methods", "wide", "--out", str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("ours", ""),
        ("zero-shot", "seed 0"),
        ("more-steps", "SUBJ"),
        ("steps-long", "seed 0 of SUBJ"),
        ("wide", "seed 0 of SUBJ and EmoContext"),
    ],
)
def test_the_restrictions_of_a_method_are_in_its_help(
    method: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command._restriction(method) == words
    monkeypatch.setenv("COLUMNS", "10000")
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", "--help"])
    with pytest.raises(SystemExit):
        command.main()
    title = "" if method == TITLES[method] else f": {TITLES[method]}"
    limits = f" ({words} alone)" if words else ""
    assert f" {method}{title}{limits};" in capsys.readouterr().out


def test_more_steps_of_lora_wait_for_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = folder_of_texts(tmp_path), small_qwen2(tmp_path)
    with pytest.raises(SystemExit, match="all requested methods are left out"):
        start(monkeypatch, data, model, "--seeds", "0", "--methods", "lora-16", "lora")
    progress = capsys.readouterr().err
    assert (
        f"{TITLES['lora-16']}, seed 0, waits for all learning rates of {TITLES['lora-8']} on seed 0 and its development texts; "
        "run these with --methods lora-8 --seeds 0" in progress
    )
    assert f"{TITLES['lora']} is shown from its stored cells alone" in progress


def test_a_run_needs_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--data names the folder of the data sets, --source that of one's own" in capsys.readouterr().err


def test_the_stored_cells_are_those_of_the_methods_as_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for method, setting in DEFAULT_SETTINGS.items():
        monkeypatch.setitem(SETTINGS, method, setting)
    store = CellStore(Path("benchmarks/results/paper"), Plan(), command.MODEL)
    collected = store.collect(methods.RATES)["data"]
    assert set(collected) == set(DATASETS)
    for key in collected:
        counted = {method for method in (*SETTINGS, "lora", "lora-steps") if runs_on(method, 0, key)}
        assert set(store.byte_counts(key) or ()) >= counted
    unseen = CellStore(Path("benchmarks/results/paper/unseen"), Plan(), command.MODEL).collect((0.001,))["data"]["subj"]["runs"]
    assert {method for method, runs in unseen.items() if runs} == {"lora", "ours", "steps", "more-steps", "long"}


def test_bad_texts_are_refused_by_place_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, nowhere = folder_of_texts(tmp_path), tmp_path / "nowhere"
    train = data / "subj.train.jsonl"
    original = train.read_text(encoding="utf-8")
    train.write_text(original.replace('"objective"', '"fact"', 1), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"subj.train.jsonl:1: a line must be .* one of the labels objective, subjective"):
        start(monkeypatch, data, nowhere)
    train.write_text("\n\n" + original.replace('"text": "', '"text": 3, "was": "', 1), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"subj.train.jsonl:3: a line must be"):
        start(monkeypatch, data, nowhere)
    train.write_text("\n".join(original.splitlines(keepends=True)[:9]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"subj.train.jsonl has 9 examples, expected 64"):
        start(monkeypatch, data, nowhere)
    train.write_text(original, encoding="utf-8")
    with pytest.raises(SystemExit, match="64 examples are too few for 5 clients of at least 16; take more examples or fewer"):
        start(monkeypatch, data, nowhere, "--clients", "5")
    train.unlink()
    with pytest.raises(SystemExit, match=r"subj.train.jsonl cannot be read: No such file or directory; --data names the folder"):
        start(monkeypatch, data, nowhere)


def test_an_interrupted_run_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, tmp_path, tmp_path)
    assert ended.value.code == 130
    assert "interrupted; the same command resumes with the missing cells" in capsys.readouterr().err


def own_texts(folder: Path) -> Path:
    """Return a folder with a data set of 40 training and 8 test texts in three classes."""
    (folder / "Mails").mkdir()
    for part, count in (("train", 90), ("test", 8)):
        rows = [
            {"text": f"the plot was good {index}", "label": ("spam", "work mail", "private")[index % 3]} for index in range(count)
        ]
        (folder / "Mails" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "Mails"


def start_own(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, model: Path, *more: str) -> None:
    words = ["--source", str(source), "--template", "Mail: {text}\\nKind:", "--labels", "spam,work mail,private", "--out", str(out)]
    sizes = ["--clients", "2", "--rounds", "1", "--batch-size", "2", "--device", "cpu", "--seeds", "0", "--model", str(model)]
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", *words, *sizes, *more])
    command.main()


def test_ones_own_texts_are_compared_with_one_command_and_reported_without_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, model = own_texts(tmp_path), tmp_path / "out", small_qwen2(tmp_path)
    start_own(monkeypatch, source, out, model, "--methods", "head", "second")
    cell = json.loads((out / "cells" / "mails" / "second-0.json").read_text(encoding="utf-8"))
    assert (cell["title"], cell["plan"]["training"], cell["plan"]["test"]) == ("Mails", 90, 8)
    assert cell["setting"] == TASKS["second"].describe(Plan(**cell["plan"])), "the same on every data set"
    assert "| Mails | ours |" in capsys.readouterr().out
    report(monkeypatch, out)
    assert "| Mails | ours |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has 90 examples, all of which clients train on; --development needs more"):
        start_own(monkeypatch, source, tmp_path / "development", model, "--methods", "head", "--development")
    start_own(monkeypatch, source, tmp_path / "development", model, "--methods", "head", "--development", "--training", "70")
    text = capsys.readouterr().out
    assert "accuracy development, %" in text
    assert "development texts: training examples that no client has" in text


def test_bad_texts_of_ones_own_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, nowhere = own_texts(tmp_path), tmp_path / "nowhere"

    def refused(words: str, *more: str) -> None:
        with pytest.raises(SystemExit, match=words):
            start_own(monkeypatch, source, tmp_path / "out", nowhere, *more)

    refused("--template: a template holds {text} exactly once", "--template", "Mail:")
    refused("--labels takes at least two different labels", "--labels", "spam")
    refused(r"train.jsonl:2: a line must be .* one of the labels spam, private", "--labels", "spam,private")
    refused(
        "holds no sentence-embedding model; --embedding-model names a folder",
        "--methods",
        "embedding",
        "--embedding-model",
        str(source),
    )
    (source / "test.jsonl").unlink()
    refused(r"test.jsonl cannot be read: No such file or directory")
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", "--source", str(source)])
    with pytest.raises(SystemExit):
        command.main()
    assert "--source needs --template" in capsys.readouterr().err
