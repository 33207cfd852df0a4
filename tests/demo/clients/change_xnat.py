"""Send images, work the prearchive, and upload files with xnatpy, in its own Python; print the results."""

import json
import os
import sys

import xnat

images, papers = sys.argv[1:]
login = {"user": os.environ["XNAT_USER"], "password": os.environ["XNAT_PASS"]}
place = {"project": "BRAINS", "subject": "SUB001"}
waiting = "/prearchive/projects/BRAINS"
with xnat.connect(os.environ["XNAT_URL"], loglevel="ERROR", **login) as server:
    for label in ("KEPT", "GONE", "MOVED"):
        server.services.import_(images, destination=waiting, experiment=label, content_type="application/zip", **place)
    found = {"received": sorted(one.label for one in server.prearchive.sessions(allow_receiving=True))}

    def session(label):
        server.prearchive.clearcache()
        (one,) = server.prearchive.find(session=label)
        return one

    for label in ("KEPT", "MOVED"):
        session(label).rebuild()
    session("GONE").delete()
    session("MOVED").move("POOL")
    found["left"] = sorted((one.project, one.label, one.status) for one in server.prearchive.find())
    found["scans"] = [scan.id for scan in session("KEPT").scans]
    found["files"] = sorted(file.name for scan in session("KEPT").scans for file in scan.files)
    archived = session("KEPT").archive(overwrite="none")
    found["archived"] = [archived.label, archived.uri]
    resource = server.classes.ResourceCatalog(parent=archived, label="PAPERS")
    resource.upload_dir(papers, method="tar_memory")
    resource.upload(os.path.join(papers, "a.txt"), "b.txt")
    server.clearcache()
    kept = server.projects["BRAINS"].experiments["KEPT"]
    found["papers"] = sorted(file.path for file in kept.resources["PAPERS"].files.values())
print(json.dumps(found))
