from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from dropgen.config import to_json
from dropgen.errors import CheckpointError
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.charts import Line, data_uri, domain_dots, line_styles
from dropgen.platform.evaluation.overlays import Picture, overlay
from dropgen.platform.evaluation.replay_record import record_replay, skipped
from dropgen.platform.evaluation.report import build_report, command, write_report
from dropgen.platform.evaluation.results import group_rows

HEADLINE = "RepOnly wins <by 3> points & the page says so"


def rows_of(evaluated: Any) -> list[dict[str, Any]]:
    return [
        {
            "trial": result["key"],
            "method": result["method"],
            "p": result["p"],
            "options": result["options"],
            "seed": result["seed"],
            "steps": result["steps"],
            "converged": result["method"] == "erm",
            "val_dice": result["val_dice"],
            "selected": result["method"] == "dropgen",
            "source_dice": summary["source_dice"],
            "target_dice": summary["target_dice"],
            "folder": result["folder"],
            "adaptation": None,
            "evaluation": str(Path(result["folder"]) / "evaluation"),
        }
        for result, summary in zip(evaluated.results, evaluated.summaries, strict=True)
    ]


class Page(HTMLParser):
    """Text, tags and addresses of a page; void tags are not expected to close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"<{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def page(evaluated: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    bench = evaluated.bench
    context = {"commit": "abc123", "computed_seconds": {"search": 12.0}, "store": "/data/store"}
    write_report(path, bench.experiment, bench.study, rows_of(evaluated), HEADLINE, context)
    parsed = Page(path.read_text())
    assert parsed.open == []
    return parsed


def test_what_replaying_does_to_stored_features_is_shown_or_why_it_is_not(evaluated: Any, tmp_path: Path) -> None:
    bench = evaluated.bench
    measured = record_replay(bench, tmp_path / "analyses")
    path = tmp_path / "page.html"
    for replay, expected in ((measured, measured["said"][0]), (skipped("no method uses features"), "no method uses")):
        write_report(path, bench.experiment, bench.study, rows_of(evaluated), HEADLINE, {"replay": replay})
        page = Page(path.read_text())
        assert expected in page.text
        assert len(page.addresses) == (5 if replay is measured else 4)  # beside dots, ranks, curves, overlays
    Path(measured["figure"]).unlink()
    write_report(path, bench.experiment, bench.study, rows_of(evaluated), HEADLINE, {"replay": measured})
    assert "augmentation's geometry" not in Page(path.read_text()).text


def test_the_finding_comes_first_and_is_escaped(page: Page) -> None:
    body = page.text[page.text.index("tiny\n") :]
    assert body.split("\n")[1].strip() == HEADLINE


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert len(page.addresses) == 4  # dots, ranks, curves, overlays
    assert all(address.startswith("data:image/") for address in page.addresses)


def test_every_picture_is_whole(page: Page) -> None:
    kinds = set()
    for address in page.addresses:
        kind, _, data = address.removeprefix("data:image/").partition(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "svg+xml":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            assert content.startswith(b"\x89PNG") and b"IEND" in content[-12:]
        kinds.add(kind)
    assert kinds == {"svg+xml", "png"}


def test_the_table_shows_the_measured_dice(page: Page, evaluated: Any) -> None:
    header, erm, dropgen, *_ = page.cells
    assert erm[0] == "ERM"
    assert re.sub(r"\s+", " ", dropgen[0]) == "DropGen p = 0.25chosennot converged"
    domains = sorted(evaluated.summaries[0]["target_dice"])
    for cells, result, summary in zip((erm, dropgen), evaluated.results, evaluated.summaries, strict=True):
        expected = [result["val_dice"], summary["source_dice"], *(summary["target_dice"][name] for name in domains)]
        assert [cell.split()[0] for cell in cells[1:-2]] == [f"{100 * value:.1f}" for value in expected]
        assert float(cells[-2].split()[0]) == pytest.approx(100 * np.mean(expected[2:]), abs=0.051)
    unseen = [np.mean(list(summary["target_dice"].values())) for summary in evaluated.summaries]
    places = [1 + sum(round(100 * other, 1) > round(100 * own, 1) for other in unseen) for own in unseen]
    assert [int(cells[-1]) for cells in (erm, dropgen)] == places
    assert [cell.removesuffix("1 subject").strip() for cell in header[3:-2]] == domains
    assert all(cell.endswith("1 subject") for cell in header[2:-2])


def test_what_is_absent_is_a_line_and_a_test_time_method_has_no_curve(evaluated: Any, tmp_path: Path) -> None:
    bench, rows = evaluated.bench, rows_of(evaluated)
    rows.append({**rows[0], "method": "erm+tent", "adaptation": {"name": "tent"}, "val_dice": 1.0, "seed": 7})
    absent = [{"method": "finetune_scratch", "options": {}, "seed": None, "reason": "unavailable: no <such> thing"}]
    context = {"absent": absent, "notes": ["A note."]}
    parsed = []
    for name, table in (("plain", rows[:-1]), ("adapted", rows)):
        path = tmp_path / f"{name}.html"
        write_report(path, bench.experiment, bench.study, table, HEADLINE, context)
        parsed.append(Page(path.read_text()))
    plain, adapted = parsed
    assert ["Finetune from scratch", "unavailable: no <such> thing"] in adapted.cells
    assert "A note." in adapted.text
    assert adapted.cells[len(rows)][0] == "ERM + TENT"
    assert adapted.addresses[-2] == plain.addresses[-2]  # the curves are those of the trainings alone
    assert adapted.addresses[0] != plain.addresses[0]


def test_every_case_is_listed_with_its_dice(page: Page, evaluated: Any) -> None:
    listed = {cells[0] for cells in page.cells}
    assert {case.id for case in evaluated.bench.study.split("test")} <= listed


def test_how_to_reproduce_is_there(page: Page) -> None:
    assert "abc123" in page.text
    assert "12 s: search 12 s" in page.text
    assert "learning_rate: 0.01" in page.text


def test_several_seeds_give_a_standard_error_over_seeds(evaluated: Any, tmp_path: Path) -> None:
    first = rows_of(evaluated)
    second = [{**row, "seed": 2, "val_dice": row["val_dice"] + 0.02} for row in first]
    bench = evaluated.bench
    write_report(tmp_path / "page.html", bench.experiment, bench.study, first + second, HEADLINE, {})
    parsed = Page((tmp_path / "page.html").read_text())
    erm = parsed.cells[1]
    mean = 100 * (first[0]["val_dice"] + 0.01)
    assert erm[1] == f"{mean:.1f} ± 1.0"
    assert erm[2].endswith("± 0.0")


def test_seeds_of_one_set_of_options_are_one_line() -> None:
    def row(seed: int, **options: Any) -> dict[str, Any]:
        return {"method": "dropgen", "p": options["p"], "options": options, "seed": seed}

    groups = group_rows([row(1, p=0.5), row(2, p=0.5), row(1, p=0), row(1, p=0.5, min_keep=1)])
    assert [(group.name, len(group.rows)) for group in groups] == [
        ("DropGen p = 0.5", 2),
        ("DropGen p = 0", 1),
        ("DropGen p = 0.5, min_keep = 1", 1),
    ]


def test_a_study_without_labelled_test_cases_still_gets_a_page(evaluated: Any, tmp_path: Path) -> None:
    rows = []
    for row in rows_of(evaluated):
        folder = tmp_path / row["method"]
        shutil.copytree(row["folder"], folder)
        (folder / "evaluation" / "cases.csv").write_text("case,subject,domain,split,class,dice\n")
        (folder / "evaluation" / "summary.json").write_text(json.dumps({"domains": {}}))
        rows.append(
            {
                **row,
                "folder": str(folder),
                "evaluation": str(folder / "evaluation"),
                "source_dice": None,
                "target_dice": {},
            }
        )
    bench = evaluated.bench
    write_report(tmp_path / "page.html", bench.experiment, bench.study, rows, HEADLINE, {})
    parsed = Page((tmp_path / "page.html").read_text())
    assert "worst" not in parsed.text
    assert parsed.cells[1][2] == "–"


def test_the_verb_rebuilds_the_page_from_what_lies_on_disk(evaluated: Any, tmp_path: Path) -> None:
    experiment = evaluated.bench.experiment
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(to_json(experiment)))
    arguments = argparse.Namespace(experiment=config, root=tmp_path, overrides=(), latex=True)
    with pytest.raises(CheckpointError, match=r"summary\.json is missing; run: dropgen run"):
        command(arguments)
    folder = tmp_path / experiment.name
    folder.mkdir()
    summary = {"headline": HEADLINE, "table": rows_of(evaluated), "model_uri": "models:/tiny@champion"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "manifest.json").write_text(json.dumps({"commit": "feed", "command": ["/x/dropgen", "run", "a.yaml"]}))
    document = command(arguments)
    text = Path(document["report"]).read_text()
    assert r"\toprule" in Path(document["latex"]).read_text()
    assert "dropgen run a.yaml" in text
    assert "feed" in text
    assert "models:/tiny@champion" in text
    assert build_report(experiment, tmp_path).read_text() == text


def test_an_evaluation_from_before_the_measures_is_shown_as_not_available(evaluated: Any, tmp_path: Path) -> None:
    rows = []
    for row in rows_of(evaluated):
        old = tmp_path / row["method"] / "evaluation"
        shutil.copytree(row["evaluation"], old)
        summary = json.loads((old / "summary.json").read_text())
        del summary["measures"]
        (old / "summary.json").write_text(json.dumps(summary))
        lines = [line.split(",")[:6] for line in (old / "cases.csv").read_text().splitlines()]
        (old / "cases.csv").write_text("".join(",".join(line) + "\n" for line in lines))
        rows.append({**row, "evaluation": str(old)})
    bench = evaluated.bench
    write_report(tmp_path / "page.html", bench.experiment, bench.study, rows, HEADLINE, {})
    parsed = Page((tmp_path / "page.html").read_text())
    assert "Not available for DropGen p = 0.25, ERM: tested before these measures were taken." in parsed.text
    assert ["ERM", *["–"] * 8] in parsed.cells


def test_the_measures_and_the_pairs_are_on_the_page(page: Page, evaluated: Any) -> None:
    domains = sorted(evaluated.summaries[0]["target_dice"])
    found = [evaluated.summaries[0]["measures"]["domains"][name]["nsd"] for name in domains]
    expected = f"{100 * np.mean([spread['mean'] for spread in found]):.1f} n = {sum(spread['n'] for spread in found)}"
    (measured,) = [cells for cells in page.cells if cells[0] == "ERM" and len(cells) == 9 and "n = " in cells[1]]
    assert measured[1] == expected
    assert "NSD at a tolerance of 2 mm" in page.text
    (header,) = [cells for cells in page.cells if cells[0] == "ahead of"]
    assert len(header) == 2
    assert "Warning:" in page.text


def picture(affine: np.ndarray, flip: bool = False) -> Picture:
    image = np.zeros((24, 20, 12), np.float32)
    image[6:10, 4:16, 3:9] = 1
    mask = (image > 0).astype(np.uint8)
    return Picture("row", Volume(image[::-1] if flip else image, affine), {"truth": mask[::-1] if flip else mask})


def test_a_mirrored_file_gives_the_same_picture() -> None:
    plain, mirrored = np.eye(4), np.eye(4)
    mirrored[0, 0], mirrored[0, 3] = -1, 23
    classes = ("background", "one")
    one, other = (
        data_uri(overlay([entry], classes), "png") for entry in (picture(plain), picture(mirrored, flip=True))
    )
    assert one == other


def test_the_slice_with_most_truth_is_shown_and_nothing_labelled_is_cut() -> None:
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    entry = picture(affine)
    truth = entry.masks["truth"]
    assert truth is not None
    truth = truth.copy()
    truth[2:20, 4:16, 5] = 1
    stray = np.zeros_like(truth)
    stray[23, 19, 5] = 1
    figure = overlay([replace(entry, masks={"truth": truth, "model": stray})], ("background", "one"))
    _, truth_panel, model_panel = figure.axes
    tint = np.asarray(truth_panel.images[1].get_array())[..., 3]
    assert np.count_nonzero(tint) == 18 * 12
    assert np.count_nonzero(np.asarray(model_panel.images[1].get_array())[..., 3]) == 1
    # Radiological view: the patient's right (high x in RAS) lies at the left, anterior (high y) at the top.
    row, column = np.argwhere(np.asarray(model_panel.images[1].get_array())[..., 3])[0]
    assert (row, column) == (0, 0)
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "model"]


def test_a_case_without_any_label_shows_the_whole_slice() -> None:
    entry = replace(picture(np.eye(4)), masks={"truth": None, "model": np.zeros((24, 20, 12), np.uint8)})
    figure = overlay([entry, entry], ("background", "one"))
    assert figure.axes[0].images[0].get_array().shape == (20, 24)


def test_a_flat_image_draws() -> None:
    entry = Picture("flat", Volume(np.zeros((4, 4, 4), np.float32), np.eye(4)), {"truth": np.ones((4, 4, 4), np.uint8)})
    assert data_uri(overlay([entry], ("background", "one")), "png").startswith("data:image/png;base64,")


def test_variants_of_a_method_share_its_colour_and_differ_in_dashes() -> None:
    styles = line_styles([("erm", "ERM"), ("dropgen", "a"), ("dropgen", "b"), ("new", "c"), ("newer", "d")])
    assert styles["a"][0] == styles["b"][0] != styles["ERM"][0]
    assert styles["a"][1] != styles["b"][1]
    assert len({styles[name][0] for name in ("ERM", "a", "c", "d")}) == 4


def test_the_dot_chart_puts_every_value_where_it_belongs() -> None:
    figure = domain_dots([Line("ERM", False, 80.0, {"new": 20.0}), Line("DropGen", True, None, {"new": 60.0})])
    (axis,) = figure.axes
    points = {tuple(map(float, collection.get_offsets()[0])) for collection in axis.collections}
    assert points == {(80.0, 1.0), (20.0, 1.0), (60.0, 0.0)}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["DropGen", "ERM"]
