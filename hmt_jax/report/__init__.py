"""A page of margins: one HTML file with curves, samples, images and numbers, which works offline.

`write` and `html` make the page from `Measurement`s, and `of_store` makes a `Measurement` from a store. For margins
from elsewhere, such as runs of experiments, make a `Measurement` with the fields that are known. `save` and `load` keep
`Measurement`s in a file.

The charts are Vega-Lite, written with Altair. With its JavaScript inline, an otherwise empty page is 0.9 MB; it
would be 1.3 MB with Bokeh and 4.8 MB with Plotly. Of the three, only Vega-Lite draws SVG, which prints sharply and
follows the colours of the page, has labels for screen readers, and writes nothing to the console.
"""

from hmt_jax.report._content import Claim, Measurement, Picture, Progress, of_windows
from hmt_jax.report._files import html, load, of_store, save, to_bytes, write
from hmt_jax.report._gallery import pictures

__all__ = [
    "Claim",
    "Measurement",
    "Picture",
    "Progress",
    "html",
    "load",
    "of_store",
    "of_windows",
    "pictures",
    "save",
    "to_bytes",
    "write",
]
