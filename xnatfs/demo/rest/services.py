"""Answer for sessions, tokens and users under /data, and for /xapi (XNAT REST contract 2 and 13.2)."""

import json
import string
from urllib.parse import parse_qsl

from xnatfs.demo.archive.rights import need_admin
from xnatfs.demo.rest.tables import Query, table, true
from xnatfs.demo.server.accounts import GUEST, Refused, Session, Sessions, Token
from xnatfs.demo.server.reply import Failed, Reply, text
from xnatfs.demo.server.site import DemoSite

BUILD = {"buildNumber": "demo", "buildDate": "2024-01-02", "isDirty": "false"}


class Services:
    """Answer requests about logins, accounts and the site."""

    def __init__(self, site: DemoSite, sessions: Sessions) -> None:
        self.site = site
        self.archive = site.archive
        self.sessions = sessions
        files = site.schemas.iterdir() if site.schemas else ()  # each is named after the schema it holds
        self.schemas = {path.stem: path for path in files if path.suffix in (".xml", ".xsd")}

    # -- /data -------------------------------------------------------------------------------------------------

    def data(self, path: str, method: str, query: Query, body: bytes, session: Session) -> Reply | None:
        """Return the reply of a service, or None if the path is not one. Only items have the alias /data/archive."""
        match path.rstrip("/").split("/"):
            case ["JSESSION"]:
                return self._jsession(method, query, session)
            case ["services", "auth"]:
                if method not in ("PUT", "POST"):
                    raise Failed(405, "Method Not Allowed")
                return self._form_login(body, session)
            case ["auth"]:
                return text(f"User '{session.user}' is logged in" + ("." if self.site.release.ends_sentences else ""))
            case ["version"] if self.site.release.states_version:
                return text("Unknown version")
            case ["services", "tokens", *rest]:
                return self._tokens(rest, session)
            case ["user"]:
                need_admin(self.archive, session.user)
                return as_json(sorted(self.archive.users))
            case ["users"]:
                return self._users(query)
            case ["user", name, "sessions"]:
                if name != session.user:
                    need_admin(self.archive, session.user)
                return text(str(self.sessions.alive(name)))
        return None

    def _users(self, query: Query) -> Reply:
        rows = [
            {"xdat_user_id": str(id), "login": name, "firstname": "Demo", "lastname": "User", "email": _email(name)}
            for id, name in enumerate(self.archive.users, 1)
        ]
        return table(rows, query, title="Projects", ordered=True)  # the server gives the list this title

    def _jsession(self, method: str, query: Query, session: Session) -> Reply:
        if method == "DELETE":
            self.sessions.end(session.id)
            return text("")
        return text(session.id + (f"; XNAT_CSRF={session.csrf}" if true(query, "CSRF") else ""))

    def _form_login(self, body: bytes, session: Session) -> Reply:
        form = dict(parse_qsl(body.decode("utf-8", "replace")))
        wanted, method = form.get("authenticatorId", ""), form.get("provider", "")
        if wanted and self.site.release.authenticator_ids:
            if wanted not in self.sessions.methods():
                why = f"Authentication failed: No authentication provider identified by id {wanted} found."
                raise Failed(400, why)
            method = wanted
        try:
            user = self.sessions.check(form.get("username", ""), form.get("password", ""), method)
            made = self.sessions.log_in(user, session)
        except Refused:
            if not self.site.release.form_login:
                raise Failed(500, "Bad credentials") from None
            raise Failed(401, "Authentication failed.") from None
        reply = text(made.id if self.site.release.form_login else "")
        reply.cookies.append(f"JSESSIONID={made.id}; Path={self.site.context_path or '/'}; HttpOnly")
        return reply

    def _tokens(self, parts: list[str], session: Session) -> Reply:
        if self.site.release.short_tokens:
            return self._short_tokens(parts, session)
        if session.user == GUEST:
            raise Failed(403, "Forbidden")
        match parts:
            case ["issue"]:
                return as_json(self.sessions.issue_token(session.user).shown())
            case ["issue", "user", user]:
                need_admin(self.archive, session.user)
                if user not in self.archive.users:
                    raise Failed(404, "")
                return as_json(self.sessions.issue_token(user).shown())
            case ["show"]:
                return as_json([t.shown() for t in self.sessions.tokens.values() if t.user == session.user])
            case ["show", alias]:
                return as_json(self._token(alias, session).shown())
            case ["validate", alias, secret]:
                token = self._token(alias, session)
                return as_json({"valid": token.user} if self.sessions.good(token, secret) else {})
            case ["invalidate", alias]:
                self.sessions.tokens.pop(self._token(alias, session).alias, None)
                return as_json({"result": "OK"})
        raise Failed(404, "")

    def _short_tokens(self, parts: list[str], session: Session) -> Reply:
        """Answer as releases do in which tokens do not expire: guests get tokens, too, and none becomes invalid."""
        match parts:
            case ["issue"]:
                token = self.sessions.issue_token(session.user, string.digits, 13)
                return text(json.dumps({"alias": token.alias, "secret": token.secret}, separators=(",", ":")))
            case ["invalidate", alias] if alias in self.sessions.tokens:
                return text(json.dumps({"result": "OK"}))
            case ["invalidate", _]:
                raise Failed(403, "Invalid token")
            case ["validate", *_]:
                raise Failed(401, "You must specify both token and secret to validate a token.")
        raise Failed(400, f"Unknown operation: {'/'.join(parts)}")

    def _token(self, alias: str, session: Session) -> Token:
        token = self.sessions.tokens.get(alias)
        if token is None:
            raise Failed(404, "")
        if token.user != session.user:
            need_admin(self.archive, session.user)
        return token

    # -- /xapi -------------------------------------------------------------------------------------------------

    def xapi(self, path: str, method: str, session: Session) -> Reply:
        if self.site.release.xapi_slash:
            path = path.removesuffix("/")
        parts = path.split("/")
        build = {"version": self.site.release.version, **BUILD}
        if path == "siteConfig/buildInfo":
            return as_json(build)
        if session.user == GUEST:  # on an open site, too
            return Reply(401, b"")
        match parts:
            case ["siteConfig", "buildInfo", "version"]:
                return text(build["version"])
            case ["siteConfig", "uptime"]:
                return as_json({"Sec": "1"})
            case ["schemas"]:
                return as_json(sorted(self.schemas))
            case ["schemas", name] if name in self.schemas:
                return Reply(200, self.schemas[name].read_bytes(), "application/xml;charset=UTF-8")
            case ["users", "username"]:
                return text(session.user)
            case ["users", "current"]:  # all users that are logged in, not the requesting one
                return as_json(sorted({name for name in self.archive.users if self.sessions.alive(name)}))
            case ["users", "active", name]:
                return self._end_all(name, method, session)
            case ["users", "profile"]:
                return self._profile(session.user, session)
            case ["users", name]:
                return self._profile(name, session)
        return Reply(404, b"")

    def _end_all(self, name: str, method: str, session: Session) -> Reply:
        if method != "DELETE":
            return Reply(405, b"")
        if name != session.user and not self.archive.is_admin(session.user):
            return Reply(403, b"")
        return as_json(self.sessions.end_all(name))

    def _profile(self, name: str, session: Session) -> Reply:
        if name != session.user and not self.archive.is_admin(session.user):
            return Reply(403, b"")
        if name not in self.archive.users:
            return Reply(404, b"")
        fields = {"username": name, "firstName": "Demo", "lastName": "User", "email": _email(name)}
        return as_json({**fields, "enabled": True, "verified": True, "secured": False, "lastModified": 1704164645000})


def _email(name: str) -> str:
    return f"{name}@example.org"


def as_json(value: object) -> Reply:
    return Reply(200, json.dumps(value).encode(), "application/json;charset=UTF-8")
