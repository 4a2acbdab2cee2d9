"""Site scripts: executables in ``hooks.d`` over the same contract as plugins."""
