"""Hold the demo to what each release of XNAT answers (XNAT REST contract 20).

The client of xnatfs takes no part in this.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.changing import rows
from xnatfs.demo.archive.model import Home, Resource
from xnatfs.demo.fixtures.lab import PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.releases import RELEASES, XNAT_1_6, XNAT_1_8, XNAT_1_11, Release

OWNER, OUTSIDER = "demo-owner", "demo-outsider"
SESSION = "/data/experiments/DEMO_E00001"
FORM = "application/x-www-form-urlencoded"
UGLY = "/data/experiments/0123456789abcdef0123456789abcdef"

Clients = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def archive() -> DemoArchive:
    return DemoArchive()


@pytest.fixture
def client(archive: DemoArchive) -> Iterator[Clients]:
    """Make clients of a demo of any release, logged in where a user is given."""
    opened = []

    def make(release: Release, user: str = OWNER, of: DemoArchive | None = None, **options: Any) -> httpx.Client:
        demo = DemoXnat(of or archive, release=release, **options)
        made = httpx.Client(transport=httpx.MockTransport(demo), base_url="http://xnat")
        opened.append(made)
        if user:
            assert made.post("/data/JSESSION", auth=(user, PASSWORDS[user])).status_code == 200
        return made

    yield make
    for made in opened:
        made.close()


def test_each_release_is_what_its_server_header_and_its_version_say(client):
    found = {name: client(release).get("/data/projects").headers["server"] for name, release in RELEASES.items()}
    assert found == {
        "1.6": "Noelios-Restlet-Engine/1.1.6",
        "1.8": "Noelios-Restlet-Engine/1.1.10",
        "1.11": "Restlet-Framework/2.6",
    }
    versions = {name: client(r).get("/xapi/siteConfig/buildInfo") for name, r in RELEASES.items() if r.has_xapi}
    assert {name: reply.json()["version"].rpartition(".")[0] for name, reply in versions.items()} == {
        "1.8": "1.8",
        "1.11": "1.11",
    }


# -- 1.6 -----------------------------------------------------------------------------------------------------------


def test_the_oldest_one_has_no_xapi(client):
    for user in (OWNER, ""):
        reply = client(XNAT_1_6, user).get("/xapi/users/username")
        assert reply.status_code == 404
        assert "<b>Message</b> The requested resource [&#47;xapi" in reply.text
        assert "<h3>Apache Tomcat/9.0.70 (Debian)</h3>" in reply.text


def test_the_oldest_one_lets_nobody_in_without_a_login(client):
    stranger = client(XNAT_1_6, "")
    for path in ("/data/projects", "/data/JSESSION", "/data/auth"):
        reply = stranger.get(path)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Basic realm="XNAT Protected Area"')
        assert "<h3>The request requires user authentication</h3>" in reply.text
    browser = stranger.get("/data/projects", headers={"user-agent": "Mozilla/5.0"})
    assert (browser.status_code, browser.text) == (401, "")
    wrong = stranger.post("/data/JSESSION", auth=(OWNER, "x"))
    assert "<b>Message</b> Login attempt failed. Please try again.<" in wrong.text
    assert client(XNAT_1_6, "", require_login=False).get("/data/JSESSION").status_code == 200


def test_the_oldest_one_says_less_of_tokens_and_sessions(client):
    owner = client(XNAT_1_6)
    assert owner.get("/data/auth").text == f"User '{OWNER}' is logged in."
    issued = owner.get("/data/services/tokens/issue")
    assert issued.headers["content-type"].startswith("text/plain")
    token = issued.json()
    assert set(token) == {"alias", "secret"}
    assert (len(token["secret"]), token["secret"].isdigit()) == (13, True)
    assert owner.get(f"/data/services/tokens/invalidate/{token['alias']}").json() == {"result": "OK"}
    assert owner.get("/data/JSESSION", auth=(token["alias"], token["secret"])).status_code == 200
    ends = {"show": 400, "validate/a/b": 401, "invalidate/a": 403}
    assert {end: owner.get(f"/data/services/tokens/{end}").status_code for end in ends} == ends
    form = {"username": OWNER, "password": PASSWORDS[OWNER]}
    right, wrong = (owner.post("/data/services/auth", data={**form, **more}) for more in ({}, {"password": "x"}))
    assert (right.status_code, right.text, wrong.status_code) == (200, "", 500)
    assert owner.get("/data/version").text == "Unknown version"


def test_the_oldest_one_lists_no_digests_and_quotes_no_cells(client):
    old, new = client(XNAT_1_6), client(XNAT_1_8)
    columns = [set(rows(each.get(f"{SESSION}/files?all=true"))[0]) for each in (new, old)]
    assert columns[0] - columns[1] == {"digest"}
    assert old.get("/data/projects?format=csv").text.startswith("ID,secondary_ID,")
    assert len(rows(old.get("/data/projects/FIFTY/experiments?limit=2"))) == 50
    assert old.get(SESSION).headers["content-type"] == "text/xml"


def test_the_oldest_one_shows_of_a_shared_session_what_its_owner_calls_it(client):
    path = "/data/projects/POOL/experiments?columns=ID,label,project,subject_label"
    found = {
        release.name: next(row for row in rows(client(release).get(path)) if row["ID"] == "DEMO_E00001")
        for release in (XNAT_1_6, XNAT_1_8)
    }
    assert {name: row["label"] for name, row in found.items()} == {"1.6": "POOLED-1_MR", "1.8": "POOLED-1_MR"}
    assert {name: row["project"] for name, row in found.items()} == {"1.6": "BRAINS", "1.8": "POOL"}


@pytest.mark.parametrize(
    ("user", "path", "old", "new"),
    [
        (OUTSIDER, "/data/projects/CLOSED/subjects", 200, 403),
        (OUTSIDER, "/data/projects/CLOSED/experiments", 403, 403),
        (OWNER, "/data/projects/BRAINS/experiments/BAD/resources", 404, 200),
        (OWNER, f"{SESSION}/scans/BAD/files", 200, 500),
        (OWNER, f"{SESSION}/scans/BAD/resources", 404, 404),
        (OWNER, "/data/experiments/NOSUCH/files?all=true", 200, 500),
        (OUTSIDER, f"{SESSION}/files?all=true", 200, 500),
        (OUTSIDER, f"{SESSION}/resources/101/files/x", 500, 404),
        (OWNER, f"{SESSION}/resources/999999/files", 200, 404),
        (OWNER, f"{SESSION}/resources/999999/files/x", 404, 404),
        (OWNER, f"{SESSION}/scans", 200, 200),
        (OUTSIDER, f"{SESSION}/scans", 500, 500),
        (OWNER, "/data//projects", 404, 400),
        (OWNER, "/data/projects/a%2Fb", 400, 400),
    ],
)
def test_what_is_missing_or_closed_ends_differently(client, user, path, old, new):
    for release, status in ((XNAT_1_6, old), (XNAT_1_8, new)):
        reply = client(release, user).request("GET", httpx.URL("http://xnat").copy_with(raw_path=path.encode()))
        assert reply.status_code == status, release.name
        if status == 200 and "BRAINS" not in path and path.endswith(("files", "subjects")):
            assert rows(reply) == []


def test_names_that_a_firewall_refuses_reach_the_oldest_one(client):
    for name, content in (("100%25%20sure.txt", b"100% sure"), ("semi%3Bcolon.txt", b"semi;colon")):
        path = f"{UGLY}/resources/files/files/{name}"
        passed, refused = (client(release).get(path) for release in (XNAT_1_6, XNAT_1_8))
        assert (passed.status_code, content in passed.content) == (200, True)
        assert refused.status_code == 400
        assert "<b>Message</b> The request was rejected" in refused.text


def test_a_file_of_the_oldest_one_has_no_name_in_its_headers(client):
    path = f"{SESSION}/resources/logs/files/scanner.log"
    old, new = (client(release).get(path) for release in (XNAT_1_6, XNAT_1_8))
    assert "content-disposition" not in old.headers
    assert new.headers["content-disposition"].startswith("attachment")
    assert old.headers["last-modified"] == new.headers["last-modified"]
    assert "x-frame-options" not in old.headers
    assert "x-frame-options" in new.headers


def test_a_tar_of_the_oldest_one_breaks_at_a_long_name(archive, client):
    project = archive.projects["BRAINS"]
    short = archive.resource(project.resources, "SHORT")
    long, late = archive.resource(project.resources, "LONG"), archive.resource(project.resources, "LATE")
    try:
        archive.file(short, "grö日ße.txt", b"x")
        archive.file(long, "0.txt", b"x")
        archive.file(long, "n" * 101, b"x")
        for number in range(30):
            archive.file(late, f"{number}.txt", bytes(600))
        archive.file(late, "n" * 101, b"x")
        path = "/data/projects/BRAINS/resources/{}/files?format=tar"
        old, new = client(XNAT_1_6), client(XNAT_1_8)
        with tarfile.open(fileobj=io.BytesIO(old.get(path.format("SHORT")).content), encoding="latin-1") as read:
            assert read.getnames() == ["BRAINS/resources/SHORT/files/grö\xe5ße.txt"]
        broken = old.get(path.format("LONG"))
        assert broken.status_code == 500
        assert "<b>Message</b> An exception occured writing the response entity<" in broken.text
        ended = old.get(path.format("LATE"))
        assert (ended.status_code, len(ended.content) % 10240) == (200, 0)
        assert 0 < ended.content.count(b"BRAINS/") < 30
        with tarfile.open(fileobj=io.BytesIO(new.get(path.format("LATE")).content)) as read:
            assert len(read.getnames()) == 31
    finally:
        del project.resources[-3:]


# -- 1.11 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", [XNAT_1_6, XNAT_1_8], ids=lambda release: release.name)
def test_the_list_of_all_experiments_is_by_type_and_with_or_without_shares(client, release):
    archive = DemoArchive()
    moved = next(e for e in archive.experiments.values() if not archive.reads(OUTSIDER, e.project) and not e.session)
    moved.shared[next(project for project in archive.projects if archive.reads(OUTSIDER, project))] = "HERE"
    outsider = client(release, OUTSIDER, of=archive)
    everything = {row["ID"] for row in rows(outsider.get("/data/experiments"))}
    assert (moved.id in everything) == release.shares_in_site_list
    kinds = {}
    for kind in ("subject", "image"):
        query = f"xsiType=xnat:{kind}AssessorData&columns=ID,label,project,subject_label,session_ID"
        kinds[kind] = {row["ID"] for row in rows(outsider.get(f"/data/experiments?{query}"))}
    assert kinds["image"] == {found.id for found in archive.experiments.values() if found.session} & everything
    assert kinds["subject"] == everything - kinds["image"]


def test_the_newest_one_answers_success_without_a_body_as_204(client):
    replies = {name: client(release).delete("/data/JSESSION") for name, release in RELEASES.items()}
    assert {name: reply.status_code for name, reply in replies.items()} == {"1.6": 200, "1.8": 200, "1.11": 204}
    empty = client(XNAT_1_11).get(f"{SESSION}/resources/logs/files/empty.txt")
    assert (empty.status_code, empty.content) == (200, b"")  # a file is no success without a body


def test_the_newest_one_speaks_utf_8(client):
    paths = ("/data/auth", "/data/projects", "/data/projects?format=csv", SESSION + "?format=xml")
    kinds = {name: [client(r).get(path).headers["content-type"] for path in paths] for name, r in RELEASES.items()}
    for name in ("1.6", "1.8"):
        assert kinds[name] == ["text/plain;charset=ISO-8859-1", "application/json", "text/csv", "text/xml"]
    assert kinds["1.11"] == [f"{kind.partition(';')[0]};charset=UTF-8" for kind in kinds["1.8"]]


def test_free_text_has_character_references_but_in_the_newest_one(archive, client):
    scan = archive.experiments["DEMO_E00001"].scans[0]
    before, scan.note = scan.note, "groß & 日"
    try:
        notes = {name: {row["note"] for row in rows(client(r).get(f"{SESSION}/scans"))} for name, r in RELEASES.items()}
    finally:
        scan.note = before
    assert notes["1.6"] == notes["1.8"] == {"", "gro&#223; &amp; &#26085;"}
    assert notes["1.11"] == {"", "groß &amp; 日"}


def test_the_lists_of_the_newest_one_have_no_order(client):
    for path in (f"{SESSION}/files?all=true", f"{SESSION}/scans"):
        found = {}
        for release in (XNAT_1_8, XNAT_1_11):
            owner = client(release)
            found[release.name] = [[row["URI"] for row in rows(owner.get(path))] for _ in range(3)]
        assert found["1.8"][0] == found["1.8"][1] == found["1.8"][2]
        assert len({tuple(each) for each in found["1.11"]}) == 3
        assert all(sorted(each) == sorted(found["1.8"][0]) for each in found["1.11"])
        again = client(XNAT_1_11)
        assert [[row["URI"] for row in rows(again.get(path))] for _ in range(3)] == found["1.11"], "each time the same"


def test_the_newest_one_takes_forms_under_their_type_and_paths_as_they_are(client):
    form = f"username={OWNER}&password={PASSWORDS[OWNER]}".encode()
    for release, status in ((XNAT_1_8, 200), (XNAT_1_11, 401)):
        stranger = client(release, "")
        typed = stranger.put("/data/services/auth", content=form, headers={"content-type": FORM})
        assert (typed.status_code, len(typed.text)) == (200, 32)
        assert stranger.put("/data/services/auth", content=form).status_code == status
    statuses = {name: client(r).get("/xapi/users/username/").status_code for name, r in RELEASES.items()}
    assert statuses == {"1.6": 404, "1.8": 200, "1.11": 404}


# -- lists that lie, on any release --------------------------------------------------------------------------------


@pytest.fixture(params=list(RELEASES.values()), ids=list(RELEASES))
def lying(request: pytest.FixtureRequest, archive: DemoArchive) -> Iterator[tuple[DemoXnat, httpx.Client]]:
    demo = DemoXnat(archive, release=request.param)
    with httpx.Client(transport=httpx.MockTransport(demo), base_url="http://xnat") as made:
        made.post("/data/JSESSION", auth=(OWNER, PASSWORDS[OWNER]))
        yield demo, made


def resources_in(reply: httpx.Response) -> set[str]:
    return {row["cat_ID"] for row in rows(reply)}


def test_a_resource_whose_files_are_not_named_states_their_number_all_the_same(lying):
    demo, owner = lying
    before = rows(owner.get(f"{SESSION}/resources?all=true"))
    number = next(row["xnat_abstractresource_id"] for row in before if row["label"] == "logs")
    demo.site.nameless = lambda resource: str(resource.id) == number
    assert rows(owner.get(f"{SESSION}/resources/{number}/files")) == []
    assert number not in resources_in(owner.get(f"{SESSION}/files?all=true"))
    assert number not in resources_in(owner.get("/data/experiments/DEMO_E00001,DEMO_E00002/files?all=true"))
    stated = next(
        row for row in rows(owner.get(f"{SESSION}/resources?all=true")) if row["xnat_abstractresource_id"] == number
    )
    assert int(stated["file_count"]) > 0
    assert int(stated["file_size"]) > 0
    assert owner.get(f"{SESSION}/resources/{number}/files/scanner.log").status_code == 200


def test_a_list_of_several_resources_can_leave_some_out(lying):
    demo, owner = lying

    def of_scan_2(resource: Resource, home: Home) -> bool:
        return (home.category, home.cat_id) == ("scans", "2")

    def of_assessors(resource: Resource, home: Home) -> bool:
        return home.category == "assessors"

    whole = {row["URI"] for row in rows(owner.get(f"{SESSION}/files?all=true"))}
    for left_out, part in ((of_scan_2, "/scans/2/"), (of_assessors, "DEMO_E00003")):
        demo.site.left_out = left_out
        for path in (f"{SESSION}/files?all=true", "/data/experiments/DEMO_E00001,DEMO_E00002/files?all=true"):
            short = {row["URI"] for row in rows(owner.get(path))}
            assert not any(part in uri for uri in short)
            assert {uri for uri in whole - short if part in uri}
    demo.site.left_out = of_scan_2
    number = next(row["xnat_abstractresource_id"] for row in rows(owner.get(f"{SESSION}/scans/2/resources")))
    assert len(rows(owner.get(f"{SESSION}/scans/2/resources/{number}/files"))) == 24, "alone it is whole"
