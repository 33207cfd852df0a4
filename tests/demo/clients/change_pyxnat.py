"""Make items, upload files, and work the prearchive with pyxnat, in its own Python; print the results."""

import json
import os
import sys

import pyxnat

images, papers = sys.argv[1:]
server = pyxnat.Interface(os.environ["XNAT_URL"], user=os.environ["XNAT_USER"], password=os.environ["XNAT_PASS"])
subject = server.select.project("BRAINS").subject("NEW")
subject.create()
session = subject.experiment("NEW_MR")
session.create(experiments="xnat:mrSessionData")
scan = session.scan("1")
scan.create(scans="xnat:mrScanData")
scan.resource("PAPERS").file("a.txt").put(os.path.join(papers, "a.txt"))
scan.resource("ALL").put_dir(papers)
found = {
    "made": [subject.label(), session.label(), *session.scans().get()],
    "a.txt": scan.resource("PAPERS").files().get(),
    "all": sorted(scan.resource("ALL").files().get()),
}
prearchive = server.manage.prearchive
waiting = {triple[2]: triple for triple in prearchive.get()}
found["waiting"] = sorted(waiting)
kept = waiting["KEPT"]
found["status"] = prearchive.status(kept)
found["scans"] = prearchive.get_scans(kept)
found["resources"] = prearchive.get_resources(kept, "1")
found["files"] = len(prearchive.get_files(kept, "1", "DICOM"))
found["reset"] = prearchive.reset(kept).decode().strip()
prearchive.delete(prearchive.get_uri(waiting["GONE"]))
found["left"] = sorted(triple[2] for triple in prearchive.get())
session.delete()
found["deleted"] = not session.exists()
print(json.dumps(found))
