"""The science, pure PyTorch: context modules, heads, backbones, networks and losses."""
