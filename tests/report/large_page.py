"""The size of the page of 50,000 images in 14 subspaces, and the seconds until a browser has drawn it.

`python tests/report/large_page.py` in the folder of the checkout prints them.
"""

import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np

NUM_IMAGES, NUM_SUBSPACES = 50_000, 14


def main() -> None:
    """Writes the page, opens it three times, and prints what that takes."""
    sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]
    from playwright.sync_api import sync_playwright
    from test_statistics import make_result

    from hmt_jax import report

    margins = np.random.default_rng(0).lognormal(sigma=0.6, size=(NUM_SUBSPACES, NUM_IMAGES))
    margins *= np.geomspace(1, 20, NUM_SUBSPACES)[:, None]
    measurement = report.Measurement(
        name="large", result=make_result(margins), subspaces=[str(16 * r) for r in range(NUM_SUBSPACES)]
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = pathlib.Path(folder) / "page.html"
        start = time.perf_counter()
        report.write(path, [measurement])
        print(f"written in {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1e6:.2f} MB")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for _ in range(3):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_function("[...document.querySelectorAll('figure.drawn')].every((figure) => figure.chart)")
            print(f"opened and drawn in {time.perf_counter() - start:.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
