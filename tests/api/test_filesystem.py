"""Test `xnat://` in fsspec: names, keys, ranges, errors, pickles, caches, and fsspec's own tests of reading."""

import hashlib
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from dask.base import tokenize
from fsspec.core import url_to_fs
from upath import UPath

from tests.api.conftest import BIG, DICOM, NIFTI, SCAN, User
from tests.support.walk import MADE
from xnatfs.api.endpoint import locate
from xnatfs.api.filesystem import XnatFileSystem
from xnatfs.demo.server.reply import Reply


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def fs(user: User) -> Iterator[XnatFileSystem]:
    found, _ = url_to_fs(user.url(SCAN))
    yield found
    XnatFileSystem.clear_instance_cache()


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server", "path"),
    [
        ("xnat://host/projects/P/S", "https://host", "/projects/P/S"),
        ("xnat+http://host:8080/xnat/deep/projects/P/", "http://host:8080/xnat/deep", "/projects/P"),
        ("xnat://host", "https://host", "/"),
        ("xnat://host/xnat/", "https://host/xnat", "/"),
        ("xnat://host//projects//P", "https://host", "/projects/P"),
        ("xnat://host/projects/P/a b#c?d%20.txt", "https://host", "/projects/P/a b#c?d%20.txt"),
        ("xnat://host/experiments/E1", "https://host", "/experiments/E1"),
        ("/projects/P", "", "/projects/P"),
        ("projects/P/projects", "", "/projects/P/projects"),
        ("", "", "/"),
    ],
)
def test_a_url_is_a_server_and_a_path(url, server, path):
    assert locate(url) == (server, path)


def test_paths_of_a_file_system_are_those_of_the_tree(fs, user):
    assert fs.ls(SCAN, detail=False) == [f"/{SCAN}/{name}" for name in ("DICOM", "NIFTI", "SNAPSHOTS")]
    assert fs.unstrip_protocol(f"/{NIFTI}") == user.url(NIFTI)
    assert XnatFileSystem._strip_protocol([user.url(NIFTI)]) == [f"/{NIFTI}"]
    assert fs.ls(NIFTI, detail=False) == [f"/{NIFTI}"]


def test_names_that_globs_and_urls_treat_specially_are_found(user, fs):
    (path,) = {entry.path for entry in user.demo.manifest if entry.path[-1] == "trap.txt"}
    name = "/".join(path)
    assert fs.cat_file(user.url(name)) == b"labelled like a folder\n"


def test_find_glob_and_du_agree_with_the_listing(fs, user):
    below = [e for e in user.demo.manifest if e.path[:2] == ("projects", "BRAINS") and e.kind == "file"]
    found = fs.find("/projects/BRAINS", detail=True)
    made = {path for path in found if path.rpartition("/")[2] in MADE}
    assert found.keys() - made == {"/" + "/".join(entry.path) for entry in below}
    assert fs.du("/projects/BRAINS") == sum(entry.size for entry in below) + sum(found[path]["size"] for path in made)
    assert len(fs.glob(user.url(f"{SCAN}/*/*.dcm"))) == 40
    assert fs.glob(f"/{SCAN}/nothing/*") == []
    assert user.bodies() == []


# -- reading -----------------------------------------------------------------------------------------------------------


def test_open_reads_binary_and_text(user):
    with fsspec.open(user.url(NIFTI)) as file:
        assert md5(file.read()) == user.content(NIFTI)
    with fsspec.open(user.url(f"{SCAN}/NIFTI/t1.json"), "r") as text:
        assert text.readline() == "{\n"
    with fsspec.open(user.url(NIFTI), compression="gzip") as file:
        assert file.read(4) == b"\x5c\x01\x00\x00"


def test_ranges_of_one_file_and_of_many(fs, user):
    whole = fs.cat_file(NIFTI)
    assert (fs.cat_file(NIFTI, 10, 20), fs.cat_file(NIFTI, -7), fs.cat_file(NIFTI, 20, 10)) == (
        whole[10:20],
        whole[-7:],
        b"",
    )
    assert fs.head(NIFTI, 5) + fs.tail(NIFTI, 5) == whole[:5] + whole[-5:]
    paths = fs.glob(f"/{DICOM}/*")
    found = fs.cat_ranges([*paths, "/projects/NONE"], 128, 132)
    assert found[:-1] == [b"DICM"] * 40
    assert isinstance(found[-1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["/projects/NONE"], [0], [1], on_error="raise")
    with pytest.raises(ValueError, match="differ in length"):
        fs.cat_ranges(paths, [0], [1])
    user.assert_fetched_in_archives()


def test_get_copies_verified_files(fs, user, tmp_path):
    fs.get(user.url(SCAN), str(tmp_path / "scan"), recursive=True)
    names = {
        path.relative_to(tmp_path / "scan").as_posix() for path in (tmp_path / "scan").rglob("*") if path.is_file()
    }
    assert names == {path.removeprefix(f"/{SCAN}/") for path in fs.find(SCAN)}
    assert md5((tmp_path / "scan" / "NIFTI" / "t1.nii.gz").read_bytes()) == user.content(NIFTI)
    fs.get_file(NIFTI, tmp_path / "new" / "t1.nii.gz")
    assert (tmp_path / "new" / "t1.nii.gz").stat().st_size == fs.size(NIFTI)


def test_a_local_path_is_the_cached_file(fs, user):
    path = fs.local(user.url(NIFTI))
    assert path.is_relative_to(user.home / ".cache" / "xnatfs")
    assert md5(path.read_bytes()) == user.content(NIFTI)


def test_simplecache_and_filecache_go_by_the_content(user, tmp_path):
    for kind in ("simplecache", "filecache"):
        path = fsspec.open_local(f"{kind}::{user.url(NIFTI)}", **{kind: {"cache_storage": str(tmp_path / kind)}})
        assert md5(Path(path).read_bytes()) == user.content(NIFTI)


def test_upath_is_a_path_with_its_host(user, recwarn):
    path = UPath(user.url(SCAN))
    assert {child.name for child in path.iterdir()} == {"DICOM", "NIFTI", "SNAPSHOTS"}
    file = path / "NIFTI" / "t1.nii.gz"
    assert str(file) == user.url(NIFTI) == file.as_uri()
    assert UPath(str(file)) == pickle.loads(pickle.dumps(file)) == file
    (size,) = {entry.size for entry in user.demo.manifest if "/".join(entry.path) == NIFTI}
    assert (file.suffixes, file.parent.name, file.is_file()) == ([".nii", ".gz"], "NIFTI", True)
    assert file.stat().st_size == size
    assert md5(file.read_bytes()) == user.content(NIFTI)
    assert [found.name for found in path.glob("*/*.json")] == ["t1.json"]
    assert str(file.relative_to(path)) == "NIFTI/t1.nii.gz"
    assert not recwarn.list


# -- keys and pickles --------------------------------------------------------------------------------------------------


def test_threads_have_instances_of_one_portal_and_one_token(user):
    found = []

    def run() -> None:
        fs, path = url_to_fs(user.url(NIFTI))
        found.append((fs, tokenize(fs), fs.ukey(path), md5(fs.cat_file(path))))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(fs) for fs, *_ in found}) == 8
    assert len({(token, key, content) for _, token, key, content in found}) == 1
    assert user.logins() == 1


KEYS = """
import sys, fsspec
from dask.base import tokenize
from fsspec.core import url_to_fs
fs, path = url_to_fs(sys.argv[2])
print(tokenize(fs), fs.ukey(path), fs.checksum(path), fs.modified(path), fs.created(path))
"""


def test_keys_are_the_same_in_every_process_and_differ_when_the_file_changes(user, fs):
    one, other = (user.python(KEYS, user.url(NIFTI)) for _ in range(2))
    assert one.stderr == ""
    assert (
        one.stdout
        == other.stdout
        == (f"{tokenize(fs)} {fs.ukey(NIFTI)} {fs.checksum(NIFTI)} {fs.modified(NIFTI)} {fs.created(NIFTI)}\n")
    )
    scan = user.demo.archive.experiments["DEMO_E00001"].scans[0]
    (entry,) = [entry for each in scan.resources for entry in each.entries if entry.path == "t1.nii.gz"]
    before, entry.digest = entry.digest, "0" * 32
    try:
        assert user.python(KEYS, user.url(NIFTI)).stdout.split()[1] != fs.ukey(NIFTI)
    finally:
        entry.digest = before


def test_a_pickle_holds_no_secret(user, fs, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"username={user.demo.login['user']}\npassword={user.demo.login['password']}\n")
    file.chmod(0o600)
    made = fsspec.filesystem("xnat+http", url=user.demo.url, token_file=str(file))
    assert made.exists(NIFTI)
    for each in (fs, made, fsspec.open(user.url(NIFTI))):
        text = pickle.dumps(each)
        assert len(text) < 600
        assert user.demo.login["password"].encode() not in text
        assert b"JSESSION" not in text
    again = pickle.loads(pickle.dumps(made))
    assert md5(again.cat_file(NIFTI)) == user.content(NIFTI)
    assert user.demo.login["password"] not in made.to_json()


def test_an_open_file_goes_on_where_it_was_after_a_pickle(user, fs, monkeypatch):
    with fs.open(NIFTI) as file:
        head = file.read(100)
        text = pickle.dumps(file)
    assert len(text) < 600
    assert user.demo.login["password"].encode() not in text
    with pickle.loads(text) as again:
        assert md5(head + again.read()) == user.content(NIFTI)
        assert (again.fs, again.path, again.size) == (fs, file.path, fs.size(NIFTI))
        monkeypatch.setattr(again.raw, "version", "another")
        with pytest.raises(OSError, match="has changed since it was opened"):
            pickle.loads(pickle.dumps(again))


@pytest.mark.parametrize("name", ["password", "token", "username"])
def test_a_login_is_no_storage_option(name):
    with pytest.raises(TypeError, match="token_file"):
        XnatFileSystem("https://host", **{name: "secret"}, skip_instance_cache=True)


def test_an_unknown_option_and_a_missing_login_are_errors_at_the_first_use(user, monkeypatch):
    monkeypatch.delenv("XNAT_PASS")
    with pytest.raises(PermissionError, match=r"xnatctl auth login.*XNAT_USER and XNAT_PASS.*netrc.*token_file"):
        fsspec.open(user.url(NIFTI)).open()
    with pytest.raises(OSError, match="cannot read the credentials"):
        fsspec.open(user.url(NIFTI), token_file="/nowhere").open()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_every_change_is_refused(fs, tmp_path):
    (tmp_path / "file").write_text("text")
    changes = [
        lambda: fs.open(NIFTI, "wb"),
        lambda: fs.pipe_file(NIFTI, b""),
        lambda: fs.pipe("/projects/x", b""),
        lambda: fs.mkdir("/projects/x"),
        lambda: fs.makedirs("/projects/x"),
        lambda: fs.rmdir("/projects/BRAINS"),
        lambda: fs.rm(NIFTI),
        lambda: fs.rm_file(NIFTI),
        lambda: fs.rm(SCAN, recursive=True),
        lambda: fs.touch(NIFTI),
        lambda: fs.mv(NIFTI, f"{NIFTI}2"),
        lambda: fs.cp_file(NIFTI, f"{NIFTI}2"),
        lambda: fs.copy(NIFTI, f"{NIFTI}2"),
        lambda: fs.put_file(str(tmp_path / "file"), "/projects/x"),
        lambda: fs.put(str(tmp_path / "file"), "/projects/x"),
    ]
    for change in changes:
        with pytest.raises(OSError, match="Read-only file system"):
            change()


def test_what_is_denied_is_left_out_of_a_walk_with_a_warning(fs, caplog):
    assert "/projects/BRAINS" in [path for path, _, _ in fs.walk("/projects", maxdepth=2)]
    assert "left out" in caplog.text


def test_an_outage_ends_a_walk_and_is_not_taken_for_absence(user):
    fs = fsspec.filesystem("xnat+http", url=user.demo.url, timeout=1.0, ttl=0.0)
    assert fs.exists(SCAN)
    user.demo.app.faults.append(lambda request: Reply(503))
    try:
        for look in (fs.exists, fs.isdir, fs.isfile):
            with pytest.raises(OSError, match="503"):
                look(SCAN)
        with pytest.raises(OSError, match="503"):
            fs.find("/projects/BRAINS/SUB002")
    finally:
        user.demo.app.faults.clear()


def test_a_file_that_exists_is_not_created_anew(fs):
    """Check the part of `AbstractOpenTests` that a read-only file system has."""
    with pytest.raises(OSError, match="Read-only"):
        fs.open(BIG, "xb")


def test_what_a_link_leads_to_is_listed_and_found_by_the_path_as_given(fs):
    link = f"/experiments/{fs.info('/projects/BRAINS/SUB001/SUB001_MR1')['uri'].rpartition('/')[2]}"
    assert fs.info(link)["name"] == link
    assert fs.info(f"{link}/scans/1")["name"] == f"{link}/scans/1"
    assert f"{link}/scans" in fs.ls(link, detail=False)
    assert len(fs.glob(f"{link}/scans/1/DICOM/*.dcm")) == 40
    assert f"{link}/scans/1/NIFTI/t1.nii.gz" in fs.find(f"{link}/scans/1")


@pytest.mark.parametrize("options", [{"pass": "geheim"}, {"secret": "geheim"}, {"cache_directory": "/tmp"}])
def test_no_unknown_option_is_stored_in_a_pickle(user, options):
    with pytest.raises(TypeError, match="no such option"):
        fsspec.open(user.url(NIFTI), **options)


def test_no_login_in_a_url_is_stored_in_a_pickle():
    with pytest.raises(TypeError, match="login in the URL"):
        url_to_fs("xnat://ann:geheim@host/projects")


def test_bounds_of_ranges_may_be_any_sequence(fs):
    assert fs.cat_ranges(fs.ls(DICOM, detail=False)[:1], (128,), (132,)) == [b"DICM"]
    with pytest.raises(TypeError, match="list"):
        fs.cat_ranges(f"/{NIFTI}", 0, 1)
