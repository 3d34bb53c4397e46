"""The page's parts: each file builds its widgets and renders plain results; none holds engine logic."""
