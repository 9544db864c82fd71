"""Download of data sets, and their preparation in TFDS's format without TensorFlow."""

import os
from typing import Any

from hmt_jax._paths import PathLike, shown
from hmt_jax.data import _archives, _tfds
from hmt_jax.data._load import check_name

_PARSERS = {"cifar10": _archives.cifar10, "mnist": _archives.mnist}
_TIMEOUT = 10  # seconds without an answer


def prepare(name: str, data_dir: PathLike | None = None) -> str:
    """Downloads a data set, and prepares it for `load`, unless that is done already.

    Addresses and checksums are those of TensorFlow Datasets (TFDS), and the result is what TFDS itself makes with
    TensorFlow: the same samples in the same order. The folder appears once all samples are written and read back.

    Args:
      name: one of `names()`.
      data_dir: the folder of prepared data sets, as for `load`. Files put into its `downloads/manual` are not
        downloaded.

    Returns:
      A sentence that says what was done.

    Raises:
      ValueError: if the name is unknown; if the data set is there, but in another format or incomplete; or if samples
        were lost on the way.
      ModuleNotFoundError: if a package is missing.
      ConnectionError: if a file can't be downloaded.
      OSError: if the folder can't be made or written.

    >>> prepare("digits")
    'digits come with scikit-learn: there is nothing to prepare'
    """
    check_name(name)
    if name == "digits":
        return "digits come with scikit-learn: there is nothing to prepare"
    stock = _tfds.find(name, data_dir)
    if stock.is_prepared():
        _tfds.check_sizes(_tfds.find_prepared(name, data_dir))
        return f"{name} is prepared already, in {shown(stock.data_dir)}"
    if stock.data_path.exists():
        raise ValueError(f"{shown(stock.data_dir)} is no complete data set: {_tfds.remake(stock)}")
    import tensorflow_datasets as tfds

    try:
        os.makedirs(os.path.join(stock.data_dir_root, "downloads"), exist_ok=True)
    except OSError as error:
        raise OSError(
            f"no folder can be made in {shown(stock.data_dir_root)} ({error.strerror}): pass a data_dir that can be "
            "written"
        ) from error
    builder = _builder_class(type(stock), data_dir)(data_dir=stock.data_dir_root)
    builder.download_and_prepare(
        file_format=_tfds.FILE_FORMAT,
        download_config=tfds.download.DownloadConfig(force_checksums_validation=True, try_download_gcs=False),
    )
    return f"{name} is prepared now, in {shown(builder.data_dir)}"


def _builder_class(stock: Any, data_dir: PathLike | None) -> Any:
    """The class of TFDS's builder, without the steps that need TensorFlow."""
    from PIL import Image
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Builder(stock):
            name = stock.name

            def _split_generators(self, dl_manager):
                urls = {info.filename: url for url, info in stock.url_infos.items()}
                splits, class_names = _PARSERS[self.name](_download(self.name, urls, dl_manager, data_dir))
                if class_names is not None:
                    self.info.features["label"].names = class_names
                return {split: self._generate_examples(split, *arrays) for split, arrays in splits.items()}

            def _generate_examples(self, split, images, labels):
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    sample = {"id": f"{split}_{i:05d}", "image": Image.fromarray(image), "label": label}
                    yield i, {feature: sample[feature] for feature in self.info.features}

            def _download_and_prepare(self, *args, **kwargs):
                super()._download_and_prepare(*args, **kwargs)
                # Read before TFDS gives the folder its final name: a folder that fails here does not count as prepared.
                _tfds.read(self)

    return Builder


def _download(name, urls, dl_manager, data_dir):
    """The paths of the downloaded files, keyed as the addresses are."""
    import requests
    from tensorflow_datasets.core.download import DownloadError
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    manual_dir = dl_manager.download_dir / "manual"
    try:
        # TFDS itself retries a dead connection for minutes.
        for file, url in urls.items():
            if not (manual_dir / file).exists():
                with requests.get(url, stream=True, timeout=_TIMEOUT) as response:
                    response.raise_for_status()
        return dl_manager.download(urls)
    except (requests.RequestException, DownloadError, NonMatchingChecksumError) as error:
        raise ConnectionError(
            f"can't download {name}: download {', '.join(urls.values())} on another machine, put the files into "
            f"{shown(manual_dir)}, and {_tfds.remedy(name, data_dir)} again ({error})"
        ) from error
