import functools
import gzip
import http.server
import threading

import numpy as np
import pytest

from mnx.datasets import checksums, download_images, images, load_images
from mnx.datasets import download as download_module
from mnx.datasets.idx import dump_idx
from mnx.errors import DataError, MissingDataError

ARRAYS = (
    np.arange(64, dtype=np.uint8).reshape(4, 4, 4),
    np.arange(4, dtype=np.uint8),
    np.arange(32, dtype=np.uint8).reshape(2, 4, 4),
    np.arange(2, dtype=np.uint8),
)
FILES = {
    f'{stem}.gz': gzip.compress(dump_idx(array), mtime=0)
    for stem, array in zip(checksums.STEMS, ARRAYS, strict=True)
}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror on this machine that serves small files; `mirror.folder` may be changed."""
    sums = {
        stem: checksums.sha256(dump_idx(array))
        for stem, array in zip(checksums.STEMS, ARRAYS, strict=True)
    }
    monkeypatch.setitem(checksums.SHA256, 'mnist', sums)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    folder = tmp_path / 'mirror'
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.folder = folder
        server.url = f'http://127.0.0.1:{server.server_port}/'
        yield server
        server.shutdown()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_arrive_whole_and_alone(mirror, tmp_path):
    download_images('mnist', tmp_path / 'new' / 'data', [mirror.url])
    assert names(tmp_path / 'new' / 'data') == sorted(FILES)
    for name, data in FILES.items():
        assert (tmp_path / 'new' / 'data' / name).read_bytes() == data


def test_other_packing_of_the_same_content_is_fine(mirror, tmp_path):
    for name, data in FILES.items():
        (mirror.folder / name).write_bytes(gzip.compress(gzip.decompress(data), 1, mtime=7))
    download_images('mnist', tmp_path / 'data', [mirror.url])


def test_the_next_mirror_is_tried(mirror, tmp_path):
    dead = 'http://127.0.0.1:9/'
    download_images('mnist', tmp_path / 'data', [dead, mirror.url + 'no/such/folder', mirror.url])
    assert names(tmp_path / 'data') == sorted(FILES)


def test_only_missing_files_are_fetched(mirror, tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / checksums.STEMS[0]).write_bytes(b'mine')
    for name in list(FILES)[:2]:
        (mirror.folder / name).unlink()
    (folder / list(FILES)[1]).write_bytes(b'mine too')
    download_images('mnist', folder, [mirror.url])
    assert (folder / checksums.STEMS[0]).read_bytes() == b'mine'
    assert len(names(folder)) == 4


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'<html>moved</html>', 'cut short or damaged'),
        (FILES['train-images-idx3-ubyte.gz'][:-5], 'cut short or damaged'),
        (gzip.compress(dump_idx(ARRAYS[0] + 1), mtime=0), 'expected the SHA-256'),
    ],
)
def test_a_damaged_file_never_appears(mirror, tmp_path, data, message):
    (mirror.folder / 'train-images-idx3-ubyte.gz').write_bytes(data)
    with pytest.raises(MissingDataError, match=message) as caught:
        download_images('mnist', tmp_path / 'data', [mirror.url, mirror.url])
    assert names(tmp_path / 'data') == []
    assert str(caught.value).count(mirror.url) == 2  # what each mirror answered
    assert '--data-dir' in str(caught.value)


def test_a_silent_mirror_is_given_up(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, 'TIMEOUT_S', 0.2)
    given_up = threading.Event()
    monkeypatch.setattr(Handler, 'do_GET', lambda self: given_up.wait(60))
    with pytest.raises(MissingDataError, match='timed out'):
        download_images('mnist', tmp_path / 'data', [mirror.url])
    given_up.set()


def test_a_connection_cut_in_the_middle(mirror, tmp_path, monkeypatch):
    def promise_more(self):
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'too little')

    monkeypatch.setattr(Handler, 'do_GET', promise_more)
    with pytest.raises(MissingDataError, match=r'expected 1000 bytes but got 10|IncompleteRead'):
        download_images('mnist', tmp_path / 'data', [mirror.url])


def test_load_images_downloads_when_asked(mirror, tmp_path, monkeypatch, comm):
    monkeypatch.setitem(download_module.MIRRORS, 'mnist', (mirror.url,))
    monkeypatch.setattr(images, '_chainer_cache', lambda name: tmp_path / 'cache' / name)
    found = load_images('auto', download=True, comm=comm)
    assert found.description.startswith(f'MNIST from {comm.bcast_obj(str(tmp_path))}')
    assert (tmp_path / 'cache' / 'mnist').exists() == (comm.rank == 0)
    # the second time nothing is fetched
    for path in mirror.folder.iterdir():
        path.unlink()
    assert load_images('mnist', download=True, comm=comm) is not None


def test_every_rank_hears_of_a_failed_download(mirror, tmp_path, monkeypatch, comm):
    monkeypatch.setitem(download_module.MIRRORS, 'mnist', ('http://127.0.0.1:9/',))
    with pytest.raises(MissingDataError, match='no mirror gave') as caught:
        load_images('mnist', tmp_path / 'data', download=True, comm=comm)
    assert isinstance(caught.value, DataError)


def test_the_real_table_names_all_files():
    assert set(checksums.SHA256) == {'mnist', 'fashion-mnist'} == set(download_module.MIRRORS)
    for sums in checksums.SHA256.values():
        assert tuple(sums) == checksums.STEMS
        assert all(len(bytes.fromhex(value)) == 32 for value in sums.values())
    assert len({value for sums in checksums.SHA256.values() for value in sums.values()}) == 8
