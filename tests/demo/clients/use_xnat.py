"""List every level down to one scan and download its files with xnatpy, in its own Python; print the results."""

import hashlib
import json
import os
import sys

import xnat

project, subject, session, scan, out = sys.argv[1:]
login = {"user": os.environ["XNAT_USER"], "password": os.environ["XNAT_PASS"]}
with xnat.connect(os.environ["XNAT_URL"], loglevel="ERROR", **login) as server:
    the_project = server.projects[project]
    the_subject = the_project.subjects[subject]
    the_session = the_subject.experiments[session]
    the_scan = the_session.scans[scan]
    found = {
        "whoami": server.logged_in_user,
        "projects": [one.id for one in server.projects.values()],
        "subjects": [one.label for one in the_project.subjects.values()],
        "sessions": [one.label for one in the_subject.experiments.values()],
        "scans": [one.id for one in the_session.scans.values()],
        "types": {one.id: one.type for one in the_session.scans.values()},
        "resources": [one.label for one in the_scan.resources.values()],
        "files": [file.id for resource in the_scan.resources.values() for file in resource.files.values()],
    }
    the_scan.download_dir(out, verbose=False)
md5 = {}
for directory, _, names in os.walk(out):
    for name in names:
        with open(os.path.join(directory, name), "rb") as local:
            md5[name] = hashlib.md5(local.read()).hexdigest()
print(json.dumps({**found, "md5": md5}))
