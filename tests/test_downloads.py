"""data/downloads.py against a server on this machine that misbehaves as real ones do."""

import hashlib
import http.server
import io
import json
import pickle
import random
import tarfile
import threading

import numpy as np
import pytest
from conftest import PROJECT

from data import downloads
from data.downloads import RECORD, download_c4_subset, download_il_losses, fetch, read_losses
from files import DiskFull, damage

NAME = downloads.C4_SUBSET
CONTENT = random.Random(0).randbytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """A record with files; `faults` are taken one by one for requests of a file.

    A fault: a status code to answer with; ("cut", n) to close after n bytes; "whole" to ignore
    the range that was asked for, ("cut whole", n) both; None to behave.
    """

    def __init__(self, files: dict[str, bytes], stated: dict[str, bytes] | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.stated = files, stated or files
        self.faults: list = []
        self.asked: list[str | None] = []  # the Range of each request of a file
        self.site = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        record = f"/api/records/{RECORD}"
        if self.path == record:
            described = [
                {
                    "key": name,
                    "size": len(content),
                    "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                }
                for name, content in server.stated.items()
            ]
            return self.answer(200, json.dumps({"id": RECORD, "files": described}).encode())
        name = self.path.removeprefix(f"{record}/files/").removesuffix("/content")
        if name not in server.files:
            return self.answer(404, b"")
        asked = self.headers["Range"]
        server.asked.append(asked)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            return self.answer(fault, b"try later")
        content, headers, status = server.files[name], {}, 200
        whole = fault == "whole" or isinstance(fault, tuple) and fault[0] == "cut whole"
        if asked and not whole:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.answer(416, b"")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        end = fault[1] if isinstance(fault, tuple) else None
        self.answer(status, content, headers, end)

    def answer(self, status: int, content: bytes, headers=None, end: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[:end])
        self.close_connection = True


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    servers = []

    def start(files: dict[str, bytes], **more) -> Server:
        servers.append(Server(files, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def archive(members: dict[str, bytes], mode: str = "w", extra: tarfile.TarInfo | None = None):
    """A tar with these files, and perhaps one more member without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if extra is not None:
            tar.addfile(extra)
    return buffer.getvalue()


# ------------------------------------------------------------------------------- fetching


def test_continues_where_it_broke_off(serve, tmp_path):
    server = serve({NAME: CONTENT})
    server.faults = [("cut", 100_000), ("cut", 50_000), 500, None]
    path = fetch(NAME, tmp_path, server.site)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    fetch(NAME, tmp_path, server.site)
    assert len(server.asked) == 4  # what is there and right is not fetched again


def test_continues_in_another_process_and_when_the_range_is_ignored(serve, tmp_path):
    server = serve({NAME: CONTENT})
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:70_000])
    server.faults = ["whole"]
    assert fetch(NAME, tmp_path, server.site).read_bytes() == CONTENT
    assert server.asked == ["bytes=70000-"]


def test_a_server_that_never_gets_further_is_given_up(serve, tmp_path):
    """It ignores the range and breaks off, now earlier, now later: no endless loop."""
    server = serve({NAME: CONTENT})
    server.faults = [("cut", 1000)] + [("cut whole", n) for n in (500, 900)] * 100
    with pytest.raises(ConnectionError, match="closed early"):
        fetch(NAME, tmp_path, server.site)
    assert len(server.asked) == downloads.ATTEMPTS


def test_errors_of_the_server_are_tried_again_and_others_are_not(serve, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(downloads.time, "sleep", waited.append)
    server = serve({NAME: CONTENT})
    server.faults = [500, 503, 429, None]
    assert fetch(NAME, tmp_path / "a", server.site).read_bytes() == CONTENT
    assert waited == [1, 2, 4]
    server.faults = [403]
    with pytest.raises(ConnectionError, match="403"):
        fetch(NAME, tmp_path / "b", server.site)
    server.faults = [500] * 100
    with pytest.raises(ConnectionError, match="run the same command again"):
        fetch(NAME, tmp_path / "c", server.site)
    assert len(waited) == 3 + downloads.ATTEMPTS - 1
    with pytest.raises(ConnectionError, match="refused"):
        fetch(NAME, tmp_path / "d", "http://127.0.0.1:9")


def test_a_torn_start_is_found_by_its_checksum_and_loaded_again(serve, tmp_path):
    server = serve({NAME: CONTENT})
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 1000)
    assert fetch(NAME, tmp_path, server.site).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_a_wrong_checksum_is_refused(serve, tmp_path):
    other = bytes(len(CONTENT))
    server = serve({NAME: CONTENT}, stated={NAME: other})
    with pytest.raises(ValueError, match=hashlib.md5(other).hexdigest()):
        fetch(NAME, tmp_path, server.site)
    assert server.asked == [None, None] and not list(tmp_path.iterdir())


def test_a_shorter_or_longer_file_than_stated_is_refused(serve, tmp_path):
    server = serve({NAME: CONTENT}, stated={NAME: CONTENT + b"more"})
    with pytest.raises(ValueError, match="MD5"):
        fetch(NAME, tmp_path / "a", server.site)
    server = serve({NAME: CONTENT + b"more"}, stated={NAME: CONTENT})
    with pytest.raises(ValueError, match="MD5"):
        fetch(NAME, tmp_path / "b", server.site)


def test_what_is_no_record_is_refused(serve, tmp_path):
    with pytest.raises(ValueError, match="has no file"):
        fetch(NAME, tmp_path, serve({"other": b""}).site)
    with pytest.raises(ValueError, match="begins with https"):
        fetch(NAME, tmp_path, "file:///etc")


def test_no_room_is_said_before_the_download(serve, tmp_path, monkeypatch):
    server = serve({NAME: CONTENT})
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskFull, match="more in"):
        fetch(NAME, tmp_path, server.site)
    assert not server.asked


# ------------------------------------------------------------------------------ unpacking


def test_the_subset_is_unpacked_once(serve, tmp_path):
    server = serve({NAME: archive({"c4/state.json": b"{}", "c4/a.arrow": b"abc"}, mode="w:bz2")})
    folder = download_c4_subset(tmp_path / "c4-subset", server.site)
    assert (folder / "c4" / "a.arrow").read_bytes() == b"abc"
    assert damage(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["c4-subset"]  # the archive is gone
    assert download_c4_subset(folder, server.site) == folder and len(server.asked) == 1


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("inside")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "content",
    [
        archive({"good": b"1", "../outside": b"2"}),
        archive({"a/../../outside": b"2"}),
        archive({"/tmp/outside_of_the_folder": b"2"}),
        archive({"good": b"1"}, extra=link(tarfile.SYMTYPE, "/etc")),
        archive({"good": b"1"}, extra=link(tarfile.SYMTYPE, "good")),
        archive({"good": b"1"}, extra=link(tarfile.LNKTYPE, "good")),
        archive({"good": b"1"}, extra=link(tarfile.FIFOTYPE, "")),
    ],
    ids=["parent", "hidden parent", "absolute", "symlink", "inner symlink", "hard link", "fifo"],
)
@pytest.mark.parametrize("what", ["subset", "losses"])
def test_a_malicious_archive_leaves_nothing(content, what, serve, tmp_path):
    server = serve({NAME: content, downloads.IL_LOSSES["c4"]: content})
    out = tmp_path / "deep" / "folder"
    with pytest.raises(ValueError, match="refused"):
        if what == "subset":
            download_c4_subset(out, server.site)
        else:
            download_il_losses("c4", out, server.site)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.suffix for path in left] == [".bz2" if what == "subset" else ".tar"]
    assert not out.exists()


def test_what_is_no_archive_is_refused(serve, tmp_path):
    for content in (CONTENT, archive({"a": CONTENT}, mode="w:bz2")[:-5000]):
        server = serve({NAME: content})
        with pytest.raises(ValueError, match="not a readable tar"):
            download_c4_subset(tmp_path / "out", server.site)
        (tmp_path / NAME).unlink()


# -------------------------------------------------------------------------------- losses


def test_losses_become_arrays(serve, tmp_path):
    draw = random.Random(0)
    table = {i: draw.random() * 9 for i in draw.sample(range(10**7), 5000)}
    items = list(table.items())
    chunks = {
        f"outputs/il/examples_to_loss/dict_chunk_{n}.pkl": pickle.dumps(
            dict(items[n::3]), protocol=protocol
        )
        for n, protocol in enumerate((2, 4, 5))
    }
    server = serve({"il_losses_mp.tar": archive({"outputs/readme": b"x", **chunks})})
    folder = download_il_losses("minipile", tmp_path / "il", server.site)
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    losses = np.load(folder / "losses.npy", allow_pickle=False)
    assert (ids.dtype, losses.dtype) == (np.int64, np.float32)
    assert ids.tolist() == sorted(table)
    assert losses.tolist() == [np.float32(table[i]) for i in sorted(table)]
    assert damage(folder) is None


def test_losses_that_are_not_finite_are_left_out(serve, tmp_path, capsys):
    table = {0: 1.0, 1: float("nan"), 2: float("inf"), 3: 2.0}
    server = serve({"il_losses_c4.tar": archive({"a.pkl": pickle.dumps(table)})})
    folder = download_il_losses("c4", tmp_path / "il", server.site)
    assert np.load(folder / "ids.npy").tolist() == [0, 3]
    assert "2 losses that are not finite" in capsys.readouterr().out


def test_two_losses_for_one_sequence_are_refused(serve, tmp_path):
    chunk = pickle.dumps({3: 1.0})
    server = serve({"il_losses_c4.tar": archive({"a.pkl": chunk, "b.pkl": chunk})})
    with pytest.raises(ValueError, match="two losses"):
        download_il_losses("c4", tmp_path / "il", server.site)
    with pytest.raises(ValueError, match="expected one of c4, bcwk, mp"):
        download_il_losses("pile", tmp_path / "il", server.site)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({0: Malicious()}),
        pickle.dumps(Malicious(), protocol=0),
        pickle.dumps({0: np.float64(1.0)}),
        pickle.dumps({0: {1, 2}}),
        pickle.dumps(print),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x82\x01.",  # an extension code
        b"Pname\n.",  # a persistent id
        b"\x80\x05N.",  # None
        pickle.dumps({0: [1.0]}),
        pickle.dumps({True: 1.0}),
        pickle.dumps({"0": 1.0}),
        pickle.dumps({0: 1}),
        pickle.dumps({-1: 1.0}),
        pickle.dumps({1 << 70: 1.0}),
        pickle.dumps({0: 1.0})[:-3],
        b"",
    ],
)
def test_only_plain_dictionaries_are_read(content):
    with pytest.raises(ValueError, match="^here: "):
        read_losses(io.BytesIO(content), "here")


def test_the_page_on_data_names_every_hub_set_that_a_script_asks_for():
    import train_headlines
    from data import corpora, documents, instructions, texts
    from experiments import preference

    page = (PROJECT / "docs/data.md").read_text()
    named = {source[0] for sources in corpora.HUB.values() for source in sources}
    named |= {name for name, _ in (*texts.HUB.values(), *documents.WIKITEXT.values())}
    named |= {instructions.HUB_DATA, preference.HUB_DATA, train_headlines.Config.data}
    named |= {"nyu-mll/glue", "aps/super_glue"}
    assert len(named) == 12
    assert all(f"`{name}`" in page or f"--data {name}`" in page for name in named)
