"""Log in with user and password, and explain a login that failed from the reply of the server."""

import re
from typing import Any

import httpx

from xnatfs.common.errors import LoginRequired, NotXnat
from xnatfs.http.replies import (
    FAULT_STATUSES,
    close,
    is_html,
    page_message,
    read_page,
    session_cookie,
    status_line,
    unavailable,
)
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import is_session_id

# The smallest resource of an XNAT, and open to every user.
PROBE_PATH = "/xapi/siteConfig/buildInfo"
# Reasons of a failed login other than a wrong password: a pattern in the server's page or its address, and the remedy.
# XNAT redirects to its own pages, or reports the same with 403.
LOGIN_OBSTACLES = (
    (
        r"XDATScreen_UpdateUser|/ChangePassword|password has expired|must change your password",
        "the password has expired: set a new one there with a browser, then 'xnatctl auth login'",
    ),
    (
        r"InactiveAccount|VerifyEmail|account is (?:disabled|not enabled|inactive)",
        "the account is disabled, or its e-mail address is not verified: a browser says more when you log in there, or "
        "ask the managers of the site",
    ),
    (
        r"security token has expired",
        "the alias token has ended: 'xnatctl auth login --token' makes another one",
    ),
    (
        r"two-? ?factor|multi-? ?factor|second factor|verification code|one-?time (?:pass|code)|authenticator app",
        "it asks for a second factor, which only a browser can give: log in with one, make an alias token there (your "
        "name, 'Manage Alias Tokens'), and give it as XNAT_USER and XNAT_PASS",
    ),
    (r"not yet been configured", "the site has not been set up yet: its managers do that with a browser"),
)


async def send_short(
    http: httpx.AsyncClient, method: str, path: str, *, token: str = "", auth: Any = None, form: Any = None
) -> tuple[httpx.Response, str]:
    """Send a request whose answer is short; return the closed reply and the beginning of its body.

    Args:
        http: The client.
        method: The HTTP method.
        path: The path, relative to the server's URL.
        token: The session to send it in, or ''.
        auth: HTTP authentication of httpx, or None.
        form: Fields to send as a form, or None.
    """
    headers = {"Cookie": f"JSESSIONID={token}"} if token else None
    request = http.build_request(method, path, headers=headers, data=form)
    response = await http.send(request, stream=True, auth=auth)
    try:
        return response, await read_page(response)
    finally:
        await close(response)


class LoginRequest:
    """Exchange the credentials of an account for sessions."""

    def __init__(self, http: httpx.AsyncClient, credentials: Credentials) -> None:
        self._http = http
        self._credentials = credentials
        self._has_form = False  # whether the login form was found to exist and to be needed

    async def send(self) -> tuple[httpx.Response, str]:
        """Log in; return the reply and the JSESSIONID. Raises LoginRequired, Unavailable, NotXnat."""
        response, text = await self._offer()
        credentials, url, status = self._credentials, self._http.base_url, response.status_code
        if status == 401 and credentials.source == "token":
            raise LoginRequired(
                f"{url} refused the alias token of {credentials.user}, which has probably ended: 'xnatctl auth login'"
            )
        if status == 401:
            provider = credentials.provider
            method = f", no login method {provider!r} (`provider` in the profile)" if provider else ""
            raise LoginRequired(
                f"{url} refused the login of {credentials.user}: wrong user or password, a locked account{method}, "
                "or too many sessions open (the server does not state which)"
            )
        if status == 200 and not is_html(response) and is_session_id(token := text.strip().partition(";")[0]):
            # A login changes the session's ID; if the body has the former one, the newest cookie counts.
            return response, session_cookie(response) or token
        raise await self._explain(response, text)

    async def _explain(self, response: httpx.Response, text: str) -> Exception:
        """Return the error for any answer but a session or a 401."""
        credentials, url, status = self._credentials, self._http.base_url, response.status_code
        if status in FAULT_STATUSES:
            return try_later(response)
        message = page_message(text) or status_line(response)
        if status == 400 and (provider := credentials.provider):
            refused = f"{url} takes no login by {provider!r}, which is `provider` in the profile ({message})"
            return LoginRequired(refused)
        why = _obstacle(response, text)
        if why or await is_xnat(self._http, *await send_short(self._http, "GET", PROBE_PATH)):
            message = f"{status_line(response)} to {target_of(response)}" if response.is_redirect else message
            why = why or "log in with a browser once; the password may have expired"
            return LoginRequired(f"{url} answered the login of {credentials.user} with a page ({message}): {why}")
        if response.is_redirect:
            return redirect_error(str(url), response)
        return NotXnat(f"{url} is not an XNAT: it answers {status} to /data/JSESSION (is the path right?)")

    async def _offer(self) -> tuple[httpx.Response, str]:
        """Send user and password. Basic cannot name a login method, and some releases take no ':' in its password."""
        credentials = self._credentials
        if provider := credentials.provider:
            # By ID, for releases that support it; others use `provider`. An unknown provider is no failed login.
            response, text = await self._fill_in({"provider": provider, "authenticatorId": provider})
            if response.status_code == 400:
                response, text = await self._fill_in({"provider": provider})
            return response, text
        if self._has_form:
            return await self._fill_in({})
        basic = httpx.BasicAuth(credentials.username, credentials.password)
        response, text = await send_short(self._http, "POST", "/data/JSESSION", auth=basic)
        if response.status_code == 405:  # XNAT accepts both methods; a proxy in front of it may not
            response, text = await send_short(self._http, "GET", "/data/JSESSION", auth=basic)
        if response.status_code == 401 and ":" in credentials.password:
            formed = await self._fill_in({})
            # From then on only by the form: each refusal counts towards locking the account.
            self._has_form = formed[0].status_code not in (404, 405)
            return formed if self._has_form else (response, text)
        return response, text

    async def _fill_in(self, more: dict[str, str]) -> tuple[httpx.Response, str]:
        """Log in by the form, which answers with the session's ID as /data/JSESSION does."""
        form = {"username": self._credentials.username, "password": self._credentials.password, **more}
        response, text = await send_short(self._http, "POST", "/data/services/auth", form=form)
        if response.status_code == 500 and "bad credentials" in text.lower():  # releases before 1.7
            response.status_code = 401
        if response.status_code == 200 and not text.strip():  # also before 1.7: the session is only in the cookie
            text = session_cookie(response)
        return response, text


async def is_xnat(http: httpx.AsyncClient, response: httpx.Response, text: str) -> bool:
    """Return whether a server is an XNAT, by its answer to PROBE_PATH, or else by another one."""
    if response.status_code == 404:  # a server from before /xapi: its REST engine names itself in each answer
        response, _ = await send_short(http, "GET", "/data/auth")
        return "restlet" in response.headers.get("server", "").lower()
    return response.status_code == 200 and not is_html(response) and "version" in text


def target_of(response: httpx.Response) -> str:
    """Return where a redirect leads, without query and fragment, which may be secret."""
    return re.split("[?#]", response.headers.get("location", ""))[0] or "another address"


def redirect_error(url: str, response: httpx.Response) -> NotXnat:
    return NotXnat(f"{url} redirects to {target_of(response)}: use that address if it is your XNAT")


def try_later(response: httpx.Response) -> Exception:
    return unavailable(response, f"{response.url} answers {status_line(response)}: try again later")


def _obstacle(response: httpx.Response, text: str) -> str:
    """Return the reason of a failed login other than a wrong password, and the remedy; '' if no reason is found."""
    where = response.headers.get("location", "")
    return next((why for said, why in LOGIN_OBSTACLES if re.search(said, f"{where}\n{text}", re.IGNORECASE)), "")
