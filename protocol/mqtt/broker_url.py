"""Where a broker is and how to log in: `mqtt[s]://` or `ws[s]://[user[:password]@]host[:port][/path][?options]`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from protocol.errors import SettingError
from protocol.mqtt.certificates import CertificateFault, certificates_in, common_name

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
BROKER_VARIABLE = "BLACKFLEET_BROKER"
"""Environment variable with the broker's URL where no option names it. Others can't read it, unlike a command
line, which everyone on the machine sees in the list of processes."""

_OPTIONS = ("identity", "ca", "cert", "key", "insecure", "version")
_VERSIONS = ("3.1.1", "5")
_ENCODE = "what of @ / : ? # % [ ] is in a user name or password must be percent-encoded (# as %23, / as %2F)"


@dataclass(frozen=True, kw_only=True)
class BrokerUrl:
    """A parsed broker URL; `str()` gives it without the password."""

    scheme: str
    """mqtt, mqtts (TLS), ws (WebSocket) or wss."""
    host: str
    port: int
    path: str
    """Of the WebSocket endpoint."""
    username: str | None
    password: str | None = field(repr=False)
    ca: Path | None
    """PEM file of the authority that signed the broker's certificate; None = the system's authorities."""
    cert: Path | None
    """PEM file of this client's certificate (mutual TLS)."""
    key: Path | None
    """PEM file of its private key, if not in `cert`."""
    identity: Path | None
    """Folder that holds the three as ca.crt, NAME.crt and NAME.key, for a client of that name."""
    insecure: bool
    """Don't check the broker's certificate: for tests only."""
    version: str
    """MQTT protocol version: 3.1.1 or 5."""

    @property
    def tls(self) -> bool:
        return self.scheme in ("mqtts", "wss")

    @property
    def websocket(self) -> bool:
        return self.scheme in ("ws", "wss")

    @property
    def question(self) -> str:
        """What to look at where a broker takes the connection and no session comes of it."""
        speaks = {(False, False): "MQTT without TLS", (True, False): "TLS", (False, True): "WebSocket"}
        question = (
            f"does it speak {speaks.get((self.tls, self.websocket), 'WebSocket over TLS')} on that port"
        )
        return question + (
            ", and want no client certificate (?cert=FILE)" if self.tls and not self.cert else ""
        )

    def __str__(self) -> str:
        user = f"{self.username}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}{self.path if self.websocket else ''}"

    def without_login(self) -> str:
        """The URL without user and password, with its options; files are named from anywhere."""
        files = {"identity": self.identity, "ca": self.ca, "cert": self.cert, "key": self.key}
        options = {name: str(file.absolute()) for name, file in files.items() if file is not None}
        if self.insecure:
            options["insecure"] = "1"
        if self.version != _VERSIONS[0]:
            options["version"] = self.version
        url = str(replace(self, username=None))
        return f"{url}?{urlencode(options, safe='/')}" if options else url

    def as_client(self, name: str) -> BrokerUrl:
        """This URL with the certificate of `name`, a vehicle's id for instance, where a folder holds it.

        Raises:
            SettingError: the folder has none of that name.
        """
        folder = self.identity
        if folder is None:
            return self
        if not (folder / f"{name}.crt").exists():
            others = sorted(path.stem for path in folder.glob("*.crt") if path.name != "ca.crt")
            has = f"it has {', '.join(others[:8])}" if others else "it has none"
            raise SettingError(
                f"identity={folder} of the broker URL holds no certificate {name}.crt; {has} (blackfleet "
                "provision makes them)"
            )
        own = folder / f"{name}.crt"
        return replace(self, identity=None, ca=folder / "ca.crt", cert=own, key=own.with_suffix(".key"))

    def check_is_of(self, name: str) -> None:
        """See that a folder's certificate is the one of `name`; with another, nothing would be heard or said.

        Raises:
            SettingError: it is somebody else's; says of which fleet.
        """
        if self.identity is None:
            return
        path = self.as_client(name.partition(".")[2]).cert
        assert path is not None
        try:
            found = common_name(certificates_in(path)[0])
        except (CertificateFault, OSError) as error:
            raise SettingError(f"{path} of the broker URL can't be used: {error}") from error
        if found != name:
            fleet = found.partition(".")[0]
            raise SettingError(
                f"{path} is the certificate of {found}, and {name} is wanted; is the fleet {fleet!r}?"
            )

    def ssl_context(self) -> ssl.SSLContext:
        """What a TLS connection is checked against.

        Raises SettingError when a certificate or key file can't be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as exc:
            files = ", ".join(str(file) for file in (self.ca, self.cert, self.key) if file)
            raise SettingError(f"certificate files of the broker URL can't be used ({files}): {exc}") from exc
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def parse_broker_url(url: str) -> BrokerUrl:
    """Read `url`; options: `?identity=FOLDER` or `?ca=FILE&cert=FILE&key=FILE`, `insecure=1`, `version=5`.

    Raises SettingError with what is wrong and what is accepted.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:  # brackets that don't match, for instance; its text may hold the password
        raise SettingError(f"can't read the broker URL {_hide_password(url)!r}; {_ENCODE}") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise SettingError(
            f"broker URL must start with mqtt://, mqtts://, ws:// or wss://, got {_hide_password(url)!r}"
        )
    options = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(set(options) - set(_OPTIONS))
    in_query = bool(unknown) and "@" in parts.query
    if "@" in parts.path or parts.fragment or in_query:
        raise SettingError(f"can't read the broker URL {_hide_password(url)!r}; {_ENCODE}")
    try:
        port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not parts.hostname or not 0 < port < 65536:
        encode = f"; {_ENCODE}" if "@" in url else ""
        raise SettingError(
            f"broker URL needs a host and a port from 1 to 65535, got {_hide_password(url)!r}{encode}"
        )
    if unknown:
        raise SettingError(f"unknown broker URL option {unknown[0]!r}, known are {', '.join(_OPTIONS)}")
    version = options.get("version", ["3.1.1"])[-1]
    if version not in _VERSIONS:
        raise SettingError(f"broker URL option version must be 3.1.1 or 5, got {version!r}")

    def file_option(name: str) -> Path | None:
        return Path(options[name][-1]) if name in options else None

    broker = BrokerUrl(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port,
        path=parts.path or "/mqtt",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        ca=file_option("ca"),
        cert=file_option("cert"),
        key=file_option("key"),
        identity=file_option("identity"),
        insecure=options.get("insecure", ["0"])[-1] not in ("0", "false"),
        version=version,
    )
    files = broker.ca or broker.cert or broker.key
    if not broker.tls and (files or broker.identity or broker.insecure):
        raise SettingError(
            f"broker URL options identity, ca, cert, key and insecure need mqtts:// or wss://, got {broker}"
        )
    if broker.identity and files:
        raise SettingError("broker URL option identity stands for ca, cert and key; give it or them")
    return broker


def _hide_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"***@{after}" if at and before else url
