"""`download` from mirrors that hang, lie, break off or are throttled, on machines that others use too."""

import base64
import logging
import re
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
import trustme

from cifarctl.data.download.contestant import Patience
from cifarctl.data.download.events import Failed
from cifarctl.data.download.mirrors import fetch
from cifarctl.data.download.partial import Partial
from cifarctl.data.download.urls import redact

from loopback import Mirror, serving
from py2_pickle import SmallArchive, write_archive
from support import Cifarctl, command, mounted


@pytest.fixture
def content(archive: SmallArchive) -> bytes:
    """The archive, 1.8 MB."""
    return archive.path.read_bytes()


def changed(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def arguments(url: str, names: list[str], sha256: str, data_dir: Path) -> list[object]:
    """The command that downloads from these of the server's mirrors."""
    sources = [part for name in names for part in ("--from", url + name)]
    return ["download", *sources, "--sha256", sha256, "--data-dir", data_dir, "--json"]


class TestCompetition:
    """The fastest mirror is kept, and a bad one costs nothing but a line."""

    def test_one_good_mirror_of_five_is_enough(
        self, installed: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {
            "/throttled": Mirror(content, rate=60_000),
            "/stalls": Mirror(content, stalls_at=100_000),
            "/busy": Mirror(status=503),
            "/page": Mirror(b"<html>moved</html>", content_type="text/html"),
            "/good": Mirror(content, rate=20e6),
        }
        with serving(mirrors) as url:
            done = installed(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert done.json["source"] == f"{url}/good"
        assert done.json["sha256"] == archive.sha256
        assert done.json["bytes"] == len(content)
        assert f"Left {url}/busy: the server answered 503" in done.err
        assert f"Left {url}/page: the server answered with a web page" in done.err
        assert files_in(tmp_path) == ["cifar10.safetensors"]

    def test_when_the_fastest_stalls_the_next_one_goes_on_where_it_stopped(
        self, installed: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {"/slow": Mirror(content, rate=500_000), "/stalls": Mirror(content, stalls_at=1_500_000)}
        with serving(mirrors) as url:
            done = installed(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert f"Left {url}/stalls: it has sent nothing for 5 seconds" in done.err
        assert mirrors["/slow"].offsets == [0, 1_500_000]
        # The pipe gets whole lines, with how far it is, how fast, and from where.
        assert re.search(r"^cifar10: 81 % of 1\.8 MB, [\d.]+ MB/s.*, 127\.0\.0\.1$", done.err, re.MULTILINE)
        assert "\x1b" not in done.err
        assert "\r" not in done.err

    def test_when_the_fastest_becomes_slow_another_one_is_tried(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {"/steady": Mirror(content, rate=1e6), "/tires": Mirror(content, rate=4e6, slows_at=400_000)}
        with serving(mirrors) as url:
            done = cifarctl(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert mirrors["/steady"].offsets[-1] >= 400_000
        assert f"Downloading {url}/steady, from" in done.err
        assert done.json["source"] == f"{url}/steady"

    def test_a_connection_that_breaks_off_goes_on_with_a_range(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {"/breaks": Mirror(content, breaks_at=1_000_000)}
        with serving(mirrors) as url:
            done = cifarctl(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert mirrors["/breaks"].offsets == [0, 1_000_000]
        assert mirrors["/breaks"].sent == len(content)

    def test_a_server_that_knows_no_ranges_is_still_good(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {"/breaks": Mirror(content, breaks_at=1_000_000, ranges=False)}
        with serving(mirrors) as url:
            done = cifarctl(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert mirrors["/breaks"].offsets == [0, 0]

    def test_a_server_that_does_not_tell_the_size_is_still_good(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        with serving({"/silent": Mirror(content, says_length=False)}) as url:
            done = cifarctl(*arguments(url, ["/silent"], archive.sha256, tmp_path))
        assert done.code == 0, done.err

    def test_redirects_are_followed_but_not_in_a_circle(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {
            "/circle": Mirror(status=302, location="/circle"),
            "/nowhere": Mirror(status=302, location="ftp://127.0.0.1/x"),
            "/moved": Mirror(status=301, location="/good"),
            "/good": Mirror(content),
        }
        with serving(mirrors) as url:
            circle = cifarctl(*arguments(url, ["/circle"], archive.sha256, tmp_path))
            done = cifarctl(*arguments(url, ["/nowhere", "/moved"], archive.sha256, tmp_path))
        assert circle.code == 1
        assert "/circle: it redirects more than" in circle.error
        assert done.code == 0, done.err
        assert "/nowhere: it leads to no web address" in done.err

    def test_mirrors_of_another_file_do_not_get_in_the_way(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        other = write_archive(tmp_path / "other.tar.gz", per_batch=5, seed=1).path.read_bytes()
        mirrors = {"/other": Mirror(other), "/good": Mirror(content, rate=1e6)}
        with serving(mirrors) as url:
            done = cifarctl(*arguments(url, list(mirrors), archive.sha256, tmp_path / "data"))
        assert done.code == 0, done.err
        assert done.json["source"] == f"{url}/good"

    def test_the_environment_names_more_mirrors_and_the_proxy(
        self, installed: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        with serving({"/good": Mirror(content)}) as proxy:
            done = installed(
                *arguments("http://mirror.example", ["/good"], archive.sha256, tmp_path), env={"HTTP_PROXY": proxy}
            )
        assert done.code == 0, done.err
        wrong = installed("download", "--data-dir", tmp_path / "none", env={"CIFARCTL_MIRRORS": "ftp://x, http://y"})
        assert wrong.code == 2
        assert "CIFARCTL_MIRRORS: ftp://x" in wrong.error

    @pytest.mark.thorough
    def test_certificates_are_those_of_the_environment(
        self, installed: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        certificates = {"SSL_CERT_FILE": str(tmp_path / "none.pem")}
        unread = installed(*arguments("https://127.0.0.1:1", ["/"], "0" * 64, tmp_path / "none"), env=certificates)
        assert unread.code == 1
        assert "certificates" in unread.error
        authority, certificate = trustme.CA(), tmp_path / "certificate.pem"
        authority.cert_pem.write_to_path(certificate)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        with serving({"/good": Mirror(content)}, tls) as url:
            unknown = installed(*arguments(url, ["/good"], archive.sha256, tmp_path / "data"))
            known = installed(
                *arguments(url, ["/good"], archive.sha256, tmp_path / "data"), env={"SSL_CERT_FILE": str(certificate)}
            )
        assert unknown.code == 1
        assert "CERTIFICATE_VERIFY_FAILED" in unknown.error
        assert known.code == 0, known.err


class TestDrips:
    """A server that never stops answering is no better than one that is silent."""

    patience = Patience(answer=0.3, crawl=0.3, last_mirror=0.6, silence=1.0)

    def fetch(
        self, mirrors: dict[str, Mirror], archive: SmallArchive, folder: Path
    ) -> tuple[str | None, Partial, list[str]]:
        """What gave the file, what has arrived, and why the others were left."""
        partial, reasons = Partial(folder / "cifar10.safetensors", archive.sha256), []
        with serving(mirrors) as url:
            events = fetch([url + name for name in mirrors], partial, archive.sha256, None, self.patience)
            try:
                while True:
                    if isinstance(event := next(events), Failed):
                        reasons.append(f"{event.source.removeprefix(url)}: {event.reason}")
            except StopIteration as end:
                source = end.value
            # Nobody waits for the threads, and none of them goes on reading.
            deadline = time.monotonic() + 10
            while any(thread.name == "download" for thread in threading.enumerate()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        partial.close()
        return source and source.removeprefix(url), partial, reasons

    def test_headers_without_end_are_no_answer(self, archive: SmallArchive, tmp_path: Path) -> None:
        mirrors = {"/header": Mirror(drips="header"), "/continue": Mirror(drips="continue")}
        source, partial, reasons = self.fetch(mirrors, archive, tmp_path)
        assert source is None
        assert partial.size == 0
        assert all(
            reason.endswith((": no answer for 0.3 seconds", ": no answer for 0.6 seconds")) for reason in reasons
        )
        assert {reason.partition(":")[0] for reason in reasons} == set(mirrors)
        assert "for 0.6 seconds" in reasons[-1]  # the last one is waited for longer

    def test_a_body_that_drips_is_given_up_even_if_there_is_no_other(
        self, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        source, partial, reasons = self.fetch({"/body": Mirror(content, drips="body")}, archive, tmp_path)
        assert source is None
        assert partial.size > 0  # kept, for the next run
        assert re.fullmatch(r"\['/body: it has sent only \d+ bytes in 0\.6 seconds'\]", str(reasons))

    def test_bytes_that_are_there_already_drip_too(self, archive: SmallArchive, content: bytes, tmp_path: Path) -> None:
        Partial(tmp_path / "cifar10.safetensors", archive.sha256).path.write_bytes(content[:1000])
        mirror = Mirror(content, drips="body", ranges=False)
        source, partial, reasons = self.fetch({"/body": mirror}, archive, tmp_path)
        assert source is None
        assert partial.size == 1000
        assert "it has sent only" in reasons[0]

    def test_a_body_that_drips_is_left_for_a_mirror_that_answers_late(
        self, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {"/body": Mirror(content, drips="body"), "/late": Mirror(content, waits=0.25)}
        self.patience = Patience(answer=5.0, crawl=0.2)
        source, partial, reasons = self.fetch(mirrors, archive, tmp_path)
        assert source == "/late"
        assert partial.sha256 == archive.sha256
        assert all(reason.startswith("/body: it has sent only") for reason in reasons)


class TestSecrets:
    """What lets somebody in is sent to the server, and shown to nobody."""

    def test_the_password_of_a_good_mirror(
        self,
        cifarctl: Cifarctl,
        archive: SmallArchive,
        content: bytes,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        mirror = Mirror(content)
        with serving({"/good": mirror}) as url, caplog.at_level(logging.INFO):
            secret = url.replace("//", "//anna:hunter2@")
            done = cifarctl(*arguments(secret, ["/good?download=1"], archive.sha256, tmp_path))
        assert done.code == 0, done.err
        shown = url.replace("//", "//***@") + "/good?download=1"
        assert done.json["source"] == shown
        assert f"Downloading {shown}" in done.err
        assert mirror.users == [f"Basic {base64.b64encode(b'anna:hunter2').decode()}"]
        assert "HTTP Request: GET" in caplog.text
        assert "hunter2" not in done.out + done.err + caplog.text

    def test_passwords_and_tokens_of_bad_mirrors(
        self, cifarctl: Cifarctl, archive: SmallArchive, tmp_path: Path
    ) -> None:
        mirrors = {"/busy": Mirror(status=503), "/other": Mirror(archive.path.read_bytes()[:-8] + bytes(8))}
        with serving(mirrors) as url:
            secret = url.replace("//", "//hunter2@")
            names = ["/busy?X-Amz-Signature=hunter2", "/other?access_token=hunter2&v=1"]
            done = cifarctl(*arguments(secret, names, archive.sha256, tmp_path))
        assert done.code == 1
        assert "/busy?X-Amz-Signature=***: the server answered 503" in done.err
        assert "/other?access_token=***&v=1: its SHA-256 is" in done.err
        assert "hunter2" not in done.err

    @pytest.mark.parametrize(
        ("source", "code", "reason"),
        [
            ("ftp://anna:hunter2@127.0.0.1/a", 2, "ftp://***@127.0.0.1/a: no http or https URL"),
            ("http://anna:hunter2/x@127.0.0.1/a", 1, "http://***@127.0.0.1/a: it is no valid web address"),
            ("http://anna:hunter2@[::1/a", 1, "http://***@[::1/a: it is no valid web address"),
        ],
    )
    def test_addresses_that_cannot_be_asked(
        self,
        cifarctl: Cifarctl,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        source: str,
        code: int,
        reason: str,
    ) -> None:
        done = cifarctl("download", "--from", source, "--data-dir", tmp_path)
        assert done.code == code
        assert reason in done.error
        assert "hunter2" not in done.err
        monkeypatch.setenv("CIFARCTL_MIRRORS", source.replace("http", "gopher"))
        done = cifarctl("download", "--data-dir", tmp_path)
        assert done.code == 2
        assert "error: CIFARCTL_MIRRORS: " in done.err
        assert "hunter2" not in done.err

    @pytest.mark.parametrize(
        ("source", "shown"),
        [
            ("https://host/a?download=1", "https://host/a?download=1"),
            ("https://host:8080/pkg@1.2/a", "https://host:8080/pkg@1.2/a"),
            ("https://[::1]:80/pkg@1.2/a", "https://[::1]:80/pkg@1.2/a"),
            ("HTTPS://token@host/a", "HTTPS://***@host/a"),
            ("https://anna:p@ss/word@host/a", "https://***@host/a"),
            ("https://host/a?sig=x%2B&sp=r&X-Goog-Credential=me#key=2", "https://host/a?sig=***&sp=r&X-Goog-Credential=***#key=***"),
            ("data/anna@home.tar.gz", "data/anna@home.tar.gz"),
        ],
    )  # fmt: skip
    def test_only_what_is_secret_is_hidden(self, source: str, shown: str) -> None:
        assert redact(source) == shown


class TestVerification:
    """No byte of an archive is used before its digest is right."""

    def test_one_different_byte_is_refused_by_name(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        with serving({"/changed": Mirror(changed(content, 900_000))}) as url:
            done = cifarctl(*arguments(url, ["/changed"], archive.sha256, tmp_path))
        assert done.code == 1
        assert f"{url}/changed: its SHA-256 is" in done.error
        assert files_in(tmp_path) == []

    def test_after_a_wrong_file_another_mirror_is_asked_for_all_of_it(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirrors = {"/changed": Mirror(changed(content, 900_000)), "/good": Mirror(content, rate=2e6)}
        with serving(mirrors) as url:
            done = cifarctl(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert f"Left {url}/changed: its SHA-256 is" in done.err
        assert done.json["source"] == f"{url}/good"
        assert mirrors["/good"].offsets[-1] == 0

    def test_bytes_of_two_mirrors_with_a_wrong_digest_are_fetched_again_from_each_alone(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        bad = Mirror(changed(content, 900_000), breaks_at=1_000_000, breaks=99)
        mirrors = {"/bad": bad, "/good": Mirror(content, rate=1e6)}
        with serving(mirrors) as url:
            done = cifarctl(*arguments(url, list(mirrors), archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert f"Left {url}/bad and {url}/good: the SHA-256 of what they gave is" in done.err
        assert done.json["source"] == f"{url}/good"
        assert files_in(tmp_path) == ["cifar10.safetensors"]


class TestInterruption:
    """What has arrived stays, and is not fetched again."""

    @pytest.mark.needs("POSIX")
    def test_after_kill_9_at_half_the_other_half_is_fetched(
        self, installed: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirror = Mirror(content, rate=1e6)
        with serving({"/good": mirror}) as url:
            line = [str(part) for part in arguments(url, ["/good"], archive.sha256, tmp_path)]
            process = subprocess.Popen([command(), *line], stderr=subprocess.DEVNULL)
            while sum(part.stat().st_size for part in tmp_path.glob("*.part")) < len(content) / 2:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            mirror.sent = 0
            done = installed(*line)
        assert done.code == 0, done.err
        assert mirror.sent <= 0.55 * len(content)
        assert files_in(tmp_path) == ["cifar10.safetensors"]

    def test_what_a_dead_mirror_gave_is_kept_for_the_next_run(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirror = Mirror(content, breaks_at=1_000_000, breaks=99)
        with serving({"/dies": mirror}) as url:
            line = arguments(url, ["/dies"], archive.sha256, tmp_path)
            done = cifarctl(*line)
            assert done.code == 1
            assert "hint: 1.0 MB are kept" in done.err
            mirror.breaks, mirror.sent = 0, 0
            assert cifarctl(*line).code == 0
        assert mirror.sent == len(content) - 1_000_000
        assert files_in(tmp_path) == ["cifar10.safetensors"]

    def test_a_whole_archive_that_a_killed_run_left_needs_no_byte(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirror = Mirror(content)
        (tmp_path / f"cifar10-{archive.sha256[:16]}.part").write_bytes(content)
        with serving({"/good": mirror}) as url:
            done = cifarctl(*arguments(url, ["/good"], archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert mirror.sent == 0
        assert files_in(tmp_path) == ["cifar10.safetensors"]

    def test_a_damaged_beginning_is_dropped(
        self, cifarctl: Cifarctl, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / f"cifar10-{archive.sha256[:16]}.part").write_bytes(bytes(1_000_000))
        with serving({"/good": Mirror(content)}) as url:
            done = cifarctl(*arguments(url, ["/good"], archive.sha256, tmp_path))
        assert done.code == 0, done.err
        assert "an earlier run" in done.err


class TestSharedMachine:
    """Other processes, full disks and folders that are not ours."""

    def test_two_at_once_are_one_download_and_two_successes(
        self, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        mirror = Mirror(content, rate=500_000)
        with serving({"/good": mirror}) as url:
            line = [command(), *(str(part) for part in arguments(url, ["/good"], archive.sha256, tmp_path))]
            both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
            outputs = [process.communicate(timeout=100) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert mirror.sent == len(content)
        assert sorted('"downloaded": true' in out for out, _ in outputs) == [False, True]
        assert files_in(tmp_path) == ["cifar10.safetensors"]

    @pytest.mark.needs("namespaces")
    @pytest.mark.parametrize("says_length", [True, False])
    def test_a_full_disk_is_one_line_and_the_folder_stays_as_it_was(
        self, archive: SmallArchive, content: bytes, tmp_path: Path, says_length: bool
    ) -> None:
        mirror = Mirror(content, says_length=says_length)
        with mounted(tmp_path, "size=1m") as disk, serving({"/good": mirror}) as url:
            (disk.root / "notes.txt").write_text("mine")
            done = disk.cifarctl(*arguments(url, ["/good"], archive.sha256, tmp_path))
            assert files_in(disk.root) == ["notes.txt"]
        assert done.code == 1
        assert ("MB are needed" if says_length else "No space left") in done.error

    @pytest.mark.needs("namespaces")
    def test_a_disk_that_fills_while_the_data_file_is_written_is_clean_afterwards(
        self, archive: SmallArchive, content: bytes, tmp_path: Path
    ) -> None:
        with mounted(tmp_path, "size=3m") as disk, serving({"/good": Mirror(content, says_length=False)}) as url:
            done = disk.cifarctl(*arguments(url, ["/good"], archive.sha256, tmp_path))
            assert files_in(disk.root) == []
        assert done.code == 1
        assert "No space left" in done.error

    @pytest.mark.needs("namespaces")
    def test_a_folder_that_cannot_be_written_is_one_line(self, archive: SmallArchive, tmp_path: Path) -> None:
        with mounted(tmp_path, "ro") as disk:
            done = disk.cifarctl("download", "--from", archive.path, "--sha256", archive.sha256, "--data-dir", tmp_path)
            assert files_in(disk.root) == []
        assert done.code == 1
        assert f"{tmp_path}: the data folder cannot be written: Read-only file system" in done.error
