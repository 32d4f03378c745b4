"""Commands of ``nvret``, one a module: ``add`` describes its options, ``run`` does the work."""
