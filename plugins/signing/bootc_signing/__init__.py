"""Signature policy of the host: ``policy.json``, as the containers tools read it.

load     which file counts, read without trusting it further than its permissions go
policy   the document: parsed strictly, the rule for a reference, the answer
plugin   the hooks
"""
