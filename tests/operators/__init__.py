"""The files of ``contrib/``, each used as an operator uses it."""
