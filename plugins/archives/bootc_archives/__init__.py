"""Images in local files: OCI layouts, their archives, ``docker save`` archives, and skopeo's ``dir:``.

store           named files, in a directory or in a tar file that is never unpacked
oci_layout      oci: and oci-archive:
docker_archive  docker-archive:
directory       dir:
image           from the named document down to a FetchedImage, the same for all
plugin          the hooks
"""
