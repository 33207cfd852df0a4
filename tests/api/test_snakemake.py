"""Run the workflows of docs/PYTHON.md in Snakemake: by the storage plugin, and on a mounted path."""

import pytest

from tests.api.conftest import DICOM, NIFTI, SCAN
from tests.docs.test_readme import blocks, page
from tests.support.mounting import SCRIPTS, environment, mounting, run

pytest.importorskip("snakemake", reason="needs Snakemake: pip install '.[snakemake]'", exc_type=ImportError)

BY_PLUGIN, MOUNTED = blocks("snakemake", page("PYTHON"))


def snakemake(user, folder, workflow, *words):
    folder.mkdir()
    (folder / "Snakefile").write_text(workflow)
    command = (SCRIPTS / "snakemake", "--cores", "1", *words)
    return run(*command, cwd=folder, env=environment(user.home, **user.login), timeout=120)


def test_a_workflow_reads_by_the_plugin(user, tmp_path):
    workflow = BY_PLUGIN.replace("xnat://xnat.example.org", user.url()).replace("MYPROJECT", "BRAINS")
    done = snakemake(user, tmp_path / "work", workflow)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "work" / "checksums.txt").read_text().split()
    assert lines[0] == user.content(NIFTI)
    assert user.logins() == 1
    again = run(
        SCRIPTS / "snakemake",
        "--cores",
        "1",
        "--dry-run",
        cwd=tmp_path / "work",
        env=environment(user.home, **user.login),
    )
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.fuse
def test_a_workflow_reads_a_mounted_path(user, tmp_path):
    login = user.demo.login
    with mounting(user.demo.url, tmp_path / "mounted", user=login["user"], password=login["password"]) as mount:
        workflow = MOUNTED.replace("/home/jdoe/xnat", str(mount.path)).replace("MYPROJECT", "BRAINS")
        done = snakemake(user, tmp_path / "work", workflow)
        assert done.returncode == 0, done.stderr
    lines = (tmp_path / "work" / "checksums.txt").read_text().split()
    assert lines[0] == user.content(NIFTI)


@pytest.fixture
def provider(user, tmp_path):
    import logging

    from snakemake_storage_plugin_xnat import StorageProvider

    return StorageProvider(tmp_path / "storage", logging.getLogger("test"))


def test_an_object_states_what_the_listing_states(user, provider):
    file = provider.object(user.url(NIFTI))
    (size,) = [entry.size for entry in user.demo.manifest if "/".join(entry.path) == NIFTI]
    assert (file.exists(), file.size(), file.checksum()) == (True, size, f"md5:{user.content(NIFTI)}")
    assert file.mtime() == 1709291533.25
    assert not provider.object(user.url(f"{SCAN}/NONE")).exists()
    folder = provider.object(user.url(DICOM))
    assert folder.local_footprint() == sum(
        entry.size for entry in user.demo.manifest if "/".join(entry.path[:-1]) == DICOM
    )
    assert user.bodies() == []


def test_a_directory_is_retrieved_whole_and_wildcards_find_files(user, provider):
    folder = provider.object(user.url(DICOM))
    folder.local_path().parent.mkdir(parents=True)
    folder.retrieve_object()
    assert len(list(folder.local_path().iterdir())) == 40
    pattern = provider.object(user.url(f"{SCAN}/NIFTI/{{name}}.nii.gz"))
    assert user.url(NIFTI) in pattern.list_candidate_matches()


@pytest.mark.parametrize(
    ("query", "valid"),
    [
        ("xnat://host/projects/P/{subject}/x", True),
        ("xnat+http://host:8080/xnat/projects/P", True),
        ("xnat://host", False),
        ("https://host/projects/P", False),
        ("xnat:///projects/P", False),
    ],
)
def test_queries_are_urls_of_files(provider, query, valid):
    assert bool(provider.is_valid_query(query)) is valid
    assert all(provider.is_valid_query(example.query) for example in provider.example_queries())
