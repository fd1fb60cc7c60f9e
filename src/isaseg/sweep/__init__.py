"""Several runs: which (jobs), one fresh process each (local, slurm, ray), seen through to the end (supervise)."""
