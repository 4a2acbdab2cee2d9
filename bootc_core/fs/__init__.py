"""Durable steps, foreign trees, fs-verity, the merge of /etc."""
