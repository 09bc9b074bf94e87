"""Fetch the files of MNIST and Fashion-MNIST from mirrors, when the user asks for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnx.datasets.checksums import SHA256, sha256
from mnx.datasets.idx import gunzip
from mnx.errors import DataError, MissingDataError

MIRRORS: dict[str, tuple[str, ...]] = {
    'mnist': (
        'https://ossci-datasets.s3.amazonaws.com/mnist/',
        'https://storage.googleapis.com/cvdf-datasets/mnist/',
    ),
    'fashion-mnist': ('http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',),
}
TIMEOUT_S = 30.0
_LARGEST = 64 * 1024 * 1024  # the largest of the files has 26 MB


def download(name: str, folder: Path, mirrors: Sequence[str] | None = None) -> None:
    """Bring the four idx files of `name` into `folder`, those that are there already left alone.

    Each file appears under its name only when it is whole and has the known checksum.

    Parameters
    ----------
    name : {'mnist', 'fashion-mnist'}
    folder : Path
        Made if it is not there.
    mirrors : sequence of str, optional
        Addresses to try in this order; `MIRRORS` by default.

    Raises
    ------
    MissingDataError
        No mirror gave a file with the known checksum; tells what each of them answered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stem in SHA256[name]:
        if not (folder / f'{stem}.gz').exists() and not (folder / stem).exists():
            _save(folder / f'{stem}.gz', _fetch(name, stem, mirrors or MIRRORS[name]))


def _fetch(name: str, stem: str, mirrors: Sequence[str]) -> bytes:
    answers = []
    for mirror in mirrors:
        url = f'{mirror.rstrip("/")}/{stem}.gz'
        try:
            return _checked(name, stem, _get(url))
        except (OSError, DataError) as error:  # URLError and timeouts are OSErrors
            answers.append(f'  {url}: {error}')
    raise MissingDataError(
        f'download: no mirror gave {stem}.gz of {name}:\n' + '\n'.join(answers) + '\n'
        'Copy the file from another machine and name its folder with --data-dir.'
    )


def _get(url: str) -> bytes:
    import urllib.request  # late: each start would pay for it

    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        data: bytes = answer.read(_LARGEST + 1)
        announced = answer.headers.get('Content-Length')
    if len(data) > _LARGEST or (announced is not None and len(data) != int(announced)):
        raise DataError(f'expected {announced or f"at most {_LARGEST}"} bytes but got {len(data)}')
    return data


def _checked(name: str, stem: str, data: bytes) -> bytes:
    # Of what is inside: gzip's own bytes differ from one packing to the next.
    found = sha256(gunzip(data, 'what it sent'))
    if found != SHA256[name][stem]:
        raise DataError(f'expected the SHA-256 {SHA256[name][stem]} inside but got {found}')
    return data


def _save(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
