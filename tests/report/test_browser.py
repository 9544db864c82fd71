"""Pages in a real browser: what is drawn and what controls do, compared with NumPy on the margins."""

import collections
import csv
import itertools
import re
import shutil

import numpy as np
import pages
import pytest
from helpers import slow_except

from hmt_jax import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GREEN_LIGHT, GREEN_DARK = "rgb(0, 158, 115)", "rgb(53, 207, 162)"  # of the third curve


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system; for one file, because Playwright's event loop runs until it is stopped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="looks at pages with Playwright, which is missing")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"looks at pages in a browser, and there is none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()


PAGES = {
    "page": lambda path: report.write(path, pages.measurements(), title="Three curves", command="hmt report a b c"),
    "hostile": lambda path: report.write(path, pages.hostile(), title=pages.HOSTILE[0], command=pages.HOSTILE[1]),
    "grid": lambda path: report.write(path, [pages.grid()]),
    "live": lambda path: report.write(path, pages.measurements()[:1], progress=report.Progress(30, 120)),
    "start": lambda path: report.write(path, [], progress=report.Progress(0, 120)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes pages when they are first asked for; returns their paths."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name):
        path = folder / f"{name}.html"
        if not path.exists():
            PAGES[name](path)
        return path

    return write


@pytest.fixture
def opened(browser, written):
    """Opens a page; at the end, it must have said nothing on the console and asked for no other file."""
    seen = []
    contexts = []

    def open_page(name="page", **settings):
        contexts.append(browser.new_context(**{"viewport": {"width": 1000, "height": 900}, **settings}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        own = written(name).as_uri()
        page.on("request", lambda request: seen.append(request.url) if request.url != own else None)
        page.goto(own)
        page.wait_for_function(
            "[...document.querySelectorAll('figure.drawn')].every((f) => f.chart && f.querySelector('.chart svg'))"
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen == []


def figure(page, section):
    return page.locator(f"section:has(> h2#{section}) > figure.drawn").first


def markers(chart, m, is_dot=False):
    """The centres of the markers of a curve in pixels of the chart, from left to right."""
    found = chart.evaluate(
        """(figure) => [...figure.querySelectorAll('.mark-symbol path')].map((path) => ({
          fill: path.getAttribute('fill'), opacity: path.getAttribute('opacity'),
          at: path.getAttribute('transform').match(/-?\\d[\\d.]*/g).map(Number), label: path.getAttribute('aria-label'),
        }))"""
    )
    own = [each for each in found if each["fill"] == f"var(--curve-{m})" and (each["label"] is None) == is_dot]
    return np.array(sorted(each["at"] for each in own)).reshape(-1, 2)


def assert_affine(values, pixels):
    """The places in pixels are a straight, falling function of the values, up to rounding to a tenth of a pixel."""
    slope, offset = np.polyfit(values, pixels, 1)
    assert slope < 0
    np.testing.assert_allclose(pixels, slope * np.asarray(values) + offset, atol=0.1)


def medians(seed):
    return np.median(pages.margins(seed), axis=1)


@pytest.mark.slow
def test_every_curve_is_drawn_at_its_medians(opened):
    chart = figure(opened(), "curves")
    for m, values in {0: medians(0), 2: medians(0) / 2}.items():
        drawn = markers(chart, m)
        assert len(drawn) == pages.NUM_SUBSPACES
        assert_affine(np.log(values), drawn[:, 1])
    # Most margins of the last subspace are censored: its marker is a triangle at the upper edge.
    drawn = markers(chart, 1)
    assert len(drawn) == pages.NUM_SUBSPACES
    assert drawn[-1, 1] == drawn[:, 1].min() == 4
    both = np.concatenate([medians(0), medians(0) / 2])
    assert_affine(np.log(both), np.concatenate([markers(chart, m)[:, 1] for m in (0, 2)]))  # on one axis
    lines = chart.locator(".mark-line path")
    assert collections.Counter(lines.evaluate_all("paths => paths.map(p => p.getAttribute('stroke'))")) == {
        "var(--curve-0)": 2,  # with the certified bounds
        "var(--curve-1)": 1,
        "var(--curve-2)": 1,
    }
    dashes = lines.evaluate_all("paths => paths.map(p => p.getAttribute('stroke-dasharray'))")
    assert len(set(dashes)) == 4  # never colour alone


@pytest.mark.slow
def test_the_switch_makes_the_axis_linear_and_back(opened):
    chart = figure(opened(), "curves")
    switch = chart.get_by_label("linear axis")
    for is_linear in (True, False):
        switch.set_checked(is_linear)
        chart.page.wait_for_function(
            f"document.querySelector('figure.drawn').chart.spec.layer[0].encoding.y.scale.type !== "
            f"'{'log' if is_linear else 'linear'}'"
        )
        scale = (lambda values: values) if is_linear else np.log
        assert_affine(scale(medians(0)), markers(chart, 0)[:, 1])


@pytest.mark.slow
def test_hovering_shows_exact_values(opened):
    page = opened()
    chart = figure(page, "curves")
    chart.locator('.mark-symbol path[fill="var(--curve-0)"]').nth(2).hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    text = tooltip.inner_text()
    row = pages.margins(0)[2]
    assert "standard" in text
    for value in (np.median(row), *np.percentile(row, [5, 25, 75, 95])):
        assert f"{value:.6g}" in text


def test_the_legend_hides_and_shows_curves(opened):
    chart = figure(opened(), "curves")
    box = chart.get_by_role("checkbox", name="robust", exact=True)
    for is_shown in (False, True):
        box.set_checked(is_shown)
        chart.page.wait_for_function(
            "(n) => document.querySelectorAll('figure.drawn')[0].querySelectorAll('.mark-line path').length === n",
            arg=3 + is_shown,
        )
        assert [len(markers(chart, m)) for m in range(3)] == [6, 6 * is_shown, 6]


def test_samples_of_a_subspace_are_shown_on_demand(opened):
    chart = figure(opened(), "curves")
    assert [len(markers(chart, m, is_dot=True)) for m in range(3)] == [0, 0, 0]
    chart.get_by_label("samples of").select_option(pages.SUBSPACES[2])
    chart.locator('.mark-symbol path[fill="var(--curve-0)"]').nth(45).wait_for(state="attached")
    # One image has no margin there after the training of `robust`.
    assert [len(markers(chart, m, is_dot=True)) for m in range(3)] == [40, 39, 40]
    drawn = markers(chart, 0, is_dot=True)
    assert_affine(np.log(np.sort(pages.margins(0)[2])[::-1]), np.sort(drawn[:, 1]))


def test_csv_buttons_give_the_numbers(opened):
    page = opened()
    for name, number in (("Samples as CSV", 1), ("Subspaces as CSV", 1)):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).nth(number).click()
        rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
        if name.startswith("Samples"):
            margin = np.array([float(row["margin"] or "nan") for row in rows]).reshape(pages.NUM_SUBSPACES, -1)
            expected = pages.margins(1).copy()
            expected[5, :30] = expected[2, 7] = np.nan
            np.testing.assert_allclose(margin, expected, rtol=1e-5)  # six digits
            assert collections.Counter(row["status"] for row in rows) == {
                "converged": 209,
                "out_of_steps": 30,
                "non_finite": 1,
            }
        else:
            np.testing.assert_allclose([float(row["median"]) for row in rows[:2]], medians(1)[:2], rtol=1e-5)
            assert rows[5]["median"] == "inf"


def test_the_heat_map_is_a_grid_with_low_frequencies_in_the_upper_left_corner(opened):
    page = opened("grid")
    labels = (
        figure(page, "curves")
        .locator(".mark-rect path[aria-label*=median]")
        .evaluate_all(
            "cells => cells.map(cell => [cell.getAttribute('aria-label'), cell.getBoundingClientRect().x, "
            "cell.getBoundingClientRect().y])"
        )
    )
    assert len(labels) == 5  # the sixth has no median, and says so
    rows, columns = (sorted({round(label[axis]) for label in labels}) for axis in (2, 1))
    corners = [(row, column) for row in (0, 4) for column in (0, 4, 8)]
    assert [(rows.index(round(y)), columns.index(round(x))) for _, x, y in labels] == [
        (row // 4, column // 4) for row, column in corners[:5]
    ]
    for r, (text, _, _) in enumerate(labels):
        assert text == f"grid, subspace {corners[r][0]},{corners[r][1]}: median {medians(0)[r]:.6g}"
    assert figure(page, "curves").locator(".chart svg text", has_text="∞").count() == 1


@pytest.mark.parametrize("width", slow_except([375, 1440], 375))
@pytest.mark.parametrize("name", slow_except(["page", "hostile"], "hostile"))
def test_pages_are_legible_at_every_width_in_both_schemes(name, width, opened):
    page = opened(name, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.querySelectorAll('.chart svg')].every((s) => s.getBoundingClientRect().right <= innerWidth)"
    )
    for scheme, stroke in (("light", GREEN_LIGHT), ("dark", GREEN_DARK)):
        page.emulate_media(color_scheme=scheme)
        colors = page.evaluate(
            """() => { const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
              return [of('body', 'backgroundColor'), of('body', 'color'), of('.note', 'color'), of('a', 'color'),
                      of('.chart svg text', 'fill')]; }"""
        )
        background, *texts = (np.array(re.findall(r"\d+", color)[:3], int) for color in colors)
        assert (background.mean() > 128) == (scheme == "light")
        for text in texts:
            assert contrast(background, text) >= 4.5  # as WCAG asks for texts
        curve = page.locator('.mark-symbol path[fill="var(--curve-2)"]').first
        assert curve.evaluate("path => getComputedStyle(path).fill") == stroke


def contrast(first, second):
    """The ratio of luminances as WCAG 2 defines it."""
    channels = np.stack([first, second]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def test_hostile_names_are_text(opened):
    page = opened("hostile")
    assert page.evaluate("window.hacked") is None
    assert page.title() == pages.HOSTILE[0]
    assert page.locator("script:not([type])").count() == 2
    names = page.locator("section:has(> h2#claims) tbody th").all_text_contents()
    assert names == pages.HOSTILE
    # Altogether more than once each, in tables, in charts and in the tooltip.
    axis = figure(page, "curves").locator(".chart svg").text_content()
    assert "<script>" in axis
    assert "49" not in page.locator("h3").all_inner_texts()[-1]
    mark = figure(page, "curves").locator("path[aria-label*='<script>']").first
    assert "window.hacked" in mark.get_attribute("aria-label")
    mark.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert pages.HOSTILE[0] in tooltip.inner_text()
    assert page.evaluate("window.hacked") is None


def test_a_screen_reader_can_walk_through_the_page(opened):
    page = opened()
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for selector, has_all in {
        "table": "t.caption && t.querySelector('th[scope=row], th[scope=col]')",
        "img": "t.alt.length > 5",
        ".chart svg": "t.querySelector('[aria-label]')",
        "input, select": "t.labels.length === 1",
        ".scroll": "t.tabIndex === 0 && t.getAttribute('aria-label')",
    }.items():
        found = page.locator(selector).evaluate_all(f"all => all.map(t => Boolean({has_all}))")
        assert found
        assert all(found), selector
    # The chart says its numbers in words.
    low = medians(0).min()
    assert f"{low:.3g} in subspace 0" in figure(page, "curves").inner_html()


def test_a_printed_page_cuts_no_chart(opened):
    page = opened(viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 1000})  # of A4 without its margins
    found = page.locator("figure.drawn").evaluate_all(
        "all => all.map(f => [getComputedStyle(f).breakInside, f.getBoundingClientRect().height, "
        "f.querySelector('.chart svg').getBoundingClientRect().right])"
    )
    assert all(inside == "avoid" and right <= 680 and height < 1000 for inside, height, right in found)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


@pytest.mark.slow
def test_a_page_of_a_measurement_that_goes_on_says_how_far_it_is(opened):
    page = opened("live")
    assert "30 of 120 pairs" in page.get_by_role("status").inner_text()
    assert page.locator("progress").evaluate("bar => bar.value / bar.max") == 0.25
    assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "30"
    assert opened("start").locator("figure").count() == 0
    assert opened("page").locator("meta[http-equiv=refresh]").count() == 0
