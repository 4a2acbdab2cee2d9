"""The decisions of the engine: plans and recovery, case by case."""

import pytest

from bootc_core.engine import plan, recovery
from bootc_core.errors import UsageError
from bootc_core.models.context import Operation, SignatureMode
from bootc_core.models.host import Deployment, HostImage, HostStatus, ImageStatus
from bootc_core.models.reference import ImageReference, Transport

POLICY, INSECURE, ENFORCE = SignatureMode.POLICY, SignatureMode.INSECURE, SignatureMode.ENFORCE
DIGEST = "sha256:" + "0" * 64


def deployment(name, transport="registry", **more):
    return Deployment(ImageStatus(HostImage(name, transport), DIGEST, "amd64"), **more)


def host(name="quay.io/x/y:1", staged=None):
    return HostStatus(
        booted=deployment(name) if name else None, staged=deployment(staged) if staged else None
    )


def reference(name):
    return ImageReference.make(Transport.REGISTRY, name)


def test_switch_to_what_is_followed_already_is_nothing():
    assert (
        plan.plan_switch(reference("quay.io/x/y:1"), host(), POLICY, insecure=False, enforce=False)
        is None
    )


@pytest.mark.parametrize(
    ("insecure", "enforce", "mode"),
    [(False, False, POLICY), (True, False, INSECURE), (False, True, ENFORCE)],
)
def test_switch_takes_the_flags_mode(insecure, enforce, mode):
    target = plan.plan_switch(
        reference("quay.io/x/z:1"), host(), POLICY, insecure=insecure, enforce=enforce
    )
    assert target == plan.Target(Operation.SWITCH, reference("quay.io/x/z:1"), mode)


def test_switch_with_another_mode_is_a_change():
    target = plan.plan_switch(
        reference("quay.io/x/y:1"), host(), INSECURE, insecure=False, enforce=False
    )
    assert target is not None
    assert target.signature is POLICY


def test_switch_flags_contradict():
    with pytest.raises(UsageError, match="contradict"):
        plan.plan_switch(reference("x"), host(), None, insecure=True, enforce=True)


def test_upgrade_follows_the_staged_image_before_the_booted_one():
    target = plan.plan_upgrade(host(staged="quay.io/x/other:2"), POLICY, None)
    assert target.reference == reference("quay.io/x/other:2")


def test_upgrade_keeps_the_mode_and_takes_a_tag():
    target = plan.plan_upgrade(host(), INSECURE, "7")
    assert target == plan.Target(Operation.UPGRADE, reference("quay.io/x/y:7"), INSECURE)


@pytest.mark.parametrize(
    ("status", "tag", "message"),
    [
        (HostStatus(), None, "No image source specified"),
        (HostStatus(), "1", "--tag requires a booted image with a specified source"),
        (
            HostStatus(booted=Deployment(None, incompatible=True)),
            None,
            "local rpm-ostree modifications prevent upgrading",
        ),
    ],
)
def test_upgrade_without_a_source(status, tag, message):
    with pytest.raises(UsageError, match=message):
        plan.plan_upgrade(status, None, tag)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("quay.io/x/y:1", "quay.io/x/y:2", True),
        ("quay.io/x/y:1", "quay.io/x/y@" + DIGEST, True),
        ("quay.io/x/y:1", "quay.io/x/z:1", False),
        ("debian", "docker.io/library/debian:12", True),
    ],
)
def test_the_repository_that_a_switched_off_check_is_kept_for(one, two, same):
    assert (plan.repository_of(reference(one)) == plan.repository_of(reference(two))) is same


BEGIN = {"record": "begin"}
STAGE = {"record": "phase", "phase": "stage"}
STAGED = {"record": "staged", "staged": {"deployment_id": "new"}}
KEPT = {**STAGED, "keep": True}


@pytest.mark.parametrize(
    ("records", "boots", "action"),
    [
        ([], None, "none"),
        ([BEGIN], "old", "none"),
        ([BEGIN, {"record": "phase", "phase": "fetch"}], "old", "none"),
        ([BEGIN, STAGE], "old", "discard"),
        ([BEGIN, STAGE, STAGED], "old", "discard"),
        ([BEGIN, STAGE, STAGED, {"record": "switching"}], "old", "discard"),
        ([BEGIN, STAGE, STAGED, {"record": "switching"}], "new", "finish"),
        ([BEGIN, STAGE, STAGED], "new", "finish"),
        ([BEGIN, STAGE, STAGED, {"record": "switched"}], "new", "finish"),
        ([BEGIN, {"record": "phase", "phase": "rollback"}], "old", "discard"),
        ([BEGIN, KEPT, {"record": "switching"}], "old", "discard"),
        ([BEGIN, KEPT, {"record": "switching"}], "new", "finish"),
    ],
)
def test_what_boots_decides_recovery(records, boots, action):
    assert recovery.decide(records, boots).action == action


def test_what_an_earlier_run_had_staged_stays_staged():
    assert recovery.decide([BEGIN, KEPT], "old").staged is None
    assert recovery.decide([BEGIN, STAGED], "old").staged == STAGED["staged"]
