"""Tests; a package, so that files of one name may lie in different folders."""
