"""Generated chains of redirects and challenges: a secret goes to the registry and to the token server that it names, only.

``make credential-chains`` runs 10,000 of them, here it is a sample. Two registries (with and without TLS), two token servers and
three others answer as each chain's script says; every request that any of them gets is looked at.
"""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from bootc_registry.client import RegistryClient
from bootc_registry.config import Endpoint
from support.faulty_http import Asked, FaultyServer, Peer
from support.registry import make_image

from bootc_core.errors import BootcError
from bootc_core.models.oci import OCI_MANIFEST
from bootc_core.models.reference import RegistryName
from bootc_core.net.http import Pool

CHAINS = int(os.environ.get("BOOTC_CREDENTIAL_CHAINS", "250"))
MANIFEST = make_image().manifest
SECRET = "canary-of-the-chains"  # the user's name is none
TOKEN = "canary-token-of"
REGISTRIES = ("registry", "registry-tls")
SERVERS = (*REGISTRIES, "tokens", "tokens-tls", "store", "store-tls", "thief")


@dataclass
class Chain:
    """What the servers answer, one after the other, and what they were asked."""

    number: int
    registry: str
    script: list[tuple[int, dict[str, str], bytes]]
    token: bytes
    named: set[str] = field(
        default_factory=set
    )  # token servers that the registry itself named so far
    seen: list[tuple[str, Asked]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


class World:
    """All servers; the path of each request holds the number of its chain."""

    def __init__(self, stack: ExitStack, ca: trustme.CA) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        self.chains: dict[int, Chain] = {}
        self.servers = {
            name: stack.enter_context(
                FaultyServer(
                    lambda peer, asked, name=name: self.serve(name, peer, asked),
                    tls=context if name.endswith("-tls") else None,
                )
            )
            for name in SERVERS
        }

    def serve(self, name: str, peer: Peer, asked: Asked) -> None:
        number = int("".join(filter(str.isdigit, asked.path.rpartition("chain-")[2])) or -1)
        chain = self.chains.get(number)
        if chain is None:
            peer.reply(404)
            return
        chain.seen.append((name, asked))
        chain.leaks += self.leaks(chain, name, asked)
        if "/token" in asked.path:
            peer.reply(200, chain.token)
            return
        status, fields, body = chain.script.pop(0) if chain.script else (200, {}, MANIFEST)
        if name == chain.registry and status == 401:
            chain.named |= {
                other
                for other, server in self.servers.items()
                if server.authority in fields["www_authenticate"].replace("localhost", "127.0.0.1")
            }
        fields = {"content_type": OCI_MANIFEST, **fields} if status == 200 else fields
        peer.reply(status, body, **fields)

    def leaks(self, chain: Chain, name: str, asked: Asked) -> list[str]:
        """What a server got and must not have."""
        found = []
        everything = asked.target + "".join(map(str, asked.headers)) + asked.body.decode("latin-1")
        authorization = asked.header("authorization") or ""
        downgraded = chain.registry.endswith("-tls") and not name.endswith("-tls")
        at_registry = name == chain.registry
        at_tokens = name in chain.named and "/token" in asked.path and not downgraded
        if authorization.startswith("Basic ") and not (at_registry or at_tokens):
            found.append(f"password at {name}")
        if authorization.startswith("Bearer ") and not at_registry:
            found.append(f"token at {name}")
        if asked.header("cookie"):
            found.append(f"cookie at {name}")
        rest = everything.replace(authorization, "") if authorization else everything
        if SECRET in rest or TOKEN in rest:
            found.append(f"secret in the clear text of a request to {name}")
        return found


def location(dice: random.Random, world: World, to: str, number: int, step: int) -> str:
    """A redirect's target in one of the ways in which they are written, and in which parsers have been fooled."""
    server = world.servers[to]
    plain = server.url(f"/x{step}/chain-{number}")
    elsewhere = world.servers["thief"].authority
    forms = [
        plain, plain, plain, plain,
        f"//{server.authority}/x{step}/chain-{number}",
        f"/x{step}/chain-{number}", f"x{step}/chain-{number}", f"../chain-{number}",
        plain.replace("127.0.0.1", "localhost"), plain.replace("127.0.0.1", "LOCALHOST"),
        plain.replace("127.0.0.1", "127.1"), plain.replace("127.0.0.1", "[::ffff:127.0.0.1]"),
        plain.replace("://", f"://{server.authority}@"), plain.replace("://", "://reader:x@"),
        plain + f"#@{elsewhere}/", plain.replace("/x", f"\\@{elsewhere}/x"),
        plain.upper().replace("CHAIN", "chain"), f"http:{plain}", f"{plain}?next=http://{elsewhere}/",
        plain + "\t", "file:///etc/shadow", f"ftp://{server.authority}/chain-{number}",
        f"http://169.254.169.254/chain-{number}", "",
    ]  # fmt: skip
    return dice.choice(forms)


def challenge(dice: random.Random, world: World, number: int) -> str:
    """A challenge of one kind or another; the realm may be anywhere."""
    to = world.servers[dice.choice(SERVERS)]
    realm = dice.choice(
        [
            to.url(f"/token/chain-{number}"),
            to.url(f"/token/chain-{number}"),
            to.url(f"/token/chain-{number}").replace("127.0.0.1", "localhost"),
            to.url(f"/token/chain-{number}").replace("https:", "http:"),
            to.url(f"/token/chain-{number}").replace("://", "://reader:x@"),
            f"//{to.authority}/token/chain-{number}",
            f"/token/chain-{number}",
            f"http://169.254.169.254/token/chain-{number}",
        ]
    )
    bearer = f'Bearer realm="{realm}",service="x",scope="repository:acme/os:pull"'
    return dice.choice(
        [
            bearer,
            bearer,
            bearer,
            'Basic realm="x"',
            f'Basic realm="x", {bearer}',
            f'{bearer}, Bearer realm="{world.servers["thief"].url(f"/token/chain-{number}")}"',
            bearer + ',error="insufficient_scope"',
        ]
    )


def make_chain(number: int, world: World) -> Chain:
    dice = random.Random(f"chains/{number}")
    script: list[tuple[int, dict[str, str], bytes]] = []
    for step in range(dice.randrange(7)):
        kind = dice.random()
        if kind < 0.55:
            to = dice.choice(SERVERS)
            where = location(dice, world, to, number, step)
            script.append((dice.choice((301, 302, 303, 307, 308)), {"location": where}, b""))
        elif kind < 0.95:
            script.append((401, {"www_authenticate": challenge(dice, world, number)}, b"{}"))
        else:
            script.append((dice.choice((403, 404, 407)), {"proxy_authenticate": "Basic"}, b"{}"))
    token = {"token": f"{TOKEN}-{number}", "expires_in": dice.choice((60, 300))}
    return Chain(number, dice.choice(REGISTRIES), script, json.dumps(token).encode())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[tuple[World, Path]]:
    root = tmp_path_factory.mktemp("root")
    ca = trustme.CA()
    with ExitStack() as stack:
        made = World(stack, ca)
        for server in made.servers.values():
            for name in (server.authority, server.authority.replace("127.0.0.1", "localhost")):
                place = root / "etc/containers/certs.d" / name
                if server.tls:
                    place.mkdir(parents=True)
                    ca.cert_pem.write_to_path(place / "ca.crt")
        import base64

        pair = base64.b64encode(f"reader:{SECRET}".encode()).decode()
        logins = {made.servers[name].authority: {"auth": pair} for name in REGISTRIES}
        path = root / "auth.json"
        path.write_text(json.dumps({"auths": logins}))
        path.chmod(0o600)
        yield made, root


def test_n12_n13_n14_n15_no_secret_goes_astray(world, monkeypatch, caplog):
    made, root = world
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(root / "auth.json"))
    caplog.set_level(logging.DEBUG)
    ends: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    texts: list[str] = []
    for number in range(CHAINS):
        chain = made.chains[number] = make_chain(number, made)
        authority = made.servers[chain.registry].authority
        name = RegistryName.parse(f"{authority}/acme/os:chain-{number}")
        with Pool() as pool:
            client = RegistryClient(root, Endpoint(name), pool, timeout_s=10)
            try:
                client.get_manifest(f"chain-{number}", f"image {number}")
                ends["delivered"] += 1
            except BootcError as problem:
                ends[problem.reference] += 1
                texts.append(json.dumps(problem.to_json()) + repr(problem))
        assert chain.leaks == [], (number, chain.leaks, chain.seen)
        for server, asked in chain.seen:
            if asked.header("authorization"):
                shown[server] += 1
        del made.chains[number]
    print(f"\n{CHAINS} chains, no leak: {dict(ends)}; credentials shown: {dict(shown)}")
    everything = "\n".join((*texts, caplog.text))
    assert SECRET not in everything
    assert TOKEN not in everything
    # the generator reaches what it is meant to reach
    assert ends["delivered"] > CHAINS // 10
    for reference in ("redirect-refused", "bad-url", "bad-realm", "unauthorized"):
        assert ends[reference], f"no chain ended with {reference}"
    assert shown["registry"] > CHAINS // 20
    assert shown["registry-tls"] > CHAINS // 20
    assert shown["tokens-tls"]


def test_the_watch_would_notice(world):
    """A leak that is there is found: the same servers, asked by somebody careless."""
    made, _ = world
    chain = Chain(10**9, "registry", [], b"")
    for headers, at in (
        ((("Authorization", "Basic eA=="),), "thief"),
        ((("Authorization", "Bearer x"),), "tokens"),
        ((("Cookie", "x"),), "registry"),
        ((("X-Debug", SECRET),), "registry"),
    ):
        asked = Asked("GET", "/v2/acme/os/manifests/chain-1000000000", headers, b"")
        assert made.leaks(chain, at, asked), headers
    honest = Asked("GET", "/", (("Authorization", "Basic eA=="),), b"")
    assert made.leaks(chain, "registry", honest) == []
