"""Image references: every spelling, every refusal with its position, and parse/print round trips."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc_core.errors import UsageError
from bootc_core.models.reference import (
    ImageReference,
    RegistryName,
    SignedReference,
    Transport,
    policy_scopes,
)

HEX = "0123456789abcdef" * 4
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "transport", "name", "printed"),
    [
        ("quay.io/x/y:1", "registry", "quay.io/x/y:1", "docker://quay.io/x/y:1"),
        ("docker://quay.io/x/y", "registry", "quay.io/x/y", "docker://quay.io/x/y"),
        ("registry:quay.io/x/y", "registry", "quay.io/x/y", "docker://quay.io/x/y"),
        ("docker://registry:2", "registry", "registry:2", "docker://registry:2"),
        ("localhost:5000/os:v1", "registry", "localhost:5000/os:v1", None),
        ("debian", "registry", "debian", "docker://debian"),
        ("oci:/srv/os", "oci", "/srv/os", "oci:/srv/os"),
        ("oci:/srv/os:stable", "oci", "/srv/os:stable", "oci:/srv/os:stable"),
        ("oci:/srv/os:@3", "oci", "/srv/os:@3", "oci:/srv/os:@3"),
        ("oci:srv/My OS:quay.io/x:1", "oci", "srv/My OS:quay.io/x:1", None),
        ("oci-archive:/a.tar:b", "oci-archive", "/a.tar:b", "oci-archive:/a.tar:b"),
        ("docker-archive:/a.tar:b:1", "docker-archive", "/a.tar:b:1", None),
        ("docker-archive:/a.tar:@0", "docker-archive", "/a.tar:@0", None),
        ("dir:/srv/a:b", "dir", "/srv/a:b", "dir:/srv/a:b"),
        ("containers-storage:localhost/os", "containers-storage", "localhost/os", None),
        (f"containers-storage:{HEX}", "containers-storage", HEX, None),
        (f"containers-storage:sha256:{HEX}", "containers-storage", f"sha256:{HEX}", None),
        ("containers-storage:[/x]a@" + HEX, "containers-storage", "[/x]a@" + HEX, None),
        ("docker-daemon:os:9", "docker-daemon", "os:9", "docker-daemon:os:9"),
        (f"docker-daemon:{SHA}", "docker-daemon", SHA, f"docker-daemon:{SHA}"),
    ],
)
def test_every_spelling(text, transport, name, printed):
    reference = ImageReference.parse(text)
    assert (reference.transport, reference.name) == (transport, name)
    if printed is not None:
        assert str(reference) == printed
    assert ImageReference.parse(str(reference)) == reference
    assert ImageReference.make(transport, name) == reference


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing at position 1"),
        ("docker://", "nothing at position 10"),
        ("oci:", "nothing at position 5"),
        ("oci::tag", "nothing at position 5"),
        ("oci:/x:", "nothing at position 8"),
        ("oci:/x:a b", "a space at position 9"),
        ("oci:/x:-a", "'-' at position 8"),
        ("dir:", "nothing at position 5"),
        ("dir:-x", "'-', which begins an option, at position 5"),
        ("dir:/x ", "a space at position 7"),
        ("dir:/x\x00y", "a control or unprintable character (\\x00) at position 7"),
        ("dir:/x\udcffy", "a control or unprintable character (\\xff) at position 7"),
        ("dir:/" + "x" * 5000, "a path that is too long at position 5"),
        ("containers-storage:", "nothing at position 20"),
        ("containers-storage:[/x", "'[' without ']' at position 20"),
        ("containers-storage:[/x]", "nothing at position 24"),
        ("containers-storage:[]a", "nothing at position 21"),
        ("docker-daemon:sha256:12", "a digest of 2 digits at position 22"),
        ("docker-archive:/a:x@" + SHA, "a digest at position 20"),
        ("blah://", "the unknown transport 'blah' at position 1"),
        ("http://quay.io/x", "the unknown transport 'http' at position 1"),
        ("ostree:/x", "the unknown transport 'ostree' at position 1"),
        ("docker:dind", "no '//' at position 8"),
        ("docker:/x", "no '//' at position 8"),
        ("a b", "a space at position 2"),
        (" a", "a space at position 1"),
        ("a\n", "a control or unprintable character (\\n) at position 2"),
        ("a\x1b[31m", "a control or unprintable character (\\x1b) at position 2"),
        ("quay.io/\u0430cme", "'\u0430', which is not ASCII, at position 9"),  # Cyrillic
        ("--x", "'-', which begins an option, at position 1"),
        ("docker://--x", "'-', which begins an option, at position 10"),
        ("quay.io/X/y", "the upper-case letter 'X' in a repository's name at position 9"),
        ("Foo/x", "the upper-case letter 'F' in a repository's name at position 1"),
        ("quay.io//y", "an empty part of a repository's name at position 9"),
        ("quay.io/x/", "an empty part of a repository's name at position 11"),
        ("quay.io/x-", "'-' in a repository's name at position 10"),
        ("quay.io/x..y", "'.' in a repository's name at position 10"),
        ("quay.io/../etc", "'.' in a repository's name at position 9"),
        ("quay.io/x:", "an empty tag at position 11"),
        ("quay.io/x:-a", "'-' in a tag at position 11"),
        ("quay.io/x:a/b:c:", "an empty tag at position 17"),
        ("quay.io/x:" + "a" * 129, "a tag that is too long at position 139"),
        ("quay.io:99999/x", "the port '99999' at position 9"),
        ("quay.io:0/x", "the port '0' at position 9"),
        ("quay.io:/x", "the port '' at position 9"),
        ("quay.io:a/x", "the port 'a' at position 9"),
        ("-a.b/x", "'-', which begins an option, at position 1"),
        ("a-.b/x", "'-' in a registry's host name at position 2"),
        ("a_b.c/x", "'_' in a registry's host name at position 2"),
        ("[::1]", "no repository at position 6"),
        ("[::1/x", "'[' in a registry's host name at position 1"),
        ("x@", "an unknown digest algorithm at position 3"),
        ("x@md5:" + "a" * 32, "an unknown digest algorithm at position 3"),
        ("x@sha256:" + "A" * 64, "the upper-case letter 'A' in a digest at position 10"),
        ("x@sha256:" + "a" * 63, "a digest of 63 digits at position 10"),
        (f"x@{SHA}@{SHA}", "'@' in a digest at position 74"),
        (HEX, "an image ID instead of a name at position 1"),
        ("x" * 10_240, "the end of what a name may hold, at position 256"),
        ("quay.io/" + "x" * 250, "the end of what a name may hold, at position 256"),
    ],
)
def test_refusals_name_the_position(text, found):
    with pytest.raises(UsageError) as caught:
        ImageReference.parse(text)
    error = caught.value
    assert (error.reference, error.catalogue) == ("bad-reference", "USE")
    assert error.found == found
    assert error.message.isprintable()
    assert len(error.message) < 400


def test_unknown_transports_list_the_known_ones():
    with pytest.raises(UsageError) as caught:
        ImageReference.make("blah", "x")
    assert caught.value.reference == "unknown-transport"
    for transport in Transport:
        assert transport in str(caught.value.expected)
    with pytest.raises(UsageError) as caught:
        ImageReference.parse("blah://x")
    assert "oci-archive:" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("name", "found", "hint"),
    [
        ("docker://quay.io/x", "a transport inside the name at position 1", "write quay.io/x"),
        (
            "oci:/srv/os",
            "a transport inside the name at position 1",
            "write --transport oci /srv/os",
        ),
        ("blah://", "the unknown transport 'blah' at position 1", None),
        ("docker:/x", "no '//' at position 8", "an image that is called docker is written "),
    ],
)
def test_a_name_with_a_transport_where_only_a_name_belongs(name, found, hint):
    with pytest.raises(UsageError) as caught:
        ImageReference.make("registry", name)
    assert caught.value.found == found
    assert (caught.value.hint or "").startswith(hint or "")


def test_docker_is_another_word_for_registry():
    assert ImageReference.make("docker", "quay.io/x") == ImageReference.parse("quay.io/x")
    assert ImageReference.make("registry", "oci:1").name == "oci:1"  # a fine name of an image


def test_default_transport_of_bare_names():
    assert ImageReference.parse("/srv/os:1", Transport.OCI) == ImageReference.parse("oci:/srv/os:1")
    assert ImageReference.parse("dir:/x", Transport.OCI).transport is Transport.DIR


@pytest.mark.parametrize(
    ("name", "normal", "host"),
    [
        ("debian", "docker.io/library/debian:latest", "registry-1.docker.io"),
        ("debian:13", "docker.io/library/debian:13", "registry-1.docker.io"),
        ("acme/os", "docker.io/acme/os:latest", "registry-1.docker.io"),
        ("index.docker.io/os", "docker.io/library/os:latest", "registry-1.docker.io"),
        ("localhost/os", "localhost/os:latest", "localhost"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest", "localhost:5000"),
        ("host:5000", "docker.io/library/host:5000", "registry-1.docker.io"),
        ("QUAY.io/x", "QUAY.io/x:latest", "QUAY.io"),
        (f"quay.io/x@{SHA}", f"quay.io/x@{SHA}", "quay.io"),
        (f"quay.io/x:1@{SHA}", f"quay.io/x:1@{SHA}", "quay.io"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000"),
        ("quay.io/a__b/c--d/e_f.g:A_.-", "quay.io/a__b/c--d/e_f.g:A_.-", "quay.io"),
    ],
)
def test_normalisation(name, normal, host):
    parsed = RegistryName.parse(name)
    assert (str(parsed), parsed.host) == (normal, host)
    assert RegistryName.parse(str(parsed)) == parsed


def test_registry_name_parts():
    parsed = RegistryName.parse(f"quay.io/a/b:1@{SHA}")
    assert parsed == RegistryName("quay.io", "a/b", "1", SHA)
    assert parsed.repository == "quay.io/a/b"
    assert parsed.target == SHA
    assert str(parsed.canonical()) == f"quay.io/a/b@{SHA}"
    assert str(parsed.with_tag("2")) == "quay.io/a/b:2"
    assert RegistryName.parse("quay.io/a").target == "latest"
    assert str(RegistryName.parse("quay.io/a:1").with_digest(SHA)) == f"quay.io/a@{SHA}"


def test_canonical_drops_the_tag_beside_a_digest():
    reference = ImageReference.parse(f"quay.io/x/y:1@{SHA}")
    assert str(reference.canonical()) == f"docker://quay.io/x/y@{SHA}"
    for same in ("debian", "quay.io/x:1", f"quay.io/x@{SHA}", "oci:/x:1", "dir:/x"):
        reference = ImageReference.parse(same)
        assert reference.canonical() is reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quay.io/example/myapp:v1", "docker://quay.io/example/myapp:new"),
        (f"quay.io/example/myapp@{SHA}", "docker://quay.io/example/myapp:new"),
        (f"quay.io/example/myapp:1@{SHA}", "docker://quay.io/example/myapp:new"),
        ("localhost:5000/myapp", "docker://localhost:5000/myapp:new"),
        ("debian", "docker://docker.io/library/debian:new"),
        ("containers-storage:localhost/myapp:v1", "containers-storage:localhost/myapp:new"),
        (
            "containers-storage:[a@/x+/y:o]localhost/m",
            "containers-storage:[a@/x+/y:o]localhost/m:new",
        ),
        ("oci:/path/to/os", "oci:/path/to/os:new"),
        ("oci:/path/to/os:old", "oci:/path/to/os:new"),
        ("oci:/path:quay.io/x:1", "oci:/path:quay.io/x:new"),
        ("oci:/path:@2", "oci:/path:new"),
        ("oci:relative/path", "oci:relative/path:new"),
        ("oci-archive:/a@b.tar:1", "oci-archive:/a@b.tar:new"),
        ("docker-archive:/a.tar:quay.io/x:1", "docker-archive:/a.tar:quay.io/x:new"),
        ("docker-daemon:quay.io/x:1", "docker-daemon:quay.io/x:new"),
    ],
)
def test_with_tag(text, expected):
    assert str(ImageReference.parse(text).with_tag("new")) == expected


@pytest.mark.parametrize(
    "text",
    ["dir:/x", "docker-archive:/a.tar", f"docker-daemon:{SHA}", f"containers-storage:{HEX}"],
)
def test_with_tag_where_there_is_none(text):
    with pytest.raises(UsageError) as caught:
        ImageReference.parse(text).with_tag("new")
    assert caught.value.reference == "no-tag"


@pytest.mark.parametrize("tag", ["", "-x", "a b", "a" * 129, "a:b", "a/b", "a@b"])
def test_with_a_bad_tag(tag):
    with pytest.raises(UsageError) as caught:
        ImageReference.parse("quay.io/x").with_tag(tag)
    assert caught.value.reference == "bad-tag"


def test_display():
    assert ImageReference.parse("docker://quay.io/x:1").display() == "quay.io/x:1"
    assert ImageReference.parse("oci:/x:1").display() == "oci:/x:1"


def test_path_and_selector():
    split = [
        ImageReference.parse(text).path_and_selector()
        for text in ("oci:/x", "oci:/x:a:b", "dir:/x:a", "docker-archive:/x:@1", "oci-archive:/x:t")
    ]
    assert split == [("/x", None), ("/x", "a:b"), ("/x:a", None), ("/x", "@1"), ("/x", "t")]
    with pytest.raises(UsageError):
        ImageReference.parse("quay.io/x").path_and_selector()
    with pytest.raises(UsageError):
        ImageReference.parse("oci:/x").registry_name()


@pytest.mark.parametrize(
    ("text", "image", "signature", "printed"),
    [
        ("ostree-unverified-registry:quay.io/x:1", "docker://quay.io/x:1", None, None),
        (
            "ostree-unverified-registry:docker://quay.io/x:1",
            "docker://quay.io/x:1",
            None,
            "ostree-unverified-registry:quay.io/x:1",
        ),
        (
            "ostree-unverified-image:docker://quay.io/x:1",
            "docker://quay.io/x:1",
            None,
            "ostree-unverified-registry:quay.io/x:1",
        ),
        (
            "ostree-unverified-image:registry:quay.io/x:1",
            "docker://quay.io/x:1",
            None,
            "ostree-unverified-registry:quay.io/x:1",
        ),
        ("ostree-unverified-image:oci:/srv/os:1", "oci:/srv/os:1", None, None),
        (
            "ostree-image-signed:registry:quay.io/x",
            "docker://quay.io/x",
            "containerPolicy",
            "ostree-image-signed:docker://quay.io/x",
        ),
        ("ostree-image-signed:oci:/x", "oci:/x", "containerPolicy", None),
        (
            "ostree-remote-image:myremote:docker://quay.io/x",
            "docker://quay.io/x",
            ("ostreeRemote", "myremote"),
            None,
        ),
        (
            "ostree-remote-registry:myremote:quay.io/x",
            "docker://quay.io/x",
            ("ostreeRemote", "myremote"),
            "ostree-remote-image:myremote:docker://quay.io/x",
        ),
    ],
)
def test_signed_references(text, image, signature, printed):
    parsed = SignedReference.parse(text)
    assert (str(parsed.image), parsed.signature) == (image, signature)
    assert str(parsed) == (printed or text)
    assert SignedReference.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the end at position 1"),
        ("quay.io/x", "the end at position 10"),
        ("ostree-bad:x", "the unknown scheme 'ostree-bad' at position 1"),
        ("ostree-image-signed:quay.io/x", "no transport at position 21"),
        ("ostree-image-signed:blah://x", "the unknown transport 'blah' at position 21"),
        ("ostree-image-signed:docker:x", "no '//' at position 28"),
        ("ostree-unverified-registry:", "nothing at position 28"),
        (
            "ostree-unverified-registry:A/b",
            "the upper-case letter 'A' in a repository's name at position 28",
        ),
        ("ostree-unverified-image:oci:", "nothing at position 29"),
        ("ostree-remote-image:x", "no name of an ostree remote at position 21"),
        ("ostree-remote-image::docker://x", "no name of an ostree remote at position 21"),
        ("ostree-remote-registry:r:x y", "a space at position 27"),
    ],
)
def test_signed_reference_refusals(text, found):
    with pytest.raises(UsageError) as caught:
        SignedReference.parse(text)
    assert caught.value.found == found


def test_signed_reference_display():
    parse = SignedReference.parse
    assert parse("ostree-unverified-registry:quay.io/x:1").display() == "quay.io/x:1"
    assert parse("ostree-unverified-image:oci:/x").display() == "ostree-unverified-image:oci:/x"
    signed = "ostree-image-signed:docker://quay.io/x"
    assert parse(signed).display() == signed


@pytest.mark.parametrize(
    ("text", "identity", "parents"),
    [
        (
            "a.b.example.com:5000/ns/repo/os:1",
            "a.b.example.com:5000/ns/repo/os:1",
            "a.b.example.com:5000/ns/repo/os a.b.example.com:5000/ns/repo a.b.example.com:5000/ns"
            " a.b.example.com:5000 *.b.example.com *.example.com *.com",
        ),
        (
            f"debian:13@{SHA}",
            f"docker.io/library/debian@{SHA}",
            "docker.io/library/debian docker.io/library docker.io *.io",
        ),
        ("localhost/os", "localhost/os:latest", "localhost/os localhost"),
        ("oci:/srv/os/a:tag", "/srv/os/a", "/srv/os/a /srv/os /srv"),
        ("oci-archive:/srv/a.tar", "/srv/a.tar", "/srv/a.tar /srv"),
        ("dir:/srv/a/../b", "/srv/b", "/srv"),
        ("docker-archive:/srv/a.tar", "", ""),
        (f"docker-daemon:{SHA}", "", ""),
        ("docker-daemon:quay.io/x:1", "quay.io/x:1", "quay.io/x quay.io *.io"),
        (
            "containers-storage:localhost/os:9",
            "[overlay@/var/lib/containers/storage]localhost/os:9",
            "[overlay@/var/lib/containers/storage]localhost/os"
            " [overlay@/var/lib/containers/storage]localhost"
            " [overlay@/var/lib/containers/storage] [/var/lib/containers/storage]",
        ),
        (
            f"containers-storage:[vfs@/x+/r:a=b]quay.io/os:9@{HEX}",
            f"[vfs@/x]quay.io/os:9@{HEX}",
            "[vfs@/x]quay.io/os:9 [vfs@/x]quay.io/os [vfs@/x]quay.io [vfs@/x] [/x]",
        ),
        (
            f"containers-storage:[vfs@/x]quay.io/os:9@{SHA}",
            f"[vfs@/x]quay.io/os:9@{SHA}",
            "[vfs@/x]quay.io/os:9 [vfs@/x]quay.io/os [vfs@/x]quay.io [vfs@/x] [/x]",
        ),
        (f"containers-storage:[vfs@/x]{HEX}", f"[vfs@/x]@{HEX}", "[vfs@/x] [/x]"),
    ],
)
def test_policy_scopes(text, identity, parents):
    assert policy_scopes(ImageReference.parse(text)) == (identity, tuple(parents.split()))


def test_policy_scopes_use_the_resolver():
    reference = ImageReference.parse("oci:link:1")
    assert policy_scopes(reference, lambda path: "/real/" + path) == (
        "/real/link",
        ("/real/link", "/real"),
    )


# --- laws -----------------------------------------------------------------------------------------

component = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
label = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,4}[A-Za-z0-9])?", fullmatch=True)
port = st.one_of(st.just(""), st.integers(1, 65535).map(lambda number: f":{number}"))
domain = st.one_of(
    st.just(""),
    st.builds("{}.{}{}/".format, label, label, port),
    st.builds("localhost{}/".format, port),
    st.builds("[::1]{}/".format, port),
)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
suffix = st.one_of(
    st.just(""),
    st.builds(":{}".format, tag),
    st.just("@" + SHA),
    st.builds((":{}@" + SHA).format, tag),
)
path = st.lists(component, min_size=1, max_size=4).map("/".join)
registry_name = st.builds(  # without a registry, a dot would make the first part one
    lambda where, what, which: where + (what if where else what.replace(".", "-")) + which,
    domain,
    path,
    suffix,
)
file_path = st.from_regex(r"(/[A-Za-z0-9._ +@-]{1,12}[A-Za-z0-9]){1,4}", fullmatch=True)
simple = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,4}){0,2}", fullmatch=True)
selector = st.one_of(st.just(""), st.builds(":{}".format, simple), st.just(":@12"))
reference = st.one_of(
    st.builds(ImageReference, st.just(Transport.REGISTRY), registry_name),
    st.builds(
        lambda transport, where, which: ImageReference(transport, where + which),
        st.sampled_from([Transport.OCI, Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE]),
        file_path,
        selector,
    ),
    st.builds(ImageReference, st.just(Transport.DIR), file_path),
    st.builds(
        ImageReference,
        st.just(Transport.CONTAINERS_STORAGE),
        registry_name.filter(lambda name: not name.startswith("[")),  # there, brackets hold a store
    ),
)


@given(reference)
def test_parse_reads_what_str_prints(value):
    assert ImageReference.parse(str(value)) == value
    assert value.canonical().canonical() == value.canonical()
    identity, parents = policy_scopes(value, lambda text: text)
    assert len(set(parents)) == len(parents)
    assert "" not in parents
    assert isinstance(identity, str)


@given(registry_name)
def test_normalising_is_idempotent(name):
    parsed = RegistryName.parse(name)
    assert RegistryName.parse(str(parsed)) == parsed
    assert (parsed.canonical().tag is None) != (parsed.canonical().digest is None)


@given(
    reference,
    st.one_of(
        st.none(),
        st.just("containerPolicy"),
        st.tuples(
            st.just("ostreeRemote"),
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True),
        ),
    ),
)
def test_signed_parse_reads_what_str_prints(image, signature):
    value = SignedReference(image, signature)
    assert SignedReference.parse(str(value)) == value


@given(registry_name, tag)
def test_with_tag_gives_that_tag(name, new):
    changed = ImageReference(Transport.REGISTRY, name).with_tag(new).registry_name()
    assert (changed.tag, changed.digest) == (new, None)
    assert changed.repository == RegistryName.parse(name).repository


@given(st.text(max_size=300))
def test_any_text_is_a_reference_or_a_usage_error(text):
    try:
        value = ImageReference.parse(text)
    except UsageError as error:
        shown = error.message + str(error.found)
    else:
        assert ImageReference.parse(str(value)) == value
        shown = str(value)
    assert shown.isprintable()


def test_nothing_heavy_is_imported():
    code = (
        "import sys, bootc_core.models.reference;"
        "heavy = {'pydantic', 'trio', 'ssl', 'json', 'http', 'hashlib'} & set(sys.modules);"
        "sys.exit(' '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
