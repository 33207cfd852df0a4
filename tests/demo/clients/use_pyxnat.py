"""List every level down to one scan and download its files with pyxnat, in its own Python; print the results."""

import hashlib
import json
import os
import sys

from pyxnat import Interface

project, subject, session, scan, out = sys.argv[1:]
xnat = Interface(server=os.environ["XNAT_URL"], user=os.environ["XNAT_USER"], password=os.environ["XNAT_PASS"])
the_subject = xnat.select.project(project).subject(subject)
the_session = the_subject.experiment(session)
the_scan = the_session.scan(scan)
md5 = {}
for resource in the_scan.resources():
    for file in resource.files():
        with open(file.get(os.path.join(out, file.label())), "rb") as local:
            md5[file.label()] = hashlib.md5(local.read()).hexdigest()
found = {
    "whoami": xnat.get("/xapi/users/username").text,
    "projects": xnat.select.projects().get(),
    "subjects": [one.label() for one in xnat.select.project(project).subjects()],
    "sessions": [one.label() for one in the_subject.experiments()],
    "scans": [one.id() for one in the_session.scans()],
    "types": {one.id(): one.attrs.get("type") for one in the_session.scans()},
    "resources": [one.label() for one in the_scan.resources()],
    "files": [file.label() for resource in the_scan.resources() for file in resource.files()],
    "md5": md5,
}
print(json.dumps(found))
