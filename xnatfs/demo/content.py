"""The made-up archive: what labs have, what servers do wrong, and every ugly name seen in the wild."""

import hashlib
import random

from xnatfs.demo import phantom
from xnatfs.demo.archive import Archive, Experiment, Project, Reconstruction, Resource, User
from xnatfs.demo.manifest import ManifestEntry, Shown, manifest

OUTSIDER = "demo-outsider"  # may see the project OPEN alone
# The demo's users and their passwords: they open nothing but made-up data on this machine.
PASSWORDS = {
    "demo-owner": "owner-of-the-demo",
    "demo-member": "member-of-the-demo",
    "demo-collaborator": "collaborator-of-the-demo",
    OUTSIDER: "outsider-of-the-demo",
    "demo-admin": "admin-of-the-demo",
}
BIG_PROJECT = "FIFTY"  # 50 sessions
LONG = "x" * 300  # longer than a Linux name can be


class DemoArchive(Archive):
    """The archive, and what of it each user must see when it is mounted; with `fixtures` also what tests need."""

    def __init__(self, seed: int = 0, *, empty: bool = False, fixtures: bool = True) -> None:
        super().__init__()
        self.shown = Shown()
        self._random = random.Random(seed)
        self._seed = seed
        for name, password in PASSWORDS.items():
            self.users[name] = User(name, password, admin=name == "demo-admin")
        if not empty:
            self._imaging()
            if fixtures:
                self._sharing()
            self._access()
        if fixtures and not empty:
            self._ugly_names()
            self._server_faults()
            self._many_sessions()

    def manifest(self, user: str) -> list[ManifestEntry]:
        return manifest(self, self.shown, user)

    def _project(self, id: str, name: str, access: str = "private") -> Project:
        roles = {"demo_owner": "Owners", "demo_member": "Members", "demo_collaborator": "Collaborators"}
        return self.project(id, name, access, **roles)

    # -- what labs have ----------------------------------------------------------------------------------------

    def _imaging(self) -> None:
        project = self._project("BRAINS", "A study of brains")
        self.file(self.resource(project.resources, "protocol"), "protocol.txt", b"Lie still.\n")
        for number in (1, 2):
            subject = self.subject(project, f"SUB00{number}")
            subject.last_modified = f"2024-02-0{number} 10:00:00.5"
            self.file(self.resource(subject.resources, "notes"), "handedness.txt", b"right\n")
            session = self.experiment(subject, f"SUB00{number}_MR1", last_modified=f"2024-03-0{number} 11:12:13.25")
            self._mr(session, f"BRAINS-{number}")
        self._quality_control(self.experiments["DEMO_E00001"])
        self.experiment(self.subjects["DEMO_S00001"], "SUB001_BLOOD", xsi_type="xnat:subjectVariablesData")
        self.subject(project, "EMPTY")  # no sessions
        pet = self.experiment(self.subjects["DEMO_S00002"], "SUB002_PET1", xsi_type="xnat:petSessionData")
        made = phantom.Series("pet", 1, "PET AC", "PT", 64, 64, 20, 4.0, 4.0, seed=self._seed)
        self._dicom(pet, "1", made, "SUB002", xsi_type="xnat:petScanData")
        made = phantom.Series("pet", 2, "CT low dose", "CT", 128, 128, 20, 2.0, 4.0, seed=self._seed)
        self._dicom(pet, "2", made, "SUB002", xsi_type="xnat:ctScanData")

    def _mr(self, session: Experiment, study: str) -> None:
        t1 = phantom.Series(study, 1, "T1 3D", slices=40, seed=self._seed)
        self._dicom(session, "1", t1, study, type="T1")
        again = phantom.Series(study, 2, "T1 3D", slices=24, seed=self._seed)
        self._dicom(session, "2", again, study, type="T1")  # two scans of one type
        for volume in range(3):
            moved = phantom.Series(
                study, 3, "BOLD rest", rows=64, columns=64, slices=20, spacing=3.0, shift=4.0 * volume,
                volume=volume + 1, seed=self._seed,
            )  # fmt: skip
            self._dicom(session, f"3-MR{volume + 1}" if volume else "3", moved, study, type="BOLD")
        scan = session.scans[0]
        nifti = self.resource(scan.resources, "NIFTI", "NIFTI")
        self.file(nifti, "t1.nii.gz", phantom.nifti(t1))
        self.file(nifti, "t1.json", phantom.sidecar(t1))
        self.file(self.resource(scan.resources, "SNAPSHOTS", "PNG"), "t1.png", phantom.snapshot(t1))
        self.scan(session, "4-MR2", "Localizer", quality="unusable")  # an empty scan
        logs = self.resource(session.resources, "logs")
        self.file(logs, "scanner.log", b"all quiet\n" * 100)
        self.file(logs, "empty.txt", b"")

    def _dicom(
        self, session: Experiment, id: str, series: phantom.Series, patient: str, type: str = "",
        xsi_type: str = "xnat:mrScanData",
    ) -> None:  # fmt: skip
        scan = self.scan(
            session, id, type or series.description, series_description=series.description, xsi_type=xsi_type
        )
        resource = self.resource(scan.resources, "DICOM", "DICOM", "RAW")
        for name, content in phantom.dicom_series(series, patient):
            self.file(resource, name, content)

    def _quality_control(self, session: Experiment) -> None:
        rating = self.assessor(session, "SUB001_MR1_QC")
        self.file(self.resource(rating.resources, "ratings"), "rating.json", b'{"motion": 2}\n')
        segmentation = self.assessor(session, "SUB001_MR1_SEG", "icr:roiCollectionData")
        self.file(self.resource(segmentation.out, "RTSTRUCT"), "ball.txt", b"a ball\n")
        self.file(self.resource(segmentation.inputs, "MASK"), "mask.txt", b"what it was made of\n")
        recon = Reconstruction("mean", "average")
        session.reconstructions.append(recon)
        self.file(self.resource(recon.out, "NIFTI"), "mean.txt", b"mean\n")
        big = self.resource(session.resources, "BIG", "NIFTI")
        self.file(big, "functional.nii", self._noise(12_000_000))

    def _noise(self, length: int) -> bytes:
        return self._random.randbytes(length)

    # -- sharing and access ------------------------------------------------------------------------------------

    def _sharing(self) -> None:
        project = self._project("POOL", "Data shared by other labs")
        subject, session = self.subjects["DEMO_S00001"], self.experiments["DEMO_E00001"]
        subject.shared[project.id] = "POOLED-1"
        session.shared[project.id] = "POOLED-1_MR"
        self.subjects["DEMO_S00002"].shared[project.id] = "POOLED-2"  # without its sessions
        local = self.experiment(subject, "POOLED-1_FOLLOWUP", project=project.id)
        self.file(self.resource(local.resources, "notes"), "note.txt", b"made here\n")

    def _access(self) -> None:
        open_project = self.project("OPEN", "Public data", "public")
        subject = self.subject(open_project, "P1")
        session = self.experiment(subject, "P1_MR")
        scan = self.scan(session, "1", "T1")
        self.file(self.resource(scan.resources, "DICOM"), "1.dcm", b"public " * 100)
        closed = self.project("CLOSED", "Known to exist", "protected", demo_admin="Owners")
        self.file(self.resource(closed.resources, "paper"), "abstract.txt", b"Everybody may read this.\n")
        self.experiment(self.subject(closed, "C1"), "C1_MR")
        secret = self.project("SECRET", "Nobody's business", "private", demo_admin="Owners")
        self.experiment(self.subject(secret, "X1"), "X1_MR")

    # -- names -------------------------------------------------------------------------------------------------

    def _ugly_names(self) -> None:
        project = self._project("UGLY", 'Names & "other" <traps>')
        labels = {
            "a subject with blanks": "a subject with blanks",
            "größe": "größe",
            "carriage\r": "carriage\r",
            "--option": "--option",
            "100% sure": "100% sure",
            "a%2Fb": "a%252Fb",
            "T1W/3D": "T1W%2F3D",
            ".": "%2E",
            "..": "%2E%2E",
            "back\\slash": "back\\slash",
            "AT&T <1>": "AT&T <1>",
            "S1.5^plus+": "S1.5^plus+",
            "quo'te\"s": "quo'te\"s",
        }
        for number, (label, shown) in enumerate(labels.items()):
            subject = self.subject(project, label, f"DEMO_UGLY_S{number:02}")
            self.shown.names[project.id, subject.id] = shown
        reserved = self.subject(project, "resources", "CENTRAL_S03907")
        self.shown.names[project.id, reserved.id] = "resources~CENTRAL_S03907"
        self.experiment(reserved, "scans", "BMIAXNAT_E203660")
        same = self.subject(project, "25A")
        session = self.experiment(same, "25A", "0123456789abcdef0123456789abcdef")
        clash = self.experiment(same, "resources", "UCL_TEST_XNAT_E00240")
        self.shown.names[project.id, clash.id] = "resources~UCL_TEST_XNAT_E00240"
        self._ugly_scans(session)
        self._ugly_resources(session)
        self._ugly_files(session)

    def _ugly_scans(self, session: Experiment) -> None:
        types = {
            "1": "*a^wk.ward/ scan\\type%?~@&",
            "0-MR1": "",
            "0-OT7": "WATER: HighRes_LAVA_3Nex_0.8x0.8x1mm",
            "fedcba9876543210fedcba9876543210": "CBF:Feb 16 2023 13-17-43 CST",
            "10": "SCAN 1: T2  SCAN 2: PD",
            "2": "T1W/3D/TFE",
            "1350": "cs_T1W_3D_TFE_32 channel",
            "4-MR2": "--ANONYMIZ_00000000_0000000.00_T1final--",
            "a b": "blank in the ID",
        }
        for id, type in types.items():
            scan = self.scan(session, id, type, series_description=type)
            self.file(self.resource(scan.resources, "DICOM", "DICOM"), f"{len(id)}.dcm", id.encode() * 40)

    def _ugly_resources(self, session: Experiment) -> None:
        scan = session.scans[0]
        twice = [self.resource(scan.resources, "MISC") for _ in range(3)]
        for number, resource in enumerate(twice):
            self.file(resource, "same.txt", f"number {number}\n".encode())
        for resource in twice[1:]:
            self.shown.names[resource.id] = f"MISC~{resource.id}"
        for _ in range(2):
            unlabelled = self.resource(scan.resources, "")
            self.file(unlabelled, "orphan.bin", b"no label\n")
            self.shown.names[unlabelled.id] = f"~{unlabelled.id}"
        self.file(self.resource(scan.resources, "123"), "digits.txt", b"a label of digits\n")
        self.file(self.resource(scan.resources, "secondary copy"), "blank.txt", b"a blank in the label\n")
        assessor = self.assessor(session, "25A_QC")
        trap = self.resource(assessor.out, "in")
        self.file(trap, "trap.txt", b"labelled like a folder\n")
        self.shown.names[trap.id] = f"in~{trap.id}"

    def _ugly_files(self, session: Experiment) -> None:
        resource = self.resource(session.resources, "files")
        plain = [
            "LCModelExam#4896-6.pdf",
            "scan with spaces.bin",
            "repeated_file_name.dcm_1",
            "what?.txt",
            "a+b c.txt",
            "a+b.txt",
            "größe/ü.txt",
            "-rf",
            "AT&T.txt",
            "a&amp;b.txt",
            "quo'te\"s.txt",
            "[brackets]{braces}|pipe^.txt",
            "LEVEL0.da3c96f78155.1/L5D3/L4D3/L3D4/L2D4/L1D3/L0F1",
            "100% sure.txt",
            "semi;colon.txt",
            "back\\slash.txt",
            "deep/" + "1.2.840.113654.2.45.2.108105." * 4 + "10-11-2zopnd.dcm",
            "new\nline.txt",
        ]  # fmt: skip
        for number, path in enumerate(plain):
            self.file(resource, path, f"{number} {path}\n".encode() * 3)
        changed = {
            "a%2Fb.txt": ("a%252Fb.txt",),
            "both": ("both~file",),
            f"{LONG}.nii.gz": (_cut(f"{LONG}.nii.gz", 243, ".gz"),),
        }
        for path, shown in changed.items():
            self.file(resource, path, f"{path[:10]}\n".encode())
            self.shown.files[resource.id, path] = shown
        self.file(resource, "both/below.txt", b"a file and a folder of one name\n")

    # -- what servers do wrong ---------------------------------------------------------------------------------

    def _server_faults(self) -> None:
        project = self._project("FAULTS", "What servers do wrong")
        subject = self.subject(project, "F1")
        session = self.experiment(subject, "F1_MR")
        scan = self.scan(session, "1", "T1")
        resource = self.resource(scan.resources, "DICOM", "DICOM")
        content = self._noise(5000)
        self.file(resource, "fine.dcm", content)
        self.file(resource, "stale-shorter.dcm", content + b"1", size="4000", digest="")
        self.file(resource, "stale-longer.dcm", content + b"2", size="9999", digest="")
        self.file(resource, "stale-with-digest.dcm", content + b"3", size="4000")
        self.file(resource, "no-digest.dcm", content + b"4", digest="")
        self.file(resource, "no-size.dcm", content + b"5", size="")
        self.file(resource, "no-size-2.dcm", content + b"6", size="", digest="")
        self.file(resource, "empty.dcm", b"")
        self._error(resource, "lost.dcm", None, "5000", hashlib.md5(b"lost").hexdigest())
        self._error(resource, "wrong-digest.dcm", content + b"7", "5001", "1" * 32)
        self.experiment(self.subject(project, "F2"), "F2_EMPTY")

    def _error(self, resource: Resource, path: str, content: bytes | None, size: str, digest: str) -> None:
        self.file(resource, path, content, size, digest)
        self.shown.errors[resource.id, path] = "EIO"

    def _many_sessions(self) -> None:
        project = self._project(BIG_PROJECT, "Many small sessions")
        for number in range(50):
            subject = self.subject(project, f"F{number:03}")
            session = self.experiment(subject, f"F{number:03}_MR")
            for scan_id in range(1, 3 + number % 2):
                scan = self.scan(session, str(scan_id), "T1")
                resource = self.resource(scan.resources, "DICOM", "DICOM")
                for file in range(4):
                    self.file(resource, f"{file}.dcm", f"{number} {scan_id} {file}\n".encode() * 50)


def _cut(name: str, keep: int, ending: str) -> str:
    """So many bytes of a name, '~', eight digits of its hash, its ending: 255 bytes."""
    return f"{name[:keep]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}{ending}"
