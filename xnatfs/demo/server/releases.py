"""Describe the differences between the releases of XNAT (XNAT REST contract 20).

Each difference is one field, named after the behaviour of the server. Code tests the field, never the name of a
release. The defaults are those of 1.8.
"""

import re
from dataclasses import dataclass
from typing import Literal

# The container below XNAT refuses these anywhere in a path: encoded slashes, backslashes, raw brackets.
_CONTAINER = r"%2f|\\|%5c|[\[\]{}|^\"<>]|%00"
# The firewall in front of XNAT refuses these as well, from Spring Security 4.2 on.
_FIREWALL = rf";|%3b|%25|%2e|//|/\.\.?(?:/|$)|{_CONTAINER}"


@dataclass(frozen=True)
class Release:
    """One release of XNAT, as far as its REST API differs from the others."""

    name: str
    version: str = "1.8.11"  # as /xapi/siteConfig/buildInfo states it
    server: str = "Noelios-Restlet-Engine/1.1.10"  # the Server header
    container: str = "Apache Tomcat/9.0.65"  # as its own error pages name it, in their <h3>

    # -- requests and sessions -----------------------------------------------------------------------------------
    refuses: re.Pattern[str] = re.compile(_FIREWALL, re.IGNORECASE)  # paths that are answered 400
    finds_odd_paths: bool = True  # of those that are not refused; without the firewall, '//' and '/../' get 404
    frame_headers: bool = True  # X-Frame-Options and Content-Security-Policy
    has_xapi: bool = True  # else /xapi is a page of the container: 404
    xapi_slash: bool = True  # a slash at the end of an /xapi path is ignored; Spring 6 answers 404
    sends_browsers_to_login: bool = True  # 302 to Login.vm; else an empty 401
    session_is_open: bool = True  # /data/JSESSION without a login opens a guest's session on a closed site; else 401
    login_page: bool = False  # a request without a login gets XNAT's own status page, not the container's
    realm: str = "XNAT Demo"  # of the login: the ID of the site
    refused: str = "Your login attempt failed because the username and password combination you provided was invalid."
    form_login: bool = True  # /data/services/auth answers the session's ID; else nothing, and 500 to a wrong password
    authenticator_ids: bool = True  # the form takes `authenticatorId`, and answers 400 to an unknown one
    basic_colon: bool = True  # Basic may hold a password with ':'; releases that check its form first answer 401
    expired_password: Literal["redirects", "refuses"] = "redirects"  # to the page to change it; 403 before the login
    form_type_needed: bool = False  # a form in a body counts only under its Content-Type
    ends_sentences: bool = False  # "User 'x' is logged in." with a full stop
    expiration_path: str = ""  # of the cookie SESSION_EXPIRATION_TIME; '' for that of the application
    short_tokens: bool = False  # alias and secret alone, as text; tokens are not listed, validated or invalidated
    states_version: bool = False  # /data/version exists, and answers "Unknown version"
    empty_is_204: bool = False  # success without a body

    # -- lists and documents -------------------------------------------------------------------------------------
    text_charset: str = "ISO-8859-1"
    list_charset: str = ""  # of JSON, XML and CSV; '' where it is not stated (they are UTF-8 all the same)
    escapes_letters: bool = True  # of free text: non-ASCII letters are stored as character references, as `&#252;`
    quotes_csv: bool = True
    pages: bool = True  # `limit` and `offset` have an effect
    shuffles: bool = False  # the order of a list changes from one request to the next
    document_type: str = "text/html"  # of a document if the request names no format
    substitutes_shares: bool = True  # a shared session has the project and subject label of the project that is listed
    typed_site_key: bool = True  # the list of all experiments has the column xnat:experimentdata/id, too
    shares_in_site_list: bool = True  # the list of all experiments has those that only a share lets the account read
    protected_subjects_403: bool = True  # subjects of a protected project, to others: 403; else an empty list
    falls_to_project: bool = True  # resources of an unknown session below a project are those of the project; else 404

    # -- files ---------------------------------------------------------------------------------------------------
    lists_digests: bool = True  # the column is there
    lists_catalogs: bool = False  # files called *_catalog.xml are listed as others are
    missing_lists_empty: bool = False  # an unknown session, scan or resource number has no files: 200; else 404 or 500
    names_files: bool = True  # Content-Disposition of a single file
    tar_name: int = 0  # longest name in a tar, in characters: a longer one ends the tar; 0 for any, as in POSIX
    tar_bytes: bool = False  # a tar has the lowest byte of each character of a name; else '?' for non-ASCII ones
    decodes_blanks_only: bool = True  # a path with %20 or %2B is not compared as it was sent
    archive_parts: bool = True  # a resource addressed by number is named with its scan in an archive

    # -- the import service --------------------------------------------------------------------------------------
    tar_imports: bool = True  # DICOM-zip accepts a tar; else it answers 200 without a body, and stores nothing
    zip_labels: bool = True  # DICOM-zip honours project, subject and session; else the project of `dest` alone
    chunked_zips: bool = True  # a zip needs no Content-Length, here and as a file
    import_without_length: int = 500  # the status for a raw body without Content-Length
    unknown_project: int = 404  # the status of SI into an unknown project
    direct_archive: bool = True  # Direct-Archive is supported
    commits_imports: bool = False  # the session is built after each DICOM-zip with `dest`
    tar_charset: str = "utf-8"  # of names in a tar that is extracted

    # -- the prearchive and its services -------------------------------------------------------------------------
    open_prearchive: bool = False  # all users get a project's list, which is empty for an unknown project
    form_src: bool = True  # `src` may be in the form alone
    src_adds_up: bool = False  # `src` in the query and in the form are two sessions
    archive_without_src: int = 404
    archive_dest: Literal["ignored", "fails"] = "fails"
    archive_conflict: int = 500


XNAT_1_6 = Release(
    "1.6",
    version="1.6.4",
    server="Noelios-Restlet-Engine/1.1.6",
    container="Apache Tomcat/9.0.70 (Debian)",
    refuses=re.compile(_CONTAINER, re.IGNORECASE),
    finds_odd_paths=False,
    frame_headers=False,
    has_xapi=False,
    sends_browsers_to_login=False,
    session_is_open=False,
    login_page=True,
    realm="XNAT Protected Area",
    refused="Login attempt failed. Please try again.",
    form_login=False,
    authenticator_ids=False,
    ends_sentences=True,
    expiration_path="/",
    short_tokens=True,
    states_version=True,
    quotes_csv=False,
    pages=False,
    document_type="text/xml",
    substitutes_shares=False,
    typed_site_key=False,
    shares_in_site_list=False,
    protected_subjects_403=False,
    falls_to_project=False,
    lists_digests=False,
    lists_catalogs=True,
    missing_lists_empty=True,
    names_files=False,
    tar_name=100,
    tar_bytes=True,
    decodes_blanks_only=False,
    archive_parts=False,
    tar_imports=False,
    zip_labels=False,
    chunked_zips=False,
    import_without_length=400,
    unknown_project=500,
    direct_archive=False,
    tar_charset="latin-1",
    open_prearchive=True,
    archive_without_src=500,
    archive_dest="ignored",
    archive_conflict=409,
)
XNAT_1_8 = Release("1.8")
XNAT_1_11 = Release(
    "1.11",
    version="1.11.0",
    server="Restlet-Framework/2.6",
    container="Apache Tomcat/10.1.34",
    xapi_slash=False,
    form_type_needed=True,
    empty_is_204=True,
    text_charset="UTF-8",
    list_charset="UTF-8",
    escapes_letters=False,
    shuffles=True,
    commits_imports=True,
    form_src=False,
    src_adds_up=True,
)

RELEASES = {release.name: release for release in (XNAT_1_6, XNAT_1_8, XNAT_1_11)}
