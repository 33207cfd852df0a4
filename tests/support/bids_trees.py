"""List the trees that the BIDS view must show of the demo's projects, written down by hand from the rules.

Nothing here is computed as the view computes it: each line has the name of an image and the file in the archive that
it is. A folder's line names the session that it shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Archive, Experiment
from xnatfs.demo.fixtures.bids import SUBJECTS

TOP = {
    "README", "dataset_description.json", "participants.json", "participants.tsv",
    "sourcedata/xnatfs/left-out.tsv", "sourcedata/xnatfs/map.tsv",
}  # fmt: skip

# sub-*/ses-* SESSION, below it DATATYPE/NAME SCAN/FILE without what all names begin with, and endings that both share.
# A plus sign: the session's folder has a generated sidecar for the image.
TREES = {
    "BIDS_CONVERTED": """
        sub-CASE001/ses-CASE001MR1 CASE001_MR1
          anat/run-01_T1w           2/sub-CASE001_ses-CASE001MR1_run-01_T1w
          anat/run-02_T1w           8/sub-CASE001_ses-CASE001MR1_run-02_T1w
          anat/run-03_T1w          10/sub-CASE001_ses-CASE001MR1_run-03_T1w
          anat/acq-spgr_run-01_T1w  5/sub-CASE001_ses-CASE001MR1_acq-spgr_run-01_T1w
          anat/acq-spgr_run-02_T1w  6/sub-CASE001_ses-CASE001MR1_acq-spgr_run-02_T1w
          anat/acq-spgr_run-03_T1w  7/sub-CASE001_ses-CASE001MR1_acq-spgr_run-03_T1w
          anat/PDT2                 3/sub-CASE001_ses-CASE001MR1_PDT2
    """,
    "BIDS_PLAIN": """
        sub-CASE001/ses-CASE001MR1 CASE001_MR1
          anat/run-01_T1w           2/2_T1_SPIN_ECHO
          anat/run-02_T1w           8/8_T1_SPIN_ECHO
          anat/run-03_T1w          10/10_T1_SPIN_ECHO
          anat/acq-spgr_run-01_T1w  5/5_3D_SPGR_VOLUME
          anat/acq-spgr_run-02_T1w  6/6_3D_SPGR_VOLUME
          anat/acq-spgr_run-03_T1w  7/7_3D_SPGR_VOLUME
          anat/PDT2                 3/3_SCAN_1_T2_SCAN_2_PD
    """,
    "BIDS_PLAIN_SITE": """
        sub-CASE001/ses-CASE001MR1 CASE001_MR1
          anat/run-01_T1w             2/2_T1_SPIN_ECHO
          anat/run-02_T1w             8/8_T1_SPIN_ECHO
          anat/run-03_T1w            10/10_T1_SPIN_ECHO
          anat/acq-3DSPGR_run-01_T1w  5/5_3D_SPGR_VOLUME
          anat/acq-3DSPGR_run-02_T1w  6/6_3D_SPGR_VOLUME
          anat/acq-3DSPGR_run-03_T1w  7/7_3D_SPGR_VOLUME
          anat/PDT2                   3/3_SCAN_1_T2_SCAN_2_PD
    """,
    "BIDS_ECHOES": """
        sub-CASE001/ses-CASE001MR1 CASE001_MR1
          anat/echo-1_MEGRE  9/9_HEME_SUSEPTIBILITY_e1
          anat/echo-2_MEGRE  9/9_HEME_SUSEPTIBILITY_e1a
          anat/echo-3_MEGRE  9/9_HEME_SUSEPTIBILITY_e2a
          anat/echo-4_MEGRE  9/9_HEME_SUSEPTIBILITY_e2
        sub-PAIRS/ses-PAIRSMR1 PAIRS_MR1
          anat/run-01_echo-1_MEGRE   9/sub-PAIRS_ses-PAIRSMR1_echo-1_run-01_MEGRE
          anat/run-01_echo-2_MEGRE   9/sub-PAIRS_ses-PAIRSMR1_echo-2_run-01_MEGRE
          anat/run-02_echo-1_MEGRE  11/sub-PAIRS_ses-PAIRSMR1_echo-1_run-02_MEGRE
          anat/run-02_echo-2_MEGRE  11/sub-PAIRS_ses-PAIRSMR1_echo-2_run-02_MEGRE
        sub-LOST/ses-LOSTMR1 LOST_MR1
    """,
    "BIDS_AMBIGUOUS": """
        sub-CASE001/ses-CASE001MR1 CASE001_MR1
          anat/run-01_T1w  2/2_T1_SPIN_ECHO
    """,
    "BIDS_FIELDMAPS": """
        sub-FM1/ses-FM1MR1 FM1_MR1
          fmap/magnitude1      6/6_gre_field_mapping_3mm_e1 +
          fmap/magnitude2      6/6_gre_field_mapping_3mm_e2 +
          fmap/phasediff       7/7_gre_field_mapping_3mm_e2_ph +
          func/task-rest_bold  8/8_BOLD_rest +
        sub-FM2/ses-FM2MR1 FM2_MR1
          fmap/run-01_magnitude1   6/6_gre_field_mapping_3mm_e1
          fmap/run-01_magnitude2   6/6_gre_field_mapping_3mm_e2
          fmap/run-01_phasediff    7/7_gre_field_mapping_3mm_e2_ph +
          fmap/run-02_magnitude1   8/8_gre_field_mapping_3mm_e1
          fmap/run-02_magnitude2   8/8_gre_field_mapping_3mm_e2
          fmap/run-02_phasediff    9/9_gre_field_mapping_3mm_e2_ph +
          func/task-rest_bold     10/10_BOLD_rest +
        sub-FM3/ses-FM3MR1 FM3_MR1
          fmap/dir-AP_epi      6/6_SE_EPI_AP +
          fmap/dir-PA_epi      7/7_SE_EPI_PA +
          func/task-rest_bold  8/8_BOLD_rest +
        sub-FM4/ses-FM4MR1 FM4_MR1
          func/task-rest_bold  8/8_BOLD_rest +
    """,
    "BIDS_DIFFUSION": """
        sub-DW1/ses-DW1MR1 DW1_MR1
          dwi/run-01_dwi  20/sub-DW1_ses-DW1MR1_run-01_dwi
          dwi/run-02_dwi  21/21_DTI_30
    """,
    "BIDS_IDENTITY": """
        sub-CASE001/ses-CASE001MR1 CASE-001_MR1
          anat/run-01_T1w   2/2_T1_SPIN_ECHO
          anat/run-02_T1w   8/8_T1_SPIN_ECHO
          anat/run-03_T1w  10/10_T1_SPIN_ECHO
        sub-CASE001X90002/ses-visit12 visit 1+2
          anat/T1w  2/2_T1_SPIN_ECHO
        sub-CASE001X90002/ses-MR1 MR-1
          anat/T1w  2/2_T1_SPIN_ECHO
        sub-CASE001X90002/ses-MR1X90003 MR_1
          anat/T1w  2/2_T1_SPIN_ECHO
        sub-GUEST7/ses-GUEST7MR GUEST-7_MR
          anat/T1w  2/2_T1_SPIN_ECHO
    """,
    "BIDS_REPROIN": """
        sub-R1/ses-R1MR1 R1_MR1
          anat/acq-mprage_T1w         2/2_anat_T1w_acq_mprage
          func/task-rest_run-01_bold  3/3_func_bold_task_rest_run_ +
          func/task-rest_run-02_bold  4/4_func_bold_task_rest_run_ +
    """,
    "BIDS_HUNDRED": "".join(
        f"""
        sub-H{number:03}/ses-H{number:03}MR1 H{number:03}_MR1
          anat/T1w             2/sub-H{number:03}_ses-H{number:03}MR1_T1w
          func/task-rest_bold  3/sub-H{number:03}_ses-H{number:03}MR1_task-rest_bold +
        """
        for number in range(1, SUBJECTS + 1)
    ),
}


@dataclass
class ExpectedTree:
    """The files of one project, by their paths below its folder."""

    copies: dict[str, Entry] = field(default_factory=dict)  # files of the archive
    tables: set[str] = field(default_factory=set)  # generated, whatever the images are
    sidecars: set[str] = field(default_factory=set)  # generated for images
    sessions: dict[str, Experiment] = field(default_factory=dict)  # by folder

    @property
    def subjects(self) -> set[str]:
        return {folder.split("/")[0] for folder in self.sessions}


def expected_tree(archive: Archive, project: str) -> ExpectedTree:
    tree = ExpectedTree(tables=set(TOP))
    labels = {label: experiment for experiment, label in archive.experiments_in(project)}
    for line in filter(None, map(str.strip, TREES[project].splitlines())):
        shown, _, source = line.partition(" ")
        if shown.startswith("sub-"):
            folder, session = shown, labels[source]
            prefix = f"{folder}/{folder.replace('/', '_')}"
            subject = folder.partition("/")[0]
            tree.sessions[folder] = session
            tree.tables |= {f"{subject}/{subject}_sessions{ending}" for ending in (".tsv", ".json")}
            continue
        datatype, name = shown.split("/")
        scan, _, stem = source.removesuffix("+").strip().partition("/")
        tree.tables |= {f"{prefix}_scans{ending}" for ending in (".tsv", ".json")}
        if source.endswith("+"):
            tree.sidecars.add(f"{prefix}_{name}.json")
        for ending, entry in files_of(session, scan, stem):
            tree.copies[f"{folder}/{datatype}/{folder.replace('/', '_')}_{name}{ending}"] = entry
    return tree


def files_of(session: Experiment, scan: str, stem: str) -> Iterator[tuple[str, Entry]]:
    """Yield the files of an image with their endings, from whichever resource has them."""
    (found,) = [each for each in session.scans if each.id == scan]
    entries = {e.path: e for r in found.resources if r.label in ("NIFTI", "BIDS") for e in r.entries}
    assert f"{stem}.nii.gz" in entries, sorted(entries)
    for ending in (".nii.gz", ".json", ".bval", ".bvec"):
        if (entry := entries.get(f"{stem}{ending}")) is not None:
            yield ending, entry
