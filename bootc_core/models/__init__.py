"""What passes between the parts: immutable values without I/O."""
