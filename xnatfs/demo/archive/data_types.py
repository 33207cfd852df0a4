"""Define the data types of the site, and how DICOM modalities map to them."""

MODALITIES = {
    "MR": "mr", "CT": "ct", "PT": "pet", "US": "us", "CR": "cr", "DX": "dx", "MG": "mg", "NM": "nm", "XA": "xa",
    "SC": "sc", "OP": "opt", "OPT": "opt", "EEG": "eeg", "RTSTRUCT": "rt", "RTPLAN": "rt", "RTDOSE": "rt",
    "RTIMAGE": "rt",
}  # fmt: skip
STEMS = sorted({*MODALITIES.values(), "meg", "otherDicom"})
OTHERS = (
    "xnat:petmrSessionData", "xnat:qcManualAssessorData", "xnat:qcAssessmentData", "icr:roiCollectionData",
    "xnat:subjectVariablesData",
)  # fmt: skip
EXPERIMENTS = {name.lower(): name for name in (*(f"xnat:{stem}SessionData" for stem in STEMS), *OTHERS)}
SCANS = {name.lower(): name for name in (f"xnat:{stem}ScanData" for stem in STEMS)}


def scan_type(modality: str) -> str:
    return f"xnat:{MODALITIES.get(modality, 'otherDicom')}ScanData"


def session_type(modalities: set[str]) -> str:
    """Return the data type of a session. PET takes precedence over the CT or MR acquired with it."""
    if {"PT", "MR"} <= modalities:
        return "xnat:petmrSessionData"
    known = [stem for modality, stem in MODALITIES.items() if modality in modalities and stem not in ("sc", "rt")]
    stem = "pet" if "PT" in modalities else (known or [MODALITIES.get(m, "otherDicom") for m in sorted(modalities)])[0]
    return f"xnat:{stem}SessionData"
