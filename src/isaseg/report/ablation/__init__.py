"""The ablation over context modules: runs (jobs), what they gave (results), table and figures."""
