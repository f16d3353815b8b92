"""Mail servers as Debian has them, each on a copy of this machine's files that is gone with its process.

The packages lie over the root folder in an overlay, where users, configuration, spool and mailboxes are made, so that
nothing of this machine is changed, and servers that exclude each other as packages can be tried on one machine.
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

USER, PASSWORD = "user@people.example", "se=cr et+%word"
RECIPIENTS_MAX: Final = 5
CONNECTIONS_MAX: Final = 4
MESSAGES_MAX: Final = 7
"""Messages that Exim and OpenSMTPD take on a connection."""
RATE: Final = 20
"""Messages that Postfix and Exim take in a second."""
INBOX: Final = "var/people"
_USERS: Final = ("Debian-exim", "opensmtpd", "opensmtpq", "people")
_UID: Final = 64_200
_DEVICES: Final = {"null": "3", "zero": "5", "random": "8", "urandom": "9"}
_IN_FOLDER: Final = ("lib", "bin", "sbin", "lib64")
"""What are links to /usr on this machine."""


@dataclass
class Root:
    """A copy of this machine's root folder, with packages unpacked onto it."""

    folder: Path
    certificates: Path

    def make(self, packages: Sequence[Path]) -> None:
        """Unpack the packages, and mount everything. The process has a mount namespace of its own."""
        parts = {name: self.folder / name for name in ("packages", "changes", "work", "root")}
        for part in parts.values():
            part.mkdir(parents=True)
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, parts["packages"]], check=True)
        for name in _IN_FOLDER:
            if (unpacked := parts["packages"] / name).is_dir() and Path("/", name).is_symlink():
                shutil.copytree(unpacked, parts["packages"] / "usr" / name, dirs_exist_ok=True, symlinks=True)
                shutil.rmtree(unpacked)
        options = f"lowerdir={parts['packages']}:/,upperdir={parts['changes']},workdir={parts['work']}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, parts["root"]], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.path("dev")], check=True)
        for name, number in _DEVICES.items():
            subprocess.run(["mknod", "-m", "666", self.path(f"dev/{name}"), "c", "1", number], check=True)
        with self.path("etc/passwd").open("a") as passwd, self.path("etc/group").open("a") as group:
            for number, user in enumerate(_USERS, _UID):
                passwd.write(f"{user}:x:{number}:{number}::/var/empty:/usr/sbin/nologin\n")
                group.write(f"{user}:x:{number}:\n")
        inbox = self.path(INBOX)
        inbox.mkdir(parents=True)
        shutil.chown(inbox, *self.identity("people"))
        for name in ("server.pem", "server.key"):
            shutil.copy(self.certificates / name, self.path(f"etc/{name}"))

    def path(self, name: str) -> Path:
        """Give where a file of the server is on this machine."""
        return self.folder / "root" / name

    def identity(self, user: str) -> tuple[int, int]:
        """Give the numbers of a user and its group."""
        return _UID + _USERS.index(user), _UID + _USERS.index(user)

    def write(self, name: str, text: str, *, mode: int = 0o644, user: str | None = None) -> None:
        """Write a file of the server."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
        if user is not None:
            shutil.chown(path, *self.identity(user))

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command there, and give what it says."""
        done = subprocess.run(["chroot", self.path(""), *command], input=text, text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        if done.returncode:
            msg = f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
            raise RuntimeError(msg)
        return done.stdout

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a server there, with its output in `server.log`."""
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(["chroot", self.path(""), *command], stdout=log, stderr=log, start_new_session=True)

    def wait_for(self, name: str) -> None:
        """Wait until a file is there."""
        until = time.monotonic() + 20
        while not self.path(name).exists() and time.monotonic() < until:
            time.sleep(0.05)


def start_postfix(root: Root, port: int) -> "subprocess.Popen[bytes]":
    """Start Postfix, with Cyrus SASL and a recipient, a connection and a rate limit."""
    uid, gid = root.identity("people")
    root.write(
        "etc/postfix/main.cf",
        f"""
compatibility_level = 3.6
maillog_file = /var/log/postfix.log
myhostname = postfix.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks =
virtual_mailbox_domains = people.example
virtual_mailbox_base = /{INBOX}
virtual_mailbox_maps = static:inbox/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
smtpd_tls_cert_file = /etc/server.pem
smtpd_tls_key_file = /etc/server.key
smtpd_tls_security_level = encrypt
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = /etc/postfix/sasl
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_limit = {RECIPIENTS_MAX}
smtpd_client_connection_count_limit = {CONNECTIONS_MAX}
smtpd_client_message_rate_limit = {RATE}
smtpd_client_event_limit_exceptions =
anvil_rate_time_unit = 1s
""",
    )
    root.write(
        "etc/postfix/sasl/smtpd.conf",
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: /etc/sasldb2\nmech_list: PLAIN LOGIN CRAM-MD5\n",
    )
    services = root.path("etc/postfix/master.cf").read_text().splitlines()
    its_own = [line for line in services if not line.startswith("smtp ") or "inet" not in line]
    its_own = [" ".join([*line.split()[:4], "n", *line.split()[5:]]) if line[:1].isalpha() else line
               for line in its_own]  # fmt: skip
    root.write("etc/postfix/master.cf", "\n".join([f"127.0.0.1:{port} inet n - n - - smtpd", *its_own, ""]))
    root.run("saslpasswd2", "-p", "-c", "-f", "/etc/sasldb2", "-u", "people.example", "user", text=PASSWORD)
    shutil.chown(root.path("etc/sasldb2"), "postfix", "postfix")
    return root.start("postfix", "start-fg")


def start_exim(root: Root, port: int) -> "subprocess.Popen[bytes]":
    """Start Exim, with its own logins, a recipient and a connection limit, messages a connection, and a rate limit."""
    password = PASSWORD.replace("%", "%%").replace("%%", "%")
    root.write(
        "etc/exim4/exim4.conf",
        f"""
primary_hostname = exim.example
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
log_file_path = /var/log/exim4/%slog
domainlist ours = people.example
tls_advertise_hosts = *
tls_certificate = /etc/server.pem
tls_privatekey = /etc/exim.key
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
recipients_max = {RECIPIENTS_MAX}
smtp_accept_max_per_host = {CONNECTIONS_MAX}
smtp_accept_max_per_connection = {MESSAGES_MAX}
smtp_accept_queue_per_connection = 0
smtp_accept_max = 100
acl_smtp_mail = too_fast
acl_smtp_rcpt = logged_in
acl_smtp_data = accept
never_users =
begin acl
too_fast:
  defer message = you send too fast
        ratelimit = {RATE} / 1s / strict / per_cmd
  accept
logged_in:
  require encrypted = *
  accept authenticated = *
         domains = +ours
  deny message = log in
begin routers
people:
  driver = accept
  domains = +ours
  transport = files
begin transports
files:
  driver = appendfile
  maildir_format
  directory = /{INBOX}/inbox
  create_directory
  user = people
  group = people
  envelope_to_add
  return_path_add
begin retry
* * F,1h,1m
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{USER}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = <| Username: | Password:
  server_condition = ${{if and{{{{eq{{$auth1}}{{{USER}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{{USER}}}{{{password}}}fail}}
  server_set_id = $auth1
""",
        user=None,
    )
    root.write("etc/exim.key", root.path("etc/server.key").read_text(), mode=0o600, user="Debian-exim")
    for name in ("var/log/exim4", "var/spool/exim4", "run/exim4"):
        root.path(name).mkdir(parents=True, exist_ok=True)
        shutil.chown(root.path(name), *root.identity("Debian-exim"))
    return root.start("/usr/sbin/exim4", "-bdf", "-q1m")


def start_opensmtpd(root: Root, port: int) -> "subprocess.Popen[bytes]":
    """Start OpenSMTPD, with a recipient limit, and messages a connection.

    It does not encrypt, so it asks for no login: that of Debian 12, built with OpenSSL 3, ends every handshake with
    "missing private key", because it keeps the key in another process than the one that shakes hands.
    """
    root.write(
        "etc/smtpd.conf",
        f"""
table people {{ "@" = people }}
smtp limit max-rcpt {RECIPIENTS_MAX}
smtp limit max-mails {MESSAGES_MAX}
listen on 127.0.0.1 port {port} hostname opensmtpd.example
action "files" maildir "/{INBOX}/inbox" virtual <people>
match from any for domain "people.example" action "files"
""",
    )
    for name in ("var/lib/opensmtpd/empty", "var/spool/smtpd"):
        root.path(name).mkdir(mode=0o711, parents=True, exist_ok=True)
    return root.start("/usr/sbin/smtpd", "-dv")


SERVERS: Final = {"postfix": start_postfix, "exim": start_exim, "opensmtpd": start_opensmtpd}
UNENCRYPTED: Final = {"opensmtpd"}
"""Those that neither encrypt nor ask for a login."""
