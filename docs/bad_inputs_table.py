"""Writes ``docs/bad-inputs.md``: every kind of bad input that the catalogue lists, what happens then, and the test that shows it.

usage: python docs/bad_inputs_table.py [--check]

The rows are written here; the tests are found in ``tests/`` by their names: ``test_t36_…`` or a parameter's id that begins
with ``T36``. ``--check`` only tells, by its exit status, whether the page is up to date and every row has a test.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/bad-inputs.md"
HEAD = """# Bad inputs

Made by `docs/bad_inputs_table.py`; do not edit. A test fails when a row has no test.

What holds for every refusal: the exit status is 1 (2 for a wrong command line); one message names the thing (image,
layer, path in the layer, file and key, device) and carries the class shown here (`class` in the JSON form, see
[Errors](errors.md)); no traceback; deployments, boot entries, origins and trust are byte for byte as before; and the next
good run succeeds and clears away what the bad one left. `tests/support/refusal.py` is that rule as code. "works" means
that the input is no error.

`pytest -k t36` runs what a row stands for; `make bad-inputs` runs all points of the sweeps, which are sampled otherwise.
"""

# id: (input, what happens, class)
GROUPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Layer archives": {
        "T01": ("a member named `../../etc/shadow`", "refused; nothing is written outside staging", "CON"),
        "T02": ("an absolute name", "is below the image's root", "works"),
        "T03": ("`..`, `.` and empty parts", "`..` is refused; the others are dropped, one key for one path", "CON"),
        "T04": ("NUL, newline, escape codes, any bytes in names", "NUL is refused; the rest is kept, escaped in messages", "CON"),
        "T05": ("an empty name, `.` or `/` as a file", "refused", "CON"),
        "T06": ("components over 255, paths over 4096 bytes", "refused before anything is written", "LIM"),
        "T07": ("thousands of directory levels", "refused at 256; nothing recurses", "LIM"),
        "T08": ("a file below a name that is a symbolic link", "refused; links of an image are never followed", "CON"),
        "T09": ("a hard link through a symbolic link", "refused", "CON"),
        "T10": ("a hard link to an absolute or `..` path", "refused", "CON"),
        "T11": ("a hard link to nothing of the image", "refused, both ends named", "CON"),
        "T12": ("a hard link to itself, or a circle of them", "refused", "CON"),
        "T13": ("a hard link to a directory", "refused", "CON"),
        "T14": ("a hard link to what the same layer hides", "one defined result, as in other tools", "CON"),
        "T15": ("a hard link to a symbolic link", "links the link itself", "works"),
        "T16": ("one name several times", "the last one replaces the others wholly", "works"),
        "T17": ("a directory replaced by a link", "its content is gone from view; nothing is written through the link", "works"),
        "T18": ("a symbolic link's target of 1 MiB", "refused", "LIM"),
        "T19": ("a symbolic link with an empty target", "refused", "CON"),
        "T20": ("whiteouts of `.`, `..`, nothing, or another marker", "refused", "CON"),
        "T21": ("whiteouts with a path or `..` as the victim", "refused", "CON"),
        "T22": ("an opaque marker of another type or with content", "refused", "CON"),
        "T23": ("a whiteout of something in its own layer", "hides lower layers only, wherever it stands", "works"),
        "T24": ("whiteouts that leave nothing to boot", "refused after merging; says what is missing", "CON"),
        "T25": ("attributes that overlay would obey", "kept as data, escaped in the image", "works"),
        "T26": ("overlay's own form of a whiteout", "refused: layers have the other form", "CON"),
        "T27": ("device nodes", "refused outside `/dev`, left out inside", "CON"),
        "T28": ("sockets and pipes", "sockets are refused, pipes only recorded", "CON"),
        "T29": ("set-user-ID files and capabilities", "are metadata of the image, never of a stored object", "works"),
        "T30": ("`security.*` attributes", "the storage backend's policy decides", "works"),
        "T31": ("attributes too many, too long or without a namespace", "refused", "LIM"),
        "T32": ("sizes that are negative, huge or no number", "refused", "INT"),
        "T33": ("a size beyond the end of the layer", "refused, the member named", "INT"),
        "T34": ("a wrong header checksum", "refused", "INT"),
        "T35": ("damaged extended headers", "refused", "INT"),
        "T36": ("an extended header of 1 GiB, or that claims to be", "refused at 1 MiB, before memory is asked for", "LIM"),
        "T37": ("extended headers made to be slow", "linear time", "LIM"),
        "T38": ("a million extended headers before one member", "refused at 16", "LIM"),
        "T39": ("global headers that rename or resize", "refused; comments pass", "CON"),
        "T40": ("two headers that disagree", "refused: other tools would see another image", "INT"),
        "T41": ("sparse files", "refused", "LIM"),
        "T42": ("sparse maps that make no sense", "refused", "INT"),
        "T43": ("members after the end", "refused; zeros pass", "CON"),
        "T44": ("no end, or a torn one", "refused", "INT"),
        "T45": ("millions of members", "counted over all layers, refused at the bound", "LIM"),
        "T46": ("times before 1970, after 30 000, in nanoseconds", "kept where they can be; what is no number is refused", "INT"),
        "T47": ("owners beyond the range", "refused", "CON"),
        "T48": ("other bits in the mode", "only permissions are taken", "works"),
        "T49": ("unknown and obsolete types", "refused, never taken for files", "CON"),
        "T50": ("names that collide on FAT", "none of the image's names reaches the boot partition", "works"),
        "T51": ("members below `/proc`, `/run`, `/dev` …", "names in the image, never live mounts", "works"),
        "T52": ("no kernel, two, or one with an odd name", "refused, the directory named", "CON"),
        "T53": ("a kernel that is a link", "looked up inside the image; one that leads out is refused", "CON"),
        "T54": ("a file that changes while it is read", "what was hashed is what is used", "INT"),
    },
    "Compression": {
        "Z01": ("a gzip bomb", "stops at the bound, memory stays flat", "LIM"),
        "Z02": ("a zstd bomb", "the same", "LIM"),
        "Z03": ("a zstd window of gigabytes", "refused above 128 MiB", "LIM"),
        "Z04": ("compressed twice", "unpacked once; the second one is refused", "CON"),
        "Z05": ("cut off at any byte", "refused, never taken for the end", "INT"),
        "Z06": ("any bit flipped", "refused by digest", "INT"),
        "Z07": ("a wrong or missing trailer", "refused", "INT"),
        "Z08": ("rubbish, further members, endless empty frames", "members follow; rubbish is refused; a bound on frames", "INT"),
        "Z09": ("bytes that are not what the media type says", "refused; in local files the bytes decide", "INT"),
        "Z10": ("unknown, encrypted and foreign layer types", "refused by name; foreign addresses are never asked", "CON"),
        "Z11": ("a zstd dictionary; a chunked table that lies", "refused; the table is a hint and content is hashed", "INT"),
        "Z12": ("what crashes the decompressor", "the worker dies, the layer is named", "CON"),
        "Z13": ("what takes all memory or time", "the worker is ended, the bound is named", "LIM"),
    },
    "Manifests, configurations, indexes": {
        "M01": ("a document with another digest", "refused before it is parsed", "INT"),
        "M02": ("a blob with another digest", "fetched once more, then refused; gets no name", "INT"),
        "M03": ("a blob shorter or longer than it says", "stops at the first byte too many", "INT"),
        "M04": ("sizes that are negative, text, huge", "refused", "INT"),
        "M05": ("an endless manifest", "stops at 4 MiB", "LIM"),
        "M06": ("JSON 100 000 levels deep", "refused at 64", "LIM"),
        "M07": ("a key twice", "refused", "INT"),
        "M08": ("NaN, endless numbers, lone surrogates, something behind", "refused", "INT"),
        "M09": ("an index and a manifest at once", "refused", "INT"),
        "M10": ("header and document of different types", "refused", "INT"),
        "M11": ("an index in itself", "refused at the second level", "LIM"),
        "M12": ("deep or endless indexes", "refused", "LIM"),
        "M13": ("no image for this machine, or two", "lists what there is", "NOTFOUND"),
        "M14": ("a configuration for another machine", "refused before layers are fetched", "CON"),
        "M15": ("another number of diffIDs than layers", "refused before layers are fetched", "INT"),
        "M16": ("a wrong diffID", "the layer is dropped", "INT"),
        "M17": ("one layer twice, empty layers", "imported once, applied in order", "works"),
        "M18": ("a thousand layers", "refused at 500", "LIM"),
        "M19": ("unknown, short, odd digests; paths as digests", "refused where they are parsed", "INT"),
        "M20": ("a configuration of the wrong shape", "refused, the place in it named", "INT"),
        "M21": ("labels of 50 MB, or with control characters", "bounded; escaped when shown", "LIM"),
        "M22": ("labels that claim another version or kernel", "the content counts", "works"),
        "M23": ("an image that is no system", "refused; says what is missing", "CON"),
        "M24": ("charts, artifacts, old manifests", "refused as no image", "CON"),
        "M25": ("a tag that moves during a run", "the first answer counts for all of it", "works"),
        "M26": ("inline data in a descriptor", "not looked at", "works"),
        "M27": ("a history of any length and content", "not used", "works"),
        "M28": ("the same content under another media type", "known by its content, documents by their digests", "works"),
    },
    "Network": {
        "N01": ("nobody there, unknown hosts, pages of portals", "the host and the reason; a page is no document", "NET"),
        "N02": ("a connection that breaks after any number of bytes", "goes on at the byte", "works"),
        "N03": ("a server that ignores ranges", "begins again, never appends", "works"),
        "N04": ("a range that was not asked for", "is not taken; asked for again, then begun again", "works"),
        "N05": ("206 for the whole; 416 for the rest", "taken if it is the whole; begun again", "works"),
        "N06": ("a body that changes between two pieces", "found by its digest, begun again once", "INT"),
        "N07": ("two lengths, chunks besides, endless heads, bare line feeds", "refused as ambiguous", "NET"),
        "N08": ("a blob with a content encoding", "none is asked for; the bytes of the wire count", "INT"),
        "N09": ("an endless manifest, token, error page, blob", "stops at the bound", "LIM"),
        "N10": ("a byte every ten seconds", "ends below 1 KiB/s over 30 seconds", "NET"),
        "N11": ("silence after the last byte", "the length is the end", "works"),
        "N12": ("a redirect to another host", "gets no credentials", "works"),
        "N13": ("a redirect to http, files, metadata services", "refused", "NET"),
        "N14": ("redirects without end", "refused after five", "NET"),
        "N15": ("a token server where none should be", "gets no credentials, is not asked", "AUTH"),
        "N16": ("tokens of 10 MB, of another type, expired at birth, 401 for ever", "one fresh token, then refused", "AUTH"),
        "N17": ("certificates that do not convince, stalls in TLS", "refused with the reason; plain text is no way out", "NET"),
        "N18": ("a file of authorities that cannot be read", "refused; the system's do not stand in", "CFG"),
        "N19": ("a proxy that wants credentials", "named; its password is not", "AUTH"),
        "N20": ("a file of log-ins that others can read", "a warning says so", "works"),
        "N21": ("429 with any `Retry-After`", "obeyed up to a bound", "NET"),
        "N22": ("5xx now and then; 404", "asked again with jitter; 404 is an answer", "NET"),
        "N23": ("401 for one layer, 403 in the middle", "fresh credentials once, then refused; what arrived is kept", "AUTH"),
        "N24": ("a mirror that delivers other bytes", "the next place is asked, the mirror named", "works"),
        "N25": ("all of them do", "refused, all of them named", "INT"),
        "N26": ("one family of addresses is dead", "the other answers within two seconds", "works"),
        "N27": ("a name from a server that stands for this machine", "refused, unless the registry is on it, too", "NET"),
        "N28": ("a connection that was closed while it was idle", "asked again on a new one", "works"),
        "N29": ("archives that are pipes, or replaced while they are read", "refused without waiting", "CON"),
        "N30": ("no network at all", "what was downloaded is applied; an upgrade names the host", "works"),
    },
    "Configuration, arguments, surroundings": {
        "C01": ("settings that are malformed", "all problems at once, with file, line and key", "CFG"),
        "C02": ("settings that are a pipe, a device, 1 GB, no text", "refused without waiting", "CFG"),
        "C03": ("settings that others than root can write", "refused with owner and mode", "CFG"),
        "C04": ("order, masks and empty files of drop-ins", "later names win, /etc replaces, `/dev/null` masks", "works"),
        "C05": ("an image's kargs.d that is malformed", "the image is refused, the file named", "CON"),
        "C06": ("kernel arguments that would break an entry", "refused", "CON"),
        "C07": ("more than a kernel takes", "refused before anything is written", "LIM"),
        "C08": ("an image that sets `root`, `init`, debug shells …", "refused; the administrator may", "POL"),
        "C09": ("an unknown architecture in kargs.d", "refused; a known one that is not this machine's is skipped", "CON"),
        "C10": ("references that are none", "refused with the position; nothing is made; passwords are not repeated", "USE"),
        "C11": ("unknown variables and values of ours", "a value is refused, a name is warned of", "CFG"),
        "C12": ("odd locales, terminals, closed, broken and full streams", "the run ends well; unread lines are dropped", "works"),
        "C13": ("mistyped and contradicting words", "the nearest word is offered", "USE"),
        "C14": ("an ordinary user, a container, no host", "composefs works in the user's directory; the rest says why not", "ENV"),
        "C15": ("state of a newer version", "nothing is written; status and rollback work", "STATE"),
        "C16": ("settings that are links", "followed inside the configuration root only", "CFG"),
    },
    "Disks and resources": {
        "D01": ("no space, at any fill level and any step", "told beforehand with figures where it can be; else where", "SPC"),
        "D02": ("no space on the boot partition", "told before anything is written there", "SPC"),
        "D03": ("no inodes; a quota", "says which", "SPC"),
        "D04": ("an I/O error of any write, name or sync", "refused, the path named; the first error of a sync is final", "IO"),
        "D05": ("what was written is not what is there", "read back before it gets a name; fetched anew next time", "IO"),
        "D06": ("the file system turns read-only in the middle", "refused; the next run converges", "RO"),
        "D07": ("it is read-only from the start", "refused at once; status works", "RO"),
        "D08": ("another disk, or none, where the boot partition was", "refused; nothing is written or deleted", "STATE"),
        "D09": ("no memory, no descriptors, interrupted calls", "refused or repeated, never half done", "IO"),
        "D10": ("no fs-verity, attributes, journal, reflinks; overlay", "works; status tells what is not guarded", "works"),
        "D11": ("the spool on another device", "refused: spool and store are one file system", "IO"),
        "D12": ("a store that is a link, foreign or writable by all", "refused", "STATE"),
        "D13": ("objects that are damaged, empty, immutable", "found on use; fetched anew where the image has them", "INT"),
        "D14": ("the clock jumps", "deadlines do not notice", "works"),
        "D15": ("one processor, the lowest priority, 256 MiB", "works", "works"),
        "D16": ("no, tiny, read-only or noexec temporary directories", "none is used", "works"),
        "D17": ("sectors of 4096 bytes", "works", "works"),
        "D18": ("the file system trims meanwhile", "works", "works"),
    },
    "Signatures and policies": {
        "S01": ("an unsigned image where the policy demands signatures", "refused before any layer byte", "POL"),
        "S02": ("a signature over another digest", "refused, both digests named", "POL"),
        "S03": ("a good signature for another repository or identity", "refused: claimed and wanted", "POL"),
        "S04": ("wrong, revoked, expired and weak keys; unknown algorithms", "refused, the key named", "POL"),
        "S05": ("one signer twice where two are demanded", "counts once", "POL"),
        "S06": ("too many or too large signatures", "bounded", "LIM"),
        "S07": ("one good signature among many bad ones", "accepted where any of them suffices", "works"),
        "S08": ("bad base64, DER, JSON, duplicate keys, strange payloads", "refused, never a crash", "POL"),
        "S09": ("an envelope whose payload is about something else", "the digest in what was signed counts", "POL"),
        "S10": ("an expired certificate without a trusted time", "refused", "POL"),
        "S11": ("logged outside the certificate's life, or in the future", "refused", "POL"),
        "S12": ("a clock in 1970 or far ahead", "nothing old comes back to life", "POL"),
        "S13": ("an image that is signed and too old (freeze)", "not deployed; the running system is unaffected", "POL"),
        "S14": ("an older signed image at the same tag", "refused until permitted, once", "POL"),
        "S15": ("version memory lost or damaged", "named; never taken for a first use", "STATE"),
        "S16": ("an image from far in the future", "refused, and others are not locked out", "POL"),
        "S17": ("a signed index, a manifest that it does not list", "only what is listed counts", "POL"),
        "S18": ("the public conformance suite", "each case as it says", "POL"),
        "S19": ("no policy, an empty one, one that others can write", "refused; never accept anything", "CFG"),
        "S20": ("overlapping scopes", "the most specific one, and `trust explain` says which", "works"),
        "S21": ("a verified image whose blobs are edited before staging", "hashed on every read", "INT"),
        "S22": ("a policy plugin that raises, hangs, answers rubbish", "counts as refusal", "PLUG"),
        "S23": ("a log or signature store that cannot be reached", "an error, never skipped", "NET"),
        "S24": ("an image from a mirror", "rules for names are those of the original name", "POL"),
    },
    "Hooks and plugins": {
        "H01": ("a script that cannot run", "named", "HOOK"),
        "H02": ("a script or a directory above that others can write", "never run", "HOOK"),
        "H03": ("a link out of the directories; replaced between check and run", "opened once, run by that handle", "HOOK"),
        "H04": ("exit 1, 126, 127, 255, killed by a signal", "by the moment: no, or a warning, with its last lines", "HOOK"),
        "H05": ("a script that hangs", "ended at its deadline with all it started", "HOOK"),
        "H06": ("a daemon that keeps the pipes", "ended; nobody waits for pipes", "HOOK"),
        "H07": ("endless output, escape codes", "capped, escaped", "HOOK"),
        "H08": ("a script that does not read its input", "does not matter", "works"),
        "H09": ("a script that calls bootc", "the lock's holder is named; nothing waits", "BUSY"),
        "H10": ("a script that deletes what was staged", "found before the switch; the old state stays", "STATE"),
        "H11": ("a script that reboots", "as a crash there", "works"),
        "H12": ("a failure after the switch", "a warning; the switch stays", "HOOK"),
        "H13": ("a thousand scripts, back-ups, odd names", "one documented order; back-ups are left out and noted", "works"),
        "H14": ("a plugin that cannot be loaded or needs a newer API", "stops the program with a remedy", "PLUG"),
        "H15": ("a plugin that raises anything, or ends the process", "named; nothing else happens", "PLUG"),
        "H16": ("a plugin that blocks", "ended at its deadline", "PLUG"),
        "H17": ("a plugin that answers something else", "checked by type; transports are hashed", "PLUG"),
        "H18": ("a plugin that changes the process", "third parties run in processes of their own", "PLUG"),
        "H19": ("two plugins for one name", "an error naming both", "PLUG"),
        "H20": ("plugins in places that others can write", "not loaded", "PLUG"),
        "H21": ("secrets in texts", "are in no representation of what holds them", "works"),
        "H22": ("a backend that says durable without a sync", "fails the contract suite", "PLUG"),
        "H23": ("a bootloader that leaves no entry", "fails the contract suite", "PLUG"),
    },
    "Interruption and concurrency": {
        "X01": ("SIGKILL before any step", "old or new; the next run converges", "works"),
        "X02": ("SIGTERM, SIGINT, SIGHUP, twice", "ends soon and cleans up", "INTR"),
        "X03": ("stopped for an hour", "deadlines are by the monotonic clock", "works"),
        "X04": ("a power cut after every block write", "old or new", "works"),
        "X05": ("a power cut with any part of unflushed writes, torn", "old or new", "works"),
        "X07": ("a power cut right after success", "new", "works"),
        "X08": ("several updates at once", "one goes on, the others name it and leave", "BUSY"),
        "X09": ("status while an update runs", "always whole, never waits", "works"),
        "X10": ("lock files of the dead, replaced ones", "the kernel's lock alone counts", "works"),
        "X11": ("a journal that is older or newer than the disk", "what boots decides", "works"),
        "X12": ("staged twice, rollback while staged, nothing to finalize", "idempotent, documented", "works"),
        "X13": ("shutdown while fetching, or a failed finalize", "stays with the old one; told at the next boot", "works"),
        "X14": ("a worker that is killed, for memory or else", "an error that says so; nothing is left running", "LIM"),
        "X16": ("the session or namespace ends", "as a kill", "works"),
    },
    "State and boot": {
        "B01": ("a journal cut at any byte, or changed", "whole records count; `bootc fsck` names the rest", "works"),
        "B02": ("a journal that disagrees with the disk", "the boot partition decides", "works"),
        "B03": ("missing or damaged records of a deployment", "status shows the rest; an upgrade works", "works"),
        "B04": ("entries without deployment, deployments without entry", "named by `bootc fsck`, left out by status", "works"),
        "B05": ("torn, empty and odd entries", "never chosen; replaced", "works"),
        "B06": ("entries of others", "stay byte for byte", "works"),
        "B07": ("a boot counter that runs out", "the old one boots; the bad one is not taken again", "works"),
        "B08": ("a root that is none of our records", "said; nothing is changed", "STATE"),
        "B09": ("a kernel or initrd that is not the image's", "written again before the switch, or by `fsck --repair`", "INT"),
        "B10": ("an image that is not what the entry's digest says", "refused before the switch; not mounted at boot", "INT"),
        "B15": ("a clock that changed", "the order is explicit", "works"),
        "B16": ("a flipped bit in an object", "`bootc fsck` names it, with fs-verity the kernel refuses it", "INT"),
        "B18": ("every kind of conflict in /etc", "deterministic, all named", "STATE"),
        "B19": ("a merge of /etc that is interrupted", "begins again from the image", "works"),
        "B20": ("a soft reboot that cannot be done", "refused with the reason, or left out", "ENV"),
    },
    "Installing": {
        "I01": ("a disk that is in use", "refused, the holder named", "USE"),
        "I02": ("a disk that is too small", "refused with what is needed", "SPC"),
        "I03": ("a disk that holds something", "refused until wiping is asked for", "USE"),
        "I05": ("an image without the bootloader, or another firmware", "refused before anything is written", "ENV"),
        "I07": ("a root or boot partition with content", "refused, wiped or kept as asked", "works"),
        "I08": ("malformed settings for installing", "file and key", "CFG"),
        "I09": ("an image that cannot be fetched or accepted", "known before anything is wiped", "NET"),
    },
}  # fmt: skip

# Tests that show a row without having its id in their name: file and function, checked to exist.
SHOWN: dict[str, tuple[str, ...]] = {
    "B01": (
        "core/engine/test_journal.py::test_a_torn_append_is_ignored_at_every_length",
        "scenarios/test_fsck.py::test_journals",
    ),
    "B02": ("core/engine/test_pure.py::test_what_boots_decides_recovery",),
    "B03": (
        "plugins/composefs/test_backend.py::test_status_survives_damaged_records",
        "scenarios/test_fsck.py::test_all_objects_at_once",
    ),
    "B04": (
        "scenarios/test_fsck.py::test_an_entry_of_nothing_is_named",
        "scenarios/test_fsck.py::test_a_lost_boot_entry_is_made_again",
    ),
    "B05": (
        "core/boot/test_bls.py::test_damaged",
        "scenarios/test_fsck.py::test_a_lost_boot_entry_is_made_again",
    ),
    "B06": (
        "plugins/systemd_boot/test_switch.py::test_foreign_entries_and_files_are_never_touched",
    ),
    "B07": (
        "plugins/systemd_boot/test_switch.py::test_a_new_entry_is_counted_and_given_up",
        "system/test_live_host.py::test_an_update_that_is_not_healthy_goes_back_and_is_not_taken_again",
    ),
    "B08": ("system/test_live_host.py::test_a_root_that_is_not_what_the_command_line_names",),
    "B09": (
        "plugins/systemd_boot/test_switch.py::test_damaged_kernel_is_not_shared_but_written",
        "scenarios/test_fsck.py::test_boot_files_are_those_of_the_image",
    ),
    "B10": (
        "scenarios/bad_inputs/test_d_group.py::test_d13_a_damaged_image_of_what_boots",
        "system/test_initramfs.py::test_an_image_that_is_not_what_its_name_promises_is_not_mounted",
    ),
    "B15": (
        "core/boot/test_bls.py::test_order_and_its_place_in_the_file",
        "core/boot/test_bls.py::test_menu_order",
    ),
    "B16": (
        "scenarios/test_fsck.py::test_each_object_is_looked_at",
        "plugins/composefs/test_backend.py::test_with_fs_verity_nothing_is_optional",
    ),
    "B18": (
        "core/fs/test_etc_merge.py::test_all_conflicts_are_named",
        "core/fs/test_etc_merge.py::test_many_files",
    ),
    "B19": (
        "plugins/composefs/test_backend.py::test_finalize_is_repeatable_and_takes_the_last_edits",
    ),
    "B20": ("system/test_live_host.py::test_a_soft_reboot_is_refused_or_done_without",),
    "H01": ("plugins/hooks_dir/test_hooks_dir_run.py::test_what_cannot_run_is_named",),
    "H02": (
        "plugins/hooks_dir/test_hooks_dir_run.py::test_a_script_that_others_can_write_never_runs",
        "plugins/hooks_dir/test_hooks_dir_run.py::test_a_script_of_another_user_never_runs",
        "plugins/hooks_dir/test_hooks_dir_run.py::test_a_directory_above_that_others_can_write_spoils_it",
    ),
    "H03": (
        "plugins/hooks_dir/test_hooks_dir_run.py::test_what_was_checked_is_what_runs",
        "plugins/hooks_dir/test_hooks_dir_run.py::test_a_link_out_of_the_configuration_root_never_runs",
    ),
    "H04": (
        "plugins/hooks_dir/test_hooks_dir_run.py::test_how_a_gate_ends_is_its_answer",
        "plugins/hooks_dir/test_hooks_dir_run.py::test_before_the_switch_the_first_failure_ends_it",
    ),
    "H05": (
        "plugins/hooks_dir/test_hooks_dir_run.py::test_a_script_that_hangs_costs_its_deadline",
    ),
    "H06": (
        "plugins/hooks_dir/test_hooks_dir_run.py::test_a_daemon_that_keeps_the_pipes_is_not_waited_for",
    ),
    "H07": ("plugins/hooks_dir/test_hooks_dir_run.py::test_babble_is_capped_and_escaped",),
    "H08": ("plugins/hooks_dir/test_hooks_dir_run.py::test_stdin_need_not_be_read",),
    "H11": (
        "scenarios/test_transcript.py::test_a_crash_at_every_hook_is_recovered_and_the_hook_is_called_again_resumed",
    ),
    "H12": (
        "scenarios/test_transcript.py::test_an_error_after_the_switch_only_warns",
        "plugins/hooks_dir/test_hooks_dir_run.py::test_after_the_switch_all_run_and_failures_come_together",
    ),
    "H13": (
        "plugins/hooks_dir/test_hooks_dir_discover.py::test_a_thousand_scripts_stay_in_order",
        "plugins/hooks_dir/test_hooks_dir_discover.py::test_left_overs_never_run_and_are_noted",
    ),
    "H14": (
        "core/hooks/test_manager.py::test_another_api_number_stops_with_a_remedy",
        "core/hooks/test_manager.py::test_a_misspelt_hook_is_an_error",
    ),
    "H15": (
        "core/containment/test_misbehaviour.py::test_it_costs_its_deadline_and_nothing_else",
        "scenarios/test_transcript.py::test_a_foreign_exception_names_the_plugin",
    ),
    "H16": (
        "core/containment/test_misbehaviour.py::test_it_costs_its_deadline_and_nothing_else",
        "scenarios/test_transcript.py::test_a_timeout_at_every_hook",
    ),
    "H17": (
        "core/containment/test_misbehaviour.py::test_it_costs_its_deadline_and_nothing_else",
        "contract/test_other_contracts.py::test_broken_transports_are_found",
    ),
    "H18": ("core/containment/test_misbehaviour.py::test_it_costs_its_deadline_and_nothing_else",),
    "H19": ("core/hooks/test_manager.py::test_two_offers_of_one_name_are_an_error_naming_both",),
    "H20": ("scenarios/test_authors.py::test_others_may_not_change_what_root_runs",),
    "H21": (
        "plugins/registry/test_registry_auth.py::test_secrets_are_in_no_repr",
        "scenarios/test_credential_chains.py::test_n12_n13_n14_n15_no_secret_goes_astray",
    ),
    "H22": ("contract/test_broken.py::test_the_suite_finds_it",),
    "H23": ("contract/test_other_contracts.py::test_broken_bootloaders_are_found",),
    "I01": (
        "plugins/install/test_to_disk.py::test_a_disk_in_use_or_not_empty_is_refused_until_wiped",
    ),
    "I02": (
        "plugins/install/test_partitions.py::test_a_disk_without_room_is_refused_with_what_is_needed",
    ),
    "I03": (
        "plugins/install/test_to_disk.py::test_a_disk_in_use_or_not_empty_is_refused_until_wiped",
    ),
    "I05": ("plugins/install/test_to_disk.py::test_an_image_without_the_bootloader_is_refused",),
    "I07": ("plugins/install/test_to_filesystem.py::test_what_is_there_is_refused_wiped_or_kept",),
    "I08": ("plugins/install/test_config.py::test_what_is_wrong_is_named",),
    "I09": (
        "plugins/install/test_to_disk.py::test_what_cannot_be_installed_is_refused_and_nothing_written",
    ),
    "S02": (
        "plugins/signing/test_signing_mutations.py::test_keys_swapped_digests_and_repositories_replayed",
    ),
    "S04": (
        "plugins/signing/test_signing_mutations.py::test_openpgp_keys_that_expired_were_revoked_or_are_weak",
        "plugins/signing/test_signing_mutations.py::test_weak_and_strange_keys_cannot_be_used",
    ),
    "S08": (
        "plugins/signing/test_signing_mutations.py::test_envelope",
        "plugins/signing/test_signing_mutations.py::test_classic_payload_and_signature",
        "fuzz/test_fuzz.py::test_any_bytes",
    ),
    "S09": (
        "plugins/signing/test_signing_keyless.py::test_a_statement_about_another_image_or_repository",
        "plugins/signing/test_signing_keyless.py::test_the_entry_is_about_another_signature",
    ),
    "S17": ("plugins/signing/test_signing_real.py::test_index_or_image",),
    "S21": (
        "scenarios/bad_inputs/test_d_group.py::test_d05_damaged_splitstreams_are_not_published",
        "scenarios/bad_inputs/test_d_group.py::test_d05_what_was_damaged_is_not_taken_again",
    ),
    "S22": (
        "core/containment/test_misbehaviour.py::test_it_costs_its_deadline_and_nothing_else",
        "contract/test_other_contracts.py::test_broken_policies_are_found",
    ),
    "S24": (
        "plugins/registry/test_registry_fetch.py::test_mirrors_in_order_and_the_logical_name_stays",
    ),
    "X01": (
        "scenarios/test_killed.py::test_old_or_new_and_convergence",
        "model/test_model.py::test_composefs",
    ),
    "X04": ("chaos/test_chaos.py::test_some_power_cuts_on_the_real_file_systems",),
    "X05": ("chaos/test_chaos.py::test_some_power_cuts_on_the_real_file_systems",),
    "X07": ("chaos/test_chaos.py::test_some_power_cuts_on_the_real_file_systems",),
    "X03": ("scenarios/bad_inputs/test_d_group.py::test_d14_no_deadline_uses_the_wall_clock",),
    "X11": ("core/engine/test_pure.py::test_what_boots_decides_recovery",),
    "X12": (
        "model/test_model.py::test_engine",
        "scenarios/test_transcript.py::test_download_only_and_later",
    ),
    "X13": ("system/test_live_host.py::test_a_failure_at_shutdown_is_told_at_the_next_boot",),
    "X14": (
        "core/oci/test_importer.py::test_x_killed_parent_leaves_finished_layers_and_no_process",
    ),
    "X16": ("scenarios/test_killed.py::test_old_or_new_and_convergence",),
}

_IN_NAME = re.compile(r"(?:^|_)([tzmncdshxbi]\d\d)(?=_|$)")
_IN_TEXT = re.compile(r"[TZMNCDSHXBItzmncdshxbi]\d\d(?![0-9A-Za-z])")


def _names_of(node: ast.AST) -> Iterator[str]:
    """Ids that parameters of a test have: texts that begin with one."""
    for inner in ast.walk(node):
        text = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(text, str) and (match := _IN_TEXT.match(text.replace("_", " "))):
            yield match.group().upper()


def _of_file(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of id and test function of one file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tables: dict[str, set[str]] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Name):
                tables[target.id] = set(_names_of(node.value))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("test_"):
            continue
        found = {name.upper() for name in _IN_NAME.findall(node.name)}
        for decorator in node.decorator_list:
            found.update(_names_of(decorator))
            for inner in ast.walk(decorator):
                if isinstance(inner, ast.Name):
                    found.update(tables.get(inner.id, ()))
        for name in found:
            yield name, node.name


def covering() -> dict[str, list[str]]:
    """For each id the tests that name it, as ``path::function``."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name, function in _of_file(path):
            found[name].add(f"{path.relative_to(ROOT)}::{function}")
    for name, places in SHOWN.items():
        found[name].update(f"tests/{place}" for place in places)
    return {name: sorted(places) for name, places in found.items()}


def rows() -> dict[str, tuple[str, str, str]]:
    """All rows of all groups."""
    return {name: row for group in GROUPS.values() for name, row in group.items()}


def page() -> str:
    """The whole page."""
    covered = covering()
    lines = [HEAD]
    for title, group in GROUPS.items():
        lines += [
            f"## {title}\n",
            "| | input | what happens | class | tests |",
            "|---|---|---|---|---|",
        ]
        for name, (given, then, kind) in group.items():
            places: dict[str, list[str]] = defaultdict(list)
            for place in covered.get(name, []):
                file, _, function = place.partition("::")
                places[file.removeprefix("tests/")].append(function)
            cell = "<br>".join(
                f"{file}: {', '.join(f'`{function}`' for function in functions)}"
                for file, functions in places.items()
            )
            lines.append(f"| {name} | {given} | {then} | {kind} | {cell} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write or check; the exit status."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
    return int(stale or bool(set(rows()) - set(covering())))


if __name__ == "__main__":
    sys.exit(main())
