"""A page of margins: one HTML file with curves, samples, images and numbers, which needs no network.

`write` and `html` make it of `Measurement`s, and `of_store` makes such a measurement of a store. Other things that have
margins, such as runs of experiments, are made `Measurement`s with the fields that they have; `save` and `load` keep
these in a file.

The charts are Vega-Lite, written with Altair. With its JavaScript inline, an otherwise empty page is 0.9 MB, against
1.3 MB of Bokeh and 4.8 MB of Plotly; and it alone draws SVG, which prints sharply and follows the colours of the page,
with labels for screen readers, and is silent on the console.
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
