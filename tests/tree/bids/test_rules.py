"""Test the rules of BIDS names without a server: maps, names, runs, echoes, field maps."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import bids_schema
from xnatfs.common.errors import BadReply
from xnatfs.rest.bids import BidsMapRow, parse_map
from xnatfs.rest.models import Scan
from xnatfs.tree.bids.rules.entries import Rules, ScanFiles, SessionPlan
from xnatfs.tree.bids.rules.guess import guess
from xnatfs.tree.bids.rules.images import StoredFile
from xnatfs.tree.bids.rules.labels import Labelled, folder_labels, without_subject
from xnatfs.tree.bids.rules.maps import BidsMap, noted, reproin
from xnatfs.tree.bids.rules.names import BidsName, InvalidName
from xnatfs.tree.bids.rules.others import other_data
from xnatfs.tree.bids.rules.plan import SessionPlanner

Fields = Mapping[str, Any]


def scan(id: str, description: str = "", *, quality: str = "usable", note: str = "", type: str = "") -> Scan:
    return Scan(id, type, quality, "", note, description)


def files(id: str, *stems: str, extensions: tuple[str, ...] = (".nii.gz", ".json")) -> list[StoredFile]:
    names = [f"{stem}{extension}" for stem in stems for extension in extensions]
    return [StoredFile(id, name, place) for place, name in enumerate(names)]


def a_map(**lines: str) -> BidsMap:
    return BidsMap.merge(("map", [BidsMapRow(key.replace("_", " "), name) for key, name in lines.items()]))


DEFAULT = Rules()


def plan(
    scans: list[ScanFiles], bids_map: BidsMap, fields: Mapping[str, Fields] | None = None, rules: Rules = DEFAULT
) -> SessionPlan:
    """Plan session E of subject S; `fields` are those of sidecars by stem."""
    read: dict[StoredFile, Fields] = {}
    while True:
        made = SessionPlanner("S", "E", bids_map, rules, read).make(scans)
        if not made.wanted:
            return made
        assert not read.keys() & set(made.wanted)
        read |= {file: (fields or {}).get(file.name.partition(".")[0], {}) for file in made.wanted}


def images(made: SessionPlan) -> dict[str, str]:
    """Return the paths of images, without what they have in common, and the stems of their files."""
    return {entry.path.removesuffix(".nii.gz").replace("sub-S_ses-E_", ""): entry.image.stem for entry in made.entries}


def reasons(made: SessionPlan) -> dict[str, str]:
    return {row.file or row.scan: row.reason for row in made.left_out}


# -- names -------------------------------------------------------------------------------------------------------


def test_the_rules_are_those_of_the_schema():
    assert bids_schema.TARGET.read_text() == bids_schema.text(), "run python -m scripts.bids_schema"


def test_no_two_suffixes_differ_in_case_alone():
    """Check the schema: `parse` would take one for the other."""
    suffixes = {suffix for group in json.loads(bids_schema.text())["groups"] for suffix in group["suffixes"]}
    assert len({suffix.lower() for suffix in suffixes}) == len(suffixes) > 0


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("T1w", "anat/T1w"),
        ("t1w", "anat/T1w"),
        ("acq-3D SPGR_T1w", "anat/acq-3DSPGR_T1w"),
        ("acq-a-b_T1w", "anat/acq-ab_T1w"),
        ("sub-1/anat/acq-a_T1w", "anat/acq-a_T1w"),
        ("task-rest_bold", "func/task-rest_bold"),
        ("func/task-rest_bold.nii.gz", "func/task-rest_bold"),
        ("echo-1_task-rest_run-1_bold", "func/task-rest_run-1_echo-1_bold"),
        ("task-rest_sbref", "func/task-rest_sbref"),
        ("dir-AP_sbref", None),
        ("dwi/dir-AP_sbref", "dwi/dir-AP_sbref"),
        ("epi", "fmap/epi"),
        ("perf/m0scan", "perf/m0scan"),
    ],
)
def test_a_name_is_repaired_and_has_its_folder(text, path):
    name = BidsName.parse(text).having(sub="S")
    if path is None:  # valid in one type of data only: no map has to name it
        assert name.resolved().datatype == "dwi"
        return
    assert name.resolved().path == f"{path.partition('/')[0]}/sub-S_{path.partition('/')[2]}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("foo-1_T1w", "unknown entity 'foo-1'"),
        ("acq-1_acq-2_T1w", "acq- stands twice"),
        ("T3w", "unknown suffix 'T3w'"),
        ("", "unknown suffix ''"),
        ("acq-++_T1w", "acq- has no value"),
        ("run-x_T1w", "run-x is not a number"),
        ("part-half_bold", "part- must be one of"),
        ("beh/T1w", "unknown data type 'beh'"),
        ("bold", "task- is missing for bold"),
        ("dir-AP_T1w", "dir- is not allowed for T1w"),
        ("func/T1w", "T1w does not belong to func/"),
        ("m0scan", "m0scan may belong to fmap or perf"),
    ],
)
def test_what_is_no_name_is_said(text, why):
    with pytest.raises(InvalidName, match=re.escape(why)):
        BidsName.parse(text).having(sub="S").resolved()


# -- folders -----------------------------------------------------------------------------------------------------


def test_equal_labels_are_told_apart_by_accession():
    found, renamed = folder_labels(
        [Labelled("X_S00010", "CASE_001"), Labelled("X_S00002", "CASE-001"), Labelled("X_S00011", "case001")]
    )
    assert found == {"X_S00002": "CASE001", "X_S00010": "CASE001X00010", "X_S00011": "case001X00011"}
    assert renamed == ["X_S00010", "X_S00011"]


def test_a_shared_subject_renames_none_of_the_project():
    found, _ = folder_labels([Labelled("A_S1", "S", is_shared=True), Labelled("X_S2", "S")])
    assert found == {"X_S2": "S", "A_S1": "SX1"}


def test_labels_and_names_fit_into_a_file_name():
    long = "n" * 300
    found, renamed = folder_labels([Labelled("X_S1", long), Labelled("X_S2", long), Labelled("Y" + "9" * 300, long)])
    assert renamed == list(found)
    assert len(set(found.values())) == 3
    assert found["X_S1"] == "n" * 47 + "X1"
    assert all(len(label) <= 64 for label in found.values())
    with pytest.raises(InvalidName, match="cannot be that long"):
        BidsName("T1w", {"sub": "S", "ses": "1", "acq": "a" * 240}).resolved()


def test_a_name_may_be_as_long_as_a_file_name():
    """Take a stem of 248 characters, to which `.nii.gz` is added, and none of 249."""
    entities = {"sub": "S", "acq": "a" * (248 - len("sub-S_acq-_T1w"))}
    assert len(BidsName("T1w", entities).resolved().stem) == 248
    with pytest.raises(InvalidName, match="cannot be that long"):
        BidsName("T1w", {**entities, "sub": "SS"}).resolved()


def test_an_entity_that_a_name_lacks_is_empty():
    """Return text in any case, which is compared and sorted."""
    assert (BidsName("T1w", {"acq": "x"}).get("acq"), BidsName("T1w").get("acq")) == ("x", "")


@given(labels=st.lists(st.text(st.sampled_from("aAX0-_ +ä"), max_size=4), max_size=12))
def test_a_new_subject_renames_no_other(labels):
    items = [Labelled(f"X_S{number:05}", label) for number, label in enumerate(labels)]
    before: dict[str, str] = {}
    for count in range(len(items) + 1):
        found, _ = folder_labels(reversed(items[:count]))
        assert before.items() <= found.items()
        assert all(re.fullmatch(r"[0-9A-Za-z]+", label) for label in found.values())
        assert len({label.lower() for label in found.values()}) == count
        before = found


@pytest.mark.parametrize(
    ("session", "subject", "cut"),
    [("CASE1_MR1", "CASE1", "MR1"), ("case1 - MR1", "CASE1", "MR1"), ("CASE1", "CASE1", "CASE1"), ("MR1", "C", "MR1")],
)
def test_the_subject_is_cut_from_its_session(session, subject, cut):
    assert without_subject(session, subject) == cut


# -- what names a scan -------------------------------------------------------------------------------------------


def test_a_map_is_looked_up_by_description_and_without_one_by_type():
    found = BidsMap.merge(
        ("own", [BidsMapRow(" Rest", "a")]), ("site", [BidsMapRow("rest ", "b"), BidsMapRow("T1", "c")])
    )
    lines = [found.find(each) for each in (scan("1", "REST "), scan("2", type="t1"))]
    assert [line.bidsname for line in lines if line] == ["a", "c"]
    assert found.find(scan("3", "x", type="T1")) is None
    assert found.find(scan("4", " ", type="T1")) == lines[1]  # blanks are no description
    assert [(key, used.bidsname, unused.bidsname) for key, used, unused in found.overridden] == [("rest", "a", "b")]


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "is not JSON"), ("{}", "is not a list"), ('[{"bidsname": "T1w"}]', "line 1 of the map has no"),
     ('[{"series_description": "a", "bidsname": "b", "for": 1}]', "`for`"), ("[1]", "line 1")],
)  # fmt: skip
def test_what_is_no_map_is_an_error(text, why):
    with pytest.raises(BadReply, match=re.escape(why)):
        parse_map(text, "the map")


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("anat-T1w_acq-mprage", "anat/acq-mprage_T1w"),
        ("func-bold_task-rest_run+", "func/task-rest_run+_bold"),
        ("dwi_dir-AP_ses-01__dup0", "dwi/dir-AP_dwi"),
        ("dwi-dwi_dir-AP_ses-01__dup0", "dwi/dir-AP_dwi"),
        ("anatomy", None),
        ("func-bold_nonsense", None),
    ],
)
def test_a_description_by_reproin_is_a_name(description, name):
    line = reproin(scan("1", description))
    assert (line.bidsname if line else None) == name


@pytest.mark.parametrize(
    ("note", "name"),
    [("ok #T1w_002", "anat/run-002_t1w"), ("#DWI_MAIN_001", "dwi/run-001_dwi"),
     ("#DWI_PA_001", "fmap/dir-PA_run-001_epi"), ("#BOLD_rest_001", "func/task-rest_run-001_bold"),
     ("#1 #XYZ_001", None), ("", None)],
)  # fmt: skip
def test_a_tag_in_a_note_is_a_name(note, name):
    line = noted(scan("1", note=note))
    assert (line.bidsname if line else None) == name


def test_tags_count_if_they_are_wanted():
    scans = [ScanFiles(scan("1", note="#T1w_001"), files("1", "x"))]
    assert images(plan(scans, a_map())) == {}
    assert images(plan(scans, a_map(), rules=Rules(use_notes=True))) == {"anat/run-001_T1w": "x"}


@pytest.mark.parametrize(
    ("description", "name"),
    [("AX FLAIR", "FLAIR"), ("SAG T1 MPRAGE", "T1w"), ("rsfMRI rest", "task-rest_bold"), ("3Plane Loc", ""),
     ("ep2d_bold_faces", "task-faces_bold"), ("gre_field_mapping", "phasediff"), ("DTI 64", "dwi"), ("xyz", "")],
)  # fmt: skip
def test_a_description_gives_a_guess(description, name):
    assert guess(scan("1", description)) == name


# -- runs --------------------------------------------------------------------------------------------------------

T1 = a_map(T1="T1w")


def test_runs_are_numbered_by_scan_over_all_that_match():
    scans = [
        ScanFiles(scan("10", "T1"), files("10", "a")),
        ScanFiles(scan("2", "T1", quality="unusable"), files("2", "b")),
        ScanFiles(scan("8", "T1"), []),
    ]
    assert images(plan(scans, T1)) == {"anat/run-03_T1w": "a"}
    assert images(plan(scans, T1, rules=Rules(any_quality=True))) == {"anat/run-01_T1w": "b", "anat/run-03_T1w": "a"}
    assert images(plan(scans[:1], T1)) == {"anat/T1w": "a"}


def test_a_stated_run_stays_and_a_clash_is_shown_to_neither():
    scans = [ScanFiles(scan(id), files(id, stem)) for id, stem in (("1", "sub-x_run-3_T1w"), ("2", "sub-x_T1w"))]
    assert images(plan(scans, a_map())) == {"anat/run-3_T1w": "sub-x_run-3_T1w", "anat/run-02_T1w": "sub-x_T1w"}
    clash = [ScanFiles(scan(id), files(id, "sub-x_run-3_T1w")) for id in "12"]
    made = plan(clash, a_map())
    assert images(made) == {}
    assert [row.scan for row in made.left_out] == ["1", "2"]


def test_a_single_counted_run_has_its_number():
    scans = [ScanFiles(scan("1", "func-bold_task-rest_run+"), files("1", "x"))]
    assert images(plan(scans, a_map())) == {"func/task-rest_run-01_bold": "x"}


def test_names_of_the_files_count_more_than_a_map_and_that_is_reported():
    made = plan([ScanFiles(scan("1", "T1"), files("1", "sub-x_ses-y_T2w"))], T1)
    assert images(made) == {"anat/T2w": "sub-x_ses-y_T2w"}
    assert reasons(made)["1"] == "is shown, but named differently: T2w by its files, T1w by the map"


# -- images of one scan ------------------------------------------------------------------------------------------


def times(**found: float) -> dict[str, Fields]:
    return {stem: {"EchoTime": time} for stem, time in found.items()}


def test_echoes_are_numbered_by_their_times():
    made = plan(
        [ScanFiles(scan("9", "me"), files("9", "x_e1", "x_e1a", "x_e2", "x_e2a"))],
        a_map(me="MEGRE"),
        times(x_e1=0.009, x_e1a=0.06, x_e2=0.02, x_e2a=0.04),
    )
    assert images(made) == {
        "anat/echo-1_MEGRE": "x_e1",
        "anat/echo-2_MEGRE": "x_e2",
        "anat/echo-3_MEGRE": "x_e2a",
        "anat/echo-4_MEGRE": "x_e1a",
    }


def test_names_of_echoes_by_xnats_converter_are_repaired():
    stems = [f"sub-x_ses-y_task-rest_echo-{number}_run-01_bold" for number in (1, 2)]
    made = plan([ScanFiles(scan("9"), files("9", *stems))], a_map(), times(**{stems[0]: 0.04, stems[1]: 0.02}))
    assert images(made) == {
        "func/task-rest_run-01_echo-1_bold": stems[1],
        "func/task-rest_run-01_echo-2_bold": stems[0],
    }


def test_a_missing_echo_is_noticed():
    fields = {"x_e1": {"EchoTime": 0.01, "EchoNumber": 1}, "x_e3": {"EchoTime": 0.03, "EchoNumber": 3}}
    made = plan([ScanFiles(scan("9", "me"), files("9", "x_e1", "x_e3"))], a_map(me="MEGRE"), fields)
    assert images(made) == {}
    assert "an echo is missing" in reasons(made)["x_e1.nii.gz"]


def test_phase_images_are_marked():
    fields = {"x": {"ImageType": ["M"]}, "y": {"ImageType": ["ORIGINAL", "P"]}}
    made = plan([ScanFiles(scan("9", "b"), files("9", "x", "y"))], a_map(b="task-rest_bold"), fields)
    assert images(made) == {"func/task-rest_bold": "x", "func/task-rest_part-phase_bold": "y"}


@pytest.mark.parametrize("stems", [("x", "x_Eq_1"), ("x", "x_i00020"), ("x", "xa"), ("x_e1", "x_e2")])
def test_images_that_differ_unclearly_are_not_shown(stems):
    made = plan([ScanFiles(scan("1", "T1"), files("1", *stems))], T1, times(x_e1=0.1, x_e2=0.1))
    assert images(made) == {}
    assert reasons(made).keys() == {f"{stem}.nii.gz" for stem in stems}


def test_one_of_several_images_without_sidecar_is_not_shown():
    made = plan([ScanFiles(scan("1", "T1"), files("1", "x") + files("2", "x_Eq_1", extensions=(".nii.gz",)))], T1)
    assert images(made) == {"anat/T1w": "x"}
    assert reasons(made) == {"x_Eq_1.nii.gz": "has no sidecar"}


def test_a_localizer_is_not_shown_and_other_sidecars_are_not_asked():
    discarded = {"x": {"BidsGuess": ["discard", "x"]}}
    scans = [ScanFiles(scan("1", "T1", type="LOCALIZER"), files("1", "x"))]
    assert images(plan(scans, T1, discarded)) == {}
    assert images(plan([ScanFiles(scan("1", "T1"), files("1", "x"))], T1, discarded)) == {"anat/T1w": "x"}


def test_diffusion_needs_both_tables():
    dwi = a_map(d="dwi")
    whole = files("1", "x", extensions=(".nii.gz", ".json", ".bval", ".bvec"))
    made = plan([ScanFiles(scan("1", "d"), whole)], dwi)
    assert sorted(made.files) == [f"dwi/sub-S_ses-E_dwi{end}" for end in (".bval", ".bvec", ".json", ".nii.gz")]
    assert reasons(plan([ScanFiles(scan("1", "d"), whole[:3])], dwi)) == {"x.nii.gz": "lacks .bval or .bvec"}


def test_two_images_of_one_stem_and_other_files_are_reported():
    odd = [StoredFile("1", "x.nii", 0), StoredFile("1", "x.nii.gz", 1), StoredFile("1", "physio.log", 2)]
    made = plan([ScanFiles(scan("1", "T1"), odd)], T1)
    assert images(made) == {}
    assert {"x.nii", "x.nii.gz", "physio.log"} <= reasons(made).keys()


def test_copies_of_a_sidecar_are_one_and_different_ones_are_reported():
    image, *sidecars = [StoredFile("1", "x.nii.gz", 0), *(StoredFile(id, "x.json", 1, 2, "d") for id in "12")]
    made = plan([ScanFiles(scan("1", "T1"), [image, *sidecars])], T1)
    assert set(made.files.values()) == {image, sidecars[0]}
    for digest in ("e", ""):
        other = [sidecars[0]._replace(digest=digest and "d"), sidecars[1]._replace(digest=digest)]
        made = plan([ScanFiles(scan("1", "T1"), [image, *other])], T1)
        assert images(made) == {}
        assert reasons(made) == {"x.nii.gz": "has several .json files of different contents"}


@pytest.mark.parametrize("name", ["T1w", "MEGRE", "phasediff"])
def test_an_image_for_each_slice_takes_no_sidecar(name):
    made = SessionPlanner("S", "E", a_map(T1=name), DEFAULT, {}).make(
        [ScanFiles(scan("1", "T1"), files("1", *map(str, range(200))))]
    )
    assert (made.wanted, made.entries) == ([], [])
    assert reasons(made) == {"1": "has 200 images, too many to be told apart"}


# -- field maps --------------------------------------------------------------------------------------------------

GRE = a_map(gre="phasediff", rest="task-rest_bold", se="epi")


def field_map(first: int, prefix: str = "m") -> list[ScanFiles]:
    return [
        ScanFiles(scan(str(first), "gre"), files(str(first), f"{prefix}_e1", f"{prefix}_e2")),
        ScanFiles(scan(str(first + 1), "gre"), files(str(first + 1), f"{prefix}_e2_ph")),
    ]


ECHOES = times(m_e1=0.004, m_e2=0.006, n_e1=0.004, n_e2=0.006)
REST = ScanFiles(scan("9", "rest"), files("9", "r"))


def test_a_field_map_of_two_scans_is_joined_and_has_its_echo_times_and_targets():
    made = plan([*field_map(4), REST], GRE, ECHOES)
    assert images(made) == {
        "fmap/magnitude1": "m_e1",
        "fmap/magnitude2": "m_e2",
        "fmap/phasediff": "m_e2_ph",
        "func/task-rest_bold": "r",
    }
    assert made.metadata["sub-S_ses-E_phasediff"] == {
        "EchoTime1": 0.004,
        "EchoTime2": 0.006,
        "B0FieldIdentifier": "fieldmap",
        "IntendedFor": ["bids::sub-S/ses-E/func/sub-S_ses-E_task-rest_bold.nii.gz"],
    }
    assert made.metadata["sub-S_ses-E_task-rest_bold"] == {"TaskName": "rest", "B0FieldSource": "fieldmap"}


def test_a_field_map_that_is_not_converted_yet_has_its_number():
    later = [ScanFiles(each.scan, []) for each in field_map(2)]
    assert "fmap/run-02_phasediff" in images(plan([*later, *field_map(4)], GRE, ECHOES))


def test_a_field_map_by_xnats_converter_is_repaired():
    stems = [f"sub-x_ses-y_echo-{number}_run-01_phasediff" for number in (1, 2)] + ["sub-x_ses-y_run-02_phasediff"]
    scans = [ScanFiles(scan("4"), files("4", *stems[:2])), ScanFiles(scan("5"), files("5", stems[2]))]
    fields = {**times(**{stems[0]: 0.004, stems[1]: 0.006}), stems[2]: {"ImageType": ["P"]}}
    made = images(plan(scans, a_map(), fields))
    assert made == dict(zip(("fmap/magnitude1", "fmap/magnitude2", "fmap/phasediff"), stems, strict=True))


def test_names_of_a_whole_field_map_stay():
    stems = [f"sub-x_ses-y_{suffix}" for suffix in ("magnitude1", "magnitude2", "phasediff")]
    scans = [ScanFiles(scan("4"), files("4", *stems[:2])), ScanFiles(scan("5"), files("5", stems[2]))]
    made = plan(scans, a_map(), times(**{stems[0]: 0.004, stems[1]: 0.006}))
    assert images(made).keys() == {"fmap/magnitude1", "fmap/magnitude2", "fmap/phasediff"}


def test_plain_paths_for_older_programs():
    made = plan([*field_map(4), REST], GRE, ECHOES, Rules(plain_targets=True))
    paths = made.metadata["sub-S_ses-E_phasediff"]["IntendedFor"]
    assert paths == ["ses-E/func/sub-S_ses-E_task-rest_bold.nii.gz"]


def test_two_field_maps_before_one_run_are_for_none():
    made = plan([*field_map(4), *field_map(6, "n"), REST], GRE, ECHOES)
    assert {"fmap/run-01_phasediff", "fmap/run-02_phasediff"} <= images(made).keys()
    assert not [fields for fields in made.metadata.values() if "IntendedFor" in fields]
    assert "several could be meant" in reasons(made)["r.nii.gz"]


def test_shim_settings_tell_field_maps_apart():
    shims = {stem: {**fields, "ShimSetting": [1 if stem[0] == "m" else 2]} for stem, fields in ECHOES.items()}
    made = plan([*field_map(4), *field_map(6, "n"), REST], GRE, {**shims, "r": {"ShimSetting": [2]}})
    assert "IntendedFor" in made.metadata["sub-S_ses-E_run-02_phasediff"]
    assert "IntendedFor" not in made.metadata["sub-S_ses-E_run-01_phasediff"]


def test_each_run_has_the_field_map_before_it():
    early = ScanFiles(scan("3", "rest"), files("3", "q"))
    between = ScanFiles(scan("6", "rest"), files("6", "s"))
    made = plan([early, *field_map(4), between, *field_map(7, "n"), REST], GRE, ECHOES)
    sources = {stem: fields.get("B0FieldSource") for stem, fields in made.metadata.items() if "bold" in stem}
    assert sources == {
        "sub-S_ses-E_task-rest_run-01_bold": None,
        "sub-S_ses-E_task-rest_run-02_bold": "run01_fieldmap",
        "sub-S_ses-E_task-rest_run-03_bold": "run02_fieldmap",
    }


def test_a_map_may_state_what_a_field_map_is_for():
    rows = [BidsMapRow("gre", "phasediff", "task-rest_bold"), BidsMapRow("rest", "task-rest_bold")]
    early = ScanFiles(scan("1", "rest"), files("1", "q"))
    made = plan([early, *field_map(4)], BidsMap.merge(("map", rows)), ECHOES)
    assert made.metadata["sub-S_ses-E_task-rest_bold"]["B0FieldSource"] == "fieldmap"


def test_a_phase_difference_without_echo_times_is_not_shown():
    made = plan(field_map(4)[1:], GRE)
    assert images(made) == {}
    assert "echo times" in reasons(made)["m_e2_ph.nii.gz"]


def test_spin_echoes_have_their_direction_and_are_one_field_map():
    fields = {"a": {"PhaseEncodingDirection": "j-"}, "b": {"PhaseEncodingDirection": "j"}}
    scans = [ScanFiles(scan(id, "se"), files(id, stem)) for id, stem in (("4", "a"), ("5", "b"), ("6", "c"))]
    made = plan([*scans, REST], GRE, fields)
    assert images(made).keys() == {"fmap/dir-AP_epi", "fmap/dir-PA_epi", "func/task-rest_bold"}
    assert made.metadata["sub-S_ses-E_task-rest_bold"]["B0FieldSource"] == "epi"
    assert "PhaseEncodingDirection" in reasons(made)["c.nii.gz"]


# -- other data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sub-1_task-x_physio.tsv.gz", "physiological recordings"),
        ("sub-1_task-x_events.tsv", "events"),
        ("sub-1_task-x_recording-eye_physioevents.tsv.gz", "eye tracking"),
        ("sub-1_trc-fdg_pet.nii.gz", "PET"),
        ("sub-1_task-x_meg.fif", "MEG"),
        ("run1.edf", "EEG"),
        ("sub-1_desc-brain_mask.nii.gz", "derivatives"),
        ("dwi.mif.gz", "MRtrix"),
        ("x.txt", "is no NIfTI file"),
    ],
)
def test_other_data_is_left_out_with_its_reason(name, why):
    stored = [*files("2", "t1"), StoredFile("2", name, 2)]
    made = plan([ScanFiles(scan("2", "T1"), stored)], a_map(T1="T1w"))
    assert images(made).keys() == {"anat/T1w"}
    assert why in reasons(made)[name]


def test_a_map_may_name_an_image_of_which_the_description_ends_like_other_data():
    made = plan([ScanFiles(scan("2", "T1 mask"), files("2", "2_T1_mask"))], a_map(T1_mask="acq-mask_T1w"))
    assert images(made) == {"anat/acq-mask_T1w": "2_T1_mask"}


def test_a_map_that_names_other_data_is_told_so():
    made = plan([ScanFiles(scan("2", "PET"), files("2", "x"))], a_map(PET="pet/trc-fdg_pet"))
    assert reasons(made)["2"] == "'pet/trc-fdg_pet' of the map: PET is not shown"
    assert guess(scan("2", "PhysioLog")) == guess(scan("2", "PET AC")) == ""


def test_files_without_their_image_are_reported():
    made = plan([ScanFiles(scan("2", "T1"), files("2", "t1", extensions=(".json", ".bval")))], a_map(T1="T1w"))
    assert reasons(made)["t1.json"] == reasons(made)["t1.bval"] == "no image has its name"


def test_other_resources_are_reported_by_kind():
    assert other_data("Physio", ["a.puls", "a.resp", "a.log"]) == ["physiological recordings are not shown (2 files)"]
    assert other_data("fs", ["mri/T1.mgz", "surf/lh.pial", "scripts/x.log"]) == [
        "the output of FreeSurfer is a derivative (2 files)"
    ]
    assert other_data("fmriprep", ["dataset_description.json"]) == ["derivatives are not shown (1 file)"]
    assert other_data("secondary", ["1.dcm"]) == ["secondary captures are not shown (1 file)"]
    assert other_data("brain_mask@", ["x.nii.gz"]) == [
        "images are shown of scans' resources NIFTI and BIDS only (1 file)"
    ]
    for label in ("DICOM", "SNAPSHOTS", "PROVENANCE"):
        assert other_data(label, ["x.nii.gz"]) == []


# -- any session -------------------------------------------------------------------------------------------------

_SCHEMA = json.loads(Path(bids_schema.TARGET).read_text())
_DESCRIPTIONS = ("T1", "gre", "rest", "se", "me", "d", "bad", "", "func-bold_task-x_run+", "anat-T1w")
_MAP = a_map(T1="T1w", gre="phasediff", rest="task-rest_bold", se="epi", me="MEGRE", d="dwi", bad="foo-1_T1w")
_STEMS = (
    *("x", "x_e1", "x_e2", "x_e2_ph", "xa", "x_Eq_1", "sub-1_T1w", "sub-1_run-1_T1w", "a/x", "b/x"),
    *("sub-1_echo-1_run-1_task-r_bold", "sub-1_echo-2_run-1_task-r_bold", "sub-1_magnitude1", "sub-1_phasediff"),
)
_FIELDS: list[Fields] = [
    {}, {"EchoTime": 0.01}, {"EchoTime": 0.02}, {"EchoTime": "x"}, {"ImageType": ["P"]}, {"BidsGuess": ["discard"]},
    {"PhaseEncodingDirection": "j"}, {"PhaseEncodingDirection": "i-"}, {"EchoTime1": 1, "EchoTime2": 2},
    {"AcquisitionTime": "10:00:00.5"}, {"IntendedFor": "x"}, {"EchoNumber": 3, "EchoTime": 0.03},
]  # fmt: skip


@st.composite
def sessions(draw: st.DrawFn) -> tuple[list[ScanFiles], dict[str, Fields]]:
    scans, fields = [], {}
    for id in draw(st.lists(st.sampled_from(["1", "2", "10", "3-MR1", "T1"]), unique=True, max_size=5)):
        stored = [
            StoredFile(f"{id}{resource}", f"{stem}{extension}", place)
            for place, (resource, stem, extension) in enumerate(
                draw(
                    st.lists(
                        st.tuples(
                            st.sampled_from("ab"),
                            st.sampled_from(_STEMS),
                            st.sampled_from([".nii.gz", ".nii.gz", ".json", ".json", ".nii", ".bval", ".bvec", ".txt"]),
                        ),
                        unique=True,
                        max_size=8,
                    )
                )
            )
        ]
        quality = draw(st.sampled_from(["usable", "unusable"]))
        scans.append(ScanFiles(scan(id, draw(st.sampled_from(_DESCRIPTIONS)), quality=quality), stored))
    for stem in _STEMS:
        fields[stem.rpartition("/")[2]] = draw(st.sampled_from(_FIELDS))
    return scans, fields


def is_valid(path: str) -> bool:
    """Return whether a path is valid by the schema, read anew."""
    datatype, name = path.split("/")
    stem, _, extension = name.partition(".")
    *parts, suffix = stem.split("_")
    entities = dict(part.split("-") for part in parts)
    order = [key for key in _SCHEMA["entities"] if key in entities]
    return len(entities) == len(parts) and order == list(entities) and any(
        group["datatype"] == datatype
        and suffix in group["suffixes"]
        and f".{extension}" in group["extensions"]
        and set(group["required"]) <= entities.keys() <= {*group["required"], *group["optional"]}
        for group in _SCHEMA["groups"]
    )  # fmt: skip


@given(given=sessions(), data=st.data())
@settings(deadline=None, max_examples=200)
def test_names_are_valid_and_unique_and_depend_on_no_order(given, data):
    scans, fields = given
    made = plan(scans, _MAP, fields)
    assert all(is_valid(path) for path in made.files), made.files
    assert len({path.lower() for path in made.files}) == len(made.files)
    shown = [file for path, file in made.files.items() if path.endswith((".nii", ".nii.gz"))]
    assert len(set(shown)) == len(shown)
    mixed = [ScanFiles(each.scan, data.draw(st.permutations(each.files))) for each in data.draw(st.permutations(scans))]
    again = plan(mixed, _MAP, fields)
    assert again.files == made.files
    assert again.metadata == made.metadata
    intended: list[Any] = [each.get("IntendedFor", ()) for each in made.metadata.values()]
    targets = [target for each in intended for target in each]
    assert {target.removeprefix("bids::sub-S/ses-E/") for target in targets} <= made.files.keys()


@given(given=sessions(), data=st.data())
@settings(deadline=None, max_examples=100)
def test_marking_a_scan_as_unusable_renames_no_other(given, data):
    scans, fields = given
    if not scans:
        return
    place = data.draw(st.integers(0, len(scans) - 1))
    marked = list(scans)
    bad = scans[place].scan
    marked[place] = ScanFiles(Scan(bad.id, bad.type, "unusable", "", "", bad.series_description), scans[place].files)
    before, after = plan(scans, _MAP, fields), plan(marked, _MAP, fields)
    for path, file in before.files.items():
        if file in after.files.values():
            assert after.files[path] == file
