"""Where text comes from: exact bytes, named mistakes, no network needed."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.config import DataConfig
from microgpt_cli.data import corpus
from microgpt_cli.data.corpus import Corpus, open_corpus, python_manual
from microgpt_cli.errors import UserError


def data(path: str | Path | None = None, **changes: object) -> DataConfig:
    values = {
        "source": "pydocs",
        "path": None if path is None else str(path),
        "val_fraction": 0.1,
        "folder": "data",
        "cache_dir": "cache",
        "url": None,
        "file_name": None,
        "sha256": None,
        "size_bytes": None,
    }
    return DataConfig(**(values | changes))  # type: ignore[arg-type]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_text_comes_back_exactly(texts: list[str]) -> None:
    sources = tuple(text.encode() for text in texts)
    joined = ""
    for index, text in enumerate(texts):
        joined += text
        if text and not text.endswith("\n") and index + 1 < len(texts):
            joined += "\n"
    assert Corpus("x", sources).text() == joined
    assert b"".join(Corpus("x", sources).chunks()) == joined.encode()


def test_characters_that_straddle_a_chunk_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 3)
    text = "aé李😀\r\n\x00\ufeffz" * 5
    assert Corpus("x", (text.encode(),)).text() == text


@pytest.mark.parametrize(
    ("raw", "offset"), [(b"abc\xff", 3), (b"\xe6\x9d", 0), (b"12345678\xc3(", 8), (b"ok\xed\xa0\x80", 2)]
)
def test_bytes_that_are_not_utf8_are_located(raw: bytes, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 100):
        monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
        with pytest.raises(UserError, match=f"at byte {offset};"):
            Corpus("x", (b"first file\n", raw)).text()


def test_a_folder_gives_its_texts_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.md").write_text("two")
    (tmp_path / "1.txt").write_text("one")
    (tmp_path / "3.py").write_text("not text")
    assert open_corpus(data(tmp_path)).text() == "one\ntwo"
    assert open_corpus(data(tmp_path / "*.txt")).text() == "one"


@pytest.mark.parametrize(
    ("name", "says"), [("nope.txt", "no such file"), ("empty.txt", "empty"), ("folder", r"no \.txt or \.md file")]
)
def test_texts_that_are_none(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=says):
        open_corpus(data(tmp_path / name))


def test_the_manual_is_real_text_without_repeated_paragraphs() -> None:
    text = python_manual().text()
    assert len(text) > 200_000
    assert "function" in text
    paragraphs = text.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))


@pytest.fixture
def server(tmp_path: Path):
    """A server on this machine that sends BODY for any path."""
    body = b"To be, or not to be\n" * 100

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}/x.txt", body
        http_server.shutdown()
        thread.join()


def download(url: str, body: bytes, **changes: object) -> DataConfig:
    values = {"url": url, "file_name": "x.txt", "sha256": hashlib.sha256(body).hexdigest(), "size_bytes": len(body)}
    return data(source="download", **(values | changes))


def test_a_download_is_checked_and_kept(server, tmp_path: Path) -> None:
    url, body = server
    config = download(url, body)
    assert open_corpus(config).text() == body.decode()
    assert (tmp_path / "cache" / "x.txt").read_bytes() == body
    # from the cache, and before that from data/, without the network
    assert open_corpus(download("http://127.0.0.1:9/", body)).text() == body.decode()


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"size_bytes": 100}])
def test_a_wrong_download_leaves_nothing(server, tmp_path: Path, changes: dict[str, object]) -> None:
    url, body = server
    with pytest.raises(UserError, match="nothing was kept"):
        open_corpus(download(url, body, **changes))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_network_it_says_where_to_put_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"put the file at data/x\.txt or .*data=pydocs"):
        open_corpus(download("http://127.0.0.1:9/x.txt", b"x"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("something else")
    with pytest.raises(UserError, match=r"checksum differs from data\.sha256"):
        open_corpus(download("http://127.0.0.1:9/x.txt", b"x"))


def test_tiny_shakespeare_is_what_the_preset_says(shakespeare: Path) -> None:
    import yaml

    from microgpt_cli.cli.main import CONF

    preset = yaml.safe_load((CONF / "data" / "shakespeare.yaml").read_text(encoding="utf-8"))
    text = shakespeare.read_bytes()
    assert (len(text), hashlib.sha256(text).hexdigest()) == (preset["size_bytes"], preset["sha256"])
    assert len(set(text.decode())) == 65


def test_a_text_is_read_once_for_its_checksum_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = corpus._read
    monkeypatch.setattr(corpus, "_read", lambda source: reads.append(source) or read(source))
    path = tmp_path / "a.txt"
    path.write_text("first")
    text = Corpus("a", (path, b"more"))
    first = text.sha256()
    assert text.sha256() == first
    assert reads == [path, b"more"]
    path.write_text("second")
    assert text.sha256() != first
