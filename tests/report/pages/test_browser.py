"""Pages in a headless Chromium: no error, nothing from the network, and what the reader can do."""

import csv
import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from lightly_collapse.io.spectra import TrainingSpectra
from lightly_collapse.pretrain.sweep import summarize
from lightly_collapse.report.diagnosis.causes import Cause
from lightly_collapse.report.diagnosis.evidence import Evidence
from lightly_collapse.report.diagnosis.records import DiagnosisRecord
from lightly_collapse.report.diagnosis.verdict import Place, Verdict
from lightly_collapse.report.pages.demo import demo_page
from lightly_collapse.report.pages.diagnosis import diagnosis_page
from lightly_collapse.report.pages.measure import compare_page, measure_page
from lightly_collapse.report.pages.predict import predict_page
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.pages.sweep import sweep_page
from lightly_collapse.report.records import LayerRecord, ModelRecord, WeightRecord
from lightly_collapse.theory import predict_collapse
from tests.report.pages.browser import Browser

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def decaying(width, rate):
    return [3.0 * rate**i for i in range(width)]


def layer(name, width, rate):
    scalars = {"rows": 500.0, "dropped": 0.0, "lid_rows": 40.0, "lid_k": 20.0}
    names = ("rankme", "effective_rank", "collapsed_dimensions", "stable_rank", "alpha_req")
    more = ("participation_ratio", "nesum", "condition_number", "mlid", "two_nn", "uniformity")
    scalars |= {measure: width * rate / (i + 1) for i, measure in enumerate((*names, *more))}
    return LayerRecord(
        name, width, scalars, {}, decaying(width, rate), [1 + i / 7 for i in range(40)]
    )


def model(name="a model"):
    layers = [layer("output", 40, 0.9), layer("layer.1", 20, 0.8), layer(EVIL, 30, 0.7)]
    weights = [
        WeightRecord(f"{x}.weight", (16, 27), [0.8**i for i in range(16)], 2.5, 3.5, 9.1)
        for x in ("layer.1", EVIL)
    ]
    settings = {"collapse_rtol": 0.01, "lid_k": 20}
    return ModelRecord(name, layers, weights, settings, {"data": EVIL}, [EVIL])


def training():
    return TrainingSpectra(
        "epoch",
        [0, 3, 6],
        [{"backbone": dict(enumerate(decaying(20, rate)))} for rate in (0.5, 0.7, 0.9)],
    )


def demo():
    results = [
        {
            "title": title,
            "spectrum": decaying(32, rate),
            "training_spectra": [decaying(32, rate / 2), decaying(32, rate)],
            "weight_eigenvalues": [1.0, 0.5, 0.1],
            **dict.fromkeys(("knn", "linear"), 0.9),
            **dict.fromkeys(("rankme", "effective_rank", "mlid", "embedding_rankme"), rate * 10),
            **dict.fromkeys(("collapsed_dimensions", "embedding_width"), 16),
        }
        for title, rate in (("SimCLR", 0.8), (EVIL, 0.9))
    ]
    settings = {"epochs": 1, "seed": 0, "collapse_rtol": 0.01, "lid_k": 20}
    images = {"train": 100, "held out": 50}
    return demo_page(
        {"results": results, "settings": settings, "images": images, "versions": {}, "seconds": 1}
    )


def sweep():
    results = [
        {
            "method": method,
            "regularizer": regularizer,
            "variant": f"{method} {regularizer}",
            "seed": seed,
            "jitter": jitter,
            "spectrum": decaying(16, 0.9),
            "embedding_spectrum": decaying(8, 0.9),
            "weight_eigenvalues": {"conv1": [1.0, 0.4], "conv2": [1.0, 0.8]},
            "collapse_rtol": 0.01,
            "lid_k": 20.0,
            **dict.fromkeys(("knn", "linear", "rankme", "effective_rank", "mlid"), 0.5 + seed),
            **dict.fromkeys(("train_images", "epochs", "seconds"), 10),
            "resumed": False,
        }
        for method, regularizer in (("SimCLR", ""), (EVIL, "SO"))
        for seed, jitter in ((0, 0.5), (1, 1.0))
    ]
    headings, measures = ["method", "mLID"], ["", "mlid"]
    body = [[r["variant"], "1.0 ± 0.1"] for r in results]
    return sweep_page(headings, measures, body, summarize(results), results, 5)


def noisy(image):
    return [image + 0.1 * torch.randn(image.shape) for _ in range(2)]


def predict():
    images = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(24)]
    prediction = predict_collapse(images, noisy, n_views=2, pool=2, width=6, resamples=10)
    return predict_page(
        {"data": EVIL, "transform": "simclr", "size": 8, **prediction.to_dict()}, prediction
    )


def diagnosis():
    return diagnosis_page(
        DiagnosisRecord(
            EVIL,
            Verdict("dimensional", (EVIL,)),
            Place(EVIL, "feature", EVIL),
            [Cause("projector", EVIL, True, EVIL)],
            [],
            Evidence(
                model(),
                model(),
                0.1,
                0.5,
                {},
                {},
                history=[{"step": s, f"{EVIL}/effective_rank": 9.0 / s} for s in (1, 2, 3)],
            ),
        )
    )


PAGES = {
    "diagnosis": diagnosis,
    "measure": lambda: measure_page(model(EVIL), training()),
    "compare": lambda: compare_page([model(), model(EVIL)]),
    "demo": demo,
    "sweep": sweep,
    "predict": predict,
    "without charts": lambda: render("base.html", title=EVIL),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(folder):
    browser = Browser(folder)
    yield browser
    browser.close()


@pytest.fixture
def page(browser, folder):
    """The page of `measure`, open."""
    path = folder / "measure.html"
    path.write_text(PAGES["measure"](), encoding="utf-8")
    browser.errors.clear()
    browser.open(path)
    yield browser
    assert not browser.errors


def lines(browser, chart):
    """How many lines a chart shows."""
    return browser.run(f"document.querySelectorAll('#{chart} .plot .mark-line path[d^=M]').length")


def visible(browser, chart):
    return browser.run(
        f"[...document.querySelectorAll('#{chart} .series label')]"
        ".filter(l => l.firstChild.checked).map(l => l.textContent)"
    )


@pytest.mark.parametrize("name", PAGES)
def test_page_is_small_and_draws_without_error_or_network(name, browser, folder):
    text = PAGES[name]()
    assert len(text.encode()) < 1_500_000
    path = folder / f"{name}.html"
    path.write_text(text, encoding="utf-8")
    browser.errors.clear()
    browser.open(path)
    charts = browser.run("document.querySelectorAll('figure.chart').length")
    assert browser.run("document.querySelectorAll('figure.chart .plot svg').length") == charts
    assert browser.run("document.documentElement.dataset.charts") == "drawn"
    assert browser.run(
        "[...document.querySelectorAll('a')]"
        ".every(a => document.getElementById(a.getAttribute('href').slice(1)))"
    )
    assert browser.run("window.hacked") is None
    assert EVIL in browser.run("document.title + document.body.textContent")
    assert not browser.errors
    assert not browser.requests


def test_policy_keeps_other_scripts_from_running(browser, folder):
    path = folder / "injected.html"
    text = render("base.html", title="x").replace("</body>", f"{EVIL}</body>")
    path.write_text(text, encoding="utf-8")
    browser.errors.clear()
    browser.open(path)
    assert browser.run("window.hacked") is None
    assert any("Content Security Policy" in error for error in browser.errors)


def test_values_show_where_the_pointer_is(page):
    x, y, width, height = page.place("#spectrum .plot svg")
    page.point(x + 0.4 * width, y + height / 2)
    page.point(x + 0.4 * width + 3, y + height / 2)
    page.wait("document.querySelector('#vg-tooltip-element.visible')")
    table = page.run(
        "[...document.querySelectorAll('#vg-tooltip-element tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [row[0] for row in table] == [
        "index, largest first", "output (40)", "layer.1 (20)", f"{EVIL} (30)"
    ]  # fmt: skip
    index = int(table[0][1])
    for row, rate in zip(table[1:], (0.9, 0.8, 0.7), strict=True):
        assert float(row[1]) == pytest.approx(rate ** (index - 1), rel=1e-3)


def test_lines_are_switched_off_and_on(page):
    assert lines(page, "spectrum") == 3
    page.click("#spectrum .series label:nth-of-type(2) input")
    page.wait("document.querySelectorAll('#spectrum .plot .mark-line path[d^=M]').length === 2")
    page.click("#spectrum .series [data-show=none]")
    page.wait("document.querySelectorAll('#spectrum .plot .mark-line path[d^=M]').length === 0")
    page.click("#spectrum .series [data-show=all]")
    page.wait("document.querySelectorAll('#spectrum .plot .mark-line path[d^=M]').length === 3")


def test_layer_picked_in_the_heat_map_opens_its_spectrum(page):
    page.click("#features .plot .mark-rect path:nth-child(5)")  # the first row: layer.1
    page.wait("document.querySelectorAll('#spectrum .plot .mark-line path[d^=M]').length === 1")
    assert visible(page, "spectrum") == ["layer.1 (20)"]
    assert lines(page, "weight-spectra") == 2


def test_slider_goes_through_the_training(page):
    path = "document.querySelector('#training .plot .mark-line path').getAttribute('d')"
    before = page.run(path)
    page.run(
        "(() => { const s = document.querySelector('#training .slider input'); s.value = 0;"
        "s.dispatchEvent(new Event('input')); })()"
    )
    page.wait(f"{path} !== {json.dumps(before)}")
    assert page.run("document.querySelector('#training output').textContent") == "0"


def test_tables_are_sorted_by_value_and_put_back(page):
    def column():
        return page.run(
            "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[1].textContent)"
        )

    original = column()
    for order in ("descending", "ascending"):
        page.click("table th:nth-child(2) button.sort")
        assert [float(x) for x in column()] == sorted(
            map(float, original), reverse=order == "descending"
        )
        assert page.run("document.querySelector('th:nth-child(2)').ariaSort") == order
    page.click("table th:nth-child(2) button.sort")
    assert column() == original


def downloaded(folder: Path, name: str) -> bytes:
    path = folder / "downloads" / name
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return path.read_bytes()
        time.sleep(0.05)
    raise AssertionError(f"{name} was not saved")


def test_charts_and_tables_are_saved(page, folder):
    for kind in ("csv", "png", "svg"):
        page.click(f"#spectrum [data-save={kind}]")
    rows = list(csv.reader(downloaded(folder, "spectrum.csv").decode().splitlines()))
    assert rows[0] == ["index, largest first", "output (40)", "layer.1 (20)", f"{EVIL} (30)"]
    assert [float(x) for x in rows[3][:3]] == pytest.approx([3, 0.9**2, 0.8**2])
    assert len(rows) == 41
    assert downloaded(folder, "spectrum.png").startswith(b"\x89PNG")
    svg = downloaded(folder, "spectrum.svg").decode()
    assert svg.startswith("<svg")
    assert "currentColor" not in svg
    page.click("#features [data-save=csv]")
    cells = list(csv.reader(downloaded(folder, "features.csv").decode().splitlines()))
    assert cells[1][:2] == ["layer.1 (20)", "1"]
    page.click(".scroll + .actions button")
    table = list(csv.reader(downloaded(folder, "table-1.csv").decode().splitlines()))
    assert table[0] == ["number", "value", "better", "what it means"]


def test_every_measure_leads_to_what_is_said_of_it(page):
    names = page.run(
        "[...document.querySelector('table').tBodies[0].rows]"
        ".map(row => document.querySelector(row.cells[0].querySelector('a').getAttribute('href'))"
        ".textContent)"
    )
    assert len(names) == 11
    assert names[:2] == ["RankMe", "Effective rank"]
    page.click("table tbody a")
    assert page.run("document.querySelector('dl.measures :target').textContent") == "RankMe"
    assert "not centred" in page.run(
        "document.querySelector('dl.measures :target').nextElementSibling.textContent"
    )


def test_record_without_weights_or_spectra_is_a_page_without_charts(browser, folder):
    record = dataclasses.replace(
        model(),
        weights=[],
        layers=[dataclasses.replace(layer("output", 4, 0.5), spectrum=[], lid=[])],
    )
    text = measure_page(record)
    assert "figure class" not in text
    assert len(text) < 50_000
