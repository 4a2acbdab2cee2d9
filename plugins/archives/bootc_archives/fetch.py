"""Resolve and fetch, whatever the form: blocking, read-only."""

from __future__ import annotations

from bootc_archives.directory import open_directory
from bootc_archives.docker_archive import open_docker_archive
from bootc_archives.image import Opened, follow
from bootc_archives.oci_layout import open_layout
from bootc_core.errors import TransportError
from bootc_core.models.image import FetchedImage
from bootc_core.models.oci import Platform
from bootc_core.models.reference import ImageReference, Transport
from bootc_core.oci.platform import host_platform


def _open(reference: ImageReference) -> Opened:
    match reference.transport:
        case Transport.OCI | Transport.OCI_ARCHIVE:
            return open_layout(reference)
        case Transport.DOCKER_ARCHIVE:
            return open_docker_archive(reference)
        case Transport.DIR:
            return open_directory(reference)
    raise TransportError(f"{reference} is not a local file", reference="wrong-transport")


def resolve(reference: ImageReference) -> str:
    """Digest of what ``reference`` names now (of the index where it names one).

    Raises:
        TransportError: missing, unreadable, no image of that name.
        ContentError: damaged or hostile content.
    """
    return _open(reference).document.digest


def fetch(reference: ImageReference, wanted: Platform | None = None) -> FetchedImage:
    """The image that ``reference`` names, for ``wanted`` (None: this machine).

    Raises:
        TransportError: missing, unreadable, no image of that name.
        ContentError: damaged or hostile content, or none for that machine.
    """
    return follow(_open(reference), reference, wanted or host_platform())
