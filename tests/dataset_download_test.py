"""Downloads from a local server: checked, resumed, never unasked, clear when offline."""

import hashlib
import http.server
import threading

import pytest

from experiments.data import dataset_download, datasets
from tests import dataset_writers


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one body with ranges; can stop early or ignore ranges."""

    def do_GET(self):
        server = self.server
        start = 0
        requested = self.headers.get("Range")
        if requested and server.resumes:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        server.starts.append(start)
        self.send_response(206 if start else 200)
        self.end_headers()
        self.wfile.write(server.body[start : server.stop])

    def log_message(self, *args):
        del args


@pytest.fixture
def server(monkeypatch):
    """A local server of a small CIFAR-10 archive, which stands in for the official address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.body, running.stop, running.resumes, running.starts = b"", None, True, []
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def publish(body, file_name="cifar-10-binary.tar.gz"):
            running.body = body
            source = dataset_download.Source(
                f"http://127.0.0.1:{running.server_port}/{file_name}",
                len(body),
                hashlib.sha256(body).hexdigest(),
            )
            monkeypatch.setitem(dataset_download.SOURCES, file_name, source)
            return source

        running.publish = publish
        yield running
        running.shutdown()


def cifar_archive(folder):
    parts = dataset_writers.cifar_parts("cifar10")
    dataset_writers.pack(
        dataset_writers.write_cifar(folder, "cifar10", "binary", parts), folder / "packed.tar.gz"
    )
    return (folder / "packed.tar.gz").read_bytes(), parts


def test_download(tmp_path, server):
    body, parts = cifar_archive(tmp_path / "source")
    server.publish(body)
    data_dir = tmp_path / "data"
    with pytest.raises(FileNotFoundError):
        datasets.load("cifar10", data_dir)
    assert server.starts == []
    dataset_writers.assert_holds(datasets.load("cifar10", data_dir, download=True), parts)
    assert [file.name for file in data_dir.iterdir()] == ["cifar-10-binary.tar.gz"]
    dataset_writers.assert_holds(datasets.load("cifar10", data_dir, download=True), parts)
    assert len(server.starts) == 1


@pytest.mark.parametrize("resumes", [True, False])
def test_interrupted_download_goes_on(tmp_path, server, resumes):
    body, parts = cifar_archive(tmp_path / "source")
    source = server.publish(body)
    server.stop, server.resumes = 50000, resumes
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("cifar10", tmp_path, download=True)
    target = tmp_path / "cifar-10-binary.tar.gz"
    for text in (source.url, str(target), source.sha256, f"50000 of {len(body)}"):
        assert text in str(error.value)
    assert not target.exists()
    server.stop = None
    dataset_writers.assert_holds(datasets.load("cifar10", tmp_path, download=True), parts)
    assert server.starts == [0, 50000 if resumes else 0]


def test_download_of_another_file_is_deleted(tmp_path, server):
    source = server.publish(b"expected content")
    server.body = b"something else.." + b"and more"
    with pytest.raises(ValueError, match=f"expected 16 bytes with {source.sha256}"):
        dataset_download.fetch("cifar-10-binary.tar.gz", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_download(tmp_path, server):
    source = server.publish(b"content")
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("cifar10", tmp_path, download=True)
    for text in (source.url, source.sha256, str(tmp_path / "cifar-10-binary.tar.gz")):
        assert text in str(error.value)


def test_download_of_svhn_takes_what_is_missing(tmp_path, server):
    for part in ("train", "test"):
        dataset_writers.write_svhn(tmp_path, part, 1200, 1)
    server.publish((tmp_path / "test_32x32.mat").read_bytes(), "extra_32x32.mat")
    datasets.load("reduced_svhn", tmp_path, download=True)
    assert server.starts == []
    assert len(datasets.load("svhn", tmp_path, download=True).train_labels) == 2400
    assert server.starts == [0]


def test_official_sources_are_complete():
    for source in dataset_download.SOURCES.values():
        assert source.num_bytes > 10**7 and len(bytes.fromhex(source.sha256)) == 32
