"""Bounds on everything that is not ours: one table, with units and reasons.

A bound is hit before memory or disk is used for what exceeds it, and the error names the bound. Values are generous for real
images (the largest public operating system images have some 150,000 entries in 100 layers) and small for an attacker.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Documents (JSON, TOML)
MANIFEST_BYTES: Final = 4 * MIB  # what registries must accept, and all clients' cap
CONFIG_BYTES: Final = 4 * MIB  # image configuration
ERROR_BODY_BYTES: Final = 64 * KIB  # of an HTTP error reply; more is never shown
TOKEN_BYTES: Final = 1 * MIB  # token server reply
SIGNATURE_BYTES: Final = 4 * MIB  # one signature's payload, as other tools cap it
SIGNATURES: Final = 128  # of one image, likewise; anyone who may push can add some
SETTINGS_FILE_BYTES: Final = 1 * MIB  # policy.json, auth.json, drop-ins, kargs.d
JSON_DEPTH: Final = 64  # nesting; deepest real document has 8
JSON_DIGITS: Final = 19  # an integer fits in 64 bits
SELINUX_CONTEXTS_BYTES: Final = 16 * MIB  # one file of an image's policy; real ones have half a MiB
OSTREE_METADATA_BYTES: Final = 10 * MIB  # one commit or tree in a layer; libostree's bound
OSTREE_XATTRS_BYTES: Final = 1 * MIB  # one list of attributes there; the original's bound
ANNOTATION_BYTES: Final = 256 * KIB  # all labels or annotations of one document together

# Image structure
REFERENCE_CHARS: Final = 255  # registry and repository together, as other tools bound a name
INDEX_ENTRIES: Final = 1000
INDEX_DEPTH: Final = 2  # an index in an index is legal, a third is a loop
LAYERS: Final = 500
ENTRIES: Final = 2_000_000  # members of all layers together
ARCHIVE_MEMBERS: Final = 20_000  # of an oci-archive or docker-archive: blobs and their directories
LAYER_BYTES: Final = 64 * GIB  # one layer, uncompressed
IMAGE_BYTES: Final = 256 * GIB  # all layers, uncompressed
RATIO: Final = 1100  # gzip's own maximum is 1032; zstd reaches more only on empty data
RATIO_FREE_BYTES: Final = 256 * MIB  # below this much output no ratio is looked at

# Tar
NAME_BYTES: Final = 255  # one component
PATH_BYTES: Final = 4096
DEPTH: Final = 256  # directory levels
LINK_BYTES: Final = 4095  # a symbolic link's target, as Linux and EROFS have it
PAX_BYTES: Final = 1 * MIB  # one extended header
EXTENSIONS: Final = 16  # extended headers in front of one member
XATTRS: Final = 256  # of one member
XATTR_NAME_BYTES: Final = 255
XATTR_VALUE_BYTES: Final = 64 * KIB - 1
XATTRS_BYTES: Final = 32 * KIB  # names and values of one member, as composefs bounds it
END_PADDING_BYTES: Final = 16 * MIB  # zeros after the end of the archive (tar pads to a record)

# Decompression
ZSTD_WINDOW_LOG: Final = 27  # 128 MiB, what `zstd --long` writes and every decoder accepts
TOC_BYTES: Final = (
    150 * MIB
)  # a chunked layer's table of contents or tar-split, as other tools bound it
FRAMES: Final = 1_000_000  # gzip members or zstd frames of one blob
CHUNK_BYTES: Final = 256 * KIB  # read at once
OUTPUT_CHUNK_BYTES: Final = 1 * MIB  # decompressed at once: a bomb cannot grow memory beyond it

# HTTP
HTTP_HEAD_BYTES: Final = 64 * KIB  # status line and headers
HTTP_HEADERS: Final = 128
HTTP_LINE_BYTES: Final = 16 * KIB
REDIRECTS: Final = 5
CONNECT_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 60.0  # silence on a connection
SLOW_BYTES_PER_S: Final = 1 * KIB  # a connection below this ...
SLOW_WINDOW_S: Final = 30.0  # ... for so long is given up (a server may drip forever)
RETRIES: Final = 8  # of an idempotent request: a registry that fails one in four gets through
RETRY_WAIT_GROWN_S: Final = 8.0  # waits do not grow beyond it by themselves
RETRY_WAIT_S: Final = 0.5  # before the second attempt in a row that brought nothing; doubles
RETRY_WAIT_MAX_S: Final = 60.0  # also caps Retry-After

# Workers
WORKERS: Final = 8  # at most; otherwise one a core
WORKER_LINE_BYTES: Final = 1 * MIB  # of JSON from a worker
WORKER_STDERR_BYTES: Final = 64 * KIB
WORKER_MEMORY_BYTES: Final = 1 * GIB  # address space above this ends a worker
WORKER_CPU_S: Final = (
    3600  # of processor time for one process; the largest layer allowed takes minutes
)
WORKER_FILES: Final = 256  # open ones: directories of seeds, connections
WORKER_SILENCE_S: Final = (
    900.0  # without a sign of life; longer than all of an HTTP request's retries
)
SEEDS: Final = 64  # directories in which files for a chunked layer are looked for
RESUMES: Final = 100  # of one blob's download after breaks, however much each brought
SPOOL_LAYER_BYTES: Final = (
    CHUNK_BYTES  # larger layers are kept while they arrive, so that a pull resumes at the byte
)

# Phases, hooks
PHASE_TIMEOUT_S: Final = 6 * 3600.0  # a slow line may take hours
FINALIZE_TIMEOUT_S: Final = 300.0
HOOK_TIMEOUT_S: Final = 60.0  # one site script
GATE_TIMEOUT_S: Final = 120.0  # all of a plugin's gates of one phase
PARTICIPANT_TIMEOUT_S: Final = 600.0  # all that a plugin does before or after a phase
VERIFY_TIMEOUT_S: Final = 120.0  # one policy, network included
HOOK_OUTPUT_BYTES: Final = 64 * KIB
HOOK_TERM_GRACE_S: Final = 5.0
HOLD_MAX_S: Final = 14 * 24 * 3600.0  # no gate holds an update longer
EVENT_QUEUE: Final = 1024
PLUGIN_SOURCE_BYTES: Final = 1 * MIB  # of a plugin module; real ones have a few KiB
CHILD_GATE_TIMEOUT_S: Final = 60.0  # a gate in a child process; below the deadline of all gates
CHILD_VERIFY_TIMEOUT_S: Final = 100.0
CHILD_PARTICIPANT_TIMEOUT_S: Final = 300.0
CHILD_EVENTS_TIMEOUT_S: Final = 3.0  # for what an observer has not read when the run ends
CHILD_MEMORY_BYTES: Final = 1 * GIB  # address space
CHILD_PROCESSES: Final = 256  # and threads, of all that a plugin starts; where systemd counts them
CHILD_SWEEPS: Final = 100  # generations of processes that a plugin left behind
IMAGE_HOOK_MEMORY_BYTES: Final = 512 * MIB  # address space
IMAGE_HOOK_FILE_BYTES: Final = 1 * MIB  # into its own pipes; there is no file that it could write
IMAGE_HOOK_PROCESSES: Final = 64
CHILD_ANSWER_BYTES: Final = 256 * KIB
CHILD_REQUEST_BYTES: Final = 64 * MIB  # an image's documents and signatures
WATCHDOG_GRACE_S: Final = 15.0  # beyond a deadline: what has not ended by then cannot be cancelled
WATCHDOG_STALL_S: Final = 180.0  # without any Python thread running: somebody holds the interpreter
JOURNAL_BYTES: Final = 16 * MIB
FINDINGS: Final = 10_000  # of a check that are told one by one; the rest is counted

# Boot
KARGS_BYTES: Final = 2048  # the smallest COMMAND_LINE_SIZE among supported architectures
BOOT_ENTRY_BYTES: Final = 16 * KIB
BOOT_ENTRIES: Final = 256
BOOT_TRIES: Final = 3  # of a new deployment, before the one before it boots again
KERNEL_BYTES: Final = 1 * GIB  # kernel or initrd
OWNERS_BYTES: Final = 64 * MIB  # owners.json: some 300,000 files that are not root's
