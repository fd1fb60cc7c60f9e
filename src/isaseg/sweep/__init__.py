"""Several runs: which ones (jobs), each in a fresh process (local, slurm), watched until the end (supervise)."""
