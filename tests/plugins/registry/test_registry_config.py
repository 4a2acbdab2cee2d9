"""registries.conf and certs.d: what is read, what it means, what is refused."""

from __future__ import annotations

import pytest
from bootc_registry.client import RegistryClient
from bootc_registry.config import (
    Endpoint,
    Registries,
    load_certificates,
    load_registries,
    parse_registries,
)

from bootc_core.errors import ConfigError
from bootc_core.models.reference import RegistryName
from bootc_core.net.http import Pool
from bootc_core.net.url import parse_url

DIGEST = "sha256:" + "0" * 64


def registries(text: str) -> Registries:
    return parse_registries(text.encode(), "registries.conf")


def endpoints(text: str, name: str) -> list[tuple[str, bool]]:
    found = registries(text).endpoints(RegistryName.parse(name))
    return [(str(endpoint.name), endpoint.insecure) for endpoint in found]


def test_nothing_configured():
    name = RegistryName.parse("quay.io/acme/os:1")
    assert Registries({}).endpoints(name) == [Endpoint(name)]


@pytest.mark.parametrize(
    ("prefix", "name", "matches"),
    [
        ("quay.io", "quay.io/acme/os", True),
        ("quay.io/acme", "quay.io/acme/os", True),
        ("quay.io/acme/os", "quay.io/acme/os:1", True),
        ("quay.io/acme/os", f"quay.io/acme/os@{DIGEST}", True),
        ("quay.io/acme/os:1", "quay.io/acme/os:1", True),
        ("quay.io/acme/o", "quay.io/acme/os", False),
        ("quay.io", "quay.io:5000/acme/os", True),
        ("docker.io", "debian", True),
        ("docker.io/library/debian", "debian", True),
        ("*.example.com", "a.b.example.com/os", True),
        ("*.example.com", "a.example.com:5000/os", True),
        ("*.example.com", "example.com/os", False),
        ("*.example.com", "badexample.com/os", False),
    ],
)
def test_prefixes(prefix, name, matches):
    text = f'[[registry]]\nprefix = "{prefix}"\nlocation = "{prefix}"\ninsecure = true'
    if prefix.startswith("*"):
        text = text.replace("location", "#")
    assert endpoints(text, name)[0][1] is matches


@pytest.mark.parametrize(
    ("prefix", "location", "name", "expected"),
    [
        ("quay.io", "mirror.example", "quay.io/acme/os:1", "mirror.example/acme/os:1"),
        ("quay.io/acme", "mirror.example/x/y", "quay.io/acme/os:1", "mirror.example/x/y/os:1"),
        ("quay.io/acme/os", "m.example/z", f"quay.io/acme/os@{DIGEST}", f"m.example/z@{DIGEST}"),
        ("quay.io", "quay.io", f"quay.io/acme/os:1@{DIGEST}", f"quay.io/acme/os@{DIGEST}"),
        ("*.example.com", "m.example/z", "a.example.com/os:1", "m.example/z/os:1"),
        ("*.example.com", "m.example", "a.example.com:5000/os:1", "m.example:5000/os:1"),
        ("docker.io", "m.example/hub", "debian:12", "m.example/hub/library/debian:12"),
    ],
)
def test_rewriting(prefix, location, name, expected):
    text = f'[[registry]]\nprefix = "{prefix}"\nlocation = "{location}/"'
    assert endpoints(text, name) == [(expected, False)]


def test_a_wildcard_without_location_rewrites_nothing():
    text = '[[registry]]\nprefix = "*.example.com"\ninsecure = true'
    assert endpoints(text, "a.example.com:5000/os:1") == [("a.example.com:5000/os:1", True)]


def test_the_longest_prefix_wins():
    text = """
[[registry]]
location = "quay.io"
[[registry]]
prefix = "quay.io/acme"
location = "long.example"
[[registry]]
prefix = "quay.io/acme"
location = "second.example"
"""
    assert endpoints(text, "quay.io/acme/os:1") == [("long.example/os:1", False)]


MIRRORS = """
[[registry]]
location = "quay.io"
[[registry.mirror]]
location = "all.example"
insecure = true
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
"""


def test_mirrors_by_kind_of_reference():
    assert endpoints(MIRRORS, "quay.io/os:1") == [
        ("all.example/os:1", True),
        ("tags.example/os:1", False),
        ("quay.io/os:1", False),
    ]
    assert [name for name, _ in endpoints(MIRRORS, f"quay.io/os@{DIGEST}")] == [
        f"all.example/os@{DIGEST}",
        f"digests.example/os@{DIGEST}",
        f"quay.io/os@{DIGEST}",
    ]
    only = MIRRORS.replace(
        'location = "quay.io"', 'location = "quay.io"\nmirror-by-digest-only = true'
    )
    only = "\n".join(line for line in only.splitlines() if "pull-from" not in line)
    assert endpoints(only, "quay.io/os:1") == [("quay.io/os:1", False)]


def test_blocked_counts_when_the_primary_is_contacted(tmp_path):
    text = '[[registry]]\nlocation = "quay.io"\nblocked = true\n[[registry.mirror]]\nlocation = "m.example"'
    mirror, primary = registries(text).endpoints(RegistryName.parse("quay.io/os:1"))
    with Pool() as pool:
        RegistryClient(tmp_path, mirror, pool)
        with pytest.raises(ConfigError) as caught:
            RegistryClient(tmp_path, primary, pool)
    assert (caught.value.reference, caught.value.catalogue) == ("registry-blocked", "POL")
    assert caught.value.found == "blocked = true in registries.conf"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("not toml", "not valid TOML"),
        ("[registries.search]\nregistries = ['x']", "[registries]"),
        ("registry = 7", "registry"),
        ("registry = [7]", "registry 1"),
        ("[[registry]]\ninsecure = true", "location"),
        ("[[registry]]\nlocation = 'https://quay.io'", "location"),
        ("[[registry]]\nlocation = 'a b.example'", "location"),
        ("[[registry]]\nlocation = 'quay.io'\ninsecure = 'yes'", "insecure"),
        ("[[registry]]\nlocation = 'quay.io'\nprefix = '*.a/b'", "prefix"),
        ("[[registry]]\nlocation = 'quay.io'\nprefix = 'a.*.b'", "prefix"),
        ("[[registry]]\nprefix = 'quay.io'", "location"),
        (
            "[[registry]]\nlocation = 'quay.io'\n[[registry.mirror]]\ninsecure = true",
            "mirror 1: location",
        ),
        (
            "[[registry]]\nlocation = 'quay.io'\n[[registry.mirror]]\nlocation = 'm.x'\npull-from-mirror = 'no'",
            "pull-from-mirror",
        ),
        ("credential-helpers = 'x'", "credential-helpers"),
        ("short-name-mode = 'x'", "short-name-mode"),
        ("[aliases]\na = 1", "aliases: a"),
    ],
)
def test_c01_errors_name_file_and_key(text, named):
    with pytest.raises(ConfigError) as caught:
        registries(text)
    assert caught.value.reference == "bad-registries-conf"
    assert caught.value.message.startswith("registries.conf")
    assert named in caught.value.message


@pytest.mark.parametrize("location", ["mirror/x", "m.example/UPPER", "library"])
def test_locations_that_make_no_name(location):
    text = f'[[registry]]\nprefix = "quay.io"\nlocation = "{location}"'
    with pytest.raises(ConfigError) as caught:
        endpoints(text, "quay.io/acme/os:1")
    assert caught.value.reference == "bad-registries-conf"


def write(path, location: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[[registry]]\nprefix = "quay.io"\nlocation = "{location}"\n')


def test_files_and_drop_ins(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def location(environ: dict[str, str] | None = None) -> str:
        found = load_registries(tmp_path, environ or {}).endpoints(
            RegistryName.parse("quay.io/os:1")
        )
        return found[0].name.domain

    assert location() == "quay.io"
    write(tmp_path / "usr/share/containers/registries.conf", "usr.example")
    assert location() == "usr.example"
    write(tmp_path / "etc/containers/registries.conf", "etc.example")
    assert location() == "etc.example"
    write(tmp_path / "usr/share/containers/registries.conf.d/50.conf", "usr50.example")
    assert location() == "usr50.example"
    write(tmp_path / "etc/containers/registries.conf.d/60.conf", "etc60.example")
    assert location() == "etc60.example"
    write(tmp_path / "usr/share/containers/registries.conf.d/70.conf", "usr70.example")
    write(tmp_path / "etc/containers/registries.conf.d/70.conf.off", "off.example")
    assert location() == "usr70.example"
    (tmp_path / "etc/containers/registries.conf.d/70.conf").symlink_to("/dev/null")
    assert location() == "etc60.example"
    write(tmp_path / "home/.config/containers/registries.conf", "user.example")
    assert location({"HOME": str(tmp_path / "home")}) == "etc60.example"
    write(tmp_path / "only.conf", "only.example")
    assert location({"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "only.conf")}) == "only.example"
    with pytest.raises(ConfigError, match=r"gone\.conf"):
        location({"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "gone.conf")})


def test_an_ordinary_user_has_files_of_his_own(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    write(tmp_path / "etc/containers/registries.conf", "etc.example")
    write(tmp_path / "home/.config/containers/registries.conf", "user.example")
    found = load_registries(tmp_path, {"HOME": str(tmp_path / "home")})
    assert found.endpoints(RegistryName.parse("quay.io/os:1"))[0].name.domain == "user.example"


def test_c03_a_file_that_others_can_change(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    write(tmp_path / "etc/containers/registries.conf", "etc.example")
    (tmp_path / "etc/containers/registries.conf").chmod(0o666)
    with pytest.raises(ConfigError) as caught:
        load_registries(tmp_path, {})
    assert caught.value.reference == "unsafe-permissions"


def test_credential_helpers(tmp_path):
    assert load_registries(tmp_path, {}).credential_helpers == ("containers-auth.json",)
    (tmp_path / "x.conf").write_text(
        'credential-helpers = ["containers-auth.json", "secretservice"]'
    )
    found = load_registries(tmp_path, {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "x.conf")})
    assert found.credential_helpers == ("containers-auth.json", "secretservice")


def test_both_generations_of_places(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    name = RegistryName.parse("quay.io/os:1")

    def location(environ: dict[str, str] | None = None) -> str:
        return load_registries(tmp_path, environ or {}).endpoints(name)[0].name.domain

    write(tmp_path / "etc/containers/registries.conf.d/50.conf", "plain.example")
    write(tmp_path / "usr/share/containers/registries.rootful.conf.d/50.conf", "low.example")
    assert location() == "plain.example"
    write(tmp_path / "etc/containers/registries.rootful.conf.d/50.conf", "rootful.example")
    write(tmp_path / "etc/containers/registries.rootless.conf.d/60.conf", "rootless.example")
    assert location() == "rootful.example"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert location() == "rootless.example"
    write(tmp_path / "etc/containers/registries.rootless.conf.d/1000/60.conf", "mine.example")
    assert location() == "mine.example"
    write(tmp_path / "last.conf", "last.example")
    assert (
        location({"CONTAINERS_REGISTRIES_CONF_OVERRIDE": str(tmp_path / "last.conf")})
        == "last.example"
    )
    assert location({"REGISTRIES_CONFIG_PATH": str(tmp_path / "last.conf")}) == "last.example"


ALIASES = """
unqualified-search-registries = ["quay.io"]
short-name-mode = "enforcing"
[aliases]
"fedora" = "registry.fedoraproject.org/fedora"
"acme/os" = "quay.io/acme/os"
"debian" = "docker.io/library/debian"
"""


@pytest.mark.parametrize(
    ("written", "full"),
    [
        ("fedora", "registry.fedoraproject.org/fedora"),
        ("fedora:42", "registry.fedoraproject.org/fedora:42"),
        ("acme/os@sha256:" + "0" * 64, "quay.io/acme/os@sha256:" + "0" * 64),
    ],
)
def test_short_names_with_an_alias_are_refused_and_explained(written, full):
    with pytest.raises(ConfigError) as caught:
        registries(ALIASES).refuse_alias(written)
    assert caught.value.reference == "short-name"
    assert caught.value.hint == f"write the full name: {full}"


@pytest.mark.parametrize(
    "written", ["debian", "docker.io/library/fedora", "localhost/fedora", "quay.io/fedora:1"]
)
def test_other_names_have_no_alias(written):
    registries(ALIASES).refuse_alias(written)


def test_an_empty_alias_erases(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    low = tmp_path / "usr/share/containers/registries.conf"
    low.parent.mkdir(parents=True)
    low.write_text(ALIASES)
    high = tmp_path / "etc/containers/registries.conf.d/10.conf"
    high.parent.mkdir(parents=True)
    high.write_text('[aliases]\n"fedora" = ""\n')
    found = load_registries(tmp_path, {})
    assert list(found.aliases) == ["acme/os", "debian"]
    assert ("alias acme/os", "quay.io/acme/os", str(low)) in found.describe()
    assert ("short-name-mode", "enforcing", str(low)) in found.describe()
    assert ("credential-helpers", "containers-auth.json", "") in found.describe()


def test_a_port_that_goes_without_saying(tmp_path):
    name = RegistryName.parse("registry.example:443/os:1")
    with Pool() as pool:
        client = RegistryClient(tmp_path, Endpoint(name, insecure=True), pool)
        assert not client._tls_for(parse_url("https://registry.example/token")).verify
        assert client._tls_for(parse_url("https://auth.example/token")).verify


# --- certs.d --------------------------------------------------------------------------------------------------------


def certificates(root, place: str, *names: str) -> None:
    directory = root / place / "certs.d/registry.example:5000"
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text("")


def test_the_first_directory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    host = "registry.example:5000"
    assert not load_certificates(tmp_path, host, {}).configured
    certificates(tmp_path, "etc/docker", "ca.crt")
    assert load_certificates(tmp_path, host, {}).ca_files == (
        f"{tmp_path}/etc/docker/certs.d/{host}/ca.crt",
    )
    certificates(tmp_path, "etc/containers", "b.crt", "a.crt", "me.cert", "me.key", "README")
    found = load_certificates(tmp_path, host, {})
    directory = f"{tmp_path}/etc/containers/certs.d/{host}"
    assert found.ca_files == (f"{directory}/a.crt", f"{directory}/b.crt")
    assert (found.client_cert, found.client_key) == (f"{directory}/me.cert", f"{directory}/me.key")
    assert found.configured


@pytest.mark.parametrize(("present", "missing"), [("me.cert", "me.key"), ("me.key", "me.cert")])
def test_half_a_pair(tmp_path, monkeypatch, present, missing):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    certificates(tmp_path, "etc/containers", present)
    with pytest.raises(ConfigError) as caught:
        load_certificates(tmp_path, "registry.example:5000", {})
    assert (caught.value.expected, caught.value.found) == (missing, f"only {present}")
