"""Send a session's images in batches.

A run does not retry a request that the server may already have applied: the journal records that its batch was on its
way, and the next run queries what the server holds. The server identifies an object by its UIDs, so that an object that
is sent twice is stored once.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from xnatfs.common.errors import Conflict, Uncertain, XnatError
from xnatfs.common.tasks import in_parallel
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import PrearchiveSession
from xnatfs.transfer.copying import Progress
from xnatfs.transfer.uploads.dicom_files import Image
from xnatfs.transfer.uploads.import_service import ImportService, NotTaken, Overwrite, Target
from xnatfs.transfer.uploads.journal import DONE, NEW, SENT, Batch, Journal, Mode
from xnatfs.transfer.uploads.request_bodies import Part, Sending, as_file, as_tar, as_zip, with_length

# Batches in flight by default, as many as xnatctl on PyPI has.
PARALLEL_BATCHES = 4


class Upload:
    """An upload of the batches that its journal does not list as done.

    Args:
        xnat: Client of the server.
        images: All images of the upload, which the batches of the journal refer to.
        target: Destination.
        journal: Updated and written before and after each batch.
        progress: Receives the progress.
        note: Called with a line if the server accepts another form only.
    """

    def __init__(
        self,
        xnat: Xnat,
        images: Sequence[Image],
        target: Target,
        journal: Journal,
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self._xnat = xnat
        self._images = images
        self._target = target
        self._journal = journal
        self._progress = progress
        self._note = note
        self._form: Mode = "tar"
        self._service = ImportService(xnat, target)

    async def send(self, mode: Mode, overwrite: Overwrite, workers: int) -> int:
        """Send the batches, and return how many files they have.

        While nothing has arrived, the first batch is sent alone: it creates the session, shows whether the account may
        do so, and finds the form that the server accepts.

        Args:
            mode: Preferred form of the batches; one that the journal records is used instead, unless this is "gradual".
            overwrite: "delete" removes existing files with the first batch, if nothing has arrived yet.
            workers: Number of batches in flight.

        Raises:
            Denied, NotFound, Conflict: The server refuses the upload.
            Uncertain: The server may have stored a batch that it did not confirm.
            Unreachable, BadReply: The server gave no usable answer.
        """
        journal = self._journal
        todo = [batch for batch in journal.batches if batch.state != DONE]
        files = sum(batch.count for batch in todo)
        self._progress.begin(files, sum(image.size for batch in todo for image in self._images_of(batch)))
        self._form = mode if mode == "gradual" else journal.mode or mode
        journal.write()
        if todo and journal.count(DONE) == 0:
            await self._send_in_some_form(todo.pop(0), "delete" if overwrite == "delete" else "append")
        await in_parallel(todo, lambda batch: self._send_in_some_form(batch, "append"), workers)
        return files

    def _images_of(self, batch: Batch) -> Sequence[Image]:
        return self._images[batch.first : batch.first + batch.count]

    async def _send_in_some_form(self, batch: Batch, overwrite: Overwrite) -> None:
        """Send a batch in the form that the server accepts, which is found by trying."""
        left = None
        while True:
            if (
                self._form == "gradual"
                and overwrite == "delete"
                and any(each != 0 for each in self._journal.before.values())
            ):
                text = f"{self._target.session} is on {self._xnat.url} already"
                text += ", and files that are sent one by one only add to it"
                raise Conflict(f"{text}: delete it there first, or say --overwrite append")
            try:
                await self._send_recorded(batch, overwrite)
                break
            except NotTaken as error:
                if error.instead != self._form:  # else a parallel batch has reported it
                    self._note(str(error))
                self._form = self._journal.mode = error.instead
                left = error.left or left
        if left and left.key not in [place.key for place in map(PrearchiveSession.parse_uri, batch.uris) if place]:
            delete = shlex.join(["xnatctl", "prearchive", "delete", *left.key])
            self._note(f"What {self._xnat.url} has named {left.name} is left there ({delete})")

    async def _send_recorded(self, batch: Batch, overwrite: Overwrite) -> None:
        """Send a batch, with its state in the journal before and after."""
        batch.state, batch.uris = SENT, []
        self._journal.write()
        try:
            await self._send(batch, overwrite)
        except (XnatError, NotTaken) as error:
            if not batch.uris and not isinstance(error, Uncertain):  # refused as a whole: counts as not sent
                batch.state = NEW
            self._journal.write()
            raise
        batch.state = DONE
        self._journal.write()

    async def _send(self, batch: Batch, overwrite: Overwrite) -> None:
        """Send one batch, and record in it the URIs that the server reports, and the MD5 sums of its files."""
        # The names of the files may repeat, and may identify a patient.
        images = self._images_of(batch)
        parts = [Part(f"{batch.first + n:06d}.dcm", image.size, image.open) for n, image in enumerate(images)]
        batch.digests = []
        if self._form == "gradual":
            for part in parts:
                body = as_file(part, "application/dicom", self._progress)
                await self._record(batch, body, await self._service.send_file(body, part.name), part.name)
            return
        if self._form == "sized zip":
            body = await with_length(parts, self._progress)
        else:
            body = (as_tar if self._form == "tar" else as_zip)(parts, self._progress)
        what = f"a batch of {len(parts)} files"
        await self._record(batch, body, await self._service.send_packed(body, overwrite, what), what)

    async def _record(self, batch: Batch, body: Sending, uris: list[str], what: str) -> None:
        """Record what was sent and where the server has put it. Raises Denied if that is not the target's project."""
        for name in body.digests:
            self._progress.done(PurePosixPath(name))
        batch.uris = list(dict.fromkeys([*batch.uris, *uris]))
        batch.digests += body.digests.values()
        for uri in uris:
            await self._service.check_project(uri, what)
