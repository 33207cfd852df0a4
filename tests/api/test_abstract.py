"""Run fsspec's own tests of `get`, with the files that they would make on a file system made on the server."""

from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests import abstract

from tests.support.demos import Demo, serving
from xnatfs.api.filesystem import XnatFileSystem
from xnatfs.demo.fixtures.lab import DemoArchive

SCENARIOS = (
    "bulk_operations_scenario_0",
    "glob_edge_cases_files",
    "dir_and_file_with_same_name_prefix",
    "10_files_with_hashed_names",
)
RESOURCES = "/projects/BRAINS/resources"


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Serve each scenario as a resource of its name."""
    folder, local, made = (
        tmp_path_factory.mktemp("scenarios"),
        LocalFileSystem(auto_mkdir=True),
        abstract.AbstractFixtures(),
    )
    for name in SCENARIOS:
        (folder / name).mkdir()
        getattr(made, f"_{name}")(local, lambda *parts: "/".join(parts), str(folder / name))

    def fill(archive: DemoArchive) -> None:
        for path in sorted(folder.iterdir()):
            resource = archive.resource(archive.projects["BRAINS"].resources, path.name)
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    archive.file(resource, file.relative_to(path).as_posix(), file.read_bytes())

    with serving(change=fill) as demo:
        yield demo


class TestGet(abstract.AbstractGetTests, abstract.AbstractFixtures):  # type: ignore[misc]
    """fsspec's tests, but for the one that makes its directory by the file system itself."""

    test_get_directory_recursive = None

    @pytest.fixture
    def fs(self, scenarios, user):
        yield fsspec.filesystem("xnat+http", url=scenarios.url)
        XnatFileSystem.clear_instance_cache()

    @pytest.fixture
    def fs_path(self):
        return RESOURCES

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self):
        return f"{RESOURCES}/bulk_operations_scenario_0/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self):
        return f"{RESOURCES}/glob_edge_cases_files/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self):
        return f"{RESOURCES}/dir_and_file_with_same_name_prefix/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self):
        return f"{RESOURCES}/10_files_with_hashed_names/source"
